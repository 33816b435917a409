"""Real processes that are cheap to kill: forked from this one, which has imported torch already.

The parent computes nothing, so that there are no threads to lose in the fork. A child leads its own process group.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GIVE_UP = 300.0
"""Seconds after which a child that should have ended is a failure."""


@dataclass
class Child:
    """A forked process. ``status``: 0 and more: how it exited; below 0: the signal that ended it; None: it runs."""

    pid: int
    log: Path
    started: float
    status: int | None = None

    def poll(self) -> int | None:
        """The status, or None while it runs."""
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
        return self.status

    def wait(self, seconds: float = GIVE_UP) -> int:
        """The status, once it has ended. Raises TimeoutError (the child is killed) if it does not."""
        end = time.monotonic() + seconds
        while self.poll() is None:
            if time.monotonic() > end:
                self.kill_group()
                raise TimeoutError(f"a child did not end within {seconds:g} s; its last words:\n{self.words()}")
            time.sleep(0.003)
        assert self.status is not None
        return self.status

    def send(self, number: signal.Signals, everyone: bool = False) -> bool:
        """Signal the process, or ``everyone`` in its group; whether it was still running."""
        if self.poll() is not None:
            return False
        (os.killpg if everyone else os.kill)(self.pid, number)
        return True

    def kill_group(self) -> None:
        """SIGKILL for the child and all that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        if self.status is None:
            _, status = os.waitpid(self.pid, 0)
            self.status = os.waitstatus_to_exitcode(status)

    def words(self, size: int = 3000) -> str:
        """The end of what it printed."""
        return self.log.read_text(errors="replace")[-size:] if self.log.exists() else ""


def start(function: Callable[..., Any], *args: Any, log: Path, env: Mapping[str, str] | None = None) -> Child:
    """Run ``function(*args)`` in a process of its own; what it prints goes to ``log``."""
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    began = time.monotonic()
    pid = os.fork()
    if pid:
        return Child(pid, log, began)
    status = 1
    try:
        os.setsid()
        to = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(to, 1)
        os.dup2(to, 2)
        os.environ.update(env or {})
        function(*args)
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def run(function: Callable[..., Any], *args: Any, log: Path, env: Mapping[str, str] | None = None) -> float:
    """`start`, and wait for success; the seconds it took. Raises RuntimeError with its last words if it failed."""
    child = start(function, *args, log=log, env=env)
    status = child.wait(3600)
    if status != 0:
        raise RuntimeError(f"a run that nothing was done to ended with {status}:\n{child.words()}")
    return time.monotonic() - child.started


def kill_after(child: Child, seconds: float, number: signal.Signals, everyone: bool = False) -> bool:
    """Send a signal so many seconds after the child's start; whether it was still running."""
    time.sleep(max(0.0, child.started + seconds - time.monotonic()))
    return child.send(number, everyone)
