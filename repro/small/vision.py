"""A ViT from its ONNX export to transformers' Dinov2, checked against onnxruntime on the same pixels.

The export keeps the names of biases, norms and scales (`backbone.encoder.layer.3.norm1.weight`). Matrices of linear
layers lost theirs: they are inputs of MatMul nodes, transposed, and the node's name says of which layer. The position
table was folded into two constants, told by their shapes: one for the class token, one for the patches.

Shapes: D hidden size, P patches of the position table.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Dinov2Config, Dinov2Model

from repro.small.packages import ModelsError

TOLERANCE = 1e-4
"""Largest difference to onnxruntime's last hidden state that a conversion may have."""
HEADS_OF = 64  # hidden size of a head in every ViT of this line
LAST = "/backbone/layernorm/Add_1_output_0"
"""What the export calls the tower's last hidden state."""
_PARTS = {
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
}
_MATMUL = re.compile(r"/backbone/(encoder/layer\.\d+)/((?:attention/|mlp/).+)/MatMul")


def convert_onnx(onnx_file: Path, target: Path) -> float:
    """Write the tower of an ONNX file to ``target`` as a Dinov2 checkpoint.

    Returns the largest difference to onnxruntime on one random picture. Raises ModelsError where it is above
    `TOLERANCE`, or the file is not laid out as described above.
    """
    import onnx

    exported = onnx.load(str(onnx_file))
    weights = weights_of(exported)
    model = Dinov2Model(config_of(weights))
    missing, unexpected = model.load_state_dict(weights, strict=False)
    # The mask token only serves pre-training; an export has none.
    lost = [name for name in missing if name != "embeddings.mask_token"]
    if lost or unexpected:
        raise ModelsError(f"{onnx_file.name} is no Dinov2 tower: missing {lost[:3]}, unexpected {list(unexpected)[:3]}")
    torch.nn.init.zeros_(model.embeddings.mask_token)
    model.eval()
    side = exported.graph.input[0].type.tensor_type.shape.dim[-1].dim_value
    worst = difference(exported, model, side)
    if not worst <= TOLERANCE:  # NaN, too
        found = f"the converted tower differs from onnxruntime by {worst:.2g}"
        raise ModelsError(f"{onnx_file.name}: {found}, expected at most {TOLERANCE:g}")
    model.save_pretrained(target)
    return worst


def weights_of(exported: Any) -> dict[str, torch.Tensor]:
    """Dinov2's parameters by name, from an ONNX model; ModelsError where the position table is not found."""
    from onnx import numpy_helper

    arrays = {item.name: torch.from_numpy(numpy_helper.to_array(item).copy()) for item in exported.graph.initializer}
    named = {name.removeprefix("backbone."): value for name, value in arrays.items() if name.startswith("backbone.")}
    weights = {_renamed(name): value for name, value in named.items()}
    hidden = weights["embeddings.cls_token"].shape[-1] if "embeddings.cls_token" in weights else 0
    for node in exported.graph.node:
        found = _MATMUL.fullmatch(node.name)
        if node.op_type == "MatMul" and found and node.input[1] in arrays:
            name = _renamed(".".join((found[1], found[2])).replace("/", "."))
            weights[f"{name}.weight"] = arrays[node.input[1]].T.contiguous()
    # Constants without a name of their own, [1, 1, D] and [1, P, D].
    rest = [value for name, value in arrays.items() if not name.startswith("backbone.") and value.ndim == 3]
    tables = sorted((t for t in rest if t.shape[0] == 1 and t.shape[2] == hidden), key=lambda t: t.shape[1])
    if [table.shape[1] == 1 for table in tables] != [True, False]:
        shapes = [tuple(table.shape) for table in tables]
        raise ModelsError(f"found position tables of shapes {shapes}, expected [1, 1, D] and [1, P, D]")
    weights["embeddings.position_embeddings"] = torch.cat(tables, dim=1)
    return weights


def _renamed(name: str) -> str:
    for old, new in _PARTS.items():
        name = name.replace(old, new)
    return name


def config_of(weights: dict[str, torch.Tensor]) -> Dinov2Config:
    """The configuration that parameters fit."""
    hidden, _, patch, _ = weights["embeddings.patch_embeddings.projection.weight"].shape
    layers = {int(name.split(".")[2]) for name in weights if name.startswith("encoder.layer.")}
    side = round((weights["embeddings.position_embeddings"].shape[1] - 1) ** 0.5)
    return Dinov2Config(
        hidden_size=hidden,
        num_hidden_layers=len(layers),
        num_attention_heads=max(1, hidden // HEADS_OF),
        mlp_ratio=weights["encoder.layer.0.mlp.fc1.weight"].shape[0] // hidden,
        image_size=side * patch,
        patch_size=patch,
    )


@torch.no_grad()
def difference(exported: Any, model: Dinov2Model, side: int) -> float:
    """Largest absolute difference of the last hidden states on a random picture of ``side`` pixels."""
    import onnx
    import onnxruntime

    told = onnx.ModelProto()
    told.CopyFrom(exported)
    told.graph.output.append(onnx.helper.make_empty_tensor_value_info(LAST))
    session = onnxruntime.InferenceSession(told.SerializeToString(), providers=["CPUExecutionProvider"])
    pixels = np.random.default_rng(0).standard_normal((1, 3, side, side), dtype=np.float32)
    theirs = session.run([LAST], {exported.graph.input[0].name: pixels})[0]
    ours = model(pixel_values=torch.from_numpy(pixels)).last_hidden_state.numpy()
    return float(np.abs(ours - theirs).max())


def for_size(model: Dinov2Model, image_size: int) -> Dinov2Model:
    """The tower for square pictures of another size: its position table resized once, as its forward pass would.

    Raises:
        ValueError: ``image_size`` is no multiple of the patch size.
    """
    patch = model.config.patch_size
    if image_size % patch:
        raise ValueError(f"image_size is {image_size}, expected a multiple of the patch size {patch}")
    config = Dinov2Config.from_dict(model.config.to_dict() | {"image_size": image_size})
    weights = model.state_dict()
    blank = torch.empty(1, (image_size // patch) ** 2 + 1, config.hidden_size)
    with torch.no_grad():
        resized_table = model.embeddings.interpolate_pos_encoding(blank, image_size, image_size)
    weights["embeddings.position_embeddings"] = resized_table
    resized = Dinov2Model(config)
    resized.load_state_dict(weights)
    return resized.eval()
