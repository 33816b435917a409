"""Sliding windows and chunks of attention: they count slots, and after compaction a slot is no position (T6)."""

from typing import Any

from torch import Tensor, nn

from regate.decoder import UnsupportedModel, name_of


def sliding_window(config: Any) -> int | None:
    """Positions that a sliding layer sees, itself included; None without such layers."""
    kinds = set(getattr(config, "layer_types", None) or ())
    slides = "sliding_attention" in kinds or (not kinds and getattr(config, "use_sliding_window", True))
    return (getattr(config, "sliding_window", None) or None) if slides else None


def attention_chunk(config: Any) -> int | None:
    """Positions of a chunk that attention never leaves; None without such layers."""
    kinds = set(getattr(config, "layer_types", None) or ())
    chunks = not kinds or "chunked_attention" in kinds
    return (getattr(config, "attention_chunk_size", None) or None) if chunks else None


def narrowest(config: Any) -> float:
    """The smaller of window and chunk; infinite without either."""
    return min((w for w in (sliding_window(config), attention_chunk(config)) if w), default=float("inf"))


def require_whole_windows(decoder: nn.Module, active: Tensor) -> None:
    """UnsupportedModel if a kernel that counts slots would let a window see farther than in the full sequence.

    Fine are rows no longer than the window, and rows of ``active`` bool [B, L] without a gap (a dense step).
    """
    config, length = decoder.config, active.shape[1]
    if narrowest(config) >= length:
        return
    last = length - 1 - active.flip(1).int().argmax(dim=1)
    span = last - active.int().argmax(dim=1) + 1  # [B]
    gaps = span != active.sum(dim=1)
    chunk = attention_chunk(config) or float("inf")  # chunks count from the row's start, so any shift moves them
    wrong = (gaps & (span > narrowest(config))) | (span > chunk)
    if wrong.any():
        raise UnsupportedModel(
            f"{name_of(decoder)} sees windows of {narrowest(config):.0f} positions, rows "
            f"{wrong.nonzero()[:, 0].tolist()} are longer, and attention {config._attn_implementation!r} would count "
            "compacted slots instead: use attn_implementation='sdpa', 'eager' or 'flex_attention', or sequences not "
            "longer than the window"
        )
