"""Factory of the micro student: a stock `InternVLForConditionalGeneration` with a Qwen3 backbone, random weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import InternVLConfig, InternVLForConditionalGeneration, PreTrainedTokenizerFast, Qwen3Config
from transformers.models.internvl import InternVLVisionConfig

from repro.tokenizer import CONTEXT, END


@dataclass(frozen=True)
class StudentSize:
    """Everything that decides the shapes of a micro student."""

    vocab_size: int = 960
    hidden_size: int = 128
    num_layers: int = 4
    num_heads: int = 4
    num_kv_heads: int = 4
    head_dim: int = 32
    intermediate_size: int = 384
    vision_hidden_size: int = 96
    vision_layers: int = 3
    vision_heads: int = 3
    vision_intermediate_size: int = 384
    image_size: int = 64
    patch_size: int = 16
    downsample_ratio: float = 0.5
    max_positions: int = 512

    @property
    def image_seq_length(self) -> int:
        """Visual tokens of a frame."""
        return int((self.image_size // self.patch_size * self.downsample_ratio) ** 2)


def student_config(tokenizer: PreTrainedTokenizerFast, size: StudentSize | None = None) -> InternVLConfig:
    """The stock configuration that belongs to `size` and this tokenizer's ids."""
    size = size or StudentSize()
    if len(tokenizer) > size.vocab_size:
        raise ValueError(f"vocab_size is {size.vocab_size}, but the tokenizer holds {len(tokenizer)} entries")
    pad, end = tokenizer.pad_token_id, tokenizer.convert_tokens_to_ids(END)
    text = Qwen3Config(
        vocab_size=size.vocab_size,
        hidden_size=size.hidden_size,
        intermediate_size=size.intermediate_size,
        num_hidden_layers=size.num_layers,
        num_attention_heads=size.num_heads,
        num_key_value_heads=size.num_kv_heads,
        head_dim=size.head_dim,
        max_position_embeddings=size.max_positions,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        tie_word_embeddings=True,
        use_cache=False,
        pad_token_id=pad,
        eos_token_id=end,
    )
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
        text_config=text,
        vision_config=vision,
        image_token_id=tokenizer.convert_tokens_to_ids(CONTEXT),
        image_seq_length=size.image_seq_length,
        downsample_ratio=size.downsample_ratio,
        tie_word_embeddings=True,
        pad_token_id=pad,
        eos_token_id=end,
    )


def build_student(
    tokenizer: PreTrainedTokenizerFast, size: StudentSize | None = None, seed: int = 0
) -> InternVLForConditionalGeneration:
    """A student with random weights, fp32. The global random state stays as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = InternVLForConditionalGeneration(student_config(tokenizer, size))
        # The stock tower starts its position table at zero; it learns places sooner from about the size of its patches.
        torch.nn.init.normal_(model.model.vision_tower.embeddings.position_embeddings, std=0.3)
    return model


def count_parameters(model: torch.nn.Module) -> dict[str, int]:
    """Parameters in all and by part (tied weights once)."""
    parts = {"language": "language_model", "vision": "vision_tower", "connector": "multi_modal_projector"}
    named = list(model.named_parameters())
    counts = {part: sum(p.numel() for name, p in named if key in name) for part, key in parts.items()}
    return {"all": sum(p.numel() for _, p in named), **counts}
