"""One HTML file with everything inside: numbers, pictures, curves, commands."""

import base64
import html
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cm3leon_jax.data.pictures import to_png
from cm3leon_jax.evaluation.parts import write_bytes

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem;
       color: #1a1a1a; background: #fff }
h1 { font-size: 1.6rem } h2 { font-size: 1.15rem; margin-top: 2.2rem }
table { border-collapse: collapse } td, th { padding: .2rem .9rem .2rem 0; text-align: left }
th { border-bottom: 1px solid #ccc; font-weight: 600 } .number { text-align: right }
.cards { display: flex; flex-wrap: wrap; gap: .8rem }
.card { width: 10rem; font-size: .78rem; line-height: 1.3 }
.card img { width: 4.4rem; image-rendering: pixelated; border: 1px solid #ddd; margin-right: .2rem }
.figures { display: flex; flex-wrap: wrap; gap: .7rem; margin: 1.2rem 0 }
.figure { background: #f6f7f9; border-radius: 8px; padding: .6rem 1rem; color: #555 }
.figure b { display: block; font-size: 1.5rem; line-height: 1.3; color: #111 }
.figure small { display: block; color: #888 }
.legend { display: flex; flex-wrap: wrap; gap: .5rem 1.6rem; font-size: .85rem; color: #444;
          border: 1px solid #e3e5e8; border-radius: 8px; padding: .7rem 1rem }
.swatch { display: inline-block; width: 1.6rem; height: .8rem; border-radius: 2px;
          vertical-align: -.05rem; margin-right: .35rem }
pre { background: #f5f5f5; padding: .8rem; overflow-x: auto } p { max-width: 46rem }
svg { background: #fafafa; border: 1px solid #ddd }
.strip { display: block; width: 100%; border: 0; background: #f1f2f4; shape-rendering: crispEdges }
.muted { color: #666 }
"""
COLOURS = ("#1f5fbf", "#c2410c", "#15803d", "#7e22ce")


def page(title: str, sections: Sequence[str], style: str = "") -> str:
    """The whole document; `style` is CSS that a page has beyond that of all pages."""
    name = html.escape(title)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{name}</title>'
        f"<style>{STYLE}{style}</style></head><body><h1>{name}</h1>"
        f"{''.join(sections)}</body></html>\n"
    )


def section(heading: str, *content: str) -> str:
    return f"<h2>{html.escape(heading)}</h2>{''.join(content)}"


def paragraph(text: str) -> str:
    return f"<p>{html.escape(text)}</p>"


def commands(lines: Sequence[str]) -> str:
    return f"<pre>{html.escape(chr(10).join(lines))}</pre>"


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table; numbers are right-aligned, floats with three decimals."""

    def cell(value: object) -> str:
        text = f"{value:.3f}" if isinstance(value, float) else str(value)
        kind = ' class="number"' if isinstance(value, int | float) else ""
        return f"<td{kind}>{html.escape(text)}</td>"

    titles = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    body = "".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in rows)
    return f"<table><tr>{titles}</tr>{body}</table>"


def figures(items: Sequence[tuple[str, str, str]]) -> str:
    """Large numbers, each above its name and a remark."""
    cells = (tuple(map(html.escape, item)) for item in items)
    boxes = (
        f'<div class="figure"><b>{number}</b>{name}<small>{remark}</small></div>'
        for number, name, remark in cells
    )
    return f'<div class="figures">{"".join(boxes)}</div>'


def picture(pixels: NDArray[np.uint8]) -> str:
    """One picture [Y X 3]."""
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(to_png(pixels)).decode()}">'


def cover(pixels: NDArray[np.uint8], is_shown: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """The square picture [Y Y 3] with hatching over those of its N patches that are not shown."""
    side, size = math.isqrt(len(is_shown)), len(pixels)
    places = np.arange(size)
    stripes = np.add.outer(places, places) // max(1, size // 16) % 2
    hatching = np.where(stripes, 246, 230).astype(np.uint8)
    patch = places * side // size
    shown = is_shown.reshape(side, side)[np.ix_(patch, patch)]
    return np.where(shown[..., None], pixels, hatching[..., None])


def legend(items: Iterable[str]) -> str:
    """What colours and signs mean; items are HTML."""
    return f'<div class="legend">{"".join(f"<span>{item}</span>" for item in items)}</div>'


def swatch(background: str) -> str:
    """A small field of a CSS background."""
    return f'<span class="swatch" style="background:{background}"></span>'


def cards(items: Sequence[tuple[Sequence[NDArray[np.uint8]], str]]) -> str:
    """Pictures side by side above their text."""

    def card(pictures: Sequence[NDArray[np.uint8]], text: str) -> str:
        images = "".join(map(picture, pictures))
        return f'<div class="card">{images}<br>{html.escape(text)}</div>'

    return f'<div class="cards">{"".join(card(*item) for item in items)}</div>'


def strip(length: int, height: int, boxes: Iterable[tuple[int, int, float, float, str]]) -> str:
    """Boxes (start, stop, top, bottom, colour) on places 0 to `length` as wide as the page."""
    drawn = "".join(
        f'<rect x="{start}" y="{top:g}" width="{stop - start}" height="{bottom - top:g}"'
        f' fill="{colour}"/>'
        for start, stop, top, bottom, colour in boxes
    )
    form = f'viewBox="0 0 {length} {height}" preserveAspectRatio="none"'
    return f'<svg class="strip" height="{height}" {form}>{drawn}</svg>'


def curves(title: str, lines: Mapping[str, Sequence[tuple[int, float]]]) -> str:
    """Values over steps as an inline SVG, one colour per line, the range written at the axes."""
    lines = {name: points for name, points in lines.items() if points}
    steps = [step for points in lines.values() for step, _ in points]
    values = [value for points in lines.values() for _, value in points]
    if not steps:
        return ""
    left, top, width, height = 48, 24, 640, 200
    low, high = min(values), max(values)
    first, last = min(steps), max(steps)

    def place(step: int, value: float) -> str:
        x = left + width * (step - first) / max(last - first, 1)
        y = top + height * (high - value) / max(high - low, 1e-9)
        return f"{x:.1f},{y:.1f}"

    drawn, legend = "", ""
    for number, (name, points) in enumerate(lines.items()):
        colour = COLOURS[number % len(COLOURS)]
        path = " ".join(place(*point) for point in points)
        drawn += f'<polyline fill="none" stroke="{colour}" stroke-width="1.5" points="{path}"/>'
        place_x = left + min(150, width // len(lines)) * number
        label = html.escape(f"{name} {points[-1][1]:.3f}")
        legend += f'<text x="{place_x}" y="15" fill="{colour}" font-size="12">{label}</text>'
    bottom = top + height
    axes = "".join(
        f'<text x="{x}" y="{y}" font-size="11" fill="#666" text-anchor="{anchor}">{text}</text>'
        for x, y, anchor, text in (
            (left - 6, top + 8, "end", f"{high:.2f}"),
            (left - 6, bottom, "end", f"{low:.2f}"),
            (left, bottom + 16, "start", f"step {first}"),
            (left + width, bottom + 16, "end", f"{last}"),
        )
    )
    size = f'width="{left + width + 12}" height="{bottom + 24}"'
    return f"<h3>{html.escape(title)}</h3><svg {size}>{legend}{drawn}{axes}</svg>"


def write_text(path: Path, text: str) -> None:
    """Writes a file under a temporary name, then renames it."""
    write_bytes(path, text.encode())
