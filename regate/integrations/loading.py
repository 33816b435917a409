"""A checkpoint, full or adapter, as a model that is ready to answer."""

import importlib
import importlib.util
import warnings
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from regate.integrations.checkpoint import ADAPTER, base_of, file_of, require_intact

DTYPES = ("auto", "float32", "bfloat16", "float16")


def load_checkpoint(
    pretrained: str,
    base: str | None = None,
    dtype: str = "auto",
    attn_implementation: str | None = None,
    device: str | torch.device = "cpu",
) -> tuple[Any, Any]:
    """Model (in evaluation mode, on the device) and processor of a folder or of a model on the hub.

    Args:
        pretrained: a checkpoint that the Auto classes read, or a PEFT adapter on top of one.
        base: the checkpoint that an adapter belongs to; left out, the one that the adapter names.
        dtype: one of `DTYPES`; "auto": as saved.

    Raises:
        ValueError: files that were altered since they were sealed; weights that are missing or of another shape (a
            stock load would make them up); a base for what is no adapter; an adapter without a base; an unknown dtype.
    """
    _register()
    adapter = file_of(pretrained, ADAPTER)
    if base is not None and adapter is None:
        raise ValueError(f"base is {base!r}, but {pretrained} is no adapter (no {ADAPTER}): leave base out")
    path = base_of(pretrained, base) if adapter else pretrained
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}, expected one of {', '.join(DTYPES)}")
    for folder in dict.fromkeys((pretrained, path)):
        require_intact(folder)
    model, info = AutoModelForImageTextToText.from_pretrained(
        path,
        dtype=dtype,
        attn_implementation=attn_implementation,
        output_loading_info=True,
    )
    wrong = {kind: sorted(map(str, info[kind]))[:5] for kind in ("missing_keys", "mismatched_keys") if info[kind]}
    if wrong:
        raise ValueError(f"{path} does not hold the weights of {type(model).__name__}: {wrong}")
    if adapter:
        model = _with_adapter(model, pretrained)
    processor = AutoProcessor.from_pretrained(pretrained if _has_processor(pretrained) else path)
    return model.to(device).eval(), processor


def _register() -> None:
    """Makes the Auto classes know the students that transformers does not have."""
    if importlib.util.find_spec("regate.models"):
        importlib.import_module("regate.models")


def _with_adapter(model: Any, pretrained: str) -> Any:
    """The same model with an adapter's layers inside."""
    from peft import PeftModel  # an extra: only adapters need it

    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Found missing adapter keys")
        try:
            return PeftModel.from_pretrained(model, pretrained).get_base_model()
        except UserWarning as warning:
            raise ValueError(f"{pretrained} does not hold all weights of its adapter: {warning}") from warning


def _has_processor(pretrained: str) -> bool:
    return any(file_of(pretrained, name) for name in ("processor_config.json", "preprocessor_config.json"))
