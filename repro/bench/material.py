"""Models with random weights and rows of random tokens, the same for every contestant of a workload.

The multimodal class is transformers' own LLaVA around a Llama decoder; its vision tower is one narrow layer, so that
nearly all of a step is the decoder's and the head's. Rows are tokens already; their pictures are noise.
"""

from __future__ import annotations

import copy
from typing import Any

import datasets
import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor, nn
from transformers import (
    AutoModelForImageTextToText,
    AutoTokenizer,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from eval.machine import ROOT
from regate.scoring import IGNORE
from repro.bench.workloads import Decoder, Workload

TEACHER = "bench"
STUDENT = ROOT / "results" / "students" / "internvl"
_PATCH, _PAD, _END, _IMAGE, _FIRST_TEXT = 4, 0, 1, 2, 8


def build_model(workload: Workload, seed: int, device: str) -> tuple[nn.Module, PreTrainedTokenizerFast]:
    """The workload's model on ``device``, in its dtype, and a tokenizer that knows the markers."""
    dtype = getattr(torch, workload.dtype)
    if workload.decoder is None:
        model: Any = AutoModelForImageTextToText.from_pretrained(STUDENT, dtype=dtype)
        tokenizer = AutoTokenizer.from_pretrained(STUDENT)
    else:
        torch.manual_seed(seed)
        model = LlavaForConditionalGeneration(llava_config(workload.decoder, workload)).to(dtype)
        words = {"<pad>": _PAD, "<end>": _END, "<image>": _IMAGE, "word": 3}
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(WordLevel(words, unk_token="word")), pad_token="<pad>", eos_token="<end>"
        )
    model.to(device)
    return (with_lora(model) if workload.lora else model), tokenizer


def llava_config(decoder: Decoder, workload: Workload) -> LlavaConfig:
    """LLaVA whose square pictures give ``image_tokens`` visual tokens each."""
    side = round(workload.image_tokens**0.5)
    if side**2 != workload.image_tokens:
        raise ValueError(f"{workload.name}: image_tokens is {workload.image_tokens}, expected a square number")
    vision = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=1,
        image_size=side * _PATCH,
        patch_size=_PATCH,
    )
    text = LlamaConfig(
        hidden_size=decoder.hidden,
        num_hidden_layers=decoder.layers,
        num_attention_heads=decoder.heads,
        num_key_value_heads=decoder.kv_heads,
        intermediate_size=decoder.intermediate,
        vocab_size=decoder.vocabulary,
        max_position_embeddings=max(8192, workload.positions),
        tie_word_embeddings=True,
        use_cache=False,
        pad_token_id=_PAD,
        eos_token_id=_END,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=_IMAGE,
        image_seq_length=workload.image_tokens,
        vision_feature_layer=-1,
        tie_word_embeddings=True,
    )


def with_lora(model: nn.Module) -> nn.Module:
    """Rank 16 on all linear maps of the decoder, everything else frozen."""
    from peft import LoraConfig, get_peft_model

    pattern = r".*language_model\..*\.(q|k|v|o|gate|up|down)_proj"
    return get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules=pattern, lora_dropout=0.0))


def twin(model: nn.Module) -> nn.Module:
    """The same model once more, with the same parameters and buffers: what patches one leaves the other alone."""
    shared = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    return copy.deepcopy(model, shared)


def build_rows(workload: Workload, model: Any, tokenizer: Any, count: int, seed: int) -> datasets.Dataset:
    """``count`` rows of random text: pictures, prompt, answer with an end marker; reference losses are random, too.

    Columns: input_ids, labels int64 [L], sample_id, reference_losses float16 [targets], reference_id.
    """
    rng = np.random.default_rng(seed)
    image, end = model.config.image_token_id, tokenizer.eos_token_id
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder, image, *range(_FIRST_TEXT)}
    text = np.setdiff1d(np.arange(model.get_input_embeddings().weight.shape[0]), list(special))
    ids = rng.choice(text, (count, workload.positions))
    ids[:, : workload.visual] = image
    ids[:, -1] = end
    labels = ids.copy()
    labels[:, : -workload.answer] = IGNORE
    return datasets.Dataset.from_dict(
        {
            "input_ids": list(ids),
            "labels": list(labels),
            "sample_id": np.arange(count),
            "reference_losses": list(rng.gamma(2.0, 1.0, (count, workload.answer)).astype(np.float16)),
            "reference_id": [f"teacher={TEACHER}"] * count,
        }
    )


class Collator:
    """Rows -> a batch with pictures of noise.

    input_ids, attention_mask, labels: int64 [B, L]; pixel_values [B * images, 3, S, S] in the workload's dtype.
    """

    def __init__(self, workload: Workload, model: Any, seed: int):
        vision = model.config.vision_config
        side = vision.image_size if isinstance(vision.image_size, int) else vision.image_size[0]
        generator = torch.Generator().manual_seed(seed)
        self.picture = torch.randn(1, 3, side, side, generator=generator).to(getattr(torch, workload.dtype))
        self.images = workload.images

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        ids = torch.tensor([row["input_ids"] for row in rows])
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "labels": torch.tensor([row["labels"] for row in rows]),
            "pixel_values": self.picture.expand(len(rows) * self.images, -1, -1, -1),
        }
