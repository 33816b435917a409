"""Reference losses on several processes: one is killed in mid-shard, fewer go on, and nothing tells it from one run."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from regate import add_reference_losses, throughput
from regate.reference_column import _count_targets
from tests.core.experiment import tiny_data
from tests.tiny import tiny_model

ROOT = Path(__file__).resolve().parents[2]
LENGTHS = [6, 11, 4, 9, 13, 7, 5, 10, 8, 12, 3]
SHARD_ROWS = 2  # six shards; two ranks have three each
KILLED_AT = 7  # the second row of rank 1's second shard
_RANK = """
import os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from tests.core.test_reference_ranks import KILLED_AT, scored

def look(index):
    if os.environ["RANK"] == "1" and index == KILLED_AT:
        os.kill(os.getpid(), signal.SIGKILL)

scored(Path(sys.argv[1]), look)
"""


def scored(cache: Path, look):
    """The tiny data set, scored; ``look`` sees the index of each row that is encoded."""
    model, processor = tiny_model("internvl")
    data, _ = tiny_data("internvl", processor, LENGTHS)

    def encode(row):
        look(row["index"])
        return {"input_ids": torch.tensor(row["input_ids"]), "labels": torch.tensor(row["labels"])}

    return add_reference_losses(data, model, processor, encode=encode, cache_dir=cache, shard_rows=SHARD_ROWS)


def shards(cache: Path) -> dict[str, bytes]:
    return {str(path.relative_to(cache)): path.read_bytes() for path in sorted(cache.rglob("*.arrow"))}


def test_a_lost_rank_loses_its_open_shard_and_one_process_goes_on(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = []
    for rank in range(2):
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "WORLD_SIZE": "2"}
        environment |= {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
        }
        ranks.append(subprocess.Popen([sys.executable, "-c", _RANK, str(tmp_path / "two")], cwd=ROOT, env=environment))
    assert ranks[1].wait(timeout=120) == -9
    assert ranks[0].wait(timeout=120) > 0  # it finished its share, and then missed the other
    whole = scored(tmp_path / "one", lambda index: None)
    expected = shards(tmp_path / "one")
    assert shards(tmp_path / "two") == {
        name: expected[name] for number, name in enumerate(expected) if number not in (3, 5)
    }

    encoded: list[int] = []
    again = scored(tmp_path / "two", encoded.append)
    assert encoded == [6, 7, 10]
    assert shards(tmp_path / "two") == expected
    assert again.data.table.equals(whole.data.table)

    # Each shard was logged once, by who finished it.
    logs = {path.name: path.read_text().splitlines() for path in (tmp_path / "two").rglob("throughput-*.jsonl")}
    assert {name: len(lines) for name, lines in logs.items()} == {"throughput-0.jsonl": 5, "throughput-1.jsonl": 1}
    samples, tokens, seconds = throughput.total(tmp_path / "two")
    assert (samples, tokens) == throughput.total(tmp_path / "one")[:2]
    assert samples == len(LENGTHS)
    entry = json.loads(logs["throughput-1.jsonl"][0])
    assert entry["samples_per_second"] == pytest.approx(entry["samples"] / entry["seconds"], rel=0.1)
    assert seconds > 0

    encoded.clear()
    scored(tmp_path / "two", encoded.append)
    assert not encoded


def test_columns_are_joined_without_a_copy(tmp_path, caplog):
    """The result's reference losses lie in the shards' own files, where a sample is left out, too."""
    found = scored(tmp_path, lambda index: None)
    assert {file["filename"] for file in found.cache_files} == {str(path) for path in tmp_path.rglob("*.arrow")}
    model, processor = tiny_model("internvl")
    data, _ = tiny_data("internvl", processor, LENGTHS)
    data = data.map(lambda row: {"labels": [-100] * len(row["labels"])} if row["index"] == 2 else {})
    options = {"cache_dir": tmp_path / "skip", "shard_rows": SHARD_ROWS, "on_bad_sample": "skip"}
    found = add_reference_losses(data, model, processor, **options)
    assert {str(path) for path in (tmp_path / "skip").rglob("*.arrow")} <= {f["filename"] for f in found.cache_files}
    assert found["sample_id"][:] == [0, 1, *range(3, len(LENGTHS))]
    assert [len(x) for x in found["reference_losses"]] == [n for i, n in enumerate(LENGTHS) if i != 2]


def test_targets_are_counted_in_any_chunks():
    rng = np.random.default_rng(0)
    rows = [rng.choice([-100, 5], size=size).tolist() for size in (0, 1, 7, 3, 0, 12, 2)]
    expected = [sum(label != -100 for label in row[1:]) for row in rows]
    kind = pa.list_(pa.int64())
    for cut in range(len(rows)):
        chunks = [pa.array(rows[:cut], kind), pa.array([[1, 2], *rows[cut:]], kind).slice(1)]
        assert _count_targets(pa.chunked_array(chunks, kind)).tolist() == expected
