"""The module that runs the tokens of a model, and the models that elision would get wrong: refused here, by name."""

import inspect

from torch import nn

_ATTENTION_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}
# Names under which configurations list blocks that are no attention (state space, recurrence, convolution).
_HYBRID_FIELDS = (
    "layers_block_type",
    "block_types",
    "hybrid_override_pattern",
    "attn_layer_indices",
    "layer_block_type",
)


class UnsupportedModel(ValueError):
    """A model, or an input of its decoder, that elision does not understand; the message names it."""


def causal_decoder(model: nn.Module) -> nn.Module:
    """The module that runs the token sequence of ``model``; UnsupportedModel, by name, if elision would be wrong there.

    Refused: ``get_decoder()`` that is missing, returns the model itself or an encoder; encoder-decoder models; layers
    whose neighbours are slots and not tokens (state space, convolution, linear attention); router losses of mixtures.
    """
    name = name_of(model)
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else None
    base = base_model(model)
    if decoder is None or decoder is base:
        raise UnsupportedModel(f"{name}.get_decoder() gives no inner decoder; pass the model with its head")
    config = decoder.config
    if getattr(base.config, "is_encoder_decoder", False) or getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModel(f"{name} is an encoder-decoder; elision is for causal decoders")
    parameters = inspect.signature(decoder.forward).parameters
    for required in ("inputs_embeds", "attention_mask", "position_ids"):
        if required not in parameters:
            raise UnsupportedModel(f"the decoder {name_of(decoder)} of {name} takes no {required}")
    strange = set(getattr(config, "layer_types", None) or ()) - _ATTENTION_LAYERS
    strange |= {type(m).__name__ for m in decoder.modules() if isinstance(m, nn.Conv1d)}
    strange |= {f for f in _HYBRID_FIELDS if getattr(config, f, None)}
    if strange:
        raise UnsupportedModel(
            f"{name_of(decoder)} of {name} has layers that elision would corrupt, because they look at neighbouring "
            f"slots: {sorted(strange)}"
        )
    attentions = attention_modules(decoder)
    if not attentions or not all(m.is_causal for m in attentions) or not getattr(config, "is_causal", True):
        raise UnsupportedModel(f"{name_of(decoder)} of {name} is no causal decoder: its attention sees later tokens")
    if getattr(config, "output_router_logits", False):
        raise UnsupportedModel(
            f"{name_of(decoder)} of {name} computes a router loss over all positions; set output_router_logits=False"
        )
    return decoder


def attention_modules(decoder: nn.Module) -> list[nn.Module]:
    """The attention modules of a decoder: those that say whether they are causal."""
    return [m for m in decoder.modules() if isinstance(getattr(m, "is_causal", None), bool)]


def base_model(model: nn.Module) -> nn.Module:
    """The transformers model inside a PEFT one, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def name_of(module: nn.Module) -> str:
    """The class name of a module, without PEFT's wrapper."""
    return type(base_model(module)).__name__
