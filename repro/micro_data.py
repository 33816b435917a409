"""World examples as model inputs, once and fast: Arrow rows with tokens, tags and raw frames, and a collator for them.

Token ids are those of the stock processor (its template, its video text, its tokenizer), pixel values those of its
video processor; both are held equal by tests. Only the detour through PIL, lists and per-call set-up is gone.

Shapes: B samples, L positions (longest of the batch), F frames, T targets.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import datasets
import numpy as np
import torch
from transformers.video_utils import VideoMetadata

from repro.families import family_of

TAGS = {"template": 0, "visual": 1, "wording": 2, "special": 3}
IGNORE = -100
IMAGE_SIZE = 64

FEATURES = datasets.Features(
    {
        "sample_id": datasets.Value("int64"),
        "id": datasets.Value("string"),
        "input_ids": datasets.List(datasets.Value("int32")),
        "labels": datasets.List(datasets.Value("int32")),
        "frames": datasets.Value("binary"),
        "tags": datasets.List(datasets.Value("int8")),
        "question": datasets.Value("string"),
        "answer": datasets.Value("string"),
        "kind": datasets.Value("string"),
    }
)


@dataclass(frozen=True)
class Example:
    """A clip with a question and an answer. `spans` are (start, end, tag) in characters of the answer."""

    id: str
    frames: np.ndarray  # uint8 [F, H, W, 3]
    question: str
    answer: str
    kind: str = "caption"
    spans: Sequence[tuple[int, int, str]] = ()


class Encoder:
    """Turns examples into token columns, through the processor's own template, video text and tokenizer."""

    def __init__(self, processor: Any):
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self._video_text: dict[int, str] = {}
        self.end, self.end_id = self.tokenizer.eos_token, self.tokenizer.eos_token_id

    def video_text(self, num_frames: int) -> str:
        """What the stock processor puts in the place of `<video>` for a clip of `num_frames` frames."""
        if num_frames not in self._video_text:
            frames = np.empty((num_frames, 3, IMAGE_SIZE, IMAGE_SIZE), np.uint8)
            stub = {"pixel_values_videos": [frames], "video_metadata": [VideoMetadata(num_frames)]}
            self._video_text[num_frames] = self.processor.replace_video_token(stub, 0)
        return self._video_text[num_frames]

    def prompt_text(self, question: str, num_frames: int) -> str:
        """The conversation up to where the answer starts; `num_frames` 0 leaves the video out."""
        content: list[dict[str, str]] = [{"type": "video"}] if num_frames else []
        content.append({"type": "text", "text": question})
        messages = [{"role": "user", "content": content}]
        text = self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return text.replace(self.processor.video_token, self.video_text(num_frames)) if num_frames else text

    def encode(
        self, question: str, answer: str, num_frames: int, spans: Sequence[tuple[int, int, str]] = ()
    ) -> dict[str, list[int]]:
        """`input_ids` [L], `labels` [L] (answer and its end marker, else -100) and `tags` [T] of one conversation."""
        prompt = self.prompt_text(question, num_frames)
        encoding = self.tokenizer(
            prompt + answer + self.end,
            add_special_tokens=False,  # the template writes them
            return_offsets_mapping=True,
            return_attention_mask=False,
        )
        ids, offsets = encoding["input_ids"], encoding["offset_mapping"]
        first = next(i for i, (_, end) in enumerate(offsets) if end > len(prompt))
        if offsets[first][0] < len(prompt):
            raise ValueError(f"a token runs from the prompt into the answer {answer!r}: no clean first target")
        labels = [IGNORE] * first + ids[first:]
        begin = len(prompt)
        tags = [
            TAGS["special"] if token == self.end_id else _tag(answer, a - begin, b - begin, spans)
            for token, (a, b) in zip(ids[first:], offsets[first:], strict=True)
        ]
        return {"input_ids": ids, "labels": labels, "tags": tags}

    def row(self, example: Example) -> dict[str, Any]:
        """All columns of `FEATURES` for one example."""
        return {
            "sample_id": stable_id(example.id),
            "id": example.id,
            **self.encode(example.question, example.answer, len(example.frames), example.spans),
            "frames": np.ascontiguousarray(example.frames).tobytes(),
            "question": example.question,
            "answer": example.answer,
            "kind": example.kind,
        }


def stable_id(name: str) -> int:
    """A non-negative int64 that depends on the name alone."""
    data = name.encode()
    return (zlib.crc32(data) << 31) ^ zlib.crc32(data[::-1])


def _tag(answer: str, start: int, end: int, spans: Sequence[tuple[int, int, str]]) -> int:
    """Tag of the token at [start, end): the span that covers its first character that is no space."""
    while start < end - 1 and answer[start].isspace():
        start += 1
    for a, b, tag in spans:
        if a <= start < b:
            return TAGS[tag]
    return TAGS["template"]


def encode_examples(examples: Iterable[Example], processor: Any) -> datasets.Dataset:
    """An in-memory Arrow data set of `FEATURES`; sample ids are checked to be unique."""
    encoder = Encoder(processor)
    rows = [encoder.row(example) for example in examples]
    if len({row["sample_id"] for row in rows}) != len(rows):
        raise ValueError("two examples have one id: ids must be unique within a data set")
    columns = {name: [row[name] for row in rows] for name in FEATURES}
    return datasets.Dataset.from_dict(columns, features=FEATURES)


def frames_of(row: Mapping[str, Any]) -> np.ndarray:
    """uint8 [F, H, W, 3] of a row."""
    return np.frombuffer(row["frames"], np.uint8).reshape(-1, IMAGE_SIZE, IMAGE_SIZE, 3)


@dataclass
class MicroCollator:
    """Rows of `FEATURES` (frames as bytes) -> a right-padded batch with normalised pixels.

    `extra` names further columns that stay in the batch as they are (ids, reference losses), for a gated trainer.
    """

    processor: Any
    extra: Sequence[str] = ()
    _mean: torch.Tensor = field(init=False, repr=False)
    _std: torch.Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        video = self.processor.video_processor
        # The stock processor fuses rescaling into the statistics: (x - mean / factor) / (std / factor).
        self._mean = (torch.tensor(video.image_mean) * (1.0 / video.rescale_factor)).view(1, 3, 1, 1)
        self._std = (torch.tensor(video.image_std) * (1.0 / video.rescale_factor)).view(1, 3, 1, 1)

    def pixels(self, frames: np.ndarray) -> torch.Tensor:
        """uint8 [N, H, W, 3] -> normalised float [N, 3, H, W], as the stock video processor."""
        x_NCHW = torch.from_numpy(frames).permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
        return x_NCHW.sub_(self._mean).div_(self._std)

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        length = max(len(row["input_ids"]) for row in rows)
        pad = self.processor.tokenizer.pad_token_id
        ids_BL = torch.full((len(rows), length), pad, dtype=torch.long)
        labels_BL = torch.full((len(rows), length), IGNORE, dtype=torch.long)
        mask_BL = torch.zeros((len(rows), length), dtype=torch.long)
        for i, row in enumerate(rows):
            n = len(row["input_ids"])
            ids_BL[i, :n] = torch.as_tensor(row["input_ids"])
            labels_BL[i, :n] = torch.as_tensor(row["labels"])
            mask_BL[i, :n] = 1
        batch: dict[str, Any] = {"input_ids": ids_BL, "attention_mask": mask_BL, "labels": labels_BL}
        clips = [frames_of(row) for row in rows if row["frames"]]
        if clips:
            pixels = self.pixels(np.concatenate(clips))
            batch |= family_of(self.processor).visual_inputs(self.processor, pixels.unflatten(0, (len(clips), -1)))
        for name in self.extra:
            batch[name] = [row[name] for row in rows]
        return batch


def batches_by_length(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Indices in batches of similar length, longest first."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]
