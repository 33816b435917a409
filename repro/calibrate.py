"""What a step of each kind costs on this machine, measured interleaved: the time of runs that ran beside others.

Every kind (`Recipe.step_kind`) trains for a few steps on the same batches, one kind after the other, several rounds, so
that a change of the machine's pace meets all alike. A kind whose cost moves with its schedule (a rising ratio,
Random-LTD) passes through the whole of it. `repro.timing` reads a kind's cost from its rounds.
"""

import dataclasses
import json
import shutil
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from eval.machine import environment
from repro.alone import Watch
from repro.assemble import trainer_of
from repro.material import SEEING, Material
from repro.recipes import Recipe

STEPS = 14
WARM = 2
"""Steps at the head of each short run that do not count."""


def kinds_of(recipes: Iterable[Recipe]) -> dict[str, Recipe]:
    """Kind of step -> a short recipe that has no other."""
    found: dict[str, Recipe] = {}
    for recipe in recipes:
        share = STEPS / recipe.steps
        short = dataclasses.replace(
            recipe, seed=0, steps=STEPS, evaluate_every=STEPS, save_every=10 * STEPS, trace_samples=0,
            teacher=SEEING if recipe.teacher == SEEING else "aligned",  # a text-only one's losses cost no step anything
        )  # fmt: skip
        if recipe.random_ltd:
            scaled = recipe.random_ltd | {"steps": round(share * recipe.random_ltd["steps"])}
            short = dataclasses.replace(short, random_ltd=scaled)
        if not recipe.gate:
            found.setdefault(recipe.step_kind(False), short)
            continue
        dense = dataclasses.replace(short, gate={"policy": "dense"})
        found.setdefault(recipe.step_kind(False), dense)
        always = {"gate_warmup_steps": 0, "cycle": 1, "dense_steps": 0, "gate_cooldown_steps": 0}
        gate = recipe.gate | always
        if gate["policy"] != "dense" or gate.get("visual_keep_ratio", 1) < 1:
            found.setdefault(recipe.step_kind(True), dataclasses.replace(short, gate=gate))
    return found


def calibrate(recipes: Sequence[Recipe], runs: Path, rounds: int = 5) -> list[Path]:
    """Measure the kinds of these recipes and write ``runs/calibration/<student>-<scale>.json``, one a student."""
    written = []
    for student in dict.fromkeys(recipe.student for recipe in recipes):
        mine = [recipe for recipe in recipes if recipe.student == student]
        # Batches differ with the data: all kinds are measured on that of the first recipe.
        kinds = {kind: dataclasses.replace(r, data=mine[0].data) for kind, r in kinds_of(mine).items()}
        material = Material(student, mine[0].data, runs / "cache")
        for teacher in {recipe.teacher for recipe in kinds.values()}:
            material.scored(teacher)
        watch, started = Watch(), datetime.now(UTC).isoformat(timespec="seconds")
        seconds: dict[str, list[list[float]]] = {kind: [] for kind in kinds}
        for _ in tqdm(range(rounds), desc=f"calibrating {student}", unit="round"):
            for kind, recipe in kinds.items():
                seconds[kind].append(_seconds(recipe, material, runs / "calibration" / "run"))
        record: dict[str, Any] = {
            "student": student,
            "scale": mine[0].scale,
            "started": started,
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "alone": watch.alone(),
            "steps": STEPS - WARM,
            "rounds": rounds,
            "measured": {kind: [round(float(np.mean(part)), 5) for part in parts] for kind, parts in seconds.items()},
            **environment(threads=torch.get_num_threads()),
        }
        path = runs / "calibration" / f"{student}-{mine[0].scale}.json"
        path.write_text(json.dumps(record, indent=1) + "\n")
        written.append(path)
    return written


def _seconds(recipe: Recipe, material: Material, folder: Path) -> list[float]:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    trainer, clock = trainer_of(recipe, material, folder)
    trainer.train()
    shutil.rmtree(folder)
    return list(clock.seconds[WARM:])
