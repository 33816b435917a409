"""What it costs to seal a checkpoint and to read it again before it is used, beside writing it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file

from regate.integrity import hash_file, require_whole, seal, unseal
from repro.faults import nano
from repro.faults.processes import run

BYTES = 2**30
ROUNDS = 3


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _measure(folder: Path, size: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.safetensors"
    weights = {"w": torch.randint(-128, 127, (size,), dtype=torch.int8)}
    rounds = []
    for _ in range(ROUNDS):
        seconds = {"write": _timed(lambda: save_file(weights, path))}
        with path.open("rb") as file:
            seconds["to the disk"] = _timed(partial(os.fsync, file.fileno()))
        seconds["hash"] = _timed(lambda: hash_file(path))
        seconds["seal, all of it"] = _timed(lambda: seal(folder))
        seconds["read again"] = _timed(lambda: require_whole(folder))
        unseal(folder)
        rounds.append(seconds)
    best = {name: min(r[name] for r in rounds) for name in rounds[0]}
    (folder / nano.OUTCOME).write_text(json.dumps({"bytes": size, "seconds": best}))
    path.unlink()


def measure(folder: Path, size: int = BYTES) -> dict:
    """{"bytes", "seconds": {what: the best of three rounds}} for one file; page cache warm, as after a save."""
    run(_measure, folder, size, log=folder.with_suffix(".log"))
    return nano.result(folder)
