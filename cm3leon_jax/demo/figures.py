"""What a tab shows as HTML: pictures in a grid, each with its caption, and texts between them."""

import html
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image as Pillow

from cm3leon_jax.demo.canvas import to_url
from cm3leon_jax.tokens.wording import Box

COARSE = 128  # pixels a side, below which a picture is enlarged by whole squares


class Part(NamedTuple):
    """A picture or a text, what stands below it, and rectangles over it in its pixels.

    is_drawn: a finished picture of the model, which the other tabs offer to take.
    is_beside: a retrieved document, which stands beside all else.
    """

    content: Pillow.Image | str
    caption: str = ""
    boxes: Sequence[tuple[str, Box]] = ()
    is_drawn: bool = False
    is_beside: bool = False


def show(parts: Sequence[Part], empty: str = "") -> str:
    """The parts in order; `empty` is said where there are none."""
    if not parts:
        return f'<div class="empty">{html.escape(empty)}</div>'
    main = [part for part in parts if not part.is_beside]
    pictures = sum(not isinstance(part.content, str) for part in main)
    columns = min(4, max(1, math.ceil(pictures**0.5)))
    shown = f'<div class="parts" style="--columns:{columns}">{"".join(map(_show, main))}</div>'
    beside = "".join(_show(part) for part in parts if part.is_beside)
    aside = f"<aside><h2>Retrieved documents</h2>{beside}</aside>" if beside else ""
    return f'<div class="shown">{shown}{aside}</div>'


def _show(part: Part) -> str:
    if isinstance(part.content, str):
        return f"<p>{html.escape(part.content)}</p>"
    caption = html.escape(part.caption)
    width, height = part.content.size
    kind = f"{'coarse ' if width < COARSE else ''}{'drawn' if part.is_drawn else ''}".strip()
    image = f'<img class="{kind}" alt="{caption}" src="{to_url(np.asarray(part.content))}">'
    rects = "".join(
        f'<div class="rect" style="left:{100 * x0 / width}%;top:{100 * y0 / height}%;'
        f'width:{100 * (x1 - x0) / width}%;height:{100 * (y1 - y0) / height}%">'
        f"<b>{html.escape(name)}</b></div>"
        for name, (x0, y0, x1, y1) in part.boxes
    )
    below = f"<figcaption>{caption}</figcaption>" if caption else ""
    return f'<figure><div class="picture">{image}{rects}</div>{below}</figure>'
