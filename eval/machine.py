"""What a record says about where it was made: versions, hardware, commit. Imports none of what it names."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "torch",
    "transformers",
    "accelerate",
    "peft",
    "datasets",
    "safetensors",
    "numpy",
    "av",
    "pillow",
    "lmms-eval",
    "trl",
)
ROOT = Path(__file__).resolve().parent.parent
GENERATED = ("results", "README.md")  # records, tables, what is said of them: no run computes another thing for them


def environment(root: str | Path = ROOT, *, threads: int | None = None) -> dict[str, Any]:
    """`versions`, `hardware`, `commit` and `dirty`: fields of a Record. Call it when a run starts, not when it ends.

    `threads` is what the run computes with (`torch.get_num_threads()`); without it, OMP_NUM_THREADS or the cores.
    `dirty` counts changed and untracked files that git does not ignore, except below `results/` and the README, whose
    results are generated. Outside a git checkout (or without git) `commit` and `dirty` are None.
    """
    commit, dirty = _checkout(Path(root))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    asked = os.environ.get("OMP_NUM_THREADS", "")
    hardware = {
        "cpu": _cpu(),
        "cores": cores,
        "threads": threads if threads is not None else int(asked) if asked.isdecimal() else cores,
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpu": _gpu(),
        "allocator": {k: v for k, v in sorted(os.environ.items()) if k.startswith("MALLOC_")} or None,
    }
    return {"versions": _versions(), "hardware": hardware, "commit": commit, "dirty": dirty}


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _output(*command: str, cwd: Path | None = None) -> str | None:
    """What a command prints, or None where it is missing or fails."""
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _checkout(root: Path) -> tuple[str | None, bool | None]:
    commit = _output("git", "rev-parse", "HEAD", cwd=root)
    top = _output("git", "rev-parse", "--show-toplevel", cwd=root)
    if not commit or not top or Path(top).resolve() != root.resolve():  # a copy inside someone else's checkout
        return None, None
    kept_out = [f":(exclude){path}" for path in GENERATED]
    changes = _output("git", "status", "--porcelain", "--", ".", *kept_out, cwd=root)
    return commit, None if changes is None else bool(changes)


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _gpu() -> str | None:
    """Names of the GPUs by nvidia-smi, or None."""
    return _output("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader") or None
