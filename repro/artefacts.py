"""What the app shows of runs and cannot compute from their records: texts of traced samples, attention, grounding.

`python -m repro artefacts` looks for finished runs below ``runs/`` and writes into the folder of each

    samples.json        the traced samples: question, answer, tokens, tags (for runs that carry a trace)
    attention.json/npz  attention on a few test clips: for a baseline and the ReGATE run of the same student, seed 0
    grounding.json      grounding of both over the test set, with intervals: in the ReGATE run's folder, every seed
    *.webp              the frames of every clip that one of these names
    artefacts.json      all of these with their sha256, and what they were made from: `make keep` copies what it lists
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from eval import world
from eval.machine import environment
from regate.attention import attention_over_frames, predictors
from regate.saliency import FEWEST, SHARE, TIMES, find_sinks
from regate.visual_grid import Grid, UnknownGrid
from repro.attention_file import Clip, ClipAttention, StoredAttention, names_objects, write, write_strip
from repro.grounding import Key, clip_scores, compare
from repro.keep import MANIFEST
from repro.material import PREPARED, Material
from repro.micro_data import TAGS, MicroCollator
from repro.recipes import Data
from repro.record import Record, load
from repro.stats import LEVEL, REPS

SPLIT = "test"
CLIPS = 8
SEED = 0  # of the choice of clips and of the bootstrap
MAPS_OF = 0  # maps are committed for the runs of one seed, as traces are
BATCH = 16


def main(runs: Path, clips: int = CLIPS, prepared: Path = PREPARED) -> int:
    """Write the artefacts of all finished runs below ``runs``; the exit status.

    What does not fit is named and left out; 1 if anything was, or if there is nothing to do. A student whose visual
    tokens have no places (VideoChat2) is named and has no attention to write.
    """
    records, problems = load([runs])
    for problem in problems:
        print(problem)
    left_out = len(problems)
    written: dict[str, list[Path]] = defaultdict(list)
    pairs = list(pairs_of(records))
    jobs: list[tuple[str, Callable[[], dict[str, list[Path]]]]] = [
        (record.name, partial(write_samples, record, runs, prepared))
        for record in records
        if "trace" in record.artefacts
    ]
    jobs += [
        (regate.name, partial(write_attention, standard, regate, runs, clips, prepared)) for standard, regate in pairs
    ]
    for name, job in jobs:
        try:
            for run, paths in job().items():
                written[run] += paths
        except StaleRun as error:
            print(f"{name}: {error}")
            left_out += 1
        except UnknownGrid as error:
            print(f"{name}: no attention: {error}")
    by_name = {record.name: record for record in records}
    for name, paths in written.items():
        size = write_manifest(by_name[name], runs, paths)
        print(f"{name}: {len(paths)} files, {size / 1024:.0f} KiB in {runs / name}")
    if not (pairs or written):
        print(f"{runs} holds no baseline with a ReGATE run of the same student and seed: run `make repro-table4`")
    return int(bool(left_out) or not (pairs or written))


class StaleRun(ValueError):
    """A run whose model is gone, or is not the one that its record names."""


def pairs_of(records: Iterable[Record]) -> Iterator[tuple[Record, Record]]:
    """(baseline, ReGATE) of each student and seed of Table 4."""
    found = {(r.student, r.scale, r.seed, r.method): r for r in records if r.table == "4"}
    for (student, scale, seed, method), record in found.items():
        standard = found.get((student, scale, seed, "stock"))
        if method == "regate" and standard:
            yield standard, record


def material_of(record: Record, runs: Path, prepared: Path) -> Any:
    """What the run was made of; StaleRun where the prepared student has changed since."""
    data: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in record.config["data"].items()}
    if record.scale == "small":
        from repro.small.material import SmallMaterial

        material: Any = SmallMaterial(Data(**data), runs)
    else:
        material = Material(record.student, Data(**data), runs / "cache", prepared)
    if material.student_hash != record.config["student_hash"]:
        raise StaleRun(
            f"the prepared student is {material.student_hash[:12]}, the run was made from "
            f"{record.config['student_hash'][:12]}: run it again"
        )
    return material


def model_of(record: Record, runs: Path, material: Material) -> tuple[Any, str]:
    """The trained model of a run, fp32, and the sha256 of its weights, or of its adapters where those were trained."""
    kind = next((name for name in ("model", "adapter") if name in record.artefacts), None)
    if kind is None:
        raise StaleRun(f"the record of {record.name} names no model: run the recipe again")
    path, expected = runs / record.artefacts[kind]["path"], record.artefacts[kind]["sha256"]
    found = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "no file"
    if found != expected:
        raise StaleRun(f"{path}: found {found[:12]}, expected {expected[:12]}: run the recipe again")
    return material.trained(path.parent), found


# --- traced samples ---


def write_samples(record: Record, runs: Path, prepared: Path) -> dict[str, list[Path]]:
    """`samples.json` of a traced run, and the frames; the files of the run."""
    folder, material = runs / record.name, material_of(record, runs, prepared)
    rows = material.encoded("train")
    entries, paths = [], []
    for sample_id in traced(record):
        row = rows[sample_id]
        tokens, tags = targets_of(material.targets(row), row["tags"], material.processor.tokenizer)
        strip = folder / f"{row['id']}.webp"
        write_strip(strip, material.clip(row))
        paths.append(strip)
        entries.append(
            {
                "sample_id": sample_id,
                "id": row["id"],
                "question": row["question"],
                "answer": row["answer"],
                "tokens": tokens,
                "tags": tags,
                "frames": strip.name,
            }
        )
    path = folder / "samples.json"
    path.write_text(json.dumps(entries, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return {record.name: [path, *paths]}


def traced(record: Record) -> list[int]:
    """Sample ids of the run's trace: evenly spread rows of the training set (`repro.run`)."""
    size, count = record.config["data"]["train"], record.config["trace_samples"]
    return list(range(0, size, size // count))[:count]


def targets_of(ids: Sequence[int], tags: Sequence[int], tokenizer: Any) -> tuple[list[str], list[str]]:
    """Text and tag of each target."""
    names = {code: tag for tag, code in TAGS.items()}
    return [tokenizer.decode([i]) for i in ids], [names[code] for code in tags]


# --- attention ---


@dataclass(frozen=True)
class TestClip:
    """An encoded row of the test split and what is known of it."""

    __test__ = False  # no test class

    row: dict[str, Any]
    clip: Clip
    frames: np.ndarray  # uint8 [F, H, W, 3]


def test_clips(material: Material) -> list[TestClip]:
    """The clips of the test split whose answers have enough tokens to tell sinks and name an object of the scene."""
    found = []
    for index, row in enumerate(material.encoded(SPLIT)):
        name, scene, _ = world.example(SPLIT, index, material.data.seed)
        assert name == row["id"], f"row {index} of the test split is {row['id']}, the world says {name}"
        tokens, tags = targets_of(material.targets(row), row["tags"], material.processor.tokenizer)
        things = [(thing.colour, thing.noun) for thing in scene.objects]
        named = names_objects(tokens, tags, things)
        if len(tokens) < FEWEST or not any(owner is not None for owner in named):
            continue
        boxes = [
            [None if np.isnan(box).any() else [float(v) for v in box] for box in frame] for frame in world.boxes(scene)
        ]
        objects = [f"{colour} {noun}" for colour, noun in things]
        clip = Clip(name, row["question"], row["answer"], tokens, tags, objects, named, boxes, f"{name}.webp")
        found.append(TestClip(row, clip, material.clip(row)))
    return found


test_clips.__test__ = False  # type: ignore[attr-defined]


def look_through(
    model: Any, clips: Sequence[TestClip], processor: Any, shown: set[int]
) -> tuple[list[dict[Key, float]], list[ClipAttention], Grid]:
    """A model's scores on every clip, its attention on those numbered in ``shown``, and the grid of them all."""
    collate = MicroCollator(processor)
    scores, kept = [], []
    for start in range(0, len(clips), BATCH):
        batch = collate([one.row for one in clips[start : start + BATCH]])
        for index, maps in enumerate(attention_over_frames(model, batch, predictors(batch["labels"])), start):
            one, grid = clips[index], maps.grid
            place = (one.clip.box_array(), grid.frames, grid.extent, one.frames.shape[1:3])
            scores.append(clip_scores(maps.weights, one.clip.named, *place))
            if index in shown:
                kept.append(ClipAttention(one.clip, maps.weights, maps.rest, find_sinks(maps.weights)))
    return scores, kept, grid


def write_attention(standard: Record, regate: Record, runs: Path, count: int, prepared: Path) -> dict[str, list[Path]]:
    """Grounding of both runs over the test set and, of seed 0, attention on ``count`` clips; the files of each run.

    Raises:
        UnknownGrid: the student's visual tokens have no place in frames.
        StaleRun: a model that is gone or changed.
    """
    material = material_of(regate, runs, prepared)
    clips = test_clips(material)
    if not clips:
        raise StaleRun(f"none of the {material.data.validation} clips of the {SPLIT} split names an object: draw more")
    count = min(count, len(clips)) if regate.seed == MAPS_OF else 0
    shown = set(np.random.default_rng(SEED).choice(len(clips), count, replace=False).tolist())
    made = environment(threads=torch.get_num_threads())
    scores: dict[str, list[dict[Key, float]]] = {}
    sources: dict[str, Any] = {}
    files: dict[str, list[Path]] = {regate.name: []}
    for record in (standard, regate):
        model, digest = model_of(record, runs, material)
        source = {"run": record.name, "method": record.method, "student": record.student, "seed": record.seed}
        source |= {"config_hash": record.config_hash, "model_sha256": digest, "split": SPLIT, "made": made}
        sources[record.method] = source
        scores[record.method], kept, grid = look_through(model, clips, material.processor, shown)
        if shown:
            folder = runs / record.name
            files[record.name] = write(folder, StoredAttention(kept, grid.frames, grid.extent, source))
            for index in sorted(shown):
                write_strip(folder / clips[index].clip.frames, clips[index].frames)
                files[record.name].append(folder / clips[index].clip.frames)
    path = runs / regate.name / "grounding.json"
    path.write_text(json.dumps(grounding(clips, scores, sources, material), indent=1) + "\n", encoding="utf-8")
    files[regate.name].append(path)
    return files


def grounding(
    clips: Sequence[TestClip], scores: dict[str, list[dict[Key, float]]], sources: dict[str, Any], material: Material
) -> dict[str, Any]:
    """The grounding record: scores with all that is needed to repeat them."""
    return {
        "schema": 1,
        "standard": sources["stock"],
        "regate": sources["regate"],
        "split": SPLIT,
        "data": dataclasses.asdict(material.data),
        "world_version": world.WORLD_VERSION,
        "drawn": material.data.validation,
        "choice_seed": SEED,
        "clips": len(clips),
        "tokens": sum(owner is not None for one in clips for owner in one.clip.named),
        "queries": "the position that predicts a noun or a colour which names one object of the clip",
        "boxes": "eval.world.boxes; a slice of several frames takes their mean",
        "sinks": {"times": TIMES, "share": SHARE},
        "interval": {"level": LEVEL, "over": "clips", "resamples": REPS, "seed": SEED},
        "scores": compare(scores["stock"], scores["regate"], SEED),
    }


# --- what `make keep` takes along ---


def write_manifest(record: Record, runs: Path, paths: Sequence[Path]) -> int:
    """`artefacts.json`: the files with their hashes, and what they are made from; their size in bytes."""
    made = environment(threads=torch.get_num_threads())
    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(set(paths))}
    of = {"config_hash": record.config_hash, "artefacts": record.artefacts}
    about = {"schema": 1, "run": record.name, "record": of, "made": made, "files": files}
    (runs / record.name / MANIFEST).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    return sum(path.stat().st_size for path in set(paths))
