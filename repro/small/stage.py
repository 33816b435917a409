"""How the small scale trains, follows and scores a run: regate's own data path, its features of the tower cached.

Shapes: B rows, N targets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, TaskType, get_peft_model
from torch import Tensor

from eval import world
from regate import ReGateConfig, ReGateTrainer
from regate.accounting import StepClock
from regate.answering import score_answers
from repro.assemble import arguments_of, traced
from repro.evaluate import batches_of_one_length, metrics_by_tag, target_logprobs, unwrapped
from repro.measured import Benchmark
from repro.micro_data import IGNORE, batches_by_length
from repro.recipes import Recipe
from repro.run import Parts, benchmark
from repro.small.material import Asked, SmallMaterial, messages
from repro.small.seeing import CACHE_GB, Seeing

LINEAR = "q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj"


def trainer_of(recipe: Recipe, material: SmallMaterial, folder: Path) -> tuple[ReGateTrainer, StepClock]:
    """The trainer of a recipe, which logs every step to ``folder/steps.jsonl``, and its clock."""
    rows, _ = material.scored()
    arguments = arguments_of(recipe, folder) | {"use_cpu": material.device == "cpu"}
    args = ReGateConfig(
        **arguments,
        **recipe.gate,
        num_frames=world.FRAMES,
        cache_vision=str(material.vision),
        cache_gb=CACHE_GB,
        trace_samples=traced(recipe, len(rows)),
    )
    model = adapted(material.model(), recipe.tuning, recipe.seed)
    trainer = ReGateTrainer(model, args, train_dataset=rows, processing_class=material.processor)
    return trainer, trainer.clock


def adapted(model: Any, tuning: dict[str, Any], seed: int) -> Any:
    """The student with what ``tuning`` says set to train: all but the tower, or adapters and the projector.

    Raises:
        ValueError: another key than "lora", whose value holds ``r`` and ``alpha``.
    """
    if unknown := tuning.keys() - {"lora"}:
        raise ValueError(f"tuning has {sorted(unknown)}; the small scale knows 'lora'")
    if "lora" not in tuning:
        return model
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=tuning["lora"]["r"],
        lora_alpha=tuning["lora"]["alpha"],
        target_modules=rf"model\.language_model\..*\.({LINEAR})",
        modules_to_save=["multi_modal_projector"],
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return get_peft_model(model, config)


# --- following ---


def follow(recipe: Recipe, material: SmallMaterial, shift: int = 0) -> Callable[[Any], dict[str, float]]:
    """What evaluates a model on validation: accuracy and NLL of answer tokens by tag.

    ``shift``: each row is shown the clip of the row that many places on; a student that does not look would not mind.
    """
    rows, seeing = list(material.encoded("validation")), Seeing(material)
    clips = [row["videos"] for row in rows]
    rows = [row | {"videos": clips[(i + shift) % len(rows)]} for i, row in enumerate(rows)]

    @torch.no_grad()
    def evaluate(model: Any) -> dict[str, float]:
        cache, training = seeing.cache(model), model.training
        model.eval()
        tags, losses, hits = [], [], []
        for chosen in batches_by_length([len(row["tags"]) for row in rows], 2 * recipe.batch_size):
            batch = seeing.batch([seeing.rows(rows[i]) for i in chosen], model.device)
            labels = batch.pop("labels")
            with cache(batch):
                logprob_N, hit_N = target_logprobs(model, batch, labels)
            tags += [np.asarray(rows[i]["tags"], dtype=np.int64) for i in chosen]
            losses.append(-logprob_N.cpu().numpy())
            hits.append(hit_N.cpu().numpy())
        model.train(training)
        return metrics_by_tag(np.concatenate(tags), np.concatenate(losses), np.concatenate(hits))

    return evaluate


# --- scoring ---


def score(model: Any, step: int, material: SmallMaterial) -> list[Benchmark]:
    """The MVBench twin where the data has tasks, and easy-VQA."""
    asked = {"mvbench": material.questions(), "easyvqa": material.easy_questions()}
    seeing = Seeing(material)
    return [
        benchmark(name, step, choices, rank(model, seeing, choices), fingerprint)
        for name, (choices, fingerprint) in asked.items()
        if choices
    ]


@torch.no_grad()
def rank(model: Any, seeing: Seeing, choices: Sequence[Asked], batch_size: int = 16) -> list[int]:
    """Index of the likeliest option of each question: the sum of its tokens' log-probabilities, end marker included."""
    cache, training = seeing.cache(model), model.training
    model.eval()
    prompts, answers = zip(*_split(seeing, choices), strict=True)
    chosen = [0] * len(choices)
    for part in batches_of_one_length([len(inputs["input_ids"]) for inputs, _ in prompts], batch_size):
        batch = seeing.batch([prompts[i] for i in part], model.device)
        with cache(batch):
            found = score_answers(unwrapped(model), batch, [answers[i] for i in part])
        for i, options in zip(part, found, strict=True):
            chosen[i] = int(np.argmax([float(logprobs.sum()) for logprobs in options]))
    model.train(training)
    return chosen


def _split(seeing: Seeing, choices: Sequence[Asked]) -> Iterator[tuple[tuple[dict[str, Tensor], Any], list[list[int]]]]:
    """Of each question its encoded prompt (inputs, what stands for its pixels), and the token ids of its options."""
    for one in choices:
        told = [messages(one.question, option) for option in one.options]
        rows = [seeing.rows({"id": one.task, "messages": m, "images": [], "videos": [one.video]}) for m in told]
        inputs, visual = rows[0]
        first = int((inputs["labels"] != IGNORE).nonzero()[0])
        prompt = {name: inputs[name][:first] for name in ("input_ids", "attention_mask")}
        rest = {name: value for name, value in inputs.items() if name not in (*prompt, "labels")}
        answers = [row["input_ids"][int((row["labels"] != IGNORE).nonzero()[0]) :].tolist() for row, _ in rows]
        yield (prompt | rest, visual), answers


SMALL = Parts(trainer_of, follow, score, snapshots=False)
