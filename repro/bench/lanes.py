"""Real trainers, one optimizer step at a time: each runs its own `train()` in a thread that waits between steps.

So several of them take turns in one process (A B A B ...), and what is timed is the trainer's own loop: fetching the
batch, gating, forward, backward, clipping, the optimizer, callbacks.
"""

from __future__ import annotations

import contextlib
import threading
import time

import torch
from transformers import PrinterCallback, Trainer, TrainerCallback


class Lane:
    """One trainer whose `train()` runs a step when asked; the first one also sets training up."""

    def __init__(self, trainer: Trainer):
        self.trainer = trainer
        self._go, self._rest = threading.Semaphore(0), threading.Semaphore(0)
        self._seconds = 0.0
        self._closing = False
        self._error: BaseException | None = None
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(_Pause(self))
        self._thread = threading.Thread(target=self._train, daemon=True)
        self._thread.start()

    def step(self, around: contextlib.AbstractContextManager | None = None) -> float:
        """Run one optimizer step; its seconds, on a GPU until its kernels are done. ``around`` is entered in the
        trainer's thread, for what is local to a thread."""
        if self._error is None:  # one that failed has nobody left to take the step
            self._around = around or contextlib.nullcontext()
            self._go.release()
            self._rest.acquire()
        if self._error is not None:
            raise self._error
        return self._seconds

    def close(self) -> None:
        """End the training."""
        self._closing = True
        self._around = contextlib.nullcontext()
        self._go.release()
        self._thread.join()

    def _train(self) -> None:
        self._await_turn()
        try:
            if not self._closing:
                self.trainer.train()
                assert self._closing, "max_steps ended before the bench did"
        except BaseException as error:  # it belongs to whoever asked for the step
            self._error = error
            self._rest.release()

    def _await_turn(self) -> None:
        self._go.acquire()
        self._around.__enter__()
        self._started = time.perf_counter()

    def pause(self) -> bool:
        """Called at a step's end, in the trainer's thread: hand over, wait for the next turn; whether to stop."""
        synchronize(self.trainer.args.device)
        self._seconds = time.perf_counter() - self._started
        self._around.__exit__(None, None, None)
        self._rest.release()
        self._await_turn()
        return self._closing


class _Pause(TrainerCallback):
    def __init__(self, lane: Lane):
        self.lane = lane

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = self.lane.pause()
        return control


def synchronize(device: torch.device) -> None:
    """Wait for the kernels of a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
