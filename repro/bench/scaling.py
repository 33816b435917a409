"""How cost grows: step time and memory against length, ratio, batch, vocabulary, and samples of the data set.

Small decoders and few repetitions: for the shape of the curves, not for verdicts. Each point is a workload of its own.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import torch

from eval.machine import ROOT, environment
from regate.difficulty import DifficultyBuffer, Observations
from regate.gate import METHOD_VERSION
from repro.bench.contestants import Arena, ours, stock
from repro.bench.gating import SavedBytes, reading_seconds
from repro.bench.lanes import Lane
from repro.bench.measure import flops_of
from repro.bench.record import BenchRecord, write
from repro.bench.run import now, quiet, ready
from repro.bench.workloads import NANO, Decoder, Workload, workloads

SMALL = Decoder(hidden=256, layers=4, heads=4, kv_heads=2, intermediate=768, vocabulary=8192)
ROUNDS, SHORT_ROUNDS, BATCH_ROWS, ANSWER = 5, 3, 8, 40
CONTESTANTS = ("stock", "dense", "gated")


@dataclass(frozen=True)
class Point:
    """One x of a sweep."""

    sweep: str
    x: float
    workload: Workload
    ratio: float = 0.5
    rounds: int = ROUNDS

    @property
    def name(self) -> str:
        """Key in the record."""
        return f"{self.sweep}={self.x:g}"


def points(decoder: Decoder = SMALL, nano: bool = False) -> list[Point]:
    """All sweeps of steps. A quarter of a sequence is prompt, and the answer half of it; one picture of 16 tokens.

    ``short`` is the bench's own workload of that name: what a larger batch makes of the cost that every step has.
    """
    lengths = (256, 512) if nano else (256, 512, 1024, 2048, 4096, 8192)
    ratios = (0.1, 1.0) if nano else (0.1, 0.25, 0.5, 0.75, 1.0)
    batches = (1, 2) if nano else (1, 2, 4, 8, 16)
    vocabularies = (512, 1024) if nano else (32_000, 49_152, 100_352, 151_936)
    found = [Point("length", n, _workload(n, 1, decoder)) for n in lengths]
    found += [Point("ratio", r, _workload(256 if nano else 1024, 1, decoder), r) for r in ratios]
    found += [Point("batch", b, _workload(256, b, decoder)) for b in batches]
    short = next(w for w in workloads() if w.name == "short-fp32")
    short = dataclasses.replace(short, decoder=decoder) if nano else short
    found += [Point("short", b, dataclasses.replace(short, batch=b), rounds=SHORT_ROUNDS) for b in batches]
    return found + [
        Point("vocabulary", v, _workload(256, 2, dataclasses.replace(decoder, vocabulary=v))) for v in vocabularies
    ]


def _workload(length: int, batch: int, decoder: Decoder) -> Workload:
    answer = length // 2
    return Workload("scaling", 1, 16, length - answer - 16, answer, batch, "float32", decoder, timed=CONTESTANTS)


def measure_point(point: Point, device: str, folder: Path, seed: int) -> dict[str, Any]:
    """Seconds of each round, saved bytes, FLOPs and computed positions of each contestant."""
    arena = Arena.of(point.workload, device, folder, seed)
    trainers = {
        "stock": stock(arena),
        "dense": ours(arena, policy="dense"),
        "gated": ours(arena, policy="regate", keep_ratio=point.ratio),
    }
    lanes = {name: Lane(trainer) for name, trainer in trainers.items()}
    found: dict[str, Any] = {"sweep": point.sweep, "x": point.x}
    found |= {kind: {} for kind in ("times", "bytes", "flops", "positions")}
    everything = point.workload.batch * point.workload.positions
    try:
        for name, lane in lanes.items():
            kept = SavedBytes(arena.model, arena.model.device)
            lane.step(kept)
            found["bytes"][name] = kept.bytes
            found["flops"][name] = flops_of(arena, lane.trainer, name)
            entry = getattr(lane.trainer, "_last_entry", None)
            found["positions"][name] = entry["tokens"].active if entry else everything
            found["times"][name] = []
        for _ in range(point.rounds):
            for name, lane in lanes.items():
                found["times"][name].append(lane.step())
    finally:
        for lane in lanes.values():
            lane.close()
    return found


def sample_points(counts: tuple[int, ...], folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The EMA buffer and the reference column for data sets of so many samples: seconds a batch, bytes held."""
    for count in counts:
        rng = np.random.default_rng(count)
        buffer = DifficultyBuffer(np.arange(count), np.full(count, ANSWER))
        column = reference_column(count, folder / f"{count}.arrow", rng)
        times: dict[str, list[float]] = {"buffer": [], "column": []}
        for epoch in range(ROUNDS * 4):
            ids = rng.choice(count, BATCH_ROWS, replace=False)
            start = time.perf_counter()
            buffer.lookup(torch.from_numpy(ids), ANSWER)
            buffer.update(_seen(ids), epoch)
            times["buffer"].append(time.perf_counter() - start)
            times["column"].append(reading_seconds(column, ids.tolist()))
        held = {"buffer": buffer.nbytes, "column": column.data.nbytes}
        yield (
            f"samples={count}",
            {"sweep": "samples", "x": count, "times": times, "bytes": held, "targets": ANSWER},
        )


def _seen(ids: np.ndarray) -> Observations:
    row = torch.arange(len(ids)).repeat_interleave(ANSWER)
    ordinal = torch.arange(ANSWER).repeat(len(ids))
    return Observations(torch.from_numpy(ids), row, ordinal, torch.ones(len(row)))


def reference_column(count: int, path: Path, rng: np.random.Generator, rows: int = 65_536) -> datasets.Dataset:
    """``sample_id`` and ``reference_losses`` [ANSWER] of ``count`` rows, memory-mapped from a file, as in training."""
    schema = pa.schema([("sample_id", pa.int64()), ("reference_losses", pa.list_(pa.float16()))])
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for start in range(0, count, rows):
            size = min(rows, count - start)
            values = pa.array(rng.random(size * ANSWER, dtype=np.float32).astype(np.float16))
            offsets = pa.array(np.arange(size + 1, dtype=np.int32) * ANSWER)
            columns = [pa.array(np.arange(start, start + size)), pa.ListArray.from_arrays(offsets, values)]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))
    return datasets.Dataset.from_file(str(path))


def scaling(
    device: str, only: tuple[str, ...], nano: bool, runs: Path, seed: int = 0, say: Callable[[str], Any] = print
) -> int:
    """All sweeps, or those in ``only``; the exit code: 2 for an unknown sweep or device."""
    todo = points(NANO if nano else SMALL, nano)
    names = [*dict.fromkeys(point.sweep for point in todo), "samples"]
    if not ready(device, only, names, "sweep"):
        return 2
    quiet()
    made, started = environment(ROOT, threads=torch.get_num_threads()), now()
    measured: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for point in todo:
            if not only or point.sweep in only:
                measured[point.name] = measure_point(point, device, Path(folder), seed)
                say(point.name)
        if not only or "samples" in only:
            counts = (1000, 2000) if nano else (1_000, 10_000, 100_000, 1_000_000, 3_000_000)
            measured |= dict(sample_points(counts, Path(folder)))
    config = {
        "points": [dataclasses.asdict(p) for p in todo],
        "rounds": ROUNDS,
        "method_version": METHOD_VERSION,
        "world_version": None,
    }
    record = BenchRecord("scaling", device, seed, config, started, now(), **made, measured=measured)
    say(f"Written: {write(record, runs / 'bench')}")
    return 0
