"""The sparsity schedule: optimizer step -> share of candidates kept (Eq. 4)."""

from typing import Any


def keep_ratio_at(
    step: int,
    *,
    keep_ratio: float,
    warmup: int,
    cycle: int,
    dense_steps: int,
    final_ratio: float | None = None,
    cooldown: int = 0,
    steps: int = 0,
) -> float:
    """Share of each answer's candidates kept in optimizer step ``step`` (0-based), Eq. 4 of the paper.

    The first ``warmup`` steps are dense. After them every cycle of ``cycle`` (C) steps opens with ``dense_steps``
    (F) dense ones; the others keep ``keep_ratio`` (p). Beyond the paper, both off by default and both reading the run's
    length ``steps``: the ratio moves linearly from p to ``final_ratio``, and the last ``cooldown`` steps are dense.
    """
    if step < warmup or step >= steps - cooldown > 0 or (step - warmup) % cycle < dense_steps:
        return 1.0
    if final_ratio is None:
        return keep_ratio
    done = (step - warmup) / max(1, steps - cooldown - 1 - warmup)
    return keep_ratio + (final_ratio - keep_ratio) * min(1.0, done)


def expected_reduction(steps: int, **schedule: Any) -> float:
    """Share of candidate targets that the schedule alone elides over ``steps`` optimizer steps, in [0, 1).

    ``schedule`` as for :func:`keep_ratio_at`. With the paper's defaults and a whole number of cycles after the warm-up
    it is ``0.4375 * (1 - 100 / steps)``.
    """
    return 1.0 - sum(keep_ratio_at(t, **{"steps": steps} | schedule) for t in range(steps)) / steps
