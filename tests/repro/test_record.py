"""Records: written whole or not at all, read with checks that name what is wrong, stale when the configuration is."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from repro.record import (
    Benchmark,
    Point,
    RecordError,
    config_hash,
    crossing,
    environment,
    is_stale,
    load,
    pack,
    peak,
    read,
    running_mean,
    unpack,
    write,
)
from tests.repro.synthetic import config, record

ROOT = Path(__file__).resolve().parents[2]


def points(values, metric="content_accuracy"):
    return [Point(10 * (i + 1), 5 * i, 1.0 * i, 1.0 * i, {metric: value}) for i, value in enumerate(values)]


# --- round trip ---


def test_written_record_reads_back_equal(tmp_path):
    one = record(
        artefacts={"trace": {"path": "traces/a.arrow", "sha256": "0" * 64}}, crossing={"step": 200, "target": 0.7}
    )
    path = write(one, tmp_path)
    assert path == tmp_path / f"{one.name}.json"
    assert read(path) == one
    assert list(tmp_path.iterdir()) == [path]


def test_what_json_turns_into_something_else_is_equal_after_reading(tmp_path):
    one = record(config=config("regate", 0, betas=(0.9, 0.99), ratios={1: 0.5}))
    assert read(write(one, tmp_path)) == one


def test_kinds_that_were_not_measured_are_null():
    one = record(tokens={"paper": 10}, flops={}, teacher={"seconds": 1.5})
    assert one.tokens["visual"] is None
    assert one.tokens["paper"] == 10
    assert one.flops == {"decoder": None, "head": None, "total": None}
    assert one.teacher == {"seconds": 1.5, "flops": None, "tokens": None}


def test_bare_numbers_in_a_point_are_the_paper_count_and_total_flops():
    point = Point(3, 12, None, 2.0, {})
    assert (point.tokens["paper"], point.flops["total"]) == (12, 2.0)


@given(st.lists(st.booleans(), max_size=200))
def test_packed_outcomes_unpack(bits):
    assert unpack(pack(bits), len(bits)).tolist() == bits


# --- damaged records ---


def first(value):
    return value["benchmarks"][0]


def tasks(value):
    return first(value)["tasks"]


def damage(tmp_path, change) -> RecordError:
    path = write(record(), tmp_path)
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))
    with pytest.raises(RecordError) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert caught.value.todo
    return caught.value


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("schema", lambda v: v.update(schema=99)),
        ("schema", lambda v: v.pop("schema")),
        ("seed", lambda v: v.update(seed=-1)),
        ("seed", lambda v: v.update(seed=True)),
        ("student", lambda v: v.pop("student")),
        ("colour", lambda v: v.update(colour="red")),
        ("started", lambda v: v.update(started="yesterday")),
        ("finished", lambda v: v.update(finished="2025-11-22T06:00:00")),
        ("tokens.visual", lambda v: v["tokens"].update(visual=1.5)),
        ("flops.head", lambda v: v["flops"].update(head="many")),
        ("train_seconds", lambda v: v.update(train_seconds=-3)),
        ("curve[2].metrics.content_accuracy", lambda v: v["curve"][2]["metrics"].update(content_accuracy=71.2)),
        ("curve[1].step", lambda v: v["curve"][1].update(step="x")),
        ("curve", lambda v: v["curve"].reverse()),
        ("benchmarks[0].tasks.object shuffle.correct", lambda v: tasks(v)["object shuffle"].update(correct=81)),
        ("benchmarks[0].outcomes.object shuffle", lambda v: first(v)["outcomes"].update({"object shuffle": "00" * 10})),
        ("benchmarks[0].outcomes", lambda v: first(v)["outcomes"].update({"object shuffle": "00"})),
        ("config_hash", lambda v: v["config"].update(lr=5)),
        ("config.method_version", lambda v: v["config"].pop("method_version")),
        ("artefacts.trace.path", lambda v: v.update(artefacts={"trace": {"path": "/absolute/x", "sha256": "0" * 64}})),
        ("artefacts.trace.sha256", lambda v: v.update(artefacts={"trace": {"path": "x", "sha256": "0"}})),
        ("name", lambda v: v.update(name="other")),
    ],
)  # fmt: skip
def test_damaged_record_names_file_and_field(tmp_path, field, change):
    assert damage(tmp_path, change).field == field


@pytest.mark.parametrize("text", [b"", b"{", b"[1, 2", b"\xff\xfe", b'{"schema": NaN}'])
def test_truncated_file_is_named(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_bytes(text)
    with pytest.raises(RecordError, match=r"a\.json.*run the recipe again"):
        read(path)


def test_every_truncation_is_refused(tmp_path):
    path = write(record(), tmp_path)
    whole = path.read_bytes()
    for cut in range(0, len(whole) - 2, len(whole) // 40):
        path.write_bytes(whole[:cut])
        with pytest.raises(RecordError):
            read(path)


def test_numbers_that_are_none_cannot_be_recorded():
    with pytest.raises(RecordError, match="train_seconds"):
        record(train_seconds=float("nan"))
    with pytest.raises(RecordError, match="nll"):
        Point(1, 1, 1.0, 1.0, {"nll": float("inf")})
    with pytest.raises(RecordError, match="config"):
        record(config=config("regate", 0, lr=float("nan")))


def test_benchmark_refuses_a_subtask_without_questions():
    with pytest.raises(RecordError, match=r"tasks\.a\.n"):
        Benchmark.from_bits("mvbench-twin", 1, "rank", {"a": []}, {})


# --- loading ---


def test_load_tells_committed_from_own_and_survives_damage(tmp_path):
    kept, mine = tmp_path / "results" / "records", tmp_path / "runs"
    write(record("stock"), kept)
    write(record("regate"), mine / "records")
    write(record("dense"), mine / "try" / "two" / "records")
    (mine / "records" / "broken.json").write_text("{")
    (mine / "try" / "notes.json").write_text("{}")  # not in a directory `records`
    records, problems = load([kept, mine, tmp_path / "nowhere"])
    assert {(r.method, r.origin) for r in records} == {("stock", "committed"), ("regate", "own"), ("dense", "own")}
    assert [problem.path.name for problem in problems] == ["broken.json"]


def test_only_clean_trees_enter_results(tmp_path):
    kept = tmp_path / "results" / "records"
    for changes in ({"dirty": True}, {"dirty": None}, {"commit": None}):
        with pytest.raises(RecordError, match="clean tree"):
            write(record(**changes), kept)
    assert not list(tmp_path.rglob("*.json"))
    assert write(record(dirty=True), tmp_path / "runs" / "records").exists()


# --- staleness ---


def test_stale_says_what_changed():
    one = record()
    assert is_stale(one, config("regate", 0)) is None
    assert is_stale(one, dict(reversed(config("regate", 0).items()))) is None
    reason = is_stale(one, config("regate", 0, method_version=2, gate={"p": 0.25}))
    assert "method_version: 1 -> 2" in reason
    assert "gate.p: 0.5 -> 0.25" in reason


def test_hash_needs_the_versions():
    with pytest.raises(RecordError, match="world_version"):
        config_hash({"method_version": 1})


@given(
    st.dictionaries(st.text(max_size=4), st.integers() | st.floats(allow_nan=False, allow_infinity=False), max_size=4)
)
def test_hash_ignores_order_and_sees_every_value(extra):
    base = {"method_version": 1, "world_version": None}
    one = base | extra
    assert config_hash(one) == config_hash(dict(reversed(one.items())))
    assert config_hash(one) != config_hash({**one, "new": 1})


# --- atomicity ---

WRITER = """
import dataclasses, sys
from pathlib import Path
from repro.record import read, write
base = read(sys.argv[1])
print("ready", flush=True)
for skipped in range(10**9):
    write(dataclasses.replace(base, skipped_samples=skipped), sys.argv[2])
"""


def test_killed_writer_leaves_a_whole_record(tmp_path):
    """kill -9 at random moments, and a reader meanwhile: each read sees one whole record, never a piece."""
    source = write(record(), tmp_path / "source")
    target = tmp_path / "records"
    path = write(read(source), target)
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(6):
        command = [sys.executable, "-c", WRITER, str(source), str(target)]
        writer = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        end = time.monotonic() + rng.uniform(0.01, 0.15)
        while time.monotonic() < end:
            seen.add(read(path).skipped_samples)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        assert read(path).steps == record().steps
    assert len(seen) > 3
    records, problems = load([tmp_path])
    assert not problems
    assert {one.name for one in records} == {record().name}


def test_leftovers_of_killed_writers_are_swept(tmp_path):
    old = tmp_path / f".{record().name}.json.abc.tmp"
    old.write_text("{")
    os.utime(old, (0, 0))
    write(record(), tmp_path)
    assert not old.exists()


def test_failed_write_keeps_the_old_record(tmp_path, monkeypatch):
    path = write(record(), tmp_path)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write(dataclasses.replace(record(), skipped_samples=9), tmp_path)
    assert read(path) == record()
    assert list(tmp_path.iterdir()) == [path]


# --- environment ---


def git(folder, *command):
    names = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", *names, *command], cwd=folder, check=True, capture_output=True)


def test_environment_knows_commit_and_dirt(tmp_path):
    git(tmp_path, "init", "-q")
    (tmp_path / "code.py").write_text("1")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "one")
    found = environment(tmp_path)
    assert len(found["commit"]) == 40
    assert found["dirty"] is False
    write(record(), tmp_path / "results" / "records")  # what runs write does not change what they compute
    (tmp_path / "README.md").write_text("results")
    assert environment(tmp_path)["dirty"] is False
    (tmp_path / "new.py").write_text("2")
    assert environment(tmp_path)["dirty"] is True


def test_environment_outside_a_checkout(tmp_path):
    found = environment(tmp_path, threads=3)
    assert (found["commit"], found["dirty"]) == (None, None)
    assert found["hardware"]["threads"] == 3
    assert found["hardware"]["memory_bytes"] > 1 << 28
    assert {"python", "torch", "transformers"} <= set(found["versions"])
    record(**found)


# --- peak and crossing ---


def test_running_mean_looks_back_over_three():
    assert running_mean(points([0.0, 0.3, 0.6, 0.9]), "content_accuracy") == [
        (30, pytest.approx(0.3)),
        (40, pytest.approx(0.6)),
    ]


def test_peak_is_the_earliest_of_equals():
    assert peak(points([0.5] * 6), "content_accuracy") == (30, 0.5)
    assert peak(points([0.1, 0.1]), "content_accuracy") is None
    step, value = peak(points([3.0, 2.0, 1.0, 2.0, 3.0], "nll"), "nll", lower_is_better=True)
    assert (step, value) == (40, pytest.approx(5 / 3))


def test_crossing_is_an_evaluation_or_nothing():
    curve = points([0.1, 0.2, 0.3, 0.4, 0.5, 0.9])
    assert crossing(curve, 0.2999, "content_accuracy") is curve[3]
    assert crossing(curve, 0.95, "content_accuracy") is None
    assert crossing(curve, 0.1, "no such metric") is None


def test_points_without_the_metric_do_not_count():
    curve = points([0.1, None, 0.2, None, 0.3])
    assert running_mean(curve, "content_accuracy") == [(50, pytest.approx(0.2))]


@settings(max_examples=50)
@given(st.lists(st.floats(0, 1), min_size=3, max_size=30))
def test_a_curve_crosses_its_own_peak_at_its_peak(values):
    curve = points(values)
    step, value = peak(curve, "content_accuracy")
    assert crossing(curve, value, "content_accuracy").step == step


# --- what it must not import ---


def test_results_machinery_is_free_of_torch():
    script = textwrap.dedent("""
        import sys
        import repro.record, repro.stats, repro.tables, repro.figures
        print(sorted({name.split(".")[0] for name in sys.modules} & {"torch", "transformers", "regate", "datasets"}))
    """)
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
