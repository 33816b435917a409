"""JSON files that are whole, clean and unaltered: how records of the bench and of fault runs are written and read.

Free of torch.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from repro.measured import RecordError, need
from repro.record import check_seal, sealed, write_text

Made = TypeVar("Made")


def write(record: Any, path: Path, committed: tuple[str, str], text: Callable[[dict[str, Any]], str]) -> Path:
    """Write a record (a dataclass with ``commit`` and ``dirty``) with its seal, as ``text`` has its values.

    RecordError where the folder is ``committed`` (its last two names) and the run is not of a clean, known commit.
    """
    if path.parent.resolve().parts[-2:] == committed and (record.commit is None or record.dirty is not False):
        got = f"dirty={record.dirty} at {record.commit}"
        todo = "commit the sources and run again, or keep the record under runs/"
        raise RecordError("dirty", got, "a run from a clean tree of a known commit", todo, path)
    values = dataclasses.asdict(record)
    return write_text(path, text({**values, "seal": sealed(values)}) + "\n")


def read(kind: Callable[..., Made], path: Path, again: str, *, older: bool = False) -> Made:
    """The record of dataclass ``kind`` in a file; RecordError naming file and field where it is damaged.

    ``again``: what to do then. ``older``: files of before there were seals are read, too.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RecordError("file", str(error), "a complete JSON object", again, path) from None
    names = {f.name for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    try:
        need(isinstance(values, dict), "file", values, "a JSON object", again)
        need(older or "seal" in values, "seal", "nothing", "the hash of all else in the file", again)
        seal = values.pop("seal", None)
        need(set(values) == names, "fields", sorted(set(values) ^ names), "none missing, none else", again)
        need(values["config_hash"] != "", "config_hash", "", "the hash that was written", again)
        record = kind(**values)
        check_seal(values, seal)  # last: a field that makes no sense is named as that
    except RecordError as error:
        raise error.at(path) from None
    return record


def load(read_one: Callable[[Path], Made], paths: Iterable[Path]) -> tuple[list[Made], list[RecordError]]:
    """All records of some files, and the problems of those that cannot be read."""
    records, problems = [], []
    for path in sorted(paths):
        try:
            records.append(read_one(path))
        except RecordError as error:
            problems.append(error)
    return records, problems
