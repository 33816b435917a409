"""The original releases of VideoLLaMA2 -> our model.

A chat release is a whole folder of transformers: `VideoLlama2ForConditionalGeneration.from_pretrained` takes it as it
is, by the key map below. A "Base" release holds the connector only: `load_base` puts it between a language model and a
vision tower. Never run on the published files themselves, which this repository does not hold; tests write small
checkpoints in their layout.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, CLIPVisionModel, SiglipVisionModel
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightRenaming

from regate.models.videollama2.configuration import VideoLlama2Config
from regate.models.videollama2.modeling import VideoLlama2ForConditionalGeneration, refuse_incomplete
from regate.models.videollama2.original import is_original, translate_config

PROJECTOR_FILE = "mm_projector.bin"
_TOWERS = {"siglip_vision_model": SiglipVisionModel, "clip_vision_model": CLIPVisionModel}


def register_key_map() -> None:
    """Tells transformers how keys of the original checkpoints are called here. More than once does no harm."""
    key_map = [
        WeightRenaming(r"^model\.vision_tower\.vision_tower\.vision_model\.", "model.vision_tower."),
        WeightRenaming(r"^model\.mm_projector\.", "model.multi_modal_projector."),
        WeightRenaming(r"^model\.embed_tokens\.", "model.language_model.embed_tokens."),
        WeightRenaming(r"^model\.layers\.", "model.language_model.layers."),
        WeightRenaming(r"^model\.norm\.", "model.language_model.norm."),
    ]
    register_checkpoint_conversion_mapping(VideoLlama2Config.model_type, key_map, overwrite=True)


def load_base(
    projector_folder: str | Path,
    language_model: str,
    vision_tower: str,
    dtype: Any = None,
    attn_implementation: str | None = None,
) -> VideoLlama2ForConditionalGeneration:
    """The connector of a "Base" release on top of a language model and a vision tower.

    Args:
        projector_folder: with `config.json` and `mm_projector.bin` of the release.
        language_model: folder of Qwen2-7B-Instruct (v2.1) or Mistral-7B-Instruct-v0.2 (v2.0).
        vision_tower: folder of siglip-so400m-patch14-384 (v2.1) or clip-vit-large-patch14-336 (v2.0); whole SigLIP and
            CLIP checkpoints will do.
        dtype: of the weights; left out, float32.
        attn_implementation: "sdpa", "eager", "flash_attention_2".

    Returns:
        The model, in evaluation mode, on the CPU.

    Raises:
        FileNotFoundError: a file of the release is missing.
        ValueError: parts that do not fit each other, a connector that we do not have, keys that are missing,
            unexpected or of another shape; all named.
    """
    folder = Path(projector_folder)
    config = _base_config(folder, language_model, vision_tower)
    dtype = torch.float32 if dtype is None else dtype
    kwargs: dict[str, Any] = {"dtype": dtype, "output_loading_info": True}
    if attn_implementation is not None:
        kwargs["attn_implementation"] = attn_implementation
    language, info = AutoModelForCausalLM.from_pretrained(language_model, **kwargs)
    refuse_incomplete(language_model, info)
    vision, info = _TOWERS[config.vision_config.model_type].from_pretrained(vision_tower, **kwargs)
    refuse_incomplete(vision_tower, info | {"unexpected_keys": set()})  # the text half of SigLIP or CLIP
    connector = read_projector(folder / PROJECTOR_FILE)
    with torch.device("meta"):
        model = VideoLlama2ForConditionalGeneration(config)
    load_projector(model.model.multi_modal_projector, connector, str(folder / PROJECTOR_FILE))
    model.model.multi_modal_projector.to(language.dtype)
    model.model.language_model, model.lm_head = language.model, language.lm_head
    model.model.vision_tower = vision
    model.generation_config = language.generation_config
    model.config.dtype = language.dtype
    if attn_implementation is not None:
        model.set_attn_implementation(attn_implementation)
    return model.eval()


def read_projector(path: Path) -> dict[str, Tensor]:
    """`mm_projector.bin` -> connector weights without the prefix that names the module.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that holds no connector.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file, expected the connector of a Base release")
    weights = torch.load(path, map_location="cpu", weights_only=True)
    marker = "mm_projector."
    found = {key.split(marker, 1)[1]: value for key, value in weights.items() if marker in key}
    if not found:
        raise ValueError(f"{path}: found no key with {marker} among {len(weights)}, expected those of a connector")
    return found


def load_projector(connector: nn.Module, weights: dict[str, Tensor], origin: str) -> None:
    """Puts connector weights in place (on whatever device they are); ValueError, naming keys, where they do not fit."""
    own = connector.state_dict()
    shapes = {key: (value.shape, own[key].shape) for key, value in weights.items() if key in own}
    refuse_incomplete(
        origin,
        {
            "missing_keys": own.keys() - weights.keys(),
            "unexpected_keys": weights.keys() - own.keys(),
            "mismatched_keys": {(key, *pair) for key, pair in shapes.items() if pair[0] != pair[1]},
        },
    )
    connector.load_state_dict(weights, assign=True)


def _base_config(folder: Path, language_model: str, vision_tower: str) -> VideoLlama2Config:
    """Configuration of a Base release with the parts that are given; ValueError where they do not fit."""
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file, expected the configuration of a Base release")
    release = json.loads(path.read_text())
    if not is_original(release):
        raise ValueError(
            f"{path}: model_type is {release.get('model_type')!r}, expected videollama2_qwen2 or videollama2_mistral"
        )
    config = VideoLlama2Config.from_dict(translate_config(release | {"mm_vision_tower": vision_tower}))
    theirs, text = config.text_config, AutoConfig.from_pretrained(language_model)
    for field in ("model_type", "hidden_size"):
        if getattr(text, field) != getattr(theirs, field):
            raise ValueError(
                f"{language_model}: {field} is {getattr(text, field)}, but the connector in {folder} was made for "
                f"{getattr(theirs, field)}"
            )
    config.text_config = text
    config.tie_word_embeddings = text.tie_word_embeddings
    return config


register_key_map()
