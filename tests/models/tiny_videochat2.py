"""A tiny random VideoChat2 and its processor, built offline.

    model, processor = tiny_videochat2()
    rows = videochat2_rows(processor, [6, 11, 4])
    loss = model(**tiny_collate(processor, rows)).loss

Everything is a function of its arguments. Dropout is off, so that two runs can be compared.
"""

from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from regate.models.videochat2 import (
    VideoChat2Config,
    VideoChat2ForConditionalGeneration,
    VideoChat2ImageProcessor,
    VideoChat2Processor,
    VideoChat2VideoProcessor,
    chat_template,
)
from tests.tiny import _bpe

SIZE, FRAMES = 32, 4
QUESTIONS = ["What happens in the video?", "How many objects are there?", "Is it red?"]
INSTRUCTIONS = ["Watch the video and answer.", "Look.", ""]
_WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[DEC]", "watch", "the", "video", "and", "answer", ".", "look", "it"]


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE with Mistral's special tokens and the two visual ones at the end."""
    tokenizer = Tokenizer.from_str(_bpe())
    names = ["<unk>", "<s>", "</s>", "<pad>", "<video>", "<image>"]
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    bos = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        padding_side="right",
        model_max_length=4096,
    )


def tiny_qformer_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer with BERT's special tokens."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(_WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [("[CLS]", 2), ("[SEP]", 3)]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        bos_token="[DEC]",
        truncation_side="left",
        model_max_length=512,
    )


def tiny_processor(**kwargs: Any) -> VideoChat2Processor:
    """For pictures of 32 x 32 pixels and 8 visual tokens."""
    size = {"height": SIZE, "width": SIZE}
    return VideoChat2Processor(
        VideoChat2ImageProcessor(size=size),
        tiny_tokenizer(),
        tiny_qformer_tokenizer(),
        VideoChat2VideoProcessor(size=size, num_frames=FRAMES),
        **{"num_image_tokens": 8, "chat_template": chat_template()} | kwargs,
    )


def tiny_config(processor: VideoChat2Processor, layers: int = 2, **kwargs: Any) -> VideoChat2Config:
    """Two vision blocks, a Q-Former of three layers, a decoder of two; visual tokens beyond the text vocabulary."""
    tokenizer = processor.tokenizer
    quiet = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return VideoChat2Config(
        vision_config={
            "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
            "image_size": SIZE, "patch_size": 8,
        },
        qformer_config={
            "vocab_size": len(processor.qformer_tokenizer), "hidden_size": 24, "num_hidden_layers": 3,
            "num_attention_heads": 2, "intermediate_size": 48, "max_position_embeddings": 64, **quiet,
        },
        text_config={
            "model_type": "mistral", "vocab_size": processor.video_token_id, "hidden_size": 32,
            "intermediate_size": 64, "num_hidden_layers": layers, "num_attention_heads": 4, "num_key_value_heads": 2,
            "max_position_embeddings": 4096, "sliding_window": None, "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id,
        },
        **{
            "num_query_tokens": 3, "num_extra_query_tokens": 5, "video_token_id": processor.video_token_id,
            "image_token_id": processor.image_token_id, "num_frames": FRAMES, "qformer_drop_path_rate": 0.0,
        } | kwargs,
    )  # fmt: skip


def tiny_videochat2(
    *, attn_implementation: str = "sdpa", seed: int = 0, layers: int = 2, **kwargs: Any
) -> tuple[VideoChat2ForConditionalGeneration, VideoChat2Processor]:
    """A random model, in train mode, and its processor; `kwargs` are the configuration's."""
    processor = tiny_processor()
    config = tiny_config(processor, layers, **kwargs)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = VideoChat2ForConditionalGeneration._from_config(config, attn_implementation=attn_implementation)
        # Wider than the default 0.02, so that attention and losses differ visibly between positions.
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0.0, 0.1)
                elif name.endswith("bias"):
                    parameter.normal_(0.0, 0.02)
    return model.train(), processor


def videochat2_rows(processor: VideoChat2Processor, lengths: list[int], seed: int = 0) -> list[dict[str, torch.Tensor]]:
    """Unpadded rows: a video, an image or nothing in turn, a question, an answer of so many targets."""
    rng = np.random.default_rng(seed)
    return [_row(processor, rng, index % 3, length) for index, length in enumerate(lengths)]


def _row(processor: VideoChat2Processor, rng: np.random.Generator, what: int, length: int) -> dict[str, torch.Tensor]:
    visual: list[dict] = [[{"type": "video"}], [{"type": "image"}], []][what]
    messages: list[dict] = [{"role": "user", "content": [*visual, {"type": "text", "text": QUESTIONS[what]}]}]
    if INSTRUCTIONS[what]:
        messages.insert(0, {"role": "system", "content": [{"type": "text", "text": INSTRUCTIONS[what]}]})
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    pixels = rng.integers(0, 256, size=(FRAMES, SIZE, SIZE, 3), dtype=np.uint8)
    extra: dict[str, Any] = {}
    if what == 0:
        extra = {"videos": [pixels], "do_sample_frames": False}
    elif what == 1:
        extra = {"images": [pixels[0]]}
    row = dict(processor(text=[text], return_tensors="pt", **extra))
    answer = torch.tensor([*rng.integers(0, 384, size=length - 1), processor.tokenizer.eos_token_id])
    prompt = row["input_ids"][0]
    row.pop("token_type_ids", None)
    row["input_ids"] = torch.cat([prompt, answer])
    row["labels"] = torch.cat([torch.full_like(prompt, -100), answer])
    row["attention_mask"] = torch.ones_like(row["input_ids"])
    return row
