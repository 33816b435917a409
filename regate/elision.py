"""Run any decoder on active positions only: gather once, run the stock decoder, scatter once (Algorithm 1).

The mask is the same in every layer, so leaving positions out before the first layer gives for the others exactly what
Algorithm 1 gives layer by layer: elided positions are neither query nor key, see no MLP, get no gradient. Active
positions keep their position ids. Two hooks on the unmodified model do it, one on the decoder, one on the head.

Legend: B rows, L positions of the full sequence, M of the longest compacted row, D hidden size, V vocabulary.
"""

import contextlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.masking_utils import create_masks_for_generate

_MARK = "_regate_elision"
_ATTENTION_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}
# Names under which configurations list blocks that are no attention (state space, recurrence, convolution).
_HYBRID_FIELDS = (
    "layers_block_type",
    "block_types",
    "hybrid_override_pattern",
    "attn_layer_indices",
    "layer_block_type",
)
# Inputs [B, L, ...] that are gathered; attention_mask and position_ids have rules of their own.
_PER_POSITION = ("input_ids", "inputs_embeds", "token_type_ids", "mm_token_type_ids", "per_layer_inputs")


class UnsupportedModel(ValueError):
    """A model, or an input of its decoder, that elision does not understand; the message names it."""


@dataclass(frozen=True)
class Compaction:
    """Where the active positions of each row are.

    active bool [B, L]; index int64 [B, M]: original position of each compact slot, rows padded at the right with their
    last active one; real bool [B, M]: False on that padding.
    """

    active: Tensor
    index: Tensor
    real: Tensor

    @classmethod
    def of(cls, active: Tensor) -> "Compaction":
        """The compaction of ``active`` bool [B, L]; ValueError if a row has no active position."""
        count = active.sum(dim=1)
        longest, shortest = torch.stack([count.max(), count.min()]).tolist()
        if shortest == 0:
            raise ValueError(f"rows {(count == 0).nonzero().flatten().tolist()} have no active position")
        slots = torch.arange(longest, device=active.device)
        order = active.int().argsort(dim=1, descending=True, stable=True)  # active positions first, in order
        return cls(active, order.gather(1, torch.minimum(slots, count[:, None] - 1)), slots < count[:, None])

    def gather(self, full: Tensor) -> Tensor:
        """Entries [B, M, ...] of ``full`` [B or 1, L, ...] at the active positions."""
        return _take(full.expand(len(self.active), *full.shape[1:]), self.index)

    def gather_last(self, full: Tensor) -> Tensor:
        """Entries [..., B, M] of position ids [..., B or 1, L] at the active positions."""
        index = self.index.expand(*full.shape[:-2], *self.index.shape)
        return full.expand(*full.shape[:-2], *self.active.shape).gather(-1, index)

    def gather_square(self, mask: Tensor) -> Tensor:
        """Rows and columns of an attention mask [B or 1, H, L, L], bool (True = attend) or additive; padding masked."""
        rows = self.gather(mask.transpose(1, 2))  # [B, M, H, L]
        square = self.gather(rows.permute(0, 3, 2, 1)).permute(0, 2, 3, 1)  # [B, H, M, M]
        padding = ~self.real[:, None, None, :]
        return (
            square & ~padding if mask.dtype == torch.bool else square.masked_fill(padding, torch.finfo(mask.dtype).min)
        )

    def scatter(self, compact: Tensor, background: Tensor) -> Tensor:
        """Compact states [B, M, D] back at their positions in a copy of ``background`` [B, L, D]."""
        slot = (self.active.cumsum(dim=1) - 1).clamp(min=0)  # [B, L]; no nonzero(), which would wait for the GPU
        return torch.where(self.active[..., None], _take(compact, slot), background)


def _take(values: Tensor, index: Tensor) -> Tensor:
    """``values`` [B, L, ...] at ``index`` int64 [B, M], row by row: [B, M, ...]."""
    flat = index + torch.arange(len(index), device=index.device)[:, None] * values.shape[1]
    return values.flatten(0, 1).index_select(0, flat.flatten()).unflatten(0, index.shape)


@dataclass
class _Plan:
    """What the hooks do in the forward pass under way."""

    active: Tensor | None  # bool [B, L]; None: the decoder computes everything
    predictors: Tensor | None  # bool [B, L]; None: the head computes everything
    passthrough: bool
    expects_multimodal_rope: bool
    compaction: Compaction | None = None
    embeds: Tensor | None = None  # [B, L, D], kept for passthrough
    ran_decoder: bool = False
    ran_head: bool = False


class Elision:
    """Elision for one model: registers its hooks once, does nothing until a ``with`` block arms them.

        elision = Elision(model)
        with elision(active=active, predictors=predictors):      # bool [B, L] each
            logits = model(**inputs).logits                      # [number of True in predictors, V]

    ``active`` None runs the whole sequence; ``predictors`` None computes all logits [B, L, V]. Pass no ``labels``. The
    hidden states of elided positions come back as zeros or, with ``passthrough=True``, as their input embedding
    through the decoder's final norm.

    Raises :class:`UnsupportedModel`, by name, for models that it would get wrong.
    """

    def __init__(self, model: nn.Module):
        self.decoder = causal_decoder(model)
        self.head = model.get_output_embeddings()
        if self.head is None:
            raise UnsupportedModel(f"{_name(model)} has no output embeddings; a language-model head is expected")
        if hasattr(self.decoder, _MARK):
            raise UnsupportedModel(
                f"{_name(model)} is gated already: its decoder carries the hooks of another Elision or ReGateTrainer. "
                "Call .remove() on that one first."
            )
        setattr(self.decoder, _MARK, self)
        self._plan: _Plan | None = None
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
        *,
        passthrough: bool = False,
        expects_multimodal_rope: bool = False,
    ) -> Iterator[None]:
        """Arm the hooks for one forward pass. ``expects_multimodal_rope``: the batch holds visual tokens, so a decoder
        with multimodal RoPE must be given positions of several rows (it falls back to plain ones silently)."""
        plan = _Plan(active, predictors, passthrough, expects_multimodal_rope)
        if passthrough and not hasattr(self.decoder, "norm"):
            raise UnsupportedModel(
                f"{_name(self.decoder)} has no final `norm`, which active_set kept-passthrough needs"
            )
        self._plan = plan
        try:
            yield
        finally:
            self._plan = None
        if not plan.ran_decoder or (predictors is not None and not plan.ran_head):
            missed = "decoder" if not plan.ran_decoder else "head"
            raise UnsupportedModel(
                f"the forward pass did not call the {missed} module ({_name(getattr(self, missed))}) that "
                "get_decoder() or get_output_embeddings() names; elision had no effect"
            )

    def _before_decoder(self, decoder: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        plan = self._plan
        if plan is None:
            return None
        plan.ran_decoder = True
        kwargs = {k: v for k, v in kwargs.items() if k not in ("logits_to_keep", "cache_position")}
        past = kwargs.get("past_key_values")
        if past is not None and past.get_seq_length() > 0:
            raise UnsupportedModel("elision is for training: the decoder was given a KV cache that is not empty")
        # With a cache the gap in the positions would go unnoticed; many text configurations build one in training.
        kwargs |= {"past_key_values": None, "use_cache": False}
        if plan.expects_multimodal_rope:
            _require_multimodal_positions(decoder, kwargs.get("position_ids"))
        if plan.active is None:
            return args, kwargs
        if args:
            raise UnsupportedModel(f"{_name(decoder)} was called with positional arguments; keywords are expected")
        plan.compaction = Compaction.of(plan.active)
        if plan.passthrough:
            plan.embeds = _embeds(decoder, kwargs)
        return (), compact_inputs(decoder, kwargs, plan.active, plan.compaction)

    def _after_decoder(self, decoder: nn.Module, args: tuple, output):
        plan = self._plan
        if plan is None or plan.compaction is None:
            return None
        for name in ("hidden_states", "attentions"):
            if getattr(output, name, None) is not None:
                raise UnsupportedModel(f"output_{name} cannot be returned while tokens are elided; switch it off")
        assert plan.active is not None, "there is a compaction of it"
        hidden = output[0]  # [B, M, D]
        if plan.passthrough:
            background = decoder.norm(plan.embeds)
        else:
            background = hidden.new_zeros(*plan.active.shape, hidden.shape[-1])
        full = plan.compaction.scatter(hidden, background.to(hidden.dtype))  # [B, L, D]
        if isinstance(output, tuple):
            return (full, *output[1:])
        output["last_hidden_state"] = full
        return output

    def _before_head(self, head: nn.Module, args: tuple) -> tuple | None:
        plan = self._plan
        if plan is None or plan.predictors is None:
            return None
        plan.ran_head = True
        (hidden,) = args
        if hidden.shape[:-1] != plan.predictors.shape:
            raise UnsupportedModel(
                f"the head was given hidden states of shape {tuple(hidden.shape)}; one for each of the "
                f"{tuple(plan.predictors.shape)} positions is expected. Do not pass logits_to_keep."
            )
        return (hidden[plan.predictors],)  # [N, D]


def causal_decoder(model: nn.Module) -> nn.Module:
    """The module that runs the token sequence of ``model``; UnsupportedModel, by name, if elision would be wrong there.

    Refused: ``get_decoder()`` that is missing, returns the model itself or an encoder; encoder-decoder models; layers
    whose neighbours are slots and not tokens (state space, convolution, linear attention); router losses of mixtures.
    """
    name = _name(model)
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else None
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if decoder is None or decoder is base:
        raise UnsupportedModel(f"{name}.get_decoder() gives no inner decoder; pass the model with its head")
    config = decoder.config
    if getattr(base.config, "is_encoder_decoder", False) or getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModel(f"{name} is an encoder-decoder; elision is for causal decoders")
    parameters = inspect.signature(decoder.forward).parameters
    for required in ("inputs_embeds", "attention_mask", "position_ids"):
        if required not in parameters:
            raise UnsupportedModel(f"the decoder {_name(decoder)} of {name} takes no {required}")
    strange = set(getattr(config, "layer_types", None) or ()) - _ATTENTION_LAYERS
    strange |= {type(m).__name__ for m in decoder.modules() if isinstance(m, nn.Conv1d)}
    strange |= {f for f in _HYBRID_FIELDS if getattr(config, f, None)}
    if strange:
        raise UnsupportedModel(
            f"{_name(decoder)} of {name} has layers that elision would corrupt, because they look at neighbouring "
            f"slots: {sorted(strange)}"
        )
    causal = [m.is_causal for m in decoder.modules() if isinstance(getattr(m, "is_causal", None), bool)]
    if not causal or not all(causal) or not getattr(config, "is_causal", True):
        raise UnsupportedModel(f"{_name(decoder)} of {name} is no causal decoder: its attention sees later tokens")
    if getattr(config, "output_router_logits", False):
        raise UnsupportedModel(
            f"{_name(decoder)} of {name} computes a router loss over all positions; set output_router_logits=False"
        )
    return decoder


def compact_inputs(decoder: nn.Module, kwargs: dict, active: Tensor, compaction: Compaction) -> dict:
    """Keyword inputs of the decoder for the compacted sequence; UnsupportedModel for inputs that are not understood."""
    batch, length = active.shape
    given = kwargs.get("inputs_embeds") if kwargs.get("inputs_embeds") is not None else kwargs.get("input_ids")
    if given is None or given.shape[:2] != active.shape:
        shape = None if given is None else tuple(given.shape[:2])
        raise UnsupportedModel(
            f"the decoder got a sequence of shape {shape}; the gate was made for {tuple(active.shape)}"
        )
    out = dict(kwargs)
    for key, value in kwargs.items():
        if value is None or key in ("attention_mask", "position_ids"):
            continue
        if key in _PER_POSITION:
            out[key] = compaction.gather(value)
        elif key == "visual_pos_masks":
            if (value & ~active).any():
                raise UnsupportedModel("visual positions must all be active where features are injected into layers")
            out[key] = compaction.gather(value) & compaction.real
        elif key != "deepstack_visual_embeds" and _holds_tensor(value):
            raise UnsupportedModel(
                f"{_name(decoder)} was given `{key}`, which elision does not understand; known are "
                f"{', '.join(_PER_POSITION)}, attention_mask, position_ids, visual_pos_masks, deepstack_visual_embeds"
            )

    position_ids = kwargs.get("position_ids")
    if position_ids is None:
        position_ids = torch.arange(length, device=active.device).expand(batch, length)
    elif position_ids.ndim == 1:
        position_ids = position_ids[None]
    out["position_ids"] = compaction.gather_last(position_ids)
    out["attention_mask"] = _compact_mask(decoder, kwargs, compaction, length)
    return out


def _compact_mask(decoder: nn.Module, kwargs: dict, compaction: Compaction, length: int) -> Tensor | dict:
    mask = kwargs.get("attention_mask")
    if _narrowest_window(decoder.config) < length and not isinstance(mask, dict) and (mask is None or mask.ndim == 2):
        # A window counts slots: let transformers build its masks for the full sequence and take them from there.
        mask = create_masks_for_generate(
            config=decoder.config,
            inputs_embeds=_embeds(decoder, kwargs),
            attention_mask=torch.ones_like(compaction.real[:, :1]).expand(-1, length) if mask is None else mask,
            past_key_values=None,
            position_ids=None,
        )
    if isinstance(mask, dict):
        return {kind: _compact_4d(decoder, m, compaction) for kind, m in mask.items()}
    if mask is None or (isinstance(mask, Tensor) and mask.ndim == 2):
        # Padding sits at the right of the compact rows, where causal attention never looks. All ones lets SDPA and
        # flash attention take their causal fast path; None would make the gaps in the positions look like packing.
        return torch.ones_like(compaction.real)
    return _compact_4d(decoder, mask, compaction)


def _compact_4d(decoder: nn.Module, mask, compaction: Compaction) -> Tensor | None:
    if mask is None:  # plain causal
        return None
    if not isinstance(mask, Tensor) or mask.ndim != 4:
        raise UnsupportedModel(
            f"{_name(decoder)} with attention {decoder.config._attn_implementation!r} uses a mask of type "
            f"{type(mask).__name__} that cannot be compacted; use attn_implementation='sdpa' or 'eager', or a sequence "
            "not longer than its window"
        )
    return compaction.gather_square(mask)


def _narrowest_window(config) -> float:
    kinds = set(getattr(config, "layer_types", None) or ())
    slides = "sliding_attention" in kinds or (not kinds and getattr(config, "use_sliding_window", True))
    windows = [
        getattr(config, "sliding_window", None) if slides else None,
        getattr(config, "attention_chunk_size", None) if not kinds or "chunked_attention" in kinds else None,
    ]
    return min((w for w in windows if w), default=float("inf"))


def _require_multimodal_positions(decoder: nn.Module, position_ids: Tensor | None) -> None:
    rope = getattr(decoder.config, "rope_parameters", None) or getattr(decoder.config, "rope_scaling", None) or {}
    if "mrope_section" in rope and (position_ids is None or position_ids.ndim < 3):
        raise UnsupportedModel(
            f"{_name(decoder)} has multimodal RoPE but was given plain positions for a batch with visual tokens: a "
            "multimodal input (mm_token_type_ids, image_grid_thw or video_grid_thw) is missing from the batch"
        )


def _embeds(decoder: nn.Module, kwargs: dict) -> Tensor:
    embeds = kwargs.get("inputs_embeds")
    return embeds if embeds is not None else decoder.get_input_embeddings()(kwargs["input_ids"])


def _holds_tensor(value) -> bool:
    if isinstance(value, dict):
        return any(map(_holds_tensor, value.values()))
    return isinstance(value, Tensor) or (isinstance(value, (list, tuple)) and any(map(_holds_tensor, value)))


def _name(module: nn.Module) -> str:
    return type(module.get_base_model() if hasattr(module, "get_base_model") else module).__name__
