"""Visual dependence: how much seeing changes what a model predicts at each answer token, whatever that token is.

Beyond the paper. A loss reads the label, so a gate on losses keeps the unlikely values of each slot and drops the
likely ones: the student is trained on a distribution that is not the data's. The divergence between the model's
prediction with and without its visual tokens depends on the position alone. It is high where the video decides, and low
both for template and for free choice of words, which a text-only loss cannot tell from what has to be seen.
"""

import math
import os
from collections.abc import Callable
from typing import Any

import datasets
import numpy as np
import torch
from torch import Tensor, nn

from regate.collate import OWN_COLUMNS
from regate.elision import Elision
from regate.reference import TextTeacher, load_teacher, weights_fingerprint
from regate.reference_column import Losses, encoding_identity, identity, with_columns
from regate.scoring import IGNORE, shift_labels
from regate.throughput import Throughput


def divergence(seeing: Tensor, blind: Tensor) -> Tensor:
    """Jensen-Shannon divergence of two predictions, logits [N, V] each -> float32 [N], in nats, in [0, ln 2]."""
    p, q = seeing.float().log_softmax(-1), blind.float().log_softmax(-1)
    middle = torch.logaddexp(p, q) - math.log(2)
    return ((p.exp() * (p - middle) + q.exp() * (q - middle)).sum(-1) / 2).clamp(min=0)


def add_visual_dependence(
    dataset: datasets.Dataset,
    model: nn.Module,
    processor: Any,
    collator: Callable[[list[dict[str, Any]]], dict[str, Any]],
    *,
    max_length: int | None = None,
    num_frames: int = 8,
    batch_size: int = 16,
    cache_dir: str | os.PathLike[str] | None = None,
    shard_rows: int = 4096,
) -> datasets.Dataset:
    """The data set with the visual dependence of every target, for ``ReGateConfig(policy="dependence")``.

    ``model``: the student as it is before fine-tuning; the better it sees, the better it tells. ``collator`` makes its
    batches from rows, as in training; ``max_length`` and ``num_frames`` must be those of the training. Fills the same
    columns as :func:`regate.add_reference_losses`, with another ``reference_id``; ``cache_dir`` and ``shard_rows`` are
    as there. Costs two forward passes without gradients for each row, one with its visual tokens and one without.

    Raises ValueError for a data set that has such columns already, and for a collator that leaves rows out.
    """
    if "reference_losses" in dataset.column_names:
        raise ValueError("the data set has reference losses already; remove reference_losses and reference_id first")
    teacher = load_teacher(model, processor, attend_placeholders=False)
    if "sample_id" not in dataset.column_names:
        dataset = dataset.add_column("sample_id", np.arange(len(dataset), dtype=np.int64))
    reference_id = identity(
        measure="dependence",
        teacher=teacher.fingerprint(),
        seeing=weights_fingerprint(model),
        **encoding_identity(dataset.column_names, processor, max_length, num_frames),
    )
    told = Throughput("visual dependence", len(dataset))
    elision = Elision(model)

    def score(rows: datasets.Dataset) -> Losses:
        found: Losses = []
        for start in range(0, len(rows), batch_size):
            taken = [rows[i] for i in range(start, min(start + batch_size, len(rows)))]
            batch = collator(taken)
            if len(batch["labels"]) != len(taken):
                names = [row["sample_id"] for row in taken]
                raise ValueError(f"the collator left out some of the samples {names}: drop unusable rows before")
            found += [scores.numpy().astype(np.float16) for scores in _dependence(teacher, elision, batch)]
            told.update(len(taken), int(batch["attention_mask"].sum()))
        return found

    try:
        with teacher.frozen():
            return with_columns(dataset, reference_id, score, told, cache_dir, shard_rows)
    finally:
        elision.remove()


def _dependence(teacher: TextTeacher, elision: Elision, batch: dict[str, Any]) -> list[Tensor]:
    """Divergence at the targets of each row of a batch."""
    own = (*OWN_COLUMNS, "labels", "num_skipped")
    model, device = teacher.model, teacher.head.weight.device
    tensors = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items() if k not in own}
    labels: Tensor = batch["labels"].to(device)  # [B, L]
    real = tensors.get("attention_mask", torch.ones_like(labels)).bool()
    target = shift_labels(labels) != IGNORE
    with elision(predictors=target):
        seeing = model(**tensors).logits  # [N, V]
    rows = [(ids[keep], wanted[keep]) for ids, wanted, keep in zip(tensors["input_ids"], labels, real, strict=True)]
    states, _, counts = teacher.states(rows)  # [N, D]
    parts = zip(seeing.split(teacher.chunk), states.split(teacher.chunk), strict=True)
    return list(torch.cat([divergence(seen, teacher.head(state)) for seen, state in parts]).cpu().split(counts))
