"""Random-LTD (Yao et al., 2022), the random layerwise token dropping of DeepSpeed, on any decoder with `layers`.

Every layer but the first and the last computes its own random subset of positions; the others skip it unchanged. The
number of positions kept grows linearly to the whole sequence (:class:`Schedule`). All logits are computed, as DeepSpeed
does. Positions are drawn by a hash of (seed, step, micro-batch, layer, row, position): a resumed run draws the same.

    random_ltd = RandomLTD(model, seed=0)
    trainer.add_callback(Arm(random_ltd, Schedule(start=64, steps=200)))

Legend: B rows, L positions, K of them kept, D hidden size.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from regate.elision import Compaction, UnsupportedModel, causal_decoder
from regate.scoring import hashes


@dataclass(frozen=True)
class Schedule:
    """Positions kept in the middle layers: ``start`` at step 0, growing linearly until ``steps``, in whole
    multiples of ``granularity``; from then on all. ``steps`` 0: dense from the start."""

    start: int
    steps: int
    granularity: int = 16

    def __post_init__(self) -> None:
        if self.start < 1 or self.steps < 0 or self.granularity < 1:
            raise ValueError(f"start and granularity must be >= 1 and steps >= 0; got {self}")

    def kept(self, step: int, length: int) -> int:
        """Positions of a sequence of ``length`` that a middle layer computes in optimizer step ``step`` (0-based)."""
        if step >= self.steps or self.start >= length:
            return length
        grown = self.start + (length - self.start) * step / self.steps
        return min(length, max(self.start, int(grown // self.granularity) * self.granularity))


class RandomLTD:
    """Hooks on the middle layers of ``model``'s decoder; they do nothing outside of ``with random_ltd(...)``."""

    def __init__(self, model: nn.Module, seed: int = 0):
        self.decoder = causal_decoder(model)
        layers = getattr(self.decoder, "layers", None)
        if layers is None or len(layers) < 3:
            raise UnsupportedModel(f"{type(self.decoder).__name__} has no `layers`, three at least: none to drop in")
        self.seed = seed
        self._schedule: Schedule | None = None
        self._step = self._micro_batch = 0
        self._attended: Tensor | None = None  # bool [B, L] of the micro-batch under way
        self._chosen: dict[int, tuple[Compaction, Tensor]] = {}
        self._handles = [self.decoder.register_forward_pre_hook(self._begin, with_kwargs=True)]
        for number, layer in list(enumerate(layers))[1:-1]:
            self._handles.append(layer.register_forward_pre_hook(self._before(number), with_kwargs=True))
            self._handles.append(layer.register_forward_hook(self._after(number)))

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()

    def arm(self, schedule: Schedule, step: int) -> None:
        """Drop tokens until :meth:`disarm`: forward and backward of optimizer step ``step``."""
        self._schedule, self._step, self._micro_batch = schedule, step, -1

    def disarm(self) -> None:
        """Compute everything again."""
        self._schedule, self._attended = None, None
        self._chosen.clear()

    @contextlib.contextmanager
    def __call__(self, schedule: Schedule, step: int) -> Iterator[None]:
        """:meth:`arm` and :meth:`disarm` around a block."""
        self.arm(schedule, step)
        try:
            yield
        finally:
            self.disarm()

    def positions(self, layer: int, batch: int, length: int, kept: int, device: Any = "cpu") -> Tensor:
        """Positions int64 [B, K] that ``layer`` computes in the micro-batch under way, rising; attended ones first."""
        keys = [torch.tensor(key, device=device) for key in (self._step, self._micro_batch, layer)]
        rows, slots = torch.arange(batch, device=device)[:, None], torch.arange(length, device=device)
        drawn = hashes(self.seed, *keys, rows, slots)  # [B, L]
        if self._attended is not None:
            drawn = drawn.masked_fill(~self._attended, torch.iinfo(drawn.dtype).max)
        return drawn.argsort(dim=1)[:, :kept].sort(dim=1).values

    def _begin(self, decoder: nn.Module, args: tuple, kwargs: dict) -> None:
        if self._schedule is not None:
            self._micro_batch += 1
            mask = kwargs.get("attention_mask")
            self._attended = mask.bool() if isinstance(mask, Tensor) and mask.ndim == 2 else None

    def _before(self, number: int):
        def hook(layer: nn.Module, args: tuple, kwargs: dict):
            if self._schedule is None:
                return None
            hidden = args[0] if args else kwargs["hidden_states"]  # [B, L, D]
            batch, length = hidden.shape[:2]
            kept = self._schedule.kept(self._step, length)
            if kept == length:
                return None
            index = self.positions(number, batch, length, kept, hidden.device)
            active = torch.zeros(batch, length, dtype=torch.bool, device=hidden.device).scatter_(1, index, True)
            compaction = Compaction(active, index, torch.ones_like(index, dtype=torch.bool))
            self._chosen[number] = (compaction, hidden)
            given = dict(kwargs) | {"hidden_states": hidden}
            return (), {name: _kept(name, value, compaction) for name, value in given.items()}

        return hook

    def _after(self, number: int):
        def hook(layer: nn.Module, args: tuple, output):
            if number not in self._chosen:
                return None
            compaction, hidden = self._chosen.pop(number)
            if isinstance(output, tuple):
                return (compaction.scatter(output[0], hidden), *output[1:])
            return compaction.scatter(output, hidden)

        return hook


def _kept(name: str, value: Any, compaction: Compaction) -> Any:
    """A layer's input at the kept positions."""
    if name == "hidden_states":
        return compaction.gather(value)
    if name == "position_embeddings":  # cosines and sines [B or 1, L, ...]
        return tuple(compaction.gather(part) for part in value)
    if name == "position_ids" and value is not None:
        return compaction.gather_last(value)
    if name == "attention_mask" and value is not None:  # [B, 1, L, L]; None: causal, as is any subset in order
        return compaction.gather_square(value)
    if isinstance(value, Tensor) and value.ndim > 1:
        raise UnsupportedModel(f"a decoder layer was given `{name}`, which Random-LTD does not understand")
    return value


class Arm(TrainerCallback):
    """Arms Random-LTD for the steps of any Trainer; evaluation, between steps, computes everything."""

    def __init__(self, random_ltd: RandomLTD, schedule: Schedule):
        self.random_ltd, self.schedule = random_ltd, schedule

    def on_step_begin(self, args, state, control, **kwargs):
        self.random_ltd.arm(self.schedule, state.global_step)

    def on_step_end(self, args, state, control, **kwargs):
        self.random_ltd.disarm()
