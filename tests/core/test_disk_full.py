"""A full disk while a checkpoint, the reference column or a record is written: what was complete is gone on with.

The disk is "full" by a limit on the size of files that this process may write (RLIMIT_FSIZE); writes beyond it fail.
"""

import resource
import signal

import pytest
import torch
from transformers import TrainerCallback

from regate import add_reference_losses
from regate.checkpoint import last_complete
from repro.record import read, write
from tests.core.experiment import experiment, tiny_data, weights
from tests.repro.synthetic import record
from tests.tiny import tiny_model


class Disk:
    """Full from `fill()` on, until the `with` block ends."""

    def __enter__(self):
        self._handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # writes raise OSError instead
        self._limit = resource.getrlimit(resource.RLIMIT_FSIZE)
        return self

    def fill(self, after_bytes: int = 1024) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (after_bytes, self._limit[1]))

    def __exit__(self, *error):
        resource.setrlimit(resource.RLIMIT_FSIZE, self._limit)
        signal.signal(signal.SIGXFSZ, self._handler)


def test_checkpoint(tmp_path):
    options = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2}
    whole = experiment("internvl", tmp_path / "whole", **options)
    whole.train()

    class Fill(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 4:
                disk.fill()

    first = experiment("internvl", tmp_path / "parts", **options)
    first.add_callback(Fill())
    with Disk() as disk, pytest.raises(Exception, match=r"(?i)file too large|File size|os error 27|Errno 27"):
        first.train()
    assert last_complete(tmp_path / "parts") == str(tmp_path / "parts" / "checkpoint-2")
    second = experiment("internvl", tmp_path / "parts", **options)
    second.train(resume_from_checkpoint=True)
    for name, weight in weights(whole).items():
        assert torch.equal(weights(second)[name], weight), name


def test_reference_column(tmp_path):
    model, processor = tiny_model("internvl")
    data, _ = tiny_data("internvl", processor)
    seen = []

    def encode(row):
        seen.append(row["index"])
        if len(seen) == 5 and disk is not None:
            disk.fill(after_bytes=16)
        return {"input_ids": torch.tensor(row["input_ids"]), "labels": torch.tensor(row["labels"])}

    options = {"encode": encode, "cache_dir": tmp_path, "shard_rows": 2}
    with Disk() as disk, pytest.raises(OSError, match="too large"):
        add_reference_losses(data, model, processor, **options)
    seen.clear()
    disk = None  # there is room again
    scored = add_reference_losses(data, model, processor, **options)
    assert seen == [4, 5, 6, 7]  # two shards were complete
    assert scored["reference_losses"][:] == add_reference_losses(data, model, processor)["reference_losses"][:]


def test_record(tmp_path):
    old = record("regate", 0)
    path = write(old, tmp_path)
    with Disk() as disk:
        disk.fill()
        with pytest.raises(OSError, match="too large"):
            write(record("regate", 0, final=0.5), tmp_path)
    assert read(path) == old
    assert list(tmp_path.iterdir()) == [path]
