"""A plan as text to read: tables of aligned columns, what was assumed, and what was never measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from repro.memory import GB

_BYTES = (
    ("weights", "weights"),
    ("gradients", "gradients"),
    ("optimizer", "optimizer states"),
    ("gathered", "gathered weights and gradients"),
    ("vision", "kept by vision tower and connector"),
    ("decoder", "kept by the decoder (checkpoints)"),
    ("peak", "logits or one layer, the larger"),
    ("context", "CUDA context, NCCL, allocator (assumed)"),
)
_TOKENS = (
    ("visual", "visual"),
    ("prompt", "prompt"),
    ("answer", "answer"),
    ("active", "computed by the decoder"),
    ("supervised", "supervised (the paper's count)"),
    ("logits", "positions with logits"),
)
_FLOPS = (
    ("vision", "vision tower and connector"),
    ("decoder", "decoder"),
    ("head", "head"),
    ("recomputed", "recomputed (checkpointing)"),
    ("total", "all"),
)
_METHODS = ("stock", "dense", "regate")


def render(plan: dict[str, Any]) -> str:
    """The whole plan, to be printed."""
    blocks = [_heading(plan), _parameters(plan), _memory(plan), _tokens(plan), _flops(plan), _assumed(plan)]
    return "\n\n".join(blocks)


def _heading(plan: dict[str, Any]) -> str:
    return (
        f"{plan['title']} ({tuning_words(plan['tuning'])})\n"
        f"{plan['gpus']} GPUs of {plan['memory'] / GB:g} GB, {plan['engine']}, bf16, {plan['frames']} frames; a step "
        f"of {plan['global_batch']} = {plan['gpus']} GPUs x {plan['micro_batch']} x {plan['accumulation']} added up; "
        f"{plan['steps']:,} steps, {plan['epochs']} epoch{'s' if plan['epochs'] > 1 else ''}\n"
        "Computed from shapes: no number below was measured on a GPU, except those that the paper printed."
    )


def tuning_words(tuning: dict[str, Any]) -> str:
    """What trains, in words."""
    if "lora" in tuning:
        lora = tuning["lora"]
        return f"LoRA r {lora['r']}, alpha {lora['alpha']}, dropout {lora['dropout']}; all before the decoder in full"
    frozen = ", ".join(name.replace("_", " ") for name in tuning.get("freeze", ()))
    return f"full fine-tuning, {frozen} frozen" if frozen else "full fine-tuning"


def _parameters(plan: dict[str, Any]) -> str:
    parts = plan["parameters"]
    rows = [[part, _count(n["all"]), _count(n["trained"])] for part, n in parts.items()]
    sums = [sum(n[kind] for n in parts.values()) for kind in ("all", "trained")]
    return table(["parameters", "all", "trained"], [*rows, ["all", *map(_count, sums)]])


def _memory(plan: dict[str, Any]) -> str:
    sizes, bare, published = plan["bytes"], plan["bytes_without_checkpointing"], plan["published"]
    rows = [[label, *(_gb(sizes[m][kind]) for m in _METHODS)] for kind, label in _BYTES]
    rows.append(["all", *(_gb(sizes[m]["total"]) for m in _METHODS)])
    rows.append(["published", *(_known(published[m].get("gpu_memory_gb")) for m in _METHODS)])
    rows.append([f"fits in {plan['memory'] / GB:g} GB", *("yes" if plan["fits"][m] else "NO" for m in _METHODS)])
    rows.append(["largest micro-batch that fits", *(str(plan["largest_micro_batch"][m] or "none") for m in _METHODS)])
    rows.append(["of these, logits at their peak", *(_gb(sizes[m]["logits"]) for m in _METHODS)])
    rows.append(["all, vision path not checkpointed", *(_gb(plan["bytes_vision_kept"][m]["total"]) for m in _METHODS)])
    rows.append(["all, without checkpointing", *(_gb(bare[m]["total"]) for m in _METHODS)])
    return table([f"GB a GPU, micro-batch {plan['micro_batch']}", *_METHODS], rows)


def _tokens(plan: dict[str, Any]) -> str:
    tokens, batch = plan["tokens"], plan["global_batch"]
    rows = [[label, *(f"{tokens[kind][name]:,.0f}" for kind in tokens)] for name, label in _TOKENS]
    rows += [
        [f"{label}, a step", *(f"{batch * tokens[kind][name]:,.0f}" for kind in tokens)] for name, label in _TOKENS[3:5]
    ]
    return table(["tokens of an average sample", "stock", "dense step", f"p = {plan['keep_ratio']:g}"], rows)


def _flops(plan: dict[str, Any]) -> str:
    sample, sparse = plan["flops_a_sample"], plan["flops_a_sparse_sample"]
    rows = [
        [label, *(f"{sample[m][kind] / 1e12:,.2f}" for m in _METHODS), f"{sparse[kind] / 1e12:,.2f}"]
        for kind, label in _FLOPS
    ]
    rows.append(
        ["teacher, once for all epochs", "-", "-", f"{plan['teacher_flops'] / plan['samples'] / 1e12:,.2f}", "-"]
    )
    head = ["TFLOP of an average sample", "stock", "dense", "regate, whole run", "sparse step"]
    run = plan["run_flops"]
    total = [
        ["EFLOP of the whole run, teacher included", *(f"{run[m] / 1e18:,.2f}" for m in _METHODS)],
        ["EFLOP a step", *(f"{run[m] / 1e18 / plan['steps']:,.4f}" for m in _METHODS)],
        ["saved against stock", *(f"{plan['saving'][m]:.1%}" for m in _METHODS)],
        ["published GPU-hours", *(_known(plan["published"][m].get("train_gpu_hours")) for m in _METHODS)],
        [
            "published GPU-hours of the teacher",
            *(_known(plan["published"][m].get("teacher_gpu_hours")) for m in _METHODS),
        ],
        ["H100 peak that those hours need", *(_share(plan["implied_utilisation"][m]) for m in _METHODS)],
    ]
    return table(head, rows) + "\n\n" + table(["the whole run", *_METHODS], total) + "\n" + _verdict(plan)


def _verdict(plan: dict[str, Any]) -> str:
    hours = [plan["published"][m].get("train_gpu_hours") for m in ("stock", "regate")]
    text = (
        f"ReGATE leaves out {plan['supervised_saving']:.1%} of the supervised tokens (by the schedule, "
        f"{plan['dense_share']:.1%} of whose steps are dense) and {plan['saving']['regate']:.1%} of the FLOPs; our "
        f"trainer alone, without a gate, {plan['saving']['dense']:.1%}."
    )
    if all(hours):
        text += f" The paper prints {1 - hours[1] / hours[0]:.1%} fewer training hours."
    needed = plan["implied_utilisation"]["stock"]
    if needed is not None and needed > 0.5:
        text += (
            f"\nIts baseline's hours would need {needed:.0%} of the GPUs' peak: the paper's samples, frames, epochs or "
            "answers must be fewer or shorter than assumed here."
        )
    return text


def _assumed(plan: dict[str, Any]) -> str:
    lines = [
        plan["source"],
        "every sample has a video (visual tokens of its frames); memory is of a micro-batch of the longest sample",
        "bf16 compute on fp32 copies of what trains, AdamW; FSDP2 and ZeRO-3 shard everything over all GPUs",
        "attention keeps no scores (flash or memory-efficient); every layer that trains is checkpointed",
        "ReGATE's peak of memory is that of its dense steps",
        "active set `predictors`; FLOPs count a multiply-add as two and leave out softmax, norms and data loading",
        "published memory does not say micro-batch or engine; published tokens may count prompts as well",
    ]
    return "assumed\n" + "\n".join(f"- {line}" for line in lines)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns: the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = []
    for row in [head, ["-" * width for width in widths], *rows]:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells))
    return "\n".join(lines)


def _gb(size: float) -> str:
    return f"{size / GB:,.1f}"


def _count(number: int) -> str:
    return f"{number / 1e9:,.2f}B" if number >= 1e9 else f"{number / 1e6:,.1f}M"


def _known(number: float | None) -> str:
    return "-" if number is None else f"{number:g}"


def _share(number: float | None) -> str:
    return "-" if number is None else f"{number:.0%}"
