"""What a plan needs to know of a student, read off the real-size model on the meta device: seconds, no weights."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cache

from torch import nn

from regate.accounting import FlopModel
from repro.architectures import ARCHITECTURES, meta_model, part_of
from repro.memory import Layer, Unit
from repro.meta import ATTENTION, Cost, cost_of


@dataclass(frozen=True)
class Facts:
    """Shapes and counts of one student, tuned.

    parts: part -> parameters, trained ones among them. whole, layer, head, root: what FSDP2 gathers as one; the root
    holds what is in no layer, embedding or head. look, look_again: vision tower and connector on one video, plain and
    with checkpointing.
    """

    parts: dict[str, tuple[int, int]]
    whole: Unit
    layer: Unit
    head: Unit
    root: Unit
    shape: Layer
    layers: int
    vocabulary: int
    visual_tokens: int
    flops: FlopModel
    look: Cost
    look_again: Cost

    @property
    def recomputed_look(self) -> float:
        """FLOPs that checkpointing adds to vision tower and connector."""
        return self.look_again.backward - self.look.backward


@cache
def facts_of(student: str, frames: int) -> Facts:
    """Everything about a student on videos of ``frames`` frames."""
    architecture = ARCHITECTURES[student]
    model = meta_model(architecture)
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    decoder, head = inner.get_decoder(), inner.get_output_embeddings()
    inner.set_attn_implementation(ATTENTION)
    model.train()
    look = cost_of(model, lambda: architecture.look(model, frames))
    inner.activation_checkpointing_enable({"use_reentrant": False})
    look_again = cost_of(model, lambda: architecture.look(model, frames))
    own = {id(p) for unit in _units(inner, architecture.units, head) for p in unit.parameters()}
    own_names = {name for name, p in inner.named_parameters() if id(p) in own}
    return Facts(
        parts=_parts(inner),
        whole=Unit.of(inner),
        layer=Unit.of(decoder.layers[0]),
        head=Unit.of(head),
        root=Unit.of(inner, without=own_names.__contains__),
        shape=Layer.of(decoder.config, lora=architecture.tuning.get("lora", {}).get("r", 0)),
        layers=decoder.config.num_hidden_layers,
        vocabulary=decoder.config.vocab_size,
        visual_tokens=architecture.visual_tokens(inner.config, frames),
        flops=FlopModel.of(decoder, head),
        look=look,
        look_again=look_again,
    )


def _units(model: nn.Module, names: tuple[str, ...], head: nn.Module) -> list[nn.Module]:
    """What accelerate shards apart: layers by class name, and the embedding and the head by itself."""
    layers = [module for module in model.modules() if type(module).__name__ in names]
    return [*layers, model.get_input_embeddings(), head]  # type: ignore[operator, list-item]


def _parts(model: nn.Module) -> dict[str, tuple[int, int]]:
    total, trained = Counter[str](), Counter[str]()
    for name, parameter in model.named_parameters():
        total[part_of(name)] += parameter.numel()
        trained[part_of(name)] += parameter.numel() * parameter.requires_grad
    return {part: (total[part], trained[part]) for part in total}
