"""One JSON for each benchmark of a run that passed the guard: what tables read. Free of torch and of lmms-eval.

    results, problems = load("runs/eval")
    results[0].scores["average"].value, results[0].headline

A result carries the guard's stamp, a hash of all that it says. A file without it, or whose content does not fit it, is
no result: `read` raises.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.scores import HEADLINES, Score

SCHEMA = 1


class ResultError(ValueError):
    """A file that is no result of a run that passed the guard: names the file, what was found, and what to do."""


@dataclass(frozen=True)
class Result:
    """One benchmark, as one checkpoint answered it.

    Attributes:
        benchmark: name in `eval.benchmarks`.
        checkpoint: path or hub name, `base` of an adapter, and `fingerprint` of both.
        protocol: answer (generate, rank), normalize, num_frames, max_length, dtype, attn_implementation.
        prompts: profile, sentence (Table 6's; None with profile stock), sha (over all prompts, in order).
        data: source (twin, hub, path), fingerprint (of a folder), count and seed (of a twin), questions (hash of
            questions and order: equal ones can be compared in pairs), missing (tasks that the data does not have).
        limit: questions per task, None: all.
        scores: by name, headline ones among them.
        outcomes: task -> score of every question, in order.
        stock: lmms-eval's own numbers by task.
        cost: seconds and processes of the run, input_tokens, output_tokens, from_cache (answers of an earlier attempt).
        made: started, finished (UTC), commit, dirty, versions, hardware.
        max_unparsable: what the guard let pass.
        schema: of this file.
    """

    benchmark: str
    checkpoint: dict[str, Any]
    protocol: dict[str, Any]
    prompts: dict[str, Any]
    data: dict[str, Any]
    limit: int | None
    seed: int
    scores: dict[str, Score]
    outcomes: dict[str, list[float]]
    stock: dict[str, dict[str, Any]]
    cost: dict[str, Any]
    made: dict[str, Any]
    max_unparsable: float
    schema: int = SCHEMA

    @property
    def headline(self) -> list[Score]:
        """The scores that fill this benchmark's columns in Tables 1-3."""
        return [self.scores[name] for name in HEADLINES[self.benchmark] if name in self.scores]

def config_hash(*parts: Any) -> str:
    """16 hex digits over JSON values."""
    return hashlib.blake2b(_canonical(parts), digest_size=8).hexdigest()


def write(result: Result, path: Path) -> None:
    """Writes a result with its stamp: whole or not at all."""
    values = dataclasses.asdict(result)
    values["stamp"] = _stamp(values)
    lines = [f" {json.dumps(name)}: {_text(name, value)}" for name, value in values.items()]
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            os.fchmod(file.fileno(), 0o644)
            file.write("{\n" + ",\n".join(lines) + "\n}\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read(path: str | Path) -> Result:
    """The result in a file; ResultError where it is damaged, of another schema, or without the guard's stamp."""
    path = Path(path)
    again = "evaluate the checkpoint again (make eval-...)"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ResultError(f"{path}: found {error}, expected a complete JSON object; {again}") from None
    if not isinstance(values, dict) or values.get("schema") != SCHEMA:
        raise ResultError(f"{path}: expected schema {SCHEMA} of an evaluation's result; {again}")
    stamp = values.pop("stamp", None)
    if stamp != _stamp(values):
        what = "no stamp of the guard" if stamp is None else "a stamp that does not fit the content"
        raise ResultError(f"{path}: found {what}; only a run that passed the guard fills a table: {again}")
    values["scores"] = {name: Score(**score) for name, score in values["scores"].items()}
    return Result(**values)


def load(root: str | Path = "runs/eval") -> tuple[list[Result], list[ResultError]]:
    """All results below a folder, and the problems of files that are none; a folder that is not there holds none."""
    results, problems = [], []
    for path in sorted(Path(root).glob("*/*.json")):
        try:
            results.append(read(path))
        except ResultError as error:
            problems.append(error)
    return results, problems


def _stamp(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(b"regate eval guard\n" + _canonical(values)).hexdigest()


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False).encode()


def _text(name: str, value: Any) -> str:
    """One line a field, one line a score."""
    if name == "scores":
        inner = ",\n  ".join(f"{json.dumps(k)}: {json.dumps(v, ensure_ascii=False)}" for k, v in value.items())
        return f"{{\n  {inner}\n }}"
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
