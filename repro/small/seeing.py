"""Rows of the small scale for a model whose vision tower is frozen: its features are read where they are stored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from eval import world
from regate.data import ConversationEncoder, join
from regate.vision_cache import VisionCache
from regate.vision_rows import KEY, VisionRows

if TYPE_CHECKING:
    from repro.small.material import SmallMaterial

CACHE_GB = 20.0


class Seeing:
    """Batches of conversations for a model whose tower's features are stored: read where they are, else computed."""

    def __init__(self, material: SmallMaterial):
        encode = ConversationEncoder(material.processor, num_frames=world.FRAMES, frames=material.frames)
        self.rows = VisionRows(material.vision, CACHE_GB, encode)
        self.pad = material.processor.tokenizer.pad_token_id

    def cache(self, model: Any) -> VisionCache:
        """The cache of a model's tower."""
        cache = VisionCache(model, self.rows)
        cache.bind(model.device)
        return cache

    def store(self, model: Any, rows: Iterable[Mapping[str, Any]]) -> None:
        """Compute and store the features of rows that have none yet."""
        cache = self.cache(model)
        for row in tqdm(rows, desc="features of the vision tower", delay=5, leave=False):
            _, visual = self.rows(row)
            if visual is not None:
                cache.fill(visual, model.device)

    def batch(self, rows: Sequence[tuple[dict[str, Tensor], Any]], device: torch.device) -> dict[str, Any]:
        """Encoded rows as one batch on a device, right-padded."""
        joined = join([inputs for inputs, _ in rows], self.pad, "right")
        return {name: value.to(device) for name, value in joined.items()} | {KEY: [visual for _, visual in rows]}
