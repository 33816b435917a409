"""A folder of tensors under keys: written whole or not at all, checked when read, bounded in size, shared by processes.

What is stored can always be computed again. So nothing here ever fails a run: an entry that is missing, cut short or
altered is none, and a disk that is full means that no more is stored. Entries are safetensors files, each with a
checksum of its content. When the limit is reached the folder stays as it is: training reads all samples in turn, and
throwing out the oldest would then throw out just what is read next.
"""

import contextlib
import json
import logging
import os
import time
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import xxhash
from safetensors import SafetensorError
from torch import Tensor

logger = logging.getLogger(__name__)
_CHECKSUM = "checksum"  # the name of the tensor that holds it
_STALE = 3600.0  # seconds after which a temporary file is of a process that died
_RECOUNT = 0.01  # share of the limit that a process writes before it looks what others wrote


def key_of(*parts: Any) -> str:
    """32 hex digits of a hash of ``parts``: numbers, strings, None, and lists and dicts of them."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return xxhash.xxh3_128_hexdigest(text.encode("utf-8", "surrogatepass"))


class Store:
    """Tensors by key under ``folder``, at most about ``limit_gb`` (1e9 bytes) of them.

    Several processes may use one folder; each may go beyond the limit by one per cent of it. Can be pickled.
    Raises OSError if the folder cannot be made, ValueError for a limit that is not positive.
    """

    def __init__(self, folder: str | os.PathLike[str], limit_gb: float):
        if not limit_gb > 0:
            raise ValueError(f"the limit of a cache must be positive; got {limit_gb} GB")
        self.folder, self.limit = Path(folder).absolute(), int(limit_gb * 1e9)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._counted: int | None = None  # bytes under the folder when last counted
        self._written = 0  # by this process since then
        self._closed = False

    def get(self, key: str) -> dict[str, Tensor] | None:
        """What was stored under ``key``, on the CPU; None if there is nothing, or nothing whole."""
        path = self._path(key)
        try:
            tensors = safetensors.torch.load(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError, ValueError) as error:
            self._damaged(path, str(error))
            return None
        checksum = tensors.pop(_CHECKSUM, None)
        if checksum is None or not torch.equal(checksum, _checksum(tensors)):
            self._damaged(path, "its content is not what was written")
            return None
        return tensors

    def put(self, key: str, tensors: dict[str, Tensor]) -> bool:
        """Stores tensors of any device; returns whether they are there now. Never raises for want of room."""
        path = self._path(key)
        if self._closed or path.exists():
            return not self._closed
        tensors = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
        data = safetensors.torch.save(tensors | {_CHECKSUM: _checksum(tensors)})
        if self._used() + len(data) > self.limit:
            self._close(f"has reached its limit of {self.limit / 1e9:g} GB")
            return False
        temporary = path.with_name(f"{path.name}.{os.getpid()}.{time.monotonic_ns()}.tmp")
        try:
            path.parent.mkdir(exist_ok=True)
            temporary.write_bytes(data)
            os.replace(temporary, path)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            self._close(f"cannot be written ({error.strerror or error})")
            return False
        self._written += len(data)
        return True

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"

    def _used(self) -> int:
        """Bytes under the folder, of all processes; leftovers of processes that died are removed on the way."""
        if self._counted is None or self._written > _RECOUNT * self.limit:
            self._counted, self._written = 0, 0
            for file in self.folder.rglob("*"):
                with contextlib.suppress(OSError):  # another process replaced or removed it
                    status = file.stat()
                    if file.suffix == ".tmp" and time.time() - status.st_mtime > _STALE:
                        file.unlink()
                    elif file.is_file():
                        self._counted += status.st_size
        return self._counted + self._written

    def _close(self, why: str) -> None:
        self._closed = True
        logger.warning(
            "the cache %s %s: what is in it is used, what is not is computed each time. Delete the folder to begin "
            "anew, or raise the limit (cache_gb, --cache-gb).",
            self.folder,
            why,
        )

    def _damaged(self, path: Path, why: str) -> None:
        logger.warning("%s: damaged (%s), so it is made again", path, why)
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def _checksum(tensors: dict[str, Tensor]) -> Tensor:
    """uint8 [16]: of names, dtypes, shapes and bytes."""
    digest = xxhash.xxh3_128()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(bytes_of(tensor))
    return torch.frombuffer(bytearray(digest.digest()), dtype=torch.uint8)


def bytes_of(tensor: Tensor) -> memoryview:
    """The bytes of a tensor of any dtype and device."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy()) if flat.numel() else memoryview(b"")
