"""FLOPs that a step cannot do without, from shapes alone: the bound that measured ratios are held against.

Decoder layers and head, forward and backward; the vision tower, norms, softmax and the optimizer are not in it.
"""

from __future__ import annotations

from regate.accounting import FlopModel
from repro.bench.workloads import Workload


def pairs(positions: int) -> int:
    """(query, key) pairs of causal attention."""
    return positions * (positions + 1) // 2


def contestant_flops(name: str, workload: Workload, model: FlopModel, layers: int) -> float:
    """FLOPs of a step of a contestant whose shapes do not depend on what a gate decides.

    stock: everything. trl, dense: logits at targets alone (what TRL computes twice is counted once: it is a bound).
    random_ltd: half of the positions in all layers but the first and the last, all logits.
    """
    size, length = workload.batch, workload.positions
    full = model.decoder_step(size * length, size * pairs(length))
    if name == "stock":
        return full + model.head_step(size * length)
    if name in ("trl", "dense"):
        return full + model.head_step(size * workload.answer)
    if name == "random_ltd":
        half = length // 2
        dropped = model.decoder_step(size * half, size * pairs(half))
        return (2 * full + (layers - 2) * dropped) / layers + model.head_step(size * length)
    raise ValueError(f"the FLOPs of {name!r} depend on its gate: its trainer counts them")


def teacher_share(workload: Workload, model: FlopModel) -> float:
    """FLOPs of scoring text alone, with logits at targets, over those of the full length with all logits."""
    text = workload.prompt + workload.answer
    ours = model.decoder_step(text, pairs(text), backward=False) + model.head_step(workload.answer, backward=False)
    length = workload.positions
    naive = model.decoder_step(length, pairs(length), backward=False) + model.head_step(length, backward=False)
    return ours / naive
