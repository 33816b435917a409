"""Run any decoder on active positions only: gather once, run the stock decoder, scatter once (Algorithm 1).

The mask is the same in every layer, so leaving positions out before the first layer gives for the others exactly what
Algorithm 1 gives layer by layer: elided positions are neither query nor key, see no MLP, get no gradient. Active
positions keep their position ids. Hooks on the unmodified model do it, on the decoder and on the head; how attention
and the head run is a matter of paths (``regate/paths``).

Legend: B rows, L positions of the full sequence, R x M slots of the compact one, D hidden size, N predictors, V
vocabulary.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from regate.compaction import Layout, Packed, Padded
from regate.decoder import UnsupportedModel, causal_decoder, name_of
from regate.paths import flex, losses, packed, padded
from regate.paths.select import Paths, select_paths

_MARK = "_regate_elision"
# Inputs [B, L, ...] that are gathered; attention_mask and position_ids have rules of their own.
_PER_POSITION = ("input_ids", "inputs_embeds", "token_type_ids", "mm_token_type_ids", "per_layer_inputs")
_ATTENTION: dict[str, tuple[type[Padded] | type[Packed], Callable[..., dict[str, Any]]]] = {
    "padded": (Padded, padded.attention_inputs),
    "packed": (Packed, packed.attention_inputs),
    "flex": (Packed, flex.attention_inputs),
}


@dataclass
class Pass:
    """One armed forward pass: what the hooks are to do, and what they did."""

    active: Tensor | None  # bool [B, L]; None: the decoder computes everything
    predictors: Tensor | None  # bool [B, L]; None: the head computes everything
    targets: Tensor | None  # int64 [N]; None: the head computes logits
    passthrough: bool
    expects_multimodal_rope: bool
    layout: Layout | None = None
    embeds: Tensor | None = None  # [B, L, D], kept for passthrough
    from_head: Tensor | None = None  # losses [N], where the head computed them
    ran_decoder: bool = False
    ran_head: bool = False

    def losses(self, outputs: Any) -> Tensor:
        """Losses of the ``targets`` in nats, float32 [N], from what the model returned. ValueError if its forward
        reshapes or changes what the head computes."""
        assert self.targets is not None, "the pass was armed without targets"
        found = outputs.logits
        if self.from_head is None:
            if found.shape[:-1] != self.targets.shape:
                raise ValueError(
                    f"the model returned logits of shape {tuple(found.shape)} for {len(self.targets)} predicted "
                    "targets: its forward reshapes or drops what the head computes"
                )
            return losses.plain(found, self.targets)
        if found is self.from_head:
            return found
        exact, rounded = self.from_head.detach(), found.detach()
        if found.shape != exact.shape or not torch.allclose(rounded, exact.to(found.dtype), 0, 0, equal_nan=True):
            raise ValueError(
                "the model changes what its head computes, so losses cannot be computed there: set loss_path='logits'"
            )
        # Mixed precision may round a model's outputs; gradients must pass through them, values need not.
        return found.float() + (exact - rounded.float())


class Elision:
    """Elision for one model: registers its hooks once, does nothing until a ``with`` block arms them.

        elision = Elision(model)
        with elision(active=active, predictors=predictors):      # bool [B, L] each
            logits = model(**inputs).logits                      # [N, V], N = number of True in predictors

        with elision(active, predictors, targets) as step:       # targets int64 [N]
            outputs = model(**inputs)
        losses = step.losses(outputs)                            # [N]; the logits may never have existed

    ``active`` None runs the whole sequence; ``predictors`` None computes all logits [B, L, V]. Pass no ``labels``. The
    hidden states of elided positions come back as zeros or, with ``passthrough=True``, as their input embedding
    through the decoder's final norm. ``paths`` None: chosen by `select_paths`.

    Raises :class:`UnsupportedModel`, by name, for models that it would get wrong.
    """

    def __init__(self, model: nn.Module, paths: Paths | None = None):
        self.decoder = causal_decoder(model)
        self.head = model.get_output_embeddings()
        if self.head is None:
            raise UnsupportedModel(f"{name_of(model)} has no output embeddings; a language-model head is expected")
        if hasattr(self.decoder, _MARK):
            raise UnsupportedModel(
                f"{name_of(model)} is gated already: its decoder carries the hooks of another Elision or "
                "ReGateTrainer. Call .remove() on that one first."
            )
        self.paths = select_paths(model) if paths is None else paths
        setattr(self.decoder, _MARK, self)
        self._pass: Pass | None = None
        self._lengths_arrive = self.paths.attention != "packed"  # proven in the first packed pass
        self._compiled = torch.compile(self.decoder.forward, dynamic=True) if self.paths.compiled else None
        self._handles = [
            self.decoder.register_forward_pre_hook(self._before_decoder, with_kwargs=True),
            self.decoder.register_forward_hook(self._after_decoder),
            self.head.register_forward_pre_hook(self._before_head),
        ]

    def remove(self) -> None:
        """Take the hooks off; the model is as it was."""
        for handle in self._handles:
            handle.remove()
        if getattr(self.decoder, _MARK, None) is self:
            delattr(self.decoder, _MARK)

    @contextlib.contextmanager
    def __call__(
        self,
        active: Tensor | None = None,
        predictors: Tensor | None = None,
        targets: Tensor | None = None,
        *,
        passthrough: bool = False,
        expects_multimodal_rope: bool = False,
    ) -> Iterator[Pass]:
        """Arm the hooks for one forward pass. ``expects_multimodal_rope``: the batch holds visual tokens, so a decoder
        with multimodal RoPE must be given positions of several rows (it falls back to plain ones silently)."""
        if passthrough and not hasattr(self.decoder, "norm"):
            raise UnsupportedModel(
                f"{name_of(self.decoder)} has no final `norm`, which active_set kept-passthrough needs"
            )
        step = self._pass = Pass(active, predictors, targets, passthrough, expects_multimodal_rope)
        try:
            with contextlib.ExitStack() as stack:
                if not self._lengths_arrive and active is not None:
                    stack.enter_context(packed.lengths_must_arrive(self.decoder))
                elif self._compiled is not None:  # hooks stay outside of the graph
                    stack.enter_context(_forward_of(self.decoder, self._compiled))
                if targets is not None and self.paths.loss != "logits":
                    stack.enter_context(_forward_of(self.head, self._losses))
                yield step
            self._lengths_arrive |= step.layout is not None
        finally:
            self._pass = None
        if not step.ran_decoder or (predictors is not None and not step.ran_head):
            missed = "decoder" if not step.ran_decoder else "head"
            raise UnsupportedModel(
                f"the forward pass did not call the {missed} module ({name_of(getattr(self, missed))}) that "
                "get_decoder() or get_output_embeddings() names; elision had no effect"
            )

    def _before_decoder(self, decoder: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        step = self._pass
        if step is None:
            return None
        step.ran_decoder = True
        kwargs = {k: v for k, v in kwargs.items() if k not in ("logits_to_keep", "cache_position")}
        past = kwargs.get("past_key_values")
        if past is not None and past.get_seq_length() > 0:
            raise UnsupportedModel("elision is for training: the decoder was given a KV cache that is not empty")
        # With a cache the gap in the positions would go unnoticed; many text configurations build one in training.
        kwargs |= {"past_key_values": None, "use_cache": False}
        if step.expects_multimodal_rope:
            _require_multimodal_positions(decoder, kwargs.get("position_ids"))
        if step.active is None:
            return args, kwargs
        if args:
            raise UnsupportedModel(f"{name_of(decoder)} was called with positional arguments; keywords are expected")
        if step.passthrough:
            embeds = kwargs.get("inputs_embeds")
            step.embeds = decoder.get_input_embeddings()(kwargs["input_ids"]) if embeds is None else embeds
        step.layout, inputs = compact_inputs(decoder, kwargs, step.active, self.paths.attention)
        return (), inputs

    def _after_decoder(self, decoder: nn.Module, args: tuple, output):
        step = self._pass
        if step is None or step.layout is None:
            return None
        for name in ("hidden_states", "attentions"):
            if getattr(output, name, None) is not None:
                raise UnsupportedModel(f"output_{name} cannot be returned while tokens are elided; switch it off")
        hidden = output[0]  # [R, M, D]
        if step.passthrough:
            background = decoder.norm(step.embeds)
        else:
            background = hidden.new_zeros(*step.layout.active.shape, hidden.shape[-1])
        full = step.layout.scatter(hidden, background.to(hidden.dtype))  # [B, L, D]
        if isinstance(output, tuple):
            return (full, *output[1:])
        output["last_hidden_state"] = full
        return output

    def _before_head(self, head: nn.Module, args: tuple) -> tuple | None:
        step = self._pass
        if step is None or step.predictors is None:
            return None
        step.ran_head = True
        (hidden,) = args
        if hidden.shape[:-1] != step.predictors.shape:
            raise UnsupportedModel(
                f"the head was given hidden states of shape {tuple(hidden.shape)}; one for each of the "
                f"{tuple(step.predictors.shape)} positions is expected. Do not pass logits_to_keep."
            )
        return (hidden[step.predictors],)  # [N, D]

    def _losses(self, hidden: Tensor) -> Tensor:
        """In the place of the head's forward, within its own call: sharded weights are whole only there."""
        step = self._pass
        assert step is not None, "the head's forward is replaced in armed passes only"
        assert step.targets is not None, "and in those with targets"
        step.from_head = losses.fused(self.paths.loss, hidden, self.head, step.targets)  # [N]
        return step.from_head


@contextlib.contextmanager
def _forward_of(module: nn.Module, forward: Callable) -> Iterator[None]:
    """Another forward for a module; its hooks stay. What an instance had of its own (accelerate's hooks) comes back."""
    own = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if own is not None:
            module.forward = own


def compact_inputs(
    decoder: nn.Module, kwargs: dict, active: Tensor, attention: str = "padded"
) -> tuple[Layout, dict[str, Any]]:
    """Where active positions go, and the keyword inputs of the decoder for them.

    active bool [B, L]; ``attention``: the path. UnsupportedModel for inputs that are not understood.
    """
    batch, length = active.shape
    given = kwargs.get("inputs_embeds") if kwargs.get("inputs_embeds") is not None else kwargs.get("input_ids")
    if given is None or given.shape[:2] != active.shape:
        shape = None if given is None else tuple(given.shape[:2])
        raise UnsupportedModel(
            f"the decoder got a sequence of shape {shape}; the gate was made for {tuple(active.shape)}"
        )
    layout_class, attention_inputs = _ATTENTION[attention]
    layout = layout_class.of(active)
    out = dict(kwargs)
    for key, value in kwargs.items():
        if value is None or key in ("attention_mask", "position_ids"):
            continue
        if key in _PER_POSITION:
            out[key] = layout.gather(value)
        elif key == "visual_pos_masks":
            if (value & ~active).any():
                raise UnsupportedModel("visual positions must all be active where features are injected into layers")
            out[key] = layout.gather(value) & layout.real
        elif key != "deepstack_visual_embeds" and _holds_tensor(value):  # those are in the order of visual positions
            raise UnsupportedModel(
                f"{name_of(decoder)} was given `{key}`, which elision does not understand; known are "
                f"{', '.join(_PER_POSITION)}, attention_mask, position_ids, visual_pos_masks, deepstack_visual_embeds"
            )

    position_ids = kwargs.get("position_ids")
    if position_ids is None:
        position_ids = torch.arange(length, device=active.device).expand(batch, length)
    elif position_ids.ndim == 1:
        position_ids = position_ids[None]
    out["position_ids"] = layout.gather_last(position_ids)
    return layout, out | attention_inputs(decoder, kwargs, layout)


def _require_multimodal_positions(decoder: nn.Module, position_ids: Tensor | None) -> None:
    rope = getattr(decoder.config, "rope_parameters", None) or getattr(decoder.config, "rope_scaling", None) or {}
    if "mrope_section" in rope and (position_ids is None or position_ids.ndim < 3):
        raise UnsupportedModel(
            f"{name_of(decoder)} has multimodal RoPE but was given plain positions for a batch with visual tokens: a "
            "multimodal input (mm_token_type_ids, image_grid_thw or video_grid_thw) is missing from the batch"
        )


def _holds_tensor(value) -> bool:
    if isinstance(value, dict):
        return any(map(_holds_tensor, value.values()))
    return isinstance(value, Tensor) or (isinstance(value, (list, tuple)) and any(map(_holds_tensor, value)))
