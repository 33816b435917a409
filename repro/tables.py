"""The paper's tables from records: published numbers beside measured ones. Free of torch; no number is typed here.

    python -m repro.tables            # results/tables from committed records; runs/tables from those and your own
    python -m repro.tables --check    # exit 1 and name the files where committed tables are not what the records give

Units of cells: tokens, seconds, FLOPs, bytes; accuracies and changes in percent; differences of accuracies in points.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType

import pandas as pd

from eval import results as evaluations
from eval.results import Result
from repro import benchmark_tables, budgets, by_tag, compare, readme, render, small_tables, timing, variant_tables
from repro.bench import record as bench_record
from repro.bench import table as bench_table
from repro.faults import record as fault_record
from repro.faults import table as fault_table
from repro.record import TOKEN_KINDS, Record, load
from repro.render import NOTE, Cell, Cells, Column, Layout, Part, shown, text
from repro.rows import Published, measured_group, published_rows
from repro.stats import with_half_width
from repro.variant_tables import variant_table
from repro.variants import VARIANTS


def read_published(path: str | Path = "results/published.json") -> Published:
    """What the paper prints: `cells`, `claims`, and `notes` on where it disagrees with itself."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


# --- Table 4 ---


def table4(records: Sequence[Record], published: Published, benchmark: str = "mvbench") -> pd.DataFrame:
    """Efficiency: published rows, then each group of runs. One line a cell, raw numbers (`render.CELL`)."""
    runs = compare.groups(record for record in records if compare.in_table(record, "4"))
    papers = list(dict.fromkeys(c["student"] for c in published["cells"] if c["table"] == "4"))
    cells: list[Cell] = []
    for student in dict.fromkeys([*(group.student for group in runs), *papers]):
        cells += published_rows(published, "4", student)
        for group in runs:
            cells += measured_group(group, benchmark) if group.student == student else []
    return render.frame([*cells, *(Cell("", "", "", NOTE, text=note) for note in _NOTES)])


_NOTES = (
    "tokens: the paper's count, supervised targets, those of dense steps included; (change against the baseline)",
    "train time: training alone, without evaluation and checkpointing; † timed beside other work, not comparable; "
    "‡ steps by kind times their cost, calibrated interleaved on a quiet machine",
    "FLOPs: decoder and head, forward and backward; teacher: scoring the training set once, before training",
    "accuracy: MVBench where published, its twin where measured; macro average over subtasks; ± is half of the 95 % "
    "interval, over questions (bootstrap, stratified by subtask) and over seeds (Student's t)",
    "published v2 gives GPU-hours, and an average (avg) over benchmarks that it does not name; published rows at "
    "the baseline's peak lie just below it, measured ones at or above it",
)


def _with_change(key: str, form: Callable[[float], str]) -> Callable[[Cells], str]:
    plain = shown(key, form)

    def show(cells: Cells) -> str:
        moved = cells.get(f"{key}.change")
        tail = f" ({render.signed_percent(moved.value)})" if moved and moved.value is not None else ""
        return plain(cells) + (cells[key].text if key in cells and cells[key].value is not None else "") + tail

    return show


def _origin(cells: Cells) -> str:
    first = next(iter(cells.values()))
    return first.origin if first.origin.startswith("published") else f"{first.origin} {first.scale}"


def _time(cells: Cells) -> str:
    if "train_gpu_hours" not in cells:
        return _with_change("train_seconds", render.duration)(cells)
    moved = cells.get("train_seconds.change")
    tail = f" ({render.signed_percent(moved.value)})" if moved and moved.value is not None else ""
    return shown("train_gpu_hours", _gpu_hours)(cells) + tail


def _gpu_hours(value: float) -> str:
    return f"{value:.1f} GPU-h"


def _whole(value: float) -> str:
    return f"{value:.0f}"


def _accuracy(cells: Cells) -> str:
    cell = cells.get("accuracy")
    average = shown("accuracy_average", lambda value: f"avg {value:.1f}")(cells)
    if cell is None or cell.value is None:
        return cell.text if cell and cell.text else average
    half = (cell.high - cell.low) / 2 if cell.low is not None and cell.high is not None else None
    return with_half_width(cell.value, half) + (f" ({average})" if average != render.MISSING else "")


def _seeds_shown(cells: Cells) -> str:
    over = cells.get("accuracy.seeds")
    if over and over.low is not None and over.high is not None:
        return f"±{(over.high - over.low) / 2:.1f}"
    return "one seed" if "accuracy" in cells and cells["accuracy"].seeds == 1 else render.MISSING


def _seeds_count(cells: Cells) -> str:
    reached = cells.get("peak.reached")
    if reached and reached.value is not None:
        return f"{reached.value:.0f} of {reached.seeds}"
    known = [cell.seeds for cell in cells.values() if cell.seeds]
    return str(known[0]) if known else render.MISSING


def _first(*options: Callable[[Cells], str]) -> Callable[[Cells], str]:
    def show(cells: Cells) -> str:
        return next((found for option in options if (found := option(cells)) != render.MISSING), render.MISSING)

    return show


def _measured(cells: Cells) -> bool:
    return not next(iter(cells.values())).origin.startswith("published") and "steps" in cells


_ROW = (render.ROW, Column("origin", _origin))
EFFICIENCY = Layout(
    "Table 4: efficiency",
    "Generated by `python -m repro.tables` from results/published.json and records: edit those, not this file.",
    (
        Part("", (
            *_ROW,
            Column("seeds", _seeds_count),
            Column("tokens", _with_change("tokens.paper", render.tokens)),
            Column("train time", _time),
            Column("FLOPs", _with_change("flops", render.flops)),
            Column("teacher", _first(shown("teacher.seconds", render.duration),
                                     shown("teacher_gpu_hours", _gpu_hours))),
            Column("memory", _first(shown("peak_memory_bytes", render.size),
                                    shown("memory_gb_per_gpu", lambda value: f"{value:.1f} GB"))),
            Column("accuracy %", _accuracy),
            Column("over seeds", _seeds_shown),
        )),
        Part("positions and tokens by kind", (
            *_ROW, *(Column(kind, shown(f"tokens.{kind}", render.tokens)) for kind in TOKEN_KINDS),
        ), _measured),
        Part("cost and protocol", (
            *_ROW,
            Column("steps", shown("steps", _whole)),
            Column("decoder", shown("flops.decoder", render.flops)),
            Column("head", shown("flops.head", render.flops)),
            Column("teacher", shown("teacher.flops", render.flops)),
            Column("teacher tokens", shown("teacher.tokens", render.si)),
            Column("skipped", shown("skipped_samples", _whole)),
            Column("questions", shown("questions", _whole)),
            Column("chance %", shown("chance", lambda value: f"{value:.1f}")),
            Column("answered by", text("protocol")),
        ), _measured),
    ),
)  # fmt: skip


# --- the command ---

Builder = Callable[[Sequence[Record], Published], pd.DataFrame]
TABLES: dict[str, tuple[Builder, Layout]] = {
    "4": (table4, EFFICIENCY),
    **{
        name: (partial(variant_table, name), variant_tables.layout(name, title))
        for name, title in variant_tables.TITLES.items()
    },
    "budgets": (budgets.budget_table, budgets.LAYOUT),
}
"""Name of a table -> its builder and layout, where a record belongs to it: another table is another line."""
SUFFIXES = (".md", ".csv", ".tex")


def files(
    records: Sequence[Record],
    published: Published,
    results: Sequence[tuple[Result, str]] = (),
    costs: timing.Calibrations = MappingProxyType({}),
    evidence: small_tables.Evidence | None = None,
) -> dict[str, str]:
    """File name -> contents, for every table that has a record, a result of a benchmark, or evidence."""
    found = small_tables.files(records, evidence)
    runs = benchmark_tables.evaluated(results)
    for number in benchmark_tables.COLUMNS:
        if any(name in run.results for run in runs for name in benchmark_tables.benchmarks_of(number)):
            table = benchmark_tables.table(number, runs, records, published)
            found |= _printed(number, table, benchmark_tables.layout(number))
    alone, alike = timing.timed_alone(records, costs), timing.timed_alike(records, costs)
    for number, (build, layout) in TABLES.items():
        if any(compare.in_table(r, number) and (number == "4" or r.method in VARIANTS) for r in records):
            found |= _printed(number, build(alone if number == "4" else alike, published), layout)
    if any(record.by_tag for record in records):
        found |= _printed("tokens_by_kind", by_tag.by_tag_table(records, published), by_tag.LAYOUT)
    return found


def _printed(number: str, table: pd.DataFrame, layout: Layout) -> dict[str, str]:
    name = compare.table_name(number)
    return {
        f"{name}.md": render.to_markdown(table, layout),
        f"{name}.csv": render.to_csv(table),
        f"{name}.tex": render.to_latex(table, layout),
    }


def save(out: Path, contents: Mapping[str, str | bytes]) -> list[Path]:
    """Write generated files, each whole or not at all; returns their paths."""
    out.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        temporary = out / f".{name}.tmp"
        temporary.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
        temporary.replace(out / name)
    return [out / name for name in contents]


def arguments(about: str, kind: str) -> argparse.ArgumentParser:
    """What the commands of tables and figures share."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--results", type=Path, default=Path("results"), help="published.json and committed records")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="your own runs")
    parser.add_argument("--out", type=Path, help=f"where the committed {kind} are (default: RESULTS/{kind})")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 and name what is stale")
    return parser


def report(problems: Sequence[Exception | str]) -> int:
    """Name what is wrong on stderr; the exit status."""
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = arguments("Tables of the paper from records.", "tables")
    parser.add_argument("--only", help="print this table alone (all are written)")
    parser.add_argument("--readme", type=Path, help="whose results are generated (default: README.md beside RESULTS)")
    options = parser.parse_args(argv)
    options.readme = options.readme or options.results.parent / "README.md"
    out = options.out or options.results / "tables"
    published = read_published(options.results / "published.json")
    committed, problems = load([options.results / "records"])
    scored, unfit = evaluations.load(options.results / "evaluations")
    costs, unread = timing.load([options.results / "calibration"])
    timed, unfit_bench = bench_record.load(options.results / "bench")
    broken_runs, unfit_faults = fault_record.load(options.results / "faults")
    said, unfit_evidence = small_tables.load(options.results / small_tables.EVIDENCE)
    problems += [*unread, *unfit_bench, *unfit_faults, *unfit_evidence]
    kept = files(committed, published, [(result, "committed") for result in scored], costs, said)
    kept |= bench_table.files(timed) | fault_table.files(broken_runs)
    results = readme.section(committed, costs)
    if options.check:
        old = readme.stale(options.readme, results) if options.readme.exists() else []
        return report([*problems, *unfit, *render.stale(out, kept, SUFFIXES), *old])
    if options.readme.exists():
        save(options.readme.parent, {options.readme.name: readme.filled(options.readme.read_text("utf-8"), results)})
    own, damaged = load([options.runs])
    measured, unread = timing.load([options.runs / "calibration"])
    damaged += unread
    mine, broken = evaluations.load(options.runs / "eval")
    paths = save(out, kept) if kept else []
    both = [(result, "committed") for result in scored] + [(result, "own") for result in mine]
    own_said, unread_evidence = small_tables.load(options.runs / small_tables.EVIDENCE)
    damaged += unread_evidence
    everything = kept
    if own or mine:
        everything = files([*committed, *own], published, both, {**costs, **measured}, own_said or said)
    if own or mine:
        paths += save(options.runs / "tables", everything)
    if not everything:
        print("No records yet: published numbers only. `make repro-table4` makes the first.\n")
        everything = {"table4.md": render.to_markdown(table4([], published), EFFICIENCY)}
    printed = [f"{compare.table_name(options.only)}.md"] if options.only else sorted(everything)
    print("\n\n".join(everything[name] for name in printed if name.endswith(".md") and name in everything))
    print("\n".join(f"Written: {path}" for path in paths))
    report([*problems, *unfit, *damaged, *broken])
    return 0


if __name__ == "__main__":
    sys.exit(main())
