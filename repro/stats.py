"""Intervals: over questions, over seeds, and of paired differences. Pure functions; randomness is a Generator of yours.

Two sources of doubt are kept apart. Over **questions**: would another test of this kind say the same of these models?
Over **seeds**: would another training run? With one seed there is no interval over seeds, and nothing here invents one.

Arrays of scores are [runs, tasks], as in rliable (whose own seed is ignored; ours is the Generator).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats as sps

Outcomes = Mapping[str, ArrayLike]
"""Subtask -> score of each question: right (1) or wrong (0), or the mean over seeds, or a difference of two models."""

LEVEL = 0.95
REPS = 10_000
NO_DIFFERENCE = "no difference seen"


@dataclass(frozen=True)
class Interval:
    """An estimate with the bounds of its interval at `level`."""

    estimate: float
    low: float
    high: float
    level: float = LEVEL

    def __post_init__(self) -> None:
        assert self.low <= self.estimate <= self.high, self

    @property
    def half(self) -> float:
        """Half of the width (the interval need not be symmetric)."""
        return (self.high - self.low) / 2

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high

    def scaled(self, factor: float) -> Interval:
        """Every number times a factor > 0, e.g. 100 for percent."""
        if factor <= 0:
            raise ValueError(f"factor: got {factor}, expected a number > 0")
        return Interval(self.estimate * factor, self.low * factor, self.high * factor, self.level)


def _around(estimate: float, low: float, high: float, level: float) -> Interval:
    """Rounding and skew can put an estimate just outside: an interval holds its estimate."""
    return Interval(float(estimate), float(min(low, estimate)), float(max(high, estimate)), level)


def _percentiles(estimate: float, draws: np.ndarray, level: float) -> Interval:
    tail = (1 - level) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return _around(estimate, low, high, level)


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level: got {level}, expected a fraction in (0, 1) such as 0.95")


# --- over questions ---


def wilson(correct: int, n: int, level: float = LEVEL) -> Interval:
    """Accuracy of `correct` right answers to `n` questions with Wilson's interval (all questions weigh the same)."""
    _check_level(level)
    if n <= 0 or not 0 <= correct <= n:
        raise ValueError(f"correct, n: got {correct} of {n}, expected 0 <= correct <= n and n > 0")
    bounds = sps.binomtest(int(correct), int(n)).proportion_ci(confidence_level=level, method="wilson")
    return _around(correct / n, bounds.low, bounds.high, level)


def macro(outcomes: Outcomes) -> float:
    """Mean over subtasks of the mean over their questions: every subtask weighs the same, as on MVBench."""
    if not outcomes:
        raise ValueError("outcomes: got no subtask, expected at least one")
    means = [float(np.mean(_questions(task, values))) for task, values in outcomes.items()]
    return math.fsum(means) / len(means)  # exact: the order of the subtasks must not show


def _questions(task: str, values: ArrayLike) -> np.ndarray:
    array = np.asarray(values, dtype=float)
    if array.ndim != 1 or not array.size or not np.isfinite(array).all():
        raise ValueError(
            f"outcomes[{task!r}]: got shape {array.shape}, expected finite scores of at least one question"
        )
    return array


def question_interval(outcomes: Outcomes, rng: np.random.Generator, reps: int = REPS, level: float = LEVEL) -> Interval:
    """Macro average with a bootstrap over questions, stratified: each subtask draws from its own questions.

    Draws are multinomial counts of the distinct scores, which is the bootstrap itself, without index arrays.
    """
    _check_level(level)
    estimate = macro(outcomes)
    draws = np.zeros(reps)
    for task in sorted(outcomes):  # the order of the subtasks must not change the draws
        scores, counts = np.unique(_questions(task, outcomes[task]), return_counts=True)
        n = int(counts.sum())
        draws += rng.multinomial(n, counts / n, size=reps) @ scores / n
    return _percentiles(estimate, draws / len(outcomes), level)


def paired_questions(
    ours: Outcomes, theirs: Outcomes, rng: np.random.Generator, reps: int = REPS, level: float = LEVEL
) -> Interval:
    """Difference of macro averages, ours - theirs, on the same questions in the same order, bootstrapped in pairs."""
    if set(ours) != set(theirs):
        raise ValueError(f"subtasks: got {sorted(ours)} and {sorted(theirs)}, expected the same questions")
    pairs = {task: (_questions(task, ours[task]), _questions(task, theirs[task])) for task in ours}
    for task, (a, b) in pairs.items():
        if a.size != b.size:
            raise ValueError(f"{task}: got {a.size} and {b.size} questions, expected the same ones")
    return question_interval({task: a - b for task, (a, b) in pairs.items()}, rng, reps, level)


# --- over seeds ---


def seed_interval(values: ArrayLike, level: float = LEVEL) -> Interval | None:
    """Mean over runs that differ in their seed, with Student's t interval; None with one run."""
    _check_level(level)
    array = np.asarray(values, dtype=float)
    if array.ndim != 1 or not array.size:
        raise ValueError(f"values: got shape {array.shape}, expected one number for each seed")
    if array.size < 2:
        return None
    mean = float(array.mean())
    half = float(sps.t.ppf((1 + level) / 2, array.size - 1) * array.std(ddof=1) / math.sqrt(array.size))
    return _around(mean, mean - half, mean + half, level)


@dataclass(frozen=True)
class Paired:
    """Differences of two methods, seed by seed: ours - theirs over the seeds that both have."""

    seeds: tuple[int, ...]
    differences: tuple[float, ...]
    mean: float
    t: Interval | None  # None with one seed
    bootstrap: Interval | None


def paired_seeds(
    ours: Mapping[int, float],
    theirs: Mapping[int, float],
    rng: np.random.Generator,
    reps: int = REPS,
    level: float = LEVEL,
) -> Paired | None:
    """Paired differences by seed (seed -> score), with a t interval and a bootstrap; None where no seed is shared."""
    _check_level(level)
    seeds = tuple(sorted(set(ours) & set(theirs)))
    if not seeds:
        return None
    differences = np.array([ours[seed] - theirs[seed] for seed in seeds], dtype=float)
    mean, boot = float(differences.mean()), None
    if len(seeds) > 1:
        rows = rng.integers(len(seeds), size=(reps, len(seeds)))
        boot = _percentiles(mean, differences[rows].mean(axis=1), level)
    return Paired(seeds, tuple(differences.tolist()), mean, seed_interval(differences, level), boot)


# --- runs x tasks ---

Aggregate = Callable[[np.ndarray], float]


def aggregate_mean(scores: np.ndarray) -> float:
    """Mean over runs and tasks."""
    return float(np.mean(scores))


def aggregate_median(scores: np.ndarray) -> float:
    """Median over tasks of the mean over runs."""
    return float(np.median(np.mean(scores, axis=0)))


def aggregate_iqm(scores: np.ndarray) -> float:
    """Mean of the middle half of all runs on all tasks (interquartile mean)."""
    return float(sps.trim_mean(np.asarray(scores), proportiontocut=0.25, axis=None))


def _matrix(name: str, scores: ArrayLike) -> np.ndarray:
    array = np.asarray(scores, dtype=float)
    if array.ndim != 2 or not array.size or not np.isfinite(array).all():
        raise ValueError(f"{name}: got shape {array.shape}, expected finite scores [runs, tasks]")
    return array


def aggregate_interval(
    scores_RT: ArrayLike,  # [runs, tasks]
    aggregate: Aggregate,
    rng: np.random.Generator,
    reps: int = 2_000,
    level: float = LEVEL,
) -> Interval | None:
    """An aggregate with a bootstrap over runs, stratified by task as in rliable; None with one run."""
    _check_level(level)
    array = _matrix("scores", scores_RT)
    runs, tasks = array.shape
    if runs < 2:
        return None
    rows = rng.integers(runs, size=(reps, runs, tasks))
    draws = np.array([aggregate(np.take_along_axis(array, row, axis=0)) for row in rows])
    return _percentiles(aggregate(array), draws, level)


def paired_aggregate_interval(
    ours_RT: ArrayLike,  # [runs, tasks]: row r of both is the same seed
    theirs_RT: ArrayLike,
    aggregate: Aggregate,
    rng: np.random.Generator,
    reps: int = 2_000,
    level: float = LEVEL,
) -> Interval | None:
    """Difference of an aggregate, ours - theirs, with a bootstrap that draws whole seeds of both; None with one run."""
    _check_level(level)
    ours, theirs = _matrix("ours", ours_RT), _matrix("theirs", theirs_RT)
    if ours.shape != theirs.shape:
        raise ValueError(f"scores: got shapes {ours.shape} and {theirs.shape}, expected the same seeds and tasks")
    if len(ours) < 2:
        return None
    rows = rng.integers(len(ours), size=(reps, len(ours)))
    draws = np.array([aggregate(ours[row]) - aggregate(theirs[row]) for row in rows])
    return _percentiles(aggregate(ours) - aggregate(theirs), draws, level)


# --- in words ---


def with_half_width(value: float, half: float | None, digits: int = 1) -> str:
    """`52.1 ±2.3`, or `52.1` where there is no interval."""
    return f"{value:.{digits}f}" + ("" if half is None else f" ±{half:.{digits}f}")


def difference_in_words(
    interval: Interval | None, difference: float, unit: str = "points", over: str = "seeds", digits: int = 1
) -> str:
    """What a paired difference says: higher, lower, no difference seen, or, without an interval, the number alone."""
    if interval is None:
        return f"{difference:+.{digits}f} {unit} (one seed: no interval over seeds)"
    bounds = (
        f"{100 * interval.level:g} % interval over {over} {interval.low:+.{digits}f} to {interval.high:+.{digits}f}"
    )
    if 0 in interval:
        return f"{NO_DIFFERENCE} ({difference:+.{digits}f} {unit}, {bounds})"
    side = "higher" if difference > 0 else "lower"
    return f"{side} by {abs(difference):.{digits}f} {unit} ({bounds})"
