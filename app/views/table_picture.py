"""A table as a picture to export: the printed cells, headings over groups, a bar beside measured rows."""

from __future__ import annotations

import textwrap

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from app.views.tables import Grid
from app.views.theme import Look
from repro.render import MISSING

SIZE = 9.5  # points
LINE, PAD, GAP = 0.19, 0.1, 0.26  # inches: a line of text, above and below it, between columns
WRAP = 56  # characters of a cell in a line
LEFT = 2  # the first columns are words: flush left


def picture(grid: Grid, look: Look, title: str) -> Figure:
    """The table under its title."""
    heads = [_wrapped(head) for head in grid.heads]
    rows = [[_wrapped("–" if cell.text == MISSING else cell.text) for cell in row] for row in grid.rows]
    columns = enumerate(zip(heads, *rows, strict=True))
    widths = [max(_width(text, bold=not i) for text in column) for i, column in columns]
    starts = [sum(widths[:i]) + GAP * (i + 0.5) for i in range(len(widths))]
    wide = max(sum(widths) + GAP * len(widths), _width(title, bold=True) + GAP)
    high = 0.45 + _height(heads) + sum(_height(row) for row in rows) + _groups(grid) * (LINE + 2 * PAD)
    figure = Figure(figsize=(wide, high), facecolor=look.paper)
    y = 0.0

    def write(x: float, text: str, **how: object) -> None:
        figure.text(x / wide, 1 - (y + PAD) / high, text, fontsize=SIZE, va="top", linespacing=1.25, **how)  # type: ignore[arg-type]

    def line() -> None:
        at = 1 - y / high
        figure.add_artist(_segment([0, 1], [at, at], look.line, 0.8))

    def cells(texts: list[str], colours: list[str], bold: bool) -> None:
        for i, (text, colour) in enumerate(zip(texts, colours, strict=True)):
            left = i < LEFT
            place = starts[i] if left else starts[i] + widths[i]
            weight = "bold" if bold and not i else "normal"
            write(place, text, color=colour, ha="left" if left else "right", weight=weight, multialignment="left")

    write(GAP / 2, title, color=look.ink, weight="bold")
    y += 0.45
    cells(heads, [look.muted] * len(heads), bold=False)
    y += _height(heads)
    group = None
    for row, measured, name in zip(rows, grid.measured, grid.groups, strict=True):
        line()
        if name != group:
            group = name
            write(GAP / 2, name, color=look.ink, weight="bold")
            y += LINE + 2 * PAD
            line()
        if measured:
            ends = [1 - y / high, 1 - (y + _height(row)) / high]
            figure.add_artist(_segment([0.02 / wide] * 2, ends, look.kept, 3))
        cells(row, [look.ink, look.muted, *[look.ink] * (len(row) - 2)], bold=measured)
        y += _height(row)
    return figure


def _wrapped(text: str) -> str:
    return "\n".join(textwrap.wrap(text, WRAP)) or text


def _height(texts: list[str]) -> float:
    """Inches of a row."""
    return LINE * (1 + max(text.count("\n") for text in texts)) + 2 * PAD


def _groups(grid: Grid) -> int:
    """How many headings stand between rows."""
    return sum(a != b for a, b in zip((None, *grid.groups), grid.groups, strict=False))


def _width(text: str, bold: bool) -> float:
    """Inches of a text."""
    figure = Figure(dpi=72)
    found = figure.text(0, 0, text, fontsize=SIZE, weight="bold" if bold else "normal")
    return found.get_window_extent(FigureCanvasAgg(figure).get_renderer()).width / 72


def _segment(x: list[float], y: list[float], colour: str, wide: float) -> Line2D:
    return Line2D(x, y, color=colour, linewidth=wide)
