"""What the original releases say about themselves -> our configuration. Pure functions of dictionaries and names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoConfig, CLIPVisionConfig, SiglipVisionConfig

# The first two ids after the tokenizer's own: 151646 entries in Qwen2's, 32000 in Mistral's.
_QWEN2, _MISTRAL = ("qwen2", 151646), ("mistral", 32000)
ORIGINAL_TYPES = {"videollama2_qwen2": _QWEN2, "videollama2_mistral": _MISTRAL, "videollama2": _MISTRAL}
_NOT_TEXT = {
    "model_type",
    "architectures",
    "_name_or_path",
    "auto_map",
    "transformers_version",
    "num_frames",
    "image_aspect_ratio",
    "use_mm_proj",
    "tune_mm_mlp_adapter",
    "freeze_mm_mlp_adapter",
    "torch_dtype",
    "dtype",
}
_OURS = ("image_token_id", "video_token_id")
_TOWERS = {
    "siglip-so400m-patch14-384": lambda: SiglipVisionConfig(
        hidden_size=1152,
        intermediate_size=4304,
        num_hidden_layers=27,
        num_attention_heads=16,
        image_size=384,
        patch_size=14,
    ),
    "clip-vit-large-patch14-336": lambda: CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
        projection_dim=768,
    ),
}


def is_original(config: dict[str, Any]) -> bool:
    """Whether `config.json` is that of an original release. "videollama2" was also the name of its first version."""
    return config.get("model_type") in ORIGINAL_TYPES and "vision_config" not in config


def translate_config(config: dict[str, Any]) -> dict[str, Any]:
    """`config.json` of an original release -> the fields of `VideoLlama2Config`. Ours are returned as they are.

    The language model's fields lie at the top level there, next to `mm_vision_tower` (a name or a folder),
    `mm_projector_type`, `mm_hidden_size`, `mm_vision_select_layer` and `num_frames`.

    Raises:
        ValueError: a field is missing, or says what we do not have; it is named.
    """
    if not is_original(config):
        return config
    text_type, first_free_id = ORIGINAL_TYPES[config["model_type"]]
    for field in ("mm_vision_tower", "mm_projector_type"):
        if not config.get(field):
            raise ValueError(f"config.json of {config['model_type']}: found no {field}, expected one")
    feature = config.get("mm_vision_select_feature", "patch")
    if feature != "patch":
        raise ValueError(f"config.json: mm_vision_select_feature is {feature!r}, expected 'patch'")
    vision = vision_config_of(config["mm_vision_tower"])
    if config.get("mm_hidden_size", vision.hidden_size) != vision.hidden_size:
        raise ValueError(
            f"config.json: mm_hidden_size is {config['mm_hidden_size']}, but the vision tower "
            f"{config['mm_vision_tower']} has {vision.hidden_size}: it does not fit the connector"
        )
    text = {
        key: value
        for key, value in config.items()
        if key not in _NOT_TEXT and not key.startswith(("mm_", "tokenizer_")) and key not in _OURS
    }
    ours = {
        "model_type": "videollama2",
        "text_config": text | {"model_type": text_type},
        "vision_config": vision.to_dict(),
        "projector_type": config["mm_projector_type"],
        "num_frames": config.get("num_frames", 8),
        "vision_feature_layer": config.get("mm_vision_select_layer", -2),
        "tie_word_embeddings": config.get("tie_word_embeddings", False),
        "image_token_id": config.get("image_token_id", first_free_id),
        "video_token_id": config.get("video_token_id", first_free_id + 1),
    }
    dtype = config.get("dtype", config.get("torch_dtype"))
    extra = ("pad_token_id", "bos_token_id", "eos_token_id")
    return ours | {key: config[key] for key in extra if key in config} | ({"dtype": dtype} if dtype else {})


def vision_config_of(tower: str) -> Any:
    """Configuration of a vision tower named as `mm_vision_tower` does: one of the two that were used, or a folder.

    Raises:
        ValueError: neither a known name nor a folder with a SigLIP or CLIP model.
    """
    if (Path(tower) / "config.json").is_file():
        found = AutoConfig.from_pretrained(tower)
        return getattr(found, "vision_config", found)
    name = Path(tower).name
    if name not in _TOWERS:
        raise ValueError(
            f"mm_vision_tower is {tower!r}, expected {' or '.join(_TOWERS)}, or the folder of a SigLIP or CLIP model"
        )
    return _TOWERS[name]()
