"""Parts of documents as people have them, strings and pictures, to segments and back."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

from cm3leon_jax.data.pictures import open_picture, open_whole
from cm3leon_jax.fields import require
from cm3leon_jax.models.image_codes import decode_codes
from cm3leon_jax.models.vqgan import VQGAN
from cm3leon_jax.tokens.document import MASK, Image, Text
from cm3leon_jax.tokens.text import TextTokenizer
from cm3leon_jax.tokens.wording import Frame

HOLE = "<mask>"
GREY = 128  # holes of images are shown so

Picture = Pillow.Image | np.ndarray | str | Path | bytes
Pictures = Picture | Sequence[Picture]
T = TypeVar("T")


def read_pictures(pictures: Sequence[Picture], size: int) -> NDArray[np.uint8]:
    """[B size size 3]: short side resized, centre cropped, on white."""
    return np.stack([open_picture(_source(picture), size) for picture in pictures])


def read_whole(picture: Picture, most: int) -> NDArray[np.uint8]:
    """[Y X 3] as it is; raises ValueError for more than `most` pixels."""
    pixels = open_whole(_source(picture))
    y, x, _ = pixels.shape
    require(x * y <= most, "image", f"{x} x {y} pixels", f"use at most {most:,} pixels")
    return pixels


def _source(picture: Picture) -> Path | bytes | np.ndarray | Pillow.Image:
    return Path(picture) if isinstance(picture, str) else picture


def show_image(image: Image, tokenizer: VQGAN) -> Pillow.Image:
    """The picture of an image of all its codes; where they are MASK it is grey."""
    codes = np.array(image.codes)
    is_hole = codes == MASK
    pixels = decode_codes(tokenizer, np.where(is_hole, 0, codes)[None])[0]
    side = round(len(codes) ** 0.5)
    patch = np.ones((len(pixels) // side,) * 2, bool)
    return Pillow.fromarray(
        np.where(np.kron(is_hole.reshape(side, side), patch)[..., None], np.uint8(GREY), pixels)
    )


def read_text(name: str, text: str, tokenizer: TextTokenizer) -> Text:
    """A text without holes; raises ValueError naming the argument where it is empty."""
    require(isinstance(text, str) and bool(text.strip()), name, text, "use some text")
    return Text(tokenizer.encode(text))


def read_text_with_holes(text: str, tokenizer: TextTokenizer) -> Text:
    """A text in which `<mask>` is a hole."""
    require(bool(text.strip()), "text", text, "use some text")
    first, *rest = text.split(HOLE)
    ids = tokenizer.encode(first.rstrip() if rest else first)
    for index, part in enumerate(rest, start=1):
        # The space before a hole belongs to the fill: pieces begin with their space.
        ids += [MASK, *tokenizer.encode(part.rstrip() if index < len(rest) else part)]
    return Text(ids)


def read_frame(frame: Frame, tokenizer: TextTokenizer) -> Text:
    """A frame with holes in place of its answers."""
    ids = tokenizer.encode(frame[0])
    for part in frame[1:]:
        ids += [MASK, *tokenizer.encode(part)]
    return Text(ids)


def write_answer(frame: Frame, fills: Sequence[Sequence[int]], tokenizer: TextTokenizer) -> str:
    """What stands in a filled frame from its first answer to its last, or to the last so far."""
    texts = [tokenizer.decode(fill) for fill in fills]
    answer = "".join(part for pair in zip(texts, [*frame[1 : len(texts)], ""]) for part in pair)
    return answer.removeprefix(" ") if frame[0] else answer  # the space behind the first string


def write_text(ids: Sequence[int], tokenizer: TextTokenizer) -> str:
    """The string of a text; holes are written `<mask>`."""
    parts: list[list[int]] = [[]]
    for value in ids:
        parts.append([]) if value == MASK else parts[-1].append(value)
    return HOLE.join(tokenizer.decode(part) for part in parts)


def pair(
    image: Pictures, name: str, text: str | Sequence[str]
) -> tuple[bool, Sequence[Picture], list[str]]:
    """Whether there is one picture, the pictures, and the text that goes with each of them."""
    is_one = not isinstance(image, list | tuple)
    pictures: Sequence[Picture] = [image] if is_one else image  # type: ignore[list-item,assignment]
    require(len(pictures) > 0, "image", image, "use at least one picture")
    texts = [text] * len(pictures) if isinstance(text, str) else list(text)
    rule = f"use one string, or one for each of the {len(pictures)} pictures"
    require(len(texts) == len(pictures), name, text, rule)
    return is_one, pictures, texts


def one_or_list(is_one: bool, found: list[T]) -> T | list[T]:
    """As the argument was, one picture or a list of them."""
    return found[0] if is_one else found
