"""One recipe -> one record and its artefacts. A run that was stopped goes on; one that is there and fresh is reused."""

import hashlib
import os
import shutil
import time
from collections import defaultdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from regate import ReGateConfig, ReGateTrainer
from regate.accounting import FlopModel, StepClock
from regate.checkpoint import SafeTrainer
from regate.tokens import placeholder_token_ids
from repro.curve import crossing, peak
from repro.evaluate import choice_accuracy, content_metrics, rank_options
from repro.follow import CountingCollator, Follower, StockLog, totals
from repro.material import Material
from repro.micro_data import MicroCollator, batches_by_length
from repro.recipes import Recipe
from repro.record import Benchmark, Point, Record, RecordError, config_hash, environment, is_stale, read, write
from repro.tuning import tuned

METRIC = "content_accuracy"
PROTOCOL = "rank"
_ALONE = 0.05  # of all cores: what other processes may have used meanwhile


def existing(recipe: Recipe, material: Material, directory: Path) -> Record | None:
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


def run(recipe: Recipe, material: Material, runs: Path, baseline: Record | None = None) -> Record:
    """Train, follow and score one recipe; write and return its record.

    Args:
        recipe: what to run.
        material: what it runs on.
        runs: the run's folder is ``runs/<name>``, its record goes to ``runs/records``.
        baseline: for a gated method, the record whose peak it is read against.
    """
    folder = runs / recipe.name
    config = recipe.config(material.student_hash)
    _start_anew_if_changed(folder, config)
    began, used = time.perf_counter(), _cpu_seconds()
    started = datetime.now(UTC).isoformat(timespec="seconds")
    machine = environment(threads=torch.get_num_threads())
    trainer = _trainer(recipe, material, folder)
    trainer.train(resume_from_checkpoint=trainer.last_complete_checkpoint() is not None)
    others = _others_share(began, used)
    alone = others is not None and others < _ALONE

    steps_log = folder / "steps.jsonl"
    curve = tuple(_point(p, steps_log) for p in _follower(trainer).points)
    choices, questions = material.questions()
    benchmarks = [_score(trainer.model, recipe.steps, material, choices, questions)]
    reached = None
    if baseline is not None:
        best = peak(baseline.curve, METRIC)
        assert best is not None, "a finished run has been evaluated"
        at = crossing(curve, best[1], METRIC)
        reached = {"metric": METRIC, "target": best[1], "baseline": baseline.name, "step": at.step if at else None}
        if at and at.step != recipe.steps:
            there = material.trained(folder / "snapshots" / str(at.step))
            benchmarks.insert(0, _score(there, at.step, material, choices, questions))
    trainer.model.save_pretrained(folder / "final")
    material.processor.save_pretrained(folder / "final")
    sums = totals(steps_log, recipe.steps)
    record = Record(
        name=recipe.name,
        table=recipe.table,
        student=recipe.student,
        method=recipe.method,
        scale=recipe.scale,
        seed=recipe.seed,
        config=config,
        started=started,
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        steps=recipe.steps,
        protocol=PROTOCOL,
        alone=alone,
        teacher={**material.scored()[1]} if recipe.method == "regate" else None,
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


def _trainer(recipe: Recipe, material: Material, folder: Path) -> SafeTrainer:
    shared: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": recipe.steps,
        "per_device_train_batch_size": recipe.batch_size,
        "learning_rate": recipe.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": recipe.warmup_ratio,
        "weight_decay": recipe.weight_decay,
        "max_grad_norm": recipe.max_grad_norm,
        "save_steps": recipe.save_every,
        "save_total_limit": 1,
        "logging_steps": recipe.evaluate_every,
        "report_to": [],
        "remove_unused_columns": False,
        "seed": recipe.seed,
        "use_cpu": True,
    }
    rows, _ = material.scored()
    model, collator = tuned(material.model(), recipe.tuning, recipe.seed), MicroCollator(material.processor)
    if recipe.method == "stock":
        placeholder = torch.tensor(sorted(placeholder_token_ids(material.processor, model.config)))
        counting, clock = CountingCollator(collator, placeholder), StepClock()
        trainer = SafeTrainer(model, TrainingArguments(**shared), counting, rows)
        flops = FlopModel.of(model.get_decoder(), model.get_output_embeddings())
        trainer.add_callback(clock)
        trainer.add_callback(StockLog(folder / "steps.jsonl", counting, clock, flops))
    else:
        traced = list(range(0, len(rows), len(rows) // recipe.trace_samples)) if recipe.trace_samples else []
        args = ReGateConfig(**shared, **recipe.gate, trace_samples=traced[: recipe.trace_samples])
        trainer = ReGateTrainer(model, args, collator, rows, processing_class=material.processor)
        clock = trainer.clock
    validation = _validation_batches(material, recipe.batch_size)
    trainer.add_callback(Follower(folder, clock, recipe.evaluate_every, lambda m: content_metrics(m, validation)))
    return trainer


def _validation_batches(material: Material, batch_size: int) -> list[dict[str, Any]]:
    rows = list(material.encoded("validation"))
    collator = MicroCollator(material.processor, extra=("tags",))
    return [collator([rows[i] for i in b]) for b in batches_by_length([len(r["input_ids"]) for r in rows], batch_size)]


def _follower(trainer: SafeTrainer) -> Follower:
    return next(c for c in trainer.callback_handler.callbacks if isinstance(c, Follower))


def _point(point: dict[str, Any], steps_log: Path) -> Point:
    sums = totals(steps_log, point["step"])
    return Point(point["step"], sums["tokens"], sums["train_seconds"], sums["flops"], point["metrics"])


def _score(model: Any, step: int, material: Material, choices: list, questions: str) -> Benchmark:
    chosen = rank_options(model, material.processor, choices)
    right = choice_accuracy(choices, chosen)["bits"]
    bits, chance = defaultdict(list), defaultdict(list)
    for choice, bit in zip(choices, right, strict=True):
        bits[choice.task].append(bit)
        chance[choice.task].append(1 / len(choice.options))
    means = {task: sum(c) / len(c) for task, c in chance.items()}
    return Benchmark.from_bits("mvbench", step, PROTOCOL, bits, means, questions)


def _start_anew_if_changed(folder: Path, config: dict[str, Any]) -> None:
    """A folder of another configuration is no run to go on with."""
    stamp, digest = folder / "config.sha256", config_hash(config)
    if folder.exists() and (not stamp.exists() or stamp.read_text() != digest):
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    stamp.write_text(digest)


def _keep_snapshots(folder: Path, steps: set[str]) -> None:
    for snapshot in (folder / "snapshots").iterdir():
        if snapshot.name not in steps:
            shutil.rmtree(snapshot)


def _artefacts(folder: Path, runs: Path) -> dict[str, dict[str, str]]:
    files = {
        "steps": folder / "steps.jsonl",
        "trace": folder / "trace.parquet",
        "model": folder / "final/model.safetensors",
        "adapter": folder / "final/adapter_model.safetensors",
    }
    return {
        name: {"path": str(path.relative_to(runs)), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for name, path in files.items()
        if path.exists()
    }


def _cpu_seconds() -> tuple[float, float] | None:
    """CPU seconds used by the whole machine and by this process, so far; None where the system does not tell."""
    try:
        first = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    except OSError:
        return None
    user, nice, system, _idle, _wait, irq, softirq = map(int, first[:7])
    ticks = os.sysconf("SC_CLK_TCK")
    return (user + nice + system + irq + softirq) / ticks, sum(os.times()[:4])


def _others_share(began: float, used: tuple[float, float] | None) -> float | None:
    """Share of all cores that other processes used since ``began``; None where that is not known."""
    now = _cpu_seconds()
    if used is None or now is None:
        return None
    machine, own = now
    wall = (time.perf_counter() - began) * (os.cpu_count() or 1)
    return max(0.0, (machine - used[0]) - (own - used[1])) / wall
