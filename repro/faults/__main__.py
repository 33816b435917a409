"""`python -m repro.faults`: every part of the fault run, one record. Exit status 1 where a promise did not hold."""

from __future__ import annotations

import json
import random
import shutil
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import tyro

import regate.commands  # what children would import one by one is there when they are forked
import regate.data  # noqa: F401
from eval.machine import ROOT, environment
from repro.faults import bad_input, commands, cost, disk, endurance, files, nano, ranks, scoring, table, training
from repro.faults.processes import run as run_child
from repro.faults.record import PARTS, Fault, FaultRecord, write

RESULTS = ROOT / "results"
NUMBERS = ("memory", "cost")


@dataclass(frozen=True)
class Args:
    """Faults of all kinds from a seed."""

    only: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Parts to run: training, ranks, scoring, commands, evaluation, disk, files, samples, memory,
    cost. All if left out."""
    seed: int = 0
    kills: int = 40
    """Of training; half of them by SIGTERM."""
    losses: int = 12
    """Of one rank of two."""
    scorings: int = 16
    """Kills of scoring, and as many damaged shards."""
    calls: int = 12
    """Kills of `regate reference` and `regate train`."""
    evaluations: int = 6
    """Kills of an evaluation."""
    disks: int = 12
    """Full disks."""
    damages: int = 200
    """Damaged files."""
    samples: int = 1000
    """Bad samples, each read under both policies."""
    steps: int = endurance.STEPS
    """Of the long run."""
    folder: Path = Path("runs/faults")
    """What the runs write; deleted where all went well."""
    output: Path | None = None
    """The record. Left out: `<folder>.json`; results/faults/NAME.json takes clean commits only."""


def parts(args: Args, folder: Path) -> dict[str, Callable[[], Any]]:
    """What each part runs; all but `memory` and `cost` give faults."""
    dice = {name: random.Random(f"{args.seed} {name}") for name in PARTS}
    seconds: dict[str, float] = {}

    def once(name: str, make: Callable[[Path], float]) -> float:
        if name not in seconds:
            seconds[name] = make(folder)
        return seconds[name]

    def train() -> list[Fault]:
        whole = once("train", training.reference)
        few = max(1, args.kills // 8)
        return [
            *training.kills(args.kills - few, dice["training"], folder, whole),
            *training.repeated(few, dice["training"], folder, whole),
            *training.past_damage(2 * few, dice["training"], folder),
        ]

    def lose() -> list[Fault]:
        return ranks.losses(args.losses, dice["ranks"], folder, ranks.reference(folder))

    def score() -> list[Fault]:
        whole = once("score", scoring.reference)
        return [
            *scoring.kills(args.scorings, dice["scoring"], folder, whole),
            *scoring.damage(args.scorings, dice["scoring"], folder),
        ]

    def fill() -> tuple[list[Fault], dict[str, str]]:
        once("train", training.reference)
        once("score", scoring.reference)
        sizes = [p.stat().st_size for p in (folder / "whole").rglob("*") if p.is_file()]
        return disk.fills(args.disks, dice["disk"], folder, max(sizes), sum(sizes))

    def damage() -> list[Fault]:
        once("train", training.reference)
        commands.reference(folder / "files")
        return _in_child(folder, _damage, args.damages, args.seed)

    return {
        "training": train,
        "ranks": lose,
        "scoring": score,
        "commands": lambda: commands.kills(args.calls, dice["commands"], folder / "commands"),
        "evaluation": lambda: commands.evaluations(args.evaluations, dice["evaluation"], folder / "evaluation"),
        "disk": fill,
        "files": damage,
        "samples": lambda: _in_child(folder, _samples, args.samples, args.seed),
        "memory": lambda: endurance.measure(folder / "memory", args.steps),
        "cost": lambda: cost.measure(folder / "cost"),
    }


def _damage(folder: Path, count: int, seed: int) -> dict[str, Any]:
    rng, run = random.Random(f"{seed} files"), folder / "whole"
    made = folder / "files" / "whole"
    rest = count - count // 2 - count // 5 - 2 * (count // 10)
    found = [
        *files.checkpoints(count // 2, rng, run),
        *files.logs(count // 10, rng, run),
        *files.records(count // 5, rng, folder, RESULTS),
        *files.caches(count // 10, rng, folder),
        *files.folders(rest, rng, made / "scored", made / "trained" / "final"),
    ]
    return {"faults": [vars(fault) for fault in found]}


def _samples(folder: Path, count: int, seed: int) -> dict[str, Any]:
    return bad_input.check(count, seed, folder / "samples")


def _written(work: Callable[..., dict[str, Any]], folder: Path, *args: Any) -> None:
    (folder / nano.OUTCOME).write_text(json.dumps(work(folder, *args)))


def _in_child(folder: Path, work: Callable[..., dict[str, Any]], *args: Any) -> list[Fault]:
    """Faults that ``work`` finds, in a process of its own: this one stays without threads and without torch at work."""
    run_child(_written, work, folder, *args, log=folder / f"{work.__name__}.log")
    said = nano.result(folder)
    faults = [Fault(**fault) for fault in said["faults"]]
    if "elsewhere" in said:
        where, growth = said["elsewhere"], said["peak_growth_bytes"]
        opened = f"{len(where)} others opened" if where else "no other file opened"
        text = f"{opened}, peak memory {growth / 2**20:.0f} MiB higher at most"
        faults.append(Fault("samples", "all of them", "data's folder alone", ", ".join(where[:5]), text, not where))
    return faults


def main(args: Args) -> int:
    """Run, write the record, print the table; the exit status."""
    unknown = sorted(set(args.only) - {*PARTS, *NUMBERS})
    if unknown:
        print(f"no such part: {', '.join(unknown)}; there are {', '.join((*PARTS, *NUMBERS))}", file=sys.stderr)
        return 2
    folder = args.folder.absolute()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    machine, started = environment(threads=1), datetime.now(UTC)
    faults: list[Fault] = []
    skipped: dict[str, str] = {}
    numbers: dict[str, Any] = dict.fromkeys(NUMBERS)
    took: dict[str, float] = {}
    for name, work in parts(args, folder).items():
        if args.only and name not in args.only:
            continue
        began = time.monotonic()
        try:
            found = work()
        except Exception as error:  # the other parts are worth their record
            traceback.print_exc()
            found = [Fault(name, "none yet", "the harness", "", f"{type(error).__name__}: {error}"[:300], False)]
        took[name] = round(time.monotonic() - began, 1)
        if name in NUMBERS and isinstance(found, dict):
            numbers[name] = found
            continue
        if isinstance(found, tuple):
            found, left_out = found
            skipped |= left_out
        faults += found
        held = sum(fault.held for fault in found)
        print(f"{name}: {held} of {len(found)} as promised, {took[name]:.0f} s", flush=True)
    config = {k: v for k, v in vars(args).items() if k not in ("folder", "output")} | {
        "only": list(args.only), "method_version": None, "world_version": None,
    }  # fmt: skip
    record = FaultRecord(
        seed=args.seed, config=config, started=started.isoformat(timespec="seconds"),
        finished=datetime.now(UTC).isoformat(timespec="seconds"), faults=tuple(faults), skipped=skipped,
        memory=numbers["memory"], measured={"seconds": took, "cost": numbers["cost"]}, **machine,
    )  # fmt: skip
    path = write(record, args.output or folder.with_suffix(".json"))
    print(table.markdown(table.combined([record])))
    print(f"record: {path}")
    for fault in record.failures:
        where = f"{fault.part}, {fault.kind}, {fault.target}, {fault.detail}"
        print(f"NOT AS PROMISED: {where}: {fault.outcome}", file=sys.stderr)
    if record.failures or table.grew(record):
        return 1
    shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Args, prog="python -m repro.faults")))
