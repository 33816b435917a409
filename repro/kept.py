"""Where do tokens go? What share of visual, template and wording targets each step supervises, and how well the
reference loss, the student's EMA and the difficulty tell visual targets from the others.

Tags come with the rows of the embedded world. One line a step goes to ``kept.jsonl``; `summary` is what a record holds.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback

from eval.world.check import auc
from regate import ReGateTrainer
from regate.accounting import StepLog, read_steps
from regate.scoring import difficulty, spread
from regate.trainer import Gated
from repro.micro_data import TAGS

WORDS = ("visual", "template", "wording")
AGAINST = {"others": ("template", "wording"), "template": ("template",), "wording": ("wording",)}


class KeptLog(TrainerCallback):
    """Counts the supervised targets of every step by tag; every ``every`` steps the separation by EMA and difficulty.

    Rows of the training set have `tags` and are numbered by `sample_id` from 0, as `Material` makes them.
    """

    def __init__(self, folder: Path, trainer: ReGateTrainer, every: int):
        self.log, self.trainer, self.every = StepLog(folder / "kept.jsonl"), trainer, every
        rows = trainer.train_dataset
        self._tags = np.concatenate(rows["tags"][:])  # of all targets, sample after sample
        self._reference = torch.tensor(np.concatenate(rows["reference_losses"][:]).astype(np.float32))
        tags = [torch.tensor(t) for t in rows["tags"][:]]
        self._tags_SN = torch.nn.utils.rnn.pad_sequence(tags, batch_first=True, padding_value=-1)
        self._counts = torch.zeros(2, len(TAGS), dtype=torch.long)  # targets, supervised
        trainer.observers.append(self.observe)

    def observe(self, step: int, gated: Gated) -> None:
        """Count one micro-batch."""
        gate = gated.gate
        tag_BL = spread(self._tags_SN[gated.sample], gate.target, fill=-1)
        for counts, where in zip(self._counts, (gate.target, gate.supervised), strict=True):
            counts += torch.bincount(tag_BL[where], minlength=len(TAGS))

    def on_train_begin(self, args, state, control, **kwargs):
        self.log.rewind(state.global_step)

    def on_step_end(self, args, state, control, **kwargs):
        targets, kept = ({name: int(c[code]) for name, code in TAGS.items()} for c in self._counts)
        entry: dict[str, Any] = {"step": state.global_step - 1, "targets": targets, "kept": kept}
        if state.global_step % self.every == 0:
            entry["separation"] = self.separation()
        self.log.add(**entry)
        self.log.flush()
        self._counts.zero_()

    def separation(self) -> dict[str, dict[str, float | None]]:
        """AUC of visual against other targets, by what scores them: reference, ema (where observed), difficulty."""
        args, buffer = self.trainer.args, self.trainer.buffer
        assert buffer is not None, "the rows carry reference losses"
        ema = buffer.ema.float()
        seen = ~ema.isnan()
        mixed = difficulty(ema, self._reference, args.lambda_, args.combine)
        scores = {"reference": self._reference, "difficulty": mixed}
        found = {name: separated(score.numpy(), self._tags) for name, score in scores.items()}
        return found | {"ema": separated(ema[seen].numpy(), self._tags[seen.numpy()])}


def separated(score: np.ndarray, tags: np.ndarray) -> dict[str, float | None]:
    """AUC of visual targets against each group of `AGAINST`; None where one of both is empty."""
    of = {name: score[tags == TAGS[name]] for name in WORDS}
    groups = {name: np.concatenate([of[part] for part in parts]) for name, parts in AGAINST.items()}
    return {name: float(auc(of["visual"], rest)) if len(rest) and len(of["visual"]) else None
            for name, rest in groups.items()}  # fmt: skip


def summary(folder: Path, sparse: Mapping[int, bool], every: int) -> dict[str, Any]:
    """What a record holds: for each window of ``every`` steps the targets and supervised targets of its *sparse* steps
    by tag (counts; zero where a window has none), and the separation at its end.

    ``sparse``: step -> whether it was one.
    """
    entries = read_steps(folder / "kept.jsonl")
    windows: dict[int, dict[str, Any]] = {}
    for entry in entries:
        last = min((entry["step"] // every + 1) * every, len(entries))
        zero = {"step": last, "sparse_steps": 0, "targets": dict.fromkeys(TAGS, 0), "kept": dict.fromkeys(TAGS, 0)}
        window = windows.setdefault(last, zero)
        if sparse[entry["step"]]:
            window["sparse_steps"] += 1
            for what in ("targets", "kept"):
                window[what] = {name: window[what][name] + entry[what][name] for name in TAGS}
        if "separation" in entry:
            window["separation"] = entry["separation"]
    return {"windows": [windows[step] for step in sorted(windows)]}
