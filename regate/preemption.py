"""SIGTERM, as Slurm and clouds send it before they take a machine away: finish the step, save, leave with status 143.

transformers' own ``enable_jit_checkpoint`` waits three seconds, saves between backward and optimizer step, where the
difficulty EMA and the weights are of different steps, does not agree on a step between ranks, and returns as if
training had ended. Hence this.
"""

import logging
import os
import signal
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from transformers import TrainerCallback

logger = logging.getLogger(__name__)
EXIT_STATUS = 128 + signal.SIGTERM


class Preempted(SystemExit):
    """Training was asked to stop (SIGTERM), and a complete checkpoint is there. Uncaught, it ends the process with 143.

    Attributes:
        step: the optimizer step of that checkpoint.
    """

    def __init__(self, output_dir: str, step: int):
        super().__init__(EXIT_STATUS)
        self.step = step
        logger.warning("stopped by SIGTERM: %s/checkpoint-%d is complete, the run goes on from there", output_dir, step)


class Preemption(TrainerCallback):
    """While training, SIGTERM asks for a checkpoint and a stop at the end of the step, on all ranks at the same one.

    An evaluation that is due at that very step is left out: it may take longer than the machine is there. A handler
    that the program has set itself is left as it is; so is everything where training does not run in the main thread.
    """

    def __init__(self, accelerator: Any):
        self.accelerator = accelerator
        self.agreed = False
        self._asked = False
        self._before: Any = None

    def on_train_begin(self, args, state, control, **kwargs):
        self.agreed = self._asked = False
        if threading.current_thread() is not threading.main_thread():
            return
        if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            self._before = signal.signal(signal.SIGTERM, self._ask)
        else:
            logger.info("SIGTERM has a handler already: it is left as it is, and saves nothing")

    def restore(self) -> None:
        """What SIGTERM did before training."""
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
            self._before = None

    def _ask(self, number: int, frame: Any) -> None:
        self._asked = True

    def on_step_end(self, args, state, control, **kwargs):
        asked = self._asked
        if self.accelerator.num_processes > 1:  # the signal reaches ranks in different steps
            flag = torch.tensor(int(asked), device=self.accelerator.device)
            asked = bool(self.accelerator.reduce(flag, "sum").item())
        if asked:
            self.agreed = True
            control.should_log = control.should_save = True  # after which SafeTrainer raises Preempted
            control.should_evaluate = False


def outlive_sigterm(then: Callable[[int], Any] | None) -> Callable[[int], Any]:
    """A ``worker_init_fn``: schedulers signal all processes, and a data loader whose workers die takes the step along.

    The worker leaves when its own parent asks, as it would, and when that is gone.
    """
    return partial(_init_worker, then, os.getpid())


def _init_worker(then: Callable[[int], Any] | None, parent: int, worker: int) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_leave_with_parent, args=(parent,), daemon=True).start()
    if then is not None:
        then(worker)


def _leave_with_parent(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
