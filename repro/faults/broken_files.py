"""Files that are wrong: cut short, of another kind, far too large, pipes, links, lists of other files."""

from __future__ import annotations

import os
import random
import socket
import struct
import zlib
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image


def video(path: Path, frames: int = 6, size: int = 32, codec: str = "mpeg4") -> Path:
    """A real video of grey squares that move."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=Fraction(10))
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        picture = np.zeros((size, size, 3), np.uint8)
        for i in range(frames):
            picture[:] = 40
            picture[4 : size // 2, i % (size // 2) : i % (size // 2) + 8] = 200
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                container.mux(packet)
        container.mux(stream.encode(None))
    return path


def long_video(path: Path, frames: int) -> Path:
    """A video of very many frames: the packets of a short one, written again and again."""
    short = video(path.with_name("short.mp4"), 12, 16)
    with av.open(str(short)) as source, av.open(str(path), "w") as container:
        stream = source.streams.video[0]
        out = container.add_stream_from_template(stream)
        packets = [(bytes(p), p.is_keyframe) for p in source.demux(stream) if p.size]
        step = int(1 / (10 * stream.time_base))  # type: ignore[operator]
        for i in range(frames):
            data, is_key = packets[i % len(packets)]
            packet = av.Packet(data)
            packet.stream, packet.pts, packet.dts, packet.duration = out, i * step, i * step, step
            packet.time_base, packet.is_keyframe = stream.time_base, is_key
            container.mux(packet)
    short.unlink()
    return path


def claiming(source: Path, path: Path, frames: int) -> Path:
    """An mp4 whose sample table claims so many frames: all of one size, a rule instead of a list."""
    data = bytearray(source.read_bytes())
    at = data.index(b"stsz") + 4  # version and flags, size of all samples, their number
    struct.pack_into(">II", data, at + 4, 1, frames)
    at = data.index(b"stts") + 4
    struct.pack_into(">III", data, at + 4, 1, frames, 100)
    path.write_bytes(data)
    return path


def without_frames(source: Path, path: Path) -> Path:
    """An mp4 with a header and no sample in it."""
    data = bytearray(source.read_bytes())
    for name, fields in ((b"stsz", 2), (b"stts", 1), (b"stsc", 1), (b"stco", 1)):
        at = data.index(name) + 8
        struct.pack_into(f">{fields}I", data, at, *[0] * fields)
    path.write_bytes(data)
    return path


def png(path: Path, width: int, height: int, real: bool = True) -> Path:
    """A black 1-bit PNG of any size, a few kilobytes long; not ``real``: a header and hardly any data."""
    rows = zlib.compressobj(9)
    line = bytes(1 + (width + 7) // 8)
    data = b"".join(rows.compress(line) for _ in range(height if real else 1)) + rows.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", data), (b"IEND", b""))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, body) for kind, body in chunks))
    return path


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def image(path: Path, size: tuple[int, int] = (32, 24)) -> Path:
    """A real picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.arange(size[0] * size[1] * 3, dtype=np.uint8).reshape(size[1], size[0], 3)
    Image.fromarray(values).save(path)
    return path


def cut(source: Path, path: Path, rng: random.Random) -> Path:
    """The beginning of a file."""
    data = source.read_bytes()
    path.write_bytes(data[: rng.randrange(1, int(0.9 * len(data)))])
    return path


def noise(path: Path, rng: random.Random) -> Path:
    """Bytes that mean nothing: random ones, or zeros."""
    size = rng.randrange(1, 5000)
    path.write_bytes(rng.randbytes(size) if rng.random() < 0.5 else bytes(size))
    return path


def no_file(path: Path, rng: random.Random) -> Path:
    """A name that is there and is no file: a pipe, or a socket."""
    if rng.random() < 0.7:
        os.mkfifo(path)
        return path
    here = os.getcwd()
    os.chdir(path.parent)  # names of sockets are short
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(here)
    return path


def playlist(path: Path, target: Path, rng: random.Random) -> Path:
    """Text that makes a careless reader open ``target``, or run a program."""
    relative = os.path.relpath(target, path.parent)
    told = rng.choice(
        [
            f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{target}\n#EXT-X-ENDLIST\n",
            f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nfile://{target}\n#EXT-X-ENDLIST\n",
            f"ffconcat version 1.0\nfile '{relative}'\n",
            f"ffconcat version 1.0\nfile '{target}'\n",
            f'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" mediaPresentationDuration='
            f'"PT9S"><Period><AdaptationSet mimeType="video/mp4"><Representation id="0" bandwidth="1"><BaseURL>{target}'
            "</BaseURL></Representation></AdaptationSet></Period></MPD>\n",
            f"v=0\no=- 0 0 IN IP4 127.0.0.1\ns={target}\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
            f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n({target}) (r) file 99 string readstring\n%%EOF\n",
            f'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><image href="file://{target}"/></svg>\n',
        ]
    )
    path.write_text(told)
    return path
