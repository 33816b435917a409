"""Tables as long frames of cells, and what is printed of them: Markdown, CSV, LaTeX.

A table is a DataFrame with one line a cell (`CELL`): raw numbers in base units, and the bounds of their intervals.
A `Layout` says which columns of it are printed and how; every table of the paper is a builder of cells and a layout.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pandas as pd

from repro.stats import Interval

MISSING = "-"
WORDS, NOTE = "words", "note"
"""Columns of cells that are sentences: what a comparison says, and what to know about the numbers."""


@dataclass(frozen=True)
class Cell:
    """One number of a table. `text` stands where no number can: "not reached", a protocol, a sentence."""

    student: str
    row: str
    origin: str  # published v1, published v2, committed, own
    column: str
    value: float | None = None
    unit: str = ""
    low: float | None = None
    high: float | None = None
    over: str = ""  # what the interval is over: questions, seeds
    text: str = ""
    scale: str = ""
    method: str = ""
    seeds: int | None = None

    def __post_init__(self) -> None:
        assert self.value is None or math.isfinite(self.value), self


CELL = tuple(field.name for field in fields(Cell))
Cells = Mapping[str, Cell]
"""The cells of one printed row, by column."""


def bounds(interval: Interval | None) -> dict[str, Any]:
    """`low` and `high` of a cell."""
    return {"low": interval.low, "high": interval.high} if interval else {"low": None, "high": None}


def frame(cells: Sequence[Cell]) -> pd.DataFrame:
    """One line a cell, in the order given."""
    lines = [[getattr(cell, name) for name in CELL] for cell in cells]
    return pd.DataFrame(lines, columns=list(CELL)).astype({"seeds": "Int64"})


def cells_of(table: pd.DataFrame) -> list[Cell]:
    """The cells of a frame, also of one that was filtered."""
    plain = table.astype(object).where(table.notna(), None)
    return [Cell(*line) for line in plain[list(CELL)].itertuples(index=False)]


def rows_of(cells: Sequence[Cell]) -> list[dict[str, Cell]]:
    """Cells that belong to one printed row, in order of appearance."""
    rows: dict[tuple[str, str, str, str], dict[str, Cell]] = {}
    for cell in cells:
        if cell.column not in (WORDS, NOTE):
            rows.setdefault((cell.student, cell.row, cell.origin, cell.scale), {})[cell.column] = cell
    return list(rows.values())


# --- columns ---


@dataclass(frozen=True)
class Column:
    """A printed column: its head and what it shows of a row's cells."""

    head: str
    show: Callable[[Cells], str]


ROW = Column("", lambda cells: next(iter(cells.values())).row)
ORIGIN = Column("origin", lambda cells: next(iter(cells.values())).origin)
"""Whose row it is, and where it comes from: every cell of a row says so."""


@dataclass(frozen=True)
class Part:
    """One printed table of a section; rows for which `only` is false are left out."""

    title: str
    columns: tuple[Column, ...]
    only: Callable[[Cells], bool] = lambda cells: True


@dataclass(frozen=True)
class Layout:
    """What a table looks like: a section a student, the first part of each as the main table, details after it."""

    title: str
    about: str
    parts: tuple[Part, ...]


def shown(key: str, form: Callable[[float], str]) -> Callable[[Cells], str]:
    """A number of the row by its form; its text where it has none; "-" where it was not measured."""

    def show(cells: Cells) -> str:
        cell = cells.get(key)
        if cell is None:
            return MISSING
        return form(cell.value) if cell.value is not None else cell.text or MISSING

    return show


def text(key: str) -> Callable[[Cells], str]:
    """A cell's text."""
    return lambda cells: cells[key].text if key in cells and cells[key].text else MISSING


def si(value: float, digits: int = 3) -> str:
    """Three digits and a prefix: 83.8M, 1.51B. For counts and FLOPs."""
    for size, name in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if abs(value) >= size * (1 - 0.5 * 10**-digits):
            return f"{_digits(value / size, digits)}{name}"
    return f"{value:.0f}" if value == int(value) else _digits(value, digits)


def tokens(value: float) -> str:
    """A count as the paper prints it: 83.82M, 3.93B."""
    amount = si(value, 4)
    name = amount[-1] if amount[-1].isalpha() else ""
    number = amount.removesuffix(name)
    return (number.rstrip("0").rstrip(".") if "." in number else number) + name


def flops(value: float) -> str:
    """FLOPs with an SI prefix: 1.23 PFLOP."""
    amount = si(value)
    return f"{amount[:-1]} {amount[-1].replace('B', 'G')}" if amount[-1].isalpha() else amount


def _digits(value: float, digits: int) -> str:
    whole = len(str(int(abs(value) + 0.5 * 10 ** -(digits - 1))))
    return f"{value:.{max(0, digits - whole)}f}"


def duration(seconds: float) -> str:
    """32.4 h, 4.2 min, 38 s."""
    if seconds >= 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.1f} min" if seconds >= 90 else f"{seconds:.1f} s"


def size(value: float) -> str:
    """Bytes as 69.1 GB or 812 MB (powers of ten)."""
    return f"{value / 1e9:.1f} GB" if value >= 1e9 else f"{value / 1e6:.0f} MB"


def signed_percent(value: float) -> str:
    """A relative change: -41.2 %."""
    return f"{value:+.1f} %".replace("+0.0", "0.0").replace("-0.0", "0.0")


# --- rendering ---


def _grid(part: Part, rows: Sequence[Cells]) -> list[list[str]]:
    chosen = [row for row in rows if part.only(row)]
    return [[column.show(row) for column in part.columns] for row in chosen]


def markdown_table(heads: Sequence[str], grid: Sequence[Sequence[str]]) -> str:
    """A table, its columns aligned: readable in a terminal."""
    escaped = [[value.replace("|", "\\|") for value in line] for line in [list(heads), *grid]]
    widths = [max(map(len, column)) for column in zip(*escaped, strict=True)]
    rule = ["-" * (width - (i > 0)) + (":" if i > 0 else "") for i, width in enumerate(widths)]

    def line(values: Sequence[str]) -> str:
        padded = [v.ljust(w) if i == 0 else v.rjust(w) for i, (v, w) in enumerate(zip(values, widths, strict=True))]
        return "| " + " | ".join(padded) + " |"

    return "\n".join([line(escaped[0]), line(rule), *map(line, escaped[1:])])


def to_markdown(table: pd.DataFrame, layout: Layout) -> str:
    """A section a student: main table, what it says in words, details; notes at the end. Readable in a terminal."""
    cells = cells_of(table)
    blocks = [f"# {layout.title}", layout.about]
    for student in dict.fromkeys(cell.student for cell in cells if cell.student):
        mine = [cell for cell in cells if cell.student == student]
        rows = rows_of(mine)
        for i, part in enumerate(layout.parts):
            grid = _grid(part, rows)
            if grid:
                blocks.append(f"## {student}" if i == 0 else f"**{student}: {part.title}**")
                blocks.append(markdown_table([column.head for column in part.columns], grid))
            if i == 0:
                blocks.append("\n".join(f"- {cell.text}" for cell in mine if cell.column == WORDS))
    notes = dict.fromkeys(cell.text for cell in cells if cell.column == NOTE)
    blocks.append("\n".join(["**Notes**", "", *(f"- {note}" for note in notes)]) if notes else "")
    return "\n\n".join(block for block in blocks if block) + "\n"


def to_csv(table: pd.DataFrame) -> str:
    """The raw numbers, one line a cell, in base units."""
    return table.to_csv(index=False, float_format="%.10g", lineterminator="\n")


_TEX = {"&": r"\&", "%": r"\%", "#": r"\#", "_": r"\_", "±": r"$\pm$", "†": r"$^\dagger$", "$": r"\$", "~": r"\~{}"}


def _tex(value: str) -> str:
    if value == MISSING:
        return "--"
    return "".join(_TEX.get(char, char) for char in value)


def to_latex(table: pd.DataFrame, layout: Layout) -> str:
    """The main table for booktabs, students set off by rules; notes as LaTeX comments."""
    cells, part = cells_of(table), layout.parts[0]
    heads = " & ".join(_tex(column.head) for column in part.columns)
    lines = [r"\begin{tabular}{l" + "r" * (len(part.columns) - 1) + "}", r"\toprule", heads + r" \\"]
    for student in dict.fromkeys(cell.student for cell in cells if cell.student):
        grid = _grid(part, rows_of([cell for cell in cells if cell.student == student]))
        lines += [r"\midrule", rf"\multicolumn{{{len(part.columns)}}}{{l}}{{\textit{{{_tex(student)}}}}} \\"]
        lines += [" & ".join(map(_tex, line)) + r" \\" for line in grid]
    lines += [r"\bottomrule", r"\end{tabular}"]
    notes = dict.fromkeys(cell.text for cell in cells if cell.column == NOTE)
    return "\n".join([f"% {layout.title}. Needs booktabs.", *lines, *(f"% {note}" for note in notes)]) + "\n"


# --- files ---


def stale(out: Path, expected: Mapping[str, str], suffixes: Sequence[str]) -> list[str]:
    """Files below `out` that differ from what the records give: changed, missing, or of no record any more."""
    problems = []
    for name, wanted in expected.items():
        path = out / name
        if not path.is_file():
            problems.append(f"{path}: missing")
        elif path.read_text(encoding="utf-8") != wanted:
            problems.append(f"{path}: differs from what the records give")
    here = sorted(path for path in out.glob("*") if path.suffix in suffixes)
    return problems + [f"{path}: comes from no record" for path in here if path.name not in expected]
