"""Attention on rows padded to the longest: for SDPA, eager and any attention that is given a mask."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.masking_utils import create_masks_for_generate
from transformers.utils.generic import is_flash_attention_requested

from regate.compaction import Padded
from regate.decoder import UnsupportedModel, name_of
from regate.paths.windows import narrowest, require_whole_windows


def attention_inputs(decoder: nn.Module, kwargs: dict, layout: Padded) -> dict[str, Any]:
    """``attention_mask`` of the compacted rows, from the decoder's keyword inputs for the full ones."""
    mask, length = kwargs.get("attention_mask"), layout.active.shape[1]
    flat = mask is None or (isinstance(mask, Tensor) and mask.ndim == 2)
    if flat and narrowest(decoder.config) < length:
        if is_flash_attention_requested(decoder.config):
            require_whole_windows(decoder, layout.active)
        else:
            mask, flat = _windows_of_the_full_rows(decoder, kwargs, layout), False
    if flat:
        # Padding sits at the right of the compact rows, where causal attention never looks. All ones lets SDPA and
        # flash attention take their causal fast path; None would make the gaps in the positions look like packing.
        return {"attention_mask": torch.ones_like(layout.real)}
    if isinstance(mask, dict):
        return {"attention_mask": {kind: _compact(decoder, m, layout) for kind, m in mask.items()}}
    return {"attention_mask": _compact(decoder, mask, layout)}


def _windows_of_the_full_rows(decoder: nn.Module, kwargs: dict, layout: Padded) -> Any:
    """A window counts slots: let transformers build its masks for the full sequence, to be gathered from."""
    mask, embeds = kwargs.get("attention_mask"), kwargs.get("inputs_embeds")
    return create_masks_for_generate(
        config=decoder.config,
        inputs_embeds=decoder.get_input_embeddings()(kwargs["input_ids"]) if embeds is None else embeds,
        attention_mask=torch.ones_like(layout.active) if mask is None else mask,
        past_key_values=None,
        position_ids=None,
    )


def _compact(decoder: nn.Module, mask: Any, layout: Padded) -> Tensor | None:
    if mask is None:  # plain causal
        return None
    if not isinstance(mask, Tensor) or mask.ndim != 4:
        raise UnsupportedModel(
            f"{name_of(decoder)} with attention {decoder.config._attn_implementation!r} uses a mask of type "
            f"{type(mask).__name__} that cannot be compacted; use attn_implementation='sdpa' or 'eager', or a sequence "
            "not longer than its window"
        )
    return layout.gather_square(mask)
