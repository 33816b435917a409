"""A frozen vision tower's features, on the side of the data loader: which samples have some, and what travels.

A row whose features are stored is neither decoded nor preprocessed: its tokens and small inputs are stored, too. Its
pixels are replaced by their shapes; `regate.vision_cache` puts the features in their place.
"""

import json
import os
from collections.abc import Callable, Mapping
from importlib.metadata import version
from math import prod
from typing import Any

import torch
from torch import Tensor

from regate.fingerprint import fingerprint_of
from regate.media_cache import Contents
from regate.store import Store, key_of
from regate.turns import BadSample

KEY = "_vision"  # where a batch carries one `Visual` or None for each of its rows
_FORMAT = 1  # count up when entries are made in another way than before
Visual = dict[str, Any]
"""What stands for the pixels of one row: ``key`` of its features; ``shapes`` {input: shape of its pixels}; ``real``
{input: bool, over the leading dimensions, False on pictures that only fill up}; ``features``, or None where they are
still to be computed, from ``inputs``."""


def is_pixels(name: str) -> bool:
    """Whether an input of a model holds pictures."""
    return name.startswith("pixel_values")


def leading(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The dimensions of pixels that count pictures ([..., C, H, W]) or patches ([..., values])."""
    return shape[:-3] if len(shape) >= 4 else shape[:-1]


def number_of_pictures(visual: Visual) -> int:
    """Pictures (or patches) of all inputs of one row, those included that only fill up."""
    return sum(prod(leading(shape)) for shape in visual["shapes"].values())


class VisionRows:
    """Encodes rows without their pixels. Can be pickled.

    Args:
        folder, limit_gb: see `regate.store.Store`.
        encode: a `regate.data.ConversationEncoder`.

    Attributes:
        tower: of which tower and computation the features are; set before the first row is encoded.
    """

    def __init__(self, folder: str | os.PathLike[str], limit_gb: float, encode: Any) -> None:
        self.store = Store(folder, limit_gb)
        self.contents = Contents(self.store)
        self.encode: Callable[[Mapping[str, Any]], dict[str, Tensor]] = encode
        self.tower: str | None = None
        processor = encode.processor
        parts = [processor, *(getattr(processor, f"{what}_processor", None) for what in ("image", "video"))]
        settings = [[type(part).__name__, part.to_dict()] for part in parts if part is not None]
        libraries = [version(name) for name in ("transformers", "torchvision", "pillow", "av", "numpy")]
        self._pixels = key_of(_FORMAT, settings, libraries, encode.num_frames)
        self._tokens = key_of(fingerprint_of(processor, encode.max_length, encode.num_frames))

    def __call__(self, row: Mapping[str, Any]) -> tuple[dict[str, Tensor], Visual | None]:
        """One row -> its inputs without pixels, and what stands for these; None for a row without pictures.

        Raises BadSample as the encoder does.
        """
        assert self.tower is not None, "VisionCache.bind says which tower"
        files = [*(row.get("images") or []), *(row.get("videos") or [])]
        if not files:
            return self.encode(row), None
        try:
            contents = [self.contents(path) for path in files]
        except OSError as error:
            self.encode(row)  # says it better
            raise BadSample(f"sample {row.get('id')!r}: {error}", row.get("id"), error.filename) from error
        messages = row["messages"]
        messages = json.loads(messages) if isinstance(messages, str) else messages
        clips = [
            [item.get("start"), item.get("end")] for m in messages for item in m["content"] if item["type"] == "video"
        ]
        media = [contents, len(row.get("images") or []), clips, self._pixels]
        tokens_key = key_of("tokens", media, self._tokens, messages)
        features_key = key_of("features", media, self.tower)
        features = self.store.get(features_key)
        if features is not None and (stored := self.store.get(tokens_key)) is not None:
            return _restored(stored, features_key, features)
        inputs = self.encode(row)
        tokens = {name: value for name, value in inputs.items() if not is_pixels(name)}
        pixels = {name: value for name, value in inputs.items() if is_pixels(name)}
        shapes = {name: tuple(value.shape) for name, value in pixels.items()}
        real = {name: (value != 0).flatten(len(leading(value.shape))).any(-1) for name, value in pixels.items()}
        stored = {f"tokens.{name}": _small(value) for name, value in tokens.items()}
        stored |= {f"shape.tokens.{name}": torch.tensor(value.shape) for name, value in tokens.items()}
        stored |= {f"real.{name}": value for name, value in real.items()}
        stored |= {f"shape.{name}": torch.tensor(shape) for name, shape in shapes.items()}
        self.store.put(tokens_key, stored)
        todo = inputs if features is None else None
        return tokens, {"key": features_key, "shapes": shapes, "real": real, "features": features, "inputs": todo}


def _restored(stored: dict[str, Tensor], key: str, features: dict[str, Tensor]) -> tuple[dict[str, Tensor], Visual]:
    shape = {name.removeprefix("shape."): tuple(v.tolist()) for name, v in stored.items() if name.startswith("shape.")}
    tokens = {
        name.removeprefix("tokens."): value.expand(shape[name])
        for name, value in stored.items()
        if name.startswith("tokens.")
    }
    real = {name.removeprefix("real."): value for name, value in stored.items() if name.startswith("real.")}
    shapes = {name: shape[name] for name in real}
    return tokens, {"key": key, "shapes": shapes, "real": real, "features": features, "inputs": None}


def _small(value: Tensor) -> Tensor:
    """A mask [..., H, W] that is the same all over each picture -> [..., 1, 1]."""
    if value.ndim >= 3 and value.numel() and bool((value == value[..., :1, :1]).all()):
        return value[..., :1, :1]
    return value
