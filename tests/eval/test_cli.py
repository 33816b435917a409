"""The real command line, in processes of its own: `python -m eval.run`, which runs `python -m lmms_eval`."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from eval.results import load
from tests.eval.scripted import as_plugin

ROOT = Path(__file__).resolve().parents[2]
STUDENT = ROOT / "results" / "students" / "internvl"
COUNT = ["--count", "4"]  # as the twins of the other tests: they are there already


def command(runs, *args):
    return [sys.executable, "-m", "eval.run", *args, "--checkpoint", str(STUDENT), "--runs", str(runs), *COUNT]


def call(runs, *args, **env):
    done = subprocess.run(
        command(runs, *args),
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **env},
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def own(runs, twins, tmp_path):
    """A folder for results of one test, with the twins of all."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "cache").symlink_to(runs / "cache")
    return tmp_path / "runs"


def results(runs):
    found, wrong = load(runs / "eval")
    assert wrong == []
    return {result.benchmark: result for result in found}


@pytest.mark.parametrize("script", ["oracle", "wrong", "guess", "silent"])
def test_mvbench_and_videomme_by_the_command_line(own, tmp_path, script):
    path = os.pathsep.join([str(as_plugin(tmp_path / "plugin")), str(ROOT)])
    code, out, err = call(own, "mvbench", "videomme", "--model", script, PYTHONPATH=path)
    if script == "silent":
        assert code == 1
        assert "videomme: 44 empty answers: 0, 1, 2, 3, 4 and 39 more" in err
        assert err.count("empty answers") == 19  # MVBench's 18 subtasks, and VideoMME
        assert results(own) == {}
        return
    assert (code, err) == (0, "")
    found = results(own)
    scores = [score for result in found.values() for score in result.scores.values()]
    if script == "guess":
        for score in (found["mvbench"].scores["average"], found["videomme"].scores["accuracy"]):
            assert score.value == pytest.approx(score.chance, abs=4 * 50 / score.n**0.5)
    else:
        assert {score.value for score in scores} == {100.0 if script == "oracle" else 0.0}
    assert f"average {found['mvbench'].scores['average'].value:20.1f}"[:8] in out
    assert "not in this data: mvbench_unexpected_action, mvbench_fine_grained_action" in out


def test_two_processes_and_a_killed_run_score_as_one_that_was_left_alone(own, tmp_path):
    code, _, err = call(own, "videomme", "pope", "--batch-size", "4")
    assert (code, err) == (0, "")
    alone = results(own)
    assert alone["videomme"].cost["from_cache"] == 0
    assert alone["videomme"].made["versions"]["lmms-eval"] == "0.7.3"
    assert alone["videomme"].cost["input_tokens"] > 1000

    other = tmp_path / "other"
    other.mkdir()
    (other / "cache").symlink_to(own / "cache")
    running = subprocess.Popen(
        command(other, "videomme", "pope", "--batch-size", "1", "--processes", "2"),
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    answers = lambda: sum(len(p.read_text().splitlines()) for p in other.glob("eval/*/cache/runs/run/*.jsonl"))  # noqa: E731
    while answers() < 10 and running.poll() is None:
        time.sleep(0.02)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    assert results(other) == {}
    code, _, err = call(other, "videomme", "pope", "--batch-size", "1", "--processes", "2")
    assert (code, err) == (0, "")
    again = results(other)
    assert again["videomme"].cost["from_cache"] >= 5
    for name, result in alone.items():
        assert again[name].scores == result.scores
        assert again[name].outcomes == result.outcomes
        assert (again[name].data, again[name].prompts) == (result.data, result.prompts)

    code, out, _ = call(other, "videomme", "--processes", "2")
    assert code == 0
    assert "evaluating" not in out  # it is there already


def test_a_failing_run_ends_with_its_reason(own, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text("{}")
    done = subprocess.run(
        [sys.executable, "-m", "eval.run", "videomme", "--checkpoint", str(broken), "--runs", str(own), *COUNT],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "lmms-eval ended with exit code 1" in done.stderr
    assert "videomme: lmms-eval wrote no results" in done.stderr
    assert results(own) == {}


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["mvbenhc"], r"got \['mvbenhc'\], expected all, or some of scienceqa, mme"),
        (["vinoground", "--limit", "4"], "vinoground has no score without all of its questions"),
        (["mme", "--limit", "3"], "mme asks in pairs: --limit must be even, got 3"),
        (["mme", "--prompts", "own"], "prompt profile 'own', expected one of paper, stock"),
        (["mme", "--data", "nowhere"], "DATA is 'nowhere': expected 'twin', 'hub' or a folder that exists"),
        (["mme", "--answer", "letter"], "answer is 'letter', expected generate or rank"),
    ],
)
def test_mistakes_are_named_before_anything_runs(own, capsys, args, said):
    from eval.run import main

    assert main([*args, "--checkpoint", str(STUDENT), "--runs", str(own)]) == 2
    import re

    assert re.search(f"cannot evaluate: .*{said}", capsys.readouterr().err)
