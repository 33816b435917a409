"""Training sets as Arrow files: frames, question, answer and its tags, the same for the same (split, n, seed)."""

from __future__ import annotations

import atexit
import hashlib
import json
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from eval.world.language import conversation
from eval.world.markup import Turn
from eval.world.plain import caption
from eval.world.render import render
from eval.world.sample import sample_scene
from eval.world.scene import Scene
from eval.world.vocabulary import WORLD_VERSION

if TYPE_CHECKING:
    import datasets

STYLES: dict[str, Callable[[Scene, random.Random], Turn]] = {"conversation": conversation, "caption": caption}
SLOW = 2_000  # examples; more take over five seconds, so that a bar is shown


def example(split: str, index: int, seed: int, style: str = "conversation") -> tuple[str, Scene, Turn]:
    """Id, scene and turn number `index` of a training set."""
    digest = hashlib.sha256(f"{seed} {index}".encode()).digest()
    scene = sample_scene(int.from_bytes(digest[:7], "big"), split)
    spoken = STYLES[style](scene, random.Random(f"{style} {split} {seed} {index}"))
    return f"{style}-{split}-{seed}-{index:06d}", scene, spoken


def examples(
    split: str, n: int, seed: int, style: str = "conversation", frames: bool = True
) -> Iterator[dict[str, object]]:
    """The rows of a training set, one by one."""
    for index in range(n):
        name, scene, spoken = example(split, index, seed, style)
        yield {
            "id": name,
            "scene": json.dumps(scene.to_dict()),
            "frames": render(scene).tobytes() if frames else b"",
            "question": spoken.question,
            "answer": spoken.answer,
            "kind": spoken.kind,
            "spans": json.dumps(spoken.spans),
        }


def training_set(
    split: str, n: int, seed: int, style: str = "conversation", path: Path | str | None = None, frames: bool = True
) -> datasets.Dataset:
    """n turns about n clips, memory-mapped from an Arrow file.

    Columns: id (unique), scene (JSON), frames (the bytes of uint8 [8, 64, 64, 3]; 98,304 a row), question, answer,
    kind, spans (JSON list of [first, last + 1, tag]).

    style: "conversation" (the fine-tuning mix) or "caption" (alignment). path: where the file is written, and found
    again by a later call with the same arguments; left out, it lies in a temporary folder until the process ends.
    frames: False leaves that column empty (render the scene instead: about 1,500 clips a second).
    """
    import datasets
    from datasets.arrow_writer import ArrowWriter
    from tqdm.auto import tqdm

    if style not in STYLES:
        raise ValueError(f"unknown style {style!r}; expected one of {', '.join(STYLES)}")
    if n < 1:
        raise ValueError(f"a training set needs at least one example, got n={n}")
    if path is None:
        folder = Path(tempfile.mkdtemp(prefix="embedded-world-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        path = folder / "data.arrow"
    path = Path(path)
    made = json.dumps({"world": WORLD_VERSION, "split": split, "n": n, "seed": seed, "style": style, "frames": frames})
    stamp = path.with_name(path.name + ".json")
    if path.exists() and stamp.exists():
        if stamp.read_text() == made:
            return datasets.Dataset.from_file(str(path))
        raise ValueError(f"{path} holds another set: {stamp.read_text()}, not {made}; give another path or remove it")

    names = ("id", "scene", "frames", "question", "answer", "kind", "spans")
    features = datasets.Features({k: datasets.Value("binary" if k == "frames" else "string") for k in names})
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_name(path.name + ".part")
    rows = tqdm(examples(split, n, seed, style, frames), total=n, desc=f"{style} clips", disable=n < SLOW)
    with ArrowWriter(features=features, path=str(half), writer_batch_size=500) as writer:
        for row in rows:
            writer.write(row)
        writer.finalize()
    half.replace(path)
    stamp.write_text(made)
    return datasets.Dataset.from_file(str(path))
