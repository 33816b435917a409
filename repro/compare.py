"""Runs side by side: readings at a checkpoint, means over seeds, pairs against the baseline, and who reaches its peak.

Runs are compared within a group: one student, at one scale, of one origin. Methods are paired by seed.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from repro import stats
from repro.curve import crossing, peak
from repro.record import Benchmark, Point, Record
from repro.stats import Interval

BASELINE = "stock"
METRIC = "content_accuracy"
"""The validation metric on which peak and crossing are read."""
TIMED_ON = ("cpu", "cores", "threads", "gpu", "allocator")
STUDENTS = {
    "internvl": "InternVL3.5",
    "videollama": "VideoLLaMA2",
    "videochat": "VideoChat2",
    "smollm2-lora": "SmolLM2-135M-LoRA",
    "smollm2": "SmolLM2-135M",
}
"""How a record's student begins -> its name in tables: the paper's, or its language model's."""

Runs = dict[int, Record]
"""Seed -> the newest run."""


@dataclass(frozen=True)
class Group:
    """The runs that may be compared: method -> seed -> record."""

    student: str
    scale: str
    origin: str
    methods: dict[str, Runs]

    @property
    def baseline_method(self) -> str:
        """The stock Trainer. The small scale does not run it: there it is our dense trainer, whose losses are equal."""
        return "dense" if self.scale == "small" else BASELINE

    @property
    def baseline(self) -> Runs:
        """The runs that others are compared with."""
        return self.methods.get(self.baseline_method, {})


def student_name(student: str) -> str:
    """The paper's name of a student, or the record's own."""
    return next((name for key, name in STUDENTS.items() if student.lower().startswith(key)), student)


def in_table(record: Record, number: str) -> bool:
    """Whether a record belongs to a table: "4", "table4" and "Table 4" say the same."""
    return record.table.lower().removeprefix("table").strip(" -_") == number


def table_name(number: str, prefix: str = "table") -> str:
    """Name of a table, and of its files: "table4", "rivals"."""
    return f"{prefix}{number}" if number.isdecimal() else number


def groups(records: Iterable[Record]) -> list[Group]:
    """Records by student, scale and origin (committed first); of several runs of a method and seed the newest."""
    found: dict[tuple[str, str, str], dict[str, Runs]] = {}
    for record in sorted(records, key=lambda r: (r.origin, r.student, r.scale, r.finished, r.name)):
        key = (student_name(record.student), record.scale, record.origin)
        found.setdefault(key, {}).setdefault(record.method, {})[record.seed] = record
    return [Group(*key, methods) for key, methods in found.items()]


def generator(*parts: object) -> np.random.Generator:
    """A generator of its own for each number, so that no number depends on which others are computed."""
    return np.random.default_rng(zlib.crc32("/".join(map(str, parts)).encode()))


# --- one run at one checkpoint ---


@dataclass(frozen=True)
class Reading:
    """A run at its end, or at a checkpoint on the way."""

    record: Record
    step: int

    def numbers(self) -> dict[str, float | None]:
        """Totals from step 0 to here. Peak memory is known of whole runs only; the teacher is paid before step 0."""
        whole = self.step == self.record.steps
        at: Record | Point | None = self.record if whole else self.record.point(self.step)
        assert at is not None, f"{self.record.name} has no evaluation at step {self.step}"
        decoder, head = at.flops["decoder"], at.flops["head"]
        return {
            **{f"tokens.{kind}": count for kind, count in at.tokens.items()},
            **{f"flops.{part}": amount for part, amount in at.flops.items()},
            "flops": None if decoder is None or head is None else decoder + head,
            **{f"teacher.{kind}": amount for kind, amount in (self.record.teacher or {}).items()},
            "train_seconds": at.train_seconds,
            "peak_memory_bytes": self.record.peak_memory_bytes if whole else None,
            "steps": self.step,
            "skipped_samples": self.record.skipped_samples if whole else None,
        }

    def benchmark(self, name: str) -> Benchmark | None:
        """The benchmark (or its twin) as scored here, or None."""
        fits = [b for b in self.record.benchmarks if b.name.lower().startswith(name) and b.step == self.step]
        return fits[-1] if fits else None


Readings = Mapping[int, Reading]
"""Seed -> reading."""


def at_end(runs: Runs) -> dict[int, Reading]:
    """Every run at its last step."""
    return {seed: Reading(record, record.steps) for seed, record in sorted(runs.items())}


def mean(readings: Readings, key: str) -> float | None:
    """Mean over seeds; None unless every seed measured it."""
    values = [reading.numbers().get(key) for reading in readings.values()]
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known and len(known) == len(values) else None


def known_time(record: Record) -> bool:
    """Whether a run's time is its own: it ran alone, or its steps were calibrated (`repro.timing`)."""
    return record.alone or bool(record.timed)


def comparable_times(one: Record, other: Record) -> bool:
    """Whether times of two runs may be compared: both are their own, and of one machine."""
    same = all(one.hardware.get(part) == other.hardware.get(part) for part in TIMED_ON)
    return same and known_time(one) and known_time(other)


@dataclass(frozen=True)
class Change:
    """A relative change against the baseline in percent: mean over shared seeds, t interval where there are several."""

    percent: float
    interval: Interval | None


def change(ours: Readings, theirs: Readings, key: str) -> Change | None:
    """How much more (or less) of something a method needs than the baseline, in pairs by seed."""
    values = []
    for seed in sorted(set(ours) & set(theirs)):
        a, b = ours[seed].numbers().get(key), theirs[seed].numbers().get(key)
        runs = ours[seed].record, theirs[seed].record
        if a is None or not b or (key == "train_seconds" and not comparable_times(*runs)):
            return None
        values.append(100 * (a / b - 1))
    return Change(float(np.mean(values)), stats.seed_interval(values)) if values else None


# --- accuracy on a benchmark ---


@dataclass(frozen=True)
class Accuracy:
    """Macro average over subtasks in percent, mean over seeds, with both intervals where they can be had."""

    percent: float
    questions: Interval | None
    seeds: Interval | None
    chance: float | None  # percent
    n: int  # questions
    tasks: int
    protocol: str
    by_seed: dict[int, float]  # fractions
    outcomes: stats.Outcomes | None  # mean over seeds, by question
    fingerprint: str | None


def accuracy(readings: Readings, name: str, *key: object) -> Accuracy | None:
    """Accuracy on a benchmark; None unless it was scored, in one way, for every seed."""
    scored = {seed: found for seed, r in readings.items() if (found := r.benchmark(name)) is not None}
    kinds = {(b.protocol, b.questions, tuple((t, s["n"]) for t, s in sorted(b.tasks.items()))) for b in scored.values()}
    if not scored or len(scored) != len(readings) or len(kinds) != 1:
        return None
    by_seed = {
        seed: stats.macro({t: [s["correct"] / s["n"]] for t, s in b.tasks.items()}) for seed, b in scored.items()
    }
    one = next(iter(scored.values()))
    bits = [answers for b in scored.values() if (answers := b.bits()) is not None]
    outcomes: stats.Outcomes | None = None
    if len(bits) == len(scored) and (len(scored) == 1 or one.questions is not None):
        outcomes = {task: np.mean([b[task] for b in bits], axis=0) for task in one.tasks}
    elif len(scored) == 1:
        outcomes = {t: np.arange(s["n"]) < s["correct"] for t, s in one.tasks.items()}
    chances = [score["chance"] for score in one.tasks.values() if score.get("chance") is not None]
    over_seeds = stats.seed_interval(list(by_seed.values()))
    over_questions = _over_questions(one, outcomes, len(scored), *key)
    return Accuracy(
        percent=100 * float(np.mean(list(by_seed.values()))),
        questions=over_questions.scaled(100) if over_questions else None,
        seeds=over_seeds.scaled(100) if over_seeds else None,
        chance=100 * float(np.mean(chances)) if len(chances) == len(one.tasks) else None,
        n=sum(score["n"] for score in one.tasks.values()),
        tasks=len(one.tasks),
        protocol=one.protocol,
        by_seed=by_seed,
        outcomes=outcomes if len(bits) == len(scored) else None,
        fingerprint=one.questions,
    )


def _over_questions(one: Benchmark, outcomes: stats.Outcomes | None, seeds: int, *key: object) -> Interval | None:
    if seeds == 1 and len(one.tasks) == 1:  # Wilson's keeps its width where all answers are right
        score = next(iter(one.tasks.values()))
        return stats.wilson(score["correct"], score["n"])
    return stats.question_interval(outcomes, generator("questions", *key)) if outcomes is not None else None


def validated(readings: Readings, metric: str = METRIC) -> dict[int, float]:
    """Seed -> a metric of validation as evaluated at the reading; seeds without one are left out."""
    points = {seed: reading.record.point(reading.step) for seed, reading in readings.items()}
    values = {seed: point.metrics.get(metric) for seed, point in points.items() if point is not None}
    return {seed: value for seed, value in values.items() if value is not None}


@dataclass(frozen=True)
class Difference:
    """Of two accuracies, ours - theirs, in points, with the interval that the runs allow and what it says."""

    points: float
    interval: Interval | None
    over: str  # seeds, or questions where there is one seed
    seeds: int
    words: str


def difference(ours: Accuracy | None, theirs: Accuracy | None, *key: object) -> Difference | None:
    """Over seeds in pairs; with one seed over questions in pairs. None where nothing can be paired."""
    if ours is None or theirs is None or (ours.protocol, ours.fingerprint) != (theirs.protocol, theirs.fingerprint):
        return None
    paired = stats.paired_seeds(ours.by_seed, theirs.by_seed, generator("seeds", *key))
    if paired is None:
        return None
    points = 100 * paired.mean
    if paired.t is not None:
        interval = _times_100(paired.t)
        return Difference(points, interval, "seeds", len(paired.seeds), stats.difference_in_words(interval, points))
    if ours.outcomes is None or theirs.outcomes is None or len(ours.by_seed) != 1 or len(theirs.by_seed) != 1:
        return Difference(points, None, "", 1, stats.difference_in_words(None, points))
    pairs = stats.paired_questions(ours.outcomes, theirs.outcomes, generator("pairs", *key))
    interval = _times_100(pairs)
    return Difference(points, interval, "questions", 1, stats.difference_in_words(interval, points, over="questions"))


def paired(ours: Mapping[int, float], theirs: Mapping[int, float], *key: object) -> Difference | None:
    """Of two fractions, ours - theirs, in pairs by seed; None where no seed is shared."""
    pairs = stats.paired_seeds(ours, theirs, generator("seeds", *key))
    if pairs is None:
        return None
    interval = _times_100(pairs.t) if pairs.t is not None else None
    words = stats.difference_in_words(interval, 100 * pairs.mean)
    return Difference(100 * pairs.mean, interval, "seeds" if interval else "", len(pairs.seeds), words)


def _times_100(interval: Interval) -> Interval:
    return interval.scaled(100)


# --- who reaches the baseline's peak, and where ---


@dataclass(frozen=True)
class Reached:
    """Of one pair of runs: the first run's peak, and the first checkpoint of another whose mean is as good."""

    seed: int
    target: float  # the peak's running mean
    peak: Point  # the evaluation at which the baseline has it
    at: Point | None  # None: not reached
    record: Record  # the run that reaches it, or does not
    baseline: Record

    def share(self, what: str) -> float | None:
        """Tokens or train_seconds needed, in percent of what the baseline needed to its peak."""
        if self.at is None or (what == "train_seconds" and not comparable_times(self.record, self.baseline)):
            return None
        a, b = (p.tokens["paper"] if what == "tokens" else p.train_seconds for p in (self.at, self.peak))
        return 100 * a / b if a is not None and b else None


def reached(baseline: Runs, ours: Runs, metric: str = METRIC, shift: int = 0) -> list[Reached]:
    """For each shared seed; `shift` pairs each seed of the baseline with another one of ours (a placebo)."""
    seeds = sorted(set(baseline) & set(ours))
    found = []
    for i, seed in enumerate(seeds):
        theirs, mine = baseline[seed], ours[seeds[(i + shift) % len(seeds)]]
        best = peak(theirs.curve, metric)
        if best is None:
            continue
        at = crossing(mine.curve, best[1], metric)
        point = theirs.point(best[0])
        assert point is not None
        found.append(Reached(seed, best[1], point, mine.point(at.step) if at else None, mine, theirs))
    return found


def placebo(baseline: Runs, metric: str = METRIC) -> list[Reached]:
    """The baseline against another seed of itself: what chance alone reaches. Empty with one seed."""
    return reached(baseline, baseline, metric, shift=1) if len(baseline) > 1 else []


def mean_share(pairs: Sequence[Reached], what: str) -> float | None:
    """Mean over the pairs that reached the peak, in percent."""
    shares = [share for pair in pairs if (share := pair.share(what)) is not None]
    return float(np.mean(shares)) if shares else None
