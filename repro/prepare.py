"""The preparation recipe: text, then sight, then both together with the backbone frozen.

1. **language**: the backbone on the world's text alone: packed documents, and questions about clips whose visual seats
   hold scripts (see `rehearsal.py`) or are hidden (what the text-only teacher will meet).
2. **sight**: vision tower and connector learn to write the same scripts from single frames (regression; backbone frozen
   and not even run).
3. **align**: vision tower and connector on short captions and attribute questions through the frozen backbone.

Each stage is resumable; a batch is a function of (seed, step).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import InternVLForConditionalGeneration
from transformers.models.internvl.processing_internvl import InternVLProcessor

from repro.evaluate import target_logprobs
from repro.loop import Evaluate, StageConfig, StepLoss, run_stage
from repro.micro_data import IGNORE, Encoder, MicroCollator
from repro.pools import ATTRIBUTE, CAPTION, Batch, Pool, Row, batch_of, make_pool, packed_text, tokenizer_texts
from repro.rehearsal import Symbols, symbols
from repro.student_model import StudentSize, build_student
from repro.tokenizer import build_processor, train_tokenizer

STAGES = ("language", "sight", "align")
LANGUAGE = StageConfig(steps=1800, batch_size=16, lr=3e-3)
SIGHT = StageConfig(steps=3000, batch_size=64, lr=3e-3)
ALIGN = StageConfig(steps=500, batch_size=16, lr=7e-4, warmup=20)
SHARPNESS = 8.0  # logits per unit of script in the naming loss


@dataclass(frozen=True)
class PrepareConfig:
    """Everything that decides the prepared student."""

    seed: int = 0
    size: StudentSize = field(default_factory=StudentSize)
    tokenizer_docs: int = 6000  # documents that the tokenizer is trained on
    corpus_docs: int = 10_000  # documents of `language`
    scenes: int = 8000  # training scenes of all stages
    validation_scenes: int = 256
    turns: int = 8  # a caption and attribute questions about each scene
    text_rows: int = 8  # rows of packed documents in a batch of `language`
    text_length: int = 128
    blind: float = 0.2  # share of the scenes of `language` whose seats are hidden
    naming: float = 0.5  # weight of the cross-entropy of noun and colour in `sight`
    language: StageConfig = LANGUAGE
    sight: StageConfig = SIGHT
    align: StageConfig = ALIGN
    eval_every: int = 250


class Preparation:
    """The student in the making, with the pools that its stages share."""

    def __init__(
        self, config: PrepareConfig, work: Path, *, progress: bool = True, stop_at: dict[str, int] | None = None
    ):
        self.config, self.work, self.progress, self.stop_at = config, Path(work), progress, stop_at or {}
        tokenizer = train_tokenizer(tokenizer_texts(config.seed, config.tokenizer_docs), config.size.vocab_size)
        self.processor: InternVLProcessor = build_processor(
            tokenizer, config.size.image_size, config.size.image_seq_length
        )
        self.encoder = Encoder(self.processor)
        self.collator = MicroCollator(self.processor, config.size.image_size)
        self.symbols: Symbols = symbols(tokenizer)
        self.model: InternVLForConditionalGeneration = build_student(tokenizer, config.size, config.seed)
        self.context_id = self.model.config.image_token_id
        self.pad_id = tokenizer.pad_token_id
        self.basis = orthonormal(config.size.hidden_size, len(self.symbols), config.seed)  # [D, K]
        self.validation = make_pool(
            self.encoder, config.seed, "validation", config.validation_scenes, config.turns
        ).with_scripts(self.symbols)
        self.train: Pool | None = None
        self.curves: dict[str, list[dict[str, float]]] = {}
        self.seconds: dict[str, float] = {}

    def pool(self) -> Pool:
        if self.train is None:
            self.train = make_pool(
                self.encoder, self.config.seed, "train", self.config.scenes, self.config.turns
            ).with_scripts(self.symbols)
        return self.train

    def rng(self, stage: str, step: int) -> np.random.Generator:
        return np.random.default_rng([self.config.seed, sum(stage.encode()), step])

    # --- seats ---

    def seats(self, scripts: Sequence[np.ndarray]) -> torch.Tensor:
        """Scripts [F, Q, K] each -> embeddings [B*F*Q, D] in the backbone's own token embeddings."""
        weights = torch.from_numpy(np.stack(scripts)).flatten(0, 2).float()
        return weights @ self._table()

    def inputs(
        self, batch: Batch, scripts: Sequence[np.ndarray] = (), clips: np.ndarray | None = None
    ) -> dict[str, Any]:
        """Inputs of the model without its head: what the frames show as scripts, or as clips [B, F, H, W, 3]."""
        shared = {"attention_mask": batch.mask, "position_ids": batch.positions}
        if clips is not None:
            pixels = self.collator.pixels(clips.reshape(-1, *clips.shape[2:]))
            return {"input_ids": batch.ids, "pixel_values": pixels, **shared}
        embeds = self.model.get_input_embeddings()(batch.ids)
        where = (batch.ids == self.context_id)[..., None]
        return {"inputs_embeds": embeds.masked_scatter(where, self.seats(scripts).to(embeds.dtype)), **shared}

    def batch(self, rows: Sequence[Row], blind: np.ndarray | None = None) -> Batch:
        return batch_of(rows, self.pad_id, self.context_id, blind)

    # --- stages ---

    def language(self) -> None:
        """Packed documents, and turns about scripts. Seats are hidden in natural scenes only: twice as often there."""
        config, stage = self.config, self.config.language
        stream = packed_text(self.encoder, config.seed, config.corpus_docs)
        pool = self.pool()
        length = config.text_length

        def loss_at(step: int) -> tuple[torch.Tensor, dict[str, float]]:
            rng = self.rng("language", step)
            starts = rng.integers(0, len(stream) - length - 1, config.text_rows)
            text = torch.from_numpy(np.stack([stream[s : s + length] for s in starts])).long()
            inputs = {"input_ids": text, "attention_mask": torch.ones_like(text)}
            text_loss = -target_logprobs(self.model, inputs, text)[0].mean()
            chosen = rng.integers(0, len(pool), stage.batch_size)
            blind = pool.natural[chosen] & (rng.random(len(chosen)) < 2 * config.blind)
            batch = self.batch([pool.rows[i] for i in chosen], blind)
            told = self.turns_loss(batch, self.inputs(batch, [pool.scripts[i] for i in chosen]))
            return text_loss + told, {"text": text_loss.item(), "told": told.item()}

        self._run("language", [self.model.model.language_model], loss_at, lambda: self.scores(scripts=True))

    def turns_loss(self, batch: Batch, inputs: dict[str, Any]) -> torch.Tensor:
        """Mean over all targets, plus the mean over answers to attribute questions: few tokens, and hard to learn."""
        nll_N = -target_logprobs(self.model, inputs, batch.labels)[0]
        kind_N = batch.kinds[:, 1:][batch.labels[:, 1:] != IGNORE]
        return nll_N.mean() + nll_N[kind_N == ATTRIBUTE].mean()

    def sight(self) -> None:
        """Regression of scripts in a fixed orthonormal basis, which is then folded into the backbone's embeddings."""
        stage, pool = self.config.sight, self.pool()
        frames = pool.frames()

        def loss_at(step: int) -> tuple[torch.Tensor, dict[str, float]]:
            rng = self.rng("sight", step)
            clips = rng.integers(0, len(pool), stage.batch_size)
            when = rng.integers(0, frames.shape[1], stage.batch_size)
            pixels = self.collator.pixels(frames[clips, when])
            want = np.stack([pool.scripts[i][f] for i, f in zip(clips, when, strict=True)]).astype(np.float32)
            return sight_loss(self._read(pixels), torch.from_numpy(want), self.symbols, self.config.naming), {}

        self._run("sight", self._eyes(), loss_at, self._seen)
        if self.done("sight"):
            fold(self.model.model.multi_modal_projector.linear_2, self.basis @ self._table())

    def _read(self, pixels: torch.Tensor) -> torch.Tensor:
        """What the connector writes, in symbols: [N, Q, K] of pixels [N, 3, H, W]."""
        return self.model.get_image_features(pixels, return_dict=True).pooler_output @ self.basis

    def _table(self) -> torch.Tensor:
        """The backbone's embeddings [K, D] of the symbols."""
        return self.model.get_input_embeddings().weight[list(self.symbols.token_ids)]

    def done(self, name: str) -> bool:
        """Whether a stage has run to its last step."""
        return bool(self.curves[name]) and self.curves[name][-1]["step"] == getattr(self.config, name).steps

    def align(self) -> None:
        """Captions and questions through the frozen backbone."""
        stage, pool = self.config.align, self.pool()
        frames = pool.frames()
        self.model.requires_grad_(False)
        for module in self._eyes():
            module.requires_grad_(True)

        def loss_at(step: int) -> tuple[torch.Tensor, dict[str, float]]:
            rng = self.rng("align", step)
            chosen = rng.integers(0, len(pool), stage.batch_size)
            batch = self.batch([pool.rows[i] for i in chosen])
            return self.turns_loss(batch, self.inputs(batch, clips=frames[chosen])), {}

        self._run("align", self._eyes(), loss_at, lambda: self.scores(scripts=False))
        self.model.requires_grad_(True)

    def _eyes(self) -> list[torch.nn.Module]:
        return [self.model.model.vision_tower, self.model.model.multi_modal_projector]

    def _run(self, name: str, modules: list[torch.nn.Module], loss_at: StepLoss, evaluate: Evaluate) -> None:
        self.model.train()
        self.curves[name], self.seconds[name] = run_stage(
            name,
            getattr(self.config, name),
            {str(i): module for i, module in enumerate(modules)},
            loss_at,
            self.work / f"{name}.pt",
            evaluate=evaluate,
            eval_every=self.config.eval_every,
            save_every=self.config.eval_every,
            stop_at=self.stop_at.get(name),
            progress=self.progress,
        )

    # --- validation ---

    @torch.no_grad()
    def scores(self, scripts: bool) -> dict[str, float]:
        """Accuracy on validation scenes of the visual words of captions and of attribute answers; the same, blind."""
        pool, size = self.validation, 32
        hits: dict[str, list[np.ndarray]] = {}
        self.model.eval()
        for start in range(0, len(pool), size):
            part = slice(start, start + size)
            for prefix, blind in (("", False), ("blind_", True)):
                batch = self.batch(pool.rows[part], np.full(len(pool.rows[part]), blind))
                shown = {"scripts": pool.scripts[part]} if scripts or blind else {"clips": pool.frames()[part]}
                hit_N = target_logprobs(self.model, self.inputs(batch, **shown), batch.labels)[1].numpy()
                kind_N = batch.kinds[:, 1:][batch.labels[:, 1:] != IGNORE].numpy()
                for name, kind in (("caption", CAPTION), ("attribute", ATTRIBUTE)):
                    hits.setdefault(prefix + name, []).append(hit_N[kind_N == kind])
        self.model.train()
        return {name: float(np.concatenate(part).mean()) for name, part in hits.items()}

    @torch.no_grad()
    def _seen(self) -> dict[str, float]:
        """How well a seat with one object tells its noun, colour and place."""
        pool, table = self.validation, self.symbols
        self.model.eval()
        frames = pool.frames()
        pixels = self.collator.pixels(frames.reshape(-1, *frames.shape[2:]))
        read = torch.cat([self._read(part) for part in pixels.split(256)]).flatten(0, 1).numpy()  # [N, K]
        want = np.stack(pool.scripts).reshape(-1, len(table)).astype(np.float32)
        nouns = slice(table.start["noun"], table.start["colour"])
        colours = slice(table.start["colour"], table.start["background"])
        one = want[:, nouns].sum(1) == 1
        self.model.train()

        def right(part: slice, rows: np.ndarray) -> float:
            return float((read[rows, part].argmax(1) == want[rows, part].argmax(1)).mean())

        x = slice(table.start["x"], table.start["y"])
        centre = [(np.clip(v[one, x], 0, None) * np.arange(16)).sum(1) for v in (read, want)]
        empty = want[:, nouns].sum(1) == 0
        ground = slice(table.start["background"], table.start["x"])
        return {
            "noun": right(nouns, one),
            "colour": right(colours, one),
            "background": right(ground, one | empty),
            "x_error": float(np.abs(centre[0] - centre[1]).mean() * 64 / 15),
            "presence": float(((read[:, nouns].sum(1) > 0.5) == (want[:, nouns].sum(1) > 0.5)).mean()),
        }


def orthonormal(rows: int, columns: int, seed: int) -> torch.Tensor:
    """A fixed matrix [rows, columns] with orthonormal columns."""
    if columns > rows:
        raise ValueError(f"hidden_size is {rows}, but the scripts have {columns} symbols: it must be at least that")
    return torch.linalg.qr(torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)))[0]


def fold(linear: torch.nn.Linear, matrix: torch.Tensor) -> None:
    """`linear` becomes `linear` followed by `@ matrix` [D, D]."""
    with torch.no_grad():
        linear.weight.copy_(matrix.T @ linear.weight)
        linear.bias.copy_(linear.bias @ matrix)


def sight_loss(read: torch.Tensor, want: torch.Tensor, table: Symbols, naming: float) -> torch.Tensor:
    """Squared error of scripts [N, Q, K]; and at seats with one object the cross-entropy of its noun and colour."""
    loss = (read - want).pow(2).sum(-1).mean()
    for first, last in (("noun", "colour"), ("colour", "background")):
        part = slice(table.start[first], table.start[last])
        one = want[..., part].sum(-1) == 1
        target = want[..., part][one].argmax(-1)
        loss = loss + naming * torch.nn.functional.cross_entropy(SHARPNESS * read[..., part][one], target)
    return loss


def prepare_student(config: PrepareConfig, work: Path, **options: Any) -> Preparation:
    """Runs the three stages; each goes on where it stopped, and the next one waits until it is done."""
    preparation = Preparation(config, work, **options)
    for stage in STAGES:
        getattr(preparation, stage)()
        if not preparation.done(stage):
            break
    return preparation
