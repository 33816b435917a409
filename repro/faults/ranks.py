"""One rank of two is lost, or one alone is told to stop: both end, and two new ones go on to the same end."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import time
from pathlib import Path

from regate.checkpoint import last_complete, step_of
from regate.preemption import EXIT_STATUS
from repro.faults import nano
from repro.faults.processes import GIVE_UP, Child, kill_after, start
from repro.faults.record import Fault
from repro.faults.training import EQUAL, GRACE, differences, lost

RANKS = 2
OPTIONS = {"ddp_backend": "gloo", "ddp_find_unused_parameters": True, "per_device_train_batch_size": 1}


def launch(place: Path) -> list[Child]:
    """Two ranks, as torchrun starts them."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "WORLD_SIZE": str(RANKS)}
    shared |= {"LOCAL_WORLD_SIZE": str(RANKS)}
    ranks = [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(RANKS)]
    return [start(nano.train, place, OPTIONS, log=place.with_suffix(".log"), env=env) for env in ranks]


def finish(children: list[Child]) -> list[int]:
    """Statuses. When one has failed the others get `GRACE` seconds less what torchrun waits: they are ended."""
    end = time.monotonic() + GIVE_UP
    while (statuses := [child.poll() for child in children]).count(None):
        if any(status not in (None, 0, EXIT_STATUS) for status in statuses):
            _end(children)
            break
        if time.monotonic() > end:
            _end(children)
            raise TimeoutError(f"two ranks did not end: {children[0].words()}")
        time.sleep(0.005)
    return [child.wait() for child in children]


def _end(children: list[Child]) -> None:
    """As torchrun ends ranks whose fellow died: SIGTERM, and SIGKILL where that does not help."""
    for child in children:
        child.send(signal.SIGTERM)
    deadline = time.monotonic() + GRACE
    while any(child.poll() is None for child in children) and time.monotonic() < deadline:
        time.sleep(0.01)
    for child in children:
        if child.poll() is None:
            child.kill_group()


def reference(folder: Path) -> float:
    """Two ranks that nothing is done to; their seconds."""
    began = time.monotonic()
    place = folder / "ranks"
    statuses = finish(launch(place))
    if any(statuses):
        raise RuntimeError(f"two ranks ended with {statuses}:\n{place.with_suffix('.log').read_text()[-3000:]}")
    return time.monotonic() - began


def losses(count: int, rng: random.Random, folder: Path, seconds: float) -> list[Fault]:
    """``count`` times one rank is killed, or one rank alone is told to stop."""
    expected = nano.result(folder / "ranks")
    faults: list[Fault] = []
    while len(faults) < count:
        number = (signal.SIGKILL, signal.SIGTERM)[len(faults) % 2]
        rank, moment = rng.randrange(RANKS), rng.uniform(0.1, 0.9) * seconds
        place = folder / "lost"
        shutil.rmtree(place, ignore_errors=True)
        children = launch(place)
        if not kill_after(children[rank], moment, number):
            finish(children)
            continue
        sent = time.monotonic()
        statuses = finish(children)
        left = time.monotonic() - sent
        faults.append(_after(place, number, rank, moment, statuses, left, expected))
    return faults


def _after(
    place: Path, number: signal.Signals, rank: int, moment: float, statuses: list[int], left: float, expected: dict
) -> Fault:
    missing = lost(place)
    kept = last_complete(place) if missing is None else None
    at = f"rank {rank} after {moment:.2f} s, " + (f"from step {step_of(kept)}" if kept else "before a checkpoint")
    told = statuses == [EXIT_STATUS] * RANKS
    if told and not kept:
        missing = "left with the status of a saved run, and saved nothing"
    if number is signal.SIGTERM and left > GRACE:
        missing = f"took {left:.0f} s to leave"
    if missing is None:
        again = finish(launch(place))
        wrong = differences(nano.result(place), expected) if not any(again) else [f"statuses {again}"]
        missing = f"differs in {', '.join(wrong)}" if wrong else None
    if missing is None:
        shutil.rmtree(place)
        os.truncate(place.with_suffix(".log"), 0)
    kind = "a rank is lost" if number is signal.SIGKILL else "SIGTERM to one rank"
    outcome = missing or ("both saved and left, " if told else "both ended, ") + EQUAL
    seconds = round(left, 3) if number is signal.SIGTERM else None
    return Fault("ranks", kind, "training on two ranks", at, outcome, missing is None, process=True, seconds=seconds)
