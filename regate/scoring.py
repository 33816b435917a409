"""Reference loss and EMA -> difficulty -> kept -> active: pure tensor functions (Eqs. 2-3, Algorithm 1).

Legend: B rows of a batch, L positions, N targets of the longest answer. Everything about targets lives in *predictor
space*: entry ``[b, i]`` speaks of the target at position ``i + 1``, whose loss is computed from the hidden state at
``i``. A target at position 0 has no predictor and is no target. The ordinal of a target counts from 0 in its row.
"""

import math

import torch
from torch import Tensor

IGNORE = -100
ACTIVE_SETS = ("predictors", "predictors+kept", "kept-passthrough", "kept-unsupervised", "prefix")
COMBINATIONS = ("convex", "additive")


def shift_labels(labels: Tensor) -> Tensor:
    """Labels [B, L] -> labels in predictor space [B, L]: entry i holds the label of position i + 1, the last -100."""
    return torch.nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORE)


def ordinals(target: Tensor) -> Tensor:
    """Ordinal of each target in its row, int64 [B, L]; meaningless where ``target`` [B, L] is False."""
    return target.cumsum(dim=1) - 1


def spread(values: Tensor, target: Tensor, fill: float = math.nan) -> Tensor:
    """Per-target values [B, N] laid out at the predictors of their targets: [B, L], ``fill`` elsewhere."""
    if values.shape[1] == 0:
        return torch.full(target.shape, fill, dtype=values.dtype, device=values.device)
    index = ordinals(target).clamp(0, values.shape[1] - 1)
    return values.gather(1, index).masked_fill(~target, fill)


def hashes(seed: int, *keys: Tensor) -> Tensor:
    """A 63-bit hash of (seed, keys...), int64, of the keys' broadcast shape: splitmix64 folded over the keys.

    No random generator: the same sample gets the same hash on every rank, in every order, after every resume.
    """
    state = torch.full((), seed, dtype=torch.int64, device=keys[0].device)
    for key in keys:
        state = _splitmix64(state ^ key)  # int64 arithmetic wraps, which is what the mixer wants
    return state & 0x7FFF_FFFF_FFFF_FFFF


def _splitmix64(x: Tensor) -> Tensor:
    x = x + -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed integer
    x = (x ^ _shift_right(x, 30)) * -4658895280553007687  # 0xBF58476D1CE4E5B9
    x = (x ^ _shift_right(x, 27)) * -7723592293110705685  # 0x94D049BB133111EB
    return x ^ _shift_right(x, 31)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)  # logical, where torch's is arithmetic


def difficulty(ema: Tensor, reference: Tensor, lambda_: float, combine: str = "convex") -> Tensor:
    """Difficulty d (Eq. 3) from the student's EMA ``m`` and the teacher's loss, both [...] in nats.

    ``convex``: ``(1 - lambda) m + lambda l_ref``, the reading under which Table 5's labels are true; ``additive``:
    ``m + lambda l_ref``, Eq. 3 as printed. Where the student's loss was never observed (``m`` NaN) the reference
    stands in for it if lambda > 0, so that such a target competes on the same scale; with lambda = 0 it ranks first.
    """
    if lambda_ == 0:
        return ema.nan_to_num(nan=math.inf)
    m = torch.where(ema.isnan(), reference, ema)
    return (1 - lambda_) * m + lambda_ * reference if combine == "convex" else m + lambda_ * reference


def count_kept(candidates: Tensor, ratio: float | Tensor) -> Tensor:
    """``ceil(ratio * n)`` for integer counts n [...] and a ratio or ratios [...]; ratio * n that is whole but for
    rounding is not rounded up."""
    return (candidates.double() * ratio - 1e-9).ceil().long()


def select(score: Tensor, candidate: Tensor, ratio: float | Tensor, tie: Tensor) -> Tensor:
    """Keep the ``ceil(ratio * n)`` candidates of each row with the highest score; ties go by the smaller hash.

    score float [B, L], candidate bool [B, L], ratio one number or one a row [B], tie int64 [B, L] -> bool [B, L], a
    subset of ``candidate``.
    """
    by_tie = tie.argsort(dim=1)
    ranked = score.masked_fill(~candidate, -math.inf).gather(1, by_tie)
    # Candidates first even where their own score is -inf, then by score; both sorts keep the order of the hashes.
    by_score = ranked.argsort(dim=1, descending=True, stable=True)
    order = by_tie.gather(1, by_score)
    order = order.gather(1, candidate.gather(1, order).int().argsort(dim=1, descending=True, stable=True))
    rank = torch.empty_like(order).scatter_(
        1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
    )
    return candidate & (rank < count_kept(candidate.sum(1), ratio)[:, None])


def inclusion(weight: Tensor, candidate: Tensor, ratio: float | Tensor) -> Tensor:
    """Probabilities of being drawn: proportional to ``weight``, at most 1, adding up to each row's ``ceil(ratio * n)``.

    weight float [B, L] >= 0, candidate bool [B, L], ratio a number or [B] -> float64 [B, L], 0 where no candidate.
    Those whose share would exceed 1 are certain, and the others share what is left.
    """
    w = weight.double().clamp(min=1e-12).masked_fill(~candidate, 0)
    number = count_kept(candidate.sum(1), ratio)[:, None]  # [B, 1]
    top, order = w.sort(dim=1, descending=True)
    rest = top.flip(1).cumsum(1).flip(1)  # [B, L], weight from each rank on
    rank = torch.arange(w.shape[1], device=w.device)
    certain = ((number - rank) * top >= rest) & (rank < number)
    count = certain.long().cumprod(1).sum(1, keepdim=True)  # [B, 1], a first part of the ranks
    left = top.masked_fill(rank < count, 0).sum(1, keepdim=True).clamp(min=1e-300)
    probability = torch.where(rank < count, 1.0, (number - count) * top / left)
    return torch.zeros_like(w).scatter(1, order, probability).masked_fill(~candidate, 0).clamp(max=1)


def draw(probability: Tensor, candidate: Tensor, start: Tensor) -> Tensor:
    """Systematic sampling: each candidate is drawn with its ``probability`` [B, L], spread evenly over the row.

    start float64 [B] in [0, 1), the row's only randomness -> bool [B, L], as many per row as its probabilities add up
    to.
    """
    upto = probability.cumsum(1) + start[:, None]
    return candidate & ((upto.floor() > (upto - probability).floor()) | (probability >= 1))


def active_positions(
    labels: Tensor, attended: Tensor, special: Tensor, kept: Tensor, active_set: str = "predictors"
) -> Tensor:
    """Positions that the decoder computes, bool [B, L] (position space).

    labels int64 [B, L]; attended bool [B, L], False on padding; special bool [B, L], True where the token is a marker;
    kept bool [B, L] in predictor space. All context and all markers are active; of the answer, per ``active_set``:
    the predictors of kept targets, those and the kept tokens themselves, only the kept tokens (Algorithm 1 read
    literally), or everything up to the last kept predictor (``prefix``: only what nothing kept looks at is left out).
    """
    kept_tokens = torch.nn.functional.pad(kept[:, :-1], (1, 0), value=False)
    answer = {
        "predictors": kept,
        "predictors+kept": kept | kept_tokens,
        "kept-passthrough": kept_tokens,
        "kept-unsupervised": kept_tokens,
        "prefix": kept.int().flip(1).cummax(dim=1).values.flip(1).bool(),
    }[active_set]
    return attended & ((labels == IGNORE) | special | answer)


def update_ema(ema: Tensor, loss: Tensor, beta: float) -> Tensor:
    """One EMA step ``m <- beta m + (1 - beta) l`` (Eq. 2), elementwise; the first observation sets m (m was NaN)."""
    return torch.where(ema.isnan(), loss, beta * ema + (1 - beta) * loss)
