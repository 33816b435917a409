"""Gate policies behind one interface, and what a gate decides about a batch.

A policy scores targets; everything else (how many are kept, ties, markers, the active set) is the same for all.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from regate.scoring import IGNORE, active_positions, difficulty, hashes, ordinals, select, shift_labels


@dataclass(frozen=True)
class Signals:
    """What a policy may score by; tensors [B, L] in predictor space, losses in nats."""

    ema: Tensor  # the student's EMA of each target's loss, NaN where never observed
    reference: Tensor  # the teacher's loss
    sample: Tensor  # int64 sample ids
    ordinal: Tensor  # int64 ordinal of the target in its sample
    step: int  # optimizer step, 0-based
    seed: int
    lambda_: float
    combine: str


@dataclass(frozen=True)
class Policy:
    """How targets are chosen in a sparse step: ``score`` (highest kept), whether the rest is ``elided`` from the
    decoder or only left out of the loss, and whether it reads reference losses."""

    score: Callable[[Signals], Tensor] | None  # None: always dense
    elides: bool = True
    needs_reference: bool = True


def _difficulty(s: Signals) -> Tensor:
    return difficulty(s.ema, s.reference, s.lambda_, s.combine)


def _random(s: Signals) -> Tensor:
    return hashes(s.seed, torch.full_like(s.sample, s.step), s.sample, s.ordinal).double()


METHOD_VERSION = "1"
"""Changes whenever the same data, seed and weights would be gated otherwise; records of another version are stale."""

POLICIES: dict[str, Policy] = {
    "regate": Policy(_difficulty),
    "dense": Policy(None, elides=False, needs_reference=False),
    "random": Policy(_random, needs_reference=False),
    # RHO-1 style: the same scores gate the loss, everything is computed.
    "loss_only": Policy(_difficulty, elides=False),
}
"""Policies by name; ``POLICIES["mine"] = Policy(score)`` adds one for ``ReGateConfig(policy="mine")``."""


@dataclass(frozen=True)
class Gate:
    """A decision about one micro-batch. bool [B, L]; ``active`` in position space, the others in predictor space."""

    target: Tensor
    candidate: Tensor
    kept: Tensor
    supervised: Tensor
    active: Tensor
    score: Tensor | None  # float [B, L]; None in a dense step
    elides: bool  # whether the decoder runs on ``active`` only
    ratio: float


def decide(
    policy: Policy,
    signals: Signals,
    labels: Tensor,
    attended: Tensor,
    special_ids: Tensor,
    ratio: float,
    active_set: str = "predictors",
) -> Gate:
    """The gate of one micro-batch (steps 2-4 of the method).

    labels int64 [B, L] (-100 = no target), attended bool [B, L], special_ids int64 [S]: tokens that are never
    candidates. ``ratio`` 1 is dense: everything kept, everything computed. Raises ValueError if a candidate's score
    is NaN, naming the sample.
    """
    shifted = shift_labels(labels)
    target = shifted != IGNORE
    candidate = target & ~torch.isin(shifted, special_ids)
    if ratio >= 1 or policy.score is None:
        return Gate(target, candidate, target, target, attended, None, False, 1.0)

    score = policy.score(signals)
    unscored = (candidate & score.isnan()).any(dim=1)
    if unscored.any():
        raise ValueError(
            f"samples {signals.sample[unscored, 0].tolist()} have targets without a score: their reference losses are "
            "missing or NaN. Run add_reference_losses on this data set again."
        )
    tie = hashes(signals.seed, signals.sample, signals.ordinal)
    kept = select(score, candidate, ratio, tie) | (target & ~candidate)
    if not policy.elides:
        return Gate(target, candidate, kept, kept, attended, score, False, ratio)
    special = torch.isin(labels, special_ids) & (labels != IGNORE)
    active = active_positions(labels, attended, special, kept, active_set)
    # Where the predictor of a kept target is elided, variant (a) predicts from the embedding that passed through and
    # variant (b) has nothing to predict from.
    supervised = kept & active if active_set == "kept-unsupervised" else kept
    return Gate(target, candidate, kept, supervised, active, score, True, ratio)


def signals_of(
    labels: Tensor,
    sample: Tensor,
    ema: Tensor,
    reference: Tensor,
    *,
    step: int,
    seed: int,
    lambda_: float,
    combine: str,
) -> Signals:
    """Signals of a batch from labels [B, L], sample ids [B] and already spread ``ema`` and ``reference`` [B, L]."""
    target = shift_labels(labels) != IGNORE
    return Signals(ema, reference, sample[:, None].expand_as(labels), ordinals(target), step, seed, lambda_, combine)
