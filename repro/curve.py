"""Peak and crossing of a validation curve, read on a running mean of three evaluations; nothing is interpolated.

The running mean at an evaluation is the mean of it and the two before it, so it belongs to a checkpoint that exists,
and it looks at nothing that came later. The first two evaluations have none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

WINDOW = 3


class Evaluation(Protocol):
    """What these functions need of a point of a curve (`record.Point`)."""

    @property
    def step(self) -> int: ...
    @property
    def metrics(self) -> Mapping[str, float | None]: ...


def running_mean(curve: Sequence[Evaluation], metric: str, window: int = WINDOW) -> list[tuple[int, float]]:
    """(step, mean of this evaluation's metric and the window - 1 before it). Points without the metric do not count."""
    if window < 1:
        raise ValueError(f"window: got {window}, expected at least 1")
    seen = [(point.step, value) for point in curve if (value := point.metrics.get(metric)) is not None]
    values = [value for _, value in seen]
    return [(seen[i][0], float(np.mean(values[i - window + 1 : i + 1]))) for i in range(window - 1, len(seen))]


def peak(curve: Sequence[Evaluation], metric: str, *, lower_is_better: bool = False) -> tuple[int, float] | None:
    """(step, value) of the best running mean, the earliest of equals; None with fewer than three evaluations."""
    sign = -1.0 if lower_is_better else 1.0
    means = running_mean(curve, metric)
    return max(means, key=lambda at: (sign * at[1], -at[0]), default=None)


def crossing(
    curve: Sequence[Evaluation], target: float, metric: str, *, lower_is_better: bool = False
) -> Evaluation | None:
    """The first evaluation whose running mean is at least as good as the target; None where it is never reached."""
    sign = -1.0 if lower_is_better else 1.0
    steps = [step for step, value in running_mean(curve, metric) if sign * value >= sign * target]
    return next((point for point in curve if steps and point.step == steps[0]), None)
