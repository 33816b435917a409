"""What runs left is found and read; what is gone, damaged or changed is named, and everything else goes on."""

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest

from app import artefacts
from app.artefacts import Places, Problem
from tests.app.support import DENSE, REGATE, SHOWN_FIRST


def traces(places=None):
    places = places or Places.here()
    records, _ = artefacts.load_records(places)
    return {trace.name: trace for trace in artefacts.find_traces(records, places)}


def test_traces_of_records_are_found_and_gated_ones_come_first(results):
    found = traces()
    assert {REGATE, DENSE} <= set(found)
    assert next(iter(found)) == SHOWN_FIRST
    assert not artefacts.gated(found[DENSE])


def test_a_trace_holds_what_the_parquet_file_holds(results):
    traced = artefacts.read_trace(traces()[REGATE])
    rows = pq.read_table(traced.trace.path).to_pylist()
    assert sum(map(len, traced.visits.values())) == len(rows)
    row = rows[40]
    visit = next(v for v in traced.visits[row["sample_id"]] if v.step == row["step"])
    np.testing.assert_array_equal(visit.reference, np.array(row["reference"], np.float32))
    assert visit.kept.tolist() == row["kept"]
    assert traced.steps == 256


def test_a_run_without_a_record_is_found(results, tmp_path):
    folder = tmp_path / "runs" / "mine"
    folder.mkdir(parents=True)
    shutil.copy(results / "artefacts" / REGATE / "trace.parquet", folder)
    traced = artefacts.read_trace(traces()["mine"])
    assert traced.trace.record is None
    sample_id = next(iter(traced.visits))
    answer = traced.answer(sample_id, traced.visits[sample_id][0])
    assert answer.tokens[0] == " t1"
    assert traced.label(sample_id) == f"sample {sample_id}"


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: path.unlink(), "No such file"),
        (lambda path: path.write_bytes(path.read_bytes()[:-100]), "not the trace of this run"),
        (lambda path: path.write_bytes(b"PAR1"), "not the trace of this run"),
    ],
)
def test_a_trace_that_cannot_be_used_is_named(results, damage, words):
    trace = traces()[REGATE]
    damage(trace.path)
    with pytest.raises(Problem, match=words) as error:
        artefacts.read_trace(trace)
    assert str(trace.path) in str(error.value)


def test_a_damaged_trace_without_a_record_is_named(results, tmp_path):
    folder = tmp_path / "runs" / "mine"
    folder.mkdir(parents=True)
    (folder / "trace.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(Problem, match="no trace can be read from it"):
        artefacts.read_trace(traces()["mine"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda rows: "no json", "expected a list of samples"),
        (lambda rows: json.dumps([{"sample_id": 0}]), "KeyError"),
        (lambda rows: json.dumps([rows[0] | {"tokens": ["one"]}]), "has 1 tokens"),
    ],
)
def test_texts_that_do_not_fit_their_trace_are_named(results, change, words):
    path = results / "artefacts" / REGATE / "samples.json"
    path.write_text(change(json.loads(path.read_text())))
    with pytest.raises(Problem, match=words) as error:
        artefacts.read_trace(traces()[REGATE])
    assert "python -m repro artefacts" in str(error.value)


def test_a_damaged_record_is_named_and_the_others_are_read(results):
    path = results / "records" / f"{DENSE}.json"
    path.write_text(path.read_text()[:500])
    records, problems = artefacts.load_records(Places.here())
    assert len(problems) == 1
    assert str(path) in str(problems[0])
    assert len(records) == len(list((results / "records").glob("*.json"))) - 1


def test_the_state_changes_with_a_file(results):
    before = Places.here().state()
    assert Places.here().state() == before
    (results / "records" / f"{DENSE}.json").write_text("{}")
    assert Places.here().state() != before
