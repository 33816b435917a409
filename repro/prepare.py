"""The preparation recipe: text, then sight, then both together with the backbone frozen.

1. **language**: the backbone on the world's text alone: packed documents, and questions about clips whose visual seats
   hold scripts (see `rehearsal.py`) or are hidden (what the text-only teacher will meet).
2. **sight**: vision tower and connector learn to write the same scripts from pixels (regression; backbone frozen and
   not even run). A look is as short as the connector allows: a frame, two frames, or a clip.
3. **align**: vision tower and connector on short captions and attribute questions through the frozen backbone.

Each stage is resumable; a batch is a function of (seed, step). What a stage ended with is found again as long as
nothing changed that it depends on: a later stage may.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from eval.world import WORLD_VERSION
from repro.evaluate import target_logprobs
from repro.families import FAMILIES, StudentSize
from repro.loop import Evaluate, StageConfig, StepLoss, run_stage
from repro.micro_data import IGNORE, Encoder, MicroCollator
from repro.pools import ATTRIBUTE, CAPTION, Batch, Pool, Row, batch_of, make_pool, packed_text, tokenizer_texts
from repro.rehearsal import Symbols, symbols

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


    def stage_hash(self, stage: str) -> str:
        """Of all that decides what `stage` ends with: this configuration without the stages behind it."""
        fields = dataclasses.asdict(self)
        for later in STAGES[STAGES.index(stage) + 1 :]:
            del fields[later]
        text = json.dumps({**fields, "world_version": WORLD_VERSION}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


CONFIGS: dict[str, PrepareConfig] = {
    "internvl": PrepareConfig(),
    "videollama2": PrepareConfig(sight=StageConfig(steps=6000, batch_size=64, lr=1e-3)),
    "videochat2": PrepareConfig(
        size=FAMILIES["videochat2"].size, sight=StageConfig(steps=8000, batch_size=64, lr=1e-3)
    ),
}
"""What `make students` makes of each family."""


class Preparation:
    """The student in the making, with the pools that its stages share."""

    def __init__(
        self,
        student: str,
        config: PrepareConfig,
        work: Path,
        *,
        progress: bool = True,
        stop_at: dict[str, int] | None = None,
        commit: str = "",
    ):
        self.family, self.config, self.work = FAMILIES[student], config, Path(work)
        self.progress, self.stop_at, self.commit = progress, stop_at or {}, commit
        tokenizer = self.family.tokenizer(tokenizer_texts(config.seed, config.tokenizer_docs), config.size.vocab_size)
        self.processor = self.family.processor(tokenizer, config.size)
        self.encoder = Encoder(self.processor)
        self.collator = MicroCollator(self.processor)
        self.symbols: Symbols = symbols(tokenizer)
        self.model = self.family.build(tokenizer, config.size, config.seed)
        self.context_id = self.family.placeholder_id(self.model)
        self.pad_id = tokenizer.pad_token_id
        self.basis = orthonormal(config.size.hidden_size, len(self.symbols), config.seed)  # [D, K]
        self.validation = make_pool(
            self.encoder, config.seed, "validation", config.validation_scenes, config.turns
        ).with_scripts(self.symbols)
        self.train: Pool | None = None
        self.curves: dict[str, list[dict[str, float]]] = {}
        self.seconds: dict[str, float] = {}
        self.origin: dict[str, list[str]] = {}

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
        """Scripts [F, Q, K] each -> embeddings [B*S, D] in the backbone's own token embeddings."""
        weights = torch.from_numpy(np.concatenate([self.family.seats(script) for script in scripts])).float()
        return weights @ self._table()

    def inputs(
        self, batch: Batch, scripts: Sequence[np.ndarray] = (), clips: np.ndarray | None = None
    ) -> dict[str, Any]:
        """Inputs of the model without its head: what the frames show as scripts, or as clips [B, F, H, W, 3]."""
        shared = {"attention_mask": batch.mask, "position_ids": batch.positions}
        if clips is not None:
            return {"input_ids": batch.ids, **self.family.visual_inputs(self.processor, self.pixels(clips)), **shared}
        embeds = self.model.get_input_embeddings()(batch.ids)
        where = (batch.ids == self.context_id)[..., None]
        return {"inputs_embeds": embeds.masked_scatter(where, self.seats(scripts).to(embeds.dtype)), **shared}

    def pixels(self, clips: np.ndarray) -> torch.Tensor:
        """uint8 [N, F, H, W, 3] -> normalised [N, F, 3, H, W]."""
        return self.collator.pixels(clips.reshape(-1, *clips.shape[2:])).unflatten(0, clips.shape[:2])

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

        backbone, head = [self.model.model.language_model], self.model.get_output_embeddings()
        if head.weight is not self.model.get_input_embeddings().weight:
            backbone.append(head)
        self._run("language", backbone, loss_at, lambda: self.scores(scripts=True))

    def turns_loss(self, batch: Batch, inputs: dict[str, Any]) -> torch.Tensor:
        """Mean over all targets, plus the mean over answers to attribute questions: few tokens, and hard to learn."""
        nll_N = -target_logprobs(self.model, inputs, batch.labels)[0]
        kind_N = batch.kinds[:, 1:][batch.labels[:, 1:] != IGNORE]
        return nll_N.mean() + nll_N[kind_N == ATTRIBUTE].mean()

    def sight(self) -> None:
        """Regression of scripts in a fixed orthonormal basis, which is then folded into the backbone's embeddings."""
        stage, pool, look = self.config.sight, self.pool(), self.family.frames_per_look
        frames = pool.frames()

        def loss_at(step: int) -> tuple[torch.Tensor, dict[str, float]]:
            rng = self.rng("sight", step)
            clips = rng.integers(0, len(pool), stage.batch_size // look)
            first = rng.integers(0, frames.shape[1] // look, stage.batch_size // look) * look
            pixels = self.pixels(frames[clips[:, None], first[:, None] + np.arange(look)])
            shown = [pool.scripts[i][f : f + look] for i, f in zip(clips, first, strict=True)]
            want = torch.from_numpy(np.stack([self.family.seats(script) for script in shown])).float()
            return sight_loss(self._read(pixels), want, self.symbols, self.config.naming), {}

        self._run("sight", self._eyes(), loss_at, self._seen)
        if self.done("sight"):
            fold(self.family.last_linear(self.model), self.basis @ self._table())

    def _read(self, pixels: torch.Tensor) -> torch.Tensor:
        """What the connector writes, in symbols: [N, S, K] of pixels [N, F, 3, H, W]."""
        return self.family.look(self.model, self.processor, pixels) @ self.basis

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
        return self.family.eyes(self.model)

    def state_file(self, stage: str) -> Path:
        """Where a stage keeps its state."""
        return self.work / f"{stage}-{self.config.stage_hash(stage)}.pt"

    def _run(self, name: str, modules: list[torch.nn.Module], loss_at: StepLoss, evaluate: Evaluate) -> None:
        self.model.train()
        self.curves[name], self.seconds[name], self.origin[name] = run_stage(
            name,
            getattr(self.config, name),
            {str(i): module for i, module in enumerate(modules)},
            loss_at,
            self.state_file(name),
            evaluate=evaluate,
            eval_every=self.config.eval_every,
            save_every=self.config.eval_every,
            stop_at=self.stop_at.get(name),
            progress=self.progress,
            origin=self.commit,
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
        parts = self.pixels(pool.frames()).split(32)
        read = torch.cat([self._read(part) for part in parts]).flatten(0, 1).numpy()  # [N, K]
        want = np.concatenate([self.family.seats(script) for script in pool.scripts]).astype(np.float32)
        nouns = slice(table.start["noun"], table.start["colour"])
        colours = slice(table.start["colour"], table.start["background"])
        one = (want[:, nouns].sum(1) == 1) & (want[:, nouns].max(1) == 1)
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
    """Squared error of scripts [N, S, K]; and at seats with one object the cross-entropy of its noun and colour."""
    loss = (read - want).pow(2).sum(-1).mean()
    for first, last in (("noun", "colour"), ("colour", "background")):
        part = slice(table.start[first], table.start[last])
        one = (want[..., part].sum(-1) == 1) & (want[..., part].amax(-1) == 1)
        target = want[..., part][one].argmax(-1)
        loss = loss + naming * torch.nn.functional.cross_entropy(SHARPNESS * read[..., part][one], target)
    return loss


def prepare_student(student: str, config: PrepareConfig, work: Path, **options: Any) -> Preparation:
    """Runs the three stages; each goes on where it stopped, and the next one waits until it is done."""
    preparation = Preparation(student, config, work, **options)
    for stage in STAGES:
        getattr(preparation, stage)()
        if not preparation.done(stage):
            break
    return preparation
