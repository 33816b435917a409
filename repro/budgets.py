"""The headline: what smaller budgets reach, and what budget reaches the baseline's accuracy. Free of torch.

Each budget is a run with a whole schedule of its own length, read at its end. Between two budgets accuracy is
interpolated, over costs (tokens, FLOPs, time); the interval draws whole seeds, with an explicit generator.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from repro import compare, render
from repro.compare import BASELINE, Group
from repro.record import Record
from repro.render import NOTE, WORDS, Cell, Column, Layout, Part
from repro.rows import Published
from repro.stats import LEVEL
from repro.variant_tables import BENCHMARK, NOTES, OPENING, gap, measured_rows, percent

BUDGETS = (35, 50, 75)
"""Percent of the steps; 100 are Table 4's runs."""
COSTS = {"tokens.paper": "tokens", "flops": "FLOPs", "train_seconds": "train time"}
REPS = 10_000


def methods_of(of: str) -> tuple[str, ...]:
    """Methods of a curve over budgets, in their order."""
    return (*(f"{of}-budget{percent}" for percent in BUDGETS), of)


@dataclass(frozen=True)
class Curve:
    """Accuracy over budgets: arrays [seeds, budgets]; costs as shares of what the baseline of the same seed took."""

    seeds: tuple[int, ...]
    accuracy: np.ndarray  # fractions
    target: np.ndarray  # [seeds]: the baseline's
    costs: Mapping[str, np.ndarray]  # nothing of a cost that was not measured alike


def curve(group: Group, of: str, metric: str) -> Curve | None:
    """The curve of ``of`` ("dense", "regate") where at least two budgets and the baseline share seeds.

    ``metric``: "validation", or "accuracy" on the twin.
    """
    known = [m for m in methods_of(of) if m in group.methods]
    runs = [compare.at_end(group.methods[m]) for m in known]
    baseline = compare.at_end(group.baseline)
    if len(runs) < 2 or not baseline:
        return None
    values = [_scores(readings, metric) for readings in (*runs, baseline)]
    seeds = tuple(sorted(set.intersection(*map(set, values))))
    if not seeds:
        return None
    costs = {}
    for cost in COSTS:
        shares = [[_share(readings[s], baseline[s], cost) for readings in runs] for s in seeds]
        if all(share is not None for row in shares for share in row):
            costs[cost] = np.array(shares, dtype=float)
    scores = np.array([[score[s] for score in values] for s in seeds])
    return Curve(seeds, scores[:, :-1], scores[:, -1], costs)


def _scores(readings: compare.Readings, metric: str) -> Mapping[int, float]:
    if metric == "validation":
        return compare.validated(readings)
    score = compare.accuracy(readings, BENCHMARK)
    return score.by_seed if score else {}


def _share(ours: compare.Reading, theirs: compare.Reading, cost: str) -> float | None:
    a, b = ours.numbers().get(cost), theirs.numbers().get(cost)
    if a is None or not b or (cost == "train_seconds" and not compare.comparable_times(ours.record, theirs.record)):
        return None
    return a / b


def first_at(costs: Sequence[float], accuracy: Sequence[float], target: float) -> float:
    """The cost at which accuracy, interpolated between budgets, first reaches the target; infinite where it does not,
    the smallest cost where that is enough."""
    for i, (cost, value) in enumerate(zip(costs, accuracy, strict=True)):
        if value >= target:
            if i == 0:
                return float(cost)
            before, low = costs[i - 1], accuracy[i - 1]
            return float(before + (cost - before) * (target - low) / (value - low))
    return float("inf")


@dataclass(frozen=True)
class Needed:
    """Share of the baseline's cost that reaches its accuracy, with bounds over seeds; infinite: not reached."""

    share: float
    low: float | None  # None with one seed
    high: float | None
    smallest: float  # the smallest budget's share: a need of that much may be less

    def words(self) -> str:
        """In percent: `62 % (95 % interval over seeds 50 to 75 %)`."""

        def one(value: float) -> str:
            return "not reached" if np.isinf(value) else f"{100 * value:.0f} %"

        most = "at most " if self.share <= self.smallest else ""
        if self.low is None or self.high is None:
            return f"{most}{one(self.share)} (one seed: no interval)"
        return f"{most}{one(self.share)} ({100 * LEVEL:.0f} % interval over seeds {one(self.low)} to {one(self.high)})"


def needed(found: Curve, cost: str, rng: np.random.Generator, shift: int = 0) -> Needed:
    """The budget that the mean curve needs for the baseline's mean accuracy; bootstrap over seeds, drawn in pairs.

    ``shift`` reads each curve against the baseline of another seed (a placebo).
    """
    target = np.roll(found.target, shift)

    def at(rows: np.ndarray) -> float:
        means = found.costs[cost][rows].mean(0), found.accuracy[rows].mean(0)
        return first_at(means[0].tolist(), means[1].tolist(), float(target[rows].mean()))

    n = len(found.seeds)
    share, smallest = at(np.arange(n)), float(found.costs[cost][:, 0].mean())
    if n == 1:
        return Needed(share, None, None, smallest)
    draws = np.sort([at(row) for row in rng.integers(n, size=(REPS, n))])
    tail = (1 - LEVEL) / 2
    low, high = (float(draws[int(q * (REPS - 1))]) for q in (tail, 1 - tail))
    return Needed(share, min(low, share), max(high, share), smallest)


# --- table ---


def budget_table(records: Sequence[Record], published: Published) -> pd.DataFrame:
    """Rows of all budgets, then the headline in words."""
    cells: list[Cell] = []
    for group in compare.groups(r for r in records if compare.in_table(r, "budgets") or compare.in_table(r, "4")):
        methods = [m for m in (BASELINE, *methods_of("dense"), *methods_of("regate")) if m in group.methods]
        if any("-budget" in method for method in methods):
            cells += [cell for cell in measured_rows(group, methods, {}) if cell.column != WORDS]
            cells += [Cell(group.student, "", group.origin, WORDS, text=text) for text in headline(group)]
    return render.frame([*cells, *(Cell("", "", "", NOTE, text=note) for note in NOTES)])


_NAMES: dict[str, str] = {"dense": "Dense", "regate": "ReGATE"}
_METRICS = {"validation": "accuracy on validation", "accuracy": "accuracy on MVBench's twin"}


def headline(group: Group) -> list[str]:
    """What budget reaches the baseline's accuracy at its end, in words; with a placebo for dense."""
    says = []
    for metric, what in _METRICS.items():
        for of, name in _NAMES.items():
            found = curve(group, of, metric)
            if found is None:
                continue

            def need(shift: int, found: Curve = found, of: str = of, metric: str = metric) -> str:
                return "; ".join(
                    f"{label} {needed(found, cost, _rng(group, of, metric, cost, shift), shift).words()}"
                    for cost, label in COSTS.items()
                    if cost in found.costs
                )

            level = 100 * float(found.target.mean())
            says.append(f"{name} needs for the baseline's final {what} ({level:.1f} %, {len(found.seeds)} seeds), "
                        f"of what the baseline took: {need(0)}.")  # fmt: skip
            if of == "dense" and len(found.seeds) > 1 and metric == "validation":
                spread = 100 * (np.roll(found.target, 1) - found.target)
                reached = int((found.accuracy[:, -1] >= np.roll(found.target, 1)).sum())
                says.append(
                    f"Placebo, dense against the baseline of another seed ({what}): its whole budget is as good in "
                    f"{reached} of {len(found.seeds)} pairs; baselines differ by {np.abs(spread).mean():.1f} points."
                )
    return says


def _rng(group: Group, *key: object) -> np.random.Generator:
    return compare.generator("budget", group.student, group.scale, group.origin, *key)


LAYOUT = Layout(
    "Budgets: what fewer steps reach, each with a whole schedule of its own length",
    "Generated by `python -m repro.tables` from records: edit those, not this file.",
    (
        Part("", (
            *OPENING,
            Column("MVBench %", percent("accuracy", "accuracy.seeds")),
            Column("against baseline", gap("accuracy.against.baseline")),
        )),
    ),
)  # fmt: skip

Builder = Callable[[Sequence[Record], Published], pd.DataFrame]
