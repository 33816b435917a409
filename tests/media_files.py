"""Real videos and images for tests, and a small set of conversations about them."""

import json
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

_CODECS = {".mp4": "libx264", ".webm": "libvpx", ".gif": "gif", ".mkv": "libx264"}


def grey(index: int, total: int) -> int:
    """The brightness of one frame of `write_video`."""
    return 20 + 200 * index // max(1, total - 1)


def write_video(
    path: Path,
    frames: int = 12,
    size: tuple[int, int] = (64, 48),
    fps: int = 10,
    key_every: int = 12,
    options: dict[str, str] | None = None,
    noise: bool = False,
) -> Path:
    """A video of `frames` frames, each of one grey that grows with its number (or noise, which does not compress)."""
    rng = np.random.default_rng(0)
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(_CODECS[path.suffix], rate=fps)
        stream.width, stream.height = size
        stream.pix_fmt = "rgb8" if path.suffix == ".gif" else "yuv420p"
        stream.codec_context.gop_size = key_every
        for i in range(frames):
            pixels = np.full((size[1], size[0], 3), grey(i, frames), np.uint8)
            if noise:
                pixels = rng.integers(0, 256, pixels.shape, dtype=np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            if path.suffix == ".gif":
                frame = frame.reformat(format="rgb8")
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def write_image(path: Path, size: tuple[int, int] = (48, 32), seed: int = 0) -> Path:
    """A picture of noise, in the format of its ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def turns(*texts: str) -> list[dict[str, str]]:
    """LLaVA-style turns from questions and answers in turn."""
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


def write_conversations(folder: Path, extra: list[dict[str, Any]] = (), name: str = "train.json") -> Path:
    """Six good samples, with their files in `folder/media`; `extra` comes after them. Returns the JSON file's path."""
    media = folder / "media"
    write_video(media / "a.mp4", 12)
    write_video(media / "b.mp4", 3)
    write_image(media / "a.jpg", (32, 32))
    write_image(media / "b.png", (32, 32), 1)
    samples = [
        {"id": "video", "video": "a.mp4", "conversations": turns("<video>\nWhat happens?", "The ball moves up.")},
        {
            "id": "short",
            "video": ["b.mp4"],
            "conversations": turns("<image>\nDescribe it.", "A box falls down behind it."),
        },
        {"id": "image", "image": "a.jpg", "conversations": turns("How many objects?", "There are three objects.")},
        {
            "id": "two",
            "image": ["a.jpg", "b.png"],
            "conversations": turns(
                "<image>\n<image>\nCompare.", "One is red.", "And the other?", "It is a blue box, I think."
            ),
        },
        {"id": "text", "conversations": turns("Is it red?", "Yes, it is.")},
        {
            "id": 5,
            "messages": [
                {"role": "system", "content": "You are a helpful assistant."},
                {
                    "role": "user",
                    "content": [{"type": "video", "path": "a.mp4"}, {"type": "text", "text": "What moves?"}],
                },
                {"role": "assistant", "content": "The green cube."},
            ],
        },
    ]
    path = folder / name
    path.write_text(json.dumps([*samples, *extra]))
    return path
