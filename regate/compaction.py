"""Where active positions go: rows padded to the longest (``Padded``), or all of them in one row (``Packed``).

Both have one interface: ``gather`` and ``gather_last`` bring what belongs to positions into the compact order,
``scatter`` brings hidden states back, ``real`` tells slots from padding.

Legend: B rows, L positions of the full sequence, M slots of the longest compact row, N active positions of all rows, D
hidden size.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Padded:
    """One compact row for each row.

    active bool [B, L]; index int64 [B, M]: original position of each compact slot, rows padded at the right with their
    last active one; real bool [B, M]: False on that padding.
    """

    active: Tensor
    index: Tensor
    real: Tensor

    @classmethod
    def of(cls, active: Tensor) -> "Padded":
        """The compaction of ``active`` bool [B, L]; ValueError if a row has no active position."""
        count = active.sum(dim=1)
        longest, shortest = torch.stack([count.max(), count.min()]).tolist()
        _require_none_empty(count, shortest)
        slots = torch.arange(longest, device=active.device)
        order = active.int().argsort(dim=1, descending=True, stable=True)  # active positions first, in order
        return cls(active, order.gather(1, torch.minimum(slots, count[:, None] - 1)), slots < count[:, None])

    def gather(self, full: Tensor) -> Tensor:
        """Entries [B, M, ...] of ``full`` [B or 1, L, ...] at the active positions."""
        return _take(full.expand(len(self.active), *full.shape[1:]), self.index)

    def gather_last(self, full: Tensor) -> Tensor:
        """Entries [..., B, M] of position ids [..., B or 1, L] at the active positions."""
        index = self.index.expand(*full.shape[:-2], *self.index.shape)
        return full.expand(*full.shape[:-2], *self.active.shape).gather(-1, index)

    def gather_square(self, mask: Tensor) -> Tensor:
        """Rows and columns of an attention mask [B or 1, H, L, L], bool (True = attend) or additive; padding masked."""
        rows = self.gather(mask.transpose(1, 2))  # [B, M, H, L]
        square = self.gather(rows.permute(0, 3, 2, 1)).permute(0, 2, 3, 1)  # [B, H, M, M]
        padding = ~self.real[:, None, None, :]
        return (
            square & ~padding if mask.dtype == torch.bool else square.masked_fill(padding, torch.finfo(mask.dtype).min)
        )

    def scatter(self, compact: Tensor, background: Tensor) -> Tensor:
        """Compact states [B, M, D] back at their positions in a copy of ``background`` [B, L, D]."""
        slot = (self.active.cumsum(dim=1) - 1).clamp(min=0)  # [B, L]; no nonzero(), which would wait for the GPU
        return torch.where(self.active[..., None], _take(compact, slot), background)


@dataclass(frozen=True)
class Packed:
    """All active positions in one row, sample after sample, without padding.

    active bool [B, L]; index int64 [N]: their places in the batch read row by row; starts int32 [B + 1]: where each
    sample starts among them, N last; longest: of the samples.
    """

    active: Tensor
    index: Tensor
    starts: Tensor
    longest: int

    @classmethod
    def of(cls, active: Tensor) -> "Packed":
        """The packing of ``active`` bool [B, L]; ValueError if a row has no active position."""
        count = active.sum(dim=1)
        total, longest, shortest = torch.stack([count.sum(), count.max(), count.min()]).tolist()
        _require_none_empty(count, shortest)
        order = active.flatten().int().argsort(descending=True, stable=True)
        starts = torch.nn.functional.pad(count.cumsum(0), (1, 0)).int()
        return cls(active, order[:total], starts, longest)

    @property
    def real(self) -> Tensor:
        """bool [1, N]: there is no padding."""
        return torch.ones_like(self.index, dtype=torch.bool)[None]

    def gather(self, full: Tensor) -> Tensor:
        """Entries [1, N, ...] of ``full`` [B or 1, L, ...] at the active positions."""
        return full.expand(len(self.active), *full.shape[1:]).flatten(0, 1).index_select(0, self.index)[None]

    def gather_last(self, full: Tensor) -> Tensor:
        """Entries [..., 1, N] of position ids [..., B or 1, L] at the active positions."""
        flat = full.expand(*full.shape[:-2], *self.active.shape).flatten(-2)
        return flat.index_select(-1, self.index)[..., None, :]

    def scatter(self, compact: Tensor, background: Tensor) -> Tensor:
        """Compact states [1, N, D] back at their positions in a copy of ``background`` [B, L, D]."""
        return background.flatten(0, 1).index_copy(0, self.index, compact[0]).view_as(background)


Layout = Padded | Packed


def _take(values: Tensor, index: Tensor) -> Tensor:
    """``values`` [B, L, ...] at ``index`` int64 [B, M], row by row: [B, M, ...]."""
    flat = index + torch.arange(len(index), device=index.device)[:, None] * values.shape[1]
    return values.flatten(0, 1).index_select(0, flat.flatten()).unflatten(0, index.shape)


def _require_none_empty(count: Tensor, shortest: int) -> None:
    if shortest == 0:
        raise ValueError(f"rows {(count == 0).nonzero().flatten().tolist()} have no active position")
