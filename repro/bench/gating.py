"""What gating costs inside a real step: the gate's decision, gather and scatter with their backward, bookkeeping.

The trainer's own methods are timed, and what stands between a hook before Elision's hooks and one after them. On a GPU
every reading waits for the kernels, so steps that are metered are not steps that are timed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from regate import ReGateTrainer
from repro.bench.lanes import synchronize

METHODS = ("_gated", "_observe", "_finish_step")  # scores, selection and counts; losses for the EMA; EMA and log


class Meter:
    """While installed, sums the seconds of gating into ``seconds``, by part."""

    def __init__(self, trainer: ReGateTrainer):
        self.trainer = trainer
        self.seconds: dict[str, float] = {}
        self._since: dict[str, float] = {}

    def __enter__(self) -> Meter:
        self.seconds = {}
        for name in METHODS:
            setattr(self.trainer, name, self._timed(name.strip("_"), getattr(self.trainer, name)))
        decoder, head = self.trainer.elision.decoder, self.trainer.elision.head
        self._handles = [
            decoder.register_forward_pre_hook(self._before_gather, with_kwargs=True, prepend=True),
            decoder.register_forward_pre_hook(self._after_gather, with_kwargs=True),
            decoder.register_forward_hook(self._before_scatter, prepend=True),
            decoder.register_forward_hook(self._after_scatter),
            head.register_forward_pre_hook(lambda *_: self._start("rows"), prepend=True),
            head.register_forward_pre_hook(lambda *_: self._stop("rows")),
        ]
        return self

    def __exit__(self, *error: Any) -> None:
        for name in METHODS:
            delattr(self.trainer, name)
        for handle in self._handles:
            handle.remove()

    @property
    def total(self) -> float:
        """Seconds of gating since the meter was installed."""
        return sum(self.seconds.values())

    def _timed(self, part: str, method: Callable) -> Callable:
        def timed(*args: Any, **kwargs: Any) -> Any:
            self._start(part)
            result = method(*args, **kwargs)
            self._stop(part)
            return result

        return timed

    def _start(self, part: str) -> None:
        synchronize(self.trainer.args.device)
        self._since[part] = time.perf_counter()

    def _stop(self, part: str) -> None:
        synchronize(self.trainer.args.device)
        since = self._since.pop(part)
        self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - since

    # Backward runs the other way round: the gradient of what came out arrives first.

    def _before_gather(self, decoder: Any, args: tuple, kwargs: dict) -> None:
        self._on_gradient(kwargs.get("inputs_embeds"), lambda: self._stop("gather_backward"))
        self._start("gather")

    def _after_gather(self, decoder: Any, args: tuple, kwargs: dict) -> None:
        self._stop("gather")
        self._on_gradient(kwargs.get("inputs_embeds"), lambda: self._start("gather_backward"))

    def _before_scatter(self, decoder: Any, args: tuple, output: Any) -> None:
        self._on_gradient(output[0], lambda: self._stop("scatter_backward"))
        self._start("scatter")

    def _after_scatter(self, decoder: Any, args: tuple, output: Any) -> None:
        self._stop("scatter")
        self._on_gradient(output[0], lambda: self._start("scatter_backward"))

    def _on_gradient(self, tensor: Tensor | None, action: Callable[[], None]) -> None:
        if tensor is not None and tensor.requires_grad:
            tensor.register_hook(lambda gradient: action())


def reading_seconds(rows: Any, indices: list[int]) -> float:
    """Seconds to read the gate's columns of some rows and batch them, as in training."""
    from regate.collate import GateCollator

    start = time.perf_counter()
    GateCollator(lambda rest: {})(rows.__getitems__(indices))
    return time.perf_counter() - start


class SavedBytes(torch.autograd.graph.saved_tensors_hooks):
    """Bytes that autograd keeps for the backward pass, each storage once, parameters left out; entered in the thread
    that runs the step. On a GPU, ``peak`` is the allocator's peak above what was there before."""

    def __init__(self, model: torch.nn.Module, device: torch.device):
        self.device = device
        self._own = {p.untyped_storage().data_ptr() for p in model.parameters()}
        self._storages: dict[int, int] = {}
        super().__init__(self._pack, lambda saved: saved)

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._own:
            self._storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    def __enter__(self) -> SavedBytes:
        super().__enter__()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self._before = torch.cuda.memory_allocated(self.device)
        return self

    def __exit__(self, *error: Any) -> None:
        if self.device.type == "cuda":
            self.peak = torch.cuda.max_memory_allocated(self.device) - self._before
        super().__exit__(*error)

    @property
    def bytes(self) -> int:
        """What a step kept: saved tensors on a CPU, the allocator's peak on a GPU."""
        return self.peak if self.device.type == "cuda" else sum(self._storages.values())
