"""Micro VideoChat2: our class with a UMT tower over space and time, a Q-Former and a Mistral backbone.

The Q-Former has a query for each quarter of each frame, so that its queries can learn to show what the others' do.
"""

from __future__ import annotations

import math
import string
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import (
    AddedToken,
    BertTokenizerFast,
    InstructBlipQFormerConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling

from regate.models.videochat2 import (
    VideoChat2Config,
    VideoChat2ForConditionalGeneration,
    VideoChat2ImageProcessor,
    VideoChat2Processor,
    VideoChat2VideoProcessor,
    VideoChat2VisionConfig,
)
from repro.families.family import Family, StudentSize, world_bpe

UNK, BOS, EOS = "<unk>", "<s>", "</s>"
# The published layout without the spaces beside its markers, which the micro tokenizer would swallow: the same tokens.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% set text = message['content'] if message['content'] is string else "
    "message['content'] | selectattr('type', 'equalto', 'text') | map(attribute='text') | join(' ') %}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ text + eos_token }}{% endgeneration %}"
    "{% else %}{% if message['content'] is not string %}{% for content in message['content'] %}"
    "{% if content['type'] in ('image', 'video') %}{{ '[INST]<' + content['type'] + '>[/INST]' }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{% if text %}{{ '[INST]' + text + '[/INST]' }}{% endif %}{% endif %}{% endfor %}"
)
MARKERS = ("[INST]", "[/INST]", "<Video>", "</Video>", "<Image>", "</Image>", "<video>", "<image>")
FRAMES = 8
POSITION_STD = 2.0  # above what the first layer makes of a patch: a query finds its seat whatever is shown there


@dataclass(frozen=True)
class VideoChat2Size(StudentSize):
    """With the shapes of the Q-Former; `downsample_ratio` says into how many seats a frame is told apart."""

    qformer_hidden_size: int = 96
    qformer_layers: int = 2
    qformer_heads: int = 3
    qformer_intermediate_size: int = 192

    @property
    def queries(self) -> int:
        return FRAMES * self.image_seq_length


class VideoChat2(Family):
    """UMT, Q-Former, Mistral; a look is a whole clip."""

    name = "videochat2"
    processor_class = "VideoChat2Processor"
    end_of_text = EOS
    end_of_frames = "</Video>"
    frames_per_look = FRAMES
    size = VideoChat2Size()

    def tokenizer(self, texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
        """Its markers swallow the spaces beside them, as the published template writes them."""
        specials = [AddedToken(t, special=True, normalized=False) for t in (UNK, BOS)]
        specials.append(AddedToken(EOS, special=True, normalized=False, lstrip=True))
        specials += [AddedToken(t, special=True, normalized=False, lstrip=True, rstrip=True) for t in MARKERS]
        return PreTrainedTokenizerFast(
            tokenizer_object=world_bpe(texts, vocab_size, specials),
            unk_token=UNK,
            pad_token=UNK,
            bos_token=BOS,
            eos_token=EOS,
            padding_side="right",
            model_max_length=512,
            clean_up_tokenization_spaces=False,
        )

    def processor(self, tokenizer: PreTrainedTokenizerFast, size: StudentSize) -> VideoChat2Processor:
        """Conversations have no instruction: the Q-Former reads an empty one."""
        square = {"height": size.image_size, "width": size.image_size}
        return VideoChat2Processor(
            VideoChat2ImageProcessor(size=square),
            tokenizer,
            qformer_tokenizer(),
            VideoChat2VideoProcessor(size=square, num_frames=FRAMES),
            num_image_tokens=FRAMES * size.image_seq_length,
            chat_template=CHAT_TEMPLATE,
        )

    def config(self, tokenizer: PreTrainedTokenizerFast, size: StudentSize) -> VideoChat2Config:
        assert isinstance(size, VideoChat2Size), "the size of another family"
        ids = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
        vision = VideoChat2VisionConfig(
            hidden_size=size.vision_hidden_size,
            num_hidden_layers=size.vision_layers,
            num_attention_heads=size.vision_heads,
            intermediate_size=size.vision_intermediate_size,
            image_size=size.image_size,
            patch_size=size.patch_size,
            position_frames=FRAMES,
            use_learnable_pos_emb=True,
        )
        qformer = InstructBlipQFormerConfig(
            vocab_size=len(qformer_tokenizer()),
            hidden_size=size.qformer_hidden_size,
            num_hidden_layers=size.qformer_layers,
            num_attention_heads=size.qformer_heads,
            intermediate_size=size.qformer_intermediate_size,
            max_position_embeddings=64,
            cross_attention_frequency=1,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        text = size.text_config(**ids) | {"tie_word_embeddings": False}  # the head gets an adapter of its own
        return VideoChat2Config(
            text_config=MistralConfig(**text, head_dim=size.head_dim, sliding_window=None),
            vision_config=vision,
            qformer_config=qformer,
            num_query_tokens=size.queries // 2,
            num_extra_query_tokens=size.queries - size.queries // 2,
            video_token_id=tokenizer.convert_tokens_to_ids("<video>"),
            image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
            num_frames=FRAMES,
            qformer_drop_path_rate=0.0,
            constant_bos=False,  # this backbone learnt its own
            **ids,
        )

    def model(self, config: VideoChat2Config) -> VideoChat2ForConditionalGeneration:
        model = VideoChat2ForConditionalGeneration(config)
        for module in model.model.vision_tower.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
        point_queries(model)
        return model

    def eyes(self, model: Any) -> list[nn.Module]:
        inner = model.model
        return [inner.vision_tower, inner.queries, inner.qformer, inner.multi_modal_projector]

    def last_linear(self, model: Any) -> nn.Linear:
        return model.model.multi_modal_projector

    def placeholder_id(self, model: Any) -> int:
        return model.config.video_token_id

    def visual_inputs(self, processor: Any, pixels_NFCHW: torch.Tensor) -> dict[str, torch.Tensor]:
        empty = processor.qformer_tokenizer("", return_tensors="pt")
        instruction = {f"qformer_{name}": empty[name] for name in ("input_ids", "attention_mask")}
        repeated = {name: value.expand(len(pixels_NFCHW), -1) for name, value in instruction.items()}
        return {"pixel_values_videos": pixels_NFCHW, **repeated}

    def features(self, model: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return model.get_video_features(**inputs, return_dict=True).pooler_output

    def precomputed(self, features_NSD: torch.Tensor) -> dict[str, Any]:
        return {"mm_encoder_outputs": {"video": BaseModelOutputWithPooling(pooler_output=features_NSD)}}


@torch.no_grad()
def point_queries(model: VideoChat2ForConditionalGeneration) -> None:
    """Each query starts at one seat: from its tokens' positions, with a cross-attention that likes what is like it.

    The published ones start from a pre-trained Q-Former. From nothing every query sees the mean of the clip, and stays
    with it for thousands of steps.
    """
    vision, queries, positions = model.config.vision_config, model.model.queries, model.model.vision_tower.pos_embed
    dim, grid = vision.hidden_size, vision.image_size // vision.patch_size
    nn.init.normal_(positions, std=POSITION_STD)
    seats = math.isqrt(model.config.num_visual_tokens // FRAMES)  # along each side of a frame
    grids = positions.reshape(FRAMES, seats, grid // seats, seats, grid // seats, dim)
    seat_QD = grids.mean((2, 4)).reshape(-1, dim)
    first, extra = queries.query_tokens, queries.extra_query_tokens
    if first.shape[-1] == dim:
        first.copy_(seat_QD[: first.shape[1]])
        extra.copy_(seat_QD[first.shape[1] :])
    else:
        nn.init.normal_(first)
        nn.init.normal_(extra)
    for layer in model.model.qformer.encoder.layer:
        attention = layer.crossattention.attention
        nn.init.xavier_uniform_(attention.value.weight)
        nn.init.xavier_uniform_(attention.query.weight, gain=2.0)
        if attention.key.weight.shape == attention.query.weight.shape:
            attention.key.weight.copy_(attention.query.weight)


def qformer_tokenizer() -> BertTokenizerFast:
    """A tokenizer of BERT's class that spells: enough for an instruction, small enough for a micro Q-Former."""
    letters = [*string.ascii_lowercase, *string.digits, *".,:;!?'-"]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", *letters, *(f"##{letter}" for letter in letters)]
    return BertTokenizerFast(vocab={word: i for i, word in enumerate(words)}, do_lower_case=True)
