"""What the commands of `regate.cli` do."""

import dataclasses
import json
import os
import re
import shutil
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.compute as pc
import torch
from accelerate import PartialState
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, ProcessorMixin

import regate.models  # noqa: F401 - the Auto classes know our students
from regate import ReGateConfig, ReGateTrainer, add_reference_losses, throughput
from regate.accounting import read_steps
from regate.cli import Reference, Show, Train
from regate.conversations import BadSamples, load_conversations
from regate.data import ConversationEncoder
from regate.integrations.checkpoint import require_intact
from regate.integrity import seal, write_whole
from regate.media_cache import FrameCache
from regate.scoring import IGNORE, hashes, select
from regate.tokens import special_token_ids

SETTINGS = "regate.json"  # beside the data or the checkpoints: what they were made with
# What may change between the parts of one run.
_MAY_CHANGE = {
    "epochs",
    "max_steps",
    "save_steps",
    "keep_checkpoints",
    "logging_steps",
    "workers",
    "cache_frames",
    "cache_gb",
    "output",
    "cpu",
    "follow_links",
}


class UserError(ValueError):
    """Something about files, models or options that the user can mend."""


def reference(args: Reference) -> None:
    """`regate reference`."""
    start = time.monotonic()
    # Processes need not finish their shares at the same time: NCCL alone would give up after ten minutes.
    state = PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(days=1))
    _check_output(args)
    skipped = BadSamples()
    table = load_conversations(args.data, args.media_root, args.on_bad_sample, skipped, args.follow_links)
    if "reference_losses" in table.column_names:
        raise ValueError(f"{args.data}: has reference losses already. Name the conversations that it was made from")
    processor = load_processor(args.model)
    teacher: Any = args.teacher
    if teacher is None:
        teacher = load_model(args.model, args.dtype).to(state.device)
    parts = args.output.with_name(f".{args.output.name}.parts")
    scored = add_reference_losses(
        table,
        teacher,
        processor,
        max_length=args.max_length,
        num_frames=args.num_frames,
        attend_placeholders=args.attend_placeholders,
        batch_tokens=args.batch_tokens,
        cache_dir=parts,
        shard_rows=1024,
        on_bad_sample=args.on_bad_sample,
        frames=FrameCache(args.cache_frames, args.cache_gb) if args.cache_frames else None,
    )
    left_out = skipped.count + len(table) - len(scored)
    if not len(scored):
        raise ValueError(f"{args.data}: none of its {left_out} samples can be used; the messages above say why")
    state.wait_for_everyone()  # all have read the parts
    if state.is_main_process:
        targets, mean, (low, middle, high) = spread_of(scored)
        samples, tokens, seconds = throughput.total(parts)
        names = ("model", "teacher", "max_length", "num_frames", "attend_placeholders")
        settings = {name: getattr(args, name) for name in names}
        for name in ("model", "teacher"):  # found again from another folder
            if settings[name] is not None and Path(settings[name]).is_dir():
                settings[name] = str(Path(settings[name]).absolute())
        settings |= {"samples": len(scored), "skipped": left_out, "targets": targets}
        settings["reference_id"] = scored[0]["reference_id"]
        save(scored, settings, args.output)
        shutil.rmtree(parts, ignore_errors=True)
        speed = f"; {samples / seconds:.1f} samples and {tokens / seconds:.0f} tokens/s a process" if seconds else ""
        print(
            f"{len(scored)} samples, {left_out} left out, {targets} targets, {time.monotonic() - start:.0f} s{speed}\n"
            f"reference loss in nats: mean {mean:.3f}; 10 % below {low:.3f}, half below {middle:.3f}, "
            f"90 % below {high:.3f}\n"
            f"written to {args.output}\n"
            f"next: regate train --model {args.model} --data {args.output} --output runs/NAME"
        )
    state.wait_for_everyone()


def spread_of(scored: datasets.Dataset) -> tuple[int, float, np.ndarray]:
    """Number of reference losses, their mean, and what 10, 50 and 90 % of them lie below, exact; holds a batch of rows
    at a time: there are not so many fp16 numbers that they could not be counted one by one."""
    counts = np.zeros(2**16, dtype=np.int64)
    for batch in scored.select_columns("reference_losses").with_format("arrow").iter(65_536):
        losses = pc.list_flatten(batch["reference_losses"]).to_numpy()
        counts += np.bincount(losses.view(np.uint16), minlength=len(counts))
    values = np.arange(len(counts), dtype=np.uint16).view(np.float16).astype(np.float64)
    found = np.flatnonzero(counts)
    found = found[np.argsort(values[found])]
    upto = np.cumsum(counts[found])
    total = int(upto[-1])
    below = values[found[np.searchsorted(upto, [0.1 * total, 0.5 * total, 0.9 * total])]]
    return total, float(values[found] @ counts[found] / total), below


def train(args: Train) -> None:
    """`regate train`."""
    made_with = read_settings(args.data)
    args = dataclasses.replace(
        args,
        max_length=args.max_length if args.max_length is not None else made_with.get("max_length"),
        num_frames=args.num_frames if args.num_frames is not None else made_with.get("num_frames", 8),
    )
    config = training_arguments(args, made_with)  # wrong values are told before anything is loaded
    skipped = BadSamples()
    table = load_conversations(args.data, args.media_root, args.on_bad_sample, skipped, args.follow_links)
    _check_same_run(args)
    processor = load_processor(args.model)
    model = load_model(args.model, args.dtype, args.attention)
    model.config.use_cache = False
    if args.freeze_vision:
        freeze_vision(model)
    if args.lora_r:
        model = add_lora(model, args.lora_r, args.lora_alpha, args.lora_dropout)
    trainer = ReGateTrainer(model, config, train_dataset=table, processing_class=processor)
    last = trainer.last_complete_checkpoint()
    if trainer.is_world_process_zero():
        count = sum(p.numel() for p in model.parameters() if p.requires_grad)
        print(f"{len(table)} samples, {skipped.count} left out; {count:,} parameters to train")
        print(
            f"going on from {last}" if last else f"starting; checkpoints every {args.save_steps} steps in {args.output}"
        )
    trainer.train(resume_from_checkpoint=last)
    final = save_final(trainer, args.output)
    if trainer.is_world_process_zero():
        _print_run(args.output, trainer.num_skipped, final)


def show(args: Show) -> None:
    """`regate show`."""
    if not 0 < args.keep_ratio <= 1:
        raise ValueError(f"keep_ratio must be in (0, 1]; got {args.keep_ratio}")
    made_with = read_settings(args.data)
    path = args.model or made_with.get("model")
    if path is None:
        raise ValueError(f"{args.data}: does not say which model it was scored for. Name it with --model")
    table = load_conversations(args.data)
    if "reference_losses" not in table.column_names:
        raise ValueError(f"{args.data}: has no reference losses. Run `regate reference` on it first")
    if not -len(table) <= args.index < len(table):
        raise ValueError(f"index is {args.index}, expected a row in [0, {len(table)})")
    row = table[args.index]
    processor = load_processor(path)
    encoded = ConversationEncoder(processor, made_with.get("max_length"), made_with.get("num_frames", 8))(row)
    targets = encoded["labels"][1:]
    targets = targets[targets != IGNORE]  # [N]
    losses = torch.tensor(row["reference_losses"])  # [N]
    if len(losses) != len(targets):
        raise ValueError(
            f"{args.data}: row {args.index} has {len(losses)} reference losses for {len(targets)} targets: "
            f"the processor at {path} is not the one that it was scored with. Name that with --model, or score the "
            "data again"
        )
    special = torch.tensor(sorted(special_token_ids(processor, AutoConfig.from_pretrained(path))))
    candidate = ~torch.isin(targets, special)
    tie = hashes(0, torch.full_like(targets, row["sample_id"]), torch.arange(len(targets)))
    kept = select(losses[None], candidate[None], args.keep_ratio, tie[None])[0]
    _print_sample(row, processor.tokenizer, targets.tolist(), losses.tolist(), kept.tolist(), candidate.tolist())


def load_processor(path: str) -> ProcessorMixin:
    """The processor of a multimodal model.

    Raises:
        UserError: nothing there, or no multimodal processor, or a package is missing.
    """
    processor = _loaded(AutoProcessor.from_pretrained, path)
    if not isinstance(processor, ProcessorMixin):
        raise UserError(f"{path}: found a {type(processor).__name__}, expected the processor of a multimodal model")
    return processor


def load_model(path: str, dtype: str = "auto", attention: str | None = None) -> Any:
    """A multimodal model, every weight found.

    Raises:
        UserError: nothing there, no model for images and text, or weights missing.
    """
    model, info = _loaded(
        AutoModelForImageTextToText.from_pretrained,
        path,
        dtype=dtype if dtype == "auto" else getattr(torch, dtype),
        output_loading_info=True,
        **({"attn_implementation": attention} if attention else {}),
    )
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise UserError(
            f"{path}: {len(missing)} weights are missing ({', '.join(missing[:3])}, ...), expected a whole model"
        )
    return model


def _loaded(load: Any, path: str, **kwargs: Any) -> Any:
    looks_local = path.startswith((".", "/", "~")) or path.count("/") > 1
    if looks_local and not Path(path).is_dir():
        raise UserError(f"{path}: no such folder, expected a model as save_pretrained writes it, or a name on the hub")
    try:
        require_intact(path)
        return load(path, **kwargs)
    except (OSError, ValueError, ImportError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: cannot be loaded as a multimodal model: {reason[:500]}") from error


def training_arguments(args: Train, made_with: dict[str, Any]) -> ReGateConfig:
    """The trainer's arguments.

    Raises:
        ValueError: a value out of range.
    """
    teacher = args.teacher
    if teacher is None and made_with.get("teacher"):  # the user chose it when the data were scored
        teacher = dict(part.split("=", 1) for part in made_with["reference_id"].split(";"))["teacher"]
    cpu = args.cpu or not torch.accelerator.is_available()
    workers = default_workers(cpu) if args.workers is None else args.workers
    return ReGateConfig(
        output_dir=str(args.output),
        keep_ratio=args.keep_ratio,
        lambda_=args.lambda_,
        cycle=args.cycle,
        dense_steps=args.dense_steps,
        gate_warmup_steps=args.gate_warmup_steps,
        keep_ratio_final=args.keep_ratio_final,
        gate_cooldown_steps=args.gate_cooldown_steps,
        visual_keep_ratio=args.visual_keep_ratio,
        beta=args.beta,
        combine=args.combine,
        active_set=args.active_set,
        policy=args.policy,
        attention_path=args.attention_path,
        loss_path=args.loss_path,
        compile_decoder=args.compile_decoder,
        teacher=teacher,
        trace_samples=list(args.trace_samples),
        max_length=args.max_length,
        num_frames=8 if args.num_frames is None else args.num_frames,
        on_bad_sample=args.on_bad_sample,
        cache_frames=str(args.cache_frames) if args.cache_frames else None,
        cache_vision=str(args.cache_vision) if args.cache_vision else None,
        cache_gb=args.cache_gb,
        dataloader_num_workers=workers,
        dataloader_persistent_workers=workers > 0,
        learning_rate=args.learning_rate,
        lr_scheduler_type=args.lr_scheduler,
        warmup_steps=args.lr_warmup_steps,
        weight_decay=args.weight_decay,
        max_grad_norm=args.max_grad_norm,
        num_train_epochs=args.epochs,
        max_steps=args.max_steps,
        per_device_train_batch_size=args.batch_size,
        gradient_accumulation_steps=args.accumulation,
        bf16=args.bf16,
        activation_checkpointing=args.gradient_checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False} if args.gradient_checkpointing else None,
        seed=args.seed,
        use_cpu=cpu,
        save_steps=args.save_steps,
        save_total_limit=args.keep_checkpoints,
        logging_steps=args.logging_steps,
        report_to="none",
    )


def default_workers(cpu: bool) -> int:
    """Processes that load data for one rank: none where they would take cores from the training."""
    if cpu:
        return 0
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(0, min(8, len(os.sched_getaffinity(0)) // ranks - 1))


def freeze_vision(model: Any) -> None:
    """Freezes the vision encoder; the connector stays trainable where it is a module of its own.

    Raises:
        UserError: the class does not say which module that is.
    """
    encoder = model.get_encoder(modality="image")
    if encoder is model or encoder is model.base_model:
        raise UserError(
            f"{type(model).__name__} does not say which of its modules sees: --freeze-vision is not supported"
        )
    encoder.requires_grad_(False)


def add_lora(model: Any, r: int, alpha: int | None = None, dropout: float = 0.0) -> Any:
    """LoRA on all linear layers of the language decoder, and on nothing else (no vision tower, no head).

    Raises:
        UserError: peft is not installed.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise UserError("--lora-r needs the package peft: pip install 'regate[peft]'") from error
    decoder = model.get_decoder()
    prefix = next(name for name, module in model.named_modules() if module is decoder)
    linear = {name for name, module in decoder.named_modules() if isinstance(module, torch.nn.Linear)}
    leaves = sorted({name.rsplit(".", 1)[-1] for name in linear})
    pattern = rf"{re.escape(prefix)}\..*\b({'|'.join(map(re.escape, leaves))})"
    return get_peft_model(
        model, LoraConfig(r=r, lora_alpha=alpha or 2 * r, lora_dropout=dropout, target_modules=pattern)
    )


def save(table: datasets.Dataset, settings: dict[str, Any], output: Path) -> None:
    """Writes a table and its settings, whole or not at all; what was there before stays until then."""
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    table.save_to_disk(str(temporary))
    (temporary / SETTINGS).write_text(json.dumps(settings, indent=1))
    seal(temporary)
    old = output.with_name(f".{output.name}.{os.getpid()}.old")
    if output.exists():
        os.replace(output, old)
    os.replace(temporary, output)
    shutil.rmtree(old, ignore_errors=True)


def read_settings(data: Path) -> dict[str, Any]:
    """What `save` wrote beside a table; {} where nothing is."""
    path = data / SETTINGS
    return _json(path) if path.is_file() else {}


def _json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: damaged ({error}). Make what lies beside it again, or mend it") from error


def save_final(trainer: ReGateTrainer, output: Path) -> Path:
    """The trained model (or its adapters) and the processor in `output/final`, whole or not at all."""
    final, temporary = output / "final", output / ".final.tmp"
    if trainer.is_world_process_zero():
        shutil.rmtree(temporary, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()
    trainer.save_model(str(temporary))
    trainer.accelerator.wait_for_everyone()
    if trainer.is_world_process_zero():
        seal(temporary)
        old = output / ".final.old"
        shutil.rmtree(old, ignore_errors=True)
        if final.exists():
            os.replace(final, old)
        os.replace(temporary, final)
        shutil.rmtree(old, ignore_errors=True)
    return final


def _check_output(args: Reference) -> None:
    if args.output.exists() and not args.overwrite and (not args.output.is_dir() or any(args.output.iterdir())):
        raise UserError(f"{args.output}: is there already. Choose another --output, or replace it with --overwrite")


def _check_same_run(args: Train) -> None:
    """Writes down what a run is made with; refuses to go on with it under other settings."""
    path = args.output / SETTINGS
    settings = {k: v for k, v in dataclasses.asdict(args).items() if k not in _MAY_CHANGE}
    settings = json.loads(json.dumps(settings, default=str))
    if path.is_file() and any(args.output.glob("checkpoint-*")):
        before = _json(path)
        changed = [f"{k} was {before.get(k)!r}, now {v!r}" for k, v in settings.items() if before.get(k) != v]
        if changed:
            raise UserError(
                f"{args.output}: holds checkpoints of a run with other settings ({'; '.join(changed)}). "
                "Choose another --output, or delete this one"
            )
    if PartialState().is_main_process:
        args.output.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(settings, indent=1))


def _print_run(output: Path, skipped: int, final: Path) -> None:
    steps = read_steps(output / "steps.jsonl")
    total = {k: sum(step["tokens"][k] for step in steps) for k in ("target", "supervised")}
    if steps and total["target"]:
        losses = [step["loss_kept"] for step in steps[-20:] if step["loss_kept"] is not None]
        print(
            f"{len(steps)} steps; {total['supervised']:,} of {total['target']:,} answer tokens trained on "
            f"({total['supervised'] / total['target']:.1%}); loss of the last steps "
            f"{sum(losses) / max(1, len(losses)):.3f}; {skipped} samples skipped"
        )
        # Of the log's part that has these numbers, and without the first step, which starts everything.
        timed = [step for step in steps[1:] if "data_seconds" in step]
        seconds = sum(step["seconds"] for step in timed)
        if seconds:
            waiting = sum(step["data_seconds"] for step in timed) / seconds
            print(
                f"{sum(step['samples'] for step in timed) / seconds:.2f} samples a second; {waiting:.1%} of the time "
                "waiting for data" + (" (docs/input.md: what helps)" if waiting > 0.1 else "")
            )
    print(f"every step: {output / 'steps.jsonl'}\nmodel and processor: {final}")


def _print_sample(
    row: dict, tokenizer: Any, targets: list[int], losses: list[float], kept: list[bool], candidate: list[bool]
) -> None:
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    files = ", ".join([*row["images"], *row["videos"]]) or "no image or video"
    print(f"sample_id {row['sample_id']}, id {row['id']}: {files}")
    for message in json.loads(row["messages"]):
        if message["role"] != "assistant":
            text = " ".join(item.get("text", f"<{item['type']}>") for item in message["content"])
            print(f"{message['role']}: {text}")
    print(f"{sum(kept)} of {sum(candidate)} candidates are kept\n loss  token")
    for token, loss, is_kept, is_candidate in zip(targets, losses, kept, candidate, strict=True):
        mark = "kept" if is_kept else "" if is_candidate else "marker, always kept"
        line = f"{loss:5.2f}  {tokenizer.decode([token])!r:<16} {mark}".rstrip()
        print(f"\033[{'1;32' if is_kept else '2'}m{line}\033[0m" if colour else line)
