"""The projector learns the language model's words, with tower and language model frozen. Two stages, resumable.

1. **words**: each visual token is to be the sum of the embeddings of what lies there, noun and colour by the share of
   its box, and the background: a regression on cached features of the tower, which never runs the language model.
2. **captions**: short captions and attribute questions about whole clips, through the frozen language model.

    python -m repro.small.align --runs runs                 # runs/models/projector; minutes on two cores
    python -m repro.small.align --runs runs --commit        # the same, and into results/students/smollm2

Its clips are drawn from the training split with a seed of their own, so no run trains or is scored on them.

Shapes: N frames, P patches of a frame, Q visual tokens of a frame, K words, C channels of the tower, D hidden size.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from eval import world
from eval.machine import environment
from eval.world.dataset import example
from eval.world.vocabulary import BACKGROUNDS, COLOURS, NOUNS
from repro.evaluate import target_logprobs
from repro.loop import StageConfig, run_stage
from repro.micro_data import IGNORE, TAGS, Encoder
from repro.small.models import language_path, require, vision_path
from repro.small.student import COMMITTED, ROOT, SHAPE, Shape, assemble, projector

WORDS = (*NOUNS, *COLOURS, *BACKGROUNDS)
KINDS = {"noun": slice(0, len(NOUNS)), "colour": slice(len(NOUNS), len(NOUNS) + len(COLOURS))}
KINDS["background"] = slice(KINDS["colour"].stop, len(WORDS))
WORDS_STAGE = StageConfig(steps=1000, batch_size=32, lr=2e-3, warmup=50)
CAPTIONS_STAGE = StageConfig(steps=48, batch_size=8, lr=5e-4, warmup=5)
SHARPNESS = 8.0  # logits per unit of cosine in the naming loss


@dataclass(frozen=True)
class AlignConfig:
    """Everything that decides the aligned projector, beside the frozen parts."""

    seed: int = 1  # of clips and batches; runs use seed 0 and other splits
    clips: int = 1200
    frames: int = 3  # of each clip, in the stage `words`
    validation: int = 48
    shape: Shape = SHAPE
    words: StageConfig = WORDS_STAGE
    captions: StageConfig = CAPTIONS_STAGE

    def digest(self) -> str:
        """Names the state files: another configuration begins anew."""
        text = json.dumps(dataclasses.asdict(self) | {"world": world.WORLD_VERSION}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


class Alignment:
    """The student whose projector is aligned, and what it looks at."""

    def __init__(self, language: Path, vision: Path, work: Path, config: AlignConfig = AlignConfig()):
        self.config, self.work = config, work
        self.model, self.processor = assemble(language, vision, config.shape)
        self.model.requires_grad_(False)
        for parameter in projector(self.model).values():
            parameter.requires_grad_(True)
        self.encoder = Encoder(self.processor)
        self.curves: dict[str, list[dict[str, float]]] = {}
        self.seconds: dict[str, float] = {}

    # --- clips, and what the tower makes of them ---

    def scenes(self, split: str) -> list[tuple[world.Scene, world.Turn]]:
        """Scenes with a caption or an attribute question each."""
        count = self.config.clips if split == "train" else self.config.validation
        return [example(split, index, self.config.seed, "caption")[1:] for index in range(count)]

    @cached_property
    def train(self) -> list[tuple[world.Scene, world.Turn]]:
        return self.scenes("train")

    @cached_property
    def held_out(self) -> list[tuple[world.Scene, world.Turn]]:
        return self.scenes("validation")

    @torch.no_grad()
    def features(self, frames_NHWC: np.ndarray) -> Tensor:
        """What the projector reads of frames uint8 [N, H, W, 3]: float32 [N, P, C]."""
        pixels = self.processor.video_processor(list(frames_NHWC[None]), return_tensors="pt")["pixel_values_videos"][0]
        tower, layer = self.model.model.vision_tower.eval(), self.model.config.vision_feature_layer
        parts = [tower(pixel_values=p, output_hidden_states=True).hidden_states[layer][:, 1:] for p in pixels.split(64)]
        return torch.cat(parts)

    def look(self, features_NPC: Tensor) -> Tensor:
        """The visual tokens of frames: [N, Q, D]."""
        inner = self.model.model
        return inner.apply_pooling(inner.multi_modal_projector(features_NPC))

    # --- stage 1 ---

    @cached_property
    def table(self) -> Tensor:
        """Embedding [K, D] of each word; of one that is several tokens, their mean."""
        weight = self.model.get_input_embeddings().weight.detach()
        ids = [self.processor.tokenizer(f" {word}", add_special_tokens=False)["input_ids"] for word in WORDS]
        return torch.stack([weight[one].mean(0) for one in ids])

    def looked_at(self, scenes: list[tuple[world.Scene, world.Turn]]) -> tuple[Tensor, Tensor]:
        """Features [N, P, C] and weights of words [N, Q, K] of a few frames of each scene."""
        rng = np.random.default_rng(self.config.seed)
        frames, weights = [], []
        for scene, _ in scenes:
            chosen = np.sort(rng.choice(world.FRAMES, self.config.frames, replace=False))
            frames.append(world.render(scene)[chosen])
            weights.append(words_at(scene, self.config.shape.seats_per_side)[chosen])
        return self.features(np.concatenate(frames)), torch.from_numpy(np.concatenate(weights))

    @cached_property
    def words_seen(self) -> tuple[Tensor, Tensor]:
        """What the stage trains on; not made where it has ended already."""
        return self.looked_at(self.train)

    def align_words(self) -> None:
        """Regression of the visual tokens on words, and naming: which noun and colour is nearest."""

        def loss_at(step: int) -> tuple[Tensor, dict[str, float]]:
            seen, want = self.words_seen
            rng = np.random.default_rng([self.config.seed, 1, step])
            chosen = torch.from_numpy(rng.integers(0, len(seen), self.config.words.batch_size))
            return words_loss(self.look(seen[chosen]), want[chosen], self.table), {}

        def evaluate() -> dict[str, float]:
            shown, told = self.looked_at(self.held_out)
            with torch.no_grad():
                return naming(self.look(shown), told, self.table)

        self._run("words", {"projector": self.model.model.multi_modal_projector}, loss_at, evaluate)

    # --- stage 2 ---

    def align_captions(self) -> None:
        """Captions through the frozen language model."""
        rows = [self._row(turn) for _, turn in self.train]
        shown = [self._row(turn) for _, turn in self.held_out]
        clips: dict[int, Tensor] = {}

        def clip(scenes: list, index: int, key: int) -> Tensor:
            if key not in clips:
                clips[key] = self.features(world.render(scenes[index][0]))
            return clips[key]

        def loss_at(step: int) -> tuple[Tensor, dict[str, float]]:
            rng = np.random.default_rng([self.config.seed, 2, step])
            chosen = rng.integers(0, len(rows), self.config.captions.batch_size).tolist()
            logprob = self._logprobs([rows[i] for i in chosen], [clip(self.train, i, i) for i in chosen])[0]
            return -logprob.mean(), {}

        @torch.no_grad()
        def evaluate() -> dict[str, float]:
            tags = np.concatenate([row["tags"] for row in shown])
            seen, blind = [], []
            for start in range(0, len(shown), 16):
                part = range(start, min(start + 16, len(shown)))
                features = [clip(self.held_out, i, -1 - i) for i in part]
                seen.append(self._logprobs([shown[i] for i in part], features)[1])
                blind.append(self._logprobs([shown[i] for i in part], None)[1])
            visual = tags == TAGS["visual"]
            hits = {"visual": torch.cat(seen).numpy(), "visual_blind": torch.cat(blind).numpy()}
            return {name: float(hit[visual].mean()) for name, hit in hits.items()}

        self._run("captions", {"student": _Parts(projector(self.model))}, loss_at, evaluate)

    def _row(self, turn: world.Turn) -> dict[str, list[int]]:
        return self.encoder.encode(turn.question, turn.answer, world.FRAMES, turn.spans)

    def _logprobs(self, rows: list[dict[str, list[int]]], features: list[Tensor] | None) -> tuple[Tensor, Tensor]:
        """As `target_logprobs`; visual tokens are made of features [F, P, C] a row, or hidden where there are none."""
        length = max(len(row["input_ids"]) for row in rows)

        def padded(name: str, fill: int) -> Tensor:
            return torch.tensor([row[name] + [fill] * (length - len(row[name])) for row in rows])

        ids, labels = padded("input_ids", self.processor.tokenizer.pad_token_id), padded("labels", IGNORE)
        mask = torch.tensor([[1] * len(row["input_ids"]) + [0] * (length - len(row["input_ids"])) for row in rows])
        seats = ids == self.model.config.video_token_id
        embeds = self.model.get_input_embeddings()(ids)
        if features is None:
            mask = mask * ~seats
        else:
            tokens = self.look(torch.cat(features)).unflatten(0, (len(rows), -1)).flatten(1, 2)  # [B, F*Q, D]
            end = self.model.model.image_newline[None, None].expand(len(rows), 1, -1)
            embeds = embeds.masked_scatter(seats[..., None], torch.cat([tokens, end], dim=1))
        return target_logprobs(self.model, {"inputs_embeds": embeds, "attention_mask": mask}, labels)

    def _run(self, name: str, modules: dict[str, nn.Module], loss_at: Any, evaluate: Any) -> None:
        stage: StageConfig = getattr(self.config, name)
        self.curves[name], self.seconds[name], _ = run_stage(
            name, stage, modules, loss_at, self.work / f"{name}-{self.config.digest()}.pt",
            evaluate=evaluate, eval_every=max(1, stage.steps // 2), save_every=max(1, stage.steps // 8),
        )  # fmt: skip


class _Parts(nn.Module):
    """Parameters of several modules as one that `run_stage` can save."""

    def __init__(self, parameters: dict[str, nn.Parameter]):
        super().__init__()
        for name, parameter in parameters.items():
            self.register_parameter(name.replace(".", "/"), parameter)


def words_at(scene: world.Scene, side: int) -> np.ndarray:
    """Weights float32 [F, Q, K] of words at each visual token: nouns and colours by the share of their box that lies in
    its square, and the background, 1 everywhere."""
    weights = np.zeros((world.FRAMES, side * side, len(WORDS)), np.float32)
    edges = np.arange(side) * world.SIZE / side  # of squares, left or top
    width = world.SIZE / side
    for f, boxes in enumerate(world.boxes(scene)):
        ground = scene.cut_background if scene.cut_frame and f >= scene.cut_frame else scene.background
        weights[f, :, KINDS["background"].start + BACKGROUNDS.index(ground)] = 1
        for thing, (x0, y0, x1, y1) in zip(scene.objects, boxes, strict=True):
            if np.isnan(x0):
                continue
            across = np.clip(np.minimum(x1, edges + width) - np.maximum(x0, edges), 0, None) / (x1 - x0)
            down = np.clip(np.minimum(y1, edges + width) - np.maximum(y0, edges), 0, None) / (y1 - y0)
            share = np.outer(down, across).reshape(-1)
            weights[f, :, NOUNS.index(thing.noun)] += share
            weights[f, :, KINDS["colour"].start + list(COLOURS).index(thing.colour)] += share
    return weights


def words_loss(seen_NQD: Tensor, want_NQK: Tensor, table_KD: Tensor) -> Tensor:
    """Squared error, relative to a word's, and the cross-entropy of noun and colour where one object mostly lies."""
    target = want_NQK @ table_KD
    loss = (seen_NQD - target).pow(2).sum(-1).mean() / table_KD.pow(2).sum(-1).mean()
    for kind in ("noun", "colour"):
        logits, label, one = _named(seen_NQD, want_NQK, table_KD, kind)
        if one.any():
            loss = loss + nn.functional.cross_entropy(SHARPNESS * logits[one], label[one])
    return loss


def naming(seen_NQD: Tensor, want_NQK: Tensor, table_KD: Tensor) -> dict[str, float]:
    """Share of the visual tokens whose nearest noun, colour and background is the right one."""
    found = {}
    for kind in KINDS:
        logits, label, one = _named(seen_NQD, want_NQK, table_KD, kind)
        found[kind] = float((logits.argmax(-1) == label)[one].float().mean())
    return found


def _named(seen_NQD: Tensor, want_NQK: Tensor, table_KD: Tensor, kind: str) -> tuple[Tensor, Tensor, Tensor]:
    """Cosines with the words of a kind [N, Q, words], the right one [N, Q], and where it is mostly there [N, Q]."""
    part = KINDS[kind]
    words = table_KD[part] - table_KD[part].mean(0)
    logits = nn.functional.normalize(seen_NQD, dim=-1) @ nn.functional.normalize(words, dim=-1).T
    want = want_NQK[..., part]
    return logits, want.argmax(-1), (want.amax(-1) > 0.6) & (want.sum(-1) < 1.2)


def align(language: Path, vision: Path, folder: Path, config: AlignConfig = AlignConfig()) -> dict[str, Any]:
    """Align (going on where a call of this configuration stopped); projector and record go to ``folder``, whole."""
    alignment = Alignment(language, vision, folder.with_name(f"{folder.name}-work"), config)
    alignment.align_words()
    alignment.align_captions()
    record = {
        "config": dataclasses.asdict(config),
        "world_version": world.WORLD_VERSION,
        **environment(ROOT, threads=torch.get_num_threads()),
        "seconds": alignment.seconds,
        "curves": alignment.curves,
    }
    part = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    weights = {name: value.detach().bfloat16().contiguous() for name, value in projector(alignment.model).items()}
    save_file(weights, part / COMMITTED.name)
    record["sha256"] = hashlib.sha256((part / COMMITTED.name).read_bytes()).hexdigest()
    (part / "record.json").write_text(json.dumps(record, indent=1) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(part, folder)
    return record


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m repro.small.align", description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--commit", action="store_true", help="write to results/students/smollm2")
    args = parser.parse_args(arguments)
    require(args.runs)
    folder = COMMITTED.parent if args.commit else args.runs / "models" / "projector"
    record = align(language_path(args.runs), vision_path(args.runs), folder)
    last = {name: curve[-1] for name, curve in record["curves"].items()}
    print(f"{folder}: {json.dumps(last)}")


if __name__ == "__main__":
    main()
