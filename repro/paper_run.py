"""What each rank of `accelerate launch` executes: one recipe of `repro.paper`, trained, resumed, saved, recorded.

    accelerate launch --config_file configs/accelerate/fsdp2.yaml -m repro.paper_run videollama2-regate \\
        --weights PATH --data runs/paper/videollama2/scored

Run again after an interruption it goes on from the last complete checkpoint. Tested on the CPU with tiny models and two
gloo ranks under DDP; FSDP2, ZeRO-3, bf16 on CUDA and the real sizes were never run.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from accelerate import PartialState
from transformers import TrainingArguments, set_seed

from regate import ReGateConfig, ReGateTrainer
from regate.accounting import read_steps
from regate.commands import load_model, load_processor, save_final
from regate.conversations import load_conversations
from regate.data import ConversationCollator
from repro.follow import totals
from repro.paper import PaperRecipe, recipe_of
from repro.record import Record, RecordError, environment, is_stale, read, write
from repro.stock_trainer import StockTrainer
from repro.tuning import tuned

REHEARSAL_GATE = {"gate_warmup_steps": 1, "cycle": 2, "dense_steps": 1}


@dataclass(kw_only=True)
class PaperRun:
    """Train one recipe on this machine's GPUs."""

    recipe: Annotated[str, tyro.conf.Positional]
    """STUDENT-METHOD, e.g. videollama2-regate."""
    weights: Path
    """The student's weights and processor, as save_pretrained or the original release has them."""
    data: Path
    """Conversations that `regate reference` scored with these weights."""
    runs: Path = Path("runs")
    """Where runs and records go."""
    seed: int = 0
    micro_batch: int | None = None
    """Samples a GPU computes at once; left out, the recipe's."""
    attention: str = "sdpa"
    """sdpa, or flash_attention_2 where flash-attn is installed."""
    workers: int = 4
    """Processes a rank that load data."""
    rehearse: int = 0
    """Only so many steps, dense and sparse ones in turn, to see that it runs and fits; writes no record."""
    cpu: bool = False
    """No GPU: gloo, for tests. accelerate ignores FSDP and ZeRO there, so it is DDP whatever the configuration says."""

    def resolved(self) -> PaperRecipe:
        """The recipe with what the command changes."""
        recipe = recipe_of(self.recipe, self.seed)
        if self.micro_batch is not None:
            recipe = dataclasses.replace(recipe, micro_batch=self.micro_batch)
        if self.rehearse and "keep_ratio" in recipe.gate:
            recipe = dataclasses.replace(recipe, gate=recipe.gate | REHEARSAL_GATE)
        return recipe

    def folder(self, recipe: PaperRecipe) -> Path:
        """Where checkpoints, logs and, in `final`, the trained model go."""
        return self.runs / (f"{recipe.name}-rehearsal" if self.rehearse else recipe.name)


def existing(recipe: PaperRecipe, config: dict[str, Any], runs: Path) -> Record | None:
    """The record of a run that is there and fresh, or None; a stale or damaged one is told of."""
    path = runs / "records" / f"{recipe.name}.json"
    if not path.exists():
        return None
    try:
        record = read(path)
    except RecordError as error:
        print(f"made again: {error}")
        return None
    reason = is_stale(record, config)
    if reason:
        print(f"made again: {reason}")
    return None if reason else record


def config_of(recipe: PaperRecipe, rows: Any) -> dict[str, Any]:
    """The resolved configuration: the recipe, and the data by their size and the teacher, tokenizer and template that
    scored them (the teacher is the student's own backbone, so the weights are named as well)."""
    return recipe.config(data_samples=len(rows), reference_id=rows[0]["reference_id"])


def scored_rows(data: Path) -> Any:
    """Scored conversations; ValueError where they are not scored."""
    rows = load_conversations(data)
    if "reference_id" not in rows.column_names:
        raise ValueError(
            f"{data}: has no reference losses. All methods train on the same scored rows: run `regate reference` on it"
        )
    return rows


def run(args: PaperRun) -> Record | None:
    """Train, save, record; None after a rehearsal, and on ranks that do not write."""
    recipe = args.resolved()
    state = PartialState(cpu=args.cpu)
    rows = scored_rows(args.data)
    config, folder = config_of(recipe, rows), args.folder(recipe)
    _require_same(folder, config)
    started = datetime.now(UTC).isoformat(timespec="seconds")
    machine = environment(threads=torch.get_num_threads())
    machine["hardware"] |= {
        "ranks": state.num_processes,
        "engine": _engine(args.cpu),
        "micro_batch": recipe.micro_batch,
        "accumulation": recipe.accumulation(state.num_processes, recipe.micro_batch),
    }
    # Arguments come before the model: they set the devices up.
    arguments = training_arguments(args, recipe, state.num_processes)
    set_seed(recipe.seed)
    processor = load_processor(str(args.weights))
    model = tuned(load_model(str(args.weights), "bfloat16", args.attention), recipe.architecture.tuning, recipe.seed)
    model.config.use_cache = False
    if _engine(args.cpu) != "zero3":  # DeepSpeed keeps fp32 copies of its own
        whole = _engine(args.cpu) == "ddp" and not hasattr(model, "peft_config")
        keep_trained_in_fp32(model, everything=whole)
    trainer = trainer_of(recipe, arguments, model, rows, processor)
    if state.is_main_process:
        _stamp(folder, config)
    trainer.train(resume_from_checkpoint=trainer.last_complete_checkpoint())
    if trainer.is_fsdp_enabled:  # checkpoints are sharded, the final model is whole
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    final = save_final(trainer, folder)  # type: ignore[arg-type]
    if not state.is_main_process:
        return None
    if args.rehearse:
        _tell(folder)
        return None
    record = Record(
        name=recipe.name,
        table="4",
        student=recipe.student,
        method=recipe.method,
        scale="paper",
        seed=recipe.seed,
        config=config,
        started=started,
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        steps=trainer.state.global_step,
        alone=False,  # not known
        teacher=_teacher_cost(args.data) if recipe.method == "regate" else None,
        artefacts={"steps": _artefact(folder / "steps.jsonl", args.runs)},
        **machine,
        **totals(folder / "steps.jsonl", trainer.state.global_step),
    )
    write(record, args.runs / "records")
    _tell(folder)
    print(f"record: {args.runs / 'records' / record.name}.json\nnext: {evaluation_command(final)}")
    return record


def training_arguments(args: PaperRun, recipe: PaperRecipe, ranks: int) -> TrainingArguments:
    """Trainer's arguments, ReGATE's among them where the recipe has a gate."""
    fsdp = _engine(args.cpu) == "fsdp2"
    fsdp_checkpoints = fsdp and os.environ.get("FSDP_ACTIVATION_CHECKPOINTING", "").lower() == "true"
    shared: dict[str, Any] = {
        "output_dir": str(args.folder(recipe)),
        "num_train_epochs": recipe.epochs,
        "max_steps": args.rehearse or -1,
        "per_device_train_batch_size": recipe.micro_batch,
        "gradient_accumulation_steps": recipe.accumulation(ranks, recipe.micro_batch),
        "learning_rate": recipe.learning_rate,
        "lr_scheduler_type": recipe.scheduler,
        "lr_scheduler_kwargs": recipe.scheduler_arguments,
        "warmup_steps": recipe.warmup_ratio,
        "weight_decay": recipe.weight_decay,
        "max_grad_norm": recipe.max_grad_norm,
        "bf16": True,
        "activation_checkpointing": not fsdp_checkpoints,
        "activation_checkpointing_kwargs": None if fsdp_checkpoints else {"use_reentrant": False},
        # Without this FSDP2 would hold unsharded gradients of the whole model between micro-batches.
        "accelerator_config": {"gradient_accumulation_kwargs": {"sync_each_batch": True}} if fsdp else None,
        "ddp_find_unused_parameters": True,  # a batch without a video leaves the vision tower out
        "save_steps": max(1, args.rehearse // 2) if args.rehearse else recipe.save_every,
        "save_total_limit": 2,
        "logging_steps": 10,
        "dataloader_num_workers": args.workers,
        "remove_unused_columns": False,
        "report_to": [],
        "seed": recipe.seed,
        "use_cpu": args.cpu,
    }
    if recipe.method == "stock":
        return TrainingArguments(**shared)
    return ReGateConfig(**shared, **recipe.gate, max_length=recipe.max_length, num_frames=recipe.frames)


def trainer_of(
    recipe: PaperRecipe, arguments: TrainingArguments, model: Any, rows: Any, processor: Any
) -> StockTrainer | ReGateTrainer:
    """The stock Trainer or ours, on the same rows with the same collator."""
    if isinstance(arguments, ReGateConfig):
        return ReGateTrainer(model, arguments, train_dataset=rows, processing_class=processor)
    collator = ConversationCollator(processor, recipe.max_length, recipe.frames)
    return StockTrainer(model, arguments, collator, rows, processing_class=processor)


def keep_trained_in_fp32(model: torch.nn.Module, everything: bool) -> None:
    """Weights that train become fp32; bf16 ones would swallow updates of 1e-5. ``everything``: frozen ones, too, where
    a checkpoint of the whole model is read back in one dtype."""
    for parameter in model.parameters():
        if parameter.requires_grad or everything:
            parameter.data = parameter.data.float()


def evaluation_command(final: Path) -> str:
    """What scores a trained model."""
    return f"lmms-eval --model regate --model_args pretrained={final} --tasks mvbench"


def _engine(cpu: bool) -> str:
    """What the launcher asked accelerate for; on the CPU it gives DDP without a word."""
    if cpu:
        return "ddp"
    for variable, engine in (("ACCELERATE_USE_FSDP", "fsdp2"), ("ACCELERATE_USE_DEEPSPEED", "zero3")):
        if os.environ.get(variable, "").lower() == "true":
            return engine
    return "ddp"


def _require_same(folder: Path, config: dict[str, Any]) -> None:
    """ValueError where the folder holds checkpoints of another configuration: days of work are never thrown away."""
    stamp = folder / "config.json"
    if not stamp.exists():
        return
    before, now = json.loads(stamp.read_text()), json.loads(json.dumps(config))
    changed = [
        f"{key} was {before.get(key)!r}, is {now.get(key)!r}"
        for key in sorted({*before, *now})
        if before.get(key) != now.get(key)
    ]
    if changed:
        raise ValueError(
            f"{folder}: holds a run of another configuration ({'; '.join(changed)}). Move it away, or choose another "
            "folder with --runs"
        )


def _stamp(folder: Path, config: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / "config.json.tmp"
    temporary.write_text(json.dumps(config, indent=1))
    os.replace(temporary, folder / "config.json")


def _teacher_cost(data: Path) -> dict[str, float | None]:
    """Seconds of the launch's scoring steps, as `repro.launch` noted them, and targets scored."""
    note, settings = data.parent / "reference-seconds.json", data / "regate.json"
    seconds = sum(json.loads(note.read_text())) if note.exists() else None
    tokens = json.loads(settings.read_text())["targets"] if settings.exists() else None
    return {"seconds": seconds, "flops": None, "tokens": tokens}


def _artefact(path: Path, runs: Path) -> dict[str, str]:
    return {"path": str(path.relative_to(runs)), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def _tell(folder: Path) -> None:
    steps = read_steps(folder / "steps.jsonl")
    seconds = sorted(step["seconds"] for step in steps)[len(steps) // 2]
    peak = max(step["peak_memory_bytes"] for step in steps)
    print(f"{len(steps)} steps, median {seconds:.2f} s a step, peak {peak / 1e9:.1f} GB on rank 0; {folder / 'final'}")


def main(argv: list[str] | None = None) -> int:
    """Entry point of a rank; returns the exit code."""
    args = tyro.cli(PaperRun, args=argv, prog="python -m repro.paper_run")
    try:
        run(args)
    except (ValueError, OSError) as error:
        if os.environ.get("REGATE_DEBUG"):
            raise
        print(f"paper_run: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
