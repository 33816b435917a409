"""What a micro student knows: token accuracy by tag on validation rows, and multiple choice by likelihood.

Multiple choice is scored by **ranking**: each option's text is put in the place of the assistant's answer (followed by
the end marker), and the option with the highest log-likelihood wins; `normalize` says whether that is the sum over its
tokens or their mean. Letters are not used: they are out of reach at a few million parameters. Every result names its
protocol.

Shapes: B sequences, L positions, N targets of the batch, V vocabulary, F frames.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from regate.answering import score_answers
from repro.micro_data import IGNORE, TAGS, Encoder, MicroCollator

# --- targets ---


def unwrapped(model: Any) -> Any:
    """The model itself where PEFT wraps it; its adapters lie inside and stay at work."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def target_logprobs(
    model: PreTrainedModel, inputs: Mapping[str, Any], labels_BL: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability [N] of every target and whether it is the most likely token [N]; logits at predictors only.

    Targets come in reading order, sample after sample. `inputs` go to the model without its head.
    """
    model = unwrapped(model)
    hidden_BLD = model.model(**inputs).last_hidden_state
    predictor_BL = labels_BL[:, 1:] != IGNORE
    logits_NV = model.lm_head(hidden_BLD[:, :-1][predictor_BL]).float()
    target_N = labels_BL[:, 1:][predictor_BL]
    logprob_N = torch.log_softmax(logits_NV, -1).gather(1, target_N[:, None])[:, 0]
    return logprob_N, logits_NV.argmax(-1) == target_N


@torch.no_grad()
def content_metrics(model: PreTrainedModel, batches: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Teacher-forced accuracy and NLL (nats) of answer tokens, for each tag and in all.

    Args:
        model: a micro student.
        batches: of `MicroCollator(..., extra=("tags",))`.

    Returns:
        `content_accuracy` and `content_nll` (tokens tagged visual), `accuracy_<tag>`, `nll_<tag>`, `tokens_<tag>` for
        template, visual, wording, special and all.
    """
    was_training = model.training
    model.eval()
    tags, losses, hits = [], [], []
    for batch in batches:
        inputs = {name: value for name, value in batch.items() if name not in ("tags", "labels")}
        logprob_N, hit_N = target_logprobs(model, inputs, batch["labels"])
        tags.append(np.concatenate([np.asarray(t, dtype=np.int64) for t in batch["tags"]]))
        losses.append(-logprob_N.numpy())
        hits.append(hit_N.numpy())
    model.train(was_training)
    return metrics_by_tag(np.concatenate(tags), np.concatenate(losses), np.concatenate(hits))


def metrics_by_tag(tag: np.ndarray, loss: np.ndarray, hit: np.ndarray) -> dict[str, float]:
    """Of all targets [N], tag, loss and whether it was the likeliest token: as `content_metrics` returns them."""
    result: dict[str, float] = {}
    for name, mask in [("all", np.ones_like(tag, bool)), *((name, tag == code) for name, code in TAGS.items())]:
        result[f"tokens_{name}"] = int(mask.sum())
        if mask.any():
            result[f"accuracy_{name}"] = float(hit[mask].mean())
            result[f"nll_{name}"] = float(loss[mask].mean())
    if "accuracy_visual" in result:
        result["content_accuracy"], result["content_nll"] = result["accuracy_visual"], result["nll_visual"]
    return result


# --- multiple choice ---


@dataclass(frozen=True)
class Choice:
    """A question with options about a clip; `answer` is the index of the right one."""

    question: str
    options: Sequence[str]
    answer: int
    task: str
    frames: np.ndarray  # uint8 [F, H, W, 3]


@torch.no_grad()
def rank_options(
    model: PreTrainedModel,
    processor: Any,
    choices: Sequence[Choice],
    *,
    normalize: str = "sum",
    batch_size: int = 64,
) -> list[int]:
    """Index of the most likely option of each question. Clips and prompts are computed once, prompts of one length at
    once, and their options on the cache that they left.

    Args:
        normalize: "sum" of the option's log-probabilities (end marker included) or their "mean".
    """
    scores = option_scores(model, processor, choices, normalize=normalize, batch_size=batch_size)
    return [int(np.argmax(s)) for s in scores]


@torch.no_grad()
def option_scores(
    model: PreTrainedModel,
    processor: Any,
    choices: Sequence[Choice],
    *,
    normalize: str = "sum",
    batch_size: int = 64,
) -> list[np.ndarray]:
    """Score of every option of every question, as `rank_options` compares them."""
    if normalize not in ("sum", "mean"):
        raise ValueError(f"normalize is {normalize!r}; it must be 'sum' or 'mean'")
    was_training = model.training
    model.eval()
    encoder, collator = Encoder(processor), MicroCollator(processor)
    prompts, answers = [], []
    for choice in choices:
        rows = [encoder.encode(choice.question, option, len(choice.frames)) for option in choice.options]
        first = rows[0]["labels"].count(IGNORE)
        prompts.append({name: rows[0][name][:first] for name in ("input_ids", "labels")})
        answers.append([row["input_ids"][first:] for row in rows])
    scores: list[np.ndarray] = [np.empty(0)] * len(choices)
    batches = list(batches_of_one_length([len(prompt["input_ids"]) for prompt in prompts], batch_size))
    for chosen in tqdm(batches, desc="ranking options", unit="batch", delay=5, leave=False):
        batch = collator([{**prompts[i], "frames": choices[i].frames.tobytes()} for i in chosen])
        del batch["labels"]
        found = score_answers(unwrapped(model), batch, [answers[i] for i in chosen])
        for i, parts in zip(chosen, found, strict=True):
            scores[i] = np.array([float(p.mean() if normalize == "mean" else p.sum()) for p in parts])
    model.train(was_training)
    return scores


def batches_of_one_length(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Indices in batches of equal length."""
    groups: dict[int, list[int]] = defaultdict(list)
    for index, length in enumerate(lengths):
        groups[length].append(index)
    for group in groups.values():
        for start in range(0, len(group), batch_size):
            yield group[start : start + batch_size]


def choice_accuracy(choices: Sequence[Choice], chosen: Sequence[int]) -> dict[str, Any]:
    """`bits` (1 = right, in the order of the questions), `accuracy`, `chance`, and accuracy by task (with its mean)."""
    bits = [int(c.answer == i) for c, i in zip(choices, chosen, strict=True)]
    groups: dict[str, list[int]] = defaultdict(list)
    for choice, bit in zip(choices, bits, strict=True):
        groups[choice.task].append(bit)
    by_task = {task: float(np.mean(group)) for task, group in sorted(groups.items())}
    return {
        "bits": bits,
        "accuracy": float(np.mean(bits)),
        "accuracy_by_task": by_task,
        "accuracy_task_mean": float(np.mean(list(by_task.values()))),
        "chance": float(np.mean([1 / len(choice.options) for choice in choices])),
    }
