"""What the other tables vary of Table 4's runs: a variant is a name and its changes, one function a family. No torch.

Core families say something about the paper's claims and the rivals, and take five seeds; wide ones are ablations, and
take two; ``push`` are attempts to do better, and ``half`` those of them that claim most. Budgets shorten a run
together with its whole schedule (learning rate, warm-up, cycle), so each is read at its own end. Two cores: a whole
run takes about two minutes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

STEPS = 256
"""Steps of a whole run at micro scale."""
EVALUATIONS = 8
"""Evaluations on validation of a variant; Table 4's runs, whose peaks are looked for, have sixteen."""
KEPT = {"active_set": "predictors+kept"}
SEEDS = {"core": 5, "wide": 2, "push": 2, "half": 5}
"""Tier -> seeds that its comparison needs."""


@dataclass(frozen=True)
class Variant:
    """A run of ``table`` that is Table 4's run ``of`` but for its changes."""

    table: str
    label: str  # how a table calls it
    of: str = "regate"  # stock, dense or regate
    gate: dict[str, Any] = field(default_factory=dict)  # replaces single fields of the gate
    data: dict[str, Any] = field(default_factory=dict)  # replaces single fields of the data
    recipe: dict[str, Any] = field(default_factory=dict)  # replaces whole fields of the recipe
    budget: float = 1.0  # share of the steps, with a whole schedule of that length


Variants = dict[str, Variant]
"""Method (part of the record's name) -> variant."""


# --- core ---


def lambdas() -> Variants:
    """Table 5: the teacher's weight. 0: the student's EMA only; 1: the reference loss only. 0.5 is Table 4's run.

    Expected from the paper: both ends below 0.5.
    """
    return {f"lambda{v}": Variant("5", f"λ = {v}", gate={"lambda_": v}) for v in (0, 1)}


def active_sets() -> Variants:
    """Which answer positions a sparse step computes: not only predictors, or Algorithm 1 read literally."""
    labels = {
        "predictors+kept": "predictors and kept",
        "kept-passthrough": "kept, (a) predicted from embeddings",
        "kept-unsupervised": "kept, (b) unsupervised",
    }
    return {f"active-{s.replace('+', '-')}": Variant("ablations", labels[s], gate={"active_set": s}) for s in labels}


def budgets() -> Variants:
    """The headline: what 35, 50 and 75 % of the steps reach, dense and ReGATE. 100 % are Table 4's runs."""
    names = {"dense": "dense", "regate": "ReGATE"}
    return {
        f"{of}-budget{percent}": Variant("budgets", f"{label}, {percent} %", of, budget=percent / 100)
        for of, label in names.items()
        for percent in (35, 50, 75)
    }


def rivals() -> Variants:
    """Other ways to compute or train on less, on the same batches: loss only (RHO-1's gate), half of the answer tokens
    at random, Random-LTD (repro.rivals.random_ltd) with its linear schedule, and visual-token pruning.

    Random-LTD begins with an eighth of the sequence in its middle layers, as its published fine-tuning of GPT does,
    grows linearly and computes all of it from two thirds of the steps on. Visual pruning is DualSpeed's idea without
    its additions (mode isolator, self-distillation): half of the visual positions, drawn at random, and every tenth
    step with all. In steps that prune, the head computes what it computes in dense steps.
    """
    pruning = {"policy": "dense", "visual_keep_ratio": 0.5, "gate_warmup_steps": 0, "cycle": 10, "dense_steps": 1}
    schedule = {"random_ltd": {"start": 16, "steps": round(2 / 3 * STEPS), "granularity": 8}}
    often = {"evaluate_every": STEPS // 16}  # where they reach the baseline's peak is looked for
    return {
        "loss_only": Variant("rivals", "loss only (RHO-1 style)", gate={"policy": "loss_only"}, recipe=often),
        "random": Variant("rivals", "random half of the answer", gate={"policy": "random"}, recipe=often),
        "random_ltd": Variant("rivals", "Random-LTD", "stock", recipe=schedule | often),
        "visual_pruning": Variant("rivals", "visual pruning", gate=pruning, recipe=often),
    }


# --- wide ---


def more_lambdas() -> Variants:
    """Table 5 between its rows, and Eq. 3 as printed (additive)."""
    found = {f"lambda{v}": Variant("5", f"λ = {v}", gate={"lambda_": v}) for v in (0.25, 0.75)}
    return found | {"additive": Variant("5", "λ = 0.5, additive (Eq. 3)", gate={"combine": "additive"})}


def teachers() -> Variants:
    """The second version's ablation of teacher capacity; the aligned teacher is Table 4's run. `make teachers`."""
    return {f"teacher-{t}": Variant("5", f"{t} teacher", recipe={"teacher": t}) for t in ("smaller", "larger")}


def ratios() -> Variants:
    """Share of the answer kept in sparse steps; the paper's is 0.5."""
    return {f"ratio{p}": Variant("ablations", f"p = {p}", gate={"keep_ratio": p}) for p in (0.25, 0.35, 0.7)}


def schedules() -> Variants:
    """Warm-up and cycle; Table 4's runs have a warm-up of 16, C = 60, F = 8."""
    changes = {
        "warmup0": ("no warm-up", {"gate_warmup_steps": 0}),
        "warmup64": ("warm-up 64", {"gate_warmup_steps": 64}),
        "cycle30": ("C = 30, F = 4", {"cycle": 30, "dense_steps": 4}),
        "dense0": ("F = 0", {"dense_steps": 0}),
        "dense30": ("F = 30", {"dense_steps": 30}),
    }
    return {name: Variant("ablations", label, gate=gate) for name, (label, gate) in changes.items()}


def betas() -> Variants:
    """Decay of the student's EMA; the paper's is 0.9."""
    return {f"beta{b}": Variant("ablations", f"β = {b}", gate={"beta": b}) for b in (0.5, 0.99)}


def epochs() -> Variants:
    """The same steps over half and over twice the data: 6.4 and 1.6 epochs in the place of 3.2; dense beside ReGATE."""
    names = {"dense": "dense", "regate": "ReGATE"}
    return {
        f"{of}-data{rows}": Variant("ablations", f"{label}, {rows} rows", of, data={"train": rows})
        for rows in (1280, 5120)
        for of, label in names.items()
    }


# --- push ---


def push() -> Variants:
    """Attempts to do better, each against Table 4's ReGATE and against dense.

    A gate on losses keeps the unlikely values of each slot and drops the likely ones, so the student learns another
    distribution than the data's: draw with weights in the place of ranking (drawn), or look at predictions and not at
    labels (dependence), each also without holes in the context. Sparse steps train on contexts with holes, and the
    student is judged on whole ones: heal it at the end (cooldown, rising ratio), make fewer holes (predictors+kept,
    chunks), or none (prefix), or mix whole rows in (mixed). Or spend where it counts: the micro-batch's hardest
    (batch), fewer visual positions (visual50), a vision tower that is not trained (frozen), half of the rows (batch16,
    batch8).
    """
    end, whole = {"gate_cooldown_steps": 48}, {"active_set": "prefix"}
    gates: dict[str, tuple[str, dict[str, Any]]] = {
        "drawn": ("drawn by difficulty, weighted", {"policy": "drawn"}),
        "drawn-kept": ("drawn, predictors and kept", {"policy": "drawn"} | KEPT),
        "cooldown": ("last 48 steps dense", end),
        "kept-cooldown": ("predictors and kept, last 48 dense", end | KEPT),
        "rising": ("p from 0.25 to 1", {"keep_ratio": 0.25, "keep_ratio_final": 1.0}),
        "chunks": ("chunks of 8", {"policy": "chunks"}),
        "earliest": ("answer up to a random place", whole | {"policy": "earliest"}),
        "prefix": ("answer up to the last kept, p = 0.25", whole | {"keep_ratio": 0.25}),
        "mixed": ("a quarter of the rows whole", {"policy": "mixed"}),
        "batch": ("hardest of the batch", {"policy": "batch"}),
        "visual50": ("ReGATE and half of the visual", {"visual_keep_ratio": 0.5}),
        "visual50-cooldown": ("the same, last 48 dense", end | {"visual_keep_ratio": 0.5}),
    }
    seeing = {
        "dependence": ("visual dependence", {"policy": "dependence"}),
        "dependence-kept": ("visual dependence, predictors and kept", {"policy": "dependence"} | KEPT),
        "dependence-loss": ("visual dependence, loss only", {"policy": "dependence_loss_only"}),
    }
    found = {name: Variant("push", label, gate=gate) for name, (label, gate) in gates.items()}
    for name, (label, gate) in seeing.items():
        found[name] = Variant("push", label, gate=gate, recipe={"teacher": "seeing"})
    return found | cheaper(gates["drawn"][1] | KEPT | end)


def cheaper(gate: dict[str, Any]) -> Variants:
    """What no gate of answers can save: the vision tower's gradients (it stays as it was prepared), and whole rows.

    Dense and with ``gate``; over the whole of the steps, over 60 % of them, and with half of the rows in every step: a
    budget in rows, which keeps the number of updates. As many rows in steps of 8 are twice the updates, steps of 4 are
    more again; and where steps are few, larger ones (lr2: twice the learning rate, beside dense with the same).
    """
    frozen: dict[str, Any] = {"tuning": {"freeze": ["vision_tower"]}}
    fast: dict[str, Any] = {"learning_rate": 2e-3}
    few, fewer, fewest = ({"batch_size": rows} for rows in (16, 8, 4))
    dense: dict[str, tuple[str, dict[str, Any], float]] = {
        "batch16": ("16 rows a step", few, 1),
        "batch8": ("8 rows, twice the steps", fewer, 2),
        "lr2": ("twice the learning rate", fast, 1),
        "frozen": ("frozen tower", frozen, 1),
        "frozen-budget60": ("frozen tower, 60 %", frozen, 0.6),
        "frozen-batch16": ("frozen tower, 16 rows", frozen | few, 1),
        "frozen-batch8": ("frozen tower, 8 rows, twice the steps", frozen | fewer, 2),
        "frozen-batch8-longer": ("frozen tower, 8 rows, 2.18 times the steps", frozen | fewer, 2.18),
        "frozen-batch8-lr2": ("frozen tower, 8 rows, twice the steps and rate", frozen | fewer | fast, 2),
        "frozen-batch4": ("frozen tower, 4 rows, 3.5 times the steps", frozen | fewest, 3.5),
    }
    longer = gate | {"gate_cooldown_steps": 2 * gate["gate_cooldown_steps"]}
    gated: dict[str, tuple[str, dict[str, Any], dict[str, Any], float]] = {
        "frozen-drawn": ("frozen tower, drawn", gate, frozen, 1),
        "frozen-drawn-budget60": ("frozen tower, drawn, 60 %", gate, frozen, 0.6),
        "frozen-drawn-batch16": ("frozen tower, drawn, 16 rows", gate, frozen | few, 1),
        "frozen-drawn-batch8": ("frozen tower, drawn, 8 rows, twice the steps", longer, frozen | fewer, 2),
    }
    found: Variants = {}
    for name, (label, recipe, budget) in dense.items():
        found[name] = Variant("push", label, "dense", recipe=recipe, budget=budget)
    for name, (label, changes, recipe, budget) in gated.items():
        found[name] = Variant("push", label, gate=changes, recipe=recipe, budget=budget)
    return found


HALF = ("frozen-batch8", "frozen-batch8-longer", "frozen-batch8-lr2", "frozen-batch4", "lr2")
"""What came nearest to the baseline's accuracy in half of its time, by the first seeds of all of push, and the control
that says what the baseline itself gains by larger steps. Five seeds; at least three of them are new to the choice, but
for `frozen-batch8-longer`: it came last, when all five of `frozen-batch8` had been seen on validation, with as many
steps as half of the time holds by the calibration of that day.
"""
PUSH = push()
TIERS: dict[str, Variants] = {
    "core": lambdas() | active_sets() | budgets() | rivals(),
    "wide": more_lambdas() | teachers() | ratios() | schedules() | betas() | epochs(),
    "push": {name: variant for name, variant in PUSH.items() if name not in HALF},
    "half": {name: PUSH[name] for name in HALF},
}
"""Tier -> its variants."""
VARIANTS: Variants = {name: variant for tier in TIERS.values() for name, variant in tier.items()}
LABELS = {name: variant.label for name, variant in VARIANTS.items()}
"""Method -> how a table calls it."""
