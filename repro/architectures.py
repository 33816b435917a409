"""The paper's three students at their published size: real configurations, how each is tuned, what it looks at.

Everything here is shapes. Nothing downloads; a model on the meta device has no weights and takes a second to build.

Legend: T frames, K instruction tokens of the Q-Former, S visual tokens of a video, D width of the decoder.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText

from repro.tuning import tuned

INSTRUCTION_TOKENS = 32  # of the question, in the Q-Former's own tokenizer: an assumption, its share is small


def videollama2_config() -> Any:
    """VideoLLaMA2.1-7B-16F: SigLIP-so400m/14 at 384 px, connector v35, Qwen2-7B-Instruct.

    Sources: scripts/custom/finetune.sh of DAMO-NLP-SG/VideoLLaMA2; the config.json of google/siglip-so400m-patch14-384
    and of Qwen/Qwen2-7B-Instruct.
    """
    from transformers import Qwen2Config, SiglipVisionConfig

    from regate.models.videollama2.configuration import VideoLlama2Config

    text = Qwen2Config(
        vocab_size=152064,
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        max_position_embeddings=32768,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        tie_word_embeddings=False,
    )
    vision = SiglipVisionConfig(
        hidden_size=1152,
        intermediate_size=4304,
        num_hidden_layers=27,
        num_attention_heads=16,
        image_size=384,
        patch_size=14,
    )
    return VideoLlama2Config(
        text_config=text,
        vision_config=vision,
        projector_type="stc_connector_v35",
        num_frames=16,
        vision_feature_layer=-2,
        tie_word_embeddings=False,
    )


def videochat2_config() -> Any:
    """VideoChat2 stage 3: UMT-L/16 (23 of its 24 blocks), Q-Former (BERT-base, 96 queries), Mistral-7B-Instruct-v0.2.

    Sources: video_chat2/scripts/videochat_mistral/config_7b_stage3.py and configs/config_bert.json of
    OpenGVLab/Ask-Anything; the config.json of mistralai/Mistral-7B-Instruct-v0.2.
    """
    from transformers import InstructBlipQFormerConfig, MistralConfig

    from regate.models.videochat2.configuration import VideoChat2Config, VideoChat2VisionConfig

    text = MistralConfig(
        vocab_size=32000,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=32768,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        sliding_window=None,
        tie_word_embeddings=False,
    )
    vision = VideoChat2VisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=23,
        num_attention_heads=16,
        image_size=224,
        patch_size=16,
    )
    qformer = InstructBlipQFormerConfig(
        vocab_size=30523,
        hidden_size=768,
        num_hidden_layers=12,
        num_attention_heads=12,
        intermediate_size=3072,
        cross_attention_frequency=2,
        encoder_hidden_size=1024,
    )
    return VideoChat2Config(
        text_config=text,
        vision_config=vision,
        qformer_config=qformer,
        num_query_tokens=32,
        num_extra_query_tokens=64,
        num_frames=16,
    )


def internvl_config() -> Any:
    """InternVL3.5-8B in transformers' own class: InternViT-300M at 448 px, MLP, Qwen3-8B.

    Sources: the config.json of OpenGVLab/InternVL3_5-8B (llm_config, select_layer -1, downsample_ratio 0.5) and of
    OpenGVLab/InternViT-300M-448px-V2_5; the model card's sizes, 304.0M + 33.6M + 8.2B.
    """
    from transformers import InternVLConfig, Qwen3Config
    from transformers.models.internvl import InternVLVisionConfig

    text = Qwen3Config(
        vocab_size=151936,
        hidden_size=4096,
        intermediate_size=12288,
        num_hidden_layers=36,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=40960,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        tie_word_embeddings=False,
    )
    vision = InternVLVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        attention_bias=True,
        image_size=448,
        patch_size=14,
    )
    return InternVLConfig(
        text_config=text, vision_config=vision, image_token_id=151671, downsample_ratio=0.5, tie_word_embeddings=False
    )


def _videollama2_features(model: Any, pixels: Tensor) -> Tensor:
    return model.get_video_features(pixels).pooler_output


def _videochat2_features(model: Any, pixels: Tensor) -> Tensor:
    instruction = torch.zeros(1, INSTRUCTION_TOKENS, dtype=torch.long, device=pixels.device)  # [1, K]
    return model.get_video_features(pixels, instruction).pooler_output


def _internvl_features(model: Any, pixels: Tensor) -> Tensor:
    return model.get_image_features(pixel_values=pixels).pooler_output


@dataclass(frozen=True)
class Architecture:
    """One student: what it is made of, how the paper tunes it, and what FSDP2 makes its units of.

    tuning: what trains, as `repro.tuning.tuned` takes it.
    pixels: frames of one video -> shape of what the vision tower takes.
    features: the inner model and pixels of one video -> its visual tokens.
    units: class names of the layers that FSDP2 shards and checkpoints one by one. The language model as a whole must
    be none: its parent calls its embedding.
    dropout: whether layers draw random numbers in training.
    """

    title: str
    tuning: dict[str, Any]
    config: Callable[[], Any]
    pixels: Callable[[int], tuple[int, ...]]
    features: Callable[[Any, Tensor], Tensor]
    visual_tokens: Callable[[Any, int], int]
    units: tuple[str, ...]
    dropout: bool = False

    def look(self, model: nn.Module, frames: int) -> Tensor:
        """Visual tokens [S, D] of one video of meta tensors: vision tower and all that stands before the decoder."""
        inner = getattr(model, "get_base_model", lambda: model)()
        pixels = torch.empty(self.pixels(frames), device="meta", dtype=torch.bfloat16)
        return self.features(inner.model, pixels).flatten(0, 1)


ARCHITECTURES: dict[str, Architecture] = {
    "videollama2": Architecture(
        title="VideoLLaMA2.1-7B-16F",
        tuning={"freeze": ["vision_tower"]},
        config=videollama2_config,
        pixels=lambda frames: (1, frames, 3, 384, 384),
        features=_videollama2_features,
        visual_tokens=lambda config, frames: config.visual_tokens(frames),
        units=("Qwen2DecoderLayer", "SiglipEncoderLayer", "RegStageBlock"),
    ),
    "videochat2": Architecture(
        title="VideoChat2 stage 3 (Mistral-7B)",
        tuning={"lora": {"r": 16, "alpha": 32, "dropout": 0.1}},
        config=videochat2_config,
        pixels=lambda frames: (1, frames, 3, 224, 224),
        features=_videochat2_features,
        visual_tokens=lambda config, frames: config.num_visual_tokens,
        units=("MistralDecoderLayer", "VideoChat2VisionBlock", "InstructBlipQFormerLayer"),
        dropout=True,
    ),
    "internvl": Architecture(
        title="InternVL3.5-8B",
        tuning={},
        config=internvl_config,
        pixels=lambda frames: (frames, 3, 448, 448),
        features=_internvl_features,
        visual_tokens=lambda config, frames: config.image_seq_length * frames,
        units=("Qwen3DecoderLayer", "InternVLVisionLayer"),
    ),
}


def meta_model(architecture: Architecture) -> nn.Module:
    """The tuned model on the meta device, bf16: shapes without weights, in about a second."""
    import regate.models  # noqa: F401 - the Auto classes know our students

    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(architecture.config(), dtype=torch.bfloat16)
        return tuned(model, architecture.tuning, seed=0)


def part_of(name: str) -> str:
    """The part that a parameter of any of the students belongs to, by its name (PEFT's prefixes included)."""
    if ".original_module." in name:
        return "first copies (PEFT)"
    if ".lora_" in name:
        return "adapters"
    parts = {"vision_tower": "vision tower", "language_model": "decoder", "lm_head": "head"}
    return next((part for key, part in parts.items() if key in name), "connector")
