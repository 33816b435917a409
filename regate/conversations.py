"""Conversation files -> one table of samples, checked before anything is computed.

A row of the table:

    id         string        the user's name of the sample
    sample_id  int64         its row number, 0..n-1: the key of reference losses and of the student's running losses
    messages   string        JSON: [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": ...}]}, ..]
                             ("start" and "end" beside "video": a clip, in seconds)
    images     list[string]  absolute paths, in the order in which the messages refer to them
    videos     list[string]  the same; a path may be a folder of frames

Read are LLaVA-style JSON and JSONL (`conversations`), chat-style JSON and JSONL (`messages`), VideoChat2's JSON (`QA`;
its samples have no ids, so their row numbers are taken), and folders: one saved by `datasets`, one of parquet files, or
one with a `metadata.jsonl`.
"""

import json
import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import datasets

from regate.integrity import is_sealed, require_whole
from regate.turns import BadSample, parse_sample

logger = logging.getLogger(__name__)

FEATURES = datasets.Features(
    {
        "id": datasets.Value("string"),
        "sample_id": datasets.Value("int64"),
        "messages": datasets.Value("string"),
        "images": datasets.List(datasets.Value("string")),
        "videos": datasets.List(datasets.Value("string")),
    }
)
_LOUD = 5  # how many bad samples are told one by one


class BadSamples:
    """Counts the samples that are skipped, and logs the first few.

    Attributes:
        count: how many.
        first: the messages of the first few.
    """

    def __init__(self) -> None:
        self.count = 0
        self.first: list[str] = []

    def add(self, error: Exception) -> None:
        """Counts one; logs it where it is among the first few."""
        self.count += 1
        if self.count <= _LOUD:
            self.first.append(str(error))
            logger.warning("skipped: %s", error)
        elif self.count == _LOUD + 1:
            logger.warning("more samples are skipped; they are counted, and no longer told one by one")

    def __str__(self) -> str:
        return f"{self.count} skipped" + "".join(f"\n  {message}" for message in self.first)


def load_conversations(
    path: str | Path,
    media_root: str | Path | None = None,
    on_bad_sample: str = "raise",
    skipped: BadSamples | None = None,
    follow_links: bool = False,
) -> datasets.Dataset:
    """Reads conversations, checks each sample's structure and that its files exist.

    Args:
        path: a JSON or JSONL file; or a folder that `Dataset.save_to_disk` wrote, that holds parquet files, or that
            holds a `metadata.jsonl`.
        media_root: the folder that media paths are relative to, and that none may leave. Left out, it is the folder of
            `path` (or `path` itself, where that is a folder).
        on_bad_sample: "raise", or "skip" (drop the sample, log it, count it).
        skipped: where skipped samples are counted, if the caller wants to know.
        follow_links: read files outside of `media_root`, too, that links inside of it lead to.

    Returns:
        The table described at the top of this file. A folder that holds such a table already is returned with all its
        columns, reference losses included.

    Raises:
        FileNotFoundError: no such path.
        ValueError: unreadable; ids missing or not unique (whatever `on_bad_sample` says); no sample left.
        BadSample: a sample is malformed and `on_bad_sample` is "raise": names file, sample, field, found, expected.
    """
    if on_bad_sample not in ("raise", "skip"):
        raise ValueError(f"on_bad_sample is {on_bad_sample!r}, expected 'raise' or 'skip'")
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder of conversations")
    root = Path(os.path.abspath(media_root if media_root is not None else path if path.is_dir() else path.parent))
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder of media (media_root)")
    rows = _numbered(_read(path))
    if isinstance(rows, datasets.Dataset) and set(FEATURES) <= set(rows.column_names):
        _check_ids(path, rows["id"])
        return _check_table(path, rows)
    skipped = skipped if skipped is not None else BadSamples()
    return _table(path, rows, root, on_bad_sample, skipped, follow_links)


def _table(
    path: Path, rows: Any, root: Path, on_bad_sample: str, skipped: BadSamples, follow_links: bool
) -> datasets.Dataset:
    _check_ids(path, _ids(rows))
    good: list[dict[str, Any]] = []
    errors: list[BadSample] = []
    for row in rows:
        try:
            good.append({"sample_id": len(good), **parse_sample(row, root, str(path), follow_links)})
        except BadSample as error:
            errors.append(error)
            if on_bad_sample == "skip":
                skipped.add(error)
    if errors and on_bad_sample == "raise":
        raise _together(path, errors, len(good) + len(errors))
    if not good:
        raise ValueError(f"{path}: found no usable sample ({len(errors)} skipped), expected at least one. {skipped}")
    if errors:
        logger.warning("%s: %d of %d samples skipped", path, len(errors), len(good) + len(errors))
    return datasets.Dataset.from_list(good, features=FEATURES)


def _together(path: Path, errors: list[BadSample], total: int) -> BadSample:
    """One error for all: the first few in words, and what to do."""
    first = errors[0]
    advice = 'Fix the data, or leave such samples out with on_bad_sample="skip" (--on-bad-sample skip).'
    if len(errors) == 1:
        return BadSample(f"{first} {advice}", sample_id=first.sample_id, file=first.file)
    told = "".join(f"\n  {error}" for error in errors[:_LOUD])
    message = f"{path}: {len(errors)} of {total} samples are unusable, the first:{told}\n{advice}"
    return BadSample(message, sample_id=first.sample_id, file=first.file)


def _check_ids(path: Path, ids: Any) -> None:
    """Raises where ids are missing or not unique: reference losses could not be told apart."""
    ids = list(ids)
    missing = [i for i, value in enumerate(ids) if not _is_id(value)]
    if missing:
        raise ValueError(
            f"{path}: {len(missing)} of {len(ids)} samples have no id (rows {_some(missing)}), expected a unique "
            "string or integer under `id` in each. If nothing else names them, write the row number there."
        )
    counts = Counter(str(value) for value in ids)
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        raise ValueError(
            f"{path}: {len(twice)} ids occur more than once ({_some(twice)}), expected unique ids. "
            "Remove the repeated samples, or number them, for example by appending the row number to the id."
        )


def _check_table(path: Path, table: datasets.Dataset) -> datasets.Dataset:
    """Checks a table that was saved before; does not look at the media files again."""
    twice = [i for i, count in Counter(table["sample_id"]).items() if count > 1]
    if twice:
        raise ValueError(
            f"{path}: {len(twice)} values of sample_id occur more than once ({_some(twice)}), so several tables were "
            "put together. Drop sample_id and reference_losses, save, and run `regate reference` on it again."
        )
    if not len(table):
        raise ValueError(f"{path}: found an empty table, expected at least one sample")
    return table


def _numbered(rows: Any) -> Any:
    """Gives rows in VideoChat2's format, which has no ids, their numbers as ids."""
    if not isinstance(rows, list):
        return rows
    nameless = [isinstance(row, Mapping) and "QA" in row and row.get("id") is None for row in rows]
    return [row | {"id": i} if new else row for i, (row, new) in enumerate(zip(rows, nameless, strict=True))]


def _ids(rows: Any) -> list[Any]:
    if isinstance(rows, datasets.Dataset):
        return list(rows["id"]) if "id" in rows.column_names else [None] * len(rows)
    return [row.get("id") if isinstance(row, Mapping) else None for row in rows]


def _is_id(value: Any) -> bool:
    return (isinstance(value, str) and value.strip() != "") or (isinstance(value, int) and not isinstance(value, bool))


def _some(values: list) -> str:
    return ", ".join(str(value) for value in values[:_LOUD]) + (", ..." if len(values) > _LOUD else "")


def _read(path: Path) -> Any:
    """Rows as a list of whatever the file holds, or as a Dataset."""
    if path.is_file():
        if path.suffix.lower() == ".parquet":
            return _undecoded(_parquet(path, [path]))
        return _read_json(path)
    if not path.is_dir():
        raise ValueError(f"{path}: found a pipe or a device, expected a file or folder of conversations")
    if (path / "dataset_dict.json").exists():
        splits = sorted(p.name for p in path.iterdir() if p.is_dir())
        raise ValueError(
            f"{path}: found several splits ({', '.join(splits)}), expected one: name its folder, {path}/NAME"
        )
    if (path / "state.json").exists():
        if is_sealed(path):
            require_whole(path)
        return _undecoded(datasets.load_from_disk(str(path)))
    if (path / "metadata.jsonl").exists():
        return _read_json(path / "metadata.jsonl")
    if parquet := sorted(path.rglob("*.parquet")):
        return _undecoded(_parquet(path, parquet))
    if len(files := [p for p in sorted(path.iterdir()) if p.suffix.lower() in (".json", ".jsonl")]) == 1:
        return _read_json(files[0])
    raise ValueError(
        f"{path}: found a folder with {len(files)} JSON files and none of state.json (datasets), *.parquet or "
        "metadata.jsonl, expected one of these. Name the JSON file itself."
    )


def _parquet(path: Path, files: list[Path]) -> datasets.Dataset:
    try:
        return datasets.Dataset.from_parquet([str(file) for file in files])
    except (datasets.exceptions.DatasetGenerationError, OSError, ValueError) as error:
        raise ValueError(f"{path}: found Parquet that cannot be read ({error.__cause__ or error})") from error


def _undecoded(table: datasets.Dataset) -> datasets.Dataset:
    """Images and videos stay paths, or bytes."""
    for name, feature in table.features.items():
        if isinstance(feature, (datasets.Image, datasets.Video)):
            table = table.cast_column(name, type(feature)(decode=False))
        elif isinstance(feature, datasets.List) and isinstance(feature.feature, (datasets.Image, datasets.Video)):
            table = table.cast_column(name, datasets.List(type(feature.feature)(decode=False)))
    return table


def _read_json(path: Path) -> list[Any]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: found bytes that are no UTF-8 (at {error.start}), expected JSON or JSONL") from error
    if path.suffix.lower() == ".jsonl" or not text.lstrip().startswith("["):
        return list(_lines(path, text))
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: line {error.lineno}, column {error.colno}: no valid JSON ({error.msg})") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; brackets within brackets
        raise ValueError(f"{path}: no usable JSON ({error})") from error


def _lines(path: Path, text: str) -> Iterator[Any]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(
                    f"{path}: line {number}: no valid JSON ({error.msg}), expected a JSON list, or one sample a line"
                ) from error
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path}: line {number}: no usable JSON ({error})") from error
