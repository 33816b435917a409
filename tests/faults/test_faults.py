"""A short fault run: real processes are killed, disks filled, files damaged; `make faults` is the long one."""

import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from repro.faults.record import Fault, FaultRecord, read, write
from repro.faults.table import combined, files, grew, markdown
from repro.measured import RecordError

ROOT = Path(__file__).resolve().parents[2]


def call(folder: Path, *arguments: str) -> tuple[FaultRecord, str]:
    done = subprocess.run(
        [sys.executable, "-m", "repro.faults", *arguments, "--folder", str(folder / "faults")],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return read(folder / "faults.json"), done.stdout


def test_a_short_fault_run(tmp_path):
    record, said = call(
        tmp_path, "training", "ranks", "scoring", "disk", "files", "--seed", "1", "--kills", "5", "--losses", "2",
        "--scorings", "2", "--disks", "2", "--damages", "40",
    )  # fmt: skip
    assert record.failures == []
    assert Counter(f.part for f in record.faults) == {"training": 7, "ranks": 2, "scoring": 4, "disk": 2, "files": 40}
    assert sum(f.process for f in record.faults) == 11
    assert not (tmp_path / "faults").exists()
    assert markdown(combined([record])) in said


def test_bad_samples_of_all_kinds(tmp_path):
    record, _ = call(tmp_path, "samples", "--samples", "40")
    assert record.failures == []
    assert len({f.kind for f in record.faults if f.kind != "all of them"}) == 20
    assert len(record.faults) == 81


@pytest.fixture
def record():
    faults = (
        Fault("training", "SIGTERM", "training", "after 1 s", "saved and left, went on, equal", True, True, 0.5),
        Fault("files", "truncated", "shard", "1 of 2 bytes", "used as if nothing had happened", False),
    )
    measured = [[step, 10**8 + step] for step in range(0, 20_001, 500)]
    return FaultRecord(
        seed=0, config={"method_version": None, "world_version": None, "kills": 1}, started="2026-01-01T00:00:00+00:00",
        finished="2026-01-01T00:10:00+00:00", commit="0" * 40, dirty=False, versions={},
        hardware={"cpu": "x", "cores": 2}, measured={"cost": {"bytes": 2 * 10**9, "seconds": {"hash": 0.5}}},
        faults=faults, skipped={"a small disk": "not permitted"}, memory={"steps": 20_000, "measured": measured},
    )  # fmt: skip


def test_the_record_comes_back_or_is_refused(record, tmp_path):
    path = write(record, tmp_path / "cpu.json")
    assert read(path) == record
    path.write_text(path.read_text().replace('"held": false', '"held": true'))
    with pytest.raises(RecordError, match="seal"):
        read(path)
    with pytest.raises(RecordError, match="dirty"):
        write(replace(record, dirty=True), tmp_path / "results" / "faults" / "cpu.json")


def test_the_table_tells_what_did_not_hold(record):
    text = files([record])["faults.md"]
    assert "2 faults, 1 of them in running processes" in text
    assert "did not hold after 1 of them" in text
    assert "| SIGTERM | training | 1 | saved and left, went on, equal; left within 0.5 s | 1 |" in text
    assert "| truncated | shard | 1 | used as if nothing had happened | 0 |" in text
    assert "- a small disk: not permitted" in text
    assert "a difference of 0.02%" in text
    assert "| hash | 0.50 | 4.0 |" in text
    assert not grew(record)
    assert grew(replace(record, memory={"steps": 1, "measured": [[2000, 100], [2500, 103]]}))
    assert files([]) == {}


def test_a_part_that_was_run_again_counts_in_its_last_run(record):
    again = replace(
        record, faults=(replace(record.faults[1], held=True, outcome="found"),), memory=None, measured={},
        commit="1" * 40, finished="2026-01-02T00:00:00+00:00",
    )  # fmt: skip
    text = files([again, record])["faults.md"]
    assert "did not hold after 0 of them" in text
    assert "20,000 steps" in text
    assert "- training, memory, cost: commit 000000000000" in text
    assert "- files: commit 111111111111" in text
