"""The record of a fault run: one line a fault, and where and of what it was made. Free of torch."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from repro import sealed
from repro.measured import RecordError, is_number, need
from repro.record import config_hash

SCHEMA = 1
COMMITTED = ("results", "faults")
AGAIN = "delete it and run `make faults` again"
PARTS = ("training", "ranks", "scoring", "commands", "evaluation", "disk", "files", "samples")


@dataclass(frozen=True)
class Fault:
    """One fault and what came of it.

    Attributes:
        part: which part of the harness made it.
        kind: what was done: SIGKILL, SIGTERM, a full disk, a flipped bit, a kind of bad sample ...
        target: to what.
        detail: when or where.
        outcome: what was seen, in the words that the table counts.
        held: whether that is what is promised.
        process: whether a running process was killed or failed.
        seconds: from SIGTERM until the process had left, where one was sent.
    """

    part: str
    kind: str
    target: str
    detail: str
    outcome: str
    held: bool
    process: bool = False
    seconds: float | None = None


@dataclass(frozen=True)
class FaultRecord:
    """A run of `make faults`. ``skipped``: what could not be done on this machine, and why. ``memory``: of the long
    run, {"steps", "measured": [[step, resident bytes], ...]}; None where it was left out."""

    seed: int
    config: dict[str, Any]
    started: str
    finished: str
    commit: str | None
    dirty: bool | None
    versions: dict[str, str]
    hardware: dict[str, Any]
    faults: tuple[Fault, ...]
    skipped: dict[str, str]
    memory: dict[str, Any] | None
    measured: dict[str, Any] = field(default_factory=dict)
    config_hash: str = field(default="")
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        need(self.schema == SCHEMA, "schema", self.schema, str(SCHEMA), AGAIN)
        digest = config_hash(self.config)
        need(self.config_hash in ("", digest), "config_hash", self.config_hash, f"{digest} (of 'config')", AGAIN)
        object.__setattr__(self, "config_hash", digest)
        faults = tuple(f if isinstance(f, Fault) else _fault(i, f) for i, f in enumerate(self.faults))
        need(bool(faults or self.memory or self.measured), "faults", self.faults, "at least one", AGAIN)
        object.__setattr__(self, "faults", faults)
        for step, size in (self.memory or {}).get("measured", []):
            need(is_number(step, 0) and is_number(size, 1), "memory", [step, size], "[step, resident bytes]", AGAIN)

    @property
    def failures(self) -> list[Fault]:
        """Faults after which something promised did not hold."""
        return [fault for fault in self.faults if not fault.held]


def _fault(index: int, value: Any) -> Fault:
    names = {f.name for f in dataclasses.fields(Fault)}
    good = isinstance(value, Mapping) and set(value) == names and isinstance(value.get("held"), bool)
    need(good, f"faults[{index}]", value, f"an object with {', '.join(sorted(names))}", AGAIN)
    return Fault(**value)


def write(record: FaultRecord, path: str | Path) -> Path:
    """Write a record, whole or not at all; `results/faults` takes only runs of a clean commit."""
    return sealed.write(record, Path(path), COMMITTED, _text)


def _text(values: Mapping[str, Any]) -> str:
    """JSON with one line a field, and one line a fault."""
    lines = []
    for name, value in values.items():
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        if name == "faults":
            text = "[\n  " + ",\n  ".join(json.dumps(v, ensure_ascii=False, allow_nan=False) for v in value) + "\n ]"
        lines.append(f" {json.dumps(name)}: {text}")
    return "{\n" + ",\n".join(lines) + "\n}"


def read(path: str | Path) -> FaultRecord:
    """The record in a file; RecordError naming file and field where it is damaged or of another schema."""
    return sealed.read(FaultRecord, Path(path), AGAIN)


def load(directory: str | Path) -> tuple[list[FaultRecord], list[RecordError]]:
    """All records of a directory, and the problems of those that cannot be read."""
    return sealed.load(read, Path(directory).glob("*.json"))
