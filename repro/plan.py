"""`python -m repro plan RECIPE`: memory, tokens and FLOPs of a paper-scale run, before any GPU is paid for.

Counted on the meta device and by the formulas of `repro.memory` and `repro.forecast`, which tests hold to real tiny
models on the CPU. None of it was measured on a GPU.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from repro import forecast
from repro.facts import Facts, facts_of
from repro.forecast import Flops, Lengths
from repro.memory import CONTEXT, GB, decoder_saved, fits, gathered, layer_peak, logits_peak, states
from repro.paper import METHODS, RECIPES, STUDENTS, PaperRecipe, published, recipe_of
from repro.plan_text import render

H100 = 989e12  # dense bf16 FLOP/s of one H100 SXM, by its data sheet


def main(
    recipe: str = "all",
    gpus: int = 4,
    memory: float = 80.0,
    *,
    engine: str = "fsdp2",
    micro_batch: int | None = None,
    prompt_tokens: int | None = None,
    answer_tokens: int | None = None,
    data: Path | None = None,
    tokenizer: Path | None = None,
    media_root: Path | None = None,
    as_json: bool = False,
) -> int:
    """Print the plan of a student's three runs; returns the exit code.

    Args:
        recipe: "all", a student (videollama2), or one of its runs (videollama2-regate).
        gpus, memory: how many, and GB (10^9 bytes) of each.
        engine: fsdp2, zero3 or ddp.
        micro_batch: samples a GPU computes at once; left out, the recipe's.
        prompt_tokens, answer_tokens: text of a sample, in place of the recipe's assumptions.
        data: conversations; the number of samples, and with ``tokenizer`` (a folder) their lengths, are theirs.
        media_root: the folder of the data's images and videos.
        as_json: print JSON.
    """
    try:
        if gpus < 1 or memory <= 0:
            raise ValueError(f"gpus is {gpus} and memory {memory:g} GB, expected at least one GPU with some memory")
        assumed = {"prompt_tokens": prompt_tokens, "answer_tokens": answer_tokens}
        wrong = {name: value for name, value in assumed.items() if value is not None and value < 1}
        if wrong:
            raise ValueError(f"found {wrong}, expected at least one token of each")
        plans = []
        for student in students_of(recipe):
            text: dict[str, Any] = {name: value for name, value in assumed.items() if value is not None}
            of = dataclasses.replace(recipe_of(f"{student}-regate"), **text)
            facts = facts_of(student, of.frames)
            samples, lengths, source = measured(of, facts.visual_tokens, data, tokenizer, media_root, bool(text))
            plans.append(plan(of, facts, samples, lengths, source, gpus, memory * GB, engine, micro_batch))
    except (ValueError, OSError) as error:
        print(f"plan: {error}", file=sys.stderr)
        return 2
    print(json.dumps(plans, indent=1) if as_json else "\n\n".join(map(render, plans)))
    return 0


def students_of(recipe: str) -> tuple[str, ...]:
    """Students that a recipe's name means; ValueError naming those there are."""
    if recipe == "all":
        return STUDENTS
    student = recipe.split("-")[0]
    if student not in STUDENTS or (recipe != student and recipe not in RECIPES):
        raise ValueError(f"unknown recipe {recipe!r}; known: all, {', '.join((*STUDENTS, *RECIPES))}")
    return (student,)


def measured(
    recipe: PaperRecipe, visual: int, data: Path | None, tokenizer: Path | None, media_root: Path | None, given: bool
) -> tuple[int, Lengths, str]:
    """Number of samples, their lengths, and a sentence that says where both come from."""
    lengths = Lengths.assumed(visual, recipe.prompt_tokens, recipe.answer_tokens)
    text = f"{recipe.prompt_tokens} prompt and {recipe.answer_tokens} answer tokens a sample"
    origin = "as given" if given else "assumed: the paper's token count over its samples, and a short question"
    if data is None:
        if tokenizer is not None:
            raise ValueError("a tokenizer without data has nothing to measure: give --data as well")
        return (
            recipe.samples,
            lengths,
            f"{recipe.samples:,} samples (about, by the paper or assumed); {text} ({origin})",
        )
    from repro.lengths import read_lengths

    samples, found = read_lengths(data, tokenizer, visual, recipe.max_length, media_root)
    if found is None:
        return samples, lengths, f"{samples:,} samples in {data}; {text} ({origin}; --tokenizer measures them)"
    return samples, found, f"{samples:,} samples in {data}, lengths of {len(found.answer):,} of them measured"


def plan(
    recipe: PaperRecipe,
    facts: Facts,
    samples: int,
    lengths: Lengths,
    source: str,
    gpus: int,
    budget: float,
    engine: str,
    micro_batch: int | None = None,
) -> dict[str, Any]:
    """Everything about one student's three runs, as plain values; ``budget`` in bytes."""
    micro = recipe.micro_batch if micro_batch is None else micro_batch
    accumulation = recipe.accumulation(gpus, micro)
    per_gpu = recipe.global_batch // gpus
    steps = recipe.steps(samples)
    recipes = {method: recipe_of(f"{recipe.student}-{method}") for method in METHODS}
    share = {method: forecast.dense_share(steps, r.ratio_at) for method, r in recipes.items()}
    ratio = recipe.gate["keep_ratio"]
    dense, sparse = forecast.work(lengths, 1.0), forecast.work(lengths, ratio)
    stock = forecast.work(lengths, 1.0, all_logits=True)

    def flops(done: forecast.Work) -> Flops:
        return forecast.flops_of(done, facts.flops, facts.look, facts.recomputed_look)

    run = {
        "stock": flops(stock),
        "dense": flops(dense),
        "regate": forecast.over_schedule(flops(dense), flops(sparse), share["regate"]),
    }
    seen = recipe.epochs * samples
    teacher = samples * forecast.teacher_flops(lengths, facts.flops)
    total = {method: seen * per_sample.total for method, per_sample in run.items()}
    total["regate"] += teacher
    ours = {method: method != "stock" for method in METHODS}

    def needed(method: str, size: int, **kept: bool) -> dict[str, float]:
        return bytes_of(facts, engine, gpus, size, lengths, ours[method], **kept)

    return {
        "recipe": recipe.student,
        "title": recipe.architecture.title,
        "tuning": recipe.architecture.tuning,
        "gpus": gpus,
        "memory": budget,
        "engine": engine,
        "source": source,
        "samples": samples,
        "epochs": recipe.epochs,
        "steps": steps,
        "global_batch": recipe.global_batch,
        "micro_batch": micro,
        "accumulation": accumulation,
        "frames": recipe.frames,
        "keep_ratio": ratio,
        "dense_share": share["regate"],
        "parameters": {part: {"all": n, "trained": t} for part, (n, t) in facts.parts.items()},
        "tokens": {kind: dataclasses.asdict(w) for kind, w in (("stock", stock), ("dense", dense), ("sparse", sparse))},
        "bytes": {method: needed(method, micro) for method in METHODS},
        "bytes_vision_kept": {method: needed(method, micro, vision=False) for method in METHODS},
        "bytes_without_checkpointing": {
            method: needed(method, micro, vision=False, decoder=False) for method in METHODS
        },
        "fits": {method: needed(method, micro)["total"] <= budget for method in METHODS},
        "largest_micro_batch": {
            method: fits(lambda size, m=method: needed(m, size)["total"], budget, per_gpu)  # type: ignore[misc]
            for method in METHODS
        },
        "flops_a_sample": {method: dataclasses.asdict(f) | {"total": f.total} for method, f in run.items()},
        "flops_a_sparse_sample": dataclasses.asdict(flops(sparse)) | {"total": flops(sparse).total},
        "teacher_flops": teacher,
        "run_flops": total,
        "saving": {method: 1 - total[method] / total["stock"] for method in METHODS},
        "supervised_saving": (1 - share["regate"]) * (1 - sparse.supervised / dense.supervised),
        "published": {method: published(recipe.student, method) for method in METHODS},
        "implied_utilisation": {method: utilisation(recipe.student, method, total[method]) for method in METHODS},
    }


def bytes_of(
    facts: Facts,
    engine: str,
    gpus: int,
    micro: int,
    lengths: Lengths,
    ours: bool,
    vision: bool = True,
    decoder: bool = True,
) -> dict[str, float]:
    """Bytes on one GPU by kind, of a dense step on a micro-batch of the longest sample; ReGATE's peak is there, too.

    Logits and a layer's backward pass do not meet: the larger one counts. ``vision``, ``decoder``: checkpointed.
    """
    longest = lengths.longest
    positions = micro * int(lengths.positions[longest])
    rows = micro * int(lengths.answer[longest]) if ours else positions
    state = states(engine, facts.whole.trained, facts.whole.frozen, gpus)
    logits = logits_peak(facts.vocabulary, rows)
    inside = layer_peak(facts.shape, positions, decoder)
    found = {
        "weights": state.weights,
        "gradients": state.gradients,
        "optimizer": state.optimizer,
        "gathered": gathered(engine, facts.whole, facts.layer, facts.head, facts.root),
        "vision": micro * (facts.look_again if vision else facts.look).saved,
        "decoder": decoder_saved(facts.shape, facts.layers, positions, decoder),
        "peak": max(logits, inside),
        "context": CONTEXT,
    }
    return found | {"total": sum(found.values()), "logits": logits, "layer": inside}


def utilisation(student: str, method: str, flops: float) -> float | None:
    """Share of H100s' peak that the published GPU-hours (the teacher's among them) would need; None where none are."""
    printed = published(student, method)
    if "train_gpu_hours" not in printed:
        return None
    return flops / ((printed["train_gpu_hours"] + printed.get("teacher_gpu_hours", 0)) * 3600 * H100)
