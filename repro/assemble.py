"""A recipe as a trainer that is ready to run, with its clock: what runs, and the calibration of their steps, start."""

from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from regate import ReGateConfig, ReGateTrainer
from regate.accounting import FlopModel, StepClock
from regate.checkpoint import SafeTrainer
from regate.tokens import placeholder_token_ids
from repro.follow import CountingCollator, StockLog
from repro.material import Material, teacher_fingerprint
from repro.micro_data import MicroCollator
from repro.recipes import Recipe
from repro.rivals.random_ltd import Arm, RandomLTD, Schedule
from repro.tuning import tuned


def arguments_of(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """What a recipe says of TrainingArguments, whatever the scale, on the CPU."""
    return {
        "output_dir": str(folder),
        "max_steps": recipe.steps,
        "per_device_train_batch_size": recipe.batch_size,
        "learning_rate": recipe.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": recipe.warmup_ratio,
        "weight_decay": recipe.weight_decay,
        "max_grad_norm": recipe.max_grad_norm,
        "save_steps": recipe.save_every,
        "save_total_limit": 1,
        "logging_steps": recipe.evaluate_every,
        "report_to": [],
        "remove_unused_columns": False,
        "seed": recipe.seed,
        "use_cpu": True,
    }


def trainer_of(recipe: Recipe, material: Material, folder: Path) -> tuple[SafeTrainer, StepClock]:
    """The trainer of a recipe, which logs every step to ``folder/steps.jsonl``, and its clock."""
    shared = arguments_of(recipe, folder)
    rows, _ = material.scored(recipe.teacher)
    model, collator = tuned(material.model(), recipe.tuning, recipe.seed), MicroCollator(material.processor)
    if recipe.gate:
        teacher = None if recipe.teacher == "aligned" else teacher_fingerprint(rows)
        args = ReGateConfig(**shared, **recipe.gate, teacher=teacher, trace_samples=traced(recipe, len(rows)))
        ours = ReGateTrainer(model, args, collator, rows, processing_class=material.processor)
        return ours, ours.clock
    placeholder = torch.tensor(sorted(placeholder_token_ids(material.processor, model.config)))
    counting, clock = CountingCollator(collator, placeholder), StepClock()
    trainer = SafeTrainer(model, TrainingArguments(**shared), counting, rows)
    decoder = model.get_decoder()
    log = StockLog(folder / "steps.jsonl", counting, clock, FlopModel.of(decoder, model.get_output_embeddings()))
    if recipe.random_ltd:
        schedule = Schedule(**recipe.random_ltd)
        trainer.add_callback(Arm(RandomLTD(model, recipe.seed), schedule))
        # The first and the last layer stay whole.
        log.kept, log.whole = schedule.kept, 2 / decoder.config.num_hidden_layers
    trainer.add_callback(clock)
    trainer.add_callback(log)
    return trainer, clock


def traced(recipe: Recipe, rows: int) -> list[int]:
    """The samples of a training set of ``rows`` that are traced, evenly spread."""
    return list(range(0, rows, rows // recipe.trace_samples))[: recipe.trace_samples] if recipe.trace_samples else []
