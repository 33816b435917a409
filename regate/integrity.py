"""What a folder holds, written down, so that nothing in it that was cut short or altered is used: sizes and hashes.

The hash is xxh3 with 128 bits: every truncation and every flipped bit changes it, and it costs less than reading the
file (docs/faults.md has the measurement). It is no signature: who may write the folder may write the hashes, too.
"""

import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import xxhash

MARKER = "complete.json"
_CHUNK = 2**22
_THREADS = 4  # xxhash and reads let go of the interpreter's lock; sharded checkpoints have many large files


class NotWhole(ValueError):
    """A file or folder that was not written to its end, or has changed since.

    Attributes:
        file: the path at fault.
    """

    def __init__(self, message: str, file: str | os.PathLike[str]):
        super().__init__(message)
        self.file = str(file)


def hash_file(path: str | os.PathLike[str], *, flush: bool = False, length: int | None = None) -> str:
    """32 hex digits of a file's content, or of its first ``length`` bytes; ``flush``: bring it to the disk first."""
    digest, left = xxhash.xxh3_128(), length
    buffer = memoryview(bytearray(_CHUNK))
    with open(path, "rb", buffering=0) as file:
        if flush:
            os.fsync(file.fileno())
        while n := file.readinto(buffer if left is None else buffer[:left]):
            digest.update(buffer[:n])
            left = None if left is None else left - n
    return digest.hexdigest()


def write_whole(path: str | os.PathLike[str], content: str | bytes) -> None:
    """A file that is there with all of ``content``, on the disk, or as it was before."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    flush_folder(path.parent)


def flush_folder(directory: str | os.PathLike[str]) -> None:
    """Bring the names in a folder to the disk."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def seal(directory: str | os.PathLike[str]) -> None:
    """Write ``complete.json``: size and hash of every file below. All of them are on the disk before it is."""
    directory = Path(directory)
    files = sorted(f for f in directory.rglob("*") if f.is_file() and f != directory / MARKER)
    for folder in {file.parent for file in files} | {directory}:
        flush_folder(folder)
    with ThreadPoolExecutor(_THREADS) as pool:
        hashes = list(pool.map(lambda file: hash_file(file, flush=True), files))
    entries = {str(f.relative_to(directory)): [f.stat().st_size, h] for f, h in zip(files, hashes, strict=True)}
    write_whole(directory / MARKER, json.dumps(entries, indent=1))


def is_sealed(directory: str | os.PathLike[str]) -> bool:
    """Whether a ``complete.json`` is there; not whether it is true."""
    return (Path(directory) / MARKER).is_file()


def require_whole(
    directory: str | os.PathLike[str], *, contents: bool = True, wanted: Callable[[Path], bool] | None = None
) -> None:
    """Raise NotWhole, naming the first file at fault, unless a sealed folder holds what it held when it was sealed.

    Without ``contents`` only sizes are compared: quick, and blind to altered bytes. ``wanted``: which files matter.
    """
    directory = Path(directory)
    entries = {name: e for name, e in _entries(directory).items() if wanted is None or wanted(directory / name)}
    for name, (size, _) in entries.items():
        path = directory / name
        found = path.stat().st_size if path.is_file() else None
        if found != size:
            there = "no such file" if found is None else f"found {found}"
            raise NotWhole(f"{path}: {size} bytes were written, {there}", path)
    if contents:
        hashed = {name: digest for name, (_, digest) in entries.items() if digest is not None}
        with ThreadPoolExecutor(_THREADS) as pool:
            found_hashes = pool.map(lambda name: hash_file(directory / name), hashed)
            for (name, digest), now in zip(hashed.items(), found_hashes, strict=True):
                if now != digest:
                    raise NotWhole(f"{directory / name}: its content is not what was written", directory / name)


def _entries(directory: Path) -> dict[str, tuple[int, str | None]]:
    """Name -> size and hash. Markers of earlier versions hold sizes alone."""
    path = directory / MARKER
    try:
        values = json.loads(path.read_text())
        return {name: (v, None) if isinstance(v, int) else (int(v[0]), str(v[1])) for name, v in values.items()}
    except (OSError, ValueError, TypeError, AttributeError, LookupError) as error:
        raise NotWhole(f"{directory} has no readable {MARKER}: writing it was interrupted", path) from error


def sizes_only(directory: str | os.PathLike[str]) -> bool:
    """Whether a sealed folder's marker is of an earlier version, which wrote no hashes."""
    return any(digest is None for _, digest in _entries(Path(directory)).values())


def unseal(directory: str | os.PathLike[str]) -> None:
    """Take the marker away, before what it speaks of is changed or deleted."""
    (Path(directory) / MARKER).unlink(missing_ok=True)
