"""Checkpoints that are whole or not used, and loading that fails where the stock Trainer's is silent.

:class:`SafeTrainer` is Trainer with nothing else changed: the base of ReGateTrainer, and of a fair baseline.
"""

import logging
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from torch import nn
from transformers import PreTrainedModel, Trainer

from regate.integrity import MARKER, NotWhole, is_sealed, require_whole, seal, sizes_only, unseal
from regate.preemption import Preempted, Preemption, outlive_sigterm

__all__ = ["MARKER", "IncompleteCheckpoint", "SafeTrainer", "last_complete", "mark_complete", "require_complete"]
logger = logging.getLogger(__name__)
mark_complete = seal


class IncompleteCheckpoint(ValueError):
    """A checkpoint directory that was not written to its end, or was damaged since."""


def require_complete(directory: str | os.PathLike[str], *, contents: bool = True) -> None:
    """Raise IncompleteCheckpoint, naming what is missing or altered, unless all files are as they were written."""
    try:
        require_whole(directory, contents=contents)
        if contents and sizes_only(directory):
            logger.warning("%s: an earlier version wrote it, without hashes; only sizes were compared", directory)
    except NotWhole as error:
        raise IncompleteCheckpoint(
            f"{error}. Resume from an earlier checkpoint (resume_from_checkpoint=True finds the last complete one)."
        ) from error


def step_of(directory: str | os.PathLike[str]) -> int:
    """The optimizer step in the name of a checkpoint directory, ``.../checkpoint-STEP``."""
    return int(Path(directory).name.rsplit("-", 1)[1])


def checkpoints(output_dir: str | os.PathLike[str]) -> list[Path]:
    """All checkpoint directories, complete or not, the highest step first."""
    found = [p for p in Path(output_dir).glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", p.name)]
    return sorted(found, key=step_of, reverse=True)


def last_complete(output_dir: str | os.PathLike[str], *, contents: bool = True) -> str | None:
    """Path of the complete checkpoint with the highest step under ``output_dir``, or None.

    One that was damaged after it was complete is passed over with a warning; where no other is left,
    IncompleteCheckpoint is raised: a run is not begun anew without a word. ``contents=False`` compares sizes alone and
    never raises: for messages.
    """
    damaged = []
    for path in checkpoints(output_dir):
        if not is_sealed(path):
            continue  # writing it was interrupted
        try:
            require_complete(path, contents=contents)
        except IncompleteCheckpoint as error:
            logger.warning("passed over: %s", error)
            damaged.append(error)
            continue
        return str(path)
    if damaged and contents:
        raise IncompleteCheckpoint(
            f"{output_dir}: all {len(damaged)} finished checkpoints are damaged. {damaged[0]} "
            "To begin anew, move them away."
        )
    return None


def rotate(output_dir: str | os.PathLike[str], step: int, limit: int | None, best: str | None) -> None:
    """Delete checkpoints before ``step``, which is complete, beyond the ``limit`` newest complete ones and the best.

    Directories that are not complete do not count, and go first; later steps are of a run that was taken back, and
    are left to be overwritten.
    """
    if not limit or limit <= 0:
        return
    before = [path for path in checkpoints(output_dir) if step_of(path) <= step]
    complete = [path for path in before if is_sealed(path)]
    kept = [path for path in complete if path == complete[0] or (best is not None and path.samefile(best))]
    kept += [path for path in complete if path not in kept][: max(0, limit - len(kept))]
    for path in before:
        if path not in kept:
            unseal(path)  # first: half a directory must not look like a damaged one
            shutil.rmtree(path, ignore_errors=True)


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
    """Trainer whose checkpoints are sealed when complete, and which resumes from those only, every weight or none.

    SIGTERM while it trains: the step is finished on all ranks, a checkpoint saved, and :class:`Preempted` raised, which
    ends the process with status 143.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._preemption = Preemption(self.accelerator)
        self.add_callback(self._preemption)
        self._verified: str | None = None  # a checkpoint that this process has read and found whole

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any):
        """As Trainer's. ``True`` resumes from the last complete checkpoint; a path must be a complete one."""
        if resume_from_checkpoint is True:
            resume_from_checkpoint = self.last_complete_checkpoint()
            if resume_from_checkpoint is None:
                raise ValueError(f"no complete checkpoint in {self.args.output_dir} to resume from")
        elif resume_from_checkpoint and str(resume_from_checkpoint) != self._verified:
            self._on_savers(lambda: require_complete(resume_from_checkpoint))
        self._rewind(step_of(resume_from_checkpoint) if resume_from_checkpoint else 0, resume_from_checkpoint or None)
        try:
            return super().train(resume_from_checkpoint or None, *args, **kwargs)
        finally:
            self._preemption.restore()

    def last_complete_checkpoint(self) -> str | None:
        """Path of the complete checkpoint with the highest step in ``output_dir``, or None; the same on all ranks.

        Contents are read, once on each machine that saves. Raises IncompleteCheckpoint where all are damaged.
        """
        said = self._on_savers(lambda: last_complete(self.args.output_dir))
        self._verified = min(said, key=lambda path: step_of(path) if path else -1)
        return self._verified

    def _on_savers(self, look: Callable[[], str | None]) -> list[str | None]:
        """What ``look`` gives where checkpoints are saved, on all ranks; so is the IncompleteCheckpoint it raises."""
        said: list[Any] = []
        if self.args.should_save:
            try:
                said = [look()]
            except IncompleteCheckpoint as error:
                said = [error]
        if self.accelerator.num_processes > 1:
            said = gather_object(said)
        for answer in said:
            if isinstance(answer, IncompleteCheckpoint):
                raise answer
        return said

    def _rewind(self, step: int, checkpoint: str | None) -> None:
        """Forget what logs hold of ``step`` and later ones: the run goes on from there."""

    def _add_to_checkpoint(self, directory: Path) -> None:
        """Write more into a checkpoint before it is sealed; called where checkpoints are saved."""

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        # Old checkpoints go only after the new one is complete; one of the same step is none from here on.
        run_dir = self._get_output_dir(trial=trial)
        directory = Path(run_dir) / f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            unseal(directory)
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial)
        except Exception as error:  # torch.save says "unexpected pos" of a full disk
            free = shutil.disk_usage(run_dir).free
            error.add_note(f"{directory} was not finished, and will not be used; {free:,} bytes are free there")
            raise
        finally:
            self.args.save_total_limit = limit
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            self._add_to_checkpoint(directory)
            seal(directory)
            rotate(run_dir, self.state.global_step, limit, self.state.best_model_checkpoint)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # Resumed in mid-epoch, a finished run would take one step more: the stock loop looks only after a step.
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        super()._maybe_log_save_evaluate(*args, **kwargs)
        if self._preemption.agreed:
            self.accelerator.wait_for_everyone()
            raise Preempted(self._get_output_dir(trial=None), self.state.global_step)

    def _get_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        loader = super()._get_dataloader(*args, **kwargs)
        if getattr(loader, "num_workers", 0):
            init = outlive_sigterm(loader.worker_init_fn)
            for one in {id(part): part for part in (loader, getattr(loader, "base_dataloader", loader))}.values():
                one.worker_init_fn = init  # accelerate's loader passes reads on to its base, but not writes
        return loader

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
