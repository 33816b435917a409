"""What the micro students have in common, and where they differ: the interface that preparation and runs go through.

Shapes: N clips, F frames, Q seats of a frame, S visual tokens of a clip, K symbols of a script, D hidden size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import AddedToken, PreTrainedTokenizerFast

# A word with the space before it, single digits, punctuation, line breaks: Qwen's splits, as far as we need them.
WORD_SPLIT = r" ?[\p{L}']+| ?\p{N}| ?[^\s\p{L}\p{N}]|\s"


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
        """Visual tokens of a frame, before time is compressed."""
        return int((self.image_size // self.patch_size * self.downsample_ratio) ** 2)

    def text_config(self, **token_ids: int) -> dict[str, Any]:
        """Arguments of a decoder's configuration (Qwen2, Qwen3, Mistral)."""
        return {
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "max_position_embeddings": self.max_positions,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
            "tie_word_embeddings": True,
            "use_cache": False,
            **token_ids,
        }


class Family(ABC):
    """One student's classes at micro size."""

    name: str
    """Name of the student in recipes, records and folders."""
    processor_class: str
    end_of_text: str
    """Token between documents of plain text."""
    end_of_frames: str
    """Token of the prompt after which two questions about one clip differ."""
    frames_per_look: int = 1
    """The fewest frames that the vision tower and the connector can be run on."""
    size: StudentSize = StudentSize()

    @abstractmethod
    def tokenizer(self, texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
        """A byte-level BPE of at most `vocab_size` entries on `texts`, with the family's markers."""

    @abstractmethod
    def processor(self, tokenizer: PreTrainedTokenizerFast, size: StudentSize) -> Any:
        """The family's stock processor for clips of the embedded world."""

    @abstractmethod
    def config(self, tokenizer: PreTrainedTokenizerFast, size: StudentSize) -> Any:
        """The stock configuration that belongs to `size` and this tokenizer's ids."""

    @abstractmethod
    def model(self, config: Any) -> Any:
        """A model with random weights, from the global generator."""

    def build(self, tokenizer: PreTrainedTokenizerFast, size: StudentSize | None = None, seed: int = 0) -> Any:
        """A student with random weights, fp32. The global random state stays as it was."""
        size = size or self.size
        if len(tokenizer) > size.vocab_size:
            raise ValueError(f"vocab_size is {size.vocab_size}, but the tokenizer holds {len(tokenizer)} entries")
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return self.model(self.config(tokenizer, size))

    @abstractmethod
    def eyes(self, model: Any) -> list[nn.Module]:
        """What lies before the decoder, the vision tower first: trained while the decoder is frozen."""

    @abstractmethod
    def last_linear(self, model: Any) -> nn.Linear:
        """The connector's last layer, which writes into the decoder's space."""

    @abstractmethod
    def placeholder_id(self, model: Any) -> int:
        """The token that visual features take the place of."""

    @abstractmethod
    def visual_inputs(self, processor: Any, pixels_NFCHW: torch.Tensor) -> dict[str, torch.Tensor]:
        """Normalised clips as the model's inputs."""

    @abstractmethod
    def features(self, model: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """What the connector writes for `visual_inputs`, in the order of the visual tokens: [..., D]."""

    def look(self, model: Any, processor: Any, pixels_NFCHW: torch.Tensor) -> torch.Tensor:
        """What the connector writes for normalised clips: [N, S, D]."""
        seen = self.features(model, self.visual_inputs(processor, pixels_NFCHW))
        return seen.reshape(len(pixels_NFCHW), -1, seen.shape[-1])

    @abstractmethod
    def precomputed(self, features_NSD: torch.Tensor) -> dict[str, Any]:
        """`features` as inputs of the model, in the place of the clips."""

    def seats(self, script_FQK: np.ndarray) -> np.ndarray:
        """A script (`repro.rehearsal`) laid out over the visual tokens: [S, K], in their order."""
        return script_FQK.reshape(-1, script_FQK.shape[-1])


def world_bpe(
    texts: Iterable[str], vocab_size: int, specials: Sequence[AddedToken], markers: Sequence[AddedToken] = ()
) -> Tokenizer:
    """A byte-level BPE of at most `vocab_size` entries, added tokens included. Deterministic in `texts`."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORD_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(specials) - len(markers),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    backend.add_special_tokens(list(specials))
    if markers:
        backend.add_tokens(list(markers))
    return backend


def single_token_share(tokenizer: PreTrainedTokenizerFast, texts: Iterable[str]) -> float:
    """Share of the words (split at white space and punctuation, counted with repetition) that are one token."""
    split, vocab = tokenizer.backend_tokenizer.pre_tokenizer, tokenizer.get_vocab()
    pieces = [piece for text in texts for piece, _ in split.pre_tokenize_str(text)]
    return sum(piece in vocab for piece in pieces) / max(len(pieces), 1)


def count_parameters(family: Family, model: nn.Module) -> dict[str, int]:
    """Parameters in all and by part (tied weights once)."""
    tower, *rest = family.eyes(model)
    total = sum(p.numel() for p in model.parameters())
    vision = sum(p.numel() for p in tower.parameters())
    connector = sum(p.numel() for module in rest for p in module.parameters())
    return {"all": total, "language": total - vision - connector, "vision": vision, "connector": connector}
