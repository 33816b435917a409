"""Videos and images: which frames are read, and that nothing broken is taken for a picture."""

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from regate.media import MediaError, load_video, midpoints, read_image, read_video
from tests.media_files import grey, write_image, write_video


@given(st.integers(1, 5000), st.integers(1, 64))
def test_midpoints_are_the_middles_of_equal_parts(total, count):
    indices = midpoints(total, count)
    assert len(indices) == count
    assert indices == sorted(indices)
    assert indices[0] >= 0
    assert indices[-1] < total
    if total > count:
        assert all(i == int((k + 0.5) * total / count) for k, i in enumerate(indices))
        assert len(set(indices)) == count
    else:
        assert indices == [*range(total), *[total - 1] * (count - total)]


@pytest.mark.parametrize("ending", [".mp4", ".webm", ".gif", ".mkv"])
@pytest.mark.parametrize("frames", [1, 3, 20, 300])
def test_the_right_frames_come_back(tmp_path, ending, frames):
    video = load_video(write_video(tmp_path / f"v{ending}", frames, key_every=50), 8)
    assert video.frames.shape == (8, 48, 64, 3)
    assert video.frames.dtype == np.uint8
    assert video.total == frames
    assert video.fps == pytest.approx(10)
    assert video.indices == midpoints(frames, 8)
    expected = [grey(i, frames) for i in video.indices]
    assert np.abs(video.frames.mean(axis=(1, 2, 3)) - expected).max() < 4


def test_seeking_finds_the_same_frames_as_decoding_all(tmp_path, monkeypatch):
    path = write_video(tmp_path / "v.mp4", 500, key_every=30)
    sought = load_video(path, 5).frames
    monkeypatch.setattr("regate.media._SEEK_BEYOND", 10**9)
    assert np.array_equal(sought, load_video(path, 5).frames)


def test_a_folder_of_frames_is_read_in_natural_order(tmp_path):
    for i in range(12):
        Image.fromarray(np.full((32, 32, 3), 20 * i, np.uint8)).save(tmp_path / f"frame{i}.png")
    (tmp_path / "notes.txt").write_text("no frame")
    assert read_video(tmp_path, 4)[:, 0, 0, 0].tolist() == [20, 80, 140, 200]


def test_rotation_is_applied(tmp_path):
    path = write_video(tmp_path / "v.mp4", 3, size=(64, 32))
    data = path.read_bytes()
    identity = b"".join(n.to_bytes(4, "big") for n in (0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000))
    quarter = b"".join(n.to_bytes(4, "big") for n in (0, 0x10000, 0, 0xFFFF0000, 0, 0, 0, 0, 0x40000000))
    track = data.index(b"tkhd")
    place = data.index(identity, track)
    path.write_bytes(data[:place] + quarter + data[place + len(quarter) :])
    assert read_video(path, 2).shape == (2, 64, 32, 3)


def test_exif_orientation_transparency_and_grey(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(tmp_path / "turned.jpg").size == (20, 40)
    for mode in ("L", "P", "RGBA", "LA"):
        Image.new(mode, (8, 8)).save(tmp_path / "x.png")
        assert read_image(tmp_path / "x.png").mode == "RGB"


BROKEN_VIDEOS = {
    "missing": "no such file",
    "empty": "an empty file",
    "text": "does not decode",
    "truncated": "does not decode",
    "truncated late": "of the 60 frames",
    "truncated webm": "seconds that its header declares",
    "truncated gif": "without its end mark",
    "garbage inside": "does not decode",
    "no frames": "without images",
    "mixed sizes": r"several sizes \(16x16, 32x32\)",
}


def broken_video(folder, what):
    path = folder / "v.mp4"
    if what == "empty":
        path.write_bytes(b"")
    elif what == "text":
        path.write_text("not a video")
    elif what.startswith(("truncated", "garbage")):
        path = folder / {"truncated webm": "v.webm", "truncated gif": "v.gif"}.get(what, "v.mp4")
        late = what in ("truncated late", "garbage inside")
        write_video(path, 60, noise=True, options={"movflags": "+faststart"} if late else None)
        data = bytearray(path.read_bytes())
        if what == "garbage inside":
            data[len(data) // 3 :] = bytes((7 * i) % 256 for i in range(len(data) - len(data) // 3))
        else:
            del data[len(data) // 2 :]
        path.write_bytes(data)
    elif what in ("no frames", "mixed sizes"):
        path.mkdir()
        if what == "mixed sizes":
            write_image(path / "0.png", (16, 16))
            write_image(path / "1.png", (32, 32))
    return path


@pytest.mark.parametrize(("what", "found"), BROKEN_VIDEOS.items())
def test_broken_videos_are_named(tmp_path, what, found):
    path = broken_video(tmp_path, what)
    with pytest.raises(MediaError, match=found) as error:
        read_video(path, 4)
    assert str(path) in str(error.value)
    assert error.value.file == str(path)
    again = pickle.loads(pickle.dumps(error.value))
    assert (str(again), again.file) == (str(error.value), str(path))


def test_a_sound_file_is_no_video(tmp_path):
    import av

    with av.open(str(tmp_path / "s.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
        frame.sample_rate = 8000
        for packet in stream.encode(frame):
            container.mux(packet)
    with pytest.raises(MediaError, match=r"no video stream \(audio\)"):
        read_video(tmp_path / "s.wav", 4)


@pytest.mark.parametrize(
    ("what", "found"),
    {"missing": "no such file", "empty": "an empty file", "text": "not decode", "half": "not decode"}.items(),
)
def test_broken_images_are_named(tmp_path, what, found):
    path = tmp_path / "i.jpg"
    if what == "half":
        write_image(path, (200, 200))
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif what != "missing":
        path.write_text("" if what == "empty" else "not an image")
    with pytest.raises(MediaError, match=found) as error:
        read_image(path)
    assert error.value.file == str(path)


def test_a_folder_is_no_image_and_zero_frames_are_refused(tmp_path):
    with pytest.raises(MediaError, match="a folder of frames is a video"):
        read_image(tmp_path)
    with pytest.raises(ValueError, match="num_frames is 0"):
        read_video(tmp_path, 0)
