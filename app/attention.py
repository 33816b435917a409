"""Attention for its page: pairs of runs that left artefacts, and a model of the reader's own on a video file.

torch and transformers are imported only for the latter. What cannot be shown is a `Problem` in words.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from app.artefacts import Places, Problem
from repro.attention_file import ArtefactError, StoredAttention, read, read_strip
from repro.compare import student_name

AGAIN = "`make artefacts` writes it again"


@dataclass(frozen=True)
class Pair:
    """Folders of a baseline and of the ReGATE run of the same student and seed."""

    student: str
    seed: int
    origin: str  # committed or own
    standard: Path
    regate: Path

    @property
    def label(self) -> str:
        """How a menu calls it; no two are called the same."""

        return f"{student_name(self.student)}, seed {self.seed}{'' if self.origin == 'committed' else ' (yours)'}"

    def stamps(self) -> tuple[int, ...]:
        """Times of its files."""
        files = [
            *self.standard.glob("attention.*"),
            *self.regate.glob("attention.*"),
            *self.regate.glob("grounding.json"),
        ]
        return tuple(path.stat().st_mtime_ns for path in sorted(files))


@dataclass(frozen=True)
class Both:
    """What a pair holds: attention of both on the same clips, and the grounding record or why there is none.

    `seeds` holds the grounding records of all seeds of this student that can be read, this one's included.
    """

    standard: StoredAttention
    regate: StoredAttention
    grounding: dict[str, Any] | Problem
    seeds: dict[int, dict[str, Any]]


def find_pairs(places: Places) -> tuple[list[Pair], list[Problem]]:
    """Pairs that left attention, committed ones first, and what is wrong with other files."""
    found: dict[tuple[str, str, int, str], Path] = {}
    problems = []
    for origin, root in (("committed", places.results / "artefacts"), ("own", places.runs)):
        for path in sorted(root.glob("*/attention.json")):
            try:
                source = json.loads(path.read_text(encoding="utf-8"))["source"]
                found[origin, source["student"], int(source["seed"]), source["method"]] = path.parent
            except (OSError, ValueError, KeyError, TypeError) as error:
                problems.append(Problem(f"{path}: {type(error).__name__}: {error}; {AGAIN}"))
    pairs = [
        Pair(student, seed, origin, found[origin, student, seed, "stock"], folder)
        for (origin, student, seed, method), folder in found.items()
        if method == "regate" and (origin, student, seed, "stock") in found
    ]
    return sorted(pairs, key=lambda p: (p.origin, p.student, p.seed)), problems


def read_pair(pair: Pair) -> Both:
    """Both sides of a pair; `Problem` where a file is damaged or the two show different clips."""
    try:
        standard, regate = read(pair.standard), read(pair.regate)
    except ArtefactError as error:
        raise Problem(str(error)) from error
    sides = [[(c.clip.id, c.clip.tokens) for c in s.clips] + [s.frames, s.extent] for s in (standard, regate)]
    if sides[0] != sides[1]:
        raise Problem(f"{pair.standard} and {pair.regate} show different clips; {AGAIN}")
    own = _grounding(pair.regate / "grounding.json")
    others = [_grounding(path) for path in pair.regate.parent.glob("*/grounding.json")]
    seeds = {
        int(r["regate"]["seed"]): r for r in others if isinstance(r, dict) and r["regate"]["student"] == pair.student
    }
    return Both(standard, regate, own, dict(sorted(seeds.items())))


def _grounding(path: Path) -> dict[str, Any] | Problem:
    wanted = {"measure", "sinks", "layer", "clips", "even", "best", "standard", "regate", "difference"}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        missing = sorted({name for entry in record["scores"] for name in wanted - set(entry)})
        missing += sorted({"seed", "student"} - set(record["regate"])) + sorted({"tokens"} - set(record))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return Problem(f"{path}: no grounding scores ({type(error).__name__}: {error}); {AGAIN}")
    return Problem(f"{path}: grounding scores without {', '.join(missing)}; {AGAIN}") if missing else record


def frames_of(pair: Pair, both: Both, clip: int) -> np.ndarray:
    """The frames of a clip, uint8 [F, H, W, 3]; `Problem` where the picture is gone or damaged."""
    one = both.regate.clips[clip].clip
    try:
        return read_strip(pair.regate / one.frames, len(one.boxes))
    except ArtefactError as error:
        raise Problem(str(error)) from error


# --- a model of the reader's own ---


@dataclass(frozen=True)
class Live:
    """Attention of one model on a video. Arrays and slices as in `app.views.attention.Shown`; sinks None where the
    answer has too few tokens to tell."""

    frames: np.ndarray
    tokens: list[str]
    weights: np.ndarray
    sinks: np.ndarray | None
    slices: tuple[tuple[int, ...], ...]
    extent: tuple[float, float, float, float]


def load_model(path: str | Path) -> tuple[Any, Any]:
    """A multimodal model and its processor from a local folder, float32 on the CPU; `Problem` where it holds none."""
    path = Path(path).expanduser()
    if not path.is_dir():
        raise Problem(f"{path}: no such folder, expected a checkpoint: config.json, weights, processor")
    if not any((path / name).is_file() for name in ("config.json", "adapter_config.json")):
        raise Problem(f"{path}: holds no config.json, expected a checkpoint in transformers' format")

    from regate.integrations.loading import load_checkpoint

    try:
        model, processor = load_checkpoint(str(path), dtype="float32")
    except Exception as error:  # loaders raise what they like, and the page must go on
        reason = " ".join(str(error).split())[:400]
        raise Problem(f"{path}: cannot be loaded as a multimodal model ({type(error).__name__}: {reason})") from error
    if not hasattr(processor, "tokenizer"):
        raise Problem(
            f"{path}: holds a {type(processor).__name__} and no multimodal processor, expected one for videos"
        )
    return model, processor


def attend(model: Any, processor: Any, video: Path, name: str, question: str, answer: str, num_frames: int) -> Live:
    """Attention of an answer's tokens over a video; `Problem` for everything that stands in the way.

    Args:
        video: the file; `name` is what its reader calls it.
    """
    from regate.attention import answer_attention
    from regate.saliency import FEWEST, find_sinks

    try:
        found = answer_attention(model, processor, video, question, answer, num_frames)
    except Exception as error:  # whatever a model's own code raises
        reason = " ".join(str(error).replace(str(video), name).replace(video.name, name).split())[:600]
        raise Problem(f"{name}: {reason}" if name not in reason else reason) from error
    weights = found.maps.weights
    sinks = find_sinks(weights) if weights.shape[2] >= FEWEST else None
    return Live(found.frames, found.tokens, weights, sinks, found.maps.grid.frames, found.maps.grid.extent)


def unlike(one: Live, other: Live) -> str | None:
    """Why two models' attention cannot stand on one scale, or None."""
    if one.tokens != other.tokens:
        return f"the two models cut the answer into different tokens ({len(one.tokens)} and {len(other.tokens)})"
    if (one.slices, one.extent, one.weights.shape[3:]) != (other.slices, other.extent, other.weights.shape[3:]):
        shapes = [" x ".join(map(str, live.weights.shape[3:])) for live in (one, other)]
        return f"the two models see the video on different grids ({shapes[0]} and {shapes[1]} visual tokens)"
    return None


def names_of(paths: Iterable[str]) -> list[str]:
    """Short names of checkpoints, all different: the last part of their paths that tells them apart."""
    parts = [Path(path).expanduser().parts[::-1] for path in paths]
    for names in zip(*parts, strict=False):
        if len(set(names)) == len(names):
            return list(names)
    return [f"{part[0]} ({i + 1})" for i, part in enumerate(parts)]
