"""The sparse head without all its logits: per-target losses straight from hidden states and the head's weight.

``chunked`` is ours, in plain torch, on any device. ``liger`` (liger-kernel) and ``cce`` (cut-cross-entropy) are Triton
kernels and need a GPU, where none of the three was run yet. On the CPU, Liger's kernels were run in Triton's
interpreter and agree; of cut-cross-entropy its own torch implementation was, its kernels never.

They need a head that is a plain linear map whose result is the logits: `obstacle` says what is in the way.

Legend: N targets, D hidden size, V vocabulary.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

LOGITS_AT_ONCE = 2**27
"""Logits that are computed at once; beyond it ``chunked`` goes in chunks, and computes them again for the gradient."""

# What classes of transformers do to logits behind the head, by the names in their configurations.
_BEHIND_THE_HEAD = (
    "final_logit_softcapping",
    "softcap",
    "logit_scale",
    "logits_scaling",
    "lm_head_multiplier",
    "output_multiplier",
)


def obstacle(head: nn.Module, *configs: Any) -> str | None:
    """Why losses cannot be computed from the head's weight, or None. ``configs``: of the model and its decoder."""
    if not isinstance(head, nn.Linear) or type(head).forward is not nn.Linear.forward or "forward" in vars(head):
        return f"the head is a {type(head).__name__} that computes more than a linear map"
    for config in configs:
        for name in _BEHIND_THE_HEAD:
            if getattr(config, name, None) not in (None, 1, 1.0):
                return f"the model changes logits behind its head ({name})"
    return None


def plain(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy in nats, float32 [N], of logits [N, V]. Without targets: nothing, but on the graph."""
    if not len(targets):
        return logits.float().sum(dim=-1)
    return nn.functional.cross_entropy(logits.float(), targets, reduction="none")


def chunked(hidden: Tensor, head: nn.Module, targets: Tensor) -> Tensor:
    """As `plain` of the head's logits, with at most `LOGITS_AT_ONCE` of them in memory.

    torch's own ``linear_cross_entropy`` (2.14) is not used: where the model computes in bfloat16, so are its losses.
    """
    rows = max(1, LOGITS_AT_ONCE // head.weight.shape[0])
    if len(targets) <= rows:
        return plain(nn.functional.linear(hidden, head.weight, head.bias), targets)
    return _Chunked.apply(*_autocast(hidden, head.weight, head.bias), targets, rows)


class _Chunked(torch.autograd.Function):
    """Losses chunk by chunk; backward computes a chunk's logits again and turns them into their gradient in place."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, targets, rows):
        normalizers, losses = [], []
        for h, t in zip(hidden.split(rows), targets.split(rows), strict=True):
            logits = nn.functional.linear(h, weight, bias).float()  # [rows, V]
            normalizers.append(logits.logsumexp(dim=1))
            losses.append(normalizers[-1] - logits.gather(1, t[:, None])[:, 0])
        ctx.save_for_backward(hidden, weight, bias, targets, torch.cat(normalizers))
        ctx.rows = rows
        return torch.cat(losses)

    @staticmethod
    def backward(ctx, upstream):  # [N]
        hidden, weight, bias, targets, normalizers = ctx.saved_tensors
        needs_hidden, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        to_hidden = torch.empty_like(hidden) if needs_hidden else None
        to_weight = torch.zeros_like(weight) if needs_weight else None
        to_bias = torch.zeros_like(bias) if needs_bias else None
        for start in range(0, len(hidden), ctx.rows):
            chunk = slice(start, start + ctx.rows)
            logits = nn.functional.linear(hidden[chunk], weight, bias).float()
            gradient = logits.sub_(normalizers[chunk, None]).exp_()
            gradient.scatter_add_(1, targets[chunk, None], gradient.new_full((len(gradient), 1), -1.0))
            gradient = gradient.mul_(upstream[chunk, None]).to(hidden.dtype)
            if to_hidden is not None:
                to_hidden[chunk] = gradient @ weight
            if to_weight is not None:
                to_weight.addmm_(gradient.t(), hidden[chunk])
            if to_bias is not None:
                to_bias += gradient.sum(dim=0)
        return to_hidden, to_weight, to_bias, None, None


def liger(hidden: Tensor, head: nn.Module, targets: Tensor) -> Tensor:
    """As `plain` of the head's logits, by Liger's fused kernel."""
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    hidden, weight, bias = _autocast(hidden, head.weight, head.bias)
    return liger_fused_linear_cross_entropy(hidden, weight, targets, bias=bias, reduction="none").float()


def cce(hidden: Tensor, head: nn.Module, targets: Tensor) -> Tensor:
    """As `plain` of the head's logits, by Apple's kernel; all of the gradient (``filter_eps=None``), half precision."""
    from cut_cross_entropy import linear_cross_entropy

    hidden, weight, _ = _autocast(hidden, head.weight, None)
    if hidden.dtype not in (torch.bfloat16, torch.float16):
        raise ValueError(f"loss_path='cce' computes in half precision, found {hidden.dtype}: train with bf16=True")
    return linear_cross_entropy(hidden, weight, targets, reduction="none", filter_eps=None).float()


FUSED: dict[str, Callable[[Tensor, nn.Module, Tensor], Tensor]] = {"chunked": chunked, "liger": liger, "cce": cce}
"""hidden [N, D], head, targets int64 [N] -> losses in nats, float32 [N]."""


def fused(path: str, hidden: Tensor, head: nn.Module, targets: Tensor) -> Tensor:
    """Losses [N] by ``path``; without targets the plain way, which kernels would choke on."""
    if not len(targets):
        return plain(nn.functional.linear(hidden, head.weight, head.bias), targets)
    return FUSED[path](hidden, head, targets)


def _autocast(*tensors: Tensor | None) -> list[Tensor | None]:
    """What autocast would do to the arguments of a linear map: custom kernels are beyond its reach."""
    device = next(t for t in tensors if t is not None).device.type
    if not torch.is_autocast_enabled(device):
        return list(tensors)
    dtype = torch.get_autocast_dtype(device)
    return [None if t is None else t.to(dtype) for t in tensors]
