"""What every benchmark twin shares: its description, and the writing of tables, data cards and videos.

A twin is a folder in a benchmark's own schema, asked about the embedded world, so that lmms-eval's own task code loads
and scores it. Tables are Parquet files that the data card's `configs:` names; media lie where the stock
`doc_to_visual` looks, below `Twin.media` in the place of `HF_HOME/<cache_dir>`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from eval.world import mvbench

if TYPE_CHECKING:
    import datasets


@dataclass(frozen=True)
class Twin:
    """A benchmark's twin.

    name: the benchmark, and the module that writes it. shown: its task types that the twin asks, under the
    benchmark's names. not_shown: the others, each with the reason. write: `write(folder, count, seed)` fills an empty
    folder with `count` questions for each task type. media: the sub-folder that stands for `HF_HOME/<cache_dir>`
    ("" = the folder itself). version: goes up whenever the same arguments give another folder.
    """

    name: str
    shown: tuple[str, ...]
    not_shown: dict[str, str]
    write: Callable[[Path, int, int], None]
    media: str = ""
    version: str = "1"


def write_parquet(
    folder: Path, config: str, split: str, rows: Sequence[Mapping[str, Any]], features: datasets.Features
) -> str:
    """Rows as one Parquet file named as on the hub; returns its path relative to `folder`, for `write_card`.

    A row whose keys are not those of `features` raises a ValueError: the stock task would miss a column or get one
    that the benchmark does not have.
    """
    import datasets
    from pyarrow import parquet

    for number, row in enumerate(rows):
        if set(row) != set(features):
            raise ValueError(
                f"row {number} of {config}/{split} has the columns {sorted(row)}, not {sorted(features)}; give each "
                "row all columns of the benchmark and no other"
            )
    name = f"{config}/{split}-00000-of-00001.parquet"
    (folder / config).mkdir(parents=True, exist_ok=True)
    columns = {key: [row[key] for row in rows] for key in features}
    table = datasets.Dataset.from_dict(columns, features=features).data.table
    parquet.write_table(table, folder / name)  # `to_parquet` would show a bar for each
    return name


def write_card(folder: Path, configs: Mapping[str, Mapping[str, str]]) -> None:
    """README.md whose header tells `datasets.load_dataset(folder, config, split=...)` which file is which.

    configs: per config name, per split, the path of its file relative to `folder` (what `write_parquet` returned).
    `eval.twins.make` adds the description below the header.
    """
    lines = ["---", "license: apache-2.0", "configs:"]
    for config, splits in configs.items():
        lines += [f"- config_name: {config}", "  data_files:"]
        for split, path in splits.items():
            lines += [f"  - split: {split}", f"    path: {path}"]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]))


def write_video(path: Path, frames: np.ndarray, fps: int = mvbench.FPS) -> None:
    """Frames (uint8 [T, H, W, 3], RGB) as a lossless H.264 mp4 of `fps` frames a second; makes the path's folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mvbench.encode(frames, path, fps)


__all__ = ["Twin", "write_card", "write_parquet", "write_video"]
