"""Rows of tables as cells: what the paper prints, what runs measured, and what their comparison says in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from repro import compare, render, variants
from repro.compare import METRIC, Group, Reached, Reading, Readings
from repro.record import TOKEN_KINDS, Record
from repro.render import NOTE, WORDS, Cell, bounds

Published = dict[str, Any]

LABELS = {
    "baseline": "baseline",
    "stock": "baseline (stock Trainer)",
    "dense": "dense (our trainer)",
    "regate": "ReGATE",
    "regate_at_peak": "ReGATE at baseline's peak",
} | variants.LABELS
"""Method of a record or of a published row -> how its row is called; another method keeps its name."""
AT_PEAK = ("regate",)
"""Methods that get a second row, at the checkpoint that first reaches the baseline's peak."""
CHANGES = ("tokens.paper", "tokens.active", "flops", "train_seconds", "peak_memory_bytes")
UNITS = {"tokens": "tokens", "flops": "FLOP", "train_seconds": "s", "peak_memory_bytes": "bytes", "steps": "steps"}
UNITS |= {"teacher.seconds": "s", "teacher.flops": "FLOP", "teacher.tokens": "tokens", "skipped_samples": "samples"}


# --- published rows ---


def published_rows(published: Published, number: str, student: str) -> list[Cell]:
    """A student's rows in both versions of the paper, with changes against their own baseline."""
    found = [c for c in published["cells"] if c["table"] == number and c["student"] == student]
    # v2's Table 4 has an average over benchmarks; MVBench of the same models stands in its table of short videos
    rows = {(c["version"], c["row"]) for c in found if c["version"] == "v2"}
    found += [
        c
        for c in published["cells"]
        if (c["table"], c["column"]) == ("3", "MVBench") and (c["version"], c["row"]) in rows
    ]
    cells = []
    for cell in found:
        (key, factor), value = _PUBLISHED.get(cell["column"], (cell["column"], 1)), cell["value"]
        if value is None:
            continue
        place: dict[str, Any] = {
            "student": cell["student"],
            "row": LABELS[cell["method"]],
            "origin": f"published {cell['version']}",
        }
        place |= {"scale": "paper", "method": cell["method"]}
        unit = UNITS.get(key.split(".")[0], cell["unit"])
        cells.append(Cell(**place, column=key, value=value * factor, unit=unit))
        base = [
            c["value"]
            for c in found
            if (c["student"], c["version"], c["column"]) == (cell["student"], cell["version"], cell["column"])
            and c["method"] == "baseline"
        ]
        if base and cell["method"] != "baseline" and key in ("tokens.paper", "train_seconds", "train_gpu_hours"):
            name = "train_seconds" if key.startswith("train") else key
            cells.append(Cell(**place, column=f"{name}.change", value=100 * (value / base[0] - 1), unit="%"))
    return cells


_PUBLISHED = {
    "tokens": ("tokens.paper", 1),
    "train_hours": ("train_seconds", 3600),
    "gpu_memory_gb": ("memory_gb_per_gpu", 1),
    "MVBench": ("accuracy", 1),
}


# --- measured rows ---


@dataclass(frozen=True)
class Place:
    """Where a row's cells stand."""

    group: Group
    method: str
    benchmark: str
    label: str = ""  # another one than the method's own

    @property
    def row(self) -> str:
        """What the row is called."""
        return self.label or LABELS.get(self.method, self.method)

    def cell(self, column: str, value: float | None = None, *, seeds: int | None = None, **rest: Any) -> Cell:
        """A cell of this row."""
        unit = rest.pop("unit", None) or UNITS.get(column) or UNITS.get(column.split(".")[0], "")
        group = self.group
        place: dict[str, Any] = {"student": group.student, "origin": group.origin, "scale": group.scale}
        place["row"] = self.row
        return Cell(**place, method=self.method, column=column, value=value, unit=unit, seeds=seeds, **rest)


def measured_row(place: Place, readings: Readings, baseline: Readings) -> list[Cell]:
    """The cells of one method: means over seeds, changes and differences in pairs against the baseline."""
    n = len(readings)
    mark = time_mark([reading.record for reading in readings.values()])
    keys = [f"tokens.{kind}" for kind in TOKEN_KINDS] + ["flops", "flops.decoder", "flops.head", "flops.total"]
    keys += ["train_seconds", "peak_memory_bytes", "steps", "skipped_samples"]
    keys += ["teacher.seconds", "teacher.flops", "teacher.tokens"]
    cells = []
    for key in keys:
        value = compare.mean(readings, key)
        if value is not None:
            cells.append(place.cell(key, value, seeds=n, text=mark if key == "train_seconds" else ""))
    is_baseline = place.method == place.group.baseline_method
    for key in () if is_baseline else CHANGES:
        moved = compare.change(readings, baseline, key)
        if moved:
            rest = bounds(moved.interval) | {"unit": "%", "seeds": n, "over": "seeds" if moved.interval else ""}
            cells.append(place.cell(f"{key}.change", moved.percent, **rest))
    where = (place.group.student, place.group.scale, place.group.origin, place.method, place.benchmark)
    score = compare.accuracy(readings, place.benchmark, *where)
    if score is None:
        return cells
    cells += [
        place.cell("accuracy", score.percent, unit="%", seeds=n, over="questions", **bounds(score.questions)),
        place.cell("questions", score.n, unit="questions"),
        place.cell("protocol", text=score.protocol),
    ]
    if score.seeds:
        cells.append(
            place.cell("accuracy.seeds", score.percent, unit="%", seeds=n, over="seeds", **bounds(score.seeds))
        )
    if score.chance is not None:
        cells.append(place.cell("chance", score.chance, unit="%"))
    base = None if is_baseline else compare.accuracy(baseline, place.benchmark, *where)
    gap = compare.difference(score, base, *where)
    if gap:
        rest = bounds(gap.interval) | {"unit": "points", "seeds": gap.seeds, "over": gap.over, "text": gap.words}
        cells.append(place.cell("accuracy.difference", gap.points, **rest))
    return cells


def time_mark(records: Sequence[Record]) -> str:
    """‡ calibrated, † timed beside other work, nothing: timed alone."""
    if any(record.timed for record in records):
        return "‡"
    return "" if all(record.alone for record in records) else "†"


def measured_group(group: Group, benchmark: str) -> list[Cell]:
    """All rows of a student at a scale, then what they say in words."""
    known = [method for method in LABELS if method in group.methods]
    baseline = compare.at_end(group.baseline)
    cells: list[Cell] = []
    for method in known + sorted(set(group.methods) - set(known)):
        place = Place(group, method, benchmark)
        readings = compare.at_end(group.methods[method])
        row = measured_row(place, readings, baseline)
        words = _against_baseline(place, row, readings, baseline)
        if method in AT_PEAK and baseline:
            pairs = compare.reached(group.baseline, group.methods[method])
            there = _peak_row(Place(group, f"{method}_at_peak", benchmark), pairs, baseline)
            row += there
            words += _peak_words(place, pairs, there)
        cells += row + words
    note = Place(group, "", benchmark)
    if not baseline:
        missing = "no run of the stock Trainer, nothing to compare with"
        cells.append(note.cell(NOTE, text=f"{group.student} ({_where(group)}): {missing}"))
    return [*cells, note.cell(NOTE, text=provenance(group))]


def _peak_row(place: Place, pairs: Sequence[Reached], baseline: Readings) -> list[Cell]:
    there = {pair.seed: Reading(pair.record, pair.at.step) for pair in pairs if pair.at is not None}
    if not pairs:
        return [place.cell("tokens.paper", text="no peak yet")]
    if not there:
        return [place.cell(key, text="not reached") for key in ("tokens.paper", "train_seconds", "accuracy")]
    cells = measured_row(place, there, {seed: baseline[seed] for seed in there})
    for what in ("tokens", "train_seconds"):
        share = compare.mean_share(pairs, what)
        if share is not None:
            cells.append(place.cell(f"peak.{what}.share", share, unit="%", seeds=len(there)))
    return [*cells, place.cell("peak.reached", len(there), unit="seeds", seeds=len(pairs))]


# --- what it says, in words ---


def _seeds(n: int) -> str:
    return "one seed" if n == 1 else f"{n} seeds"


def _where(group: Group) -> str:
    return f"{group.origin}, {group.scale}"


def _against_baseline(place: Place, row: Sequence[Cell], readings: Readings, baseline: Readings) -> list[Cell]:
    shared = len(set(readings) & set(baseline))
    if place.method == place.group.baseline_method or not shared:
        return []
    by_column = {cell.column: cell for cell in row}
    gap = by_column.get("accuracy.difference")
    says = [f"accuracy {gap.text}" if gap else "accuracy not compared (not scored in the same way for both)"]
    for key, name in (("tokens.paper", "tokens"), ("train_seconds", "train time"), ("flops", "FLOPs")):
        moved = by_column.get(f"{key}.change")
        if moved and moved.value is not None:
            says.append(f"{name} {render.signed_percent(moved.value)}")
    label = LABELS.get(place.method, place.method)
    text = f"{label} against baseline ({_where(place.group)}, {_seeds(shared)}): {'; '.join(says)}."
    return [place.cell(WORDS, text=text)]


def _peak_words(place: Place, pairs: Sequence[Reached], there: Sequence[Cell]) -> list[Cell]:
    label, where = LABELS.get(place.method, place.method), _where(place.group)
    if not pairs:
        text = f"{label} ({where}): no peak to reach, the baseline has fewer than three evaluations of {METRIC}."
        return [place.cell(WORDS, text=text)]
    mean = f"running mean of three evaluations of {METRIC} on validation"
    says = [f"{label} against the baseline's peak ({where}; {mean}): {_reaches(pairs, 'seeds')}."]
    gap = next((cell.text for cell in there if cell.column == "accuracy.difference"), "")
    if gap:
        says.append(f"Accuracy there against the baseline's at its end: {gap}.")
    chance = compare.placebo(place.group.baseline)
    if chance:
        says.append(f"Placebo, another seed of the baseline against the same peaks: {_reaches(chance, 'pairs')}.")
    cells = [place.cell(WORDS, text=" ".join(says))]
    for pair in pairs:
        found = pair.at.step if pair.at else None
        saw = (pair.record.crossing or {"step": found}).get("step")
        if saw != found:
            text = (
                f"{pair.record.name} recorded its crossing at step {saw}, the records here say {found}: score it again"
            )
            cells.append(place.cell(NOTE, text=text))
    return cells


def _reaches(pairs: Sequence[Reached], what: str) -> str:
    there = [pair for pair in pairs if pair.at is not None]
    if not there:
        return "not reached" if len(pairs) == 1 else f"not reached in any of {len(pairs)} {what}"
    shares = [(name, compare.mean_share(pairs, key)) for key, name in _SHARES]
    said = " and ".join(f"{share:.0f} % of the {name}" for name, share in shares if share is not None)
    how_often = "reached" if len(pairs) == 1 else f"reached in {len(there)} of {len(pairs)} {what}"
    return f"{how_often} with {said} that the baseline took to get there" if said else how_often


_SHARES = (("tokens", "tokens"), ("train_seconds", "train time"))


def provenance(group: Group) -> str:
    """Commits, machines and versions of a group's runs."""
    runs = [record for seeds in group.methods.values() for record in seeds.values()]

    def all_of(values: Sequence[object]) -> str:
        return ", ".join(sorted({str(value) for value in values if value}))

    commits = all_of([(r.commit or "no commit")[:10] + (" (dirty)" if r.dirty else "") for r in runs])
    machines = all_of(
        [f"{r.hardware.get('gpu') or r.hardware.get('cpu')}, {r.hardware.get('threads')} threads" for r in runs]
    )
    versions = all_of([f"torch {r.versions.get('torch')}, transformers {r.versions.get('transformers')}" for r in runs])
    return f"{group.student} ({_where(group)}): {len(runs)} runs at commit {commits}; {machines}; {versions}"
