"""What a step costs: tokens by kind, decoder and head FLOPs, time, memory - and the per-step log that keeps it."""

import contextlib
import json
import logging
import os
import resource
import sys
import time
from array import array
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from regate.integrity import hash_file, write_whole
from regate.scoring import IGNORE, shift_labels

logger = logging.getLogger(__name__)
LOG_STATE = "steps.json"
_PENDING = 100  # steps that a log holds back at most


@dataclass(frozen=True)
class Tokens:
    """Positions of a batch by kind. visual + prompt + answer + padding = all positions; target counts predictable
    labels; active of them the decoder computes; supervised targets enter the loss (the paper's count)."""

    visual: int = 0
    prompt: int = 0
    answer: int = 0
    padding: int = 0
    target: int = 0
    active: int = 0
    supervised: int = 0

    def __add__(self, other: "Tokens") -> "Tokens":
        return Tokens(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


def count_tokens(
    input_ids: Tensor,
    labels: Tensor,
    attended: Tensor,
    placeholder_ids: Tensor,
    active: Tensor | None = None,
    supervised: Tensor | None = None,
) -> Tensor:
    """Counts of a batch in the order of :class:`Tokens`' fields, int64 [7], on the batch's device.

    All arguments [B, L] but ``placeholder_ids`` [P]; None: everything is active, every target supervised.
    """
    visual = torch.isin(input_ids, placeholder_ids) & attended
    answer = (labels != IGNORE) & attended & ~visual
    target = shift_labels(labels) != IGNORE
    kinds = [
        visual,
        attended & ~visual & ~answer,
        answer,
        ~attended,
        target,
        attended if active is None else active,
        target if supervised is None else supervised,
    ]
    return torch.stack([k.sum() for k in kinds])


def causal_pairs(active: Tensor) -> Tensor:
    """(query, key) pairs that causal attention needs on ``active`` bool [B, L]: sum over rows of n(n+1)/2, int64 []."""
    n = active.sum(dim=1)
    return (n * (n + 1) // 2).sum()


@dataclass(frozen=True)
class FlopModel:
    """Forward plus backward FLOPs of decoder layers and head, multiply and add counted as two.

    ``linear``: weights of the layers' linear maps (FLOPs of a token = 2 x that); ``attention``: layers x heads x head
    size summed, FLOPs of a (query, key) pair = 4 x that; ``head``: hidden x vocabulary. Backward counts twice the
    forward where weights train; frozen weights cost once, for the gradient of the input.
    """

    linear: int
    linear_trained: int
    attention: int
    head: int
    head_trained: int

    @classmethod
    def of(cls, decoder: nn.Module, head: nn.Module) -> "FlopModel":
        """Read off a decoder and its head; LoRA matrices count as the linear maps that they are."""
        config = decoder.config
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        maps = [p for n, p in decoder.named_parameters() if p.ndim == 2 and "embed" not in n]
        tops = [p for p in head.parameters() if p.ndim == 2]
        return cls(
            linear=sum(p.numel() for p in maps),
            linear_trained=sum(p.numel() for p in maps if p.requires_grad),
            attention=config.num_hidden_layers * config.num_attention_heads * size,
            head=sum(p.numel() for p in tops),
            head_trained=sum(p.numel() for p in tops if p.requires_grad),
        )

    def decoder_step(self, positions: int, pairs: int, backward: bool = True) -> float:
        """FLOPs of the layers on ``positions`` computed positions with ``pairs`` (query, key) pairs among them."""
        linear, attention = 2 * self.linear * positions, 4 * self.attention * pairs
        if not backward:
            return float(linear + attention)
        return float(2 * linear + 2 * self.linear_trained * positions + 3 * attention)

    def head_step(self, rows: int, backward: bool = True) -> float:
        """FLOPs of the head on ``rows`` positions."""
        if not backward:
            return 2.0 * self.head * rows
        return 2.0 * rows * (2 * self.head + self.head_trained)


def peak_memory_bytes() -> int:
    """Peak memory since :func:`reset_peak_memory`: of the GPU's allocator where there is one, else resident memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError):  # not Linux: the peak of the whole process
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def reset_peak_memory() -> None:
    """Forget the peak so far, where the system lets us."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


class StepClock(TrainerCallback):
    """Seconds of each optimizer step, data loading included, evaluation and checkpointing left out.

    Works in any Trainer. ``seconds`` holds the steps of this process; on a GPU kernels are waited for at step ends.
    ``data_seconds`` holds how much of them went by until batches were there, where they come through :meth:`waiting`.
    Peak memory is counted anew after each pause, so that an evaluation does not stand in it.
    """

    def __init__(self) -> None:
        self.seconds = array("d")
        self.data_seconds = array("d")
        self._last = self._waited = 0.0

    def waiting(self, batches: Iterator) -> Iterator:
        """The same batches; counts how long each was waited for."""
        while True:
            start = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            finally:
                self._waited += time.perf_counter() - start
            yield batch

    def restart(self, *args, **kwargs) -> None:
        """Leave the time since the last step out: something other than training went on."""
        reset_peak_memory()
        self._last, self._waited = time.perf_counter(), 0.0

    on_train_begin = on_evaluate = on_save = restart

    def on_step_end(self, args, state, control, **kwargs):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.seconds.append(now - self._last)
        self.data_seconds.append(self._waited)
        self._last, self._waited = now, 0.0


class StepLog:
    """One JSON line an optimizer step, appended to a file; what lies past the step that a run resumes at is dropped.

    A checkpoint takes the log's `state` along: its bytes and their hash. Resumed from there, the log is that again, to
    the byte, or the run does not go on.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        self._pending: list[dict[str, Any]] = []

    def add(self, **entry: Any) -> None:
        """Take one step's numbers; ``step`` among them."""
        self._pending.append({k: asdict(v) if isinstance(v, Tokens) else v for k, v in entry.items()})
        if len(self._pending) >= _PENDING:
            self.flush()

    def flush(self) -> None:
        """Append what is pending."""
        if self._pending:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as file:
                file.writelines(json.dumps(entry) + "\n" for entry in self._pending)
            self._pending = []

    def save_state(self, directory: str | os.PathLike[str]) -> None:
        """Write into a checkpoint what the log holds now."""
        self.flush()
        size = self.path.stat().st_size if self.path.exists() else 0
        state = {"bytes": size, "xxh3": hash_file(self.path, flush=True) if size else None}
        (Path(directory) / LOG_STATE).write_text(json.dumps(state))

    def rewind(self, step: int, checkpoint: str | os.PathLike[str] | None = None) -> None:
        """Keep only steps before ``step``, in memory and in the file: with ``checkpoint``, what its state says.

        Raises ValueError where the file no longer begins with that; a log that is gone is told of, and begun anew.
        """
        self._pending = []
        self.path.parent.mkdir(parents=True, exist_ok=True)
        state = Path(checkpoint) / LOG_STATE if checkpoint is not None else None
        if state is None or not state.is_file():
            entries = [e for e in read_steps(self.path) if e["step"] < step]
            write_whole(self.path, "".join(json.dumps(e) + "\n" for e in entries))
            return
        then = json.loads(state.read_text())
        if then["bytes"] and not self.path.exists():
            logger.warning("%s is gone: the log of the steps before %d is lost", self.path, step)
        elif then["bytes"]:
            size = self.path.stat().st_size
            if size < then["bytes"] or hash_file(self.path, length=then["bytes"]) != then["xxh3"]:
                raise ValueError(
                    f"{self.path}: the log of the steps before {step} is not what it was when {checkpoint} was written "
                    f"({then['bytes']} bytes then, {size} now). Move it away to go on without it, or resume from "
                    "another checkpoint."
                )
            os.truncate(self.path, then["bytes"])
        else:
            self.path.unlink(missing_ok=True)


def read_steps(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Entries of a step log, one dict a step; a last line cut short by a kill is left out. [] without a file."""
    path = Path(path)
    if not path.exists():
        return []
    entries = []
    for number, line in enumerate(lines := path.read_text().split("\n")):
        if not line:
            continue
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number == len(lines) - 1:
                break
            raise ValueError(f"{path}, line {number + 1}: no JSON ({error}). Delete the line or the file.") from error
    return entries
