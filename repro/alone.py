"""Did a run have the machine to itself? Only then is its time comparable."""

import os
import time
from pathlib import Path

LIMIT = 0.05
"""Of all cores: what other processes may have used meanwhile."""


class Watch:
    """Started when it is made; ``alone()`` says whether other processes used less than `LIMIT` of the cores since."""

    def __init__(self) -> None:
        self._began, self._used = time.perf_counter(), _cpu_seconds()

    def alone(self) -> bool:
        """False, too, where the system does not tell."""
        now = _cpu_seconds()
        if self._used is None or now is None:
            return False
        machine, own = now[0] - self._used[0], now[1] - self._used[1]
        wall = (time.perf_counter() - self._began) * (os.cpu_count() or 1)
        return max(0.0, machine - own) / wall < LIMIT


def _cpu_seconds() -> tuple[float, float] | None:
    """CPU seconds used by the whole machine and by this process, so far; None where the system does not tell."""
    try:
        first = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    except OSError:
        return None
    user, nice, system, _idle, _wait, irq, softirq = map(int, first[:7])
    ticks = os.sysconf("SC_CLK_TCK")
    return (user + nice + system + irq + softirq) / ticks, sum(os.times()[:4])
