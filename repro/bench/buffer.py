"""`make bench-buffer`: what the difficulty buffer costs where a data set is large: memory, exchange, save, load.

Real ranks (gloo on this machine), each with a whole buffer, as in training. A step is a global batch dealt out to
them, and what is timed is what the trainer does after it: reports are packed, gathered and unpacked, and the buffer is
updated. The file is written and read by the checkpoint's own functions. Writes a record, prints its table.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.multiprocessing
from accelerate import Accelerator

from eval.machine import ROOT, environment
from regate.difficulty import FILE_NAME, DifficultyBuffer, Observations
from regate.exchange import Exchange, Report, merged, pack
from regate.gate import METHOD_VERSION
from repro.bench.record import BenchRecord, write
from repro.bench.run import now
from repro.bench.table import buffer_table

TARGETS, BATCH = 100, 128
"""Targets of each sample; rows of a global batch."""
ROUNDS, DISK_ROUNDS = 20, 5
POINTS = ((10_000, 2), (100_000, 2), (1_000_000, 2), (3_000_000, 2), (3_000_000, 4))
"""Samples and ranks."""
NANO = ((1000, 2),)
KEPT = {"dense": 1.0, "sparse": 0.5}


def observed(rng: np.random.Generator, samples: np.ndarray, share: float) -> Observations:
    """Losses of a random ``share`` of the targets of ``samples`` [R]."""
    row, ordinal = np.nonzero(rng.random((len(samples), TARGETS)).argsort(1) < share * TARGETS)
    loss = torch.from_numpy(rng.exponential(2.0, len(row)).astype(np.float32))
    return Observations(torch.from_numpy(samples), torch.from_numpy(row), torch.from_numpy(ordinal), loss)


def resident_bytes() -> int:
    """Memory of this process that is in use."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def rank_of(rank: int, ranks: int, port: int, samples: int, folder: str) -> None:
    """One rank of a point; rank 0 leaves what was measured in ``folder``."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks)}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    accelerator = Accelerator(cpu=True)
    found: dict[str, Any] = {"samples": samples, "targets": TARGETS, "ranks": ranks, "batch": BATCH}
    before = resident_bytes()
    start = time.perf_counter()
    buffer = DifficultyBuffer(np.arange(samples), np.full(samples, TARGETS))
    found["build_seconds"] = time.perf_counter() - start
    found["bytes"] = {"held": buffer.nbytes, "resident": resident_bytes() - before}
    exchange, step = Exchange(accelerator), _Stopwatch()
    for kind, share in KEPT.items():
        for number in range(ROUNDS + 1):  # the first makes room
            epoch = number + (ROUNDS + 1) * list(KEPT).index(kind)
            batch = np.random.default_rng(epoch).choice(samples, BATCH, replace=False)
            mine = observed(np.random.default_rng((epoch, rank)), batch[rank::ranks], share)
            own = Report(torch.zeros(10, dtype=torch.int64), torch.zeros(8, dtype=torch.float64), mine)
            found["bytes"][f"sent, {kind}"] = len(pack(own)) + 8
            accelerator.wait_for_everyone()
            reports = step(f"exchange, {kind}", exchange, own)
            step(f"update, {kind}", update, buffer, reports, epoch)
            step(f"look up, {kind}", buffer.lookup, mine.sample, TARGETS)
    found["step"] = {name: seconds[1:] for name, seconds in step.seconds.items()}
    disk, path = _Stopwatch(), Path(folder) / FILE_NAME
    for _ in range(DISK_ROUNDS if rank == 0 else 0):
        disk("save", buffer.save, folder)
        disk("load", buffer.load, folder)
        forget(path)
        disk("load, not in memory", buffer.load, folder)
    accelerator.wait_for_everyone()
    if rank == 0:
        found["bytes"]["file"] = path.stat().st_size
        found["disk"] = disk.seconds
        (Path(folder) / "found.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


def update(buffer: DifficultyBuffer, reports: list[Report], epoch: int) -> None:
    """What the trainer does with all ranks' reports."""
    buffer.update(merged([report.seen for report in reports]), epoch)


def forget(path: Path) -> None:
    """Have the system drop a file from its page cache, as far as it does what it is told."""
    file = os.open(path, os.O_RDONLY)
    os.fsync(file)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(file)


class _Stopwatch:
    """Seconds of calls by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}

    def __call__(self, name: str, work: Callable[..., Any], *arguments: Any) -> Any:
        start = time.perf_counter()
        result = work(*arguments)
        self.seconds.setdefault(name, []).append(time.perf_counter() - start)
        return result


def measure(samples: int, ranks: int) -> dict[str, Any]:
    """One point, by as many processes as it has ranks."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(rank_of, (ranks, port, samples, folder), nprocs=ranks)
        return json.loads((Path(folder) / "found.json").read_text())


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--nano", action="store_true", help="a small one, to see that it works")
    args = parser.parse_args(argv)
    made, started = environment(ROOT, threads=1), now()
    points = NANO if args.nano else POINTS
    measured = {}
    for samples, ranks in points:
        measured[f"{samples} on {ranks}"] = measure(samples, ranks)
        print(f"{samples} samples on {ranks} ranks")
    config = {"points": [list(point) for point in points], "targets": TARGETS, "batch": BATCH, "rounds": ROUNDS}
    config |= {"disk_rounds": DISK_ROUNDS, "method_version": METHOD_VERSION, "world_version": None}
    record = BenchRecord("buffer", "cpu", 0, config, started, now(), **made, measured=measured)
    path = write(record, args.runs / "bench")
    print(f"{buffer_table(record)}\nWritten: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
