"""Tiny random VideoLLaMA2 models of both releases, built offline: about 200k parameters each.

model, processor = tiny_videollama2("v2.1")
batch = tiny_rows_batch(processor, lengths=[5, 9, 3])
loss = model(**batch).loss
"""

from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from regate.models.videollama2 import VideoLlama2Config, VideoLlama2ForConditionalGeneration, build_processor, register
from regate.models.videollama2.processing import add_markers
from tests.tiny import tiny_collate, tiny_rows, tiny_tokenizer

register()

RELEASES = ("v2.1", "v2.0")  # SigLIP + stc_connector_v35 + Qwen2; CLIP + stc_connector + Mistral
FRAMES = 4
ROW_KIND = "llava_onevision"  # whose way of giving images `tests.tiny` is to use


def tiny_text_tokenizer(release: str) -> PreTrainedTokenizerFast:
    """The tokenizer of the language model alone: it knows no `<image>` and no `<video>`."""
    tokenizer = tiny_tokenizer("qwen2_vl")
    if release == "v2.0":
        tokenizer.add_special_tokens({"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"})
        tokenizer.pad_token = None
    return tokenizer


def tiny_text_config(release: str, tokenizer: Any) -> dict[str, Any]:
    """Of the language model. v2.0's table holds the tokenizer as it was: its placeholders lie beyond."""
    rows = len(tokenizer) if release == "v2.0" else len(tokenizer) + 10
    config = {
        "model_type": "mistral" if release == "v2.0" else "qwen2",
        "vocab_size": rows,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": False,
    }
    return config | ({"sliding_window": None, "head_dim": 8} if release == "v2.0" else {})


def tiny_vision_config(release: str) -> dict[str, Any]:
    """Three layers, so that the last but one is neither the first nor the last."""
    return {
        "model_type": "clip_vision_model" if release == "v2.0" else "siglip_vision_model",
        "hidden_size": 24,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "image_size": 32,
        "patch_size": 8,
    }


def tiny_config(release: str, **changes: Any) -> VideoLlama2Config:
    """Configuration of one release at hidden size 32: 4 x 4 patches, 4 frames; 8 visual tokens (v2.1) or 27 (v2.0)."""
    tokenizer = tiny_text_tokenizer(release)
    fields = {
        "text_config": tiny_text_config(release, tokenizer),
        "vision_config": tiny_vision_config(release),
        "projector_type": "stc_connector" if release == "v2.0" else "stc_connector_v35",
        "num_frames": FRAMES,
        "image_token_id": len(tokenizer),
        "video_token_id": len(tokenizer) + 1,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return VideoLlama2Config(**fields | changes)


def tiny_processor(release: str, **kwargs: Any) -> Any:
    """The processor of one release, for frames of 32 x 32 pixels."""
    tokenizer = tiny_text_tokenizer(release)
    add_markers(tokenizer)
    return build_processor(tiny_config(release), tokenizer, **kwargs)


def tiny_videollama2(
    release: str = "v2.1", *, attn_implementation: str = "sdpa", seed: int = 0, **changes: Any
) -> tuple[VideoLlama2ForConditionalGeneration, Any]:
    """A random model in train mode, and its processor. The caller's random state is left as it was."""
    config = tiny_config(release, **changes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = VideoLlama2ForConditionalGeneration._from_config(config, attn_implementation=attn_implementation)
        widen(model)
    return model.train(), tiny_processor(release)


def widen(model: torch.nn.Module) -> None:
    """Wider weights than the classes' own, so that outputs differ visibly between positions (in place)."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.1)
            elif name.endswith("bias"):
                parameter.normal_(0.0, 0.02)


def tiny_rows_batch(
    processor: Any, lengths: list[int], padding_side: str = "right", seed: int = 0, num_frames: int = FRAMES
) -> dict[str, torch.Tensor]:
    """A batch of a video, an image and a text row in turn, as `tests.tiny.tiny_batch` makes them."""
    rows = tiny_rows(ROW_KIND, processor, lengths, seed, num_frames)
    return tiny_collate(processor, rows, padding_side)
