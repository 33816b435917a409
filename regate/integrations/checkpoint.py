"""The files of a checkpoint, on disk or of the hub, and a hash of all that decides its answers. Free of torch."""

import hashlib
import json
from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HFValidationError, RepositoryNotFoundError

from regate.integrity import MARKER, NotWhole, is_sealed, require_whole

ADAPTER = "adapter_config.json"
_READ = {".safetensors", ".bin", ".json", ".jinja", ".model", ".txt", ".py"}  # what from_pretrained may read
_TRAINING = ("optimizer", "scheduler", "rng_state", "training_args", "trainer_state", "complete", "scaler", "steps.")
_CHUNK = 2**24


def file_of(pretrained: str, name: str) -> Path | None:
    """A file of a checkpoint: in its folder, or from the hub (its cache, where that is offline); None without it.

    Raises:
        FileNotFoundError: neither a folder nor a model on the hub.
    """
    if Path(pretrained).is_dir():
        path = Path(pretrained) / name
        return path if path.is_file() else None
    try:
        return Path(hf_hub_download(pretrained, name))
    except EntryNotFoundError:
        return None
    except (HFValidationError, RepositoryNotFoundError) as error:
        message = f"{pretrained}: found neither a folder nor a model on the hub, expected a checkpoint"
        raise FileNotFoundError(message) from error


def base_of(pretrained: str, base: str | None = None) -> str:
    """The checkpoint that an adapter is read on top of.

    Raises:
        ValueError: neither the caller nor the adapter names one.
    """
    config = file_of(pretrained, ADAPTER)
    found = base or (json.loads(config.read_text()).get("base_model_name_or_path") if config else None)
    if not found:
        raise ValueError(f"{pretrained} names no base model in its {ADAPTER}: pass base=")
    return str(found)


def fingerprint(pretrained: str, base: str | None = None) -> str:
    """16 hex digits over all files that decide what a checkpoint answers: weights, configurations, tokenizer, template.

    An adapter's fingerprint holds its base's. Of a model on the hub it is that of its commit.

    Raises:
        FileNotFoundError: no such folder, no such model, or no configuration in it.
    """
    config = file_of(pretrained, "config.json") or file_of(pretrained, ADAPTER)
    if config is None:
        raise FileNotFoundError(f"{pretrained}: found neither config.json nor {ADAPTER}, expected a checkpoint")
    digest = hashlib.blake2b(digest_size=8)
    if Path(pretrained).is_dir():
        for path in sorted(p for p in Path(pretrained).iterdir() if _decides(p)):
            digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
            with path.open("rb") as file:
                while chunk := file.read(_CHUNK):
                    digest.update(chunk)
    else:
        digest.update(config.parent.name.encode())  # the cache's folder of a commit
    if config.name == ADAPTER:
        digest.update(fingerprint(base_of(pretrained, base)).encode())
    return digest.hexdigest()


def require_intact(pretrained: str) -> None:
    """Reads a folder that ``regate train`` or a trainer sealed, and nothing of any other.

    Raises:
        ValueError: a file that decides what the checkpoint answers is gone, cut short or altered.
    """
    if not is_sealed(pretrained):
        return
    try:
        require_whole(pretrained, wanted=_may_decide)
    except NotWhole as error:
        raise ValueError(f"{error}. If you changed it on purpose, delete {Path(pretrained) / MARKER}") from error


def _decides(path: Path) -> bool:
    return path.is_file() and _may_decide(path)


def _may_decide(path: Path) -> bool:
    return path.suffix in _READ and not path.name.startswith(_TRAINING)
