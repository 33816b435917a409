"""Checkpoints that are whole or not used, and loading that fails where the stock Trainer's is silent."""

import json
import os
import re
from pathlib import Path

from transformers import PreTrainedModel

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
