"""Video and image files -> arrays. Whatever cannot be read is a `MediaError` that names the file and what was found.

Frames are chosen here, not by the processors: the T midpoints of T equal parts of the video, unless the caller chooses
otherwise. A video with fewer frames than that is read whole, and its last frame is repeated. A clip, in seconds, is
read as if it were all of the video.
"""

import contextlib
import hashlib
import os
import re
import stat
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import av
import datasets
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream
from PIL import Image, ImageFile, ImageOps

MAX_PIXELS = 89_478_485
"""Of one picture or frame, where Pillow begins to warn: 270 MB as RGB. A few kilobytes may claim any size."""
_IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")  # Pillow's others run programs (EPS) or are rare
# What FFmpeg may take a file for. Others are playlists and lists of files, which name further files and addresses.
_CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,gif,apng,flv,asf,ogg,mpeg,mpegts,mpegvideo,m4v,h264,hevc,mjpeg,av1,ivf,"
    "obu,dv,mxf,nut,rm,yuv4mpegpipe,wtv,wav,mp3,flac,png_pipe,jpeg_pipe,bmp_pipe,webp_pipe,tiff_pipe"
)
_OPEN = {"format_whitelist": _CONTAINERS, "protocol_whitelist": "file"}
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
# Decode on rather than seek while the next wanted frame is this near.
_SEEK_BEYOND = 64
Clip = tuple[float, float]  # seconds: start, end


class MediaError(ValueError):
    """A file that is no usable image or video.

    Attributes:
        file: the path that was asked for.
    """

    def __init__(self, message: str, file: str | None = None) -> None:
        super().__init__(message)
        self.file = file

    def __reduce__(self) -> tuple:
        return type(self), (str(self), self.file)


@dataclass(frozen=True)
class Video:
    """Frames chosen from a video, and where they come from.

    Attributes:
        frames: uint8 [T, H, W, 3], RGB.
        indices: the T frame numbers in the whole video, 0-based; where there are fewer, the last occurs more than once.
        total: number of frames of the whole video.
        fps: frames per second, or None where the file does not say.
    """

    frames: np.ndarray
    indices: list[int]
    total: int
    fps: float | None


def midpoints(total: int, num_frames: int) -> list[int]:
    """The middles of `num_frames` equal parts of `total` frames; all frames, the last repeated, where there are fewer.

    Returns:
        `num_frames` ascending frame numbers in [0, total).

    Raises:
        ValueError: either number is below 1.
    """
    if total < 1 or num_frames < 1:
        raise ValueError(f"total is {total} and num_frames is {num_frames}, expected both to be at least 1")
    if total <= num_frames:
        return [min(i, total - 1) for i in range(num_frames)]
    return [(2 * i + 1) * total // (2 * num_frames) for i in range(num_frames)]


def read_video(path: str | Path, num_frames: int) -> np.ndarray:
    """The chosen frames of a video file, or of a folder of frames.

    Args:
        path: any file that FFmpeg decodes (mp4, webm, gif, ...), or a folder of images, in the natural order of names.
        num_frames: T.

    Returns:
        uint8 [T, H, W, 3], RGB, upright (rotation metadata applied).

    Raises:
        MediaError: missing, empty, truncated or undecodable; a folder without images or with images of several sizes.
        ValueError: num_frames below 1.
    """
    return load_video(path, num_frames).frames


def load_video(
    path: str | Path,
    num_frames: int,
    clip: Clip | None = None,
    choose: Callable[[int, int], list[int]] = midpoints,
) -> Video:
    """`read_video`, with frame numbers and rate: what processors that write timestamps need.

    Args:
        path, num_frames: see `read_video`.
        clip: from which to which second, or None for all of it. The end may lie beyond the video's.
        choose: (number of frames there are, number wanted) -> the wanted ones, ascending, 0-based.

    Raises:
        MediaError: also for a clip that holds no frame, or of a video whose frame rate nobody tells.
    """
    if num_frames < 1:
        raise ValueError(f"num_frames is {num_frames}, expected at least 1")
    path = Path(path)
    expected = "a video, or a folder of frames"
    if _kind(path, expected) == "folder":
        return _load_folder(path, num_frames, clip, choose)
    try:
        # `file:` because a name may look like a protocol's or a pattern's.
        with av.open(f"file:{path}", options=_OPEN) as container:
            if not container.streams.video:
                kinds = ", ".join(sorted({s.type for s in container.streams})) or "nothing"
                raise _error(path, f"no video stream ({kinds})", expected)
            rate = container.streams.video[0].average_rate
            fps = float(rate) if rate else None
            return _decode(path, container, fps, partial(wanted_frames, path, num_frames, clip, choose, fps))
    except (av.FFmpegError, EOFError) as error:  # av's errors are also OSErrors and ValueErrors of many kinds
        raise _error(path, f"data that does not decode ({_reason(error)})", expected) from error


def read_image(path: str | Path) -> Image.Image:
    """One image, RGB, upright (EXIF orientation applied).

    Raises:
        MediaError: missing, empty, truncated or undecodable.
    """
    path = Path(path)
    expected = "an image"
    if _kind(path, expected) == "folder":
        raise _error(path, "a folder", expected + " (a folder of frames is a video: list it under `video`)")
    try:
        with Image.open(path, formats=_IMAGE_FORMATS) as image, _whole_images():
            _check_size(path, *image.size)
            image.load()
            upright = ImageOps.exif_transpose(image)
            if upright.mode in ("P", "LA", "PA"):
                upright = upright.convert("RGBA")
            return upright.convert("RGB")
    except MediaError:
        raise
    except Exception as error:  # on broken bytes Pillow's readers raise whatever their parsing runs into
        raise _error(path, f"data that does not decode ({_reason(error)})", expected) from error


def _kind(path: Path, expected: str) -> str:
    """file or folder; MediaError for anything else. A pipe would be waited for, a device has no end."""
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        found = "no such file" if isinstance(error, FileNotFoundError) else f"a path that leads nowhere ({error})"
        raise _error(path, found, expected) from None
    if stat.S_ISDIR(status.st_mode):
        return "folder"
    if not stat.S_ISREG(status.st_mode):
        raise _error(path, "a pipe, a socket or a device", expected)
    if status.st_size == 0:
        raise _error(path, "an empty file", expected)
    return "file"


def _check_size(path: Path, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise _error(path, f"a picture of {width}x{height}", f"at most {MAX_PIXELS:,} pixels (regate.media.MAX_PIXELS)")


_PILLOW = threading.Lock()


@contextlib.contextmanager
def _whole_images() -> Iterator[None]:
    """Pillow raises on a truncated file inside, whatever others told it: importing lmms-eval tells it to fill up."""
    with _PILLOW:
        told, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
        try:
            yield
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = told


def keep_bytes(data: bytes, name: str | None = None) -> str:
    """Writes a file that a data set holds inside, once, to the cache of `datasets`, named by its content.

    Returns:
        Its absolute path.
    """
    folder = Path(datasets.config.HF_DATASETS_CACHE).absolute() / "regate-media"
    path = folder / (hashlib.blake2b(data, digest_size=16).hexdigest() + Path(name or "").suffix)
    if not path.exists() or path.read_bytes() != data:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        temporary.write_bytes(data)
        os.replace(temporary, path)
    return str(path)


def wanted_frames(
    path: Path,
    num_frames: int,
    clip: Clip | None,
    choose: Callable[[int, int], list[int]],
    fps: float | None,
    total: int,
) -> list[int]:
    """The wanted frame numbers of a video of `total` frames, counted from the video's start.

    Args:
        path: for messages.
        num_frames, clip, choose: see `load_video`.
        fps: frames per second, or None where nobody tells.
        total: number of frames there are.

    Raises:
        MediaError: a clip that holds no frame, or of a video whose frame rate nobody tells.
    """
    if clip is None:
        return choose(total, num_frames)
    start, end = clip
    if not fps:
        found = f"no frame rate to find the clip from {start:g} s to {end:g} s by"
        raise _error(path, found, "a video file that tells its rate")
    first = int(start * fps)
    count = min(max(1, int((end - start) * fps)), total - first)  # a clip of less than one frame is one frame
    if not 0 <= start < end or count < 1:
        expected = "0 <= start < end, with the start inside the video"
        raise _error(path, f"a clip from {start:g} s to {end:g} s of a video of {total / fps:.2f} s", expected)
    return [first + index for index in choose(count, num_frames)]


def _load_folder(path: Path, num_frames: int, clip: Clip | None, choose: Callable[[int, int], list[int]]) -> Video:
    files = [f for f in path.iterdir() if f.suffix.lower() in IMAGE_ENDINGS and not f.name.startswith(".")]
    if not files:
        raise _error(path, "a folder without images", f"a folder of frames ({', '.join(IMAGE_ENDINGS[:3])}, ...)")
    inside = path.resolve()
    if strange := [f for f in files if f.is_symlink() and not f.resolve().is_relative_to(inside)]:
        raise _error(path, f"a link to a file elsewhere ({strange[0].name})", "frames that lie in the folder itself")
    files.sort(key=lambda f: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", f.name)])
    indices = wanted_frames(path, num_frames, clip, choose, None, len(files))
    frames = {i: np.asarray(read_image(files[i])) for i in sorted(set(indices))}
    _one_size(path, frames)
    return Video(np.stack([frames[i] for i in indices]), indices, len(files), None)


def _decode(path: Path, container: InputContainer, fps: float | None, choose: Callable[[int], list[int]]) -> Video:
    """Two passes: count packets without decoding, then decode the wanted frames, seeking over long gaps."""
    stream = container.streams.video[0]
    if stream.codec_context is None:
        raise _error(path, "a video of a kind that its header does not tell, or that nothing here decodes", "a video")
    stream.thread_type = "AUTO"
    _check_size(path, stream.codec_context.width, stream.codec_context.height)
    packets, seen = _packets(container, stream)
    total = len(packets)
    if total == 0:
        raise _error(path, "a video without frames", "at least one frame")
    _check_complete(path, container, stream, total, seen)
    times = sorted(pts for pts, _ in packets if pts is not None)
    frames: dict[int, av.VideoFrame] | None = None
    if total > _SEEK_BEYOND and len(times) == total == len(set(times)):
        keys = sorted(pts for pts, is_key in packets if is_key and pts is not None)
        frames = _seek_frames(container, stream, times, keys, sorted(set(choose(total))))
    if frames is None:
        frames, total = _all_frames(path, container, stream, choose, total)
    if any(frame.is_corrupt for frame in frames.values()):
        raise _error(path, "frames that the decoder marks as corrupt", "intact frames")
    arrays = {i: _to_rgb(path, frame) for i, frame in frames.items()}
    _one_size(path, arrays)
    indices = choose(total)
    return Video(np.stack([arrays[i] for i in indices]), indices, total, fps)


def _packets(container: InputContainer, stream: VideoStream) -> tuple[list[tuple[int | None, bool]], float]:
    """(time, is a key frame) of each packet of the video, and the latest second that any stream reaches."""
    packets, seen = [], 0.0
    for packet in container.demux():
        if packet.pts is not None and packet.time_base is not None:
            seen = max(seen, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        if packet.stream.index == stream.index and packet.size and not packet.is_discard:
            packets.append((packet.pts, packet.is_keyframe))
    return packets, seen


def _check_complete(path: Path, container: InputContainer, stream: VideoStream, total: int, seen: float) -> None:
    """Raises where a file ends before what its header declares. A missing per cent or two frames are let pass."""
    expected = "a complete file"
    if total < stream.frames - max(2, stream.frames // 100):
        raise _error(path, f"{total} of the {stream.frames} frames that its header declares", expected)
    if "matroska" in container.format.name and container.duration:
        declared = container.duration / av.time_base
        if seen < declared - max(0.5, 0.02 * declared):
            raise _error(path, f"{seen:.1f} of the {declared:.1f} seconds that its header declares", expected)
    if container.format.name == "gif":
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 16))
            if b";" not in file.read():
                raise _error(path, "a GIF without its end mark", expected)


def _seek_frames(
    container: InputContainer, stream: VideoStream, times: list[int], keys: list[int], wanted: list[int]
) -> dict[int, av.VideoFrame] | None:
    """Frames by number, by way of their times; None where the file does not keep to its own times."""
    number = {pts: i for i, pts in enumerate(times)}
    frames: dict[int, av.VideoFrame] = {}
    container.seek(0, stream=stream)
    decoder, position = container.decode(stream), -1
    for index in wanted:
        start = max((k for k in keys if k <= times[index]), default=times[0])
        if index - position > _SEEK_BEYOND and number[start] > position + 1:
            container.seek(start, stream=stream)
            decoder = container.decode(stream)
        for frame in decoder:
            position = -1 if frame.pts is None else number.get(frame.pts, -1)
            if position >= index:
                break
        if position != index:
            return None
        frames[index] = frame
    return frames


def _all_frames(
    path: Path, container: InputContainer, stream: VideoStream, choose: Callable[[int], list[int]], packets: int
) -> tuple[dict[int, av.VideoFrame], int]:
    """Decodes from the start. Returns the wanted frames and how many there are: not always as many as packets."""
    container.seek(0, stream=stream)
    total = sum(1 for _ in container.decode(stream))
    if total < max(1, packets - max(2, packets // 100)):
        raise _error(path, f"{total} frames that decode out of {packets}", "a complete file")
    wanted = set(choose(total))
    container.seek(0, stream=stream)
    return {i: frame for i, frame in enumerate(container.decode(stream)) if i in wanted}, total


def _to_rgb(path: Path, frame: av.VideoFrame) -> np.ndarray:
    """uint8 [H, W, 3], upright."""
    _check_size(path, frame.width, frame.height)
    quarter_turns = round(frame.rotation / 90) % 4  # counter-clockwise, as np.rot90 turns
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), quarter_turns))


def _one_size(path: Path, frames: dict[int, np.ndarray]) -> None:
    sizes = {frame.shape for frame in frames.values()}
    if len(sizes) > 1:
        found = ", ".join(f"{w}x{h}" for h, w, _ in sorted(sizes))
        raise _error(path, f"frames of several sizes ({found})", "frames of one size")


def _error(path: Path, found: str, expected: str) -> MediaError:
    return MediaError(f"{path}: found {found}, expected {expected}", str(path))


def _reason(error: Exception) -> str:
    """One line of an error's text, without the path that the message names already."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())[:160]
