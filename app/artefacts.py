"""Reads what runs leave for the app: records, traces of the gate, and the samples' texts beside them. No torch.

A file that is gone, damaged or changed is a `Problem` that names it and says what to do; everything else goes on.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from app.views.gate import Answer, ties
from repro import timing
from repro.record import Record, load

ROOT = Path(__file__).resolve().parent.parent
COLUMNS = ("step", "sample_id", "ratio", "reference", "ema", "score", "kept", "loss")
AGAIN = "run its recipe again, or remove it"


class Problem(ValueError):
    """Something that cannot be shown: the message names the file, what was found and what to do."""


@dataclass(frozen=True)
class Places:
    """Where things are: committed results, and the user's own runs."""

    results: Path
    runs: Path

    @classmethod
    def here(cls) -> Places:
        """`results/` and `runs/` of this checkout, or what REGATE_RESULTS and REGATE_RUNS name."""
        results, runs = (Path(os.environ.get(f"REGATE_{name.upper()}") or ROOT / name) for name in ("results", "runs"))
        return cls(results, runs)

    @property
    def calibrations(self) -> tuple[Path, Path]:
        """Folders of what steps cost (`repro.timing`), the user's own after the committed one."""
        return self.results / "calibration", self.runs / "calibration"

    def state(self) -> tuple[tuple[str, int, int], ...]:
        """Path, time and size of all records and traces: equal states hold the same."""
        files = [*self.results.glob("records/*.json"), *self.runs.rglob("records/*.json")]
        files += [*self.results.glob("artefacts/*/*"), *self.runs.rglob("trace.parquet")]
        files += [*self.results.glob("calibration/*.json"), *self.runs.glob("calibration/*.json")]
        files += [*self.results.glob("evaluations/*/*.json"), *self.runs.glob("eval/*/*.json")]
        known = sorted((str(path), path.stat()) for path in files if path.is_file())
        return tuple((path, stat.st_mtime_ns, stat.st_size) for path, stat in known)

    def short(self, path: Path) -> str:
        """A path as a reader would type it from the repository's root."""
        return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


@dataclass(frozen=True)
class Sample:
    """One traced sample's texts (`samples.json` beside a trace)."""

    id: str
    question: str
    answer: str
    tokens: tuple[str, ...]
    tags: tuple[str, ...]
    frames: Path | None


@dataclass(frozen=True)
class Visit:
    """One step in which a sample was in the batch. Arrays [N] over its targets; losses in nats, NaN = not known."""

    step: int
    ratio: float
    reference: np.ndarray
    ema: np.ndarray
    score: np.ndarray
    kept: np.ndarray
    loss: np.ndarray

    @property
    def dense(self) -> bool:
        """Whether the step kept everything."""
        return self.ratio >= 1


@dataclass(frozen=True)
class Trace:
    """A run's trace: where it is and which run wrote it (None for a run without a record)."""

    name: str
    path: Path
    record: Record | None = None

    @property
    def origin(self) -> str:
        """committed or own."""
        return self.record.origin if self.record else "own"

    @property
    def gate(self) -> dict[str, Any]:
        """The gate's settings as the record has them."""
        return dict(self.record.config.get("gate") or {}) if self.record else {}

    @property
    def seed(self) -> int:
        """The run's seed, which breaks ties."""
        return self.record.seed if self.record else 0


@dataclass(frozen=True)
class Traced:
    """What a trace holds, by sample; those of which the gate has most to show come first (`_interest`)."""

    trace: Trace
    visits: dict[int, tuple[Visit, ...]]
    samples: dict[int, Sample]

    @cached_property
    def steps(self) -> int:
        """Steps of the run, or of what was traced of it."""
        last = max((visit.step for visits in self.visits.values() for visit in visits), default=-1) + 1
        return max(last, self.trace.record.steps if self.trace.record else 0)

    def label(self, sample_id: int) -> str:
        """How a sample is called in a list: the beginning of its answer, or its number."""
        sample = self.samples.get(sample_id)
        if sample is None:
            return f"sample {sample_id}"
        text = sample.answer if len(sample.answer) <= 60 else sample.answer[:58].rstrip() + " …"
        return f"{sample_id} · {text}"

    def answer(self, sample_id: int, visit: Visit) -> Answer:
        """A sample as the gate saw it at a visit. Without texts its tokens are called t1, t2, ..."""
        sample, n = self.samples.get(sample_id), len(visit.kept)
        tags = sample.tags if sample else ()
        return Answer(
            question=sample.question if sample else "",
            tokens=sample.tokens if sample else tuple(f" t{i + 1}" for i in range(n)),
            reference=visit.reference,
            ema=visit.ema,
            candidate=np.array([tag != "special" for tag in tags] if tags else [True] * n, dtype=bool),
            tie=ties(self.trace.seed, sample_id, n),
            tags=tags,
            name=str(sample_id),
        )


def load_records(places: Places) -> tuple[list[Record], list[Problem]]:
    """All records, committed and own, and what is wrong with other files, calibrations among them."""
    records, errors = load([places.results / "records", places.runs])
    errors = errors + timing.load(places.calibrations)[1]
    return records, [Problem(f"{error}") for error in errors]


def find_traces(records: Sequence[Record], places: Places) -> list[Trace]:
    """Traces that records name, and those of runs without a record: committed before own, gated first, and of these
    the small scale's, whose teacher is a real language model."""
    roots = {"committed": places.results / "artefacts", "own": places.runs}
    traces = []
    for record in records:
        entry = record.artefacts.get("trace")
        if entry:
            traces.append(Trace(record.name, roots[record.origin] / entry["path"], record))
    known = {trace.path.resolve() for trace in traces}
    for path in sorted(places.runs.rglob("trace.parquet")):
        if path.resolve() not in known:
            traces.append(Trace(str(path.parent.relative_to(places.runs)), path))
    return sorted(traces, key=lambda trace: (trace.origin, not gated(trace), *_student(trace), trace.name))


def _student(trace: Trace) -> tuple[bool, str]:
    """For sorting: the small scale first, full fine-tuning (its student's name is the shorter) before LoRA."""
    return (trace.record.scale != "small", trace.record.student) if trace.record else (True, "")


def gated(trace: Trace) -> bool:
    """Whether its gate elides anything (a dense run's trace has losses, but no decisions)."""
    return trace.gate.get("policy", "regate") != "dense"


def read_trace(trace: Trace) -> Traced:
    """A trace and its samples; `Problem` where the file is gone, damaged, or not the one that its record names."""
    path = trace.path
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise Problem(f"{path}: {error.strerror}, expected the trace of {trace.name}; {AGAIN}") from None
    expected = trace.record.artefacts["trace"]["sha256"] if trace.record else None
    found = hashlib.sha256(raw).hexdigest()
    if expected not in (None, found):
        raise Problem(
            f"{path}: has sha256 {found[:12]}…, its record names {expected[:12]}…: not the trace of this run; {AGAIN}"
        )
    try:
        rows = pq.read_table(pa.BufferReader(raw), columns=list(COLUMNS)).to_pylist()
    except (pa.ArrowException, KeyError, OSError) as error:
        first = str(error).splitlines()[0]
        raise Problem(f"{path}: no trace can be read from it ({first}); {AGAIN}") from None
    visits: dict[int, list[Visit]] = {}
    for row in sorted(rows, key=lambda row: row["step"]):
        losses = {name: np.asarray(row[name], dtype=np.float32) for name in ("reference", "ema", "score", "loss")}
        kept = np.asarray(row["kept"], dtype=bool)
        if {len(values) for values in losses.values()} != {len(kept)}:
            raise Problem(f"{path}: step {row['step']} has lists of different lengths; {AGAIN}")
        visits.setdefault(row["sample_id"], []).append(Visit(row["step"], row["ratio"], kept=kept, **losses))
    if not visits:
        raise Problem(f"{path}: holds no step yet; wait for the run's first save")
    found_visits = {key: tuple(visits[key]) for key in sorted(visits, key=lambda key: _interest(key, visits[key]))}
    return Traced(trace, found_visits, read_samples(path.parent / "samples.json", found_visits))


def _interest(sample_id: int, visits: Sequence[Visit]) -> tuple[bool, int, int]:
    """Sorts samples, best to look at first: the last visit in a sparse step, then the most tokens elided over all
    visits. Of an answer of one word, or one whose visits all fell into dense steps, there is little to see."""
    return visits[-1].dense, sum(int(visit.kept.sum()) - len(visit.kept) for visit in visits), sample_id


def read_samples(path: Path, visits: dict[int, tuple[Visit, ...]]) -> dict[int, Sample]:
    """Texts of the traced samples, by sample id; none where the file is not there."""
    if not path.is_file():
        return {}
    fix = "`python -m repro artefacts` writes it again"
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        samples = {
            int(row["sample_id"]): Sample(
                str(row["id"]), row["question"], row["answer"], tuple(row["tokens"]), tuple(row["tags"]),
                path.parent / row["frames"] if row.get("frames") else None,
            )
            for row in rows
        }  # fmt: skip
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise Problem(f"{path}: {type(error).__name__}: {error}, expected a list of samples; {fix}") from None
    for sample_id, sample in samples.items():
        n = len(visits[sample_id][0].kept) if sample_id in visits else len(sample.tokens)
        if len(sample.tokens) != n or len(sample.tags) != n:
            got = f"{len(sample.tokens)} tokens and {len(sample.tags)} tags"
            raise Problem(f"{path}: sample {sample_id} has {got}, its trace {n} targets; {fix}")
    return samples
