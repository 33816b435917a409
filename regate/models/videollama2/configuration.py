"""Configuration of VideoLLaMA2: a vision tower, a spatio-temporal connector, a language model.

Original releases (`model_type` videollama2_qwen2 and videollama2_mistral) are translated while they are read, so that
`from_pretrained` takes their folders as they are.
"""

from __future__ import annotations

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from regate.models.videollama2.original import ORIGINAL_TYPES, translate_config

# How far Conv3d pads time, height and width; kernel and stride are 2 (students' release names).
PROJECTOR_PADDING = {"stc_connector_v35": 0, "stc_connector": 1}
VISION_TYPES = ("siglip_vision_model", "clip_vision_model")


def visual_tokens(projector_type: str, frames: int, height: int, width: int) -> int:
    """Tokens that the connector makes of `frames` grids of `height` x `width` patches.

    Raises:
        ValueError: an unknown connector, or a grid that its convolution does not fit into.
    """
    padding = projector_padding(projector_type)
    sizes = [(size + 2 * padding - 2) // 2 + 1 for size in (frames, height, width)]
    if min(frames, height, width, *sizes) < 1:
        raise ValueError(
            f"found {frames} frames of {height} x {width} patches, expected at least {1 if padding else 2} of each: "
            f"{projector_type} halves time, height and width"
        )
    return sizes[0] * sizes[1] * sizes[2]


def projector_padding(projector_type: str) -> int:
    """Padding of the connector's convolution; ValueError for a connector that is none of ours."""
    if projector_type not in PROJECTOR_PADDING:
        raise ValueError(f"projector_type is {projector_type!r}, expected one of {', '.join(PROJECTOR_PADDING)}")
    return PROJECTOR_PADDING[projector_type]


@strict
class VideoLlama2Config(PreTrainedConfig):
    """Configuration of `VideoLlama2ForConditionalGeneration`.

    Args:
        text_config: of the language model (qwen2, mistral).
        vision_config: of the vision tower (siglip_vision_model, clip_vision_model).
        projector_type: "stc_connector_v35" (VideoLLaMA2.1) or "stc_connector" (VideoLLaMA2).
        num_frames: frames of a video, and how often an image is repeated.
        vision_feature_layer: which hidden state of the tower the connector sees; -2 is the last layer but one.
        image_token_id, video_token_id: seats of visual features; they may lie beyond the embedding table.

    Raises:
        ValueError: a value that is none of these, named.
    """

    model_type = "videollama2"
    sub_configs_defaults: ClassVar = {
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="qwen2"),
        "vision_config": SubConfigSpec(config_class=AutoConfig, model_type="siglip_vision_model"),
    }

    text_config: Any = None
    vision_config: Any = None
    projector_type: str = "stc_connector_v35"
    num_frames: int = 16
    vision_feature_layer: int = -2
    image_token_id: int = 151646
    video_token_id: int = 151647
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        projector_padding(self.projector_type)
        vision = self.vision_config
        if vision.model_type not in VISION_TYPES:
            raise ValueError(
                f"vision_config.model_type is {vision.model_type!r}, expected one of {', '.join(VISION_TYPES)}"
            )
        states = vision.num_hidden_layers + 1
        if not -states <= self.vision_feature_layer < states:
            raise ValueError(
                f"vision_feature_layer is {self.vision_feature_layer}, but the tower has {states} hidden states"
            )
        if self.num_frames < 1:
            raise ValueError(f"num_frames is {self.num_frames}, expected at least 1")
        if self.image_token_id == self.video_token_id:
            raise ValueError(f"image_token_id and video_token_id are both {self.image_token_id}, expected two ids")

    @property
    def patches_per_side(self) -> int:
        """Patches along one side of a frame."""
        vision = self.vision_config
        return vision.image_size // vision.patch_size

    def visual_tokens(self, frames: int | None = None) -> int:
        """Visual tokens of a video of `frames` frames; of an image, and of a video of `num_frames`, where left out."""
        side = self.patches_per_side
        return visual_tokens(self.projector_type, self.num_frames if frames is None else frames, side, side)

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> tuple[dict, dict]:
        """As transformers', with the configuration of an original release translated."""
        config, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        return _ours(config), kwargs

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As transformers', with the configuration of an original release translated."""
        return super(VideoLlama2Config, VideoLlama2Config).from_dict(_ours(config_dict), **kwargs)


class OriginalQwen2Config(VideoLlama2Config):
    """Lets AutoConfig read VideoLLaMA2.1; what it returns is a `VideoLlama2Config`."""

    model_type = "videollama2_qwen2"


class OriginalMistralConfig(VideoLlama2Config):
    """Lets AutoConfig read VideoLLaMA2 (2.0); what it returns is a `VideoLlama2Config`."""

    model_type = "videollama2_mistral"


def _ours(config: dict[str, Any]) -> dict[str, Any]:
    return translate_config(config) if config.get("model_type") in ORIGINAL_TYPES else config
