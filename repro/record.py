"""One JSON per run: what was run, where, and what came out. Free of torch: tables, figures and the app read it.

Units: seconds, bytes, FLOPs (a multiply-add is two), tokens as counts, accuracies as fractions in [0, 1], dates in UTC.

    write(record, "runs/records")                 # atomic: a reader sees the old file or the new one, never a piece
    records, problems = load(["results/records", "runs"])
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any

from eval.machine import environment
from repro.curve import crossing, peak, running_mean
from repro.measured import (
    FLOP_KINDS,
    TEACHER_KINDS,
    TOKEN_KINDS,
    Benchmark,
    Point,
    RecordError,
    counts,
    is_count,
    is_number,
    need,
    pack,
    unpack,
)

__all__ = [
    "SCHEMA",
    "Benchmark",
    "Point",
    "Record",
    "RecordError",
    "config_hash",
    "crossing",
    "environment",
    "is_stale",
    "load",
    "pack",
    "peak",
    "read",
    "running_mean",
    "unpack",
    "write",
]

SCHEMA = 1
VERSIONS_IN_CONFIG = ("method_version", "world_version")
COMMITTED = ("results", "records")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
OLD_SECONDS = 3600.0
NEVER_WRITTEN = ("origin", "timed")


@dataclass(frozen=True)
class Record:
    """One run. Numbers that were not measured are None: tables show them as "-"."""

    name: str  # file name without .json, e.g. "table4-internvl-regate-s0"
    table: str
    student: str
    method: str  # stock, dense, regate, random, loss_only, ...
    scale: str  # micro, small, paper
    seed: int
    config: dict[str, Any]  # resolved: everything that changes the outcome, method_version and world_version included
    started: str
    finished: str
    steps: int
    config_hash: str = ""  # computed where empty
    commit: str | None = None
    dirty: bool | None = None
    versions: dict[str, str] = field(default_factory=dict)
    hardware: dict[str, Any] = field(default_factory=dict)
    protocol: str = ""
    alone: bool = False  # nothing else ran beside it: only then are its times comparable
    tokens: dict[str, int | None] = field(default_factory=dict)
    flops: dict[str, float | None] = field(default_factory=dict)
    teacher: dict[str, float | None] | None = None
    train_seconds: float | None = None  # training alone: neither evaluation nor checkpointing
    peak_memory_bytes: int | None = None
    skipped_samples: int = 0
    curve: tuple[Point, ...] = ()
    benchmarks: tuple[Benchmark, ...] = ()
    artefacts: dict[str, dict[str, Any]] = field(default_factory=dict)  # name -> path (relative), sha256
    crossing: dict[str, Any] | None = None  # as the run saw it: metric, target, baseline, step or None
    timeline: list[list[Any]] = field(default_factory=list)  # [kind of step, how many in a row], from step 0
    by_tag: dict[str, Any] | None = None  # what repro.kept counted; None where no gate was at work
    schema: int = SCHEMA
    origin: str = field(default="own", compare=False)  # committed or own: where it was read from, never written
    timed: str = field(default="", compare=False)  # "calibrated" (repro.timing), never written

    def __post_init__(self) -> None:
        fix = "this version reads schema 1 only: run the recipe again, or read it with the commit that wrote it"
        need(self.schema == SCHEMA, "schema", self.schema, str(SCHEMA), fix)
        matches = isinstance(self.name, str) and NAME.fullmatch(self.name)
        need(bool(matches), "name", self.name, "letters, digits, '.', '_', '-' (it becomes the file's name)")
        for name in ("table", "student", "method", "scale"):
            value = getattr(self, name)
            need(isinstance(value, str) and bool(value), name, value, "text that is not empty")
        for name in ("seed", "steps", "skipped_samples"):
            need(is_count(getattr(self, name)), name, getattr(self, name), "a whole number >= 0")
        for name in ("started", "finished"):
            value = getattr(self, name)
            need(_is_utc(value), name, value, "a UTC time such as 2025-11-22T06:56:00+00:00")
        need(isinstance(self.alone, bool), "alone", self.alone, "true or false")
        need(self.dirty in (None, True, False), "dirty", self.dirty, "true, false or null")
        need(self.commit is None or isinstance(self.commit, str), "commit", self.commit, "text or null")
        need(isinstance(self.protocol, str), "protocol", self.protocol, "text, e.g. 'rank'")
        for name in ("versions", "hardware"):
            need(isinstance(getattr(self, name), Mapping), name, getattr(self, name), "a mapping")
        self._measured()
        digest = config_hash(self.config)
        # As it will be read back.
        for name in ("config", "versions", "hardware", "artefacts", "crossing", "timeline", "by_tag"):
            object.__setattr__(self, name, _plain(name, getattr(self, name)))
        todo = "the file was edited by hand: run the recipe again"
        need(self.config_hash in ("", digest), "config_hash", self.config_hash, f"{digest} (of 'config')", todo)
        object.__setattr__(self, "config_hash", digest)

    def _measured(self) -> None:
        object.__setattr__(self, "tokens", counts("tokens", self.tokens, TOKEN_KINDS, whole=True))
        object.__setattr__(self, "flops", counts("flops", self.flops, FLOP_KINDS, whole=False))
        if self.teacher is not None:
            object.__setattr__(self, "teacher", counts("teacher", self.teacher, TEACHER_KINDS, whole=False))
        seconds, memory = self.train_seconds, self.peak_memory_bytes
        need(seconds is None or is_number(seconds, 0), "train_seconds", seconds, "seconds >= 0 or null")
        need(memory is None or is_count(memory), "peak_memory_bytes", memory, "bytes >= 0 or null")
        object.__setattr__(self, "curve", _parts(Point, "curve", self.curve))
        object.__setattr__(self, "benchmarks", _parts(Benchmark, "benchmarks", self.benchmarks))
        steps = [point.step for point in self.curve]
        need(steps == sorted(set(steps)), "curve", steps, "steps that rise from point to point")
        need(isinstance(self.artefacts, Mapping), "artefacts", self.artefacts, "a mapping of names to path and sha256")
        for name, entry in self.artefacts.items():
            entry = entry if isinstance(entry, Mapping) else {}
            path, digest = entry.get("path"), entry.get("sha256")
            inside = isinstance(path, str) and not PurePosixPath(path).is_absolute() and ".." not in path.split("/")
            need(inside and bool(path), f"artefacts.{name}.path", path, "a relative path without '..'")
            whole = isinstance(digest, str) and re.fullmatch("[0-9a-f]{64}", digest)
            need(bool(whole), f"artefacts.{name}.sha256", digest, "64 hexadecimal digits")
        counted = sum(n for _, n in self.timeline)
        need(not self.timeline or counted == self.steps, "timeline", counted, f"kinds of all {self.steps} steps")
        good = self.crossing is None or isinstance(self.crossing, Mapping)
        need(good, "crossing", self.crossing, "a mapping or null")

    def point(self, step: int) -> Point | None:
        """The evaluation at a step, or None."""
        return next((point for point in self.curve if point.step == step), None)


def _is_utc(value: object) -> bool:
    try:
        offset = datetime.fromisoformat(value).utcoffset()  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False
    return offset is not None and not offset


def _parts(kind: type, name: str, values: Any) -> tuple[Any, ...]:
    need(isinstance(values, Sequence) and not isinstance(values, str), name, values, "a list")
    named = [(f"{name}[{i}]", value) for i, value in enumerate(values)]
    return tuple(value if isinstance(value, kind) else _build(kind, value, at) for at, value in named)


def _build(kind: type, value: Any, name: str = "") -> Any:
    """A dataclass from a mapping: unknown and missing fields are errors that name the field."""
    dot = f"{name}." if name else ""
    need(isinstance(value, Mapping), name or "record", value, "a JSON object")
    fields = {f.name: f for f in dataclasses.fields(kind) if f.name not in NEVER_WRITTEN}
    needed = {n for n, f in fields.items() if f.default is f.default_factory is dataclasses.MISSING}
    needed |= {"schema", "config_hash"} & set(fields)
    for missing in sorted(needed - set(value)):
        raise RecordError(dot + missing, "nothing", "a value", "run the recipe again")
    for unknown in sorted(set(value) - set(fields)):
        raise RecordError(dot + unknown, value[unknown], f"no such field in schema {SCHEMA}", "remove it")
    try:
        return kind(**value)
    except RecordError as error:
        raise RecordError(dot + error.field, error.got, error.expected, error.todo) from None


def config_hash(config: Mapping[str, Any]) -> str:
    """sha256 of the configuration as canonical JSON. It decides whether a record is stale, so it holds the versions."""
    need(isinstance(config, Mapping), "config", config, "a mapping")
    for name in VERSIONS_IN_CONFIG:
        need(name in config, f"config.{name}", "nothing", "a version (null where none applies)", "add it there")
    text = json.dumps(_plain("config", config), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(name: str, value: Any) -> Any:
    """The value as JSON gives it back: tuples become lists, keys become text."""
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise RecordError(name, str(error), "what JSON can hold", "resolve it to plain values") from None


def is_stale(record: Record, config: Mapping[str, Any]) -> str | None:
    """Why the record does not answer for this configuration, or None where it does."""
    if record.config_hash == config_hash(config):
        return None
    old, new = _flat(record.config), _flat(_plain("config", config))
    nothing = object()
    changed = [key for key in sorted({*old, *new}) if old.get(key, nothing) != new.get(key, nothing)]
    shown = [f"{key}: {old.get(key, 'nothing')!r} -> {new.get(key, 'nothing')!r}" for key in changed]
    return f"{record.name}: configuration changed: " + ("; ".join(shown) or "a number's type")


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping) or not value:
        return {prefix: value}
    parts = (_flat(inner, f"{prefix}.{key}" if prefix else str(key)) for key, inner in value.items())
    return {key: inner for part in parts for key, inner in part.items()}


def write(record: Record, directory: str | Path) -> Path:
    """Write `<directory>/<name>.json` so that a reader, at any moment, finds the old file or the whole new one.

    `results/records` takes only what a clean checkout can repeat.
    """
    directory = Path(directory)
    if directory.resolve().parts[-2:] == COMMITTED and (record.commit is None or record.dirty is not False):
        got = "no commit" if record.commit is None else f"dirty={record.dirty} at {record.commit[:12]}"
        todo = "commit the sources and run again, or keep the record under runs/"
        raise RecordError("dirty", got, "a run from a clean tree of a known commit", todo, directory / record.name)
    return write_text(directory / f"{record.name}.json", _text(record))


def write_text(path: Path, text: str) -> Path:
    """Write a file, and its folder, so that it is on the disk with all of the text, or as it was before."""
    directory = path.parent
    directory.mkdir(parents=True, exist_ok=True)
    for old in directory.glob(f".{path.name}.*.tmp"):  # left by writers that were killed
        if time.time() - old.stat().st_mtime > OLD_SECONDS:
            old.unlink(missing_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=directory)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            os.fchmod(file.fileno(), 0o644)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    folder = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return path


def _text(record: Record) -> str:
    """JSON with one line a field, and one line a point of the curve: readable, and small in a diff."""
    values = dataclasses.asdict(record)
    for name in NEVER_WRITTEN:
        del values[name]
    values["seal"] = sealed(values)
    lines = []
    for name, value in values.items():
        if name in ("curve", "benchmarks") and value:
            inner = ",\n  ".join(json.dumps(part, ensure_ascii=False, allow_nan=False) for part in value)
            text = f"[\n  {inner}\n ]"
        else:
            text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        lines.append(f" {json.dumps(name)}: {text}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def sealed(values: Mapping[str, Any]) -> str:
    """What a record says of itself: a hash of all else in it, so that a digit that changed on the disk is found."""
    text = json.dumps(values, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def check_seal(values: Mapping[str, Any], seal: str | None) -> None:
    """RecordError where the seal is not that of the values. Files of earlier versions have none: git guards those."""
    need(seal is None or seal == sealed(values), "seal", seal, "the hash of all else in the file", "run it again")


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number")


def read(path: str | Path) -> Record:
    """The record in a file; RecordError where it is damaged, of another schema, or does not fit its name."""
    path = Path(path)
    todo = "delete it and run the recipe again"
    try:
        value = json.loads(path.read_bytes().decode("utf-8"), parse_constant=_no_constant)
    except OSError as error:
        raise RecordError("file", error.strerror, "a readable file", "look at its path and rights", path) from None
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError among them
        raise RecordError("file", str(error), "a complete JSON object", todo, path) from None
    try:
        if isinstance(value, Mapping) and value.get("schema", SCHEMA) != SCHEMA:
            again = "run the recipe again, or read it with the commit that wrote it"
            raise RecordError("schema", value["schema"], str(SCHEMA), again)
        seal = value.pop("seal", None) if isinstance(value, dict) else None
        record: Record = _build(Record, value)
        need(record.name == path.stem, "name", record.name, f"'{path.stem}', as the file is called", "rename the file")
        check_seal(value, seal)  # last: a field that makes no sense is named as that
    except RecordError as error:
        raise error.at(path) from None
    return record


def load(directories: Iterable[str | Path] = ("results/records", "runs")) -> tuple[list[Record], list[RecordError]]:
    """All records, and the problems of those that cannot be read (never an exception for one damaged file).

    `.../results/records` holds "committed" ones; any other directory holds "own" ones, in itself if it is called
    `records`, and in every directory `records` below it. A directory that is not there holds none.
    """
    records, problems = [], []
    for directory in map(Path, directories):
        resolved = directory.resolve()
        origin = "committed" if resolved.parts[-2:] == COMMITTED else "own"
        found = set(directory.rglob("records/*.json")) if origin == "own" else set()
        if resolved.name == "records":
            found |= set(directory.glob("*.json"))
        for path in sorted(path for path in found if not path.name.startswith(".")):
            try:
                records.append(dataclasses.replace(read(path), origin=origin))
            except RecordError as error:
                problems.append(error)
    return records, problems
