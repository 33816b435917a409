"""Table 4 at the paper's scale: one function a run. Never run on a GPU by us; `python -m repro plan` forecasts it.

What the paper states is taken from it; what it leaves open is from the students' public training scripts, or assumed,
and then says so. Steps follow from the data that are given.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from regate.gate import METHOD_VERSION
from regate.schedule import keep_ratio_at
from repro.architectures import ARCHITECTURES, Architecture

PUBLISHED = Path(__file__).resolve().parent.parent / "results" / "published.json"
PUBLISHED_NAMES = {"videollama2": "VideoLLaMA2", "videochat2": "VideoChat2", "internvl": "InternVL3.5"}
STUDENTS = tuple(ARCHITECTURES)


@dataclass(frozen=True)
class PaperRecipe:
    """One run at the paper's scale. ``samples`` and ``answer_tokens`` are only what `plan` assumes without data."""

    student: str
    method: str  # stock, dense, regate
    seed: int
    frames: int
    epochs: int
    global_batch: int
    micro_batch: int
    learning_rate: float
    weight_decay: float
    warmup_ratio: float
    max_grad_norm: float
    max_length: int
    samples: int
    answer_tokens: int
    scheduler: str = "cosine"
    scheduler_arguments: dict[str, Any] = field(default_factory=dict)
    prompt_tokens: int = 60
    gate: dict[str, Any] = field(default_factory=dict)  # fields of ReGateConfig; empty for the stock Trainer
    save_every: int = 500

    @property
    def name(self) -> str:
        """Name of the record."""
        return f"table4-{self.student}-{self.method}-paper-s{self.seed}"

    @property
    def architecture(self) -> Architecture:
        return ARCHITECTURES[self.student]

    def steps(self, samples: int) -> int:
        """Optimizer steps over ``samples``, as Trainer counts them: the last batch of an epoch may be a part."""
        return self.epochs * math.ceil(samples / self.global_batch)

    def accumulation(self, gpus: int, micro_batch: int) -> int:
        """Micro-batches that each GPU adds up in a step; ValueError where the global batch does not divide so."""
        accumulated, rest = divmod(self.global_batch, gpus * micro_batch)
        if rest or not accumulated:
            raise ValueError(
                f"{self.student}: a global batch of {self.global_batch} cannot be made of {gpus} GPUs with "
                f"micro-batches of {micro_batch}; their product must divide it"
            )
        return accumulated

    def ratio_at(self, step: int) -> float:
        """Share of an answer that is kept in an optimizer step; 1 where nothing is gated."""
        if not self.gate or self.gate.get("policy") == "dense":
            return 1.0
        names = {
            "keep_ratio": "keep_ratio",
            "warmup": "gate_warmup_steps",
            "cycle": "cycle",
            "dense_steps": "dense_steps",
        }
        return keep_ratio_at(step, **{name: self.gate[key] for name, key in names.items()})

    def config(self, **data: Any) -> dict[str, Any]:
        """The resolved configuration that a record holds; ``data`` says what the run was given."""
        changes_nothing = ("samples", "answer_tokens", "prompt_tokens", "micro_batch", "save_every")
        fields = {k: v for k, v in dataclasses.asdict(self).items() if k not in changes_nothing}
        versions = {"method_version": METHOD_VERSION, "world_version": None}
        return fields | {"tuning": self.architecture.tuning, "scale": "paper"} | versions | data


def published(student: str, method: str) -> dict[str, float]:
    """What the paper prints for a run in Table 4, by column; the second version's numbers over the first's."""
    row = {"stock": "baseline", "regate": "regate"}.get(method)
    cells = json.loads(PUBLISHED.read_text())["cells"]
    found = [c for c in cells if c["table"] == "4" and c["student"] == PUBLISHED_NAMES[student] and c["method"] == row]
    return {c["column"]: c["value"] for c in sorted(found, key=lambda c: c["version"]) if c["value"] is not None}


GATE = {
    "policy": "regate",
    "keep_ratio": 0.5,  # p
    "lambda_": 0.5,
    "beta": 0.9,
    "cycle": 128,  # C
    "dense_steps": 16,  # F
    "gate_warmup_steps": 100,
}
DENSE = {"policy": "dense"}

# scripts/custom/finetune.sh of VideoLLaMA2. 2048 positions of text and 1352 of a video. About 300,000 samples and
# 83.82M tokens in the paper: 279 a sample. Its curve ends near step 2391, which is one epoch of them.
_VIDEOLLAMA2: dict[str, Any] = {
    "frames": 16,
    "epochs": 1,
    "global_batch": 128,
    "micro_batch": 4,
    "learning_rate": 2e-5,
    "weight_decay": 0.0,
    "warmup_ratio": 0.03,
    "max_grad_norm": 1.0,
    "max_length": 3400,
    "samples": 300_000,
    "answer_tokens": 279,
}
# config_7b_stage3.py of VideoChat2, with the paper's 16 frames for its 8; 128 = 32 GPUs x 4 of its cluster script. 512
# positions of text and 96 of a video. 3.93B tokens over 3 epochs of about 2.6M samples: 504 a sample.
_VIDEOCHAT2: dict[str, Any] = {
    "frames": 16,
    "epochs": 3,
    "global_batch": 128,
    "micro_batch": 4,
    "learning_rate": 2e-5,
    "weight_decay": 0.02,
    "warmup_ratio": 0.2,  # 0.6 of 3 epochs
    "scheduler": "cosine_with_min_lr",
    "scheduler_arguments": {"min_lr_rate": 0.25},
    "max_grad_norm": 0.0,  # no clipping
    "max_length": 608,
    "samples": 2_600_000,
    "answer_tokens": 504,
}
# The learning rate is that of InternVL's public fine-tuning scripts, without their packing; weight decay and warm-up
# are assumed. The paper does not say which data, how many epochs or frames: VideoChat2's samples are assumed, because
# 3.96B tokens are nearly its 3.93B, in one epoch of 16 frames.
_INTERNVL: dict[str, Any] = {
    "frames": 16,
    "epochs": 1,
    "global_batch": 128,
    "micro_batch": 1,
    "learning_rate": 8e-5,
    "weight_decay": 0.05,
    "warmup_ratio": 0.03,
    "max_grad_norm": 1.0,
    "max_length": 8192,
    "samples": 2_600_000,
    "answer_tokens": 1523,
}


def videollama2_stock(seed: int = 0) -> PaperRecipe:
    """VideoLLaMA2.1-7B-16F, transformers' own Trainer, all logits: Table 4's baseline.

    make repro-table4 SCALE=paper STUDENTS=videollama2 WEIGHTS=... DATA=... GPUS=4; four H100 of 80 GB. Hours with us:
    unknown. Published: 129.6 GPU-hours, 69.1 GB, MVBench 52.0 (average 48.2).
    """
    return PaperRecipe("videollama2", "stock", seed, **_VIDEOLLAMA2)


def videollama2_dense(seed: int = 0) -> PaperRecipe:
    """The same steps in our trainer, logits only where a target is predicted.

    Command and hardware as above. Hours unknown. Expected: the baseline's scores; not in the paper.
    """
    return PaperRecipe("videollama2", "dense", seed, gate=DENSE, **_VIDEOLLAMA2)


def videollama2_regate(seed: int = 0) -> PaperRecipe:
    """ReGATE with the paper's gate. With one epoch the EMA is never read: ranks are the reference losses' alone.

    Command and hardware as above. Hours unknown. Published: 107.6 GPU-hours and 2.1 of the teacher, 61.3 GB, MVBench
    53.6 (average 48.9).
    """
    return PaperRecipe("videollama2", "regate", seed, gate=GATE, **_VIDEOLLAMA2)


def videochat2_stock(seed: int = 0) -> PaperRecipe:
    """VideoChat2 stage 3, LoRA, transformers' own Trainer, all logits: Table 4's baseline.

    make repro-table4 SCALE=paper STUDENTS=videochat2 WEIGHTS=... DATA=... GPUS=4; four H100 of 80 GB. Hours with us:
    unknown. Published: 148.8 GPU-hours, 70.8 GB, MVBench 55.7 (average 46.1).
    """
    return PaperRecipe("videochat2", "stock", seed, **_VIDEOCHAT2)


def videochat2_dense(seed: int = 0) -> PaperRecipe:
    """The same steps in our trainer, logits only where a target is predicted.

    Command and hardware as above. Hours unknown. Expected: the baseline's scores; not in the paper.
    """
    return PaperRecipe("videochat2", "dense", seed, gate=DENSE, **_VIDEOCHAT2)


def videochat2_regate(seed: int = 0) -> PaperRecipe:
    """ReGATE with the paper's gate: only active tokens pass through the adapters.

    Command and hardware as above. Hours unknown. Published: 130.0 GPU-hours and 10.0 of the teacher, 63.7 GB, MVBench
    56.6 (average 47.8).
    """
    return PaperRecipe("videochat2", "regate", seed, gate=GATE, **_VIDEOCHAT2)


def internvl_stock(seed: int = 0) -> PaperRecipe:
    """InternVL3.5-8B, full fine-tuning, transformers' own Trainer, all logits: Table 4's baseline.

    make repro-table4 SCALE=paper STUDENTS=internvl WEIGHTS=... DATA=... GPUS=4; four H100 of 80 GB. Hours with us:
    unknown. Published: 435.2 GPU-hours, 58.3 GB, MVBench 68.3 (average 61.8).
    """
    return PaperRecipe("internvl", "stock", seed, **_INTERNVL)


def internvl_dense(seed: int = 0) -> PaperRecipe:
    """The same steps in our trainer, logits only where a target is predicted.

    Command and hardware as above. Hours unknown. Expected: the baseline's scores; not in the paper.
    """
    return PaperRecipe("internvl", "dense", seed, gate=DENSE, **_INTERNVL)


def internvl_regate(seed: int = 0) -> PaperRecipe:
    """ReGATE with the paper's gate. With one epoch the EMA is never read.

    Command and hardware as above. Hours unknown. Published: 374.4 GPU-hours and 11.3 of the teacher, 51.9 GB, MVBench
    69.6 (average 62.2).
    """
    return PaperRecipe("internvl", "regate", seed, gate=GATE, **_INTERNVL)


_RUNS = (
    videollama2_stock, videollama2_dense, videollama2_regate,
    videochat2_stock, videochat2_dense, videochat2_regate,
    internvl_stock, internvl_dense, internvl_regate,
)  # fmt: skip
RECIPES: dict[str, Callable[..., PaperRecipe]] = {run.__name__.replace("_", "-"): run for run in _RUNS}
METHODS = ("stock", "dense", "regate")


def recipe_of(name: str, seed: int = 0) -> PaperRecipe:
    """The recipe called ``STUDENT-METHOD``; ValueError naming those there are."""
    if name not in RECIPES:
        raise ValueError(f"unknown recipe {name!r}; known: {', '.join(RECIPES)}")
    return RECIPES[name](seed)
