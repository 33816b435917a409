"""`SCALE=small`: the runs of its tables one after another, each a process of its own; then tables and figures."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path


def small(tables: Sequence[str], seeds: int, runs: Path, device: str = "cpu") -> int:
    """Run what is missing of some tables, or of all (`recipes.TABLES`), and show them; the exit code.

    What is there and fresh is not run again, and what was stopped goes on. Two runs never share the machine: at this
    size one alone uses all cores.
    """
    from repro import figures
    from repro import tables as shown
    from repro.grid import run_all
    from repro.small import evidence, recipes
    from repro.small.align import align
    from repro.small.material import material_of
    from repro.small.models import language_path, require, vision_path
    from repro.small.packages import ModelsError
    from repro.small.student import projector_path

    tables = tables or recipes.TABLES
    try:
        wanted = recipes.of_tables(tables, seeds)
        require(runs)
        if not projector_path(runs).is_file():
            print("Aligning the projector (minutes, once)", flush=True)
            align(language_path(runs), vision_path(runs), projector_path(runs).parent)
        options = ("--scale", "small", "--device", device)
        code = run_all(wanted, runs, seeds, 1, partial(material_of, device=device), options)
        if not code and ("4" in tables or "easyvqa" in tables):
            evidence.write_all(runs, device)
    except (ModelsError, FileNotFoundError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    return code or shown.main(["--runs", str(runs)]) or figures.main(["--runs", str(runs)])


def run_one(name: str, seeds: int, runs: Path, device: str = "cpu") -> int:
    """The named run of the small scale, here; the exit code."""
    from repro.run import run
    from repro.small import recipes
    from repro.small.material import material_of
    from repro.small.packages import ModelsError
    from repro.small.stage import SMALL

    try:
        recipe = recipes.named(name, seeds)
        record = run(recipe, material_of(recipe, runs, device), runs, parts=SMALL)
    except (ModelsError, FileNotFoundError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{record.name}: {record.train_seconds:.0f} s of training, record in {runs / 'records'}")
    return 0
