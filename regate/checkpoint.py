"""Checkpoints that are whole or not used, and loading that fails where the stock Trainer's is silent.

:class:`SafeTrainer` is Trainer with nothing else changed: the base of ReGateTrainer, and of a fair baseline.
"""

import json
import os
import re
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel, Trainer
from transformers.trainer_utils import rotate_checkpoints

MARKER = "complete.json"


class IncompleteCheckpoint(ValueError):
    """A checkpoint directory that was not written to its end, or was damaged since."""


def mark_complete(directory: str | os.PathLike[str]) -> None:
    """Write the marker that says so: names and sizes of all files. The last thing that is written."""
    directory = Path(directory)
    files = [f for f in directory.rglob("*") if f.is_file() and f != directory / MARKER]
    sizes = {str(f.relative_to(directory)): f.stat().st_size for f in files}
    temporary = directory / f"{MARKER}.tmp"
    with temporary.open("w") as file:
        json.dump(sizes, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, directory / MARKER)


def require_complete(directory: str | os.PathLike[str]) -> None:
    """Raise IncompleteCheckpoint, naming what is missing, unless all files are there at the size they were written."""
    directory = Path(directory)
    try:
        sizes = json.loads((directory / MARKER).read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise IncompleteCheckpoint(
            f"{directory} has no readable {MARKER}: writing it was interrupted, or ReGateTrainer did not write it. "
            "Resume from an earlier checkpoint (resume_from_checkpoint=True finds the last complete one)."
        ) from error
    for name, size in sizes.items():
        path = directory / name
        found = path.stat().st_size if path.is_file() else None
        if found != size:
            raise IncompleteCheckpoint(f"{path}: {size} bytes were written, found {found}. Resume from an earlier one.")


def step_of(directory: str | os.PathLike[str]) -> int:
    """The optimizer step in the name of a checkpoint directory, ``.../checkpoint-STEP``."""
    return int(Path(directory).name.rsplit("-", 1)[1])


def last_complete(output_dir: str | os.PathLike[str]) -> str | None:
    """Path of the complete checkpoint with the highest step under ``output_dir``, or None."""
    found = [p for p in Path(output_dir).glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", p.name)]
    for path in sorted(found, key=step_of, reverse=True):
        try:
            require_complete(path)
        except IncompleteCheckpoint:
            continue
        return str(path)
    return None


def load_weights(model: PreTrainedModel, directory: str | os.PathLike[str]) -> None:
    """Load a ``save_pretrained`` directory into ``model`` in place, every weight or none.

    ``save_pretrained`` writes hub-format names, which Trainer's own resume does not convert: most keys miss and the run
    silently goes on from its initial weights (transformers #43701). The class's ``from_pretrained`` converts them.
    Raises ValueError naming keys that are missing, unexpected or of another shape.
    """
    loaded, info = type(model).from_pretrained(directory, dtype=model.dtype, output_loading_info=True)
    kinds = ("missing_keys", "unexpected_keys", "mismatched_keys")
    wrong = {kind: sorted(map(str, info[kind]))[:5] for kind in kinds if info[kind]}
    if wrong:
        raise ValueError(f"{directory} does not hold the weights of {type(model).__name__}: {wrong}")
    model.load_state_dict(loaded.state_dict(), strict=True)


class SafeTrainer(Trainer):
    """Trainer whose checkpoints are marked when complete, and which resumes from those only, every weight or none."""

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any):
        """As Trainer's. ``True`` resumes from the last complete checkpoint; a path must be a complete one."""
        if resume_from_checkpoint is True:
            resume_from_checkpoint = self.last_complete_checkpoint()
            if resume_from_checkpoint is None:
                raise ValueError(f"no complete checkpoint in {self.args.output_dir} to resume from")
        elif resume_from_checkpoint:
            require_complete(resume_from_checkpoint)
        self._rewind(step_of(resume_from_checkpoint) if resume_from_checkpoint else 0)
        return super().train(resume_from_checkpoint or None, *args, **kwargs)

    def last_complete_checkpoint(self) -> str | None:
        """Path of the complete checkpoint with the highest step in ``output_dir``, or None."""
        return last_complete(self.args.output_dir)

    def _rewind(self, step: int) -> None:
        """Forget what logs hold of ``step`` and later ones: the run goes on from there."""

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        # Old checkpoints go only after the new one is marked as complete.
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            run_dir = self._get_output_dir(trial=trial)
            mark_complete(Path(run_dir) / f"checkpoint-{self.state.global_step}")
            rotate_checkpoints(run_dir, limit, best_model_checkpoint=self.state.best_model_checkpoint)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        model = self.model if model is None else model
        if self._loads_exactly(model):
            load_weights(model, resume_from_checkpoint)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        if self._loads_exactly(self.model):
            load_weights(self.model, self.state.best_model_checkpoint)
        else:
            super()._load_best_model()

    def _loads_exactly(self, model: nn.Module) -> bool:
        """Whether the checkpoint is a plain save_pretrained directory; adapters and sharded states load as they are."""
        return not (self.is_fsdp_enabled or self.is_deepspeed_enabled or hasattr(model, "peft_config"))
