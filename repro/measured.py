"""What a record is made of: evaluations, benchmark scores, counts by kind, and the checks that name what is wrong."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

TOKEN_KINDS = ("visual", "prompt", "target", "active", "supervised", "padding", "paper")
"""`paper` is the paper's count: supervised targets, those of dense steps included."""
FLOP_KINDS = ("decoder", "head", "total")
TEACHER_KINDS = ("seconds", "flops", "tokens")


class RecordError(ValueError):
    """A record that cannot be used: names the file, the field, what was got, what was expected and what to do."""

    def __init__(self, field: str, got: object, expected: str, todo: str, path: Path | None = None):
        self.field, self.got, self.expected, self.todo, self.path = field, got, expected, todo, path
        shown = repr(got)
        shown = shown if len(shown) <= 120 else shown[:117] + "..."
        where = f"{path}: " if path is not None else ""
        super().__init__(f"{where}field '{field}': got {shown}, expected {expected}; {todo}")

    def at(self, path: Path) -> RecordError:
        """The same error, naming the file."""
        return RecordError(self.field, self.got, self.expected, self.todo, path)


def need(holds: bool, name: str, got: object, expected: str, todo: str = "fix what builds the record") -> None:
    """RecordError where it does not hold."""
    if not holds:
        raise RecordError(name, got, expected, todo)


def is_number(value: object, low: float = -math.inf, high: float = math.inf) -> bool:
    """A finite number (no bool) within the bounds."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value) and low <= value <= high  # type: ignore[arg-type,operator]


def is_count(value: object) -> bool:
    """A whole number >= 0."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def counts(name: str, value: Any, kinds: Sequence[str], *, whole: bool) -> dict[str, Any]:
    """A mapping of kinds to numbers >= 0, or None where a kind was not measured. Every kind is there after this."""
    need(isinstance(value, Mapping), name, value, f"a mapping of {', '.join(kinds)} to numbers")
    for kind, number in value.items():
        good = number is None or (is_count(number) if whole else is_number(number, 0))
        expected = "a whole number >= 0" if whole else "a finite number >= 0"
        need(good, f"{name}.{kind}", number, f"{expected}, or null where it was not measured")
    return {**dict.fromkeys(kinds), **value}


@dataclass(frozen=True)
class Point:
    """One evaluation on validation, at a step whose checkpoint exists; counts and times are totals from step 0."""

    step: int
    tokens: dict[str, int | None]  # by kind, as Record.tokens; a bare number means the paper's count
    train_seconds: float | None  # training alone: neither evaluation nor checkpointing
    flops: dict[str, float | None]  # as Record.flops; a bare number means the total
    metrics: dict[str, float | None]  # content_accuracy (fraction), content_nll (nats), ...

    def __post_init__(self) -> None:
        need(is_count(self.step), "step", self.step, "a step >= 0")
        tokens = self.tokens if isinstance(self.tokens, Mapping) else {"paper": self.tokens}
        flops = self.flops if isinstance(self.flops, Mapping) else {"total": self.flops}
        object.__setattr__(self, "tokens", counts("tokens", tokens, TOKEN_KINDS, whole=True))
        object.__setattr__(self, "flops", counts("flops", flops, FLOP_KINDS, whole=False))
        seconds = self.train_seconds
        need(seconds is None or is_number(seconds, 0), "train_seconds", seconds, "seconds >= 0 or null")
        need(isinstance(self.metrics, Mapping), "metrics", self.metrics, "a mapping of names to numbers")
        for name, value in self.metrics.items():
            if "accuracy" in name:
                good, expected = is_number(value, 0, 1), "a fraction in [0, 1]"
            else:
                good, expected = is_number(value), "a finite number"
            need(value is None or good, f"metrics.{name}", value, f"{expected}, or null")


@dataclass(frozen=True)
class Benchmark:
    """A benchmark scored at a checkpoint: counts for each subtask and, where kept, the outcome of each question."""

    name: str  # e.g. "mvbench-twin"
    step: int
    protocol: str  # how options were answered: "rank" (likelihood), "letter", "generate"
    tasks: dict[str, dict[str, Any]]  # subtask -> n, correct, chance (expected score of a guess, fraction, or None)
    outcomes: dict[str, str] = field(default_factory=dict)  # subtask -> pack(bits), in the benchmark's own order
    questions: str | None = None  # fingerprint of the questions and their order: equal ones can be compared in pairs

    def __post_init__(self) -> None:
        need(isinstance(self.name, str) and bool(self.name), "name", self.name, "a benchmark's name")
        need(is_count(self.step), "step", self.step, "a step >= 0")
        need(isinstance(self.protocol, str) and bool(self.protocol), "protocol", self.protocol, "e.g. 'rank'")
        need(isinstance(self.tasks, Mapping) and bool(self.tasks), "tasks", self.tasks, "at least one subtask")
        for task, score in self.tasks.items():
            need(isinstance(score, Mapping), f"tasks.{task}", score, "a mapping with n, correct, chance")
            n, correct, chance = score.get("n", 0), score.get("correct", -1), score.get("chance")
            need(is_count(n) and n != 0, f"tasks.{task}.n", n, "a number of questions > 0")
            need(is_count(correct) and correct <= n, f"tasks.{task}.correct", correct, f"a whole number in [0, {n}]")
            need(chance is None or is_number(chance, 0, 1), f"tasks.{task}.chance", chance, "a fraction or null")
        need(isinstance(self.outcomes, Mapping), "outcomes", self.outcomes, "a mapping of subtasks to packed bits")
        for task, text in self.outcomes.items():
            need(task in self.tasks, f"outcomes.{task}", text, f"one of the subtasks {sorted(self.tasks)}")
            right = int(unpack(text, self.tasks[task]["n"]).sum())
            expected = f"{self.tasks[task]['correct']} right answers, as in tasks.{task}.correct"
            need(right == self.tasks[task]["correct"], f"outcomes.{task}", right, expected)
        need(self.questions is None or isinstance(self.questions, str), "questions", self.questions, "text or null")

    @classmethod
    def from_bits(
        cls,
        name: str,
        step: int,
        protocol: str,
        bits: Mapping[str, Iterable[Any]],
        chance: Mapping[str, float | None],
        questions: str | None = None,
    ) -> Benchmark:
        """From right (true) or wrong for each question of each subtask, in the benchmark's own order."""
        known = {task: [bool(bit) for bit in answers] for task, answers in bits.items()}
        tasks = {task: {"n": len(b), "correct": sum(b), "chance": chance.get(task)} for task, b in known.items()}
        return cls(name, step, protocol, tasks, {task: pack(b) for task, b in known.items()}, questions)

    def bits(self) -> dict[str, np.ndarray] | None:
        """Right (True) or wrong for each question of each subtask; None where a subtask kept no outcomes."""
        if set(self.outcomes) != set(self.tasks):
            return None
        return {task: unpack(self.outcomes[task], score["n"]) for task, score in sorted(self.tasks.items())}


def pack(bits: Iterable[Any]) -> str:
    """Right/wrong for each question as hexadecimal text, four questions a character."""
    return np.packbits(np.array([bool(bit) for bit in bits], dtype=bool)).tobytes().hex()


def unpack(text: str, n: int) -> np.ndarray:
    """The n booleans that `pack` packed."""
    todo = "score the benchmark again"
    try:
        raw = np.frombuffer(bytes.fromhex(text), dtype=np.uint8)
    except (ValueError, TypeError):
        raise RecordError("outcomes", text, "hexadecimal text", todo) from None
    need(len(raw) == (n + 7) // 8, "outcomes", f"{len(raw)} bytes", f"{(n + 7) // 8} bytes for {n} questions", todo)
    return np.unpackbits(raw, count=n).astype(bool)
