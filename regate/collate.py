"""What the gate needs to know of each row travels with the batch, through any collator."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.data import get_worker_info

from regate.turns import BadSample

OWN_COLUMNS = ("sample_id", "reference_losses", "reference_id")
_BAD = "_bad_sample"


class GateCollator:
    """Wraps a collator: takes the gate's columns off the rows before it and puts them, batched, beside its batch.

    Adds ``sample_id`` int64 [B], ``reference_losses`` float32 [B, N] (NaN past an answer's end) where rows have them,
    and ``num_skipped`` where the collator left rows out (it then lists the ones it took in ``last_kept``).

    In a data loader's worker a BadSample is not raised but becomes the batch, for :func:`intact` to raise where it is
    used: as it is, and not as text inside a traceback.
    """

    def __init__(self, collator: Callable[[list[dict[str, Any]]], dict[str, Any]]):
        self.collator = collator

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        try:
            batch = self.collator([{k: v for k, v in row.items() if k not in OWN_COLUMNS} for row in rows])
        except BadSample as error:
            if get_worker_info() is None:
                raise
            return {_BAD: error}
        taken = getattr(self.collator, "last_kept", None)
        taken = range(len(rows)) if taken is None else taken
        batch["num_skipped"] = len(rows) - len(taken)
        if "sample_id" in rows[0]:
            batch["sample_id"] = torch.tensor([int(rows[i]["sample_id"]) for i in taken])
        if "reference_losses" in rows[0]:
            losses = [torch.as_tensor(rows[i]["reference_losses"], dtype=torch.float32) for i in taken]
            batch["reference_losses"] = torch.nn.utils.rnn.pad_sequence(
                losses, batch_first=True, padding_value=math.nan
            )
        return batch


def intact(batch: dict[str, Any]) -> dict[str, Any]:
    """The batch; raises the BadSample that a worker found in its place."""
    if _BAD in batch:
        raise batch[_BAD]
    return batch
