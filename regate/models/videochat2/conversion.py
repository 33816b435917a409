"""The original's checkpoint files -> our model and processor.

    model = load_original("Mistral-7B-Instruct-v0.2", ["umt_l16_qformer.pth", "stage2.pth", "stage3.pth"])
    processor = load_processor("Mistral-7B-Instruct-v0.2", "bert-base-uncased")
    model.save_pretrained("videochat2"), processor.save_pretrained("videochat2")

Each `.pth` holds some weights of the whole (what its stage trained); a later file overrides an earlier one. All keys
must fit: a missing, unexpected or misshaped one is an error. No published file was read with this: they were not at
hand. Tests write the same layout at a tiny size.
"""

import logging
import pickle
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from regate.models.videochat2.configuration import VideoChat2Config
from regate.models.videochat2.modeling import VideoChat2ForConditionalGeneration
from regate.models.videochat2.pixels import VideoChat2ImageProcessor, VideoChat2VideoProcessor
from regate.models.videochat2.processing import IMAGE_TOKEN, VIDEO_TOKEN, VideoChat2Processor
from regate.models.videochat2.tuning import TARGETS, add_lora

logger = logging.getLogger(__name__)

# The original's names -> ours, all rules in turn.
_RENAME = (
    (r"^vision_encoder\.encoder\.", "model.vision_tower."),
    (r"^vision_layernorm\.", "model.vision_tower.layernorm."),
    (r"^(extra_)?query_tokens$", r"model.queries.\1query_tokens"),
    (r"^qformer\.bert\.embeddings\.LayerNorm\.", "model.qformer.embeddings.layernorm."),
    (r"^(qformer\.bert\..*attention)\.self\.", r"\1.attention."),
    (r"^qformer\.bert\.", "model.qformer."),
    (r"^mistral_proj\.", "model.multi_modal_projector."),
    (r"^mistral_model\.(base_model\.model\.)?model\.", "model.language_model."),
    (r"^mistral_model\.(base_model\.model\.)?lm_head\.", "lm_head."),
    (r"\.base_layer\.", "."),
    (r"\.lora_([AB])\.weight$", r".lora_\1.default.weight"),
)
# What the files may hold and the model never uses.
_UNUSED = (
    r"^qformer\.bert\.embeddings\.position_ids$",  # a buffer: 0, 1, 2, ...
    r"rotary_emb\.inv_freq$",  # a buffer of old versions of transformers
    r"^vision_encoder\.encoder\.(img_)?pos_embed$",  # computed
    r"^(qformer\.cls|vision_proj|text_proj|itm_head)\.",  # heads of the pre-training, and what only they need
    r"^(temp|vision_temp_embed)$",
)
# What is unused as well where the Q-Former reads no text.
_TEXT_ONLY = r"^qformer\.bert\.(embeddings\.(word|position)_embeddings|encoder\.layer\.\d+\.(intermediate|output))\."
_BLOCK = re.compile(r"^vision_encoder\.encoder\.blocks\.(\d+)\.")
_SHOWN = 5  # keys that an error names


def load_original(
    language_model: str | Path | None,
    files: Sequence[str | Path],
    config: VideoChat2Config | None = None,
    lora: Literal["merge", "keep"] = "merge",
    lora_alpha: int = 32,
    dtype: torch.dtype = torch.bfloat16,
) -> Any:
    """VideoChat2 from the original's files.

    Args:
        language_model: a folder with Mistral-7B-Instruct-v0.2; None where the files hold its weights themselves, as
            the merged release does.
        files: `.pth` files, or folders of `.safetensors` or `.bin` shards; a later one overrides an earlier one.
        config: None: the published sizes, with the text configuration of `language_model`.
        lora: "merge" LoRA matrices into the weights, or "keep" them as a PEFT adapter to train on.
        lora_alpha: of the LoRA matrices; the files do not tell.
        dtype: of the weights.

    Returns:
        `VideoChat2ForConditionalGeneration`, or (keep) a `peft.PeftModel` around it, on the CPU.

    Raises:
        FileNotFoundError: a path that is not there.
        ValueError: a file that cannot be read; missing, unexpected or misshaped keys, by name; no LoRA to keep.
    """
    if lora not in ("merge", "keep"):
        raise ValueError(f"lora is {lora!r}, expected 'merge' or 'keep'")
    if not files:
        raise ValueError("found no file, expected at least one with VideoChat2's weights")
    if config is None:
        text = None if language_model is None else AutoConfig.from_pretrained(_existing(language_model))
        config = VideoChat2Config(text_config=text)
    state: dict[str, Tensor] = {}  # by our names
    origin: dict[str, str] = {}  # where each comes from
    if language_model is not None:
        for name, tensor in _language_weights(_existing(language_model)).items():
            state[name], origin[name] = tensor, str(language_model)
    for path in map(_existing, files):
        for key, tensor in _read(path).items():
            renamed = rename(key, config)
            if renamed is not None:
                state[renamed], origin[renamed] = tensor, f"{path}: {key}"
    adapter = {name: state.pop(name) for name in list(state) if ".lora_" in name}
    _require_fit(_expected(config), state, origin)
    if lora == "keep" and not adapter:
        raise ValueError(f"{', '.join(map(str, files))}: found no LoRA weights, expected some to keep (lora='keep')")
    model = VideoChat2ForConditionalGeneration.from_pretrained(None, config=config, state_dict=state, dtype=dtype)
    if not adapter:
        return model
    model = _with_adapter(model, adapter, origin, lora_alpha)
    return model.merge_and_unload() if lora == "merge" else model


def load_processor(language_model: str | Path, qformer_tokenizer: str | Path, **kwargs: Any) -> VideoChat2Processor:
    """The processor of the published model from the tokenizers of its parts.

    Args:
        language_model: a folder with Mistral-7B-Instruct-v0.2's tokenizer; `<video>` and `<image>` are added to it.
        qformer_tokenizer: a folder with the tokenizer of bert-base-uncased; `[DEC]` is added to it.
        kwargs: of `VideoChat2Processor`.
    """
    tokenizer = AutoTokenizer.from_pretrained(_existing(language_model), mistral_format=False)
    tokenizer.add_special_tokens({"additional_special_tokens": [VIDEO_TOKEN, IMAGE_TOKEN]})
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    behind, alone = tokenizer.tokenize(f"{VIDEO_TOKEN}</Video>")[1:], tokenizer.tokenize("</Video>")
    if behind != alone:
        logger.warning(
            "%s: text behind a visual token becomes %s, by itself %s. The original's training saw the latter; use the "
            "tokenizer.json that Mistral-7B-Instruct-v0.2 had then.",
            language_model,
            behind,
            alone,
        )
    reader = AutoTokenizer.from_pretrained(_existing(qformer_tokenizer), truncation_side="left")
    reader.add_special_tokens({"bos_token": "[DEC]"})
    return VideoChat2Processor(VideoChat2ImageProcessor(), tokenizer, reader, VideoChat2VideoProcessor(), **kwargs)


def rename(key: str, config: VideoChat2Config) -> str | None:
    """Our name of one of the original's weights; None for what the model never uses.

    The published UMT-L has 24 blocks; those beyond the configuration's are never run, here as in the original.
    """
    unused = _UNUSED if config.qformer_text_input else (*_UNUSED, _TEXT_ONLY)
    block = _BLOCK.match(key)
    if any(re.search(pattern, key) for pattern in unused):
        return None
    if block and int(block[1]) >= config.vision_config.num_hidden_layers:
        return None
    for pattern, replacement in _RENAME:
        key = re.sub(pattern, replacement, key)
    return key


def _existing(path: str | Path) -> Path:
    if not Path(path).exists():
        raise FileNotFoundError(f"{path}: no such file or folder, expected one of VideoChat2's weights")
    return Path(path)


def _language_weights(path: Path) -> dict[str, Tensor]:
    """Weights of a causal language model, by our names."""
    model, info = AutoModelForCausalLM.from_pretrained(path, dtype="auto", output_loading_info=True)
    wrong = {kind: sorted(map(str, info[kind]))[:_SHOWN] for kind in ("missing_keys", "unexpected_keys") if info[kind]}
    if wrong:
        raise ValueError(f"{path} does not hold the weights of {type(model).__name__}: {wrong}")
    return {re.sub(r"^model\.", "model.language_model.", name): tensor for name, tensor in model.state_dict().items()}


def _read(path: Path) -> dict[str, Tensor]:
    """All tensors of a file or a folder, by the original's names."""
    if path.is_dir():
        shards = sorted(path.glob("*.safetensors")) or sorted(path.glob("*.bin"))
        if not shards:
            raise ValueError(
                f"{path}: found a folder without .safetensors and .bin files, expected the shards of a model"
            )
        return {key: tensor for shard in shards for key, tensor in _read(shard).items()}
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path}: found a pickle of more than tensors, expected a state dict. If you trust the file, load it with "
            "torch.load(..., weights_only=False) and save its entry 'model' by itself."
        ) from error
    except (RuntimeError, EOFError, OSError, SafetensorError) as error:
        raise ValueError(f"{path}: found data that is no checkpoint ({str(error)[:160]})") from error
    for entry in ("model", "module"):  # the latter is DeepSpeed's
        if isinstance(content, dict) and isinstance(content.get(entry), dict):
            content = content[entry]
    strange = (
        [key for key, value in content.items() if not isinstance(value, Tensor)] if isinstance(content, dict) else []
    )
    if not isinstance(content, dict) or strange:
        found = f"{strange[0]!r} of type {type(content[strange[0]]).__name__}" if strange else type(content).__name__
        raise ValueError(f"{path}: found {found}, expected a state dict, alone or under 'model'")
    return content


def _expected(config: VideoChat2Config) -> dict[str, torch.Size]:
    with torch.device("meta"):
        model = VideoChat2ForConditionalGeneration(config)
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


def _require_fit(expected: dict[str, torch.Size], state: dict[str, Tensor], origin: dict[str, str]) -> None:
    """Raises unless names and shapes are those that are expected."""
    wrong = {
        "missing": sorted(expected.keys() - state.keys()),
        "unexpected": sorted(origin[name] for name in state.keys() - expected.keys()),
        "of another shape": sorted(
            f"{origin[name]}: found {list(state[name].shape)}, expected {list(shape)}"
            for name, shape in expected.items()
            if name in state and state[name].shape != shape
        ),
    }
    told = [f"{len(names)} {kind}: {_some(names)}" for kind, names in wrong.items() if names]
    if told:
        raise ValueError(
            "the files do not hold the weights of VideoChat2 as configured. " + ". ".join(told) + ". Give all files of "
            "the model, the first stage's first, and a config of the model's sizes."
        )


def _with_adapter(model: Any, adapter: dict[str, Tensor], origin: dict[str, str], alpha: int) -> Any:
    """The model with LoRA matrices as an adapter."""
    ranks = {tensor.shape[0] for name, tensor in adapter.items() if ".lora_A." in name}
    if len(ranks) != 1:
        raise ValueError(f"LoRA matrices: found ranks {sorted(ranks)}, expected one rank ({_some(list(adapter))})")
    names = {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in adapter}
    targets = tuple(name for name in TARGETS if name in names)
    model = add_lora(model, r=ranks.pop(), alpha=alpha, targets=targets or TARGETS)
    seats = {
        name.removeprefix("base_model.model."): parameter
        for name, parameter in model.named_parameters()
        if ".lora_" in name
    }
    _require_fit({name: parameter.shape for name, parameter in seats.items()}, adapter, origin)
    with torch.no_grad():
        for name, parameter in seats.items():
            parameter.copy_(adapter[name])
    return model


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
