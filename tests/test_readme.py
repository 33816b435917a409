"""The README's example and the app's run as printed, in a folder that holds nothing but the prepared students."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from regate.accounting import read_steps

ROOT = Path(__file__).resolve().parent.parent
PAGES = "".join((ROOT / name).read_text() for name in ("README.md", "docs/app.md"))
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", PAGES, flags=re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """An empty folder with `results/`, where the example's commands have run."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "results").symlink_to(ROOT / "results")
    (block,) = (text for language, text in BLOCKS if language == "bash")
    block = block.replace("make example", f"{sys.executable} -m repro.example_data")
    run(["bash", "-euc", block.replace(".venv/bin/regate", f"{sys.executable} -m regate.cli")], folder)
    return folder


def run(command: list[str], folder: Path) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_commands_score_and_train(folder):
    steps = read_steps(folder / "runs/example/trained/steps.jsonl")
    assert [step["ratio"] for step in steps] == [1.0, 1.0, 1.0, 0.5, 0.5, 0.5]
    assert (folder / "runs/example/trained/final/model.safetensors").exists()


@pytest.mark.parametrize("number", range(sum(language == "python" for language, _ in BLOCKS)))
def test_the_python_blocks_run(folder, number):
    block = [text for language, text in BLOCKS if language == "python"][number]
    run([sys.executable, "-c", block], folder)
    if "trainer.train()" in block:
        assert len(read_steps(folder / "runs/example/python/steps.jsonl")) == 6


def test_the_two_commands_are_makefile_targets():
    makefile = (ROOT / "Makefile").read_text()
    for target in ("repro-table4", "test", "world-check", "students", "example"):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE)
        assert f"make {target}" in (ROOT / "README.md").read_text()
