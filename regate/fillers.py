"""Rows that keep sharded ranks in step: a vision tower that is sharded must run on every rank, or on none.

FSDP2 and ZeRO-3 gather a layer's weights where it is called and reduce its gradients after it. A rank whose micro-batch
has no picture calls no layer of the vision tower, and the others wait for it, or fail. Where a micro-batch lacks a kind
of visual input that the data set has, a row that holds it is added: computed, and never counted.
"""

from collections.abc import Callable
from typing import Any

import datasets
import numpy as np
import pyarrow.compute as pc

from regate.turns import BadSample

TRIED = 256
"""Rows that are looked at for each kind of visual input."""


def kinds_of(batch: dict[str, Any]) -> set[str]:
    """Names of a batch's visual inputs."""
    return {name for name in batch if name.startswith("pixel_values")}


def find_fillers(
    dataset: datasets.Dataset, collator: Callable[[list[dict[str, Any]]], dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """A row for each kind of visual input that ``collator`` makes of the data set's rows; the same on every rank.

    In conversations the first good rows that name images and videos; of other data the first ``TRIED`` rows.
    """
    found: dict[str, dict[str, Any]] = {}
    for candidates in _candidates(dataset):
        for index in candidates[:TRIED]:
            row = dataset[int(index)]
            try:
                new = kinds_of(collator([row])) - set(found)
            except BadSample:
                continue
            found |= dict.fromkeys(sorted(new), row)
            if new and len(candidates) < len(dataset):
                break
    return found


def _candidates(dataset: datasets.Dataset) -> list[np.ndarray]:
    """Row numbers to try, for each column of media; all rows where there is none."""
    media = [name for name in ("images", "videos") if name in dataset.column_names]
    lists = dataset.select_columns(media).with_format("arrow")[:] if media else {}
    return [np.flatnonzero(pc.list_value_length(lists[name]).to_numpy() > 0) for name in media] or [
        np.arange(len(dataset))
    ]
