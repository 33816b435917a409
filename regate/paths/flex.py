"""Attention on one packed row under a block mask, for ``attn_implementation='flex_attention'``.

A query sees the earlier positions of its own sample, within the layer's window counted in original positions: what
flash attention cannot say. transformers takes a ``BlockMask`` in the place of ``attention_mask``, or one for each kind
of layer. torch's flex attention has no backward pass on the CPU: there the mask and the forward pass are tested,
training with it was never run.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from regate.compaction import Packed
from regate.decoder import UnsupportedModel, name_of
from regate.paths.packed import require_no_square_mask
from regate.paths.windows import attention_chunk, sliding_window


@functools.cache
def _compiled() -> Callable[..., BlockMask]:
    return torch.compile(create_block_mask, dynamic=True)  # eager, it holds all N x N entries


def attention_inputs(decoder: nn.Module, kwargs: dict, layout: Packed) -> dict[str, Any]:
    """``attention_mask``: a BlockMask [1, 1, N, N], or one for each kind of layer where the decoder has several."""
    require_no_square_mask(decoder, kwargs.get("attention_mask"))
    config = decoder.config
    chunk, length = attention_chunk(config), layout.active.shape[1]
    if chunk is not None and chunk < length:
        raise UnsupportedModel(
            f"{name_of(decoder)} attends in chunks of {chunk} positions, shorter than the {length} of this batch: use "
            "attn_implementation='sdpa' or 'eager'"
        )
    window = sliding_window(config)
    kinds = sorted(set(getattr(config, "layer_types", None) or ()))
    if len(kinds) > 1:
        masks = {kind: block_mask(layout, window if kind == "sliding_attention" else None) for kind in kinds}
        return {"attention_mask": masks}
    return {"attention_mask": block_mask(layout, window)}


def block_mask(layout: Packed, window: int | None) -> BlockMask:
    """The mask of a packed row as blocks; ``window`` None: all earlier positions."""
    total, device = len(layout.index), layout.index.device
    create = create_block_mask if device.type == "cpu" else _compiled()
    return create(sees(layout, window), None, None, total, total, device=device)


def sees(layout: Packed, window: int | None) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """(batch, head, query slot, key slot) -> whether the query sees the key, as flex attention asks it."""
    length = layout.active.shape[1]
    sample, position = layout.index // length, layout.index % length  # [N]

    def mask(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        seen = (sample[query] == sample[key]) & (key <= query)  # slots are in the order of positions
        return seen if window is None else seen & (position[query] - position[key] < window)

    return mask
