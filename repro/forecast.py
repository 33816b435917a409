"""Tokens and FLOPs of a run before it runs, per sample and over the schedule: pure functions of lengths and shapes.

Legend: a sample has v visual, q prompt and n answer tokens, m of the answer being markers that are never dropped.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from regate.accounting import FlopModel
from repro.meta import Cost


@dataclass(frozen=True)
class Lengths:
    """Tokens of samples by kind. ``prompt``, ``answer``, ``markers``: float [samples]; one entry where assumed."""

    visual: int
    prompt: np.ndarray
    answer: np.ndarray
    markers: np.ndarray

    @classmethod
    def assumed(cls, visual: int, prompt: int, answer: int) -> Lengths:
        """Every sample the same, with one answer and so one marker (end of turn)."""
        return cls(visual, *(np.array([float(x)]) for x in (prompt, answer, min(1, answer))))

    @property
    def positions(self) -> np.ndarray:
        """Length of the whole sequence, [samples]."""
        return self.visual + self.prompt + self.answer

    @property
    def longest(self) -> int:
        """Index of the longest sample."""
        return int(self.positions.argmax())


@dataclass(frozen=True)
class Work:
    """What the decoder and the head do for an average sample."""

    visual: float
    prompt: float
    answer: float
    active: float  # positions that the decoder computes
    pairs: float  # (query, key) pairs among them
    supervised: float  # targets in the loss: the paper's count
    logits: float  # positions that the head computes


def work(lengths: Lengths, ratio: float, all_logits: bool = False) -> Work:
    """An average sample at a keep ratio (1 = dense), with active set ``predictors``.

    Of the n - m candidates ceil(ratio (n - m)) are kept, and the m markers: those are supervised. A kept target's
    predictor is computed, so as many answer positions are active as targets are kept (to one position an answer: the
    first target's predictor is a prompt position, and the last marker predicts nothing). Causal attention over a
    positions has a (a + 1) / 2 pairs. Logits: at every position for the stock Trainer, at supervised targets for ours.
    """
    kept = np.ceil(ratio * (lengths.answer - lengths.markers)) + lengths.markers
    active = lengths.positions - (lengths.answer - kept)
    rows = lengths.positions if all_logits else kept
    mean = [float(np.mean(x)) for x in (lengths.prompt, lengths.answer, active, active * (active + 1) / 2, kept, rows)]
    return Work(float(lengths.visual), *mean)


def teacher_work(lengths: Lengths) -> Work:
    """Text alone, once, forward only: visual tokens are left out before the forward pass."""
    return work(Lengths(0, lengths.prompt, lengths.answer, lengths.markers), 1.0)


@dataclass(frozen=True)
class Flops:
    """FLOPs of one average sample by part, forward and backward; ``recomputed``: what checkpointing computes again."""

    vision: float
    decoder: float
    head: float
    recomputed: float

    @property
    def total(self) -> float:
        return self.vision + self.decoder + self.head + self.recomputed

    def __add__(self, other: Flops) -> Flops:
        return Flops(*(a + b for a, b in zip(self._parts(), other._parts(), strict=True)))

    def __rmul__(self, factor: float) -> Flops:
        return Flops(*(factor * a for a in self._parts()))

    def _parts(self) -> tuple[float, ...]:
        return self.vision, self.decoder, self.head, self.recomputed


def flops_of(done: Work, model: FlopModel, look: Cost, recomputed_look: float) -> Flops:
    """FLOPs of a sample; ``look`` is what vision tower and connector cost, the same for every method.

    With checkpointing each decoder layer's forward pass is computed twice; ``recomputed_look`` is what vision tower and
    connector compute again.
    """
    active, pairs = done.active, done.pairs
    again = model.decoder_step(active, pairs, backward=False)  # type: ignore[arg-type]
    return Flops(
        vision=look.forward + look.backward,
        decoder=model.decoder_step(active, pairs),  # type: ignore[arg-type]
        head=model.head_step(done.logits),  # type: ignore[arg-type]
        recomputed=again + recomputed_look,
    )


def teacher_flops(lengths: Lengths, model: FlopModel) -> float:
    """FLOPs of scoring one average sample."""
    done = teacher_work(lengths)
    decoder = model.decoder_step(done.active, done.pairs, backward=False)  # type: ignore[arg-type]
    return decoder + model.head_step(done.logits, backward=False)  # type: ignore[arg-type]


def dense_share(steps: int, ratio_at: Callable[[int], float]) -> float:
    """Share of optimizer steps that keep everything (Eq. 4 over a whole run)."""
    return sum(ratio_at(step) == 1.0 for step in range(steps)) / steps


def over_schedule(dense: Flops, sparse: Flops, share: float) -> Flops:
    """An average sample of a run in which ``share`` of the steps are dense."""
    return share * dense + (1 - share) * sparse
