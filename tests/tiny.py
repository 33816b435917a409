"""Tiny random multimodal models and their processors, built offline: four stock classes, about 100k parameters each.

    model, processor = tiny_model("internvl")
    batch = tiny_batch("internvl", processor, lengths=[5, 9], padding_side="right", seed=0)
    loss = model(**batch).loss

Everything is a function of its arguments: the same seed gives the same weights, tokens and pixels.
"""

import functools
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers.models.smolvlm import processing_smolvlm

KINDS = ("internvl", "llava_onevision", "smolvlm", "qwen2_vl")

if processing_smolvlm.num2words is None:  # SmolVLM's processor asks for a package that only spells numbers
    processing_smolvlm.num2words = str

_SENTENCES = [
    "The red ball moves to the left of the blue box.",
    "What happens in the video? Describe it in one sentence.",
    "A small green cube falls down behind the yellow cylinder.",
    "How many objects are there in the image? There are three objects.",
    "user assistant system You are a helpful assistant. User: Assistant: System:",
    "You are provided the following series of frames from a video. Frame from 00:01: Frame1: Frame2:",
    "Yes, it is. No, it is not. It moves up and then to the right.",
]

_CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% for content in message['content'] %}"
    "{% if content['type'] == 'image' %}{{ 'IMAGE' }}{% elif content['type'] == 'video' %}{{ 'VIDEO' }}"
    "{% else %}{{ content['text'] }}{% endif %}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# As in the published checkpoint: visuals first, answers inside {% generation %}, the end of turn outside of it.
_LLAVA_ONEVISION = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + ' ' }}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'video') %}{{ '<video>' }}{% endfor %}"
    "{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ '\n' + content['text'] }}"
    "{% endfor %}{% else %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ '\n' + content['text'] }}{% endgeneration %}{% endfor %}{% endif %}"
    "{{ '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_SMOLVLM = processing_smolvlm.DEFAULT_CHAT_TEMPLATE

_TEMPLATES = {
    "internvl": _CHATML.replace("IMAGE", "<IMG_CONTEXT>\n").replace("VIDEO", "<video>\n"),
    "llava_onevision": _LLAVA_ONEVISION,
    "smolvlm": _SMOLVLM,
    "qwen2_vl": _CHATML.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>").replace(
        "VIDEO", "<|vision_start|><|video_pad|><|vision_end|>"
    ),
}
_ROLES = {  # names that processors read from the tokenizer -> tokens
    "internvl": {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    },
    "llava_onevision": {"image_token": "<image>", "video_token": "<video>"},
    "smolvlm": {
        "fake_image_token": "<fake_token_around_image>",
        "image_token": "<image>",
        "end_of_utterance_token": "<end_of_utterance>",
        "global_image_token": "<global-img>",
        "video_token": "<video>",
    },
    "qwen2_vl": {
        "image_token": "<|image_pad|>",
        "video_token": "<|video_pad|>",
        "vision_start_token": "<|vision_start|>",
        "vision_end_token": "<|vision_end|>",
    },
}
END_OF_TURN = dict.fromkeys(KINDS, "<|im_end|>") | {"smolvlm": "<end_of_utterance>"}


@functools.cache
def _bpe() -> str:
    """A byte-level BPE of 384 entries, as JSON."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=384, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    tokenizer.train_from_iterator(_SENTENCES, trainer)
    return tokenizer.to_str()


def tiny_tokenizer(kind: str) -> transformers.PreTrainedTokenizerFast:
    """The tokenizer of one kind: the same byte-level BPE, with the special tokens of that kind."""
    _check(kind)
    tokenizer = Tokenizer.from_str(_bpe())
    names = ["<|endoftext|>", "<|im_start|>", END_OF_TURN[kind], *_ROLES[kind].values()]
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in dict.fromkeys(names)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TURN[kind],
        pad_token="<|endoftext|>",
        extra_special_tokens=_ROLES[kind],
        padding_side="right",
        model_max_length=4096,
    )


def tiny_processor(kind: str) -> Any:
    """The stock processor class of one kind, for pictures of 32 x 32 pixels (Qwen2-VL: up to 48 x 48)."""
    tokenizer, template = tiny_tokenizer(kind), _TEMPLATES[kind]
    t, square = transformers, {"height": 32, "width": 32}
    if kind == "internvl":
        return t.InternVLProcessor(
            image_processor=t.GotOcr2ImageProcessor(size=square, crop_to_patches=False),
            tokenizer=tokenizer,
            video_processor=t.InternVLVideoProcessor(size=square),
            image_seq_length=4,
            chat_template=template,
        )
    if kind == "llava_onevision":
        grid = [[32, 32], [32, 64], [64, 32]]
        return t.LlavaOnevisionProcessor(
            image_processor=t.LlavaOnevisionImageProcessor(size=square, image_grid_pinpoints=grid),
            tokenizer=tokenizer,
            video_processor=t.LlavaOnevisionVideoProcessor(size=square),
            num_image_tokens=16,
            vision_feature_select_strategy="full",
            chat_template=template,
        )
    if kind == "smolvlm":
        edge = {"longest_edge": 32}
        return t.SmolVLMProcessor(
            image_processor=t.SmolVLMImageProcessor(size=edge, max_image_size=edge, do_image_splitting=False),
            tokenizer=tokenizer,
            video_processor=t.SmolVLMVideoProcessor(size=edge, max_image_size=edge),
            image_seq_len=4,
            chat_template=template,
        )
    pixels = {"shortest_edge": 32 * 32, "longest_edge": 48 * 48}
    return t.Qwen2VLProcessor(
        image_processor=t.Qwen2VLImageProcessor(size=pixels, patch_size=8, temporal_patch_size=2, merge_size=2),
        tokenizer=tokenizer,
        video_processor=t.Qwen2VLVideoProcessor(
            size=pixels, patch_size=8, temporal_patch_size=2, merge_size=2, cap_pixels_per_frame=False
        ),
        chat_template=template,
    )


def tiny_model(
    kind: str, *, attn_implementation: str = "sdpa", seed: int = 0, dtype: torch.dtype = torch.float32, layers: int = 2
) -> tuple[Any, Any]:
    """A random model of one kind and its processor.

    Args:
        kind: one of `KINDS`.
        attn_implementation: "sdpa" or "eager".
        seed: seed of the weights; the caller's random state is left as it was.
        dtype: of the weights.
        layers: of the decoder.

    Returns:
        model (in train mode, on the CPU), processor.
    """
    processor = tiny_processor(kind)
    config = _config(kind, processor, layers)
    cls = {
        "internvl": transformers.InternVLForConditionalGeneration,
        "llava_onevision": transformers.LlavaOnevisionForConditionalGeneration,
        "smolvlm": transformers.SmolVLMForConditionalGeneration,
        "qwen2_vl": transformers.Qwen2VLForConditionalGeneration,
    }[kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = cls._from_config(config, attn_implementation=attn_implementation, dtype=dtype)
        # Wider than the classes' own 0.02, so that attention and losses differ visibly between positions.
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0.0, 0.1)
                elif name.endswith("bias"):
                    parameter.normal_(0.0, 0.02)
    return model.train(), processor


def tiny_batch(
    kind: str,
    processor: Any,
    lengths: list[int] = (6, 11),
    padding_side: str = "right",
    seed: int = 0,
    num_frames: int = 2,
) -> dict[str, torch.Tensor]:
    """One batch for `model(**batch)`: a video, an image or nothing, a short question, an answer of a given length.

    Rows 0, 3, ... hold a video (`num_frames` frames), rows 1, 4, ... an image, rows 2, 5, ... text only.

    Args:
        kind: one of `KINDS`.
        processor: from `tiny_model(kind)`.
        lengths: number of targets per row, the end of turn included (at least 1 each).
        padding_side: "right" or "left".
        seed: of pixels and answers.
        num_frames: frames of a video.

    Returns:
        input_ids, attention_mask, labels: int64 [B, L] (-100 on all but targets), `mm_token_type_ids` where the
        processor makes them, and the visual inputs of the kind.
    """
    rows = tiny_rows(kind, processor, lengths, seed, num_frames)
    return tiny_collate(processor, rows, padding_side)


def tiny_rows(
    kind: str, processor: Any, lengths: list[int], seed: int = 0, num_frames: int = 2
) -> list[dict[str, torch.Tensor]]:
    """The rows of `tiny_batch`, unpadded: text inputs [L], visual inputs as the processor gives them for one sample."""
    _check(kind)
    rng = np.random.default_rng(seed)
    return [_row(kind, processor, rng, index % 3, length, num_frames) for index, length in enumerate(lengths)]


def tiny_collate(
    processor: Any, rows: list[dict[str, torch.Tensor]], padding_side: str = "right"
) -> dict[str, torch.Tensor]:
    """Rows of `tiny_rows` -> a batch for `model(**batch)`."""
    width = max(row["input_ids"].shape[0] for row in rows)
    batch: dict[str, torch.Tensor] = {}
    fill = {"input_ids": processor.tokenizer.pad_token_id, "attention_mask": 0, "mm_token_type_ids": 0, "labels": -100}
    for name, value in fill.items():
        if name in rows[0]:
            padded = [_pad(row[name], (width,), value, padding_side) for row in rows]
            batch[name] = torch.stack(padded)
    for name in sorted({n for row in rows for n in row} - set(fill)):
        parts = [row[name] for row in rows if name in row]
        shape = tuple(max(sizes) for sizes in zip(*(part.shape[1:] for part in parts), strict=True))
        batch[name] = torch.cat([_pad(part, (part.shape[0], *shape), 0, "right") for part in parts])
    return batch


def _row(
    kind: str, processor: Any, rng: np.random.Generator, what: int, length: int, num_frames: int
) -> dict[str, torch.Tensor]:
    """One unpadded row: text inputs [L], visual inputs as the processor gives them for one sample."""
    tokenizer = processor.tokenizer
    question = ["What happens in the video?", "How many objects are there?", "Is it red?"][what]
    visual = [[{"type": "video"}], [{"type": "image"}], []][what]
    content = [*visual, {"type": "text", "text": question}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    pixels = rng.integers(0, 256, size=(num_frames, 32, 32, 3), dtype=np.uint8)
    extra = {}
    if what == 0:
        extra = {"videos": [pixels], "do_sample_frames": False}
        extra["video_metadata"] = [
            {"total_num_frames": num_frames, "fps": 1.0, "duration": 9.0, "frames_indices": list(range(num_frames))}
        ]
    elif what == 1:
        extra = {"images": [[pixels[0]]]} if kind == "smolvlm" else {"images": [pixels[0]]}
    inputs = dict(processor(text=[text], return_tensors="pt", **extra))
    answer = torch.tensor([*rng.integers(0, 384, size=length - 1), tokenizer.eos_token_id], dtype=torch.int64)
    row = {name: value for name, value in inputs.items() if isinstance(value, torch.Tensor)}
    prompt = row["input_ids"][0]
    row["input_ids"] = torch.cat([prompt, answer])
    row["labels"] = torch.cat([torch.full_like(prompt, -100), answer])
    row["attention_mask"] = torch.ones_like(row["input_ids"])
    row.pop("token_type_ids", None)
    if "mm_token_type_ids" in row:
        row["mm_token_type_ids"] = torch.cat([row["mm_token_type_ids"][0], torch.zeros_like(answer)])
    return row


def _pad(part: torch.Tensor, shape: tuple[int, ...], value: int, side: str) -> torch.Tensor:
    """`part` in a corner of a larger tensor filled with `value`."""
    out = part.new_full(shape, value)
    if side == "left":
        out[-part.shape[0] :] = part
    else:
        out[tuple(slice(0, n) for n in part.shape)] = part
    return out


def _config(kind: str, processor: Any, layers: int) -> Any:
    """The stock configuration of one kind, at hidden size 32 and two vision layers."""
    tokenizer, t = processor.tokenizer, transformers
    ids = tokenizer.convert_tokens_to_ids
    text: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": False,
    }
    vision: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    if kind == "internvl":
        vision |= {"intermediate_size": 64, "image_size": [32, 32], "patch_size": [8, 8]}
        return t.InternVLConfig(
            vision_config=vision,
            text_config=text | {"model_type": "qwen2"},
            image_token_id=ids("<IMG_CONTEXT>"),
            image_seq_length=4,
            tie_word_embeddings=False,
        )
    if kind == "llava_onevision":
        vision |= {"intermediate_size": 64, "image_size": 32, "patch_size": 8, "vision_use_head": False}
        return t.LlavaOnevisionConfig(
            vision_config=vision | {"model_type": "siglip_vision_model"},
            text_config=text | {"model_type": "qwen2"},
            image_token_index=ids("<image>"),
            video_token_index=ids("<video>"),
            image_grid_pinpoints=[[32, 32], [32, 64], [64, 32]],
            tie_word_embeddings=False,
        )
    if kind == "smolvlm":
        vision |= {"intermediate_size": 64, "image_size": 32, "patch_size": 8}
        return t.SmolVLMConfig(
            vision_config=vision,
            text_config=text | {"model_type": "llama"},
            image_token_id=ids("<image>"),
            scale_factor=2,
            tie_word_embeddings=False,
            pad_token_id=tokenizer.pad_token_id,
        )
    return t.Qwen2VLConfig(
        vision_config={
            "depth": 2,
            "embed_dim": 32,
            "hidden_size": 32,
            "num_heads": 2,
            "mlp_ratio": 2,
            "patch_size": 8,
            "temporal_patch_size": 2,
            "spatial_merge_size": 2,
        },
        text_config=text
        | {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}},
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
        tie_word_embeddings=False,
    )


def _check(kind: str) -> None:
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}, expected one of {', '.join(KINDS)}")
