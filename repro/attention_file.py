"""Attention of a run's model on a few clips, in files that are small enough to commit. Free of torch, for the app.

    attention.json      clips: question, answer, tokens, tags, objects with true boxes; the grid; what it was made from
    attention.npz       weights in 256 steps of each row's largest
    <clip>.webp         the frames of a clip beside each other, lossless

Legend: N clips, Q answer tokens of a clip, T slices of time, R x C cells of a slice, F frames, O objects.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SCHEMA = 1
STEPS = 255


class ArtefactError(ValueError):
    """A file that cannot be used: names it, what was found, what was expected and what to do."""

    def __init__(self, path: Path, found: object, expected: str, todo: str = "run `make artefacts` again") -> None:
        super().__init__(f"{path}: found {found}, expected {expected}; {todo}")


@dataclass(frozen=True)
class Clip:
    """A clip with its question and answer, and the true boxes of its objects.

    Attributes:
        tokens, tags: of each of the Q answer tokens; tags are template, visual, wording, special.
        objects: their names, e.g. "red star".
        named: for each token the number of the object whose noun or colour it begins, or None.
        boxes: [F][O], x0, y0, x1, y1 in pixels (the last two exclusive), None in frames where nothing is drawn.
        frames: name of the file with the frames.
    """

    id: str
    question: str
    answer: str
    tokens: list[str]
    tags: list[str]
    objects: list[str]
    named: list[int | None]
    boxes: list[list[list[float] | None]]
    frames: str

    def box_array(self) -> np.ndarray:
        """`boxes` as float [F, O, 4], NaN where there is none."""
        return np.array([[box or [np.nan] * 4 for box in frame] for frame in self.boxes], dtype=float)


@dataclass(frozen=True)
class ClipAttention:
    """Attention on one clip: weights float32 [layers, heads, Q, T, R, C], rest float32 [layers, heads, Q], both in
    shares of all that a token's row gives; sinks bool [layers, heads, T, R, C], or None where too few tokens tell."""

    clip: Clip
    weights: np.ndarray
    rest: np.ndarray
    sinks: np.ndarray | None


@dataclass(frozen=True)
class StoredAttention:
    """What one model does on a few clips. `frames`, `extent`: see `regate.visual_grid.Grid`. `source`: its record's
    name, hashes, commit, versions."""

    clips: list[ClipAttention]
    frames: tuple[tuple[int, ...], ...]
    extent: tuple[float, float, float, float]
    source: dict[str, Any]


def write(folder: Path, stored: StoredAttention) -> list[Path]:
    """Write `attention.json` and `attention.npz`; the files."""
    rows: dict[str, list[np.ndarray]] = {name: [] for name in ("steps", "top", "rest", "sinks")}
    for one in stored.clips:
        weights = np.moveaxis(one.weights, 2, 0)  # [Q, layers, heads, T, R, C]
        most = weights.max((-3, -2, -1))
        share = np.divide(weights, most[..., None, None, None], out=np.zeros_like(weights), where=weights > 0)
        rows["steps"].append(np.round(share * STEPS).astype(np.uint8))
        rows["top"].append(most.astype(np.float32))
        rows["rest"].append(np.moveaxis(one.rest, 2, 0).astype(np.float32))
        rows["sinks"].append(np.zeros(weights.shape[1:], bool) if one.sinks is None else one.sinks)
    steps, top, rest = (np.concatenate(rows[name]) for name in ("steps", "top", "rest"))
    sinks = np.packbits(np.stack(rows["sinks"]).reshape(len(stored.clips), -1), axis=1)
    about = {
        "schema": SCHEMA,
        "source": stored.source,
        "frames": stored.frames,
        "extent": stored.extent,
        "clips": [asdict(one.clip) | {"sinks_known": one.sinks is not None} for one in stored.clips],
    }
    paths = [folder / "attention.json", folder / "attention.npz"]
    paths[0].write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    np.savez_compressed(paths[1], steps=steps, top=top, rest=rest, sinks=sinks)
    return paths


def read(folder: Path) -> StoredAttention:
    """What `write` wrote; ArtefactError for files that are gone, damaged or do not belong together."""
    path = folder / "attention.json"
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        clips = [Clip(**{k: v for k, v in c.items() if k != "sinks_known"}) for c in about["clips"]]
        known = [clip["sinks_known"] for clip in about["clips"]]
        frames, extent = tuple(map(tuple, about["frames"])), tuple(about["extent"])
        source, schema = about["source"], about["schema"]
    except FileNotFoundError:
        raise ArtefactError(path, "no such file", "attention of a run", "run `make artefacts`") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtefactError(path, f"{type(error).__name__}: {error}", "what `make artefacts` writes") from None
    if schema != SCHEMA:
        raise ArtefactError(path, f"schema {schema}", f"schema {SCHEMA}")
    path = folder / "attention.npz"
    ends = np.cumsum([len(clip.tokens) for clip in clips])
    try:
        with np.load(path) as file:
            steps, top, rest, sinks = (file[name] for name in ("steps", "top", "rest", "sinks"))
        if len(steps) != ends[-1] or len(sinks) != len(clips):
            raise ArtefactError(path, f"{len(steps)} rows", f"{ends[-1]}, as many as attention.json has tokens")
        bits = np.unpackbits(sinks, axis=1, count=int(np.prod(steps.shape[1:]))).astype(bool)
    except ArtefactError:
        raise
    except FileNotFoundError:
        raise ArtefactError(path, "no such file", "attention of a run", "run `make artefacts`") from None
    except Exception as error:  # zip, zlib and numpy each have their own
        raise ArtefactError(path, f"{type(error).__name__}: {error}", "what `make artefacts` writes") from None
    weights = steps.astype(np.float32) / STEPS * top[..., None, None, None]
    split = [np.split(array, ends[:-1]) for array in (weights, rest)]
    parts = [
        ClipAttention(clip, np.moveaxis(w, 0, 2), np.moveaxis(r, 0, 2), b.reshape(steps.shape[1:]) if k else None)
        for clip, w, r, b, k in zip(clips, *split, bits, known, strict=True)
    ]
    return StoredAttention(parts, frames, extent, source)


def write_strip(path: Path, frames: np.ndarray) -> None:
    """Frames uint8 [F, H, W, 3] beside each other in one lossless WebP."""
    wide = np.ascontiguousarray(frames.transpose(1, 0, 2, 3)).reshape(frames.shape[1], -1, 3)
    Image.fromarray(wide).save(path, "WEBP", lossless=True, method=6)


def read_strip(path: Path, count: int) -> np.ndarray:
    """The frames of `write_strip`, uint8 [count, H, W, 3]; ArtefactError where it is gone or damaged."""
    try:
        with Image.open(path) as image:
            wide = np.asarray(image.convert("RGB"))
    except FileNotFoundError:
        raise ArtefactError(path, "no such file", "the frames of a clip") from None
    except (OSError, ValueError, SyntaxError) as error:
        raise ArtefactError(path, f"{type(error).__name__}: {error}", "a WebP picture") from None
    if wide.shape[1] % count:
        raise ArtefactError(path, f"a width of {wide.shape[1]} pixels", f"{count} frames of equal width")
    return wide.reshape(wide.shape[0], count, -1, 3).transpose(1, 0, 2, 3)


def names_objects(tokens: Sequence[str], tags: Sequence[str], things: Sequence[tuple[str, str]]) -> list[int | None]:
    """For each answer token the object that the word it begins names, or None.

    A word names an object if it is tagged visual and is the noun or the colour of that object and of no other. Of a
    word in several tokens only the first counts: the others complete what was said.

    Args:
        tokens: as decoded one by one; together they are the answer.
        things: noun and colour of each object.
    """
    words = [word for pair in things for word in pair]
    owner = {word: i for i, pair in enumerate(things) for word in pair if words.count(word) == 1}
    named: list[int | None] = []
    for position, (token, tag) in enumerate(zip(tokens, tags, strict=True)):
        before = tokens[position - 1][-1:] if position else ""
        begins = bool(token.strip()) and (token[:1].isspace() or not before.isalnum())
        word = re.match(r"\s*(\w+)", "".join(tokens[position:]))
        named.append(owner.get(word[1]) if word and begins and tag == "visual" else None)
    return named
