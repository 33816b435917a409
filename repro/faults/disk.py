"""The disk is full in the middle of a write: a small file system of its own where we may mount one, a limit on the
size of files otherwise. What was complete is gone on with when there is room again."""

from __future__ import annotations

import contextlib
import random
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from regate.checkpoint import last_complete, step_of
from repro.faults import nano, scoring
from repro.faults.processes import run, start
from repro.faults.record import Fault
from repro.faults.training import EQUAL, differences, lost

Work = Callable[[Path], None]
_SIGNS = ("No space left", "too large", "Errno 27", "Errno 28", "os error 27", "os error 28", "unexpected pos")
"""Of the last: torch.save says so, and no more."""
ROOM = 64 * 2**20


def limited(work: Work, folder: Path, size: int) -> None:
    """``work`` in a process that may write no file beyond ``size`` bytes."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # writes raise OSError instead
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    try:
        work(folder)
    finally:  # what went wrong must fit into the log
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Callable[[], None]]:
    """``folder`` as a file system of ``size`` bytes; gives what makes it roomy. Raises OSError where we may not."""
    folder.mkdir(parents=True, exist_ok=True)
    _mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder))
    try:
        yield lambda: _mount("-o", f"remount,size={ROOM}", str(folder))
    finally:
        subprocess.run(["umount", "-l", str(folder)], capture_output=True, check=False)


def _mount(*arguments: str) -> None:
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"mount: {done.stderr.strip()}")


def obstacle(folder: Path) -> str | None:
    """Why no file system can be mounted here, or None."""
    try:
        with small_disk(folder / "probe", 2**20):
            return None
    except (OSError, FileNotFoundError) as error:
        return str(error)


def fills(count: int, rng: random.Random, folder: Path, largest: int, total: int) -> tuple[list[Fault], dict[str, str]]:
    """``count`` full disks, while training and while scoring, in turn; what was skipped, and why.

    Args:
        largest: bytes of the largest file of a run: limits lie below it.
        total: bytes that a whole training run has on the disk at most: small disks hold less.
    """
    reason = obstacle(folder)
    ways = ["a limit on files"] if reason else ["a limit on files", "a small disk"]
    faults: list[Fault] = []
    while len(faults) < count:
        i = len(faults)
        way, training = ways[i % len(ways)], i // len(ways) % 2 == 0
        work, target = (nano.train, "training") if training else (scoring.score, "scoring")
        place = folder / f"disk-{i}"
        shutil.rmtree(place, ignore_errors=True)
        if way == "a limit on files":
            size = rng.randrange(largest // 20, largest) if training else rng.randrange(64, 900)
            child = start(limited, work, place, size, log=folder / "disk.log")
            status = child.wait()
            fault = _after(place, target, way, size, status, child.words(), folder, work)
        else:
            size = rng.randrange(total // 4, total) if training else 4096 * rng.randrange(2, 20)
            with small_disk(place, size) as make_room:
                child = start(work, place, log=folder / "disk.log")
                status = child.wait()
                words = child.words()
                make_room()
                fault = _after(place, target, way, size, status, words, folder, work)
        (folder / "disk.log").unlink(missing_ok=True)
        if fault is not None:
            faults.append(fault)
            shutil.rmtree(place, ignore_errors=True)
    return faults, {"a full disk on a file system of its own": reason} if reason else {}


def _after(
    place: Path, target: str, way: str, size: int, status: int, words: str, folder: Path, work: Work
) -> Fault | None:
    """What became of it, with room again; None where the disk was large enough."""
    if status == 0:
        return None
    kind, missing = f"disk full ({way})", lost(place) if target == "training" else None
    if not any(sign in words for sign in _SIGNS):
        missing = f"ended with {status} for another reason: {words[-300:]}"
    detail = f"{size} bytes"
    if target == "training" and missing is None:
        kept = last_complete(place)
        detail += f", from step {step_of(kept)}" if kept else ", before a checkpoint was complete"
    if missing is None:
        run(work, place, log=folder / "disk-again.log")
        expected = nano.result(folder / ("whole" if target == "training" else "scored"))
        expected.pop("seen", None)
        wrong = differences(nano.result(place), expected)
        missing = f"differs in {', '.join(wrong)}" if wrong else None
    return Fault("disk", kind, target, detail, missing or f"failed, {EQUAL}", missing is None, process=True)
