"""A long run of a tiny model: the memory of its process must not grow."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from repro.faults import nano
from repro.faults.processes import start

STEPS, EVERY = 20_000, 500


def resident_bytes() -> int:
    """Of this process, now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Memory(TrainerCallback):
    """Reads the resident memory every so many steps."""

    def __init__(self, every: int):
        self.every = every
        self.measured: list[list[int]] = []

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self.every == 0:
            self.measured.append([state.global_step, resident_bytes()])


def train(folder: Path, steps: int, every: int) -> None:
    """The run; writes what was measured."""
    made = nano.trainer(
        folder, steps, logging_steps=10, save_steps=max(1, steps // 10), trace_samples=[], learning_rate=1e-4
    )
    memory = Memory(every)
    made.add_callback(memory)
    made.train()
    state = (folder / f"checkpoint-{steps}" / "trainer_state.json").stat().st_size
    said = {"steps": steps, "measured": memory.measured, "trainer_state_bytes": state}
    (folder / nano.OUTCOME).write_text(json.dumps(said))


def measure(folder: Path, steps: int = STEPS, every: int = EVERY) -> dict[str, Any]:
    """{"steps", "measured": [[step, bytes], ...], "trainer_state_bytes"} of a run in a process of its own."""
    child = start(train, folder, steps, every, log=folder.with_suffix(".log"))
    if child.wait(3600) != 0:
        raise RuntimeError(f"the long run failed:\n{child.words()}")
    return nano.result(folder)
