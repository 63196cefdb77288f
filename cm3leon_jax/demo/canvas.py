"""The field of the page for a picture and rectangles on it: its component, and what it sends.

The browser decodes no upload: `open_upload` reads it here, and the field shows the square that the
model sees. Rectangles are in pixels of that square.
"""

import base64
import binascii
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cm3leon_jax.data.pictures import open_picture, to_png
from cm3leon_jax.fields import require
from cm3leon_jax.tokens.wording import Box

MAX_BYTES = 16 * 2**20  # of an upload
CHARACTERS = MAX_BYTES // 3 * 4 + 4  # of so many bytes in base64


class Canvas(NamedTuple):
    """A picture [size size 3], where one was given, and the rectangles with their names."""

    picture: NDArray[np.uint8] | None
    boxes: list[tuple[str, Box]]

    def need_picture(self) -> NDArray[np.uint8]:
        """The picture; raises ValueError where there is none."""
        if self.picture is None:
            raise ValueError("picture: choose one first")
        return self.picture


def open_upload(url: Any, size: int) -> NDArray[np.uint8]:
    """The picture of a data URL, as `open_picture` gives it: [size size 3].

    Raises ValueError for more than MAX_BYTES, and BadPicture for what cannot be read.
    """
    require(isinstance(url, str) and url.startswith("data:"), "picture", url, "use a data URL")
    content = url.partition(",")[2]
    if len(content) > CHARACTERS:
        millions = len(content) * 3 // 4 / 2**20
        raise ValueError(f"picture of {millions:.1f} MB: the limit is {MAX_BYTES // 2**20} MB")
    try:
        data = base64.b64decode(content, validate=True)
    except binascii.Error as error:
        raise ValueError(f"picture: is not base64 ({error})") from None
    try:
        return open_picture(data, size)
    except ValueError as error:
        raise ValueError(f"picture: {error}") from None


def to_url(pixels: NDArray[np.uint8]) -> str:
    """The pixels [Y X 3] as a data URL."""
    return f"data:image/png;base64,{base64.b64encode(to_png(pixels)).decode()}"


def read_canvas(value: Any, size: int) -> Canvas:
    """What the component sends; raises ValueError for anything else."""
    match value:
        case {"picture": None | str() as url, "boxes": list() as boxes} if all(map(_is_box, boxes)):
            picture = None if url is None else open_upload(url, size)
            return Canvas(picture, [(name, tuple(corners)) for name, corners in boxes])  # type: ignore[misc]
    raise ValueError("canvas: use {'picture': URL or null, 'boxes': [[name, [x0, y0, x1, y1]]]}")


def make_canvas(
    size: int,
    boxes: Literal["none", "one", "named"] = "none",
    pictures: Sequence[NDArray[np.uint8]] | None = (),
) -> Any:
    """The component. pictures: those that it offers; None: it takes rectangles alone."""
    import gradio as gr

    def read_upload(url: Any) -> dict[str, str]:
        try:
            return {"picture": to_url(open_upload(url, size))}
        except ValueError as error:
            return {"message": str(error)}

    return gr.HTML(
        {"picture": None, "boxes": []},
        html_template='<div class="canvas"></div>',
        js_on_load=Path(__file__).with_name("canvas.js").read_text(encoding="utf-8"),
        apply_default_css=False,
        server_functions=[read_upload],
        size=size,
        boxes=boxes,
        takes_picture=pictures is not None,
        offered=[to_url(pixels) for pixels in pictures or ()],
        limit=MAX_BYTES,
    )


def _is_box(value: Any) -> bool:
    match value:
        case [str(), [int(), int(), int(), int()]]:
            return True
    return False
