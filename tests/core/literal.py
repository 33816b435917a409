"""The slow, literal twin of elision: Algorithm 1 layer by layer, on the full sequence, with masks and copies.

In every layer the elided positions are neither query nor key; afterwards they are put back as they came in.
"""

import contextlib

import torch
from torch import Tensor, nn


@contextlib.contextmanager
def literal_elision(decoder: nn.Module, active: Tensor):
    """Run ``decoder`` with ``active`` bool [B, L] as Algorithm 1 says, at full length. Eager or SDPA masks."""
    batch, length = active.shape
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    allowed = causal & active[:, None, :] & active[:, :, None]
    allowed |= torch.eye(length, dtype=torch.bool)  # no row without a key; elided rows are thrown away
    additive = torch.zeros(batch, 1, length, length).masked_fill(~allowed[:, None], torch.finfo(torch.float32).min)

    def mask_keys(module, args, kwargs):
        embeds = kwargs["inputs_embeds"]
        positions = kwargs.get("position_ids")
        if positions is None:
            positions = torch.arange(length).expand(batch, length)
        return args, kwargs | {
            "attention_mask": additive.to(embeds.dtype),
            "position_ids": positions,
            "past_key_values": None,
            "use_cache": False,
        }

    def pass_through(module, args, kwargs, output):
        before = args[0] if args else kwargs["hidden_states"]
        after = output[0] if isinstance(output, tuple) else output
        kept = torch.where(active[..., None], after, before)
        return (kept, *output[1:]) if isinstance(output, tuple) else kept

    handles = [decoder.register_forward_pre_hook(mask_keys, with_kwargs=True)]
    handles += [layer.register_forward_hook(pass_through, with_kwargs=True) for layer in decoder.layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
