"""easy-VQA as conversations: 64-pixel pictures of one shape, questions with one of 13 one-word answers. Not our data.

Each picture becomes a clip of one frame, which a loader repeats to eight: the student sees it as it sees everything.
Answers are put into a sentence ("The answer is red."), the same in training and in the options that are ranked.

    RUNS/models/packages/easy-vqa-1.0/easy_vqa/data/{train,test}/questions.json    [[question, answer, picture], ...]
    RUNS/models/packages/easy-vqa-1.0/easy_vqa/data/{train,test}/images/N.png
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from eval.world.mvbench import encode
from repro.small.packages import ModelsError

FRAME = "The answer is {}."
ANSWERS = {
    "yes/no": ("yes", "no"),
    "shape": ("rectangle", "circle", "triangle"),
    "colour": ("black", "gray", "red", "blue", "green", "yellow", "teal", "brown"),
}
"""Kind of question -> its answers: 13 in all, each the answer to one kind."""
KIND = {answer: kind for kind, answers in ANSWERS.items() for answer in answers}


@dataclass(frozen=True)
class Asked:
    """One question about one picture."""

    id: str
    question: str
    answer: str  # one of ANSWERS
    picture: Path

    @property
    def kind(self) -> str:
        """yes/no, shape or colour."""
        return KIND[self.answer]

    @property
    def spans(self) -> list[tuple[int, int, str]]:
        """Where the answer stands in its sentence, as the world's tags: the frame around it is template."""
        start = FRAME.index("{}")
        return [(start, start + len(self.answer), "visual")]


def questions(folder: Path, split: str, count: int, seed: int = 0) -> list[Asked]:
    """``count`` questions of a split ("train", "test"), drawn by a seed, the kinds in equal parts.

    Raises:
        ModelsError: the package holds no such file, or an answer that is not one of the thirteen.
    """
    path = next(folder.rglob(f"{split}/questions.json"), None)
    if path is None:
        raise ModelsError(f"{folder} holds no {split}/questions.json: delete it and run `make models`")
    rows = json.loads(path.read_text())
    unknown = sorted({answer for _, answer, _ in rows} - set(KIND))
    if unknown:
        raise ModelsError(f"{path} holds answers {unknown}, expected only {sorted(KIND)}")
    rng = random.Random(f"easy-vqa {split} {seed}")
    order = list(range(len(rows)))
    rng.shuffle(order)
    by_kind: dict[str, list[int]] = {kind: [i for i in order if KIND[rows[i][1]] == kind] for kind in ANSWERS}
    chosen = [indices[n] for n in range(len(rows)) for indices in by_kind.values() if n < len(indices)][:count]
    images = path.parent / "images"
    return [Asked(f"easy-vqa-{split}-{i}", rows[i][0], rows[i][1], images / f"{rows[i][2]}.png") for i in chosen]


def clips(asked: list[Asked], folder: Path) -> Iterator[Path]:
    """The clip of each question's picture, written below ``folder`` where it is not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    for one in asked:
        path = folder / f"{one.picture.parent.parent.name}-{one.picture.stem}.mp4"
        if not path.exists():
            with Image.open(one.picture) as picture:
                encode(np.asarray(picture.convert("RGB"))[None], path, fps=1)
        yield path
