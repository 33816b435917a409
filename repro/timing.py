"""Times of runs that ran beside others: how many steps of each kind they took, times what such a step costs.

Costs come from `repro.calibrate`, measured interleaved on a quiet machine. What disturbs a round (other guests of the
host, which no process can see) only ever adds time, so a kind costs what its fastest round took. Free of torch.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from repro.record import Record, RecordError

CALIBRATED = "calibrated"


@dataclass(frozen=True)
class Calibration:
    """Seconds of a step of each kind, and the machine they were measured on."""

    student: str
    scale: str
    seconds: Mapping[str, float]
    hardware: Mapping[str, Any]
    alone: bool


Calibrations = Mapping[tuple[str, str], Calibration]
"""(student, scale) -> calibration."""


def load(directories: Iterable[Path]) -> tuple[dict[tuple[str, str], Calibration], list[RecordError]]:
    """Calibrations below some directories, later ones before earlier, and the problems of files that are no such."""
    found, problems = {}, []
    for path in (path for directory in directories for path in sorted(directory.glob("*.json"))):
        try:
            value = json.loads(path.read_text())
            seconds = {kind: min(rounds) for kind, rounds in value["measured"].items()}
            fields = [f.name for f in dataclasses.fields(Calibration) if f.name != "seconds"]
            one = Calibration(seconds=seconds, **{name: value[name] for name in fields})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            what = "what `make calibrate` writes"
            problems.append(RecordError("calibration", str(error), what, "run `make calibrate` again", path))
            continue
        found[one.student, one.scale] = one
    return found, problems


def calibrated(record: Record, costs: Calibrations) -> Record:
    """The record with calibrated times; as it is where there is no calibration, or not of all its kinds of steps."""
    cost = costs.get((record.student, record.scale))
    if cost is None or not cost.alone or not record.timeline:
        return record
    if {kind for kind, _ in record.timeline} - set(cost.seconds):
        return record
    seconds = np.concatenate([[0.0], np.cumsum([cost.seconds[kind] for kind, n in record.timeline for _ in range(n)])])
    curve = tuple(dataclasses.replace(p, train_seconds=float(seconds[p.step])) for p in record.curve)
    return dataclasses.replace(
        record, curve=curve, train_seconds=float(seconds[-1]), hardware=dict(cost.hardware), timed=CALIBRATED
    )


def timed_alike(records: Sequence[Record], costs: Calibrations) -> list[Record]:
    """All records with calibrated times where they can have them: what a table compares was timed in one way."""
    return [calibrated(record, costs) for record in records]


def timed_alone(records: Sequence[Record], costs: Calibrations) -> list[Record]:
    """Records that ran alone as they are, the others with calibrated times."""
    return [record if record.alone else calibrated(record, costs) for record in records]
