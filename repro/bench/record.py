"""The bench's record: one JSON with every timed step, and where and of what it was made. Free of torch.

Units: seconds, bytes, FLOPs. Lists have one entry a round; null where a contestant sat a round out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from repro import sealed
from repro.measured import RecordError, is_number, need
from repro.record import config_hash

SCHEMA = 1
KINDS = ("bench", "scaling", "input", "buffer")
COMMITTED = ("results", "bench")
AGAIN = "delete it and run `make bench` again"
LISTS = {
    "bench": ("times", "gating", "teacher"),
    "scaling": ("times",),
    "input": ("samples_per_second",),
    "buffer": ("step", "disk"),
}


@dataclass(frozen=True)
class BenchRecord:
    """One run of the bench. ``measured``: name of a workload (a sweep's point, for scaling) -> what it gave."""

    kind: str  # one of KINDS
    device: str  # cpu, cuda
    seed: int
    config: dict[str, Any]
    started: str
    finished: str
    commit: str | None
    dirty: bool | None
    versions: dict[str, str]
    hardware: dict[str, Any]
    measured: dict[str, dict[str, Any]]
    config_hash: str = field(default="")
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        need(self.schema == SCHEMA, "schema", self.schema, str(SCHEMA), AGAIN)
        need(self.kind in KINDS, "kind", self.kind, f"one of {KINDS}", AGAIN)
        need(isinstance(self.measured, Mapping) and bool(self.measured), "measured", self.measured, "workloads", AGAIN)
        digest = config_hash(self.config)
        need(self.config_hash in ("", digest), "config_hash", self.config_hash, f"{digest} (of 'config')", AGAIN)
        object.__setattr__(self, "config_hash", digest)
        for workload, values in self.measured.items():
            for group in LISTS[self.kind]:
                _check_lists(f"measured.{workload}.{group}", values.get(group))

    @property
    def name(self) -> str:
        """File name without .json."""
        return f"{self.kind}-{self.device}"


def _check_lists(name: str, lists: Any) -> None:
    need(isinstance(lists, Mapping), name, lists, "lists of seconds by name", AGAIN)
    lengths = set()
    for key, values in lists.items():
        good = isinstance(values, list) and all(v is None or is_number(v, 0) for v in values)
        need(good, f"{name}.{key}", values, "a list of seconds >= 0 and null", AGAIN)
        lengths.add(len(values))
    need(len(lengths) <= 1, name, sorted(lengths), "lists of one length: rounds are paired", AGAIN)


def write(record: BenchRecord, directory: str | Path) -> Path:
    """Write ``<directory>/<name>.json``, whole or not at all; `results/bench` takes only runs of a clean commit."""
    text = partial(json.dumps, allow_nan=False)
    return sealed.write(record, Path(directory) / f"{record.name}.json", COMMITTED, text)


def read(path: str | Path) -> BenchRecord:
    """The record in a file; RecordError naming file and field where it is damaged or of another schema."""
    path = Path(path)
    record = sealed.read(BenchRecord, path, AGAIN, older=True)
    if record.name != path.stem:
        raise RecordError("name", record.name, f"'{path.stem}', as the file is called", AGAIN, path)
    return record


def load(directory: str | Path) -> tuple[list[BenchRecord], list[RecordError]]:
    """All records of a directory, and the problems of those that cannot be read."""
    return sealed.load(read, Path(directory).glob("*.json"))
