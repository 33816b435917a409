"""Follows a run: evaluates on validation at fixed steps, keeps the curve and a snapshot of the weights at each point.

Works in the stock Trainer and in ours. The clock is stopped meanwhile; a run that resumes goes on with its curve.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback

from regate.accounting import (
    FlopModel,
    StepClock,
    StepLog,
    Tokens,
    causal_pairs,
    count_tokens,
    peak_memory_bytes,
    read_steps,
)
from regate.integrity import seal, unseal, write_whole


class Follower(TrainerCallback):
    """Evaluates before the first step, every ``every`` steps and after the last one; ``snapshots``: keeps weights."""

    def __init__(
        self,
        folder: Path,
        clock: StepClock,
        every: int,
        evaluate: Callable[[nn.Module], dict[str, float]],
        snapshots: bool = True,
    ):
        self.folder, self.clock, self.every, self.evaluate = folder, clock, every, evaluate
        self.snapshots = snapshots
        self.points: list[dict[str, Any]] = []

    @property
    def _path(self) -> Path:
        return self.folder / "curve.json"

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        if self._path.exists():
            # At the resumed step the point is there if the evaluation ended before the kill.
            self.points = [p for p in json.loads(self._path.read_text()) if p["step"] <= state.global_step]
        if state.global_step not in [p["step"] for p in self.points]:
            self._visit(model, state.global_step)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step % self.every == 0 or state.global_step == state.max_steps:
            self._visit(model, state.global_step)

    def _visit(self, model: nn.Module, step: int) -> None:
        self.points.append({"step": step, "metrics": self.evaluate(model)})
        if self.snapshots and (step % self.every == 0 or step == 0):
            snapshot = self.folder / "snapshots" / str(step)
            unseal(snapshot)
            model.save_pretrained(snapshot)
            seal(snapshot)
        write_whole(self._path, json.dumps(self.points))
        self.clock.restart()


class CountingCollator:
    """Counts what a collator's batches hold, for the stock Trainer, which has no gate that would."""

    def __init__(self, collator: Callable, placeholder_ids: torch.Tensor):
        self.collator, self.placeholder_ids = collator, placeholder_ids
        self.counts: list[list[int]] = []  # a batch: Tokens' fields, causal pairs, positions of the padded batch
        self.lengths: list[torch.Tensor] = []  # a batch: attended positions of each row [B]

    def __call__(self, rows: list[dict]) -> dict:
        batch = self.collator(rows)
        attended = batch["attention_mask"].bool()
        counts = count_tokens(batch["input_ids"], batch["labels"], attended, self.placeholder_ids)
        self.counts.append([*counts.tolist(), int(causal_pairs(attended)), attended.numel()])
        self.lengths.append(attended.sum(1))
        return batch


class StockLog(TrainerCallback):
    """Writes the log of steps that ReGateTrainer writes itself; the stock Trainer computes logits at all positions.

    With layerwise dropping, ``kept`` (step, length of the padded batch) -> positions of each row that layers compute
    which drop, and ``whole`` is the share of the layers that do not. FLOPs and active positions are then means over
    layers; as elsewhere, padding does not count.
    """

    kept: Callable[[int, int], int] | None = None
    whole: float = 1.0

    def __init__(self, path: Path, collator: CountingCollator, clock: StepClock, flops: FlopModel):
        self.log, self.collator, self.clock, self.flops = StepLog(path), collator, clock, flops
        self._first = 0

    def on_train_begin(self, args, state, control, **kwargs):
        self._first = state.global_step
        self.log.rewind(state.global_step)

    def on_step_end(self, args, state, control, **kwargs):
        step = state.global_step - 1
        *kinds, pairs, positions = self.collator.counts[step - self._first]
        tokens = Tokens(*kinds)
        decoder = self.flops.decoder_step(tokens.active, pairs)
        if self.kept is not None:
            lengths = self.collator.lengths[step - self._first]
            few = lengths.clamp(max=self.kept(step, positions // len(lengths)))
            sparse = self.flops.decoder_step(int(few.sum()), int((few * (few + 1) // 2).sum()))
            decoder = self.whole * decoder + (1 - self.whole) * sparse
            active = round(self.whole * tokens.active + (1 - self.whole) * int(few.sum()))
            tokens = replace(tokens, active=active)
        self.log.add(
            step=step,
            ratio=1.0,
            visual_ratio=1.0,
            tokens=tokens,
            decoder_flops=decoder,
            head_flops=self.flops.head_step(positions),
            seconds=self.clock.seconds[-1],
            peak_memory_bytes=peak_memory_bytes(),
            skipped=0,
        )
        self.log.flush()


def totals(path: Path, steps: int) -> dict[str, Any]:
    """Sums over the first ``steps`` steps of a log: tokens and FLOPs by kind, seconds, peak memory, skipped samples."""
    entries = [e for e in read_steps(path) if e["step"] < steps]
    if len(entries) != steps:
        raise ValueError(f"{path} holds {len(entries)} of {steps} steps: delete the run's folder and run it again")
    tokens = sum((Tokens(**e["tokens"]) for e in entries), Tokens())
    decoder, head = (sum(e[f"{part}_flops"] for e in entries) for part in ("decoder", "head"))
    kinds = ("visual", "prompt", "target", "active", "supervised", "padding")
    return {
        "tokens": {k: getattr(tokens, k) for k in kinds} | {"paper": tokens.supervised},
        "flops": {"decoder": decoder, "head": head, "total": decoder + head},
        "train_seconds": sum(e["seconds"] for e in entries),
        "peak_memory_bytes": max((e["peak_memory_bytes"] for e in entries), default=None),
        "skipped_samples": sum(e["skipped"] for e in entries),
    }
