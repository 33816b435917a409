"""The sparsity schedule: optimizer step -> share of candidates kept (Eq. 4)."""


def keep_ratio_at(step: int, *, keep_ratio: float, warmup: int, cycle: int, dense_steps: int) -> float:
    """Share of each answer's candidates kept in optimizer step ``step`` (0-based), Eq. 4 of the paper.

    The first ``warmup`` steps are dense. After them every cycle of ``cycle`` (C) steps opens with ``dense_steps``
    (F) dense ones; the others keep ``keep_ratio`` (p).
    """
    if step < warmup or (step - warmup) % cycle < dense_steps:
        return 1.0
    return keep_ratio


def expected_reduction(steps: int, *, keep_ratio: float, warmup: int, cycle: int, dense_steps: int) -> float:
    """Share of candidate targets that the schedule alone elides over ``steps`` optimizer steps, in [0, 1).

    With the paper's defaults and a whole number of cycles after the warm-up it is ``0.4375 * (1 - 100 / steps)``.
    """
    kept = (
        keep_ratio_at(t, keep_ratio=keep_ratio, warmup=warmup, cycle=cycle, dense_steps=dense_steps)
        for t in range(steps)
    )
    return 1.0 - sum(kept) / steps
