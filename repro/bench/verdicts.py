"""From paired times to verdicts: medians of ratios, bootstrap intervals, targets. Free of torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from repro.stats import LEVEL, REPS, Interval

WIDEST = 0.1
MIN_ROUNDS = 30
PASS, FAIL, INCONCLUSIVE = "pass", "fail", "inconclusive"


def paired_ratio(ours: Sequence[float | None], theirs: Sequence[float | None], rng: np.random.Generator) -> Interval:
    """Median over rounds of ours / theirs, with the percentile interval of a bootstrap over rounds.

    Rounds that one of the two sat out do not count. ValueError if none is left, or the lists differ in length.
    """
    pairs = [(a, b) for a, b in zip(ours, theirs, strict=True) if a is not None and b is not None]
    if not pairs:
        raise ValueError("no round in which both ran")
    ratios = np.array([a / b for a, b in pairs])
    draws = np.median(ratios[rng.integers(len(ratios), size=(REPS, len(ratios)))], axis=1)
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    estimate = float(np.median(ratios))
    return Interval(estimate, min(float(low), estimate), max(float(high), estimate), LEVEL)


def mapped(interval: Interval, through: Callable[[float], float]) -> Interval:
    """The interval of a monotone function of the quantity."""
    low, high = sorted((through(interval.low), through(interval.high)))
    return Interval(through(interval.estimate), low, high, interval.level)


@dataclass(frozen=True)
class Target:
    """One line of the bench's table: what was asked, what was measured, and what follows."""

    asked: str
    workload: str
    measured: Interval
    limit: float
    at_most: bool
    rounds: int | None  # None: counted, not sampled

    @property
    def result(self) -> str:
        """inconclusive where the interval is wider than 0.1 or of fewer than 30 rounds; else the estimate decides."""
        too_few = self.rounds is not None and self.rounds < MIN_ROUNDS
        if too_few or self.measured.high - self.measured.low > WIDEST:
            return INCONCLUSIVE
        value = self.measured.estimate
        return PASS if (value <= self.limit if self.at_most else value >= self.limit) else FAIL

    @property
    def crosses(self) -> bool:
        """Whether the limit lies inside the interval: another run may decide otherwise."""
        return self.measured.low < self.limit < self.measured.high


def realised(ratio: float, share: float) -> float:
    """Share of the possible saving that a measured ratio of times realises: 1 at the bound, 0 if nothing is saved."""
    if not 0 < share < 1:
        raise ValueError(f"the FLOP share must lie between 0 and 1; got {share}")
    return (1 - ratio) / (1 - share)
