"""One HTML file with everything inside: numbers, pictures, curves, commands."""

import base64
import html
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cm3leon_jax.data.pictures import to_png

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem;
       color: #1a1a1a; background: #fff }
h1 { font-size: 1.6rem } h2 { font-size: 1.15rem; margin-top: 2.2rem }
table { border-collapse: collapse } td, th { padding: .2rem .9rem .2rem 0; text-align: left }
th { border-bottom: 1px solid #ccc; font-weight: 600 } .number { text-align: right }
.cards { display: flex; flex-wrap: wrap; gap: .8rem }
.card { width: 10rem; font-size: .78rem; line-height: 1.3 }
.card img { width: 4.4rem; image-rendering: pixelated; border: 1px solid #ddd; margin-right: .2rem }
pre { background: #f5f5f5; padding: .8rem; overflow-x: auto } p { max-width: 46rem }
svg { background: #fafafa; border: 1px solid #ddd } .muted { color: #666 }
"""
COLOURS = ("#1f5fbf", "#c2410c", "#15803d", "#7e22ce")


def page(title: str, sections: Sequence[str]) -> str:
    """The whole document."""
    name = html.escape(title)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{name}</title>'
        f"<style>{STYLE}</style></head><body><h1>{name}</h1>{''.join(sections)}</body></html>\n"
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


def cards(items: Sequence[tuple[Sequence[NDArray[np.uint8]], str]]) -> str:
    """Pictures side by side above their text."""

    def card(pictures: Sequence[NDArray[np.uint8]], text: str) -> str:
        images = "".join(
            f'<img alt="" src="data:image/png;base64,{base64.b64encode(to_png(p)).decode()}">'
            for p in pictures
        )
        return f'<div class="card">{images}<br>{html.escape(text)}</div>'

    return f'<div class="cards">{"".join(card(*item) for item in items)}</div>'


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
        place_x = left + 150 * number
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
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
