"""Decoded frames kept on disk, by the content of the file that they come from and the numbers of the frames.

A video is decoded once; `regate reference` and every later training read the frames from the folder. What the caller
asks for (number of frames, clip, how a processor chooses) matters only by the frame numbers that it leads to.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import torch
import xxhash

from regate.media import Clip, Video, load_video, midpoints, wanted_frames
from regate.store import Store, key_of

_FORMAT = 1  # count up when the same file and frame numbers give other pixels than before
_SETTLED = 2.0  # seconds: a file that changed just now may change again within one tick of its file system's clock
_CHUNK = 2**22


class Contents:
    """Hashes of what media files hold. Remembered for a path with its size and times of change, in ``store`` too.

    The time of the last change of an inode (ctime) is among them, which no program can set back: a file that is
    overwritten, replaced or touched is read again.
    """

    def __init__(self, store: Store):
        self.store = store

    def __call__(self, path: str | Path) -> str:
        """32 hex digits of a file's content, or of a folder's: names and contents of the files in it.

        Raises:
            OSError: it cannot be read.
        """
        path = Path(path)
        files = sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]
        identity, changed = [], 0.0
        for file in files:
            status = file.stat()
            identity.append([file.name, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns])
            changed = max(changed, status.st_mtime, status.st_ctime)
        key = key_of("content", os.path.abspath(path), identity)
        known = self.store.get(key)
        if known is not None:
            return bytes(known["content"].tolist()).hex()
        digest = xxhash.xxh3_128()
        for file in files:
            if path.is_dir():
                digest.update(f"{file.name}\0{file.stat().st_size}\0".encode("utf-8", "surrogatepass"))
            with file.open("rb") as opened:
                while chunk := opened.read(_CHUNK):
                    digest.update(chunk)
        if time.time() - changed > _SETTLED:
            self.store.put(key, {"content": torch.tensor(list(digest.digest()), dtype=torch.uint8)})
        return digest.hexdigest()


class FrameCache:
    """`regate.media.load_video` that decodes a file once. ``folder`` and ``limit_gb``: see `regate.store.Store`."""

    def __init__(self, folder: str | os.PathLike[str], limit_gb: float):
        self.store = Store(folder, limit_gb)
        self.contents = Contents(self.store)
        self._decoder = [_FORMAT, av.__version__, {name: list(v) for name, v in av.library_versions.items()}]

    def load(
        self,
        path: str | Path,
        num_frames: int,
        clip: Clip | None = None,
        choose: Callable[[int, int], list[int]] = midpoints,
    ) -> Video:
        """As `load_video`, with the same errors; frames uint8 [T, H, W, 3] equal to it bit for bit."""
        path = Path(path)
        try:
            content = self.contents(path)
        except OSError:  # load_video says it better
            return load_video(path, num_frames, clip, choose)
        about = self.store.get(key_of("about", self._decoder, content))
        if about is not None:
            total, fps = int(about["total"]), float(about["fps"]) or None
            indices = wanted_frames(path, num_frames, clip, choose, fps, total)
            stored = self.store.get(self._key(content, indices))
            if stored is not None:
                return Video(stored["frames"].numpy(), indices, total, fps)
        video = load_video(path, num_frames, clip, choose)
        numbers = {"total": torch.tensor(video.total), "fps": torch.tensor(video.fps or 0.0, dtype=torch.float64)}
        self.store.put(key_of("about", self._decoder, content), numbers)
        frames = torch.from_numpy(np.ascontiguousarray(video.frames))
        self.store.put(self._key(content, video.indices), {"frames": frames})
        return video

    def _key(self, content: str, indices: list[int]) -> str:
        return key_of("frames", self._decoder, content, indices)
