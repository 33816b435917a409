"""What the small scale's runs read, made once under ``runs/cache``: clips as video files, conversations, tags,
reference losses, the vision tower's features, questions.

Rows are what a user's are (`regate.conversations`): messages and video files, through the stock processor and regate's
own collator and caches. Beside them stand the tag of each target and what the app shows.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from peft import PeftModel
from transformers import AutoModelForImageTextToText, AutoProcessor

from eval import world
from eval.world import mvbench
from regate import add_reference_losses, conversations
from regate.media import read_video
from regate.media_cache import FrameCache
from repro.material import once, teacher_cost
from repro.micro_data import IGNORE, Encoder
from repro.recipes import Data, Recipe
from repro.small import easy_vqa
from repro.small.models import easy_vqa_path, require
from repro.small.seeing import CACHE_GB, Seeing
from repro.small.student import aligned, build, identity

FEATURES = datasets.Features(
    conversations.FEATURES
    | {"tags": datasets.List(datasets.Value("int8"))}
    | {name: datasets.Value("string") for name in ("question", "answer", "kind")}
)
"""A table of conversations, with the tag of each target and what the app shows."""
QUESTIONS_OF_EASY_VQA = 240


@dataclass(frozen=True)
class Asked:
    """A question about a clip, with options; ``answer`` is the index of the right one."""

    question: str
    options: Sequence[str]
    answer: int
    task: str
    video: str


@dataclass(frozen=True)
class SmallMaterial:
    """Everything a run reads. ``easy``: it is trained and followed on easy-VQA in the place of the world."""

    data: Data
    runs: Path
    easy: bool = False
    device: str = "cpu"

    @property
    def cache(self) -> Path:
        """Where clips, rows and features are kept."""
        return self.runs / "cache" / "small"

    @cached_property
    def student_path(self) -> Path:
        """The student before fine-tuning; ModelsError where `make models` has not been run."""
        require(self.runs)
        return build(self.runs)

    @cached_property
    def student_hash(self) -> str:
        """Of its parts, its shape and its aligned projector."""
        return identity(aligned(self.runs))

    @cached_property
    def processor(self) -> Any:
        """The student's processor."""
        return AutoProcessor.from_pretrained(self.student_path)

    @property
    def vision(self) -> Path:
        """Folder of the tower's features."""
        return self.cache / "vision"

    @property
    def frames(self) -> FrameCache:
        """Decoded frames, for the passes before features are there."""
        return FrameCache(self.cache / "frames", CACHE_GB)

    def model(self) -> Any:
        """A fresh copy of the student, fp32, its tower frozen."""
        return _frozen(AutoModelForImageTextToText.from_pretrained(self.student_path, dtype=torch.float32))

    def trained(self, folder: Path) -> Any:
        """What a run saved in ``folder``: a whole model, or adapters on top of the student. fp32."""
        if (folder / "adapter_config.json").exists():
            return PeftModel.from_pretrained(self.model(), folder)
        return _frozen(AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32))

    def _folder(self, kind: str, *keys: Any) -> Path:
        return self.cache / "-".join(map(str, (kind, f"world{world.WORLD_VERSION}", *keys)))

    def encoded(self, split: str) -> datasets.Dataset:
        """Conversations of a split with ids, tags of their targets, question, answer and kind."""
        size = self.data.train if split == "train" else self.data.validation
        kind = "easy" if self.easy else "rows"
        folder = self._folder(kind, split, size, self.data.seed, self.student_hash[:8])

        def make(to: Path) -> None:
            encoder = Encoder(self.processor)
            rows = [row(encoder, number, *given) for number, given in enumerate(self._samples(split, size))]
            datasets.Dataset.from_list(rows, features=FEATURES).save_to_disk(to)

        return datasets.load_from_disk(str(once(folder, make)))

    def _samples(self, split: str, size: int) -> Iterator[tuple[str, Path, str, str, str, Any]]:
        """Id, clip, question, answer, kind and spans of each sample; clips are written where they are missing."""
        if self.easy:  # its own test split is for scoring, so runs are followed on the end of its training split
            asked = easy_vqa.questions(easy_vqa_path(self.runs), "train", self.data.train + self.data.validation)
            asked = asked[: self.data.train] if split == "train" else asked[self.data.train :]
            for one, path in zip(asked, easy_vqa.clips(asked, self.cache / "clips" / "easy-vqa"), strict=True):
                yield one.id, path, one.question, easy_vqa.FRAME.format(one.answer), one.kind, one.spans
            return
        folder = self.cache / "clips" / f"{split}-{self.data.seed}"
        folder.mkdir(parents=True, exist_ok=True)
        for index in range(size):
            name, scene, turn = world.example(split, index, self.data.seed)
            path = folder / f"{index:05d}.mp4"
            if not path.exists():
                mvbench.encode(world.render(scene), path)
            yield name, path, turn.question, turn.answer, turn.kind, turn.spans

    def targets(self, row: dict[str, Any]) -> list[int]:
        """Token ids of a row's answer, its end marker included."""
        labels = Encoder(self.processor).encode(row["question"], row["answer"], world.FRAMES)["labels"]
        return [label for label in labels if label != IGNORE]

    def clip(self, row: dict[str, Any]) -> np.ndarray:
        """uint8 [F, H, W, 3] of a row."""
        return read_video(row["videos"][0], world.FRAMES)

    def scored(self, teacher: str = "aligned") -> tuple[datasets.Dataset, dict[str, float]]:
        """The training rows with the reference losses of the student's own backbone, and what that cost.

        Raises:
            ValueError: another teacher than the student's own backbone.
        """
        if teacher != "aligned":
            raise ValueError(f"the small scale has one teacher, its own backbone ('aligned'); got {teacher!r}")
        rows = self.encoded("train")
        kind = "easy" if self.easy else "scored"
        folder = self._folder(kind, "reference", self.data.train, self.data.seed, self.student_hash[:8])

        def make(to: Path) -> None:
            model, began = self.model().to(self.device), time.perf_counter()
            told = rows.select_columns(["id", "sample_id", "messages", "images", "videos"])
            options: dict[str, Any] = {"cache_dir": self.cache / "shards", "shard_rows": 128, "frames": self.frames}
            scored = add_reference_losses(told, model, self.processor, batch_tokens=2048, **options)
            cost = {"seconds": time.perf_counter() - began, **teacher_cost(self._tokens(rows), model, self.processor)}
            scored.select_columns(["reference_losses", "reference_id"]).save_to_disk(to / "columns")
            (to / "cost.json").write_text(json.dumps(cost))

        folder = once(folder, make)
        added = datasets.load_from_disk(str(folder / "columns"))
        return datasets.concatenate_datasets([rows, added], axis=1), json.loads((folder / "cost.json").read_text())

    def _tokens(self, rows: datasets.Dataset) -> datasets.Dataset:
        """input_ids and labels of rows, whose pictures are not looked at."""
        encoder = Encoder(self.processor)
        tokens = [encoder.encode(row["question"], row["answer"], world.FRAMES) for row in rows]
        return datasets.Dataset.from_list([{name: one[name] for name in ("input_ids", "labels")} for one in tokens])

    def prepare(self, teacher: str = "aligned") -> None:
        """Make all that a run reads: features of the training rows, too, or the first run's time would hold them."""
        rows, _ = self.scored(teacher)
        self.encoded("validation"), self.questions(), self.easy_questions()
        Seeing(self).store(self.model().to(self.device), rows)

    def questions(self) -> tuple[list[Asked], str]:
        """The MVBench twin's questions with their clips, and a fingerprint of questions and order."""
        tasks, count = self.data.tasks, self.data.questions_per_task
        if not tasks:
            return [], ""
        asked = hashlib.sha256(" ".join(tasks).encode()).hexdigest()[:8]
        folder = self._folder("mvbench", asked, count, self.data.seed)
        mvbench.write(folder, per_task=count, seed=self.data.seed, tasks=tasks)
        found = mvbench.questions(folder)
        choices = [Asked(q.question, q.candidates, q.correct, q.task, q.video) for q in found]
        return choices, _fingerprint([[q.task, q.id, q.question, list(q.candidates), q.answer] for q in found])

    def easy_questions(self) -> tuple[list[Asked], str]:
        """Questions of easy-VQA's test split, the kinds in equal parts; the options are the answers of the kind."""
        asked = easy_vqa.questions(easy_vqa_path(self.runs), "test", QUESTIONS_OF_EASY_VQA)
        paths = easy_vqa.clips(asked, self.cache / "clips" / "easy-vqa")
        choices = [
            Asked(one.question, [easy_vqa.FRAME.format(a) for a in easy_vqa.ANSWERS[one.kind]],
                  easy_vqa.ANSWERS[one.kind].index(one.answer), one.kind, str(path))
            for one, path in zip(asked, paths, strict=True)
        ]  # fmt: skip
        return choices, _fingerprint([[one.id, one.question, one.answer] for one in asked])


def material_of(recipe: Recipe, runs: Path, device: str = "cpu") -> SmallMaterial:
    """What a recipe of the small scale runs on."""
    return SmallMaterial(recipe.data, runs, recipe.table == "easyvqa", device)


def row(
    encoder: Encoder, number: int, name: str, video: Path, question: str, answer: str, kind: str, spans: Any
) -> dict[str, Any]:
    """A conversation about a clip, as `regate.conversations` has it, with its tags."""
    return {
        "id": name,
        "sample_id": number,
        "messages": json.dumps(messages(question, answer)),
        "images": [],
        "videos": [str(video.absolute())],
        "tags": encoder.encode(question, answer, world.FRAMES, spans)["tags"],
        "question": question,
        "answer": answer,
        "kind": kind,
    }


def messages(question: str, answer: str) -> list[dict[str, Any]]:
    """A turn about a clip."""
    asked = [{"type": "video"}, {"type": "text", "text": question}]
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": [{"type": "text", "text": answer}]}]


def _frozen(model: Any) -> Any:
    model.model.vision_tower.requires_grad_(False)
    return model


def _fingerprint(told: Any) -> str:
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]
