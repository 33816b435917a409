"""Micro VideoLLaMA2: our class with a SigLIP tower, the v2.1 connector and a Qwen2 backbone.

The connector halves time and both sides of the patch grid: eight frames of 4x4 patches become 4x2x2 visual tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AddedToken, PreTrainedTokenizerFast, Qwen2Config, SiglipVisionConfig
from transformers.modeling_outputs import BaseModelOutputWithPooling

from regate.models.videollama2 import VideoLlama2Config, VideoLlama2ForConditionalGeneration, VideoLlama2Processor
from regate.models.videollama2.processing import build_processor
from repro.families.family import Family, StudentSize, world_bpe

PAD, EOS, START, END, IMAGE, VIDEO = "<|pad|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>"
FRAMES = 8

# Qwen2's template without its system turn; the line break stands between turns instead of after each.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if not loop.first %}{{ '\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for content in message['content'] %}"
    "{% if content['type'] in ('image', 'video') %}{{ '<' + content['type'] + '>\n' }}"
    "{% elif content['type'] == 'text' %}{{ content['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{{ '<|im_end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '\n<|im_start|>assistant\n' }}{% endif %}"
)


class VideoLlama2(Family):
    """SigLIP, a convolutional connector over space and time, Qwen2; two frames are the shortest look."""

    name = "videollama2"
    processor_class = "VideoLlama2Processor"
    end_of_text = EOS
    end_of_frames = VIDEO
    frames_per_look = 2

    def tokenizer(self, texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
        specials = [
            AddedToken(t, special=True, normalized=False, rstrip=t in (IMAGE, VIDEO))
            for t in (PAD, EOS, START, END, IMAGE, VIDEO)
        ]
        return PreTrainedTokenizerFast(
            tokenizer_object=world_bpe(texts, vocab_size, specials),
            pad_token=PAD,
            eos_token=END,
            padding_side="right",
            model_max_length=512,
            clean_up_tokenization_spaces=False,
        )

    def processor(self, tokenizer: PreTrainedTokenizerFast, size: StudentSize) -> VideoLlama2Processor:
        return build_processor(self.config(tokenizer, size), tokenizer, None, CHAT_TEMPLATE)

    def config(self, tokenizer: PreTrainedTokenizerFast, size: StudentSize) -> VideoLlama2Config:
        ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
        vision = SiglipVisionConfig(
            hidden_size=size.vision_hidden_size,
            num_hidden_layers=size.vision_layers,
            num_attention_heads=size.vision_heads,
            intermediate_size=size.vision_intermediate_size,
            image_size=size.image_size,
            patch_size=size.patch_size,
        )
        return VideoLlama2Config(
            text_config=Qwen2Config(**size.text_config(**ids)),
            vision_config=vision,
            projector_type="stc_connector_v35",
            num_frames=FRAMES,
            vision_feature_layer=-1,  # three layers are too few to leave one out
            image_token_id=tokenizer.convert_tokens_to_ids(IMAGE),
            video_token_id=tokenizer.convert_tokens_to_ids(VIDEO),
            tie_word_embeddings=True,
            **ids,
        )

    def model(self, config: VideoLlama2Config) -> VideoLlama2ForConditionalGeneration:
        return VideoLlama2ForConditionalGeneration(config)

    def eyes(self, model: Any) -> list[nn.Module]:
        return [model.model.vision_tower, model.model.multi_modal_projector]

    def last_linear(self, model: Any) -> nn.Linear:
        return model.model.multi_modal_projector.readout[-1]

    def placeholder_id(self, model: Any) -> int:
        return model.config.video_token_id

    def visual_inputs(self, processor: Any, pixels_NFCHW: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"pixel_values_videos": pixels_NFCHW}

    def features(self, model: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return model.get_video_features(inputs["pixel_values_videos"], return_dict=True).pooler_output

    def precomputed(self, features_NSD: torch.Tensor) -> dict[str, Any]:
        return {"mm_encoder_outputs": {"video": BaseModelOutputWithPooling(pooler_output=features_NSD)}}

    def seats(self, script_FQK: np.ndarray) -> np.ndarray:
        """A visual token stands for two frames: it gets the mean of their scripts."""
        frames, seats, symbols = script_FQK.shape
        pairs = script_FQK.astype(np.float32).reshape(frames // 2, 2, seats, symbols)
        return pairs.mean(1).reshape(-1, symbols)
