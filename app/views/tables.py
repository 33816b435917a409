"""Tables 1-6 as HTML: published rows beside measured ones, each measured number a link to the runs behind it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any
from urllib.parse import urlencode

import pandas as pd

from repro import benchmark_tables, compare, render
from repro.benchmark_tables import Evaluated, Result
from repro.record import Record
from repro.render import MISSING, Cells, Layout

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


def titles(published: Mapping[str, Any], records: Sequence[Record], ours: Iterable[str] = ()) -> dict[str, str]:
    """Names of the tables that the paper has, and of `ours` that a record belongs to -> what a menu shows."""
    names = [str(cell["table"]) for cell in published["cells"]]
    names += [name for name in ours if any(compare.in_table(record, name) for record in records)]
    order = [name for name in TITLES if name in names] + [name for name in dict.fromkeys(names) if name not in TITLES]
    return {n: f"{n} · {TITLES.get(n, n)}" if n.isdigit() else TITLES.get(n, n.capitalize()) for n in order}


# --- runs behind a number ---


def key_of(student: str, scale: str, origin: str, method: str) -> str:
    """What a link carries; rows "at the baseline's peak" are of the same runs."""
    return "/".join((student, scale, origin, method.removesuffix("_at_peak")))


def link(number: str, key: str) -> str:
    """Where the runs of a key are shown."""
    return "tables?" + urlencode({"table": number, "behind": key})


def runs_behind(records: Sequence[Record], key: str, number: str) -> list[Record]:
    """The records that a link names, by seed, the table's own before others (Table 4's runs stand in other tables,
    too); empty for a link that fits none."""
    for some in ([record for record in records if compare.in_table(record, number)], records):
        for group in compare.groups(some):
            for method, runs in group.methods.items():
                if key_of(group.student, group.scale, group.origin, method) == key:
                    return [runs[seed] for seed in sorted(runs)]
    return []


def evaluations_behind(runs: Sequence[Evaluated], key: str, number: str) -> list[Evaluated]:
    """The scored checkpoints that a link of Tables 1-3 names, by seed, with the results that the table shows."""
    student, _, origin, method = key.split("/") if key.count("/") == 3 else ("",) * 4
    asked = benchmark_tables.benchmarks_of(number) if number in benchmark_tables.COLUMNS else ()
    found = []
    for run in sorted(runs, key=lambda run: run.seed):
        results = {name: run.results[name] for name in asked if name in run.results}
        if results and (run.student, run.origin, run.method) == (student, origin, method):
            found.append(dataclasses.replace(run, results=results))
    return found


# --- building ---


def layout_grid(table: pd.DataFrame, layout: Layout, part: int) -> Grid:
    """A part of a table that has a builder in `repro`, cells linked to runs."""
    rows, measured, groups = [], [], []
    for cells in render.rows_of(render.cells_of(table)):
        if not layout.parts[part].only(cells):
            continue
        first = next(iter(cells.values()))
        own = not first.origin.startswith("published") and first.row != benchmark_tables.GUESS
        key = key_of(first.student, first.scale, first.origin, first.method) if own else ""
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


def sentences(table: pd.DataFrame, kind: str) -> dict[str, list[str]]:
    """Sentences of a built table by student: what it says in words, or its notes (of no student)."""
    found: dict[str, list[str]] = {}
    for cell in render.cells_of(table):
        if cell.column == kind and cell.text not in found.setdefault(cell.student, []):
            found[cell.student].append(cell.text)
    return found


def paper_grid(published: Mapping[str, Any], number: str) -> Grid:
    """A table as the paper prints it."""
    cells = [c for c in published["cells"] if c["table"] == number and c["column"] not in SKIPPED]
    columns = list(dict.fromkeys(c["column"] for c in cells))
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for cell in cells:
        rows.setdefault((cell["version"], cell["row"]), {})[cell["column"]] = cell
    lines = []
    for (version, name), row in rows.items():
        values = [Shown(_printed(row.get(column)), "as printed" if column in row else "") for column in columns]
        lines.append((next(iter(row.values()))["group"], (Shown(name), Shown(f"published {version}"), *values)))
    order = {group: i for i, group in enumerate(dict.fromkeys(group for group, _ in lines))}
    lines.sort(key=lambda line: order[line[0]])
    heads = ("", "origin", *(COLUMN_NAMES.get(column, column) for column in columns))
    return Grid(heads, tuple(row for _, row in lines), (False,) * len(lines), tuple(group for group, _ in lines))


def _printed(cell: Mapping[str, Any] | None) -> str:
    """A published number as printed; of a pair in one raw text, its own part."""
    if cell is None or (cell["value"] is None and cell["unit"] != "text"):
        return MISSING
    if "/" in cell["raw"]:
        return f"{cell['value']:.1f}"
    return str(cell["raw"]).removesuffix("%").replace("↓ ", "−")


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
        ("Commit", _commit(record.commit, record.dirty)),
        ("Finished", record.finished),
        ("Machine", f"{record.hardware.get('gpu') or record.hardware.get('cpu')}, "
                    f"{record.hardware.get('threads')} threads"),
    ]  # fmt: skip


def result_details(result: Result) -> list[tuple[str, str]]:
    """What to know of a benchmark's result at a glance."""
    made, checkpoint, data = result.made, result.checkpoint, result.data
    scores = [f"{name} {score.value:.1f} [{score.low:.1f}, {score.high:.1f}]" for name, score in result.scores.items()]
    protocol = ", ".join(f"{name} {value}" for name, value in result.protocol.items())
    return [
        ("Scores", "; ".join(scores)),
        ("Questions", f"{sum(map(len, result.outcomes.values()))} ({data.get('source', MISSING)})"),
        ("Checkpoint", f"{checkpoint['path']} ({checkpoint['fingerprint']})"),
        ("Asked with", f"prompts {result.prompts['profile']}, {protocol}"),
        ("Commit", _commit(made.get("commit"), made.get("dirty"))),
        ("Finished", str(made.get("finished") or MISSING)),
    ]


def _commit(commit: str | None, dirty: bool | None) -> str:
    return (commit or "no commit")[:12] + (" (dirty)" if dirty else "")
