"""One function per row of a table. A recipe is all that decides a run's outcome; its hash decides whether it is stale.

Micro scale: a student of about one and a half million parameters on two CPU cores, from the committed prepared student.
Each docstring says what the run is, what it runs on and how long it takes there.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from eval.world import WORLD_VERSION
from regate.gate import METHOD_VERSION

STUDENTS = ("internvl", "videollama2", "videochat2")
SCALES = ("micro", "paper")


_SEEN = (
    "moving_direction", "action_antonym", "moving_attribute", "state_change", "scene_transition", "moving_count",
    "object_interaction", "fine_grained_pose", "episodic_reasoning",
)  # fmt: skip
SEEN: dict[str, tuple[str, ...]] = {
    "internvl": _SEEN,
    "videollama2": (
        "moving_direction", "action_antonym", "moving_attribute", "state_change", "scene_transition", "moving_count",
        "object_interaction", "episodic_reasoning",
    ),
    "videochat2": (
        "moving_direction", "action_antonym", "moving_attribute", "object_existence", "scene_transition",
        "moving_count", "object_interaction", "episodic_reasoning",
    ),
}  # fmt: skip
"""Subtasks of the twin on which a prepared student beats a guesser before any fine-tuning; `make world-check` holds
it so, on validation scenes. On the others a micro student guesses, and a comparison of methods says nothing."""

TUNING: dict[str, dict[str, Any]] = {
    "internvl": {},
    "videollama2": {"freeze": ["vision_tower"]},
    "videochat2": {"lora": {"r": 16, "alpha": 32, "dropout": 0.1}},
}
"""What trains of each student, as its paper has it (repro.tuning); all else is the same for all."""


@dataclass(frozen=True)
class Data:
    """What is trained on and followed on: turns about clips of the embedded world, questions of the MVBench twin."""

    train: int = 2560
    validation: int = 256
    seed: int = 0
    tasks: tuple[str, ...] = _SEEN
    questions_per_task: int = 100


@dataclass(frozen=True)
class Recipe:
    """One run of one student with one method and one seed."""

    table: str
    student: str
    method: str
    seed: int
    scale: str = "micro"
    steps: int = 256
    batch_size: int = 32
    learning_rate: float = 1e-3
    warmup_ratio: float = 0.05
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    evaluate_every: int = 16
    save_every: int = 64
    tuning: dict[str, Any] = field(default_factory=dict)  # what trains (repro.tuning); empty: all parameters
    gate: dict[str, Any] = field(default_factory=dict)  # fields of ReGateConfig; empty for the stock Trainer
    trace_samples: int = 0  # so many samples of the training set are traced, for the app
    data: Data = Data()

    @property
    def name(self) -> str:
        """Name of the record."""
        return f"table{self.table}-{self.student}-{self.method}-s{self.seed}"

    def config(self, student_hash: str) -> dict[str, Any]:
        """The resolved configuration that a record holds; ``student_hash`` is of the prepared student's weights."""
        versions = {"method_version": METHOD_VERSION, "world_version": WORLD_VERSION, "student_hash": student_hash}
        fields = dataclasses.asdict(self)
        if not self.tuning:  # records from before there was a choice say the same as those of today
            del fields["tuning"]
        return fields | versions


# The paper's warm-up and cycles (100, C 128, F 16) belong to thousands of steps; these keep about their shares of 256.
_GATE = {"keep_ratio": 0.5, "lambda_": 0.5, "beta": 0.9, "gate_warmup_steps": 16, "cycle": 60, "dense_steps": 8}


def _of(student: str) -> dict[str, Any]:
    return {"tuning": TUNING[student], "data": Data(tasks=SEEN[student])}


def stock(student: str = "internvl", seed: int = 0, **changes: Any) -> Recipe:
    """Baseline: transformers' own Trainer, dense, all logits. Two cores: about 2 minutes."""
    return Recipe("4", student, "stock", seed, **_of(student) | changes)


def dense(student: str = "internvl", seed: int = 0, **changes: Any) -> Recipe:
    """The same steps in our trainer: exact, logits only where a target is predicted. Two cores: about 2 minutes.

    Expected: the baseline's losses and scores up to rounding; only time, FLOPs and memory differ.
    """
    fields = _of(student) | {"gate": {"policy": "dense"}, "trace_samples": _traced(seed)} | changes
    return Recipe("4", student, "dense", seed, **fields)


def regate(student: str = "internvl", seed: int = 0, **changes: Any) -> Recipe:
    """ReGATE: lambda 0.5, half of the answer tokens in sparse steps. Two cores: about 2 minutes.

    Expected from the paper: the baseline's score or better with about 41 % fewer supervised tokens.
    """
    fields = _of(student) | {"gate": _GATE | {"policy": "regate"}, "trace_samples": _traced(seed)} | changes
    return Recipe("4", student, "regate", seed, **fields)


def _traced(seed: int) -> int:
    """Runs of seed 0 carry a trace of so many samples, for the app."""
    return 24 if seed == 0 else 0


def table4(students: tuple[str, ...] = STUDENTS, seeds: int = 1) -> list[Recipe]:
    """All runs of Table 4, the baseline of each student and seed before the runs that are read against it."""
    rows = (stock, dense, regate)
    return [row(student, seed) for student in students for seed in range(seeds) for row in rows]
