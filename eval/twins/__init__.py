"""Twins of the 13 benchmarks, asked about the embedded world: `make("videomme", "runs/twins", count=8, seed=0)`.

They need no network: clips are rendered from seeds, of held-out things that training never shows.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from eval.twins import (
    egoschema,
    longvideobench,
    mlvu,
    mme,
    mvbench,
    nextqa,
    perceptiontest,
    pope,
    scienceqa,
    seedbench,
    videomme,
    vinoground,
    vizwiz,
)
from eval.twins.base import Twin
from eval.world.vocabulary import WORLD_VERSION

TWINS: dict[str, Twin] = {
    module.TWIN.name: module.TWIN
    for module in (
        scienceqa, mme, vizwiz, pope, seedbench,
        videomme, longvideobench, mlvu, egoschema, mvbench, perceptiontest, nextqa, vinoground,
    )
}  # fmt: skip
STAMP = "twin.json"


def make(name: str, root: Path | str, count: int, seed: int) -> Path:
    """The folder of a twin below `root`: written whole or not at all, and found again by the next call.

    name: one of `TWINS`. count: questions for each task type. seed: another one gives other clips and questions.
    The folder is named after the arguments. A folder of that name which another version of the world or of the twin
    wrote, or which no twin wrote, raises a ValueError and is left alone. Safe to call from several processes.
    """
    if name not in TWINS:
        raise ValueError(f"unknown benchmark {name!r}; there are twins of {', '.join(TWINS)}")
    if count < 1:
        raise ValueError(f"a twin needs at least one question for each task type, got count={count}")
    twin, root = TWINS[name], Path(root)
    stamp = {"twin": name, "version": twin.version, "world": WORLD_VERSION, "count": count, "seed": seed}
    folder = root / f"{name}-{count}-seed{seed}"
    if folder.exists():
        return _same(folder, stamp)
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=root) as half:
        made = Path(half) / name
        made.mkdir()
        twin.write(made, count, seed)
        with (made / "README.md").open("a") as card:
            card.write(describe(twin))
        (made / STAMP).write_text(json.dumps(stamp))
        try:
            os.rename(made, folder)
        except OSError:  # another process was faster
            if not folder.exists():
                raise
    return _same(folder, stamp)


def _same(folder: Path, stamp: dict[str, Any]) -> Path:
    """The folder, if this stamp made it; else a ValueError."""
    path = folder / STAMP
    found = json.loads(path.read_text()) if path.exists() else f"no {STAMP}"
    if found != stamp:
        raise ValueError(f"{folder} holds {found}, not {stamp}; remove it or give another root")
    return folder


def describe(twin: Twin) -> str:
    """What a twin asks and what it cannot, as Markdown."""
    lines = [
        f"The twin of `{twin.name}` in the ReGATE toolkit's embedded world, rendered from seeds.",
        "",
        "Shown:",
        "",
    ]
    lines += [f"- {task}" for task in twin.shown]
    if twin.not_shown:
        lines += ["", "Not shown:", "", *(f"- {task}: {reason}" for task, reason in twin.not_shown.items())]
    return "\n".join([*lines, ""])


__all__ = ["TWINS", "Twin", "describe", "make"]
