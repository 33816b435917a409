"""Where a run's questions come from: twins made on demand, folders of the user, or the hub. No torch.

The stock tasks look for videos below HF_HOME, each in a folder of its own, and for the data set wherever their
configuration says. A run with twins or folders gets a HF_HOME of links, so that the stock code finds them unchanged.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from eval import twins
from eval.benchmarks import BENCHMARKS

_LARGE = {".mp4", ".mkv", ".webm", ".avi", ".zip", ".tar", ".gz"}  # their names and sizes are enough for a fingerprint


@dataclass(frozen=True)
class Data:
    """The data of some benchmarks.

    Args:
        source: "twin", "hub", or the user's path.
        folders: by benchmark; empty with the hub.
        shown: MVBench's subtasks that are there; None: all.
        made: how twins were made: count and seed.
    """

    source: str
    folders: Mapping[str, Path] = field(default_factory=dict)
    shown: tuple[str, ...] | None = None
    made: Mapping[str, int] = field(default_factory=dict)


def find(source: str, names: Sequence[str], cache: Path, count: int, seed: int) -> Data:
    """The data of `names`: "twin" (made below `cache` where they are missing), "hub", or a folder.

    A folder holds one data set for each benchmark, under its name and laid out as the public one with its videos
    unpacked (as a twin is); with one benchmark it may be that data set itself.

    Raises:
        FileNotFoundError: the folder, or a data set in it, is missing.
    """
    if source == "hub":
        return Data("hub")
    if source == "twin":
        folders = {name: twins.make(name, cache, count, seed) for name in names}
        made = {"count": count, "seed": seed}
        return Data("twin", folders, _shown(folders), made)
    root = Path(source)
    if not root.is_dir():
        raise FileNotFoundError(f"DATA is {source!r}: expected 'twin', 'hub' or a folder that exists")
    folders = {name: root / name for name in names}
    if len(names) == 1 and _is_data_set(root) and not _is_data_set(folders[names[0]]):
        folders = {names[0]: root}
    if missing := [str(folder) for folder in folders.values() if not folder.is_dir()]:
        raise FileNotFoundError(f"no such data sets: {', '.join(missing)}; expected a folder for each benchmark")
    return Data(str(root.resolve()), folders, _shown(folders))


def fingerprint(folder: Path) -> str:
    """16 hex digits over a data set: paths and sizes of all files, and the content of all but videos and archives."""
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        digest.update(f"{path.relative_to(folder)}\0{path.stat().st_size}\0".encode())
        if path.suffix.lower() not in _LARGE:
            digest.update(path.read_bytes())
    return digest.hexdigest()


def variables(data: Data, home: Path, datasets_cache: Path) -> dict[str, str]:
    """Variables for a process that runs lmms-eval on this data; makes the links below `home` that they name."""
    from huggingface_hub.constants import HF_HUB_CACHE

    if data.source == "hub":
        return {"HF_HOME": os.path.expanduser(os.environ.get("HF_HOME", "~/.cache/huggingface"))}
    for name, folder in data.folders.items():
        _link(home / "data" / name, folder)
        if media := BENCHMARKS[name].media:
            _link(home / media, folder / twins.TWINS[name].media)
    return {
        "HF_HOME": str(home.resolve()),
        "REGATE_EVAL_DATA": str((home / "data").resolve()),
        "HF_HUB_CACHE": HF_HUB_CACHE,  # models stay where they are
        "LMMS_EVAL_DATASETS_CACHE": str(datasets_cache.resolve()),
    }


def _is_data_set(folder: Path) -> bool:
    return (folder / "README.md").is_file()


def _shown(folders: Mapping[str, Path]) -> tuple[str, ...] | None:
    """MVBench's subtasks, where the folder is a twin's."""
    folder = folders.get("mvbench")
    if folder is None or not (folder / twins.STAMP).is_file():
        return None
    assert json.loads((folder / twins.STAMP).read_text())["twin"] == "mvbench", folder
    return twins.TWINS["mvbench"].shown


def _link(link: Path, target: Path) -> None:
    link.parent.mkdir(parents=True, exist_ok=True)
    target = target.resolve()
    if link.is_symlink() and link.resolve() == target:
        return
    temporary = link.with_name(f".{link.name}.{os.getpid()}")
    temporary.symlink_to(target)
    os.replace(temporary, link)
