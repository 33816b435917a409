"""What is stored comes back as it was, or not at all: damage, kills, full disks and limits cost work, never truth."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regate.store import Store, key_of
from tests.core.test_disk_full import Disk

ROOT = Path(__file__).resolve().parents[2]
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 4), max_size=3)), max_size=4), st.data())
def test_round_trip(tmp_path_factory, kinds, data):
    store = Store(tmp_path_factory.mktemp("store"), 1.0)
    tensors = {f"t{i}": torch.randint(0, 2, shape).to(dtype) for i, (dtype, shape) in enumerate(kinds)}
    assert store.get("ab") is None
    assert store.put("ab", tensors)
    found = Store(store.folder, 1.0).get("ab")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
    path = next(store.folder.rglob("*.safetensors"))
    content = bytearray(path.read_bytes())
    where = data.draw(st.integers(0, len(content) - 1))
    content[where] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    found = store.get("ab")
    same = found is not None and found.keys() == tensors.keys()
    # A flipped bit is told, unless it lies where it changes nothing (padding of the header).
    assert found is None or (same and all(torch.equal(found[name], tensors[name]) for name in tensors))


@pytest.mark.parametrize("length", [0, 7, 100, -1])
def test_an_entry_cut_short_is_none_and_made_again(tmp_path, length, caplog):
    store = Store(tmp_path, 1.0)
    store.put("ab", {"x": torch.arange(100.0)})
    path = next(tmp_path.rglob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:length])
    assert store.get("ab") is None
    assert f"{path}: damaged" in caplog.text
    assert store.put("ab", {"x": torch.arange(100.0)})
    assert torch.equal(store.get("ab")["x"], torch.arange(100.0))


def test_views_and_shared_storage(tmp_path):
    store, whole = Store(tmp_path, 1.0), torch.arange(12.0).reshape(3, 4)
    tensors = {"row": whole[1], "column": whole[:, 1], "turned": whole.T, "one": whole[0, :1].expand(3, 5)}
    store.put("ab", tensors)
    assert all(torch.equal(value, tensors[name]) for name, value in store.get("ab").items())


def test_the_limit_holds_over_instances_and_is_told(tmp_path, caplog):
    tensors = {"x": torch.zeros(1000)}  # about 4.2 kB each
    for _ in range(2):
        store = Store(tmp_path, 20e-6)
        for number in range(6):
            store.put(key_of(number), tensors)
        assert sum(f.stat().st_size for f in tmp_path.rglob("*") if f.is_file()) <= 20_000
    assert [store.get(key_of(number)) is not None for number in range(6)] == [True] * 4 + [False] * 2
    assert "has reached its limit of 2e-05 GB" in caplog.text
    assert "--cache-gb" in caplog.text
    with pytest.raises(ValueError, match="must be positive"):
        Store(tmp_path, 0)


def test_a_full_disk_is_told_once_and_what_is_there_stays(tmp_path, caplog):
    store = Store(tmp_path, 1.0)
    store.put("ab", {"x": torch.arange(10.0)})
    with Disk() as disk:
        disk.fill()
        assert not store.put("cd", {"x": torch.zeros(10_000)})
        assert not store.put("ef", {"x": torch.zeros(10_000)})
    assert caplog.text.count("cannot be written (File too large)") == 1
    assert torch.equal(store.get("ab")["x"], torch.arange(10.0))
    assert store.get("cd") is None
    assert not list(tmp_path.rglob("*.tmp"))
    assert Store(tmp_path, 1.0).put("cd", {"x": torch.zeros(10_000)})


_FILL = """
import sys, torch
sys.path.insert(0, sys.argv[1])
from regate.store import Store, key_of
store = Store(sys.argv[2], 1.0)
print("ready", flush=True)
for number in range(int(sys.argv[3])):
    store.put(key_of(number), {"x": torch.full((50_000,), float(number))})
"""


def filler(folder: Path, count: int) -> subprocess.Popen:
    command = [sys.executable, "-c", _FILL, str(ROOT), str(folder), str(count)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    process.stdout.readline()
    return process


def test_killed_and_filled_by_two_at_once(tmp_path):
    with filler(tmp_path, 100_000) as killed:
        deadline = time.monotonic() + 60
        while len(list(tmp_path.rglob("*.safetensors"))) < 20 and time.monotonic() < deadline:
            time.sleep(0.01)
        killed.send_signal(signal.SIGKILL)
    there = len(list(tmp_path.rglob("*.safetensors")))
    assert there >= 20
    with filler(tmp_path, 60) as one, filler(tmp_path, 60) as two:
        assert one.wait(60) == two.wait(60) == 0
    store = Store(tmp_path, 1.0)
    for number in range(max(60, there)):
        assert torch.equal(store.get(key_of(number))["x"], torch.full((50_000,), float(number)))
