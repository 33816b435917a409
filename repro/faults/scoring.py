"""The teacher's scoring is killed at random moments: complete shards stay, at most the open one is scored again."""

from __future__ import annotations

import json
import random
import shutil
import signal
from pathlib import Path
from typing import Any

import torch

from regate import add_reference_losses
from regate.integrity import hash_file
from repro.bench.material import build_rows
from repro.faults import nano
from repro.faults.files import damaged
from repro.faults.processes import kill_after, run, start
from repro.faults.record import Fault

ROWS, SHARD = 96, 4
EQUAL = "went on, equal"


def score(folder: Path) -> None:
    """Score `ROWS` rows in shards; write down the column and how many rows were looked at."""
    model, tokenizer, _ = nano.material()
    rows = build_rows(nano.WORKLOAD, model, tokenizer, ROWS, 0).remove_columns(["reference_losses", "reference_id"])
    seen = 0

    def encode(row: dict[str, Any]) -> dict[str, torch.Tensor]:
        nonlocal seen
        seen += 1
        return {name: torch.tensor(row[name]) for name in ("input_ids", "labels")}

    scored = add_reference_losses(
        rows, model, tokenizer, encode=encode, cache_dir=folder / "shards", shard_rows=SHARD, batch_tokens=64
    )
    (folder / nano.OUTCOME).write_text(json.dumps({"column": scored["reference_losses"][:], "seen": seen}))


def whole_shards(folder: Path) -> list[Path]:
    """Shards that are there and hold what they were written with."""
    found = sorted((folder / "shards").rglob("*.arrow"))
    return [path for path in found if hash_file(path) == path.stem.split("-")[1]]


def reference(folder: Path) -> float:
    """The scoring that nothing is done to; its seconds."""
    return run(score, folder / "scored", log=folder / "scored.log")


def kills(count: int, rng: random.Random, folder: Path, seconds: float) -> list[Fault]:
    """``count`` kills, by SIGKILL and SIGTERM in turn."""
    expected = nano.result(folder / "scored")["column"]
    faults: list[Fault] = []
    while len(faults) < count:
        number = (signal.SIGKILL, signal.SIGTERM)[len(faults) % 2]
        place, moment = folder / "score-killed", rng.uniform(0.05, 0.98) * seconds
        shutil.rmtree(place, ignore_errors=True)
        child = start(score, place, log=folder / "score.log")
        if not kill_after(child, moment, number):
            continue
        child.wait()
        whole = len(whole_shards(place))
        run(score, place, log=folder / "score.log")
        found = nano.result(place)
        wrong = []
        if found["column"] != expected:
            wrong.append("differs in reference_losses")
        if found["seen"] != ROWS - SHARD * whole:
            wrong.append(f"{found['seen']} rows were scored again, {ROWS - SHARD * whole} were missing")
        at = f"after {moment:.2f} s, {whole} of {ROWS // SHARD} shards complete"
        faults.append(Fault("scoring", number.name, "scoring", at, "; ".join(wrong) or EQUAL, not wrong, process=True))
    return faults


def damage(count: int, rng: random.Random, folder: Path) -> list[Fault]:
    """``count`` damaged shards: each is found, scored again, and the column is the same."""
    expected = nano.result(folder / "scored")["column"]
    faults = []
    for _ in range(count):
        path = rng.choice(whole_shards(folder / "scored"))
        kind, detail, restore = damaged(path, rng)
        run(score, folder / "scored", log=folder / "score.log")
        found = nano.result(folder / "scored")
        wrong = []
        if found["column"] != expected:
            wrong.append("differs in reference_losses")
        if found["seen"] != SHARD:
            wrong.append(f"{found['seen']} rows were scored again, {SHARD} were damaged")
        if wrong:
            restore()
        outcome = "; ".join(wrong) or "found, made again, equal"
        faults.append(Fault("scoring", kind, "shard of the reference column", detail, outcome, not wrong))
    return faults
