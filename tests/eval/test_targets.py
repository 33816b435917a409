"""`make eval-*` calls the harness: a pattern rule is skipped, silently and with exit code 0, for a phony target."""

import subprocess
from pathlib import Path

import pytest

from eval.benchmarks import BENCHMARKS

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", ["all", *BENCHMARKS])
def test_every_target_evaluates(name):
    command = ["make", "--dry-run", "--no-print-directory", f"eval-{name}", "CHECKPOINT=x"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert f"-m eval.run {name} --checkpoint x" in done.stdout
