"""The wordings of the instruction tasks (paper, table 5): one place for training and decoding.

A frame is a text cut at its answers, which are the holes of decoding: n answers, n + 1 strings.
Between a string and the answer behind it stands a space, which belongs to the answer. Decoding uses
the first one of several wordings, training draws among them.
"""

from collections.abc import Sequence
from typing import NamedTuple

Frame = tuple[str, ...]
Box = tuple[int, int, int, int]
"""Left, top, right and bottom edge in pixels; right and bottom are the first ones outside."""


class Filled(NamedTuple):
    """A frame and its answers."""

    frame: Frame
    answers: tuple[str, ...]

    def pieces(self) -> list[tuple[str, bool]]:
        """The strings of the whole text in order, and whether each is an answer."""
        found = [(self.frame[0], False)]
        for answer, behind in zip(self.answers, self.frame[1:], strict=True):
            space = " " if found[-1][0] and not found[-1][0].endswith("\n") else ""
            found += [(space + answer, True), (behind, False)]
        return found


EDIT = "Edit first image following the instruction"

STRUCTURES = {
    "edges": "canny edge features",
    "segmentation": "a segmentation map",
    "hed": "hed features",
    "depth": "depth features",
    "normals": "3D norm features",
    "pose": "openpose features",
    "scribble": "children's scribbles",
    "lines": "mlsd lines",
}

CAPTIONS: dict[str, tuple[Frame, ...]] = {
    "short": (
        ("", ""),  # the caption alone, which is how pretraining shows it too
        ("Describe the given picture.", ""),
    ),
    "long": (
        ("Describe the given picture in very detail.", ""),
        ("Describe all the objects in the given image in very detail.", ""),
        ("Generate a long caption for the given image.", ""),
    ),
    "narration": (
        ("Describe the given picture in very detail.", ""),
        ("Generate a long narration of what is happening in the given image.", ""),
        ("Generate a long caption for the given image.", ""),
    ),
    "grounded": (("Describe the given picture with segmentations.", ""),),  # and places as in boxes
}


def structure(kind: str) -> str:
    """What stands in front of a map picture of a kind of STRUCTURES."""
    return f"Make high quality image from {STRUCTURES[kind]}"


def inverse(kind: str) -> str:
    """What stands in front of a picture whose map of a kind of STRUCTURES is asked for."""
    return f"Make {STRUCTURES[kind]} from high quality image"


def write(content: str) -> str:
    """Asks for a picture with this text in it."""
    return f'draw "{content}"'


def boxes(caption: str, objects: Sequence[tuple[str, Box]]) -> str:
    """A caption with the place of each object."""
    return f"Generate high quality image of {caption} with segmentations {places(objects)}"


def places(objects: Sequence[tuple[str, Box]]) -> str:
    """Where each object is, in pixels of the picture."""
    return ", ".join(
        f"{name} at location ({left}, {top}) -> ({right}, {bottom})"
        for name, (left, top, right, bottom) in objects
    )


def question(asked: str) -> Frame:
    """A question and its answer."""
    return questions(asked)[0]


def questions(asked: str) -> tuple[Frame, ...]:
    """All wordings of a question and its answer."""
    return (
        (f"Question: {asked} Answer:", "."),
        (f"Question: {asked}\n", ""),
        (f"Question: {asked} The answer is", "."),
    )


def choice(asked: str) -> Frame:
    """A question with its context and options, a line each, and its answer."""
    return f"Question: {asked}\nAnswer:", "."


def explained_question(asked: str) -> Frame:
    """A question, how to find its answer, and the answer."""
    return f"Question: {asked}\nAnswer: Let's think step-by-step:", " So the answer is", "."
