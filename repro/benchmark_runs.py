"""`make repro-table1..3`: checkpoints of Table 4's runs on the benchmarks of a table, through the guarded harness."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from repro import recipes
from repro.benchmark_tables import benchmarks_of

METHODS = ("stock", "regate")


def benchmark_table(number: str, students: Sequence[str], seeds: int, runs: Path, count: int) -> int:
    """Train what of Table 4 is missing, evaluate its checkpoints, print the table; returns the exit code.

    Args:
        number: 1, 2 or 3.
        students: micro students.
        seeds: seeds 0 .. seeds-1.
        runs: where Table 4's runs are and results go.
        count: questions of each task type of a twin.
    """
    wanted = [r for r in recipes.table4(tuple(students), seeds) if r.method in METHODS]
    if any(not (runs / recipe.name / "final").is_dir() for recipe in wanted):
        command = ["-m", "repro", "table4", "--students", *students, "--seeds", str(seeds), "--runs", str(runs)]
        if code := subprocess.run([sys.executable, *command], check=False).returncode:
            return code
    for recipe in wanted:
        checkpoint = runs / recipe.name / "final"
        command = ["-m", "eval.run", *benchmarks_of(number), "--checkpoint", str(checkpoint)]
        command += ["--count", str(count), "--runs", str(runs)]
        if code := subprocess.run([sys.executable, *command], check=False).returncode:
            print(f"{checkpoint} was not evaluated; nothing of it reaches the table", file=sys.stderr)
            return code
    from repro import tables

    return tables.main(["--runs", str(runs), "--only", number])
