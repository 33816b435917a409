"""Training is killed at random moments; what goes on from there must equal the run that was left alone, bit for bit."""

from __future__ import annotations

import random
import shutil
import signal
import time
from pathlib import Path

from regate.checkpoint import MARKER, IncompleteCheckpoint, checkpoints, last_complete, step_of
from regate.preemption import EXIT_STATUS
from repro.faults import nano
from repro.faults.files import damaged
from repro.faults.processes import Child, kill_after, run, start
from repro.faults.record import Fault

GRACE = 30.0
"""Seconds that a process has between SIGTERM and SIGKILL."""
EQUAL = "went on, equal"


def reference(folder: Path) -> float:
    """The run that nothing is done to, in ``folder/whole``; its seconds."""
    return run(nano.train, folder / "whole", log=folder / "whole.log")


def differences(found: dict, expected: dict) -> list[str]:
    """Names of what differs between two outcomes."""
    return [name for name in expected if found.get(name) != expected[name]]


def lost(folder: Path) -> str | None:
    """What was complete and is no longer: the newest complete checkpoint that the run wrote down, in words."""
    done = nano.completed(folder)
    if not done:
        return None
    try:
        path = last_complete(folder)
    except IncompleteCheckpoint as error:
        return str(error)
    return None if path and step_of(path) >= done[-1] else f"checkpoint-{done[-1]} was complete, found {path}"


def kills(count: int, rng: random.Random, folder: Path, seconds: float) -> list[Fault]:
    """``count`` kills of as many runs, half by SIGKILL, half by SIGTERM, at moments between start and end."""
    expected = nano.result(folder / "whole")
    faults: list[Fault] = []
    while len(faults) < count:
        number = (signal.SIGKILL, signal.SIGTERM)[len(faults) % 2]
        moment = rng.uniform(0.02, 0.98) * seconds
        place = folder / f"kill-{len(faults)}"
        shutil.rmtree(place, ignore_errors=True)
        everyone = len(faults) % 4 == 3  # as Slurm does it: the workers of the data loader get it, too
        changes = {"dataloader_num_workers": 2} if everyone else {}
        child = start(nano.train, place, changes, log=folder / "kill.log")
        if not kill_after(child, moment, number, everyone):
            continue  # it was done already: nothing was killed
        kind = "SIGTERM to it and its workers" if everyone else number.name
        faults.append(_after(child, place, kind, moment, expected))
        if faults[-1].held:
            shutil.rmtree(place)
    return faults


def _after(child: Child, place: Path, kind: str, moment: float, expected: dict) -> Fault:
    asked = kind != "SIGKILL"
    sent = time.monotonic()
    status = child.wait()
    left = time.monotonic() - sent
    missing = lost(place)
    kept = last_complete(place) if missing is None else None
    at = f"after {moment:.2f} s, " + (f"from step {step_of(kept)}" if kept else "before a checkpoint was complete")
    told = asked and status == EXIT_STATUS
    if told and not kept:
        missing = "left with the status of a saved run, and saved nothing"
    if asked and status not in (EXIT_STATUS, -signal.SIGTERM, 0):
        missing = f"ended with {status}: {child.words(300)}"
    if asked and left > GRACE:
        missing = f"took {left:.0f} s to leave"
    if missing is None:
        run(nano.train, place, log=place.with_suffix(".log"))
        wrong = differences(nano.result(place), expected)
        missing = f"differs in {', '.join(wrong)}" if wrong else None
    outcome = missing or ("saved and left, " if told else "") + EQUAL
    seconds = round(left, 3) if asked else None
    return Fault("training", kind, "training", at, outcome, missing is None, process=True, seconds=seconds)


def repeated(count: int, rng: random.Random, folder: Path, seconds: float) -> list[Fault]:
    """One run that is killed ``count`` times in a row before it is left to end."""
    expected, place = nano.result(folder / "whole"), folder / "again"
    faults: list[Fault] = []
    moments = []
    for _ in range(count):
        moment = rng.uniform(0.3, 0.8) * seconds
        child = start(nano.train, place, log=folder / "again.log")
        if not kill_after(child, moment, signal.SIGKILL):
            break
        child.wait()
        moments.append(moment)
        if missing := lost(place):
            return [*faults, Fault("training", "SIGKILL, again and again", "training", "", missing, False, True)]
    run(nano.train, place, log=folder / "again.log")
    wrong = differences(nano.result(place), expected)
    outcome = f"differs in {', '.join(wrong)}" if wrong else EQUAL
    shutil.rmtree(place)
    return [
        Fault("training", "SIGKILL, again and again", "training", f"after {m:.2f} s", outcome, not wrong, True)
        for m in moments
    ]


def past_damage(count: int, rng: random.Random, folder: Path) -> list[Fault]:
    """Resumed with a damaged newest checkpoint, from the one before; every fourth time with no other left: refused."""
    expected = nano.result(folder / "whole")
    faults: list[Fault] = []
    for i in range(count):
        place = folder / "damaged"
        shutil.rmtree(place, ignore_errors=True)
        place.with_suffix(".log").unlink(missing_ok=True)
        shutil.copytree(folder / "whole", place)
        (place / nano.OUTCOME).unlink()
        newest, older = checkpoints(place)[:2]
        file = rng.choice([p for p in sorted(newest.iterdir()) if p.name != MARKER])
        kind, detail, _ = damaged(file, rng)
        alone = i % 4 == 3
        if alone:
            shutil.rmtree(older)
        child = start(nano.train, place, log=place.with_suffix(".log"))
        status = child.wait()
        if file.name not in child.words(100_000):
            wrong = ["the file was not named"]
        elif alone:
            wrong = [] if status == 1 and not (place / nano.OUTCOME).exists() else [f"went on, status {status}"]
        else:
            wrong = differences(nano.result(place), expected) if status == 0 else [f"status {status}"]
        good = "no other left: refused by name" if alone else f"named, the one before taken, {EQUAL}"
        outcome = "; ".join(wrong) or good
        faults.append(Fault("training", kind, "newest checkpoint, then resumed", detail, outcome, not wrong))
    shutil.rmtree(folder / "damaged", ignore_errors=True)
    return faults
