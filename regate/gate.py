"""Gate policies behind one interface, and what a gate decides about a batch.

A policy scores targets; everything else (how many are kept, ties, markers, the active set) is the same for all.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from regate.scoring import (
    IGNORE,
    active_positions,
    count_kept,
    difficulty,
    draw,
    hashes,
    inclusion,
    ordinals,
    select,
    shift_labels,
)


@dataclass(frozen=True)
class Signals:
    """What a policy may score by; tensors [B, L] in predictor space, losses in nats."""

    ema: Tensor  # the student's EMA of each target's loss, NaN where never observed
    reference: Tensor  # the teacher's loss
    sample: Tensor  # int64 sample ids
    ordinal: Tensor  # int64 ordinal of the target in its sample
    target: Tensor  # bool: a target is predicted here
    step: int  # optimizer step, 0-based
    seed: int
    lambda_: float
    combine: str


@dataclass(frozen=True)
class Policy:
    """How targets are chosen in a sparse step: ``score`` (highest kept), whether the rest is ``elided`` from the
    decoder or only left out of the loss, whether it reads reference losses, and each row's own share.

    ``shares`` (signals, score [B, L], candidate [B, L], ratio) -> ratio of each row, float [B], of about the same mean;
    None: the same for all.

    With ``drawn`` targets are drawn with probabilities proportional to their score, in place of the highest ones, and
    each loss is weighted with the inverse of its probability: the step's loss is the dense one in expectation.
    ``measure`` is what the column ``reference_losses`` must hold: the teacher's ``loss``, or ``dependence`` (how much
    the video changes the prediction, :func:`regate.add_visual_dependence`).
    """

    score: Callable[[Signals], Tensor] | None  # None: always dense
    elides: bool = True
    needs_reference: bool = True
    shares: Callable[[Signals, Tensor, Tensor, float], Tensor] | None = None
    drawn: bool = False
    measure: str = "loss"


def _difficulty(s: Signals) -> Tensor:
    return difficulty(s.ema, s.reference, s.lambda_, s.combine)


def _random(s: Signals) -> Tensor:
    return hashes(s.seed, torch.full_like(s.sample, s.step), s.sample, s.ordinal).double()


FLOOR = 0.2
"""Nats added to the difficulty of a target that is drawn: bounds the weight that a rare one gets."""


def _floored(s: Signals) -> Tensor:
    score = _difficulty(s)  # infinite for unobserved targets with lambda 0, and a probability cannot be
    return torch.where(score.isinf(), s.reference, score) + FLOOR


def _reference(s: Signals) -> Tensor:
    return s.reference


CHUNK = 8
"""Targets in a row that the policy ``chunks`` keeps or leaves together."""


def _chunks(s: Signals) -> Tensor:
    """Mean difficulty of the chunk of :data:`CHUNK` targets that a target lies in."""
    score = _difficulty(s).masked_fill(~s.target, 0)
    chunk = s.ordinal.clamp(min=0) // CHUNK  # [B, L]
    sums = torch.zeros_like(score).scatter_add_(1, chunk, score)
    counts = torch.zeros_like(score).scatter_add_(1, chunk, s.target.to(score.dtype))
    return (sums / counts.clamp(min=1)).gather(1, chunk)


def _earliest(s: Signals) -> Tensor:
    return -s.ordinal.double()


def _uniform(s: Signals) -> Tensor:
    """A number in [0, 1) for each row [B], of the step and the sample alone."""
    return hashes(s.seed, torch.full_like(s.sample[:, 0], s.step), s.sample[:, 0]).double() / 2**63


def _any_length(s: Signals, score: Tensor, candidate: Tensor, ratio: float) -> Tensor:
    """Uniform around ``ratio``, as wide as [0, 1] allows: every target is reached in some step."""
    reach = min(ratio, 1 - ratio)
    return ratio + (2 * _uniform(s) - 1) * reach


def _some_rows_dense(s: Signals, score: Tensor, candidate: Tensor, ratio: float) -> Tensor:
    """A share ``ratio / 2`` of the rows whole, the others sparser, so that the mean is ``ratio``."""
    whole, drawn = ratio / 2, _uniform(s)
    return torch.full_like(drawn, (ratio - whole) / (1 - whole)).masked_fill(drawn < whole, 1.0)


def _hardest_of_batch(s: Signals, score: Tensor, candidate: Tensor, ratio: float) -> Tensor:
    """The share of each row that lies among the hardest ``ratio`` of the micro-batch's candidates."""
    number = count_kept(candidate.sum(), ratio)
    if number == 0:
        return torch.ones(len(score), device=score.device)
    threshold = score[candidate].topk(int(number)).values[-1]
    above = (candidate & (score >= threshold)).sum(1)
    return above.double() / candidate.sum(1).clamp(min=1)


METHOD_VERSION = "1"
"""Changes whenever the same data, seed and weights would be gated otherwise; records of another version are stale."""

POLICIES: dict[str, Policy] = {
    "regate": Policy(_difficulty),
    "dense": Policy(None, elides=False, needs_reference=False),
    "random": Policy(_random, needs_reference=False),
    # RHO-1 style: the same scores gate the loss, everything is computed.
    "loss_only": Policy(_difficulty, elides=False),
    # Beyond the paper. Scores that read a target's own loss prefer surprising labels: what is left of each slot is its
    # unlikely values, and the student learns those too often. Drawing with weights takes that bias away; dependence
    # looks at predictions and never at labels.
    "drawn": Policy(_floored, drawn=True),
    "dependence": Policy(_reference, measure="dependence"),
    "dependence_loss_only": Policy(_reference, elides=False, measure="dependence"),
    "chunks": Policy(_chunks),  # runs of targets, so that most contexts near a kept one are whole
    "earliest": Policy(_earliest, needs_reference=False, shares=_any_length),  # the answer up to a random place
    "mixed": Policy(_difficulty, shares=_some_rows_dense),  # every sparse step sees some whole answers
    "batch": Policy(_difficulty, shares=_hardest_of_batch),  # the ratio adapts to the sample
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
    weight: Tensor | None = None  # float64 [B, L]: of each supervised target's loss; None: 1 for all

    def of_rows(self, rows: Tensor) -> "Gate":
        """The same with no targets in the rows that are False in ``rows`` [B]; what is computed stays."""
        masked = {name: getattr(self, name) & rows[:, None] for name in ("target", "candidate", "kept", "supervised")}
        return replace(self, **masked)


def decide(
    policy: Policy,
    signals: Signals,
    labels: Tensor,
    attended: Tensor,
    special_ids: Tensor,
    ratio: float,
    active_set: str = "predictors",
    visual: Tensor | None = None,
    visual_ratio: float = 1.0,
) -> Gate:
    """The gate of one micro-batch (steps 2-4 of the method).

    labels int64 [B, L] (-100 = no target), attended bool [B, L], special_ids int64 [S]: tokens that are never
    candidates. ``ratio`` 1 is dense: everything kept, everything computed. With ``visual_ratio`` below 1 only that
    share of each row's ``visual`` positions (bool [B, L]) is computed, drawn anew in every step. Raises ValueError if
    a candidate's score is NaN, naming the sample.
    """
    gate = _decide_targets(policy, signals, labels, attended, special_ids, ratio, active_set)
    if visual is None or visual_ratio >= 1:
        return gate
    position = torch.arange(labels.shape[1], device=labels.device)
    drawn = hashes(signals.seed, torch.full_like(signals.sample, signals.step), signals.sample, position)
    seen = select(torch.zeros_like(drawn, dtype=torch.double), visual, visual_ratio, drawn)
    return replace(gate, active=gate.active & (~visual | seen | gate.supervised), elides=True)


def _decide_targets(
    policy: Policy,
    signals: Signals,
    labels: Tensor,
    attended: Tensor,
    special_ids: Tensor,
    ratio: float,
    active_set: str,
) -> Gate:
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
    shares = ratio if policy.shares is None else policy.shares(signals, score, candidate, ratio)
    weight = None
    if policy.drawn:
        probability = inclusion(score, candidate, shares)
        chosen = draw(probability, candidate, _uniform(signals))
        weight = torch.where(chosen, 1 / probability, 1.0)
    else:
        chosen = select(score, candidate, shares, tie)
    kept = chosen | (target & ~candidate)
    if not policy.elides:
        return Gate(target, candidate, kept, kept, attended, score, False, ratio, weight)
    special = torch.isin(labels, special_ids) & (labels != IGNORE)
    # A marker ends the answer: what reaches up to it leaves nothing out.
    reaching = chosen if active_set == "prefix" else kept
    active = active_positions(labels, attended, special, reaching, active_set)
    # Where the predictor of a kept target is elided, variant (a) predicts from the embedding that passed through;
    # variant (b), and a marker behind a prefix, have nothing to predict from.
    supervised = kept & active if active_set in ("kept-unsupervised", "prefix") else kept
    return Gate(target, candidate, kept, supervised, active, score, True, ratio, weight)


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
    rows = sample[:, None].expand_as(labels)
    return Signals(ema, reference, rows, ordinals(target), target, step, seed, lambda_, combine)
