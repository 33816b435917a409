"""Files that would make a reader wait, grow, run a program or read elsewhere. `make faults` has a thousand of them."""

import os
import random

import pytest
from PIL import Image

from regate.data import ConversationEncoder
from regate.media import MAX_PIXELS, MediaError, read_image, read_video
from regate.turns import BadSample
from repro.faults import broken_files as broken
from repro.faults.watch import Canaries, Opened
from tests.tiny import tiny_processor


@pytest.mark.parametrize("read", [read_image, lambda path: read_video(path, 4)])
def test_a_pipe_is_not_waited_for(tmp_path, read):
    os.mkfifo(tmp_path / "p.png")
    with pytest.raises(MediaError, match=r"p\.png: found a pipe, a socket or a device"):
        read(tmp_path / "p.png")
    with pytest.raises(MediaError, match="a pipe, a socket or a device"):
        read("/dev/zero")


def test_a_picture_that_claims_too_much_is_refused_before_it_is_decoded(tmp_path):
    path = broken.png(tmp_path / "bomb.png", 10_000, 10_000, real=False)
    with pytest.raises(MediaError, match=f"a picture of 10000x10000, expected at most {MAX_PIXELS:,} pixels"):
        read_image(path)
    path = broken.png(tmp_path / "bomb.png", 20_000, 20_000, real=False)
    with pytest.raises(MediaError, match=r"bomb\.png: .*exceeds limit"):  # Pillow's own
        read_image(path)


def test_links_of_a_folder_of_frames_stay_inside(tmp_path):
    broken.image(tmp_path / "outside.png")
    folder = tmp_path / "frames"
    broken.image(folder / "0.png")
    (folder / "1.png").symlink_to("0.png")
    assert len(read_video(folder, 2)) == 2
    (folder / "2.png").symlink_to(tmp_path / "outside.png")
    with pytest.raises(MediaError, match=r"a link to a file elsewhere \(2\.png\)"):
        read_video(folder, 2)


@pytest.mark.parametrize("seed", range(16))
def test_lists_of_other_files_are_not_followed(tmp_path, seed):
    """FFmpeg takes such texts for videos, whatever they are called, and reads what they name."""
    (tmp_path / "data").mkdir()
    (tmp_path / "outside").mkdir()
    secret = broken.video(tmp_path / "outside" / "secret.mp4")
    path = broken.playlist(tmp_path / "data" / "v.mp4", secret, random.Random(seed))
    canaries = Canaries(tmp_path / "outside")
    for read in (read_image, lambda file: read_video(file, 2)):
        with pytest.raises(MediaError, match=r"v\.mp4: found data that does not decode"):
            read(path)
    assert canaries.touched() == []
    read_video(secret, 2)
    assert canaries.touched() == ["secret.mp4"]  # they do sing


def test_every_beginning_of_a_video_is_named_as_broken(tmp_path):
    """Among them some that FFmpeg takes for another format, with a stream that has no decoder."""
    data = broken.video(tmp_path / "v.mp4").read_bytes()
    for size in range(1, int(0.9 * len(data)), 3):
        (tmp_path / "v.mp4").write_bytes(data[:size])
        with pytest.raises(MediaError, match=r"v\.mp4: found"):
            read_video(tmp_path / "v.mp4", 2)


def test_names_that_look_like_patterns_or_protocols(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("img%03d.mp4", "concat:a|b.mp4", "a#b?.mp4"):
        broken.video(tmp_path / name)
        assert len(read_video(name, 2)) == 2


def test_a_long_video_is_read_by_its_few_frames(tmp_path):
    frames = read_video(broken.long_video(tmp_path / "long.mp4", 20_000), 8)
    assert frames.shape == (8, 16, 16, 3)


def test_a_text_beyond_the_tokenizers_window_is_a_bad_sample():
    processor = tiny_processor("internvl")
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "It moves. " * 3000}]},
    ]
    with pytest.raises(BadSample, match=r"sample 'x': found \d+ tokens, expected at most the 4096"):
        ConversationEncoder(processor)({"id": "x", "messages": messages})
    huge = [messages[0], {"role": "assistant", "content": [{"type": "text", "text": "a" * 10**6}]}]
    with pytest.raises(BadSample, match=r"found a text of 1,000,005 characters, expected at most the 4096"):
        ConversationEncoder(processor)({"id": "x", "messages": huge})
    assert len(ConversationEncoder(processor, max_length=512)({"id": "x", "messages": messages})["input_ids"]) == 512


def test_the_audit_hook_sees_what_python_opens(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "x.png")
    opened = Opened()
    read_image(tmp_path / "x.png")
    assert opened.paths == set()
    opened.start()
    read_image(tmp_path / "x.png")
    opened.stop()
    assert opened.outside("/usr") == [str((tmp_path / "x.png").resolve())]
    assert opened.outside(tmp_path) == []
