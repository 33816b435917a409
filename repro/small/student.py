"""The small student: stock `LlavaOnevisionForConditionalGeneration`, a frozen ViT-S/14 before SmolLM2-135M.

A frame of 56 pixels is 4 x 4 patches, which the class pools to 2 x 2: four visual tokens a frame, and one that ends
the clip. No line of regate or transformers is changed for it. Its parts come from `make models`, its projector from
`repro.small.align`; `build` puts them together into a checkpoint that `from_pretrained` reads.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    Dinov2Model,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
)

from repro.families.chatml import chatml
from repro.small.models import language_path, vision_path
from repro.small.packages import SMOLLM2, VIT
from repro.small.vision import for_size

NAME = "smollm2"
"""The student in recipes, records and folders."""
ROOT = Path(__file__).resolve().parents[2]
COMMITTED = ROOT / "results" / "students" / NAME / "projector.safetensors"
IMAGE, VIDEO = "<image>", "<video>"
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


@dataclass(frozen=True)
class Shape:
    """What decides the student beside the weights of its parts."""

    image_size: int = 56  # pixels that the ViT sees; a multiple of 28, so that its patches pool evenly
    layer: int = 6  # whose hidden states the projector reads: where a linear probe tells the world's words best

    @property
    def seats_per_side(self) -> int:
        """Visual tokens along a side of a frame."""
        return self.image_size // 28


SHAPE = Shape()


def tokenizer_of(language: Path) -> Any:
    """SmolLM2's tokenizer with the two placeholders behind its own tokens."""
    tokenizer = AutoTokenizer.from_pretrained(language)
    tokenizer.add_special_tokens({"extra_special_tokens": [IMAGE, VIDEO]}, replace_extra_special_tokens=False)
    tokenizer.padding_side = "right"
    return tokenizer


def processor_of(tokenizer: Any, image_size: int, patch_size: int = 14) -> LlavaOnevisionProcessor:
    """The stock processor: one tile a picture, frames as they come."""
    size = {"height": image_size, "width": image_size}
    return LlavaOnevisionProcessor(
        image_processor=LlavaOnevisionImageProcessor(
            size=size, image_grid_pinpoints=[[image_size, image_size]], **IMAGENET
        ),
        tokenizer=tokenizer,
        video_processor=LlavaOnevisionVideoProcessor(size=size, **IMAGENET),
        num_image_tokens=(image_size // patch_size) ** 2 + 1,  # the class token is counted, and not used
        vision_feature_select_strategy="default",
        chat_template=chatml(IMAGE, VIDEO),
    )


def assemble(language: Path, vision: Path, shape: Shape = SHAPE) -> tuple[Any, Any]:
    """Model (fp32, projector still random, from seed 0) and processor, of the two parts' checkpoints."""
    tokenizer = tokenizer_of(language)
    text = AutoModelForCausalLM.from_pretrained(language, dtype=torch.float32)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        text.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        tower = for_size(Dinov2Model.from_pretrained(vision, dtype=torch.float32), shape.image_size)
        text_config = AutoConfig.from_pretrained(language)
        text_config.vocab_size, text_config.use_cache = len(tokenizer), False
        config = LlavaOnevisionConfig(
            vision_config=tower.config,
            text_config=text_config,
            image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
            video_token_index=tokenizer.convert_tokens_to_ids(VIDEO),
            vision_feature_layer=min(shape.layer, tower.config.num_hidden_layers),
            vision_feature_select_strategy="default",
            image_grid_pinpoints=[[shape.image_size, shape.image_size]],
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        model = LlavaOnevisionForConditionalGeneration(config)
    model.model.language_model.load_state_dict(text.get_decoder().state_dict())
    model.model.vision_tower.load_state_dict(tower.state_dict())
    model.tie_weights()
    return model, processor_of(tokenizer, shape.image_size, tower.config.patch_size)


def projector(model: Any) -> dict[str, torch.Tensor]:
    """What alignment trains, by name: the projector and the token that ends a clip."""
    names = [name for name, _ in model.named_parameters() if "multi_modal_projector" in name or "image_newline" in name]
    return {name: parameter for name, parameter in model.named_parameters() if name in names}


def projector_path(runs: Path) -> Path:
    """The aligned projector: the committed one, or the one that `repro.small.align` made in ``runs``."""
    return COMMITTED if COMMITTED.is_file() else runs / "models" / "projector" / "projector.safetensors"


def aligned(runs: Path) -> Path:
    """The same, where it is there; FileNotFoundError names the command that makes it."""
    path = projector_path(runs)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there: run `python -m repro.small.align --runs {runs}`")
    return path


def identity(weights: Path, shape: Shape = SHAPE) -> str:
    """Hash of all that decides the student: its parts' pins, its shape and its projector."""
    parts = json.dumps({"language": SMOLLM2.sha256, "vision": VIT.sha256, **asdict(shape)}, sort_keys=True)
    return hashlib.sha256(parts.encode() + weights.read_bytes()).hexdigest()


def build(runs: Path) -> Path:
    """The student as a checkpoint under ``runs/models/student-HASH``, made whole on first use.

    Raises:
        FileNotFoundError: no aligned projector.
    """
    weights = aligned(runs)
    target = runs / "models" / f"student-{identity(weights)[:12]}"
    if not target.is_dir():
        model, processor = assemble(language_path(runs), vision_path(runs))
        load_projector(model, weights)
        temporary = target.with_name(f".{target.name}.{os.getpid()}")
        shutil.rmtree(temporary, ignore_errors=True)
        model.save_pretrained(temporary)
        processor.save_pretrained(temporary)
        os.replace(temporary, target)
    return target


def load_projector(model: Any, weights: Path) -> None:
    """Put an aligned projector into a model; ValueError where it is of another one."""
    stored, wanted = load_file(weights), projector(model)
    shapes = [{name: tuple(t.shape) for name, t in part.items()} for part in (stored, wanted)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"{weights} holds {shapes[0]}, expected {shapes[1]}: align the projector anew")
    with torch.no_grad():
        for name, parameter in wanted.items():
            parameter.copy_(stored[name])
