"""`python -m repro bench`: measure every workload, write the record, print the table."""

from __future__ import annotations

import dataclasses
import gc
import sys
import tempfile
import time
import warnings
from collections.abc import Collection
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import transformers

from eval.machine import ROOT, environment
from regate.gate import METHOD_VERSION
from repro.bench import table
from repro.bench.measure import measure
from repro.bench.record import BenchRecord, write
from repro.bench.workloads import nano, workloads


def bench(device: str, only: tuple[str, ...], rounds: int | None, nano_size: bool, runs: Path, seed: int = 0) -> int:
    """The whole bench, or the workloads in ``only``; the exit code: 2 for an unknown workload or device."""
    known = {w.name: w for w in (nano(device) if nano_size else workloads(device))}
    if not ready(device, only, known, "workload"):
        return 2
    quiet()
    todo = [w for name, w in known.items() if not only or name in only]
    made, started = environment(ROOT, threads=torch.get_num_threads()), now()
    measured: dict[str, dict[str, Any]] = {}
    for workload in todo:
        begin = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            found = measure(workload, device, Path(folder), seed, rounds, say=lambda text: print(text, flush=True))
        measured[workload.name] = dataclasses.asdict(found)
        del found
        gc.collect()
        print(f"{workload.name}: {time.perf_counter() - begin:.0f} s", flush=True)
    config = {
        "workloads": [w.config() for w in todo], "rounds": rounds, "method_version": METHOD_VERSION,
        "world_version": None,
    }  # fmt: skip
    record = BenchRecord("bench", device, seed, config, started, now(), **made, measured=measured)
    path = write(record, runs / "bench")
    print(f"\n{table.to_markdown(record)}\nWritten: {path}")
    return 0


def ready(device: str, only: tuple[str, ...], known: Collection[str], what: str) -> bool:
    """Whether device and names are there; says what is not."""
    if device not in ("cpu", "cuda") or (device == "cuda" and not torch.cuda.is_available()):
        print(f"device {device!r} is not there; known: cpu, and cuda where torch sees a GPU", file=sys.stderr)
        return False
    unknown = sorted(set(only) - set(known))
    if unknown:
        print(f"unknown {what} {unknown[0]!r}; known: {', '.join(known)}", file=sys.stderr)
    return not unknown


def quiet() -> None:
    """Trainers' remarks about a run of random weights are of no use to anybody."""
    transformers.utils.logging.set_verbosity_error()
    warnings.filterwarnings("ignore", module=r"(trl|transformers|torch)\.")


def now() -> str:
    """UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
