"""Micro InternVL3.5: the stock `InternVLForConditionalGeneration` with a Qwen3 backbone.

The stock video text is ``Frame1: <img><IMG_CONTEXT>...</img>\\n`` for every frame. Here ``Frame1:`` ... are added
tokens and the markers swallow the white space beside them, so a frame costs three markers and its visual tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from transformers import (
    AddedToken,
    InternVLConfig,
    InternVLForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen3Config,
)
from transformers.models.got_ocr2.image_processing_got_ocr2 import GotOcr2ImageProcessor
from transformers.models.internvl import InternVLVisionConfig
from transformers.models.internvl.processing_internvl import InternVLProcessor
from transformers.models.internvl.video_processing_internvl import InternVLVideoProcessor

from repro.families.chatml import chatml
from repro.families.family import Family, StudentSize, world_bpe

PAD, EOS, START, END = "<|pad|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CONTEXT, IMG, END_IMG, VIDEO = "<IMG_CONTEXT>", "<img>", "</img>", "<video>"
SPECIALS = (PAD, EOS, START, END, CONTEXT, IMG, END_IMG, VIDEO)
MAX_FRAME_MARKERS = 8


class InternVL(Family):
    """InternViT, pixel shuffle, Qwen3; every frame is seen on its own."""

    name = "internvl"
    processor_class = "InternVLProcessor"
    end_of_text = EOS
    end_of_frames = END_IMG

    def tokenizer(self, texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
        specials = [AddedToken(t, special=True, normalized=False, rstrip=t == END_IMG) for t in SPECIALS]
        markers = [
            AddedToken(f"Frame{i + 1}:", special=False, normalized=False, rstrip=True) for i in range(MAX_FRAME_MARKERS)
        ]
        return PreTrainedTokenizerFast(
            tokenizer_object=world_bpe(texts, vocab_size, specials, markers),
            pad_token=PAD,
            eos_token=END,
            padding_side="right",
            model_max_length=512,
            clean_up_tokenization_spaces=False,
            extra_special_tokens={
                "start_image_token": IMG,
                "end_image_token": AddedToken(END_IMG, special=True, normalized=False, rstrip=True),
                "context_image_token": CONTEXT,
                "video_token": VIDEO,
            },
        )

    def processor(self, tokenizer: PreTrainedTokenizerFast, size: StudentSize) -> InternVLProcessor:
        """One tile per image, frames as they come (no sampling)."""
        square = {"height": size.image_size, "width": size.image_size}
        return InternVLProcessor(
            image_processor=GotOcr2ImageProcessor(size=square, min_patches=1, max_patches=1),
            tokenizer=tokenizer,
            video_processor=InternVLVideoProcessor(size=square, do_sample_frames=False),
            image_seq_length=size.image_seq_length,
            chat_template=chatml(CONTEXT, VIDEO),
        )

    def config(self, tokenizer: PreTrainedTokenizerFast, size: StudentSize) -> InternVLConfig:
        ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
        vision = InternVLVisionConfig(
            hidden_size=size.vision_hidden_size,
            num_hidden_layers=size.vision_layers,
            num_attention_heads=size.vision_heads,
            intermediate_size=size.vision_intermediate_size,
            image_size=size.image_size,
            patch_size=size.patch_size,
            attention_bias=True,
            layer_scale_init_value=1.0,
        )
        return InternVLConfig(
            text_config=Qwen3Config(**size.text_config(**ids), head_dim=size.head_dim),
            vision_config=vision,
            image_token_id=tokenizer.convert_tokens_to_ids(CONTEXT),
            image_seq_length=size.image_seq_length,
            downsample_ratio=size.downsample_ratio,
            tie_word_embeddings=True,
            **ids,
        )

    def model(self, config: InternVLConfig) -> InternVLForConditionalGeneration:
        model = InternVLForConditionalGeneration(config)
        # The stock tower starts its position table at zero; it learns places sooner from about the size of its patches.
        nn.init.normal_(model.model.vision_tower.embeddings.position_embeddings, std=0.3)
        return model

    def eyes(self, model: Any) -> list[nn.Module]:
        return [model.model.vision_tower, model.model.multi_modal_projector]

    def last_linear(self, model: Any) -> nn.Linear:
        return model.model.multi_modal_projector.linear_2

    def placeholder_id(self, model: Any) -> int:
        return model.config.image_token_id

    def visual_inputs(self, processor: Any, pixels_NFCHW: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"pixel_values": pixels_NFCHW.flatten(0, 1)}

    def features(self, model: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return model.get_image_features(inputs["pixel_values"], return_dict=True).pooler_output
