"""Tables 1-6 as HTML: published rows beside measured ones, each measured number a link to the runs behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any
from urllib.parse import urlencode

import pandas as pd

from repro import compare, render
from repro.compare import Group
from repro.record import Record
from repro.render import MISSING, Cells, Layout
from repro.rows import LABELS

TITLES = {
    "1": "Image understanding",
    "2": "Long video",
    "3": "Short video",
    "4": "Efficiency",
    "5": "λ",
    "6": "Prompts",
    "teacher": "Teacher capacity",
}
SKIPPED = ("description", "llm")  # columns of text that the restored tables carry; not results
COLUMN_NAMES = {
    "tokens_saved": "tokens saved", "train_hours": "train time (h)", "train_gpu_hours": "train (GPU-h)",
    "teacher_gpu_hours": "teacher (GPU-h)", "gpu_memory_gb": "GB per GPU", "accuracy_average": "average accuracy",
    "lambda": "λ",
}  # fmt: skip


@dataclass(frozen=True)
class Shown:
    """A printed cell: its text, what a hover adds, and the runs behind it (student/scale/origin/method)."""

    text: str
    tip: str = ""
    runs: str = ""


@dataclass(frozen=True)
class Grid:
    """A printed table. `measured` says which rows come from runs; `group` are headings over rows."""

    heads: tuple[str, ...]
    rows: tuple[tuple[Shown, ...], ...]
    measured: tuple[bool, ...]
    groups: tuple[str, ...]

    def frame(self) -> pd.DataFrame:
        """As data: what is printed, and the runs behind each row."""
        data = pd.DataFrame([[cell.text for cell in row] for row in self.rows], columns=list(self.heads))
        data.insert(0, "group", list(self.groups))
        data["runs"] = [next((cell.runs for cell in row if cell.runs), "") for row in self.rows]
        return data


def titles(published: Mapping[str, Any]) -> dict[str, str]:
    """Numbers of the tables that the paper has -> what a menu shows."""
    numbers = list(dict.fromkeys(str(cell["table"]) for cell in published["cells"]))
    order = [number for number in TITLES if number in numbers] + [n for n in numbers if n not in TITLES]
    return {n: f"{n} · {TITLES.get(n, n)}" if n.isdigit() else TITLES.get(n, n) for n in order}


# --- runs behind a number ---


def key_of(group: Group, method: str) -> str:
    """What a link carries: student, scale, origin and method."""
    return "/".join((group.student, group.scale, group.origin, method.removesuffix("_at_peak")))


def link(number: str, key: str) -> str:
    """Where the runs of a key are shown."""
    return "tables?" + urlencode({"table": number, "behind": key})


def runs_behind(records: Sequence[Record], key: str, number: str | None = None) -> list[Record]:
    """The records that a link names, by seed; empty for a link that fits none."""
    wanted = [record for record in records if number is None or compare.in_table(record, number)] or list(records)
    for group in compare.groups(wanted):
        for method, runs in group.methods.items():
            if key_of(group, method) == key:
                return [runs[seed] for seed in sorted(runs)]
    return []


# --- building ---


def layout_grid(table: pd.DataFrame, layout: Layout, part: int) -> Grid:
    """A part of a table that has a builder in `repro.tables` (Table 4), cells linked to runs."""
    rows, measured, groups = [], [], []
    for cells in render.rows_of(render.cells_of(table)):
        if not layout.parts[part].only(cells):
            continue
        first = next(iter(cells.values()))
        own = not first.origin.startswith("published")
        key = "/".join((first.student, first.scale, first.origin, first.method.removesuffix("_at_peak"))) if own else ""
        columns = layout.parts[part].columns
        rows.append(tuple(_cell(column.show(cells), cells, i, key) for i, column in enumerate(columns)))
        measured.append(own)
        groups.append(first.student)
    return Grid(tuple(c.head for c in layout.parts[part].columns), tuple(rows), tuple(measured), tuple(groups))


def _cell(text: str, cells: Cells, column: int, key: str) -> Shown:
    tip = ""
    score = cells.get("accuracy")
    if column and score and score.low is not None and score.high is not None and text.startswith(f"{score.value:.1f}"):
        tip = f"95 % interval over {score.over}: {score.low:.1f} to {score.high:.1f}"
    return Shown(text, tip, key if column > 1 and text != MISSING else "")


def notes(table: pd.DataFrame, kind: str) -> list[str]:
    """Sentences of a built table: what it says in words, or its notes."""
    return list(dict.fromkeys(cell.text for cell in render.cells_of(table) if cell.column == kind))


def paper_grid(published: Mapping[str, Any], number: str, records: Sequence[Record], ours_only: bool = False) -> Grid:
    """A table of benchmarks: the paper's rows, then a row a method of every group of runs scored on one of its columns.

    `ours_only` leaves out the models that the paper compares with.
    """
    cells = [c for c in published["cells"] if c["table"] == number and c["column"] not in SKIPPED]
    if ours_only:
        cells = [c for c in cells if c["student"] or number == "6"]
    columns = list(dict.fromkeys(c["column"] for c in cells))
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for cell in cells:
        rows.setdefault((cell["version"], cell["row"]), {})[cell["column"]] = cell
    lines = []
    for (version, name), row in rows.items():
        first = next(iter(row.values()))
        values = [Shown(_printed(row.get(column)), "as printed" if column in row else "") for column in columns]
        lines.append((first["group"], False, (Shown(name), Shown(f"published {version}"), *values)))
    lines += [(group, True, row) for group, row in measured_rows(records, columns)]
    order = {group: i for i, group in enumerate(dict.fromkeys(line[0] for line in lines))}
    lines.sort(key=lambda line: order[line[0]])
    heads = ("", "origin", *(COLUMN_NAMES.get(column, column) for column in columns))
    return Grid(heads, tuple(x[2] for x in lines), tuple(x[1] for x in lines), tuple(x[0] for x in lines))


def _printed(cell: Mapping[str, Any] | None) -> str:
    """A published number as printed; of a pair in one raw text, its own part."""
    if cell is None or (cell["value"] is None and cell["unit"] != "text"):
        return MISSING
    if "/" in cell["raw"]:
        return f"{cell['value']:.1f}"
    return str(cell["raw"]).removesuffix("%").replace("↓ ", "−")


def measured_rows(records: Sequence[Record], columns: Sequence[str]) -> list[tuple[str, tuple[Shown, ...]]]:
    """(heading, row) of every method of every group of runs that was scored on a benchmark among the columns."""
    names = {column: "".join(char for char in column.lower() if char.isalnum()) for column in columns}
    found = []
    for group in compare.groups(records):
        for method in [m for m in LABELS if m in group.methods] + sorted(set(group.methods) - set(LABELS)):
            readings = compare.at_end(group.methods[method])
            key, cells = key_of(group, method), []
            for column in columns:
                score = compare.accuracy(readings, names[column], group.student, group.scale, group.origin, method)
                if score is not None:
                    half = (score.questions.high - score.questions.low) / 2 if score.questions else None
                    text = f"{score.percent:.1f}" + (f" ±{half:.1f}" if half is not None else "")
                    cells.append(Shown(text, f"{score.n} questions, {len(readings)} seeds, {score.protocol}", key))
                elif column == "tokens" and (count := compare.mean(readings, "tokens.paper")) is not None:
                    cells.append(Shown(render.tokens(count), f"mean over {len(readings)} seeds", key))
                else:
                    cells.append(Shown(MISSING))
            if any(cell.text != MISSING and column != "tokens" for cell, column in zip(cells, columns, strict=True)):
                row = (Shown(LABELS.get(method, method)), Shown(f"{group.origin} {group.scale}"), *cells)
                found.append((f"Measured here: {group.student} ({group.scale})", row))
    return found


# --- printing ---


def to_html(grid: Grid, number: str) -> str:
    """The table; measured numbers are links that carry `table` and `behind`, which the page opens."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in grid.heads)
    lines, last = [], None
    for row, measured, group in zip(grid.rows, grid.measured, grid.groups, strict=True):
        if group != last:
            lines.append(
                f'<tr class="group"><th colspan="{len(grid.heads)}" scope="rowgroup">{escape(group)}</th></tr>'
            )
            last = group
        cells = "".join(_td(cell, number, first=not i) for i, cell in enumerate(row))
        lines.append(f'<tr class="{"measured" if measured else "published"}">{cells}</tr>')
    return f'<div class="rg-scroll" tabindex="0"><table class="rg-table"><thead><tr>{head}</tr></thead>' \
           f'<tbody>{"".join(lines)}</tbody></table></div>'  # fmt: skip


def _td(cell: Shown, number: str, first: bool) -> str:
    text = escape("–" if cell.text == MISSING else cell.text)
    title = f' title="{escape(cell.tip, quote=True)}"' if cell.tip else ""
    if cell.runs:
        text = f'<a href="{escape(link(number, cell.runs), quote=True)}">{text}</a>'
    return f'<th scope="row"{title}>{text}</th>' if first else f"<td{title}>{text}</td>"


def details(record: Record) -> list[tuple[str, str]]:
    """What to know of a run at a glance."""
    commit = (record.commit or "no commit")[:12] + (" (dirty)" if record.dirty else "")
    scores = [b for b in record.benchmarks if b.step == record.steps]
    accuracy = "; ".join(
        f"{b.name} {100 * sum(s['correct'] / s['n'] for s in b.tasks.values()) / len(b.tasks):.1f} %" for b in scores
    )
    tokens = record.tokens.get("paper")
    seconds = record.train_seconds
    return [
        ("Accuracy at the end", accuracy or MISSING),
        ("Supervised tokens", f"{tokens:,}" if tokens is not None else MISSING),
        ("Train time", render.duration(seconds) + ("" if record.alone else " †") if seconds is not None else MISSING),
        ("Steps", str(record.steps)),
        ("Commit", commit),
        ("Finished", record.finished),
        ("Machine", f"{record.hardware.get('gpu') or record.hardware.get('cpu')}, "
                    f"{record.hardware.get('threads')} threads"),
    ]  # fmt: skip
