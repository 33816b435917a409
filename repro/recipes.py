"""One function per row of Table 4. A recipe is all that decides a run's outcome; its hash decides whether it is stale.

Micro scale: a student of about one and a half million parameters on two CPU cores, from the committed prepared student.
Each docstring says what the run is, what it runs on and how long it takes there. What varies these runs, for the other
tables, is in `repro.variants`.
"""

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from eval.world import WORLD_VERSION
from regate.gate import METHOD_VERSION, POLICIES
from repro.variants import EVALUATIONS, SEEDS, STEPS, TIERS, VARIANTS

STUDENTS = ("internvl", "videollama2", "videochat2")
SCALES = ("micro", "small", "paper")


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
    questions_per_task: int = 250  # of eight tasks or nine: at least 2,000 in all


@dataclass(frozen=True)
class Recipe:
    """One run of one student with one method and one seed."""

    table: str
    student: str
    method: str
    seed: int
    scale: str = "micro"
    steps: int = STEPS
    batch_size: int = 32
    learning_rate: float = 1e-3
    warmup_ratio: float = 0.05
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    evaluate_every: int = 16
    save_every: int = 64
    tuning: dict[str, Any] = field(default_factory=dict)  # what trains (repro.tuning); empty: all parameters
    gate: dict[str, Any] = field(default_factory=dict)  # fields of ReGateConfig; empty for the stock Trainer
    random_ltd: dict[str, Any] = field(default_factory=dict)  # a Random-LTD Schedule, in the stock Trainer
    teacher: str = "aligned"  # whose reference losses: the student's own backbone, or a folder of results/teachers
    trace_samples: int = 0  # so many samples of the training set are traced, for the app
    data: Data = Data()

    @property
    def name(self) -> str:
        """Name of the record."""
        table = f"table{self.table}" if self.table.isdecimal() else self.table
        return f"{table}-{self.student}-{self.method}-s{self.seed}"

    @property
    def has_baseline(self) -> bool:
        """Whether the run is read against the peak of the stock Trainer's of the same seed, and scored there."""
        return (self.table, self.method) == ("4", "regate")

    @property
    def needs_teacher(self) -> bool:
        """Whether the gate reads reference losses."""
        return bool(self.gate) and POLICIES[self.gate["policy"]].needs_reference

    def identity(self) -> dict[str, Any]:
        """The fields of a Record that say which run it is of."""
        names = ("name", "table", "student", "method", "scale", "seed", "steps")
        return {name: getattr(self, name) for name in names}

    def config(self, student_hash: str) -> dict[str, Any]:
        """The resolved configuration that a record holds; ``student_hash`` is of the prepared student's weights."""
        versions = {"method_version": METHOD_VERSION, "world_version": WORLD_VERSION, "student_hash": student_hash}
        fields = asdict(self)
        for name, absent in (("tuning", {}), ("random_ltd", {}), ("teacher", "aligned")):
            if fields[name] == absent:  # records from before there was a choice say the same as those of today
                del fields[name]
        return fields | versions

    def step_kind(self, sparse: bool) -> str:
        """What decides the cost of a step, as text: steps of one kind cost the same on one machine."""
        frozen, usual = self.tuning.get("freeze", []), TUNING.get(self.student, {}).get("freeze", [])
        trains = "" if frozen == usual else f"frozen {', '.join(frozen) or 'nothing'}: "
        if self.batch_size != Recipe.batch_size:
            trains = f"{self.batch_size} rows: {trains}"
        if not self.gate:
            return trains + ("random_ltd" if self.random_ltd else "stock")
        if not sparse:
            return f"{trains}dense"
        gate = {"keep_ratio": 0.5, "active_set": "predictors", "visual_keep_ratio": 1} | self.gate
        end = gate.get("keep_ratio_final")
        ratio = gate["keep_ratio"] if end is None else f"{gate['keep_ratio']} to {end}"
        share = "all" if gate["policy"] == "dense" else f"{gate['policy']} {ratio}"
        return f"{trains}{share}, {gate['active_set']}, visual {gate['visual_keep_ratio']}"


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


def recipe_of(method: str, student: str = "internvl", seed: int = 0, **changes: Any) -> Recipe:
    """The recipe of a variant; ``changes`` replace fields of Table 4's run before the variant does."""
    variant, rows = VARIANTS[method], {"stock": stock, "dense": dense, "regate": regate}
    base = rows[variant.of](student, seed, **{"trace_samples": 0} | changes)
    steps = round(variant.budget * base.steps)
    short = {name: round(variant.budget * base.gate[name]) for name in ("gate_warmup_steps", "cycle", "dense_steps")
             if name in base.gate}  # fmt: skip
    fields: dict[str, Any] = {
        "table": variant.table,
        "method": method,
        "steps": steps,
        "evaluate_every": max(1, steps // EVALUATIONS),
        "gate": base.gate | short | variant.gate,
        "data": replace(base.data, **variant.data),
    }
    return replace(base, **fields | variant.recipe)


def table4_and(tables: tuple[str, ...], seeds: int, student: str = "internvl") -> list[Recipe]:
    """Table 4's runs of a student, and all variants of some tables with as many seeds as their tier takes at most."""
    return table4((student,), seeds) + [
        recipe for recipe in _variants(student, seeds, tuple(TIERS)) if VARIANTS[recipe.method].table in tables
    ]


def _variants(student: str, seeds: int, tiers: tuple[str, ...]) -> list[Recipe]:
    """Variants of some tiers, one seed after the other: what is stopped leaves whole seeds behind."""
    return [
        recipe_of(method, student, seed)
        for tier in tiers
        for seed in range(min(seeds, SEEDS[tier]))
        for method in TIERS[tier]
    ]


def everything(seeds: int, tiers: tuple[str, ...] = ("core", "wide")) -> list[Recipe]:
    """All runs of `make repro-all`: Table 4's of the first student with all seeds, of the others with one; variants."""
    first, *others = STUDENTS
    return [*table4((first,), seeds), *table4(tuple(others), 1), *_variants(first, seeds, tiers)]


def named(name: str, seeds: int) -> Recipe:
    """The recipe of a record's name, of seeds 0 .. seeds-1; ValueError where there is none."""
    known = {r.name: r for r in [*table4(STUDENTS, seeds), *everything(seeds, tuple(TIERS))]}
    if name not in known:
        raise ValueError(f"unknown run {name!r}; known: {', '.join(known)}")
    return known[name]
