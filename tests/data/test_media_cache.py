"""Frames from the cache are the frames of the file as it is now, bit for bit."""

import logging
import os
import shutil

import numpy as np
import pytest

from regate import media_cache
from regate.data import ConversationCollator
from regate.media import MediaError, load_video
from regate.media_cache import FrameCache
from regate.turns import BadSample
from tests.media_files import turns, write_conversations, write_image, write_video
from tests.tiny import tiny_processor


@pytest.fixture
def decoded(monkeypatch):
    """The files that were really decoded, in order."""
    files = []

    def load(path, *args):
        files.append(os.path.basename(path))
        return load_video(path, *args)

    monkeypatch.setattr(media_cache, "load_video", load)
    return files


def same(a, b) -> bool:
    return np.array_equal(a.frames, b.frames) and (a.indices, a.total, a.fps) == (b.indices, b.total, b.fps)


def last_ones(total: int, count: int) -> list[int]:
    return list(range(total - count, total))


def test_equal_to_decoding_for_every_way_of_asking(tmp_path, decoded):
    paths = [write_video(tmp_path / "a.mp4", 30, noise=True), write_video(tmp_path / "b.gif", 5, noise=True)]
    folder = tmp_path / "folder"
    for i in range(6):
        write_image(folder / f"{i}.png", seed=i)
    asked = [(path, frames, None) for path in (*paths, folder) for frames in (1, 4, 9)]
    asked += [(paths[0], 4, (0.5, 2.0)), (paths[0], 4, (1.0, 99.0))]
    cache = FrameCache(tmp_path / "cache", 1.0)
    cold = [cache.load(*ask) for ask in asked]
    assert len(decoded) == len(asked)
    warm = [FrameCache(tmp_path / "cache", 1.0).load(*ask) for ask in asked]
    assert len(decoded) == len(asked)
    for ask, first, second in zip(asked, cold, warm, strict=True):
        assert same(first, load_video(*ask))
        assert same(first, second)
    assert same(cache.load(paths[0], 4, None, last_ones), load_video(paths[0], 4, None, last_ones))
    assert len(decoded) == len(asked) + 1  # other frame numbers


def test_a_changed_file_is_decoded_anew_and_a_moved_one_is_not(tmp_path, decoded):
    path = write_video(tmp_path / "a.mp4", 12, size=(64, 48))
    cache = FrameCache(tmp_path / "cache", 1.0)
    first = cache.load(path, 4)
    before = path.stat()
    other = write_video(tmp_path / "other.mp4", 12, size=(64, 48), noise=True)
    path.write_bytes(other.read_bytes()[: before.st_size].ljust(before.st_size, b"\0"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # same path, inode, size and time of change
    assert path.stat().st_size == before.st_size
    with pytest.raises(MediaError):
        cache.load(path, 4)
    shutil.copy(other, path)
    assert same(cache.load(path, 4), load_video(other, 4))
    assert decoded == ["a.mp4"] * 3
    assert not same(cache.load(path, 4), first)
    path.rename(tmp_path / "moved.mp4")
    assert same(cache.load(tmp_path / "moved.mp4", 4), load_video(other, 4))
    assert decoded == ["a.mp4"] * 3


def test_a_hash_is_remembered_once_the_file_has_settled(tmp_path, monkeypatch):
    path = write_video(tmp_path / "a.mp4", 12)
    monkeypatch.setattr(media_cache, "_SETTLED", -1.0)
    cache = FrameCache(tmp_path / "cache", 1.0)
    content = cache.contents(path)
    entries = list((tmp_path / "cache").rglob("*.safetensors"))
    assert len(entries) == 1
    assert FrameCache(tmp_path / "cache", 1.0).contents(path) == content
    store = cache.store
    known = [entry.stem for entry in entries]
    path.write_bytes(path.read_bytes())  # the same content, changed just now: read again, under another key
    assert cache.contents(path) == content
    assert [entry.stem for entry in store.folder.rglob("*.safetensors") if entry.stem not in known]


def test_errors_are_those_of_decoding(tmp_path):
    cache = FrameCache(tmp_path / "cache", 1.0)
    good, empty, text = write_video(tmp_path / "a.mp4", 12), tmp_path / "empty.mp4", tmp_path / "text.mp4"
    empty.write_bytes(b"")
    text.write_text("no video")
    asked = [(tmp_path / "gone.mp4", 2), (empty, 2), (text, 2), (good, 2, (5.0, 6.0))]
    for _ in range(2):  # with and without what is known of the good file
        for ask in asked:
            with pytest.raises(ValueError) as expected:
                load_video(*ask)
            with pytest.raises(ValueError) as found:
                cache.load(*ask)
            assert str(found.value) == str(expected.value)
        cache.load(good, 2)


def test_damaged_frames_are_decoded_again(tmp_path, decoded, caplog):
    path = write_video(tmp_path / "a.mp4", 12, noise=True)
    cache = FrameCache(tmp_path / "cache", 1.0)
    first = cache.load(path, 4)
    entries = sorted((tmp_path / "cache").rglob("*.safetensors"), key=lambda f: f.stat().st_size)
    content = bytearray(entries[-1].read_bytes())
    content[-1000] ^= 1
    entries[-1].write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert same(cache.load(path, 4), first)
    assert "damaged" in caplog.text
    assert decoded == ["a.mp4"] * 2
    assert same(cache.load(path, 4), first)
    assert decoded == ["a.mp4"] * 2


def test_batches_are_the_same_and_bad_samples_are_named(tmp_path, decoded):
    from regate.conversations import load_conversations

    extra = [{"id": "broken", "video": "broken.mp4", "conversations": turns("What?", "A cube.")}]
    (tmp_path / "media").mkdir()
    (tmp_path / "media" / "broken.mp4").write_text("no video")
    rows = load_conversations(write_conversations(tmp_path, extra), tmp_path / "media").to_list()
    frames = FrameCache(tmp_path / "cache", 1.0)
    collate = ConversationCollator(tiny_processor("internvl"), num_frames=2, frames=frames)
    plain = ConversationCollator(tiny_processor("internvl"), num_frames=2)(rows[:6])
    for _ in range(2):
        batch = collate(rows[:6])
        assert all((batch[name] == plain[name]).all() for name in plain)
    assert decoded == ["a.mp4", "b.mp4"]
    with pytest.raises(BadSample, match=r"sample 'broken': .*broken.mp4"):
        collate(rows)
