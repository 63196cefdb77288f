"""The wordings of the instruction tasks (paper, table 5): one place for training and decoding.

A frame is a text cut at its answers, which are the holes of decoding: n answers, n + 1 strings.
Between a string and the answer behind it stands a space, which belongs to the answer.
"""

from collections.abc import Sequence

Frame = tuple[str, ...]
Box = tuple[int, int, int, int]
"""Left, top, right and bottom edge in pixels; right and bottom are the first ones outside."""

EDIT = "Edit first image following the instruction"

STRUCTURES = {
    "edges": "canny edge features",
    "segmentation": "a segmentation map",
    "hed": "hed features",
    "depth": "depth features",
    "normals": "3D norm features",
    "pose": "openpose features",
    "scribble": "children's scribbles",
}

CAPTIONS: dict[str, Frame] = {
    "short": ("", ""),  # the caption alone, which is how pretraining shows it too
    "long": ("Describe the given picture in very detail.", ""),
}


def structure(kind: str) -> str:
    """What stands in front of a map picture of a kind of STRUCTURES."""
    return f"Make high quality image from {STRUCTURES[kind]}"


def boxes(caption: str, objects: Sequence[tuple[str, Box]]) -> str:
    """A caption with the place of each object."""
    places = (
        f"{name} at location ({left}, {top}) -> ({right}, {bottom})"
        for name, (left, top, right, bottom) in objects
    )
    return f"Generate high quality image of {caption} with segmentations {', '.join(places)}"


def question(asked: str) -> Frame:
    """A question and its answer."""
    return f"Question: {asked} Answer:", "."


def explained_question(asked: str) -> Frame:
    """A question, how to find its answer, and the answer."""
    return f"Question: {asked}\nAnswer: Let's think step-by-step:", " So the answer is", "."
