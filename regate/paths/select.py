"""Which path a model takes: from its attention, its head, the device and what is installed; a choice can be forced."""

import contextlib
from dataclasses import dataclass
from importlib import metadata

import torch
from packaging.version import Version
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.flash_attention import flash_attention_forward

from regate.decoder import UnsupportedModel, base_model, causal_decoder
from regate.paths import losses

ATTENTION_PATHS = ("auto", "padded", "packed", "flex")
LOSS_PATHS = ("auto", "logits", "chunked", "liger", "cce")
# Path -> package and the oldest version: Liger's before scaled the gradients of single losses wrongly.
_KERNELS = {"liger": ("liger-kernel", "0.8.5"), "cce": ("cut-cross-entropy", "25.1.1")}


@dataclass(frozen=True)
class Paths:
    """How a gated step runs: one of `ATTENTION_PATHS` and `LOSS_PATHS`, and whether the decoder is compiled."""

    attention: str = "padded"
    loss: str = "logits"
    compiled: bool = False

    @property
    def padding_free(self) -> bool:
        """Whether dense steps, too, run on active positions only."""
        return self.attention != "padded"

    def __str__(self) -> str:
        return f"attention {self.attention}, loss {self.loss}, decoder {'compiled' if self.compiled else 'eager'}"


def select_paths(
    model: nn.Module,
    attention: str = "auto",
    loss: str = "auto",
    compile_decoder: bool = False,
    device: torch.device | None = None,
    half: bool | None = None,
) -> Paths:
    """The paths of ``model``.

    ``device``: where it will train, ``half``: whether in half precision; None: as its head is now. ValueError if a path
    that was asked for cannot work, UnsupportedModel for a model or an attention that elision would get wrong.
    """
    decoder, head = causal_decoder(model), model.get_output_embeddings()
    name = decoder.config._attn_implementation
    if name not in AttentionMaskInterface():
        raise UnsupportedModel(
            f"attention {name!r} has no mask function, so it would never see a mask: register one with "
            "transformers.AttentionMaskInterface.register"
        )
    weight = getattr(head, "weight", None)
    if half is None:
        half = weight is not None and weight.dtype in (torch.bfloat16, torch.float16)
    if device is None:
        device = torch.device("cpu") if weight is None else weight.device
    takes_lengths = AttentionInterface().get(name) is flash_attention_forward
    why_not = losses.obstacle(head, base_model(model).config, decoder.config)
    if getattr(base_model(model), "_tp_size", None) not in (None, 1):
        why_not = "the head is split by tensor parallelism"
    return Paths(
        attention_path(attention, name, takes_lengths),
        loss_path(loss, why_not, device.type, installed_kernels(), half, getattr(head, "bias", None) is not None),
        compile_decoder,
    )


def installed_kernels() -> frozenset[str]:
    """The loss paths whose package is here, and new enough."""
    found = set()
    for path, (package, least) in _KERNELS.items():
        with contextlib.suppress(metadata.PackageNotFoundError):
            if Version(metadata.version(package)) >= Version(least):
                found.add(path)
    return frozenset(found)


def attention_path(wanted: str, implementation: str, takes_lengths: bool) -> str:
    """The attention path for an ``attn_implementation``; ``takes_lengths``: it is flash attention with packed rows."""
    able = {"packed": takes_lengths, "flex": implementation == "flex_attention", "padded": True}
    if wanted == "auto":
        return next(path for path, can in able.items() if can)
    if not able[wanted]:
        needs = {
            "packed": "'flash_attention_2', 'flash_attention_3' or a flash attention of the hub's kernels",
            "flex": "'flex_attention'",
        }[wanted]
        raise ValueError(
            f"attention_path={wanted!r} needs a model with attn_implementation {needs}; its decoder has "
            f"{implementation!r}"
        )
    return wanted


def loss_path(
    wanted: str, why_not: str | None, device_type: str, installed: frozenset[str], half: bool, bias: bool
) -> str:
    """The loss path for a head; ``why_not``: what keeps losses from being computed from its weight."""
    if wanted == "logits" or (wanted == "auto" and why_not):
        return "logits"
    if why_not:
        raise ValueError(f"loss_path={wanted!r} cannot work here: {why_not}. Use loss_path='auto' or 'logits'")
    problems = {path: _problem(path, device_type, installed, half, bias) for path in _KERNELS}
    if wanted == "auto":
        return next((path for path, problem in problems.items() if problem is None), "chunked")
    if problems.get(wanted):
        raise ValueError(f"loss_path={wanted!r} cannot work here: {problems[wanted]}. 'chunked' works everywhere")
    return wanted


def _problem(path: str, device_type: str, installed: frozenset[str], half: bool, bias: bool) -> str | None:
    """Why a kernel cannot work."""
    if path not in installed:
        return "{} {} or newer is not installed".format(*_KERNELS[path])
    if device_type != "cuda":
        return f"its kernels need a GPU, found device {device_type!r}"
    if path == "cce" and not half:
        return "it trains in half precision only: set bf16=True"
    if path == "cce" and bias:
        return "it knows no bias, and this head has one"
    return None
