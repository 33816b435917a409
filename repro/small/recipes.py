"""The runs of the small scale: dense and ReGATE with lambda 0, 0.5 and 1 in full, a random half beside them, a pair
with LoRA, a pair on easy-VQA.

The same Recipe as at micro scale, with other numbers; the baseline is `dense`, whose losses are the stock Trainer's up
to rounding. Steps, batch and lengths are chosen for two cores: see docs/small-scale.md for what a seed takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from repro.recipes import Data, Recipe
from repro.small.student import NAME

LORA = f"{NAME}-lora"
"""The student whose language model is tuned by adapters."""
STEPS = 96
_GATE = {"keep_ratio": 0.5, "lambda_": 0.5, "beta": 0.9, "gate_warmup_steps": 6, "cycle": 30, "dense_steps": 4}
_DATA = Data(
    train=256,  # three epochs: a running loss is first known in the second
    validation=64,
    tasks=("moving_attribute", "scene_transition", "object_existence", "episodic_reasoning", "moving_direction",
           "state_change"),
    questions_per_task=32,
)  # fmt: skip
_EASY = Data(train=256, validation=64, tasks=(), questions_per_task=0)
TUNING: dict[str, dict[str, Any]] = {NAME: {}, LORA: {"lora": {"r": 16, "alpha": 32}}}
"""What trains beside the projector: the whole language model, or adapters on its linear layers. Never the tower."""
TABLES = ("4", "5", "rivals", "easyvqa")
RATES = {NAME: 2e-4, LORA: 1e-3}


def _run(method: str, student: str, seed: int, gate: dict[str, Any], table: str = "4", **changes: Any) -> Recipe:
    fields: dict[str, Any] = {
        "scale": "small",
        "steps": STEPS,
        "batch_size": 8,
        "learning_rate": RATES[student],
        "warmup_ratio": 0.1,
        "evaluate_every": 12,
        "save_every": 48,
        "tuning": TUNING[student],
        "gate": gate,
        "trace_samples": 24 if seed == 0 and table == "4" else 0,
        "data": _DATA,
    }
    return Recipe(table, student, method, seed, **fields | changes)


def dense(student: str = NAME, seed: int = 0, **changes: Any) -> Recipe:
    """The baseline: every target, logits only where one is predicted."""
    return _run("dense", student, seed, {"policy": "dense"}, **changes)


def regate(student: str = NAME, seed: int = 0, **changes: Any) -> Recipe:
    """ReGATE: lambda 0.5, half of the answer tokens in sparse steps.

    Expected from the paper: the baseline's score or better with about 41 % fewer supervised tokens.
    """
    return _run("regate", student, seed, _GATE | {"policy": "regate"}, **changes)


def weighted(lambda_: int, seed: int = 0, **changes: Any) -> Recipe:
    """Table 5: the student's running loss alone (0), or the teacher's alone (1)."""
    gate = _GATE | {"policy": "regate", "lambda_": lambda_}
    return _run(f"lambda{lambda_}", NAME, seed, gate, "5", **{"evaluate_every": 24} | changes)


def random_half(seed: int = 0, **changes: Any) -> Recipe:
    """The control: as many answer tokens, drawn at random. What ReGATE has over it, its score has earned."""
    return _run("random", NAME, seed, _GATE | {"policy": "random"}, "rivals", **{"evaluate_every": 24} | changes)


def easy_vqa(method: str, seed: int = 0, **changes: Any) -> Recipe:
    """Fine-tuning on easy-VQA's training questions, answered in a sentence: one word would leave a gate nothing."""
    gate = {"policy": "dense"} if method == "dense" else _GATE | {"policy": "regate"}
    fields: dict[str, Any] = {"data": _EASY, "evaluate_every": 24, "gate": gate} | changes
    return _run(f"easyvqa-{method}", NAME, seed, fields.pop("gate"), "easyvqa", **fields)


def table4(seeds: int, lora_seeds: int = 1) -> list[Recipe]:
    """Dense and ReGATE: full fine-tuning with all seeds, LoRA with one."""
    full = [row(NAME, seed) for seed in range(seeds) for row in (dense, regate)]
    return full + [row(LORA, seed) for seed in range(min(seeds, lora_seeds)) for row in (dense, regate)]


def table5(seeds: int) -> list[Recipe]:
    """Lambda 0, 0.5 and 1 beside dense; dense and 0.5 are Table 4's."""
    return table4(seeds, 0) + [weighted(lambda_, seed) for seed in range(seeds) for lambda_ in (0, 1)]


def rivals(seeds: int) -> list[Recipe]:
    """The random half beside dense and ReGATE, which are Table 4's."""
    return table4(seeds, 0) + [random_half(seed) for seed in range(seeds)]


def easy_vqa_pair(seeds: int = 1) -> list[Recipe]:
    """Dense and ReGATE on easy-VQA."""
    return [easy_vqa(method, seed) for seed in range(seeds) for method in ("dense", "regate")]


def of_tables(tables: Sequence[str], seeds: int) -> list[Recipe]:
    """All runs of some tables (`TABLES`), each once; ValueError for another table."""
    known = dict(zip(TABLES, (table4(seeds), table5(seeds), rivals(seeds), easy_vqa_pair()), strict=True))
    if unknown := set(tables) - set(known):
        raise ValueError(f"the small scale has no table {', '.join(sorted(unknown))}; it has {', '.join(known)}")
    return list({recipe.name: recipe for table in tables for recipe in known[table]}.values())


def named(name: str, seeds: int) -> Recipe:
    """The recipe of a record's name, of seeds 0 .. seeds-1; ValueError where there is none."""
    known = {recipe.name: recipe for recipe in of_tables(TABLES, seeds)}
    if name not in known:
        raise ValueError(f"unknown run {name!r} of the small scale; known: {', '.join(known)}")
    return known[name]


def shortened(recipe: Recipe, steps: int, data: Data, batch_size: int = 2) -> Recipe:
    """The same run in a few steps on little data: does it run?"""
    gate = recipe.gate | ({"gate_warmup_steps": 1, "cycle": 3, "dense_steps": 1} if "cycle" in recipe.gate else {})
    sizes: dict[str, Any] = {
        "steps": steps,
        "batch_size": batch_size,
        "evaluate_every": 2,
        "save_every": 2,
        "trace_samples": 0,
    }
    return replace(recipe, gate=gate, data=data, **sizes)
