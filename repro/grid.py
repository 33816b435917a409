"""Many runs, unattended: what is there and fresh is reused, what was stopped goes on, one failure stops no other run.

Each run is a process of its own, so that its memory is its own. With several jobs each computes on one thread, which
is the better use of few cores; such runs were not alone, and tables take their times from the calibration.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from repro.material import Material
from repro.recipes import Recipe
from repro.run import existing


def material_of(recipe: Recipe, runs: Path) -> Material:
    """What a recipe of the micro scale runs on."""
    return Material(recipe.student, recipe.data, runs / "cache")


def run_all(
    recipes: Sequence[Recipe],
    runs: Path,
    seeds: int,
    jobs: int = 1,
    material_of: Callable[[Recipe, Path], Any] = material_of,
    options: Sequence[str] = (),
) -> int:
    """Run what is missing, ``jobs`` at a time; what each prints goes to ``runs/<name>.log``. Returns the exit code.

    ``material_of``: what a recipe runs on; ``options``: more of them for `python -m repro run`.
    """
    missing = []
    for recipe in recipes:
        material = material_of(recipe, runs)
        if existing(recipe, material, runs / "records"):
            print(f"{recipe.name}: there and fresh")
        else:
            missing.append(recipe)
    failed = _unprepared(missing, lambda recipe: material_of(recipe, runs).prepare(recipe.teacher))
    missing = [recipe for recipe in missing if recipe.name not in failed]
    done, began = 0, time.perf_counter()
    # Runs that are read against a baseline come after it.
    for wave in ([r for r in missing if not r.has_baseline], [r for r in missing if r.has_baseline]):
        with ThreadPoolExecutor(jobs) as pool:
            waiting = {pool.submit(_start, recipe.name, runs, seeds, jobs, options): recipe for recipe in wave}
            for future in as_completed(waiting):
                name, code = waiting[future].name, future.result()
                done += 1
                minutes = (time.perf_counter() - began) / 60
                said = "done" if code == 0 else f"FAILED with exit code {code}, see {runs / name}.log"
                print(f"[{done} of {len(missing)}, {minutes:.0f} min] {name}: {said}", flush=True)
                failed += [name] if code else []
    if failed:
        print(f"failed: {', '.join(failed)}; call again to go on where they stopped", file=sys.stderr)
    return 1 if failed else 0


def _unprepared(recipes: Sequence[Recipe], prepare: Callable[[Recipe], None]) -> list[str]:
    """Make what the runs read, here and not in several of them at once; names of those for which that failed."""
    broken: dict[Any, bool] = {}
    for recipe in recipes:
        what = (recipe.student, recipe.data, recipe.teacher)
        if what in broken:
            continue
        broken[what] = False
        try:
            prepare(recipe)
        except Exception as error:  # whatever it is, the other runs go on
            broken[what] = True
            told = f"{type(error).__name__}: {error}"
            print(f"{recipe.name} and what reads the same cannot run: {told}", file=sys.stderr, flush=True)
    return [recipe.name for recipe in recipes if broken[recipe.student, recipe.data, recipe.teacher]]


def _start(name: str, runs: Path, seeds: int, jobs: int, options: Sequence[str]) -> int:
    command = [sys.executable, "-m", "repro", "run", name, "--seeds", str(seeds), "--runs", str(runs), *options]
    threads = {"OMP_NUM_THREADS": "1"} if jobs > 1 else {}
    runs.mkdir(parents=True, exist_ok=True)
    with (runs / f"{name}.log").open("a") as log:
        return subprocess.run(command, check=False, stdout=log, stderr=log, env=os.environ | threads).returncode
