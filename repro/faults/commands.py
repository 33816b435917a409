"""The commands themselves are killed: `regate reference`, `regate train`, and an evaluation through lmms-eval."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from eval.machine import ROOT
from repro.faults.processes import kill_after, run, start
from repro.faults.record import Fault
from repro.faults.training import EQUAL

STUDENT = ROOT / "results" / "students" / "internvl"
SAMPLES = 12
_CLOCKS = ("seconds", "data_seconds", "peak_memory_bytes")


def example(folder: Path) -> None:
    """A data set of a few real mp4 files in LLaVA's format."""
    from repro.example_data import write

    write(folder, SAMPLES)


def regate(arguments: list[str]) -> None:
    """One call of the command line."""
    from regate.cli import main

    main(arguments)


def scoring(data: Path, folder: Path) -> list[str]:
    """Arguments of `regate reference`."""
    return ["reference", "--model", str(STUDENT), "--data", str(data), "--output", str(folder / "scored"),
            "--num-frames", "4"]  # fmt: skip


def training(scored: Path, folder: Path) -> list[str]:
    """Arguments of `regate train`."""
    return ["train", "--model", str(STUDENT), "--data", str(scored), "--output", str(folder / "trained"), "--max-steps",
            "8", "--gate-warmup-steps", "1", "--cycle", "4", "--dense-steps", "1", "--learning-rate", "1e-3",
            "--save-steps", "2", "--cpu"]  # fmt: skip


def outcome(folder: Path) -> dict[str, Any]:
    """What the two commands left, without clocks."""
    from regate.accounting import read_steps
    from regate.integrity import hash_file

    found: dict[str, Any] = {}
    if (folder / "scored").is_dir():
        from regate.conversations import load_conversations

        rows = load_conversations(folder / "scored")
        found["scored"] = [rows["reference_losses"][:], rows["sample_id"][:], rows["reference_id"][:]]
    if (folder / "trained" / "final").is_dir():
        found["weights"] = hash_file(folder / "trained" / "final" / "model.safetensors")
        steps = read_steps(folder / "trained" / "steps.jsonl")
        found["steps"] = [{k: v for k, v in e.items() if k not in _CLOCKS} for e in steps]
    return found


def write_outcome(folder: Path) -> None:
    """`outcome` as a file: it is read in a child, so that the parent stays without threads."""
    (folder / "outcome.json").write_text(json.dumps(outcome(folder)))


def _outcome(folder: Path, log: Path) -> dict[str, Any]:
    run(write_outcome, folder, log=log)
    return json.loads((folder / "outcome.json").read_text())


def reference(folder: Path) -> tuple[Path, dict[str, float], dict[str, Any]]:
    """Data, seconds of each command, and what they leave when nothing is done to them."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "commands.log"
    run(example, folder / "example", log=log)
    data = folder / "example" / "train.json"
    whole = folder / "whole"
    seconds = {"scored": run(regate, scoring(data, whole), log=log)}
    seconds["trained"] = run(regate, training(whole / "scored", whole), log=log)
    return data, seconds, _outcome(whole, log)


def kills(count: int, rng: random.Random, folder: Path) -> list[Fault]:
    """``count`` kills of `regate reference` and `regate train` in turn; the same command is called again."""
    data, seconds, expected = reference(folder)
    log = folder / "commands.log"
    faults: list[Fault] = []
    while len(faults) < count:
        i = len(faults)
        name, number = ("trained", "scored")[i % 2], (signal.SIGKILL, signal.SIGTERM)[i // 2 % 2]
        place = folder / "killed"
        shutil.rmtree(place, ignore_errors=True)
        arguments = scoring(data, place) if name == "scored" else training(folder / "whole" / "scored", place)
        moment = rng.uniform(0.1, 0.98) * seconds[name]
        child = start(regate, arguments, log=log)
        if not kill_after(child, moment, number):
            continue
        sent = time.monotonic()
        status = child.wait()
        left = round(time.monotonic() - sent, 3) if number is signal.SIGTERM else None
        if name == "trained" or not (place / name).exists():  # `regate reference` refuses to write over what is there
            run(regate, arguments, log=log)
        found = _outcome(place, log)
        wrong = [k for k in (("weights", "steps") if name == "trained" else ("scored",)) if found.get(k) != expected[k]]
        command = "regate reference" if name == "scored" else "regate train"
        at = f"after {moment:.2f} s, status {status}"
        text = f"differs in {', '.join(wrong)}" if wrong else EQUAL
        faults.append(Fault("commands", number.name, command, at, text, not wrong, process=True, seconds=left))
    return faults


# ---- evaluation ------------------------------------------------------------------------------------------------------


def evaluation(folder: Path) -> list[str]:
    """The command of an evaluation: POPE's twin, a few questions."""
    return [sys.executable, "-m", "eval.run", "pope", "--checkpoint", str(STUDENT), "--runs", str(folder), "--count",
            "4", "--batch-size", "1", "--num-frames", "1"]  # fmt: skip


def _evaluate(folder: Path, log: Path) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with log.open("a") as file:
        return subprocess.Popen(
            evaluation(folder), cwd=ROOT, env=environment, stdout=file, stderr=file, start_new_session=True
        )


def _scores(folder: Path) -> Any:
    from eval.results import load

    results, problems = load(folder / "eval")
    return [(r.scores, r.outcomes) for r in results], [str(p) for p in problems]


def evaluations(count: int, rng: random.Random, folder: Path) -> list[Fault]:
    """``count`` kills of an evaluation, of all its processes or of its parent alone; the same command again."""
    whole, log = folder / "eval-whole", folder / "evaluation.log"
    folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    first = _evaluate(whole, log)
    if first.wait() != 0:
        raise RuntimeError(f"an evaluation that nothing was done to failed:\n{log.read_text()[-3000:]}")
    seconds, expected = time.monotonic() - began, _scores(whole)
    faults: list[Fault] = []
    while len(faults) < count:
        i = len(faults)
        number, alone = (signal.SIGKILL, signal.SIGTERM)[i % 2], i % 3 == 2
        place, moment = folder / f"eval-{i}", rng.uniform(0.1, 0.95) * seconds
        place.mkdir()
        (place / "cache").symlink_to((whole / "cache").resolve())  # the twin: it is there already
        running = _evaluate(place, log)
        time.sleep(moment)
        if running.poll() is not None:
            shutil.rmtree(place)
            continue
        os.kill(running.pid, number) if alone else os.killpg(running.pid, number)
        running.wait()
        early = _scores(place)
        wrong = ["a result of half a run"] if early[0] and early != expected else []
        again = _evaluate(place, log).wait()
        if again != 0 or _scores(place) != expected:
            wrong.append(f"status {again}, or other scores")
        at = f"after {moment:.1f} s, " + ("the parent alone" if alone else "all processes")
        text = "; ".join(wrong) or EQUAL
        faults.append(Fault("evaluation", number.name, "evaluation", at, text, not wrong, process=True))
        shutil.rmtree(place)
    return faults
