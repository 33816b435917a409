"""What preparation trains on, made once from seeds: packed text, scenes with questions and answers, scripts, clips.

All turns about a scene share one pass over its frames: they stand one behind the other, each sees the frames and itself
(`Batch.mask`) and starts at the same position, so each is computed as if it stood alone.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import torch
from tqdm import tqdm

from eval.world import FRAMES, Scene, Turn, caption, conversation, corpus, render, sample_scene
from repro.families import family_of
from repro.micro_data import IGNORE, TAGS, Encoder
from repro.rehearsal import Symbols, script

OTHER, CAPTION, ATTRIBUTE = 0, 1, 2  # what a target is: template and end marker, visual word of a caption, of an answer
PAD_TURN = -1


def tokenizer_texts(seed: int, count: int) -> list[str]:
    """Plain documents, and turns of the fine-tuning style, so that each of their words is one token too."""
    rng = random.Random(f"tokenizer {seed}")
    turns = [conversation(sample_scene(rng.getrandbits(62), "train"), rng) for _ in range(count // 4)]
    roles = ["user\n", "assistant\n", "system\n"] * 50
    return [*islice(corpus(seed), count), *(f"{t.question}\n{t.answer}" for t in turns), *roles]


def packed_text(encoder: Encoder, seed: int, documents: int) -> np.ndarray:
    """The corpus as one stream of token ids (int32), an end-of-text marker after every document."""
    tokenizer = encoder.tokenizer
    end = tokenizer.convert_tokens_to_ids(family_of(encoder.processor).end_of_text)
    stream: list[int] = []
    texts = list(islice(corpus(seed + 1), documents))
    for ids in tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]:
        stream += [*ids, end]
    return np.asarray(stream, np.int32)


@dataclass(frozen=True)
class Row:
    """Turns about one clip. All lists have length L; `turn` is 0 for the frames, k for the k-th turn."""

    ids: list[int]
    labels: list[int]
    positions: list[int]
    turn: list[int]
    kinds: list[int]  # OTHER, CAPTION or ATTRIBUTE


def pack_turns(encoder: Encoder, turns: Sequence[Turn]) -> Row:
    """The conversations about a clip, their common beginning (the frames) once."""
    end_of_frames = encoder.tokenizer.convert_tokens_to_ids(family_of(encoder.processor).end_of_frames)
    row = Row([], [], [], [], [])
    for number, spoken in enumerate(turns, 1):
        one = encoder.encode(spoken.question, spoken.answer, FRAMES, spoken.spans)
        ids, labels = one["input_ids"], one["labels"]
        frames = len(ids) - ids[::-1].index(end_of_frames)
        kind = CAPTION if spoken.kind == "caption" else ATTRIBUTE
        answer = [kind if tag == TAGS["visual"] else OTHER for tag in one["tags"]]
        kinds = [OTHER] * (len(ids) - len(answer)) + answer
        begin = 0 if number == 1 else frames
        row.ids.extend(ids[begin:])
        row.labels.extend(labels[begin:])
        row.kinds.extend(kinds[begin:])
        row.positions.extend(range(begin, len(ids)))
        row.turn.extend([0] * (frames - begin) + [number] * (len(ids) - frames))
    return row


@dataclass
class Pool:
    """Scenes with their turns, scripts and clips. `natural` scenes draw words by their Zipf law, the others evenly."""

    scenes: list[Scene]
    rows: list[Row]
    natural: np.ndarray  # bool [N]
    scripts: list[np.ndarray] = field(default_factory=list)  # float16 [F, Q, K], frame by frame
    clips: np.ndarray | None = None  # uint8 [N, F, H, W, 3]

    def __len__(self) -> int:
        return len(self.scenes)

    def with_scripts(self, table: Symbols) -> Pool:
        self.scripts = [script(scene, table) for scene in tqdm(self.scenes, desc="scripts", disable=len(self) < 5000)]
        return self

    def frames(self) -> np.ndarray:
        """The clips, rendered on first use."""
        if self.clips is None:
            scenes = tqdm(self.scenes, desc="clips", disable=len(self) < 3000)
            self.clips = np.stack([render(scene) for scene in scenes])
        return self.clips


def make_pool(encoder: Encoder, seed: int, split: str, scenes: int, turns: int) -> Pool:
    """`scenes` scenes of a split, every second one with words drawn evenly; to each a caption and questions."""
    pool = Pool([], [], np.arange(scenes) % 2 == 0)
    for index in tqdm(range(scenes), desc=f"{split} questions", disable=scenes < 3000):
        rng = random.Random(f"pool {seed} {split} {index}")
        scene = sample_scene(rng.getrandbits(62), split, uniform=not pool.natural[index])
        captions: dict[str, Turn] = {}
        attributes: dict[str, Turn] = {}
        for _ in range(12 * turns):
            spoken = caption(scene, rng)
            (captions if spoken.kind == "caption" else attributes).setdefault(spoken.question, spoken)
            if captions and len(attributes) >= turns - 1:
                break
        chosen = [*islice(captions.values(), 1), *islice(attributes.values(), turns - 1)]
        pool.scenes.append(scene)
        pool.rows.append(pack_turns(encoder, chosen))
    return pool


@dataclass(frozen=True)
class Batch:
    """Rows side by side, right-padded: [B, L] each, `mask` bool [B, 1, L, L] (query, key)."""

    ids: torch.Tensor
    labels: torch.Tensor
    positions: torch.Tensor
    kinds: torch.Tensor
    mask: torch.Tensor


def batch_of(rows: Sequence[Row], pad_id: int, context_id: int, blind: np.ndarray | None = None) -> Batch:
    """A batch. In rows where `blind` [B] is set nobody sees the visual seats."""
    length = max(len(row.ids) for row in rows)

    def padded(name: str, value: int) -> torch.Tensor:
        lists = [getattr(row, name) for row in rows]
        return torch.tensor([entry + [value] * (length - len(entry)) for entry in lists])

    ids, turn = padded("ids", pad_id), padded("turn", PAD_TURN)
    same = (turn[:, None, :] == 0) | (turn[:, None, :] == turn[:, :, None])
    mask = same & torch.ones(length, length, dtype=torch.bool).tril()
    if blind is not None:
        seats = ids == context_id
        hidden = seats & torch.from_numpy(blind)[:, None]
        mask = mask & (~hidden[:, None, :] | torch.eye(length, dtype=torch.bool))
    return Batch(ids, padded("labels", IGNORE), padded("positions", 0), padded("kinds", OTHER), mask[:, None])
