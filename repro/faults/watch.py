"""Which files are opened: by Python, through an audit hook, and by anybody in a folder of canaries, through inotify.

The hook does not see what libraries in C open (FFmpeg), inotify does; so what may tempt them lies among the canaries.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from pathlib import Path
from typing import Any

_OPEN, _ACCESS, _ISDIR = 0x20, 0x01, 0x40000000
_NONBLOCK = 0o4000
_HEADER = struct.Struct("iIII")


class Opened:
    """Paths that Python opens between `start` and `stop`. An audit hook stays for good, so there is one a process."""

    def __init__(self) -> None:
        self.paths: set[str] = set()
        self._on = False
        sys.addaudithook(self._see)

    def _see(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._on and event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
            self.paths.add(os.path.realpath(os.fsdecode(arguments[0])))

    def start(self) -> None:
        """Watch from here on."""
        self._on = True

    def stop(self) -> None:
        """Watch no longer."""
        self._on = False

    def outside(self, *roots: str | Path) -> list[str]:
        """What was opened that lies in none of these folders."""
        inside = [os.path.realpath(root) for root in roots]
        return sorted(p for p in self.paths if not any(p == r or p.startswith(r + os.sep) for r in inside))


class Canaries:
    """Files of a folder that nobody may touch. Raises OSError where the system has no inotify."""

    def __init__(self, folder: Path):
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._handle = self._libc.inotify_init1(_NONBLOCK)
        if self._handle < 0:
            raise OSError(ctypes.get_errno(), "inotify_init1")
        for place in (folder, *(p for p in folder.rglob("*") if p.is_dir())):
            if self._libc.inotify_add_watch(self._handle, os.fsencode(place), _OPEN | _ACCESS) < 0:
                raise OSError(ctypes.get_errno(), f"inotify_add_watch {place}")

    def touched(self) -> list[str]:
        """Names of files that were opened or read since the last call."""
        names: set[str] = set()
        while True:
            try:
                data = os.read(self._handle, 65536)
            except BlockingIOError:
                return sorted(names)
            while data:
                _, mask, _, length = _HEADER.unpack_from(data)
                name = data[_HEADER.size : _HEADER.size + length].rstrip(b"\0")
                if not mask & _ISDIR:
                    names.add(os.fsdecode(name))
                data = data[_HEADER.size + length :]

    def close(self) -> None:
        """Watch no longer."""
        os.close(self._handle)
