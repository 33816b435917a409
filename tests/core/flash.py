"""Flash attention's functions in plain torch, under transformers' own flash attention: a GPU's code without its kernel.

model.get_decoder().config._attn_implementation = FLASH      # with the fixture `flash_calls`
"""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers import modeling_flash_attention_utils as utils
from transformers.integrations.flash_attention import flash_attention_forward
from transformers.masking_utils import flash_attention_mask

FLASH = "flash_reference"


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    deterministic: bool = False,
) -> Tensor:
    """q [N, heads, size], k and v [N, key heads, size]; attention within the samples that the lengths cut out."""
    assert causal
    assert dropout_p == softcap == 0
    slot = torch.arange(len(q))
    sample = torch.bucketize(slot, cu_seqlens_q[1:-1], right=True)
    seen = (sample[:, None] == sample) & (slot[:, None] >= slot)
    if window_size[0] >= 0:
        seen = seen & (slot[:, None] - slot <= window_size[0])
    parts = [x.transpose(0, 1)[None] for x in (q, k, v)]  # [1, heads, N, size]
    attended = torch.nn.functional.scaled_dot_product_attention(
        *parts, attn_mask=seen, scale=softmax_scale, enable_gqa=True
    )
    return attended[0].transpose(0, 1)


def check_lengths(queries: int, keys: int, call: dict[str, Any]) -> None:
    """What the kernel takes on trust and would answer with garbage."""
    for count, starts, longest in (
        (queries, call["cu_seqlens_q"], call["max_seqlen_q"]),
        (keys, call["cu_seqlens_k"], call["max_seqlen_k"]),
    ):
        assert starts.dtype == torch.int32
        assert int(starts[0]) == 0
        assert int(starts[-1]) == count
        assert int(starts.diff().max()) <= longest
    assert torch.equal(call["cu_seqlens_q"], call["cu_seqlens_k"])


def flash_attn_func(q: Tensor, k: Tensor, v: Tensor, **kwargs: Any) -> Tensor:
    """The same for q [B, L, heads, size]: all samples of one length."""
    starts = torch.arange(len(q) + 1, dtype=torch.int32) * q.shape[1]
    flat = [x.flatten(0, 1) for x in (q, k, v)]
    return flash_attn_varlen_func(*flat, starts, starts, q.shape[1], q.shape[1], **kwargs).view_as(q)


@pytest.fixture
def flash_calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Registers `FLASH`; the keyword arguments of each call of the varlen function."""
    calls: list[dict[str, Any]] = []

    def recorded(q, k, v, **kwargs):
        if not torch.compiler.is_compiling():
            check_lengths(len(q), len(k), kwargs)
            calls.append(kwargs)
        return flash_attn_varlen_func(q, k, v, **kwargs)

    AttentionInterface.register(FLASH, flash_attention_forward)
    AttentionMaskInterface.register(FLASH, flash_attention_mask)
    process = utils._lazy_define_process_function(flash_attn_varlen_func)
    for name, value in {
        "_loaded_implementation": FLASH,
        "_flash_fn": flash_attn_func,
        "_flash_varlen_fn": recorded,
        "_pad_fn": utils._pad_input,
        "_unpad_fn": utils._unpad_input,
        "_process_flash_kwargs_fn": process,
    }.items():
        monkeypatch.setattr(utils, name, value)
    return calls
