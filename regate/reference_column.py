"""Reference losses as columns of a data set: computed once, resumable, and refused where they do not belong.

Three columns: ``sample_id`` (int64, the key of the EMA), ``reference_losses`` (list<float16>, one per target) and
``reference_id``, which says of which teacher, tokenizer, template and truncation they are.
"""

import hashlib
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor, nn

from regate.integrity import flush_folder, hash_file
from regate.reference import TextTeacher, load_teacher, score_rows
from regate.throughput import Throughput
from regate.turns import BadSample

logger = logging.getLogger(__name__)
_SCHEMA = pa.schema(
    [("sample_id", pa.int64()), ("reference_losses", pa.list_(pa.float16())), ("reference_id", pa.string())]
)
_REBUILD = (
    "Rebuild them: add_reference_losses(dataset.remove_columns(['reference_losses', 'reference_id']), "
    "teacher, processor)."
)

Encoder = Callable[[dict[str, Any]], dict[str, Tensor]]
Losses = list[np.ndarray | None]
"""Of each row float16 [its targets]; None for a row that is left out."""


def add_reference_losses(
    dataset: datasets.Dataset,
    teacher: nn.Module | str | os.PathLike[str],
    processor: Any = None,
    *,
    encode: Encoder | None = None,
    max_length: int | None = None,
    num_frames: int = 8,
    attend_placeholders: bool = False,
    batch_tokens: int = 16384,
    cache_dir: str | os.PathLike[str] | None = None,
    shard_rows: int = 4096,
    on_bad_sample: str = "raise",
    frames: Any = None,
) -> datasets.Dataset:
    """The data set with the text-only teacher's loss of every target token (Eq. 1), in nats.

    ``teacher``: the student itself (its language backbone as it is now), another model with the same tokenizer, or a
    path. Rows are encoded by ``encode`` (row -> dict with 1-D ``input_ids`` and ``labels``), are used as they are if
    they have those two columns, and go through :class:`regate.data.ConversationEncoder` otherwise. ``max_length`` and
    ``num_frames`` must be those of the training.

    With ``cache_dir`` every ``shard_rows`` rows are a file, written whole or not at all; a second call, after a kill
    too, computes only what is missing, and under torchrun each process computes its share. ``on_bad_sample="skip"``
    leaves rows out that cannot be encoded, and logs them. ``frames``, a :class:`regate.media_cache.FrameCache`, keeps
    the decoded frames for the training.

    Raises ValueError for a data set that is scored already, a teacher with another tokenizer, and unusable rows.
    """
    if "reference_losses" in dataset.column_names:
        raise ValueError(f"the data set has reference losses already. {_REBUILD}")
    if on_bad_sample not in ("raise", "skip"):
        raise ValueError(f"on_bad_sample must be 'raise' or 'skip'; got {on_bad_sample!r}")
    text_teacher = load_teacher(teacher, processor, attend_placeholders)
    if "sample_id" not in dataset.column_names:
        dataset = dataset.add_column("sample_id", np.arange(len(dataset), dtype=np.int64))
    reference_id = identity(
        teacher=text_teacher.fingerprint(),
        placeholders="attended" if attend_placeholders else "masked",
        **encoding_identity(dataset.column_names, processor, max_length, num_frames, encode),
    )
    encode = encode or encoder_of(dataset.column_names, processor, max_length, num_frames, frames)
    told = Throughput("reference losses", len(dataset))

    def score(rows: datasets.Dataset) -> Losses:
        return _score(rows, text_teacher, encode, batch_tokens, on_bad_sample, told)

    return with_columns(dataset, reference_id, score, told, cache_dir, shard_rows)


def with_columns(
    dataset: datasets.Dataset,
    reference_id: str,
    score: Callable[[datasets.Dataset], Losses],
    told: Throughput,
    cache_dir: str | os.PathLike[str] | None,
    shard_rows: int,
) -> datasets.Dataset:
    """The data set with the columns ``reference_losses`` and ``reference_id``, scored shard by shard.

    ``score``: rows -> for each float16 [its targets], or None for one to be left out. With ``cache_dir`` each shard is
    a file that is written whole or not at all and found again; under torchrun each process computes its share of those
    that are missing, so that a lost process loses the shard it was at, and any number of processes can go on. The
    columns are joined as memory-mapped files: nothing is copied.
    """

    def shard(start: int) -> pa.Table:
        rows = dataset.select(range(start, min(start + shard_rows, len(dataset))))
        columns = [pa.array(rows["sample_id"]), pa.array(score(rows), pa.list_(pa.float16()))]
        return pa.Table.from_arrays([*columns, pa.array([reference_id] * len(rows))], schema=_SCHEMA)

    starts = range(0, len(dataset), shard_rows)
    if cache_dir is None:
        table = pa.concat_tables([shard(start) for start in starts])
        scored = datasets.Dataset(datasets.table.InMemoryTable(table))
    else:
        folder = Path(cache_dir) / _content_key(dataset, reference_id, shard_rows)
        scored = _from_shards(folder, starts, len(dataset), shard, told)
    told.close()

    valid = scored.with_format("arrow")[:]["reference_losses"].is_valid().to_numpy()
    joined = datasets.concatenate_datasets([dataset, scored.remove_columns("sample_id")], axis=1)
    if valid.all():
        return joined
    logger.warning("%d of %d samples were left out; each is named above", (~valid).sum(), len(dataset))
    return joined.select(np.flatnonzero(valid))


def encoder_of(
    columns: list[str], processor: Any, max_length: int | None, num_frames: int, frames: Any = None
) -> Encoder:
    """How rows with these columns become ``input_ids`` and ``labels``."""
    if {"input_ids", "labels"} <= set(columns):
        return lambda row: {"input_ids": torch.as_tensor(row["input_ids"]), "labels": torch.as_tensor(row["labels"])}
    if processor is None:
        raise ValueError(
            f"rows have {sorted(columns)}: neither input_ids and labels nor a processor to make them from messages. "
            "Pass processor= or encode=."
        )
    from regate.data import ConversationEncoder

    return ConversationEncoder(processor, max_length, num_frames, frames)


def identity(**parts: str) -> str:
    """``reference_id`` of its parts: ``teacher=..;placeholders=..;...``."""
    return ";".join(f"{name}={value}" for name, value in sorted(parts.items()))


def encoding_identity(
    columns: list[str], processor: Any, max_length: int | None, num_frames: int, encode: Encoder | None = None
) -> dict[str, str]:
    """The parts of a reference_id that say how rows became tokens; empty where the rows are tokens already."""
    if processor is None or encode is not None or {"input_ids", "labels"} <= set(columns):
        return {}
    from regate.fingerprint import fingerprint_of

    return fingerprint_of(processor, max_length, num_frames)


def check_reference(dataset: datasets.Dataset, expected: dict[str, str]) -> np.ndarray:
    """Number of reference losses of each row, int64 [rows], after checking that they are the ones ``expected``.

    Raises ValueError if columns are missing, of several or of other origins, or of another length than the targets
    (where rows hold labels), saying how to rebuild.
    """
    missing = [c for c in ("sample_id", "reference_losses", "reference_id") if c not in dataset.column_names]
    if missing:
        raise ValueError(
            f"the training set has no {', '.join(missing)}: run add_reference_losses(dataset, teacher, processor) on "
            "it, or choose policy='dense' or 'random', which need no teacher"
        )
    columns = [c for c in ("reference_losses", "reference_id", "labels") if c in dataset.column_names]
    table = dataset.select_columns(columns).with_format("arrow")[:]
    origins = pc.unique(table["reference_id"]).to_pylist()
    if len(origins) != 1:
        raise ValueError(f"the reference losses are of {len(origins)} origins: {origins[:3]}. {_REBUILD}")
    found = {"measure": "loss"} | dict(part.split("=", 1) for part in origins[0].split(";"))
    for name, value in expected.items():
        if name in found and found[name] != value:
            hint = (
                f" To use this teacher on purpose, set ReGateConfig(teacher={found[name]!r})."
                if name == "teacher"
                else ""
            )
            raise ValueError(
                f"the reference losses were computed with another {name} ({found[name]}) than this training's "
                f"({value}). {_REBUILD}{hint}"
            )
    lengths = pc.list_value_length(table["reference_losses"]).to_numpy().astype(np.int64)
    if "labels" in columns:
        targets = _count_targets(table["labels"])
        wrong = np.flatnonzero(targets != lengths)
        if len(wrong):
            raise ValueError(
                f"row {wrong[0]} (and {len(wrong) - 1} more) has {lengths[wrong[0]]} reference losses for "
                f"{targets[wrong[0]]} targets. {_REBUILD}"
            )
    return lengths


def _count_targets(labels: pa.ChunkedArray) -> np.ndarray:
    """Targets of each row, int64 [rows]: labels other than -100, the first of a row left out."""
    counts = []
    for chunk in labels.chunks:
        lengths = pc.list_value_length(chunk).to_numpy(zero_copy_only=False).astype(np.int64)
        ends = np.cumsum(lengths)
        target = pc.list_flatten(chunk).to_numpy(zero_copy_only=False) != -100
        target[(ends - lengths)[lengths > 0]] = False
        upto = np.concatenate([[0], np.cumsum(target)])
        counts.append(upto[ends] - upto[ends - lengths])
    return np.concatenate([np.empty(0, np.int64), *counts])


def _score(
    rows: datasets.Dataset,
    teacher: TextTeacher,
    encode: Encoder,
    batch_tokens: int,
    on_bad_sample: str,
    told: Throughput,
) -> Losses:
    encoded: list[tuple[Tensor, Tensor]] = []
    good: list[int] = []
    for index, row in enumerate(rows):
        try:
            encoding = encode(row)
            ids, labels = encoding["input_ids"], encoding["labels"]
            if not (labels[1:] != -100).any():
                raise BadSample(f"sample {row['sample_id']}: no target token in it", row["sample_id"])
        except BadSample as error:
            if on_bad_sample == "raise":
                raise
            logger.warning("left out: %s", error)
            continue
        encoded.append((ids, labels))
        good.append(index)
    losses: Losses = [None] * len(rows)
    for index, loss in zip(good, score_rows(teacher, encoded, batch_tokens, told.update), strict=True):
        losses[index] = loss.numpy().astype(np.float16)
    told.update(len(rows) - len(good), 0)
    return losses


def _from_shards(
    folder: Path, starts: range, size: int, compute: Callable[[int], pa.Table], told: Throughput
) -> datasets.Dataset:
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    # Without cpu=True accelerate takes torchrun's processes on a machine without a GPU for one each.
    state = PartialState(cpu=not torch.cuda.is_available())
    folder.mkdir(parents=True, exist_ok=True)
    # One process looks, before any writes: all must share out the same shards.
    missing = [start for start in starts if state.is_main_process and _whole_shard(folder, start) is None]
    (missing,) = broadcast_object_list([missing]) if state.num_processes > 1 else [missing]
    mine = missing[state.process_index :: state.num_processes]
    told.begin(sum(min(starts.step, size - start) for start in mine), folder, state.process_index)
    for start in mine:
        _write_shard(folder, start, compute(start))
        told.shard(f"{start:010d}")
    state.wait_for_everyone()
    files = {path.name[:10]: path for path in folder.glob("*.arrow")}
    parts = [datasets.Dataset.from_file(str(files[f"{start:010d}"])) for start in starts]
    return datasets.concatenate_datasets(parts)  # memory-mapped


def _write_shard(folder: Path, start: int, table: pa.Table) -> None:
    """A shard's name holds its first row and the hash of its bytes: it is there whole, or not."""
    temporary = folder / f"{start:010d}.tmp"
    with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_stream(sink, _SCHEMA) as writer:
        writer.write_table(table)
    os.replace(temporary, folder / f"{start:010d}-{hash_file(temporary, flush=True)}.arrow")
    flush_folder(folder)


def _whole_shard(folder: Path, start: int) -> Path | None:
    """The shard that begins with this row, if its bytes are those it was written with; a damaged one is removed."""
    found = None
    for path in sorted(folder.glob(f"{start:010d}-*.arrow")):
        if found is None and hash_file(path) == path.stem.split("-")[1]:
            found = path
        else:
            logger.warning("%s: damaged, so its rows are scored again", path)
            path.unlink()
    return found


def _content_key(dataset: datasets.Dataset, reference_id: str, shard_rows: int) -> str:
    """Name of the folder of shards: changes with the text, ids, targets and media paths of the rows."""
    digest = hashlib.blake2b(f"{reference_id}|{shard_rows}".encode(), digest_size=12)
    wanted = ("sample_id", "id", "messages", "images", "videos", "input_ids", "labels", "question", "answer")
    columns = dataset.select_columns([c for c in wanted if c in dataset.column_names]).with_format("arrow")
    for batch in _batches(columns):
        digest.update(repr(batch.to_pydict()).encode())
    return digest.hexdigest()


def _batches(dataset: datasets.Dataset, size: int = 4096) -> Iterator[pa.Table]:
    for start in range(0, len(dataset), size):
        yield dataset[start : start + size]
