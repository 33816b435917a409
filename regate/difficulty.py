"""The EMA of every target's student loss (Eq. 2), for all samples, the same on every rank, saved in checkpoints."""

import functools
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from regate.scoring import update_ema

FILE_NAME = "difficulty.safetensors"
_FP16_MAX = 65504.0


@dataclass(frozen=True)
class Observations:
    """Student losses of supervised targets: R rows seen in one optimizer step, K observations in them.

    sample int64 [R]; row int64 [K], index into ``sample``; ordinal int64 [K]; loss float32 [K] in nats.
    """

    sample: Tensor
    row: Tensor
    ordinal: Tensor
    loss: Tensor


class DifficultyBuffer:
    """EMA per (sample, ordinal of the target): fp16, NaN where never observed.

    2 bytes a target plus 14 a sample: int64 offset, int32 id, int16 mark of the epoch last counted, so that a sample
    which an epoch's tail repeats counts once. fp16, because bf16 stalls at beta 0.9.
    """

    def __init__(self, sample_ids: np.ndarray, num_targets: np.ndarray, beta: float = 0.9):
        """sample_ids int [S], unique, in [0, 2**31); num_targets int [S] targets of each. ValueError otherwise."""
        ids = np.asarray(sample_ids, dtype=np.int64)
        if len(ids) and (ids.min() < 0 or ids.max() >= 2**31):
            raise ValueError(
                f"sample_id must lie in [0, 2**31): found {ids.min()} to {ids.max()}. "
                "Number the rows: dataset.add_column('sample_id', range(len(dataset)))."
            )
        order = np.argsort(ids, kind="stable")
        self.ids = ids[order].astype(np.int32)
        repeated = np.flatnonzero(self.ids[1:] == self.ids[:-1])
        if len(repeated):
            raise ValueError(
                f"{len(repeated)} sample ids occur more than once, for example {self.ids[repeated[:5]].tolist()}. The "
                "EMA is kept per sample_id: give each row its own, and compute reference losses again."
            )
        self.offsets = np.concatenate([[0], np.cumsum(np.asarray(num_targets, dtype=np.int64)[order])])
        self.ema = torch.full((int(self.offsets[-1]),), torch.nan, dtype=torch.float16)
        self.mark = torch.full((len(ids),), -1, dtype=torch.int16)
        self.beta = beta

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def nbytes(self) -> int:
        """Bytes held in memory."""
        return self.ids.nbytes + self.offsets.nbytes + self.ema.nbytes + self.mark.nbytes

    def slots(self, sample: Tensor) -> np.ndarray:
        """Slots [R] of sample ids [R]; KeyError naming ids that the data set does not have."""
        wanted = sample.cpu().numpy()
        # Of the ids' own type, or numpy would copy all of them to int64 for each search.
        slots = np.minimum(np.searchsorted(self.ids, wanted.astype(np.int32)), len(self.ids) - 1)
        unknown = wanted[self.ids[slots] != wanted]
        if len(unknown):
            raise KeyError(f"sample ids {unknown[:5].tolist()} are not in the training set the buffer was made for")
        return slots

    def lookup(self, sample: Tensor, width: int) -> Tensor:
        """EMA of the targets of samples [B], float32 [B, width], NaN where unobserved or past the answer's end."""
        slots = self.slots(sample)
        starts, ends = self.offsets[slots], self.offsets[slots + 1]
        index = torch.from_numpy(starts)[:, None] + torch.arange(width)
        inside = index < torch.from_numpy(ends)[:, None]
        values = self.ema[index.clamp(max=max(len(self.ema) - 1, 0))].float() if len(self.ema) else index.float()
        return values.masked_fill(~inside, torch.nan)

    def update(self, seen: Observations, epoch: int) -> None:
        """Fold one step's observations in (Eq. 2). A sample counts once an epoch, its first row of a step first."""
        if not len(seen.sample):
            return
        slots = self.slots(seen.sample)
        first = np.zeros(len(slots), dtype=bool)
        first[np.unique(slots, return_index=True)[1]] = True
        fresh = torch.from_numpy(first & (self.mark[slots] != epoch % 2**15).numpy())
        taken = fresh[seen.row]
        row, ordinal = seen.row[taken], seen.ordinal[taken]
        length = torch.from_numpy(self.offsets[slots + 1] - self.offsets[slots])
        if (ordinal >= length[row]).any():
            bad = seen.sample[row[ordinal >= length[row]][0]]
            raise ValueError(
                f"sample {int(bad)} has more targets now than reference losses: template or truncation "
                "changed. Run add_reference_losses again with the processor and max_length of this training."
            )
        index = torch.from_numpy(self.offsets[slots])[row] + ordinal
        new = update_ema(self.ema[index].float(), seen.loss[taken], self.beta)
        self.ema[index] = new.clamp(max=_FP16_MAX).half()
        self.mark[torch.from_numpy(slots)[fresh]] = epoch % 2**15

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of which samples and how many targets each: a checkpoint of other data is refused by it."""
        digest = hashlib.blake2b(self.ids.tobytes(), digest_size=16)
        digest.update(self.offsets.tobytes())
        return digest.hexdigest()

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write the buffer into a checkpoint directory, atomically."""
        path = Path(directory) / FILE_NAME
        temporary = path.with_suffix(".tmp")
        save_file({"ema": self.ema, "mark": self.mark}, temporary, metadata={"data": self.fingerprint})
        os.replace(temporary, path)

    def load(self, directory: str | os.PathLike[str]) -> None:
        """Read what ``save`` wrote; ValueError naming the file if it is missing, damaged or of another data set."""
        path = Path(directory) / FILE_NAME
        try:
            with safe_open(path, framework="pt") as file:
                data, ema, mark = file.metadata()["data"], file.get_tensor("ema"), file.get_tensor("mark")
        except (OSError, SafetensorError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path}: the difficulty EMA of this checkpoint cannot be read ({error}). Resume from another "
                "checkpoint, or start anew without resume_from_checkpoint."
            ) from error
        if data != self.fingerprint:
            raise ValueError(
                f"{path}: the EMA belongs to another training set (other sample ids or other answer lengths). Resume "
                "with the data set, template and truncation the run was started with."
            )
        self.ema.copy_(ema)
        self.mark.copy_(mark)
