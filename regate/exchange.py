"""What ranks tell each other about an optimizer step: everything in one collective of packed bytes.

Legend: R rows with observations, K observations. A rank's bytes hold 24 of header, its counts and sums (8 each), 8 per
row (sample id, width), one bit per target up to a row's last observed one, 4 per observation, and rows of the trace.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from regate.difficulty import Observations

_START = 4096
"""Bytes a rank sends at first; grows to the largest report that any rank ever had."""


@dataclass(frozen=True)
class Report:
    """One rank's share of a step, on the CPU: counts int64 [C], sums float64 [S], observations, rows of the trace."""

    counts: Tensor
    sums: Tensor
    seen: Observations
    trace: bytes = b""


def merged(parts: list[Observations]) -> Observations:
    """Observations of several micro-batches as one, on the CPU: rows that have any, in their order."""
    if not parts:
        none = torch.empty(0, dtype=torch.long)
        return Observations(none, none, none, torch.empty(0))
    offsets = torch.tensor([0, *[len(p.sample) for p in parts]]).cumsum(0).tolist()
    row = torch.cat([p.row + offset for p, offset in zip(parts, offsets, strict=False)]).cpu()
    rows, row = row.unique(sorted=True, return_inverse=True)
    sample = torch.cat([p.sample for p in parts]).cpu()[rows]
    ordinal, loss = (torch.cat(tensors).cpu() for tensors in ([p.ordinal for p in parts], [p.loss for p in parts]))
    return Observations(sample, row, ordinal, loss.float())


def pack(report: Report) -> bytes:
    """A report as bytes. Its observations must be sorted by row, and by ordinal within a row, as ``merged`` does."""
    seen = report.seen
    row, ordinal = seen.row.numpy(), seen.ordinal.numpy()  # [K]
    last = np.flatnonzero(np.diff(row, append=-1))  # a row's last observation has its highest ordinal
    widths = ordinal[last].astype(np.int32) + 1  # [R]
    starts = np.concatenate([[0], np.cumsum(widths, dtype=np.int64)])
    bits = np.zeros(starts[-1], dtype=bool)
    bits[starts[row] + ordinal] = True
    header = np.array([len(widths), len(row), len(report.trace)], dtype=np.int64)
    arrays = [
        header,
        report.counts.numpy(),
        report.sums.numpy(),
        seen.sample.numpy().astype(np.int32),
        widths,
        np.packbits(bits),
        seen.loss.numpy().astype(np.float32),
    ]
    return b"".join([*(array.tobytes() for array in arrays), report.trace])


def unpack(packed: bytes, counts: int, sums: int) -> Report:
    """The report that ``pack`` was given; ``counts`` and ``sums``: how many of each it has."""
    at = 0

    def take(dtype: type, number: int) -> np.ndarray:
        nonlocal at
        values: np.ndarray = np.frombuffer(packed, dtype, number, at)
        at += values.nbytes
        return values

    rows, observations, trace = take(np.int64, 3).tolist()
    numbers, totals = take(np.int64, counts), take(np.float64, sums)
    sample, widths = take(np.int32, rows), take(np.int32, rows)
    bits = np.unpackbits(take(np.uint8, -(-int(widths.sum()) // 8)))
    loss = take(np.float32, observations)
    where = np.flatnonzero(bits)  # [K]
    starts = np.concatenate([[0], np.cumsum(widths, dtype=np.int64)])
    row = np.searchsorted(starts, where, side="right") - 1
    seen = Observations(
        torch.from_numpy(sample.astype(np.int64)),
        torch.from_numpy(row),
        torch.from_numpy(where - starts[row]),
        torch.from_numpy(loss.copy()),
    )
    return Report(torch.from_numpy(numbers.copy()), torch.from_numpy(totals.copy()), seen, packed[at : at + trace])


class Exchange:
    """Gives every rank what all ranks have: one gather of equal, padded parts, whose size all ranks know.

    Each part begins with its true size. Where one is larger than ever before, every rank sees that, and all gather once
    more with more room.
    """

    def __init__(self, accelerator: Any):
        self.accelerator = accelerator
        self.room = _START

    def __call__(self, own: Report) -> list[Report]:
        """All ranks' reports in the order of ranks; every rank must call it, in every step."""
        if self.accelerator.num_processes == 1:
            return [own]
        packed = pack(own)
        framed = len(packed).to_bytes(8, "little") + packed
        while True:
            part = torch.zeros(self.room, dtype=torch.uint8)
            sent = torch.frombuffer(bytearray(framed[: self.room]), dtype=torch.uint8)
            part[: len(sent)] = sent
            gathered = self.accelerator.gather(part.to(self.accelerator.device)).cpu()
            parts = [row.tobytes() for row in gathered.view(-1, self.room).numpy()]
            sizes = [int.from_bytes(row[:8], "little") for row in parts]
            if max(sizes) + 8 <= self.room:
                numbers = (len(own.counts), len(own.sums))
                return [unpack(row[8 : 8 + size], *numbers) for row, size in zip(parts, sizes, strict=True)]
            self.room = 2 ** (max(sizes) + 8 - 1).bit_length()
