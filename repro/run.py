"""One recipe -> one record and its artefacts. A run that was stopped goes on; one that is there and fresh is reused."""

import hashlib
import json
import shutil
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from regate import ReGateTrainer
from regate.accounting import read_steps
from regate.integrity import seal, unseal
from repro.alone import Watch
from repro.assemble import trainer_of
from repro.curve import crossing, peak
from repro.evaluate import choice_accuracy, content_metrics, rank_options
from repro.follow import Follower, totals
from repro.kept import KeptLog, summary
from repro.material import Material
from repro.micro_data import MicroCollator, batches_by_length
from repro.recipes import Recipe
from repro.record import Benchmark, Point, Record, RecordError, config_hash, environment, is_stale, read, write

METRIC = "content_accuracy"
PROTOCOL = "rank"


@dataclass(frozen=True)
class Parts:
    """Where the scales differ in a run.

    trainer_of: (recipe, material, folder) -> trainer and clock. follow: (recipe, material) -> what evaluates a model on
    validation. score: (model, step, material) -> its benchmarks. snapshots: whether each evaluation keeps the weights,
    for a run that is read at the step where it reaches a baseline.
    """

    trainer_of: Callable[[Recipe, Any, Path], tuple[Any, Any]]
    follow: Callable[[Recipe, Any], Callable[[Any], dict[str, float]]]
    score: Callable[[Any, int, Any], list[Benchmark]]
    snapshots: bool = True


def existing(recipe: Recipe, material: Any, directory: Path) -> Record | None:
    """The fresh record of a recipe in ``directory``, or None; a stale or damaged one is told of and made again."""
    path = directory / f"{recipe.name}.json"
    if not path.exists():
        return None
    try:
        record = read(path)
    except RecordError as error:
        print(f"made again: {error}")
        return None
    reason = is_stale(record, recipe.config(material.student_hash))
    if reason:
        print(f"made again: {reason}")
    return None if reason else record


def run(
    recipe: Recipe, material: Any, runs: Path, baseline: Record | None = None, parts: Parts | None = None
) -> Record:
    """Train, follow and score one recipe; write and return its record.

    Args:
        recipe: what to run.
        material: what it runs on.
        runs: the run's folder is ``runs/<name>``, its record goes to ``runs/records``.
        baseline: for a gated method, the record whose peak it is read against.
        parts: how it is trained, followed and scored; left out, as the micro scale does.
    """
    parts = parts or MICRO
    folder = runs / recipe.name
    config = recipe.config(material.student_hash)
    _start_anew_if_changed(folder, config)
    watch = Watch()
    started = datetime.now(UTC).isoformat(timespec="seconds")
    machine = environment(threads=torch.get_num_threads())
    trainer, clock = parts.trainer_of(recipe, material, folder)
    follower = Follower(folder, clock, recipe.evaluate_every, parts.follow(recipe, material), parts.snapshots)
    if isinstance(trainer, ReGateTrainer):  # before the follower, which restarts the clock
        trainer.add_callback(KeptLog(folder, trainer, recipe.evaluate_every))
    trainer.add_callback(follower)
    trainer.train(resume_from_checkpoint=trainer.last_complete_checkpoint())
    alone = watch.alone()

    steps_log = folder / "steps.jsonl"
    curve = tuple(_point(p, steps_log) for p in follower.points)
    benchmarks = parts.score(trainer.model, recipe.steps, material)
    reached = None
    if baseline is not None:
        best = peak(baseline.curve, METRIC)
        assert best is not None, "a finished run has been evaluated"
        at = crossing(curve, best[1], METRIC)
        reached = {"metric": METRIC, "target": best[1], "baseline": baseline.name, "step": at.step if at else None}
        if at and at.step != recipe.steps:
            there = material.trained(folder / "snapshots" / str(at.step))
            benchmarks = parts.score(there, at.step, material) + benchmarks
    unseal(folder / "final")
    trainer.model.save_pretrained(folder / "final")
    material.processor.save_pretrained(folder / "final")
    seal(folder / "final")
    sums = totals(steps_log, recipe.steps)
    sparse = sparse_steps(steps_log)
    by_tag = summary(folder, sparse, recipe.evaluate_every) if isinstance(trainer, ReGateTrainer) else None
    if by_tag:
        (folder / "kept_by_tag.json").write_text(json.dumps(by_tag))
    record = Record(
        **recipe.identity(),
        config=config,
        started=started,
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        protocol=PROTOCOL,
        alone=alone,
        teacher={**material.scored(recipe.teacher)[1]} if recipe.needs_teacher else None,
        timeline=[[recipe.step_kind(kind), len(list(run))] for kind, run in groupby(sparse.values())],
        by_tag=by_tag,
        curve=curve,
        benchmarks=tuple(benchmarks),
        artefacts=_artefacts(folder, runs),
        crossing=reached,
        **machine,
        **sums,
    )
    write(record, runs / "records")
    for leftover in folder.glob("checkpoint-*"):
        shutil.rmtree(leftover)
    _keep_snapshots(folder, {str(b.step) for b in benchmarks})
    return record


def sparse_steps(steps_log: Path) -> dict[int, bool]:
    """Step -> whether it left something out, from the log."""
    return {e["step"]: e["ratio"] < 1 or e["visual_ratio"] < 1 for e in read_steps(steps_log)}


def _follow(recipe: Recipe, material: Material) -> Callable[[Any], dict[str, float]]:
    rows = list(material.encoded("validation"))
    collator = MicroCollator(material.processor, extra=("tags",))
    lengths = [len(row["input_ids"]) for row in rows]
    batches = [collator([rows[i] for i in part]) for part in batches_by_length(lengths, recipe.batch_size)]
    return lambda model: content_metrics(model, batches)


def _point(point: dict[str, Any], steps_log: Path) -> Point:
    sums = totals(steps_log, point["step"])
    return Point(point["step"], sums["tokens"], sums["train_seconds"], sums["flops"], point["metrics"])


def _score(model: Any, step: int, material: Material) -> list[Benchmark]:
    choices, questions = material.questions()
    return [benchmark("mvbench", step, choices, rank_options(model, material.processor, choices), questions)]


MICRO = Parts(trainer_of, _follow, _score)


def benchmark(name: str, step: int, choices: Sequence[Any], chosen: Sequence[int], questions: str) -> Benchmark:
    """What options were ``chosen``, as a benchmark with the outcome of each question and what a guesser would get."""
    right = choice_accuracy(choices, chosen)["bits"]
    bits, chance = defaultdict(list), defaultdict(list)
    for choice, bit in zip(choices, right, strict=True):
        bits[choice.task].append(bit)
        chance[choice.task].append(1 / len(choice.options))
    means = {task: sum(c) / len(c) for task, c in chance.items()}
    return Benchmark.from_bits(name, step, PROTOCOL, bits, means, questions)


def _start_anew_if_changed(folder: Path, config: dict[str, Any]) -> None:
    """A folder of another configuration is no run to go on with."""
    stamp, digest = folder / "config.sha256", config_hash(config)
    if folder.exists() and (not stamp.exists() or stamp.read_text() != digest):
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    stamp.write_text(digest)


def _keep_snapshots(folder: Path, steps: set[str]) -> None:
    for snapshot in (folder / "snapshots").glob("*"):
        if snapshot.name not in steps:
            shutil.rmtree(snapshot)


def _artefacts(folder: Path, runs: Path) -> dict[str, dict[str, str]]:
    files = {
        "steps": folder / "steps.jsonl",
        "trace": folder / "trace.parquet",
        "kept_by_tag": folder / "kept_by_tag.json",
        "model": folder / "final/model.safetensors",
        "adapter": folder / "final/adapter_model.safetensors",
    }
    return {
        name: {"path": str(path.relative_to(runs)), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for name, path in files.items()
        if path.exists()
    }
