"""Every bad sample is named, skipped or refused as the policy says; nothing crashes, hangs, grows or strays."""

from __future__ import annotations

import json
import logging
import signal
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from eval.machine import ROOT
from regate.accounting import peak_memory_bytes, reset_peak_memory
from regate.conversations import BadSamples, load_conversations
from regate.data import ConversationCollator
from regate.turns import BadSample
from repro.faults.record import Fault
from repro.faults.samples import Case, Place, cases, sample
from repro.faults.watch import Canaries, Opened

STUDENT = ROOT / "results" / "students" / "internvl"
SECONDS = 60
"""A sample that takes longer is one that was waited for."""
MEMORY = 1_500 * 2**20
"""Bytes that the peak may lie above what the process had before: a picture of the largest size that is read, twice."""
WINDOW = 4096
NAMED, SKIPPED, USED = "raise: named", "skip: left out, the good one kept", "used: it is what it says"


class Waited(Exception):
    """A sample took longer than `SECONDS`."""


@contextmanager
def _limit() -> Iterator[None]:
    def late(number: int, frame: Any) -> None:
        raise Waited

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def check(count: int, seed: int, folder: Path) -> dict[str, Any]:
    """All cases: faults (two a case, one for each policy), bytes that the peak rose by, files opened elsewhere."""
    from transformers import AutoProcessor

    logging.disable(logging.WARNING)
    processor = AutoProcessor.from_pretrained(STUDENT)
    processor.tokenizer.model_max_length = WINDOW
    collators = {policy: ConversationCollator(processor, None, 4, on_bad_sample=policy) for policy in ("raise", "skip")}
    place = Place(folder / "data", folder / "outside")
    collators["raise"](_rows(place, [sample("good", video="good.mp4"), sample("too", image="good.png")], "raise")[0])
    canaries, opened = Canaries(place.outside), Opened()
    faults: list[Fault] = []
    grown = 0
    for case in cases(count, seed, place):
        canaries.touched()  # making a case may have
        reset_peak_memory()
        before = peak_memory_bytes()
        opened.start()
        try:
            with _limit():
                outcomes = {policy: _outcome(case, place, collators[policy], policy) for policy in ("raise", "skip")}
        except Exception as error:
            outcomes = {"raise": f"{type(error).__name__}: {error}", "skip": f"{type(error).__name__}: {error}"}
        opened.stop()
        more, touched = peak_memory_bytes() - before, canaries.touched()
        grown = max(grown, more)
        for policy, outcome in outcomes.items():
            held = outcome in (NAMED, SKIPPED) or (outcome == USED and case.usable)
            if touched:
                held, outcome = False, f"read {touched} outside of the data's folder"
            elif more > MEMORY:
                held, outcome = False, f"took {more >> 20} MiB"
            faults.append(Fault("samples", case.kind, policy, case.name, outcome, held))
    elsewhere = opened.outside(
        place.root, folder / "files", sys.prefix, sys.base_prefix, sysconfig.get_path("stdlib"), STUDENT,
        *(ROOT / package for package in ("regate", "repro", "eval")), "/proc", "/sys", "/dev/null",
    )  # fmt: skip
    return {"faults": [asdict(f) for f in faults], "peak_growth_bytes": grown, "elsewhere": elsewhere}


def _rows(place: Place, content: list[Any] | bytes, policy: str) -> tuple[list[Mapping[str, Any]], BadSamples]:
    path = place.root.parent / "files" / "train.json"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    skipped = BadSamples()
    return list(load_conversations(path, place.root, policy, skipped)), skipped


def _outcome(case: Case, place: Place, collator: ConversationCollator, policy: str) -> str:
    """What became of one case; any exception but the promised ones goes through."""
    good = [sample("good", image="good.png")]
    if case.whole_file or policy == "raise":
        try:
            rows, _ = _rows(place, case.content, policy)
            collator(rows)
        except ValueError as error:
            told = case.name in str(error) or "train.json" in str(error)
            refused = isinstance(error, BadSample) or case.whole_file
            return NAMED if told and refused else f"{type(error).__name__} that does not name it: {error}"
        return USED
    assert isinstance(case.content, list)
    rows, skipped = _rows(place, good + case.content, policy)
    before = collator.skipped
    batch = collator(rows)
    left_out, kept = skipped.count + collator.skipped - before, len(batch["input_ids"])
    if (left_out, kept) == (0, 2):
        return USED
    names = " ".join(skipped.first) + " ".join(collator.bad.first)
    if (left_out, kept) != (1, 1) or (case.name not in names and collator.bad.count <= len(collator.bad.first)):
        return f"{left_out} left out, {kept} kept"
    return SKIPPED
