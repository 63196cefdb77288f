"""A plot of a part: panels, in each the means of some columns with their 95 % intervals."""

import html
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from benchmarks.claims.verdicts import Found
from cm3leon_jax.evaluation.report import COLOURS

WIDTH, HEIGHT = 300, 150  # of the field of one panel
LEFT, TOP, RIGHT = 52, 44, 24  # room for numbers, for title and legend, between panels
NAMES = {False: 26, True: 96}  # room for the names of rows, upright and turned
SHORT = 4  # letters of a name that stands upright
ACROSS = 2  # panels in a row


class Panel(NamedTuple):
    """Columns of one unit and source. is_curve: whether a line joins the values of a column."""

    title: str
    columns: Mapping[str, Mapping[str, Found | None]]
    is_curve: bool


def draw(panels: Sequence[Panel]) -> str:
    """An SVG file, two panels in a row."""
    width = LEFT + WIDTH + RIGHT
    height = TOP + HEIGHT + NAMES[any(len(row) > SHORT for p in panels for row in _rows(p))]
    drawn = ""
    for number, panel in enumerate(panels):
        down, right = divmod(number, ACROSS)
        place = f"translate({right * width},{down * height})"
        drawn += f'<g transform="{place}">{_draw_panel(panel)}</g>'
    full = (min(len(panels), ACROSS) * width, -(-len(panels) // ACROSS) * height)
    size = f'width="{full[0]}" height="{full[1]}"'
    background = '<rect width="100%" height="100%" fill="#fff"/>'
    font = 'font-family="system-ui, sans-serif" font-size="11"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {font}>{background}{drawn}</svg>\n'


def _rows(panel: Panel) -> list[str]:
    return list(next(iter(panel.columns.values())))


def _draw_panel(panel: Panel) -> str:
    known = [found for column in panel.columns.values() for found in column.values() if found]
    low = min(found.mean if found.low is None else found.low for found in known)
    high = max(found.mean if found.high is None else found.high for found in known)
    rows = _rows(panel)
    step = WIDTH / len(rows)

    def y(value: float) -> float:
        return TOP + HEIGHT * (high - value) / max(high - low, 1e-9)

    parts = [_text(LEFT, 14, panel.title, weight="600")]
    parts += [_text(LEFT - 6, y(value) + 4, f"{value:.3g}", "end") for value in (low, high)]
    frame = f'x="{LEFT}" y="{TOP}" width="{WIDTH}" height="{HEIGHT}"'
    parts.append(f'<rect {frame} fill="none" stroke="#ddd"/>')
    for number, row in enumerate(rows):
        at = LEFT + step * (number + 0.5)
        parts.append(_text(at, TOP + HEIGHT + 14, row, "end" if len(row) > SHORT else "middle"))
    for number, (name, column) in enumerate(panel.columns.items()):
        colour = COLOURS[number % len(COLOURS)]
        parts.append(_text(LEFT + WIDTH * number / len(panel.columns), 32, name, fill=colour))
        shift = 6 * (number - (len(panel.columns) - 1) / 2)  # so that intervals stand side by side
        places = [LEFT + step * (i + 0.5) + shift for i in range(len(rows))]
        dots = [(x, found) for x, row in zip(places, rows) if (found := column.get(row))]
        if panel.is_curve:
            line = " ".join(f"{x:.1f},{y(found.mean):.1f}" for x, found in dots)
            parts.append(f'<polyline fill="none" stroke="{colour}" points="{line}"/>')
        for x, found in dots:
            if found.low is not None and found.high is not None:
                path = f"M{x:.1f},{y(found.low):.1f}V{y(found.high):.1f}"
                parts.append(f'<path stroke="{colour}" stroke-width="1.5" d="{path}"/>')
            parts.append(f'<circle cx="{x:.1f}" cy="{y(found.mean):.1f}" r="3" fill="{colour}"/>')
    return "".join(parts)


def _text(
    x: float, y: float, text: str, anchor: str = "start", fill: str = "#444", weight: str = "400"
) -> str:
    turned = f' transform="rotate(-28 {x:.1f} {y:.1f})"' if anchor == "end" and x > LEFT else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{fill}"'
        f' font-weight="{weight}"{turned}>{html.escape(text)}</text>'
    )
