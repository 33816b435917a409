"""What runs are made of, made once under ``runs/cache``: rendered and encoded data, reference losses, the twin."""

import hashlib
import json
import os
import shutil
import time
import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor

import regate.models  # noqa: F401 - the Auto classes know our students
from eval import world
from eval.world import mvbench
from regate import add_reference_losses, add_visual_dependence
from regate.accounting import FlopModel
from regate.integrations.checkpoint import require_intact
from regate.media import read_video
from regate.reference import load_teacher
from repro.evaluate import Choice
from repro.micro_data import IGNORE, Example, MicroCollator, encode_examples, frames_of
from repro.recipes import Data

ROOT = Path(__file__).resolve().parent.parent
PREPARED = ROOT / "results" / "students"
TEACHERS = ROOT / "results" / "teachers"
_TOKENS_AT_ONCE = 16384
SEEING = "seeing"
"""In the place of a teacher: the prepared student with and without its visual tokens (regate.dependence)."""


@dataclass(frozen=True)
class Material:
    """Everything a run of ``student`` on ``data`` reads. Parts are made on first use and found again later."""

    student: str
    data: Data
    cache: Path
    prepared: Path = PREPARED
    teachers: Path = TEACHERS

    @property
    def student_path(self) -> Path:
        """Directory of the prepared student; an error names the command that makes it."""
        path = self.prepared / self.student
        if not (path / "model.safetensors").is_file():
            raise FileNotFoundError(f"{path} holds no prepared student: run `make students`")
        return path

    @cached_property
    def student_hash(self) -> str:
        """sha256 of the prepared weights."""
        return hashlib.sha256((self.student_path / "model.safetensors").read_bytes()).hexdigest()

    @cached_property
    def processor(self) -> Any:
        """The student's processor."""
        return AutoProcessor.from_pretrained(self.student_path)

    def model(self) -> Any:
        """A fresh copy of the prepared student, fp32."""
        return AutoModelForImageTextToText.from_pretrained(self.student_path, dtype=torch.float32)

    def trained(self, folder: Path) -> Any:
        """What a run saved in ``folder``: a whole model, or adapters on top of the prepared student. fp32."""
        require_intact(str(folder))
        if (folder / "adapter_config.json").exists():
            return PeftModel.from_pretrained(self.model(), folder)
        return AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)

    def _folder(self, kind: str, *keys: Any) -> Path:
        name = "-".join(map(str, (kind, f"world{world.WORLD_VERSION}", *keys)))
        return self.cache / name

    def encoded(self, split: str) -> datasets.Dataset:
        """Rows of a split as model inputs: frames, input_ids, labels and the tag of each target."""
        size = self.data.train if split == "train" else self.data.validation
        folder = self._folder(split, size, self.data.seed, self.student_hash[:8])

        def make(to: Path) -> None:
            rows = world.training_set(split, size, self.data.seed)
            encoded = encode_examples(map(_example, rows), self.processor)
            # The gate and the EMA key by row; the world's names stay in `id`.
            rows = encoded.remove_columns("sample_id").add_column("sample_id", np.arange(size, dtype=np.int64))
            rows.save_to_disk(to)

        return datasets.load_from_disk(str(once(folder, make)))

    def targets(self, row: dict[str, Any]) -> list[int]:
        """Token ids of an encoded row's answer, its end marker included."""
        return [label for label in row["labels"] if label != IGNORE]

    def clip(self, row: dict[str, Any]) -> np.ndarray:
        """uint8 [F, H, W, 3] of an encoded row."""
        return frames_of(row)

    def teacher(self, name: str) -> Any:
        """A text-only teacher, fp32: "aligned" is the prepared student's own backbone, others are in `teachers`."""
        if name in ("aligned", SEEING):
            return self.model()
        path = self.teachers / f"{self.student}-{name}"
        if not (path / "model.safetensors").is_file():
            raise FileNotFoundError(f"{path} holds no teacher: run `make teachers`")
        return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)

    def scored(self, teacher: str = "aligned") -> tuple[datasets.Dataset, dict[str, float]]:
        """The training rows with a teacher's reference losses, or with visual dependence (`SEEING`), and what it cost.

        Cost: ``seconds`` (on this machine, alone or not), ``flops`` of the compacted forward passes, ``tokens``.
        """
        keys = () if teacher == "aligned" else (teacher,)
        folder = self._folder("scored", self.data.train, self.data.seed, self.student_hash[:8], *keys)

        def make(to: Path) -> None:
            rows, model = self.encoded("train"), self.teacher(teacher)
            began = time.perf_counter()
            tokens = rows.select_columns(["input_ids", "labels", "sample_id"])
            if teacher == SEEING:
                scored = add_visual_dependence(rows, model, self.processor, MicroCollator(self.processor))
            else:
                scored = add_reference_losses(tokens, model, self.processor, batch_tokens=_TOKENS_AT_ONCE)
            spent = teacher_cost(tokens, model, self.processor, sees=teacher == SEEING)
            cost = {"seconds": time.perf_counter() - began, **spent}
            added = scored.select_columns(["reference_losses", "reference_id"])
            datasets.concatenate_datasets([rows, added], axis=1).save_to_disk(to)
            (to / "cost.json").write_text(json.dumps(cost))

        folder = once(folder, make)
        return datasets.load_from_disk(str(folder)), json.loads((folder / "cost.json").read_text())

    def prepare(self, teacher: str = "aligned") -> None:
        """Make all of it that a run with this teacher reads."""
        self.scored(teacher), self.encoded("validation"), self.questions()

    def questions(self) -> tuple[list[Choice], str]:
        """The MVBench twin's questions with their clips, and a fingerprint of questions and order."""
        tasks = self.data.tasks
        asked = f"{zlib.crc32(' '.join(tasks).encode()):08x}"
        folder = self._folder("mvbench", asked, self.data.questions_per_task, self.data.seed)
        mvbench.write(folder, per_task=self.data.questions_per_task, seed=self.data.seed, tasks=tasks)
        questions = mvbench.questions(folder)

        def decode(to: Path) -> None:
            to.mkdir()
            np.save(to / "frames.npy", np.stack([read_video(q.video, world.FRAMES) for q in questions]))

        decoded = once(self._folder("frames", asked, self.data.questions_per_task, self.data.seed), decode)
        frames = np.load(decoded / "frames.npy", mmap_mode="r")  # uint8 [questions, F, H, W, 3]
        choices = [
            Choice(q.question, q.candidates, q.candidates.index(q.answer), q.task, frames=clip)
            for q, clip in zip(questions, frames, strict=True)
        ]
        text = json.dumps([[q.task, q.id, q.question, list(q.candidates), q.answer] for q in questions])
        return choices, hashlib.sha256(text.encode()).hexdigest()[:16]


def teacher_fingerprint(rows: datasets.Dataset) -> str:
    """Of the teacher whose reference losses rows carry, as ``ReGateConfig.teacher`` takes it."""
    return dict(part.split("=", 1) for part in rows[0]["reference_id"].split(";"))["teacher"]


def _example(row: dict[str, Any]) -> Example:
    frames = np.frombuffer(row["frames"], np.uint8).reshape(world.FRAMES, world.SIZE, world.SIZE, 3)
    return Example(row["id"], frames, row["question"], row["answer"], row["kind"], json.loads(row["spans"]))


def teacher_cost(
    rows: datasets.Dataset, model: torch.nn.Module, processor: Any, sees: bool = False
) -> dict[str, float]:
    """Tokens and FLOPs of decoder and head; ``sees``: a second pass with visual tokens."""
    teacher = load_teacher(model, processor, attend_placeholders=False)
    hidden, flops, tokens = set(teacher.placeholder_ids), 0.0, 0
    counter = FlopModel.of(teacher.decoder, teacher.head)
    for row in rows:
        targets = sum(label != -100 for label in row["labels"][1:])
        lengths = [sum(i not in hidden for i in row["input_ids"]), *([len(row["input_ids"])] if sees else [])]
        for n in lengths:
            flops += counter.decoder_step(n, n * (n + 1) // 2, False) + counter.head_step(targets, False)
            tokens += n
    return {"flops": flops, "tokens": tokens}


def once(folder: Path, make: Any) -> Path:
    """``folder``, made whole by ``make`` or not at all; what a killed process left is thrown away."""
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
        shutil.rmtree(temporary, ignore_errors=True)
        make(temporary)
        for left in folder.parent.glob(f".{folder.name}.*"):
            if left != temporary:
                shutil.rmtree(left, ignore_errors=True)
        os.replace(temporary, folder)
    return folder
