"""Tables 1-3: published scores beside measured ones, from results that passed the guard. Free of torch.

A measured row is a run of Table 4, found by the name of its checkpoint's folder; other checkpoints stand under their
own name. With several seeds a cell is their mean with an interval over seeds, with one its interval is over questions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from eval import results as evaluations
from eval.results import Result, ResultError
from repro import render, stats
from repro.compare import BASELINE, student_name
from repro.record import Record
from repro.render import NOTE, WORDS, Cell, Cells, Column, Layout, Part, shown
from repro.rows import LABELS, Published
from repro.stats import Interval, difference_in_words, with_half_width

_RUN = re.compile(r"table4-(?P<student>[^-]+)-(?P<method>.+)-s(?P<seed>\d+)$")
_SHOWN = ("baseline", "regate")
GUESS = "a guesser"


@dataclass(frozen=True)
class Shown:
    """A printed column: the paper's name of it (None: it has none), and which score of which benchmark it shows.

    tasks: lmms-eval's tasks whose single answers make up the score, for a comparison in pairs; "all", or none where the
    score is more than a mean of answers.
    """

    head: str
    published: str | None
    benchmark: str
    score: str
    tasks: tuple[str, ...] | str = "all"


COLUMNS: dict[str, tuple[Shown, ...]] = {
    "1": (
        Shown("ScienceQA", "ScienceQA", "scienceqa", "images", ("scienceqa_img",)),
        Shown("MME cognition", "MME cognition", "mme", "cognition", ()),
        Shown("MME perception", "MME perception", "mme", "perception", ()),
        Shown("VizWiz", "VizWiz", "vizwiz", "accuracy"),
        Shown("POPE", "POPE", "pope", "accuracy"),
        Shown("SEED-I", "SEED-I", "seedbench", "image", ()),
    ),
    "2": (
        Shown("VideoMME", "VideoMME", "videomme", "accuracy"),
        Shown("LongVideoBench", "LongVideoBench", "longvideobench", "accuracy"),
        Shown("MLVU", "MLVU", "mlvu", "average", ()),
        Shown("EgoSchema", "EgoSchema", "egoschema", "accuracy"),
    ),
    "3": (
        Shown("MVBench", "MVBench", "mvbench", "average"),
        Shown("Perception Test", "Perception Test", "perceptiontest", "accuracy"),
        Shown("Vinoground", "Vinoground", "vinoground", "-", ()),
        Shown("text", None, "vinoground", "text", ()),
        Shown("video", None, "vinoground", "video", ()),
        Shown("group", None, "vinoground", "group", ()),
        Shown("NExT-QA", "NExT-QA", "nextqa", "accuracy"),
    ),
}
TITLES = {"1": "image benchmarks", "2": "long video", "3": "short video"}


@dataclass(frozen=True)
class Evaluated:
    """A run's results on the benchmarks: which run it was, and its result by benchmark."""

    student: str
    method: str
    seed: int
    name: str
    origin: str
    results: Mapping[str, Result]


def benchmarks_of(number: str) -> tuple[str, ...]:
    """The benchmarks that a table shows, in its order."""
    return tuple(dict.fromkeys(column.benchmark for column in COLUMNS[number]))


def run_name(result: Result) -> str:
    """The run whose checkpoint was evaluated, or the checkpoint's own name."""
    folder = Path(result.checkpoint["path"])
    return folder.parent.name if folder.name == "final" else folder.name


def find(results: Path, runs: Path) -> tuple[list[tuple[Result, str]], list[ResultError]]:
    """Results below ``results/evaluations`` and ``runs/eval`` with their origin, and what is wrong with other files."""
    committed, unfit = evaluations.load(results / "evaluations")
    own, broken = evaluations.load(runs / "eval")
    return [(r, "committed") for r in committed] + [(r, "own") for r in own], unfit + broken


def evaluated(results: Sequence[tuple[Result, str]]) -> list[Evaluated]:
    """Results with their origin (committed, own) by run; of two of one benchmark the one that finished last."""
    found: dict[tuple[str, str], dict[str, Result]] = {}
    for result, origin in sorted(results, key=lambda pair: str(pair[0].made.get("finished"))):
        found.setdefault((origin, run_name(result)), {})[result.benchmark] = result
    runs = []
    for (origin, name), by_benchmark in found.items():
        run = _RUN.search(name)
        student, method, seed = (run["student"], run["method"], int(run["seed"])) if run else (name, "", 0)
        runs.append(Evaluated(student_name(student), method, seed, name, origin, by_benchmark))
    return runs


def table(number: str, runs: Sequence[Evaluated], records: Sequence[Record], published: Published) -> pd.DataFrame:
    """Published rows, then measured ones, a section for each student. One line a cell, raw numbers."""
    columns = COLUMNS[number]
    mine = [run for run in runs if any(column.benchmark in run.results for column in columns)]
    papers = dict.fromkeys(c["student"] for c in published["cells"] if c["table"] == number and c["student"])
    cells: list[Cell] = []
    for student in dict.fromkeys([*(run.student for run in mine), *papers]):
        cells += published_cells(number, student, published)
        for origin in dict.fromkeys(run.origin for run in mine if run.student == student):
            here = [run for run in mine if (run.student, run.origin) == (student, origin)]
            cells += measured_cells(columns, student, origin, here, records)
    return render.frame([*cells, *(Cell("", "", "", NOTE, text=note) for note in _notes(mine))])


def published_cells(number: str, student: str, published: Published) -> list[Cell]:
    """A student's rows in the paper's table."""
    cells = []
    for cell in published["cells"]:
        if (cell["table"], cell["student"]) != (number, student) or cell["method"] not in _SHOWN:
            continue
        if cell["value"] is not None:
            column = "tokens.paper" if cell["column"] == "tokens" else cell["column"]
            row = LABELS[cell["method"]]
            place: dict[str, Any] = {"student": student, "row": row, "origin": f"published {cell['version']}"}
            cells.append(Cell(**place, scale="paper", column=column, value=cell["value"], unit=cell["unit"]))
    return cells


def measured_cells(
    columns: Sequence[Shown], student: str, origin: str, runs: Sequence[Evaluated], records: Sequence[Record]
) -> list[Cell]:
    """A student's measured rows: each method, then a guesser, then what the pairs say."""
    scales = {record.name: record.scale for record in records}
    tokens = {record.name: record.tokens.get("paper") for record in records}
    cells: list[Cell] = []
    methods = dict.fromkeys(run.method for run in sorted(runs, key=lambda r: list(LABELS).index(r.method)
                                                         if r.method in LABELS else len(LABELS)))  # fmt: skip
    scale = next((scales[run.name] for run in runs if run.name in scales), "")
    for method in methods:
        seeds = [run for run in runs if run.method == method]
        row = LABELS.get(method, method) or seeds[0].name
        place: dict[str, Any] = {"student": student, "row": row, "origin": origin, "scale": scale, "method": method}
        counted = [value for run in seeds if (value := tokens.get(run.name)) is not None]
        if counted:
            cells.append(Cell(**place, column="tokens.paper", value=float(np.mean(counted)), unit="tokens"))
        for column in columns:
            scores = [
                run.results[column.benchmark].scores[column.score]
                for run in seeds
                if column.benchmark in run.results and column.score in run.results[column.benchmark].scores
            ]
            if not scores:
                continue
            over = stats.seed_interval([score.value for score in scores])
            interval = over or Interval(scores[0].value, scores[0].low, scores[0].high)
            where = render.bounds(interval) | {"over": "seeds" if over else "questions", "seeds": len(scores)}
            unit = "%" if scores[0].maximum == 100 else f"of {scores[0].maximum:g}"
            cells.append(Cell(**place, column=column.head, value=interval.estimate, unit=unit, **where))
            if scores[0].chance is not None:
                above = interval.estimate - scores[0].chance
                low, high = interval.low - scores[0].chance, interval.high - scores[0].chance
                name = f"above {column.head}"
                cells.append(Cell(**place, column=name, value=above, unit="points", low=low, high=high))
    place = {"student": student, "row": GUESS, "origin": origin, "scale": scale}
    for column in columns:
        chance = _chance(column, runs)
        if chance is not None:
            cells.append(Cell(**place, column=column.head, value=chance, unit="%"))
    return cells + words(columns, student, origin, runs)


def words(columns: Sequence[Shown], student: str, origin: str, runs: Sequence[Evaluated]) -> list[Cell]:
    """ReGATE against the baseline on each benchmark: higher, lower, or no difference seen."""
    theirs = {run.seed: run for run in runs if run.method == BASELINE}
    ours = {run.seed: run for run in runs if run.method == "regate"}
    says = []
    for column in columns:
        pair = [
            {seed: run for seed, run in side.items() if column.score in _scores(run, column)} for side in (ours, theirs)
        ]
        shared = sorted(set(pair[0]) & set(pair[1]))
        if not shared:
            continue
        values = [{seed: _scores(side[seed], column)[column.score].value for seed in shared} for side in pair]
        gap = stats.paired_seeds(values[0], values[1], np.random.default_rng(0))
        assert gap is not None
        interval, over = gap.t, "seeds"
        if interval is None:
            interval, over = _over_questions(column, pair[0][shared[0]], pair[1][shared[0]]), "questions"
        says.append(f"{column.head} {difference_in_words(interval, gap.mean, over=over)}")
    if not says:
        return []
    text = f"{LABELS['regate']} against the baseline ({origin}): {'; '.join(says)}."
    return [Cell(student, LABELS["regate"], origin, WORDS, text=text)]


def _scores(run: Evaluated, column: Shown) -> Mapping[str, Any]:
    return run.results[column.benchmark].scores if column.benchmark in run.results else {}


def _over_questions(column: Shown, ours: Evaluated, theirs: Evaluated) -> Interval | None:
    """The difference with a bootstrap over questions, in points; None where single answers do not make up the score."""
    a, b = (run.results[column.benchmark] for run in (ours, theirs))
    if not column.tasks or a.data.get("questions") != b.data.get("questions"):
        return None
    tasks = list(a.outcomes) if column.tasks == "all" else list(column.tasks)
    sides = [{task: np.asarray(result.outcomes[task]) for task in tasks} for result in (a, b)]
    gap = stats.paired_questions(sides[0], sides[1], np.random.default_rng(0))
    return Interval(100 * gap.estimate, 100 * gap.low, 100 * gap.high, gap.level)


def _chance(column: Shown, runs: Sequence[Evaluated]) -> float | None:
    chances = [score.chance for run in runs if (score := _scores(run, column).get(column.score)) is not None]
    return chances[0] if chances else None


def _notes(runs: Sequence[Evaluated]) -> list[str]:
    found = [result for run in runs for result in run.results.values()]
    if not found:
        return ["No result of a checkpoint of yours yet: `make repro-table1` (2, 3) makes them."]
    notes = [
        "accuracies in percent, MME in points (200 a category that was asked); ± is half of the 95 % interval, over "
        "seeds (Student's t) or, with one seed, over questions",
        "measured rows: twins of the benchmarks from the embedded world, in the benchmarks' own schema, scored by "
        "lmms-eval's own task code; they are not comparable with published rows",
        "Vinoground: the paper does not say which of text, video and group it prints",
    ]
    for what in ("answer", "num_frames"):
        values = sorted({str(result.protocol[what]) for result in found})
        notes.append(f"{what.replace('_', ' ')}: {', '.join(values)}")
    notes.append(f"prompts: {', '.join(sorted({result.prompts['profile'] for result in found}))}")
    commits = sorted({f"{str(r.made['commit'])[:10]}{' (dirty)' if r.made['dirty'] else ''}" for r in found})
    notes.append(f"evaluated at commit {', '.join(commits)}")
    return notes


# --- layout ---


def _origin(cells: Cells) -> str:
    first = next(iter(cells.values()))
    return first.origin if first.origin.startswith("published") else f"{first.origin} {first.scale}".strip()


def _seeds(cells: Cells) -> str:
    known = [cell.seeds for cell in cells.values() if cell.seeds]
    return str(known[0]) if known else render.MISSING


def _value(key: str) -> Column:
    def show(cells: Cells) -> str:
        cell = cells.get(key)
        if cell is None or cell.value is None:
            return render.MISSING
        half = (cell.high - cell.low) / 2 if cell.low is not None and cell.high is not None else None
        return with_half_width(cell.value, half)

    return Column(key.removeprefix("above "), show)


def layout(number: str) -> Layout:
    """What a table looks like in print."""
    columns = COLUMNS[number]
    row = (Column("", lambda cells: next(iter(cells.values())).row), Column("origin", _origin))
    above = tuple(_value(f"above {c.head}") for c in columns if c.score != "-")
    return Layout(
        f"Table {number}: {TITLES[number]}",
        "Generated by `python -m repro.tables` from results/published.json and results of `make eval-*`: edit those, "
        "not this file.",
        (
            Part(
                "",
                (*row, Column("seeds", _seeds), Column("tokens", shown("tokens.paper", render.tokens)),
                 *(_value(c.head) for c in columns)),
            ),
            Part(
                "points above what a guesser gets",
                (*row, *above),
                lambda cells: any(key.startswith("above ") for key in cells),
            ),
        ),
    )  # fmt: skip
