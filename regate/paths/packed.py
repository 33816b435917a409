"""Attention on one packed row, for flash attention: no padding is computed, in dense steps neither.

For every ``attn_implementation`` that transformers runs through its own flash attention: ``flash_attention_2`` to
``_4``, and kernels of the hub such as ``kernels-community/flash-attn2``. Never run on a GPU yet; on the CPU the same
code runs under a reference with flash attention's signature, and equals the padded path.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from regate.compaction import Packed
from regate.decoder import UnsupportedModel, attention_modules, name_of
from regate.paths.windows import require_whole_windows

_LENGTHS = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")


def attention_inputs(decoder: nn.Module, kwargs: dict, layout: Packed) -> dict[str, Any]:
    """No mask, and all four lengths: with one missing, transformers would guess where samples start (T10)."""
    require_no_square_mask(decoder, kwargs.get("attention_mask"))
    require_whole_windows(decoder, layout.active)
    lengths = (layout.starts, layout.starts, layout.longest, layout.longest)
    return {"attention_mask": None, **dict(zip(_LENGTHS, lengths, strict=True))}


def require_no_square_mask(decoder: nn.Module, mask: Any) -> None:
    """UnsupportedModel if the model built more than a mask of padding: a packed row has no place for it."""
    built = [m for m in (mask.values() if isinstance(mask, dict) else [mask]) if m is not None]
    if not all(isinstance(m, Tensor) and m.ndim == 2 for m in built):
        raise UnsupportedModel(
            f"{name_of(decoder)} was given a mask of queries by keys, which a packed row cannot keep: use "
            "attn_implementation='sdpa' or 'eager' with attention_path='padded'"
        )


@contextlib.contextmanager
def lengths_must_arrive(decoder: nn.Module) -> Iterator[None]:
    """UnsupportedModel if attention in a forward pass inside is not given the lengths: samples would see each other."""
    dropped: list[str] = []

    def look(module: nn.Module, args: tuple, kwargs: dict) -> None:
        dropped.extend(name for name in _LENGTHS if kwargs.get(name) is None)

    handles = [m.register_forward_pre_hook(look, with_kwargs=True) for m in attention_modules(decoder)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    if dropped:
        raise UnsupportedModel(
            f"{name_of(decoder)} does not hand {', '.join(dict.fromkeys(dropped))} on to its attention, so packed "
            "samples would see each other: use attention_path='padded'"
        )
