"""The gate of one answer in numpy: which tokens any lambda and ratio keep, from losses that were computed once.

The twin of `regate.scoring` for one row (tests hold the two equal, and equal to what committed traces recorded): a
page must not wait for torch to show what a slider does. N targets; losses in nats.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LAMBDAS = np.round(np.linspace(0, 1, 21), 2)
"""Values of lambda that `lambda_ranges` looks at."""


@dataclass(frozen=True)
class Answer:
    """One answer: its tokens and what was measured about each. Arrays are [N]."""

    question: str
    tokens: tuple[str, ...]
    reference: np.ndarray  # float: the teacher's loss
    ema: np.ndarray  # float: the student's, NaN where never observed
    candidate: np.ndarray  # bool: False for markers, which are always kept
    tie: np.ndarray  # uint64: equal scores go by the smaller one
    tags: tuple[str, ...] = ()  # template, visual, wording, special; empty where not known
    name: str = ""

    def __post_init__(self) -> None:
        n = len(self.tokens)
        sizes = {name: len(getattr(self, name)) for name in ("reference", "ema", "candidate", "tie")}
        assert set(sizes.values()) == {n}, (n, sizes)
        assert len(self.tags) in (0, n), (n, len(self.tags))

    @property
    def observed(self) -> bool:
        """Whether a student has seen any of it: only then does lambda weigh anything."""
        return bool(np.isfinite(self.ema).any())


@dataclass(frozen=True)
class Gated:
    """What a gate does with an answer: score float [N] (NaN where dense), kept bool [N]."""

    score: np.ndarray
    kept: np.ndarray


def difficulty(ema: np.ndarray, reference: np.ndarray, lambda_: float, combine: str = "convex") -> np.ndarray:
    """`regate.scoring.difficulty` (Eq. 3): an unseen token's reference loss stands in, or ranks first at lambda 0."""
    if lambda_ == 0:
        return np.where(np.isnan(ema), np.inf, ema)
    m = np.where(np.isnan(ema), reference, ema)
    return (1 - lambda_) * m + lambda_ * reference if combine == "convex" else m + lambda_ * reference


def select(score: np.ndarray, candidate: np.ndarray, ratio: float, tie: np.ndarray) -> np.ndarray:
    """`regate.scoring.select`: the ceil(ratio * n) candidates with the highest score, ties by the smaller hash."""
    n = int(np.ceil(candidate.sum() * ratio - 1e-9))
    order = np.lexsort((tie, -score, ~candidate))
    kept = np.zeros(len(score), dtype=bool)
    kept[order[:n]] = True
    return kept & candidate


def gate(answer: Answer, lambda_: float, ratio: float, combine: str = "convex") -> Gated:
    """Score and decision; markers are always kept, and a ratio of 1 keeps everything."""
    score = difficulty(answer.ema, answer.reference, lambda_, combine)
    if ratio >= 1:
        return Gated(score, np.ones(len(score), dtype=bool))
    return Gated(score, select(score, answer.candidate, ratio, answer.tie) | ~answer.candidate)


def lambda_ranges(answer: Answer, ratio: float, combine: str = "convex") -> list[str]:
    """For each token the lambdas of `LAMBDAS` that keep it, in words: "all", "none", "0-0.35", "0 and 0.6-1"."""
    kept = np.stack([gate(answer, float(value), ratio, combine).kept for value in LAMBDAS])  # [21, N]
    return [_ranges(column) for column in kept.T]


def _ranges(kept: np.ndarray) -> str:
    if kept.all() or not kept.any():
        return "all" if kept.all() else "none"
    edges = np.flatnonzero(np.diff(np.concatenate([[0], kept.astype(int), [0]]))).reshape(-1, 2)
    parts = [(f"{LAMBDAS[a]:g}", f"{LAMBDAS[b - 1]:g}") for a, b in edges]
    return " and ".join(a if a == b else f"{a}–{b}" for a, b in parts)


def ties(seed: int, sample: int, n: int) -> np.ndarray:
    """Hashes of (seed, sample, ordinal) for the n targets of a sample, uint64 [n], as `regate.scoring.hashes`."""
    with np.errstate(over="ignore"):
        state = np.full(n, seed, dtype=np.int64).view(np.uint64)
        for key in (np.full(n, sample, dtype=np.int64), np.arange(n, dtype=np.int64)):
            state = _splitmix64(state ^ key.view(np.uint64))
    return state & np.uint64(0x7FFF_FFFF_FFFF_FFFF)


def _splitmix64(x: np.ndarray) -> np.ndarray:
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
