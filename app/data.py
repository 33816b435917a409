"""What the pages read, kept between reruns until a file changes. Nothing here copies or hashes what it keeps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import streamlit as st

from app import artefacts, teachers
from app.artefacts import Places, Problem, Trace, Traced
from app.views.gate import Answer
from repro.record import Record

State = tuple[tuple[str, int, int], ...]


def records() -> tuple[list[Record], list[Problem]]:
    """All records, and what is wrong with the files that hold none."""
    places = Places.here()
    return _records(str(places.results), str(places.runs), places.state())


@st.cache_resource(max_entries=4, show_spinner=False)
def _records(results: str, runs: str, state: State) -> tuple[list[Record], list[Problem]]:
    return artefacts.load_records(Places(Path(results), Path(runs)))


def timed(alike: bool = False) -> list[Record]:
    """All records, those that ran beside other work with calibrated times where there are any; `alike`: all of them."""
    places = Places.here()
    return _timed(str(places.results), str(places.runs), places.state(), alike)


@st.cache_resource(max_entries=4, show_spinner=False)
def _timed(results: str, runs: str, state: State, alike: bool) -> list[Record]:
    from repro import timing

    places = Places(Path(results), Path(runs))
    records, costs = _records(results, runs, state)[0], timing.load(places.calibrations)[0]
    return (timing.timed_alike if alike else timing.timed_alone)(records, costs)


def evaluated() -> tuple[list[Any], list[Problem]]:
    """Runs that were scored on benchmarks (`repro.benchmark_tables.Evaluated`), and what is wrong with other files."""
    places = Places.here()
    return _evaluated(str(places.results), str(places.runs), places.state())


@st.cache_resource(max_entries=4, show_spinner=False)
def _evaluated(results: str, runs: str, state: State) -> tuple[list[Any], list[Problem]]:
    from repro import benchmark_tables

    found, errors = benchmark_tables.find(Path(results), Path(runs))
    return benchmark_tables.evaluated(found), [Problem(str(error)) for error in errors]


def traces() -> list[Trace]:
    """Traces of all runs that wrote one."""
    return artefacts.find_traces(records()[0], Places.here())


def traced(trace: Trace) -> Traced:
    """What a trace holds; `Problem` where it cannot be read."""
    config = trace.record.config_hash if trace.record else ""
    return _traced(str(trace.path), config, stamp(str(trace.path.parent)), trace)


@st.cache_resource(max_entries=16, show_spinner=False)
def _traced(path: str, config: str, stamp: str, _trace: Trace) -> Traced:
    return artefacts.read_trace(_trace)


@st.cache_resource(max_entries=1, show_spinner=False)
def published(path: str, stamp: int) -> dict[str, Any]:
    """What the paper prints (`results/published.json`)."""
    from repro.tables import read_published

    return read_published(path)


def the_paper() -> dict[str, Any]:
    """The published numbers; `Problem` where their file is gone."""
    path = Places.here().results / "published.json"
    try:
        return published(str(path), path.stat().st_mtime_ns)
    except (OSError, ValueError) as error:
        raise Problem(f"{path}: cannot be read ({error}); `git checkout {path.name}` brings it back") from None


def teacher(path: str) -> teachers.Teacher:
    """A loaded teacher, the last two are kept; `Problem` where its folder is gone or holds none."""
    return _teacher(path, stamp(path))


@st.cache_resource(max_entries=2, show_spinner=False)
def _teacher(path: str, stamp: str) -> teachers.Teacher:
    return teachers.load(path)


@st.cache_resource(max_entries=64, show_spinner=False)
def scored(teacher: str, student: str | None, stamp: str, texts: tuple[tuple[str, str, str], ...]) -> list[Answer]:
    """(name, question, answer) of each text -> its losses. `stamp` names the weights: other ones score anew."""
    return list(score(teacher, student, texts))


def score(teacher_path: str, student_path: str | None, texts: Sequence[tuple[str, str, str]]) -> Any:
    """The same, one answer after the other, for a progress bar."""
    model = teacher(teacher_path)
    other = teacher(student_path) if student_path else None
    rows = [teachers.encode(model, question, answer, name) for name, question, answer in texts]
    return teachers.score(model, rows, other)


def stamp(*paths: str | None) -> str:
    """What tells apart what lies in folders: names and times of their files."""
    found = []
    for path in filter(None, paths):
        folder = Path(path).expanduser()
        files = sorted(folder.glob("*")) if folder.is_dir() else []
        found.append((path, [(file.name, file.stat().st_mtime_ns) for file in files if file.is_file()]))
    return repr(found)
