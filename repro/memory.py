"""Bytes that training needs on one GPU: pure functions of shapes with their derivations, held to real ones by tests.

What is assumed: bf16 compute (2 bytes) with fp32 copies of what trains (4 bytes), AdamW, fused attention (scores are
never kept). GB are 10^9 bytes.

Legend: N GPUs, D hidden size, F intermediate size, A = heads x head size, K = key-value heads x head size, H heads,
G key-value heads, V vocabulary, r LoRA rank.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

GB = 1e9
ENGINES = ("fsdp2", "zero3", "ddp")
CONTEXT = 3 * GB  # CUDA context, NCCL buffers, cuBLAS workspaces and what the allocator cannot use: assumed
ZERO3_LIVE = 10**9  # stage3_max_live_parameters of configs/accelerate/zero3.yaml (DeepSpeed's default)


@dataclass(frozen=True)
class Layer:
    """Shapes of one decoder layer. ``lora`` is the rank of adapters on all of its seven linear maps, 0 for none."""

    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_size: int
    qk_norm: bool = False
    lora: int = 0

    @classmethod
    def of(cls, config: Any, lora: int = 0) -> Layer:
        """From a text configuration of transformers (Qwen2, Qwen3, Mistral)."""
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return cls(
            config.hidden_size,
            config.intermediate_size,
            config.num_attention_heads,
            config.num_key_value_heads,
            size,
            qk_norm=config.model_type == "qwen3",
            lora=lora,
        )


@dataclass(frozen=True)
class States:
    """Bytes on one GPU of what outlives a step."""

    weights: float
    gradients: float
    optimizer: float

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer


def states(engine: str, trained: int, frozen: int, gpus: int) -> States:
    """Weights, gradients and AdamW's moments of ``trained`` and ``frozen`` parameters.

    - fsdp2: weights 4 (fp32 shards; the bf16 copy exists only while a unit is gathered), gradients 4, moments 4 + 4:
      16 bytes a trained parameter, frozen ones 2, all divided by N.
    - zero3: weights 2 (bf16), gradients 2, and in the optimizer 4 (fp32 copy) + 4 + 4: 16 as well, frozen 2, over N.
    - ddp: nothing is divided. Weights 4, gradients 4 and once more 4 in the buckets of the all-reduce, moments 8.

    ValueError for an engine that is none of these.
    """
    weights, gradients, moments = {"fsdp2": (4, 4, 8), "zero3": (2, 2, 12), "ddp": (4, 8, 8)}[_known(engine)]
    share = 1 if engine == "ddp" else gpus
    return States(
        (weights * trained + 2 * frozen) / share,
        gradients * trained / share,
        moments * trained / share,
    )


@dataclass(frozen=True)
class Unit:
    """Parameters of something that is gathered as one: a layer, the head, what is left at the root."""

    trained: int
    frozen: int

    @property
    def size(self) -> int:
        return self.trained + self.frozen

    @classmethod
    def of(cls, *modules: Any, without: Callable[[str], bool] = lambda name: False) -> Unit:
        """Of modules, leaving out parameters whose name says so."""
        found = {id(p): p for m in modules for n, p in m.named_parameters() if not without(n)}.values()
        trained = sum(p.numel() for p in found if p.requires_grad)
        return cls(trained, sum(p.numel() for p in found) - trained)


def gathered(engine: str, whole: Unit, layer: Unit, head: Unit, root: Unit) -> float:
    """Peak bytes of unsharded weights and gradients that come and go in a step.

    - fsdp2: the root's leftovers (connector, norms) stay gathered through the step, weights 2 and gradients 2. On top
      of them, whichever is more: in the head's backward pass the head's weights 2, its gradient 2 and the copy that is
      reduced 2, next to a prefetched layer; or deep inside two layers' weights (one prefetched), two layers' gradients
      (one being reduced) and the copy that is reduced.
    - zero3: as many gathered weights as ``stage3_max_live_parameters`` allows, 2 each, and the gradient of the largest
      unit, 2, before it is reduced.
    - ddp: autocast's bf16 copies of all trained weights, 2 each, kept to the end of the forward pass.
    """
    _known(engine)
    if engine == "fsdp2":
        at_head = 2 * head.size + 4 * head.trained + 2 * layer.size
        inside = 4 * layer.size + 6 * layer.trained
        return 2.0 * root.size + 2 * root.trained + max(at_head, inside)
    if engine == "zero3":
        return 2.0 * min(ZERO3_LIVE, whole.size) + 2 * max(head.trained, layer.trained, root.trained)
    return 2.0 * whole.trained


def layer_saved(layer: Layer, mask_bytes: int = 1) -> int:
    """Bytes a position that one decoder layer keeps for its backward pass, without checkpointing.

    Trained weights: each of the two RMSNorms keeps its input in fp32 (4D), one number (4), the normalised bf16 vector
    (2D) and its product with the weight (2D), which the linear maps share as input: 16D + 8. Attention keeps q and its
    output (2A each), k and v (2K each), a log-sum a head (4H). The MLP keeps gate, silu(gate), up and their product
    (2F each). Norms on q and k (Qwen3) keep fp32 input, bf16 vector and one number a head: 6A + 6K + 4H + 4G.

    Adapters on frozen weights: frozen maps and norms keep neither inputs nor products (8D + 8, 6F, and 4A + 4K of the
    norms on q and k); each of the seven adapters keeps its dropped-out input (2 a width), the mask (``mask_bytes`` a
    width: 1 on CUDA, 2 on the CPU) and r numbers (2r). Widths: D for q, k, v, gate, up; A for o; F for down.
    """
    d, f, a, k = layer.hidden, layer.intermediate, layer.heads * layer.head_size, layer.kv_heads * layer.head_size
    attention = 4 * a + 4 * k + 4 * layer.heads
    if layer.qk_norm:
        attention += (4 if layer.lora else 6) * (a + k) + 4 * layer.heads + 4 * layer.kv_heads
    if not layer.lora:
        return 16 * d + 8 + attention + 8 * f
    return 8 * d + 8 + attention + 6 * f + (2 + mask_bytes) * (5 * d + a + f) + 14 * layer.lora


def decoder_saved(layer: Layer, layers: int, positions: int, checkpointing: bool) -> float:
    """Bytes that the decoder keeps between forward and backward pass for ``positions`` of a micro-batch.

    With checkpointing only each layer's input, bf16: 2D a position and layer.
    """
    each = 2 * layer.hidden if checkpointing else layer_saved(layer)
    return float(each * layers * positions)


def layer_peak(layer: Layer, positions: int, checkpointing: bool) -> float:
    """Bytes on top of ``decoder_saved`` in the middle of the backward pass.

    The gradients of gate and up projections (2F each) next to all that the layer keeps; with checkpointing that was
    computed anew just before.
    """
    return float((4 * layer.intermediate + (layer_saved(layer) if checkpointing else 0)) * positions)


def logits_peak(vocabulary: int, rows: int) -> float:
    """Bytes of logits and loss at their peak, for ``rows`` positions of a micro-batch: 12 V a row.

    In the backward pass: fp32 log-probabilities (4V), the gradient of the gathered ones (4V), the gradient of the
    logits (4V). The forward pass needs less: bf16 logits (2V), their fp32 copy (4V), log-probabilities (4V).
    The stock Trainer has a row for every position, ours one for every predicted target.
    """
    return 12.0 * vocabulary * rows


def fits(total: Callable[[int], float], memory: float, per_gpu: int) -> int:
    """The largest micro-batch that divides ``per_gpu`` samples of a step and needs at most ``memory`` bytes.

    0 where not even one sample fits. ``total``: micro-batch -> bytes, rising.
    """
    good = [size for size in range(1, per_gpu + 1) if per_gpu % size == 0 and total(size) <= memory]
    return max(good, default=0)


def _known(engine: str) -> str:
    if engine not in ENGINES:
        raise ValueError(f"engine is {engine!r}, expected one of {', '.join(ENGINES)}")
    return engine
