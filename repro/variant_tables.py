"""Tables of variants: Table 5, rivals, ablations, push. Each row beside the baseline, dense and ReGATE of Table 4.

Two accuracies: on validation (`content_accuracy` at the run's end, fine-grained) and on the twin of MVBench.
Differences are in pairs by seed, against the baseline and against ReGATE. Free of torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pandas as pd

from repro import compare, render
from repro.compare import BASELINE, Group, Readings
from repro.record import Record
from repro.render import NOTE, WORDS, Cell, Cells, Column, Layout, Part, bounds, shown, signed_percent
from repro.rows import Place, Published, measured_row, provenance
from repro.stats import seed_interval, with_half_width
from repro.variants import VARIANTS

SHARED = (BASELINE, "dense", "regate")
"""Runs of Table 4 that every table shows."""
BENCHMARK = "mvbench"
PUBLISHED = {"5": ("5", "teacher")}
"""Table -> the paper's tables that it stands beside."""
_ALIKE = {"5": {"regate": "ReGATE (λ = 0.5, aligned teacher)"}}
"""Table -> rows of Table 4's runs that have another name there."""

NOTES = (
    "tokens: supervised targets, those of dense steps included; (change against the baseline)",
    "validation: accuracy on visual tokens of held-out answers at the end of the run; MVBench: its twin, options "
    "ranked by likelihood, macro average over subtasks. ± is half of the 95 % interval over seeds (Student's t)",
    "differences are in points, paired by seed, with the bounds of their 95 % interval over seeds; where it holds "
    "zero, no difference is seen",
    "train time: ‡ steps by kind times their cost, calibrated interleaved on a quiet machine; † timed beside other "
    "work, not comparable",
)


def variant_table(number: str, records: Sequence[Record], published: Published) -> pd.DataFrame:
    """One line a cell: what the paper printed, then a group of rows for each student, scale and origin."""
    mine = [r for r in records if compare.in_table(r, number)]
    shared = [r for r in records if compare.in_table(r, "4") and r.method in SHARED]
    cells = [cell for printed in PUBLISHED.get(number, ()) for cell in _published(published, printed)]
    for group in compare.groups([*shared, *mine]):
        methods = [m for m in (*SHARED, *VARIANTS) if m in group.methods]
        if not set(methods) <= set(SHARED):
            cells += measured_rows(group, methods, _ALIKE.get(number, {}))
    return render.frame([*cells, *(Cell("", "", "", NOTE, text=note) for note in NOTES)])


def _published(published: Published, number: str) -> list[Cell]:
    columns = {"MVBench": "accuracy", "accuracy_average": "accuracy_average"}
    return [
        Cell(c["student"], c["row"], f"published {c['version']}", columns[c["column"]], c["value"], "%", scale="paper")
        for c in published["cells"]
        if c["table"] == number and c["column"] in columns and c["value"] is not None
    ]


def measured_rows(group: Group, methods: Sequence[str], renamed: dict[str, str]) -> list[Cell]:
    """Rows of some methods of a group: costs, accuracies and differences; `renamed`: method -> its name here."""
    readings = {method: compare.at_end(group.methods[method]) for method in methods}
    base = group.baseline_method
    baseline = readings.get(base, {})
    cells: list[Cell] = []
    for method in methods:
        place = Place(group, method, BENCHMARK, renamed.get(method, ""))
        cells += measured_row(place, readings[method], baseline)
        values = list(compare.validated(readings[method]).values())
        if values:
            over = seed_interval(values)
            rest = bounds(over.scaled(100) if over else None) | {"over": "seeds" if over else ""}
            cells.append(place.cell("validation", 100 * sum(values) / len(values), unit="%", seeds=len(values), **rest))
        for name, other in (("baseline", base), ("regate", "regate")):
            if other in readings and method != other:
                cells += _gaps(place, readings[method], readings[other], name)
        if method != base and baseline:
            pairs = compare.reached(group.baseline, group.methods[method])
            there = sum(pair.at is not None for pair in pairs)
            if pairs:
                share = compare.mean_share(pairs, "tokens")
                at = f", {share:.0f} % of its tokens" if share is not None else ""
                cells.append(place.cell("peak.reached", there, unit="seeds", text=f"{there} of {len(pairs)}{at}"))
        cells += _words(place, cells)
    return [*cells, Place(group, "", BENCHMARK).cell(NOTE, text=provenance(group))]


def _gaps(place: Place, ours: Readings, theirs: Readings, name: str) -> list[Cell]:
    key = (place.group.student, place.group.scale, place.group.origin, place.method, name)
    pairs = {"validation": compare.paired(compare.validated(ours), compare.validated(theirs), "validation", *key)}
    scores = [compare.accuracy(readings, place.benchmark, *key) for readings in (ours, theirs)]
    pairs["accuracy"] = compare.difference(scores[0], scores[1], *key)
    return [
        place.cell(f"{what}.against.{name}", gap.points, unit="points", seeds=gap.seeds, over=gap.over, text=gap.words,
                   **bounds(gap.interval))
        for what, gap in pairs.items() if gap
    ]  # fmt: skip


def _words(place: Place, cells: Sequence[Cell]) -> list[Cell]:
    mine = {cell.column: cell for cell in cells if cell.row == place.row}
    against = [("baseline", "the baseline"), ("regate", "ReGATE")]
    says = [
        f"against {whom}: validation {mine[f'validation.against.{name}'].text}"
        + (f", MVBench {mine[f'accuracy.against.{name}'].text}" if f"accuracy.against.{name}" in mine else "")
        for name, whom in against
        if f"validation.against.{name}" in mine and not (place.method in SHARED and name == "regate")
    ]
    return [place.cell(WORDS, text=f"{place.row}, {'; '.join(says)}.")] if says else []


# --- layout ---


def gap(key: str) -> Callable[[Cells], str]:
    """A difference in points with the bounds of its interval."""

    def show(cells: Cells) -> str:
        cell = cells.get(key)
        if cell is None or cell.value is None:
            return render.MISSING
        inside = f" [{cell.low:+.1f}, {cell.high:+.1f}]" if cell.low is not None and cell.high is not None else ""
        return f"{cell.value:+.1f}{inside}"

    return show


def with_change(key: str, form: Callable[[float], str]) -> Callable[[Cells], str]:
    """A number, its mark, and its change against the baseline."""

    def show(cells: Cells) -> str:
        mark = cells[key].text if key in cells and cells[key].value is not None else ""
        moved = cells.get(f"{key}.change")
        tail = f" ({signed_percent(moved.value)})" if moved and moved.value is not None else ""
        return shown(key, form)(cells) + mark + tail

    return show


def percent(key: str, over: str) -> Callable[[Cells], str]:
    """An accuracy with half of the interval of cell ``over``."""

    def show(cells: Cells) -> str:
        cell, wide = cells.get(key), cells.get(over)
        if cell is None or cell.value is None:
            return render.MISSING
        known = wide is not None and wide.low is not None and wide.high is not None
        return with_half_width(cell.value, (wide.high - wide.low) / 2 if known else None)  # type: ignore[union-attr,operator]

    return show


def _text(key: str) -> Callable[[Cells], str]:
    return lambda cells: cells[key].text if key in cells else render.MISSING


def _mvbench(cells: Cells) -> str:
    average = cells.get("accuracy_average")
    found = percent("accuracy", "accuracy.seeds")(cells)
    return f"avg {average.value:.1f}" if average and average.value is not None else found


def _seeds(cells: Cells) -> str:
    known = cells.get("steps")
    return str(known.seeds) if known and known.seeds else render.MISSING


OPENING = (
    render.ROW,
    render.ORIGIN,
    Column("seeds", _seeds),
    Column("tokens", with_change("tokens.paper", render.tokens)),
    Column("FLOPs", with_change("flops", render.flops)),
    Column("train time", with_change("train_seconds", render.duration)),
    Column("validation %", percent("validation", "validation")),
    Column("against baseline", gap("validation.against.baseline")),
)
"""What every table of variants opens with: the run, what it cost, and what it reached on validation."""


def layout(number: str, title: str) -> Layout:
    """How a table of variants is printed."""
    about = "Generated by `python -m repro.tables` from results/published.json and records: edit those, not this file."
    return Layout(
        f"{compare.table_name(number, 'Table ').capitalize()}: {title}",
        about,
        (
            Part("", (
                *OPENING,
                Column("against ReGATE", gap("validation.against.regate")),
                Column("MVBench %", _mvbench),
                Column("against baseline", gap("accuracy.against.baseline")),
                Column("against ReGATE", gap("accuracy.against.regate")),
                Column("reaches the baseline's peak", _text("peak.reached")),
            )),
        ),
    )  # fmt: skip


TITLES = {
    "5": "the teacher's weight, and the teacher",
    "rivals": "other ways to train on less",
    "ablations": "active sets, ratio, schedule, EMA, data",
    "push": "attempts to do better",
}
"""Table -> what it is about."""
