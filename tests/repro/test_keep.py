"""What goes from runs to results: clean records and traces with the hash that their record names."""

import dataclasses
import hashlib
import json

import pytest

from repro.keep import keep
from repro.record import RecordError, read, write
from tests.repro.synthetic import record as synthetic


def prepared(tmp_path, dirty: bool = False):
    """A run with a trace under runs/."""
    runs = tmp_path / "runs"
    trace = runs / "one" / "trace.parquet"
    trace.parent.mkdir(parents=True)
    trace.write_bytes(b"what was decided")
    artefact = {"path": "one/trace.parquet", "sha256": hashlib.sha256(trace.read_bytes()).hexdigest()}
    record = dataclasses.replace(synthetic("regate", 0), commit="0" * 40, dirty=dirty, artefacts={"trace": artefact})
    write(record, runs / "records")
    return runs, record, trace


def test_records_and_traces_are_copied(tmp_path):
    runs, record, trace = prepared(tmp_path)
    path, copy = keep(runs, tmp_path / "results")
    assert read(path) == record
    assert copy.read_bytes() == trace.read_bytes()


def test_an_unclean_record_and_a_changed_trace_are_refused(tmp_path):
    runs, _, _ = prepared(tmp_path / "a", dirty=True)
    with pytest.raises(RecordError, match="dirty"):
        keep(runs, tmp_path / "a" / "results")
    runs, _, trace = prepared(tmp_path / "b")
    trace.write_bytes(b"something else")
    with pytest.raises(RecordError, match="trace"):
        keep(runs, tmp_path / "b" / "results")


def test_calibrations_are_copied_unless_something_else_ran(tmp_path):
    runs, _, _ = prepared(tmp_path)
    path = runs / "calibration" / "internvl-micro.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"dirty": False, "alone": True}))
    assert tmp_path / "results" / "calibration" / path.name in keep(runs, tmp_path / "results")
    path.write_text(json.dumps({"dirty": False, "alone": False}))
    with pytest.raises(RecordError, match="quiet machine"):
        keep(runs, tmp_path / "results")
