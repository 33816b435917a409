"""What the gate needs to know of each row travels with the batch, through any collator."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.data import get_worker_info

from regate.scoring import IGNORE
from regate.turns import BadSample

OWN_COLUMNS = ("sample_id", "reference_losses", "reference_id")
OF_COLLATOR = ("row", "num_skipped")
NO_PLACE = 2**31
"""``row`` of one that was not asked for."""
_BAD = "_bad_sample"


class GateCollator:
    """Wraps a collator: takes the gate's columns off the rows before it and puts them, batched, beside its batch.

    Adds ``sample_id`` int64 [B], ``reference_losses`` float32 [B, N] (NaN past an answer's end) where rows have them,
    ``row``, a list: each row's place among the rows that were asked for, and ``num_skipped``: a collator that leaves
    rows out lists the ones it took in ``last_kept``.

    ``fillers``: name of a visual input -> a row that holds it, which is added where the batch lacks it
    (:mod:`regate.fillers`), without targets, at :data:`NO_PLACE`.

    In a data loader's worker a BadSample is not raised but becomes the batch, for :func:`intact` to raise where it is
    used: as it is, and not as text inside a traceback.
    """

    def __init__(
        self,
        collator: Callable[[list[dict[str, Any]]], dict[str, Any]],
        fillers: dict[str, dict[str, Any]] | None = None,
    ):
        self.collator, self.fillers = collator, fillers or {}

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        number = len(rows)
        try:
            batch, taken = self._collate(rows)
            missing = {id(row): row for kind, row in self.fillers.items() if kind not in batch}
            if missing:
                rows = rows + [row | {"reference_losses": []} for row in missing.values()]
                batch, taken = self._collate(rows)
        except BadSample as error:
            if get_worker_info() is None:
                raise
            return {_BAD: error}
        if missing:
            batch["labels"] = batch["labels"].masked_fill(torch.tensor(taken)[:, None] >= number, IGNORE)
        batch["row"] = [place if place < number else NO_PLACE for place in taken]
        batch["num_skipped"] = number - sum(place < number for place in taken)
        if "sample_id" in rows[0]:
            batch["sample_id"] = torch.tensor([int(rows[i]["sample_id"]) for i in taken])
        if "reference_losses" in rows[0]:
            losses = [torch.as_tensor(rows[i]["reference_losses"], dtype=torch.float32) for i in taken]
            batch["reference_losses"] = torch.nn.utils.rnn.pad_sequence(
                losses, batch_first=True, padding_value=math.nan
            )
        return batch

    def _collate(self, rows: list[dict[str, Any]]) -> tuple[dict[str, Any], list[int]]:
        """The wrapped collator's batch, and which rows it took."""
        batch = self.collator([{k: v for k, v in row.items() if k not in OWN_COLUMNS} for row in rows])
        taken = getattr(self.collator, "last_kept", None)
        return batch, list(range(len(rows)) if taken is None else taken)


def intact(batch: dict[str, Any]) -> dict[str, Any]:
    """The batch; raises the BadSample that a worker found in its place."""
    if _BAD in batch:
        raise batch[_BAD]
    return batch
