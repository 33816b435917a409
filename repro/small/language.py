"""SmolLM2-135M from its GGUF file: 4-bit weights unpacked once into a transformers checkpoint of 32 bits.

Unpacking takes half a minute, loading the result two seconds; that is why it is kept (540 MB).
"""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig


def convert_gguf(gguf: Path, target: Path) -> None:
    """Write the model and the tokenizer of a GGUF file to ``target``, weights float32."""
    where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    AutoTokenizer.from_pretrained(**where).save_pretrained(target)
    config = GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32, quantization_config=config)
    if hasattr(model.config, "quantization_config"):  # the weights are plain now
        del model.config.quantization_config
    model.save_pretrained(target)
