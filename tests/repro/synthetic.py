"""Records of runs that never happened: shapes for tests of tables and figures. Nothing here is a result."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from repro.record import Benchmark, Point, Record

STEPS = 400
EVERY = 20
SHARE = {"stock": 1.0, "dense": 1.0, "regate": 0.6}  # of targets that are supervised
FASTER = {"stock": 1.0, "dense": 0.9, "regate": 0.75}  # seconds a step, relative
FINAL = {"stock": 0.80, "dense": 0.81, "regate": 0.84}
TASKS = ("action count", "moving direction", "object shuffle")


def config(method: str, seed: int, **changes: Any) -> dict[str, Any]:
    """A resolved configuration."""
    base = {"method": method, "seed": seed, "lr": 1e-3, "gate": {"p": 0.5}, "method_version": 1, "world_version": "w1"}
    return base | changes


def tokens_at(method: str, step: int) -> dict[str, int]:
    """Counts by kind after a number of steps."""
    supervised = round(900 * SHARE[method]) * step
    kinds = {"visual": 2000, "prompt": 500, "target": 900, "padding": 100}
    counts = {kind: n * step for kind, n in kinds.items()}
    return counts | {
        "active": counts["visual"] + counts["prompt"] + supervised,
        "supervised": supervised,
        "paper": supervised,
    }


def flops_at(method: str, step: int) -> dict[str, float]:
    """FLOPs after a number of steps."""
    unit = 1e8 * (0.5 + SHARE[method] / 2) * step
    return {"decoder": 8 * unit, "head": 2 * unit, "total": 11 * unit}


def metrics_at(method: str, step: int, rng: np.random.Generator, final: float) -> dict[str, float | None]:
    """A curve that rises and levels off, with noise."""
    value = 0.3 + (final - 0.3) * (1 - np.exp(-3.5 * step / STEPS)) / (1 - np.exp(-3.5)) + rng.normal(0, 0.006)
    accuracy = float(np.clip(value, 0, 1))
    return {"content_accuracy": accuracy, "content_nll": float(-np.log(max(accuracy, 1e-3)))}


def benchmark(step: int, accuracy: float, rng: np.random.Generator, n: int = 80) -> Benchmark:
    """Outcomes of n questions in each of a few subtasks."""
    bits = {task: rng.random(n) < accuracy for task in TASKS}
    return Benchmark.from_bits("mvbench-twin", step, "rank", bits, dict.fromkeys(TASKS, 0.25), questions="q1")


def record(
    method: str = "regate", seed: int = 0, *, final: float | None = None, at: int | None = 200, **changes: Any
) -> Record:
    """A run of table 4; `at` is a step at which the benchmark was scored besides the last."""
    rng = np.random.default_rng([seed, sorted(SHARE).index(method)])
    final = float(FINAL[method] + rng.normal(0, 0.012)) if final is None else final
    curve = [
        Point(step, tokens_at(method, step), 0.5 * FASTER[method] * step, flops_at(method, step),
              metrics_at(method, step, rng, final))
        for step in range(0, STEPS + 1, EVERY)
    ]  # fmt: skip
    scored = [benchmark(step, final - 0.2, rng) for step in sorted({at or STEPS, STEPS})]
    fields: dict[str, Any] = {
        "name": f"table4-internvl-{method}-s{seed}", "table": "table4", "student": "internvl", "method": method,
        "scale": "micro", "seed": seed, "config": config(method, seed), "started": "2025-11-22T06:00:00+00:00",
        "finished": "2025-11-22T06:04:00+00:00", "steps": STEPS, "commit": "a" * 40, "dirty": False,
        "versions": {"python": "3.11.7", "torch": "2.14.1"}, "protocol": "rank", "alone": True,
        "hardware": {"cpu": "a CPU", "cores": 2, "threads": 2, "memory_bytes": 8 << 30, "gpu": None},
        "tokens": tokens_at(method, STEPS), "train_seconds": 0.5 * FASTER[method] * STEPS,
        "flops": flops_at(method, STEPS),
        "teacher": {"seconds": 6.0, "flops": 3e9, "tokens": 120_000} if method == "regate" else None,
        "peak_memory_bytes": 900 << 20, "curve": curve, "benchmarks": scored,
    }  # fmt: skip
    return Record(**fields | changes)


def runs(seeds: int = 1, **changes: Any) -> list[Record]:
    """Stock, dense and ReGATE for a number of seeds."""
    return [record(method, seed, **changes) for method in SHARE for seed in range(seeds)]


def committed(records: list[Record]) -> list[Record]:
    """The same, as `load` gives them from results/records."""
    return [dataclasses.replace(one, origin="committed") for one in records]
