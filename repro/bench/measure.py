"""Measuring one workload: rounds of all contestants in turn, the teacher, gating's share, memory."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from regate.accounting import FlopModel
from regate.reference import TextTeacher, score_rows
from regate.scoring import IGNORE, shift_labels
from repro.bench.bound import contestant_flops, teacher_share
from repro.bench.contestants import BUILDERS, Arena, obstacle
from repro.bench.gating import Meter, SavedBytes, reading_seconds
from repro.bench.lanes import Lane, synchronize
from repro.bench.verdicts import MIN_ROUNDS
from repro.bench.workloads import Workload

MAX_ROUNDS, OTHERS_EVERY, WARM_UP = 200, 15, 2


@dataclass
class Measured:
    """What a workload gave; lists have one entry a round, None where a contestant sat a round out. Seconds, bytes."""

    times: dict[str, list[float | None]] = field(default_factory=dict)
    flops: dict[str, float] = field(default_factory=dict)
    gating: dict[str, list[float]] = field(default_factory=dict)  # part -> seconds; "step": of the metered steps
    reading: list[float] = field(default_factory=list)
    teacher: dict[str, list[float]] = field(default_factory=dict)  # ours, naive -> seconds
    teacher_share: float | None = None
    memory: dict[str, int] = field(default_factory=dict)  # dense, gated -> bytes
    memory_share: float | None = None


def measure(workload: Workload, device: str, folder: Path, seed: int, rounds: int | None, say: Callable) -> Measured:
    """Build the contestants, warm them up, and take all measurements. ``rounds`` replaces the workload's own number."""
    arena = Arena.of(workload, device, folder, seed)
    found = Measured()
    teacher_rounds(arena, rounds or MIN_ROUNDS, found)
    missing = {name: why for name in workload.contestants if (why := obstacle(name, workload, device))}
    for name, why in missing.items():
        say(f"{workload.name}: {name} sits out: it {why}")
    lanes = {name: Lane(BUILDERS[name](arena)) for name in workload.contestants if name not in missing}
    try:
        warm = {name: min(lane.step() for _ in range(WARM_UP)) for name, lane in lanes.items()}
        count = rounds or number_of_rounds(workload, warm)
        say(f"{workload.name}: {count} rounds, about {count * round_seconds(workload, warm):.0f} s")
        run_rounds(arena, lanes, count, found)
        for name in [n for n in ("dense", "gated") if n in lanes]:
            with_hooks = SavedBytes(arena.model, arena.model.device)
            lanes[name].step(with_hooks)
            found.memory[name] = with_hooks.bytes
        if "gated" in lanes:
            tokens = lanes["gated"].trainer._last_entry["tokens"]
            found.memory_share = tokens.active / (tokens.visual + tokens.prompt + tokens.answer)
    finally:
        for lane in lanes.values():
            lane.close()
    return found


def round_seconds(workload: Workload, warm: dict[str, float]) -> float:
    """An average round."""
    return sum(s if name in workload.timed else s / OTHERS_EVERY for name, s in warm.items())


def number_of_rounds(workload: Workload, warm: dict[str, float]) -> int:
    """As many as fit into the workload's seconds, within bounds."""
    return max(workload.rounds, min(MAX_ROUNDS, int(workload.seconds / round_seconds(workload, warm))))


def run_rounds(arena: Arena, lanes: dict[str, Lane], count: int, found: Measured) -> None:
    """A B C, C B A, A B C, ...: a drift of the machine meets all contestants alike."""
    timed = arena.workload.timed
    found.times = {name: [None] * count for name in lanes}
    sums: dict[str, list[float]] = {name: [] for name in lanes}
    meter = Meter(lanes["gated"].trainer) if "gated" in lanes else None
    apart = arena.device != "cpu"  # on a GPU a meter waits for kernels: not in a step that is timed
    reader = arena.rows.select_columns(["sample_id", "reference_losses"])
    for number in range(count):
        for name in list(lanes)[:: 1 if number % 2 == 0 else -1]:
            if name not in timed and number % OTHERS_EVERY:
                continue
            metered = meter if name == "gated" and not apart else None
            with metered or contextlib.nullcontext():
                seconds = lanes[name].step()
            found.times[name][number] = seconds
            if metered is not None:
                _note(found.gating, metered, seconds)
            sums[name].append(flops_of(arena, lanes[name].trainer, name))
        if meter is not None and apart:
            with meter:
                seconds = lanes["gated"].step()
            _note(found.gating, meter, seconds)
        size = arena.workload.batch
        start = number * size % (len(arena.rows) - size + 1)
        found.reading.append(reading_seconds(reader, list(range(start, start + size))))
    found.flops = {name: sum(values) / len(values) for name, values in sums.items()}


def _note(gating: dict[str, list[float]], meter: Meter, seconds: float) -> None:
    for part, value in (meter.seconds | {"step": seconds}).items():
        gating.setdefault(part, []).append(value)


def flops_of(arena: Arena, trainer: Any, name: str) -> float:
    """FLOPs of the step just run: counted by our trainer, from the shapes for the others."""
    entry = getattr(trainer, "_last_entry", None)
    if entry:
        return entry["decoder_flops"] + entry["head_flops"]
    model = FlopModel.of(arena.model.get_decoder(), arena.model.get_output_embeddings())
    return contestant_flops(name, arena.workload, model, arena.model.get_decoder().config.num_hidden_layers)


def teacher_rounds(arena: Arena, rounds: int, found: Measured) -> None:
    """The teacher, in turn with a naive forward pass over the full length that computes all logits.

    Both score the same rows, twice as many as fit into a batch of full length: the token budget of a batch is the same
    for both, and compacted rows fit in together.
    """
    workload = arena.workload
    at_once = max(1, workload.batch // 2)
    teacher = TextTeacher.of(arena.model, [arena.model.config.image_token_id], arena.tokenizer.pad_token_id)
    batch = arena.collator([arena.rows[i] for i in range(2 * at_once)])
    rows = list(zip(batch["input_ids"], batch["labels"], strict=True))
    device = arena.model.device
    halves = [(rows_of.to(device), labels.to(device)) for rows_of, labels in zip(
        batch["input_ids"].split(at_once), batch["labels"].split(at_once), strict=True)]  # fmt: skip
    contestants: dict[str, Callable[[], Any]] = {
        "ours": lambda: score_rows(teacher, rows, batch_tokens=at_once * workload.positions),
        "naive": lambda: [naive_scores(teacher, *half) for half in halves],
    }
    found.teacher = {name: [] for name in contestants}
    for number in range(-1, rounds):  # round -1 warms up
        for name in list(contestants)[:: 1 if number % 2 == 0 else -1]:
            start = time.perf_counter()
            contestants[name]()
            synchronize(device)
            if number >= 0:
                found.teacher[name].append(time.perf_counter() - start)
    model = FlopModel.of(arena.model.get_decoder(), arena.model.get_output_embeddings())
    found.teacher_share = teacher_share(workload, model)


def naive_scores(teacher: TextTeacher, input_ids: Tensor, labels: Tensor) -> Tensor:
    """Per-token losses [B, L] the plain way: every position of the full sequence computed, all logits in one piece."""
    ids = input_ids.masked_fill(input_ids == teacher.placeholder_ids[0], teacher.pad_id)
    with teacher.frozen():
        hidden = teacher.decoder(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)[0]
        logits = teacher.head(hidden).float()
        losses = nn.functional.cross_entropy(
            logits.flatten(0, 1), shift_labels(labels).flatten(), reduction="none", ignore_index=IGNORE
        )
    return losses.view_as(labels)
