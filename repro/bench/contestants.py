"""Who competes: real trainers on one model's weights, one optimizer and the same rows.

Each trainer gets its own copy of the module tree around the same parameters (`material.twin`), so that hooks and
patches of one do not reach another, and all of them fit into memory once.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
from torch import nn
from transformers import Trainer, TrainingArguments
from transformers.utils import is_flash_attn_2_available, is_kernels_available

from regate import ReGateConfig, ReGateTrainer
from repro.bench.material import TEACHER, Collator, build_model, build_rows, twin
from repro.bench.workloads import GPU_PATHS, Workload
from repro.rivals.random_ltd import Arm, RandomLTD, Schedule

FOREVER = 1_000_000
ROWS_OF = 32  # batches of different rows


@dataclass(frozen=True)
class Arena:
    """What the contestants of a workload share."""

    workload: Workload
    model: nn.Module
    tokenizer: Any
    rows: datasets.Dataset
    collator: Collator
    optimizer: torch.optim.Optimizer
    device: str
    folder: Path
    seed: int

    @classmethod
    def of(cls, workload: Workload, device: str, folder: Path, seed: int = 0) -> Arena:
        """Builds it; the optimizer is the one that the stock Trainer makes."""
        model, tokenizer = build_model(workload, seed, device)
        rows = build_rows(workload, model, tokenizer, ROWS_OF * workload.batch, seed)
        collator = Collator(workload, model, seed)
        maker = Trainer(model, _arguments(TrainingArguments, workload, device, folder, seed), collator, rows)
        return cls(workload, model, tokenizer, rows, collator, maker.create_optimizer(), device, folder, seed)

    def arguments(self, cls: Any = TrainingArguments, **more: Any) -> Any:
        """Arguments of a trainer, quiet and without checkpoints; all else is the trainer's default."""
        return _arguments(cls, self.workload, self.device, self.folder, self.seed, **more)


def _arguments(cls: Any, workload: Workload, device: str, folder: Path, seed: int, **more: Any) -> Any:
    return cls(
        output_dir=str(folder / cls.__name__.lower()),
        per_device_train_batch_size=workload.batch,
        max_steps=FOREVER,
        learning_rate=1e-5,
        lr_scheduler_type="constant",
        seed=seed,
        bf16=False,  # the weights have the dtype that is computed in
        activation_checkpointing=False,
        use_cpu=device == "cpu",
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        **more,
    )


def stock(arena: Arena) -> Trainer:
    """transformers' Trainer: everything computed, all logits."""
    return Trainer(twin(arena.model), arena.arguments(), arena.collator, arena.rows, optimizers=(arena.optimizer, None))


def trl(arena: Arena) -> Trainer:
    """TRL's SFTTrainer with ``loss_type="chunked_nll"``: logits at targets only, in chunks, computed twice."""
    from trl import SFTConfig, SFTTrainer

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # releases from 1.15 on call it "nll"
        args = arena.arguments(SFTConfig, loss_type="chunked_nll", dataset_kwargs={"skip_prepare_dataset": True})
    rows = arena.rows.select_columns(["input_ids", "labels"])
    return SFTTrainer(
        twin(arena.model),
        args,
        arena.collator,
        rows,
        processing_class=arena.tokenizer,
        optimizers=(arena.optimizer, None),
    )


def ours(arena: Arena, attention: str | None = None, **gate: Any) -> ReGateTrainer:
    """ReGateTrainer in which every step is gated alike; ``attention``: another implementation for its decoder."""
    args = arena.arguments(ReGateConfig, gate_warmup_steps=0, dense_steps=0, cycle=1, teacher=TEACHER, **gate)
    model = twin(arena.model)
    if attention:
        model.get_decoder().set_attn_implementation(attention)
    return ReGateTrainer(
        model,
        args,
        arena.collator,
        arena.rows,
        processing_class=arena.tokenizer,
        optimizers=(arena.optimizer, None),
    )


def random_ltd(arena: Arena) -> Trainer:
    """The stock Trainer with Random-LTD: every middle layer computes a random half of the positions."""
    trainer = stock(arena)
    half = Schedule(start=arena.workload.positions // 2, steps=1_000 * FOREVER)
    trainer.add_callback(Arm(RandomLTD(trainer.model, arena.seed), half))
    return trainer


def packed(arena: Arena, **gate: Any) -> ReGateTrainer:
    """Packed rows under flash attention, from its own package or from the hub's kernels."""
    name = "flash_attention_2" if is_flash_attn_2_available() else "kernels-community/flash-attn2"
    return ours(arena, name, attention_path="packed", **gate)


def obstacle(name: str, workload: Workload, device: str) -> str | None:
    """Why a contestant cannot run: what is not there."""
    if name not in GPU_PATHS or name == "gated/logits":
        return None
    if device == "cpu":
        return "needs a GPU"
    if "packed" in name and not (is_flash_attn_2_available() or is_kernels_available()):
        return "needs flash-attn or kernels"
    if "packed" in name and workload.dtype == "float32":
        return "needs half precision"
    return None


GATED = {"policy": "regate", "active_set": "predictors"}
BUILDERS: dict[str, Callable[[Arena], Trainer]] = {
    "stock": stock,
    "trl": trl,
    "dense": lambda arena: ours(arena, policy="dense"),
    "gated": lambda arena: ours(arena, **GATED),
    "gated+kept": lambda arena: ours(arena, policy="regate", active_set="predictors+kept"),
    "loss_only": lambda arena: ours(arena, policy="loss_only"),
    "random_ltd": random_ltd,
    "gated/logits": lambda arena: ours(arena, loss_path="logits", **GATED),
    "gated/packed": lambda arena: packed(arena, **GATED),
    "gated/flex": lambda arena: ours(arena, "flex_attention", **GATED),
    "gated/compiled": lambda arena: ours(arena, compile_decoder=True, **GATED),
    "packed/compiled": lambda arena: packed(arena, compile_decoder=True, **GATED),
    "dense/packed": lambda arena: packed(arena, policy="dense"),
}
