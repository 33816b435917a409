"""What a call of a real-size module costs, counted on the meta device: no weights, no GPU, no formula to get wrong.

FLOPs are counted by torch's own counter, saved activations by torch's saved-tensor hooks. Attention is counted as fused
kernels run it: scores are computed, never kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

ATTENTION = "counted"  # the name under which transformers finds the attention below


@dataclass(frozen=True)
class Cost:
    """FLOPs forward and backward (a multiply-add is two), and bytes kept from the one to the other."""

    forward: float
    backward: float
    saved: float


def cost_of(model: nn.Module, call: Callable[[], Tensor]) -> Cost:
    """Cost of ``call()``, which runs a part of ``model`` and returns a float tensor; parameters do not count as kept.

    Backward is counted where something in the part trains: frozen weights cost the gradient of their input only where
    something before them trains. Bytes are of distinct storages, so that views cost nothing.
    """
    own = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    kept: dict[int, Tensor] = {}  # holds tensors, or a storage's address could be given out twice

    def pack(tensor: Tensor) -> Tensor:
        kept.setdefault(tensor.untyped_storage()._cdata, tensor)
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with FlopCounterMode(display=False, custom_mapping=_FORMULAS) as counter:
        with hooks:
            output = call()
        forward = counter.get_total_flops()
        saved = sum(t.untyped_storage().nbytes() for address, t in kept.items() if address not in own)
        if output.requires_grad:
            output.sum().backward()
        total = counter.get_total_flops()
    for parameter in model.parameters():
        parameter.grad = None
    return Cost(float(forward), float(total - forward), float(saved))


def _convolution_backward(grad: Any, input: Any, weight: Any, *rest: Any, **kwargs: Any) -> int:
    """Each wanted gradient, of input and of weight, costs what the forward pass cost: 2 x output x weights per output.
    torch's own formula takes the weight's gradient of a depthwise convolution for that of a dense one."""
    wanted = rest[7]  # output_mask: input, weight, bias
    return (wanted[0] + wanted[1]) * 2 * math.prod(grad) * math.prod(weight[1:])


_FORMULAS: dict[Any, Any] = {torch.ops.aten.convolution_backward: _convolution_backward}


class _Fused(torch.autograd.Function):
    """Attention that keeps what a fused kernel keeps: inputs, output, one number a query. For counting, not computing:
    the softmax, whose FLOPs the counter leaves out anyway, is missing."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = (query @ key.transpose(-1, -2)) @ value
        ctx.save_for_backward(query, key, value, output, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = ctx.saved_tensors[:3]
        scores = gradients[0] @ value.transpose(-1, -2)
        return scores @ key, scores.transpose(-1, -2) @ query, scores.transpose(-1, -2) @ gradients[0]


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any
) -> tuple[Tensor, None]:
    return _Fused.apply(query, key, value).transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION, _attention)
AttentionMaskInterface.register(ATTENTION, lambda *args, **kwargs: None)
