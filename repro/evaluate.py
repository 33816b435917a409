"""What a micro student knows: token accuracy by tag on validation rows, and multiple choice by likelihood.

Multiple choice is scored by **ranking**: each option's text is put in the place of the assistant's answer (followed by
the end marker), and the option with the highest log-likelihood wins; `normalize` says whether that is the sum over its
tokens or their mean. Letters are not used: they are out of reach at a few million parameters. Every result names its
protocol.

Shapes: B sequences, L positions, N targets of the batch, V vocabulary, F frames.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from repro.families import family_of
from repro.micro_data import IGNORE, TAGS, Encoder, MicroCollator, batches_by_length

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
    tag, loss, hit = np.concatenate(tags), np.concatenate(losses), np.concatenate(hits)
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
    batch_size: int = 128,
) -> list[int]:
    """Index of the most likely option of each question. Clips are encoded once, options batched by length.

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
    batch_size: int = 128,
) -> list[np.ndarray]:
    """Score of every option of every question, as `rank_options` compares them."""
    if normalize not in ("sum", "mean"):
        raise ValueError(f"normalize is {normalize!r}; it must be 'sum' or 'mean'")
    was_training = model.training
    model.eval()
    encoder, collator = Encoder(processor), MicroCollator(processor)
    family, features = family_of(processor), _clip_features(model, collator, choices, batch_size)
    rows, owner = [], []
    for index, choice in enumerate(choices):
        for option in choice.options:
            rows.append({**encoder.encode(choice.question, option, len(choice.frames)), "frames": b""})
            owner.append(index)
    scores = np.zeros(len(rows))
    batches = list(batches_by_length([len(row["input_ids"]) for row in rows], batch_size))
    for chosen in tqdm(batches, desc="ranking options", unit="batch", delay=5, leave=False):
        batch = collator([rows[i] for i in chosen])
        seen = torch.stack([features[owner[i]] for i in chosen])  # [B, S, D]
        inputs = {
            "input_ids": batch["input_ids"],
            "attention_mask": batch["attention_mask"],
            **family.precomputed(seen),
        }
        logprob_N, _ = target_logprobs(model, inputs, batch["labels"])
        counts_B = (batch["labels"][:, 1:] != IGNORE).sum(1)
        for i, part in zip(chosen, logprob_N.split(counts_B.tolist()), strict=True):
            scores[i] = float(part.mean() if normalize == "mean" else part.sum())
    model.train(was_training)
    ends = np.cumsum([len(choice.options) for choice in choices])
    return np.split(scores, ends[:-1])


def _clip_features(
    model: PreTrainedModel, collator: MicroCollator, choices: Sequence[Choice], batch_size: int
) -> list[torch.Tensor]:
    """Connector output [S, D] of each question's clip."""
    family, features = family_of(collator.processor), []
    for start in range(0, len(choices), batch_size):
        clips = np.stack([choice.frames for choice in choices[start : start + batch_size]])
        pixels = collator.pixels(clips.reshape(-1, *clips.shape[2:])).unflatten(0, clips.shape[:2])
        features.extend(family.look(unwrapped(model), collator.processor, pixels))
    return features


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
