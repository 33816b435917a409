"""VideoChat2's visual half, written down a second time: plain functions of a state dict, no class of the model's.

Keys are ours; the arithmetic follows the original's text, step by step.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def positions(frames: int, grid: int, dim: int, made_for: int) -> Tensor:
    """[frames * grid * grid, dim], by loops: sinusoids for `made_for` frames, then linear in time between midpoints."""
    known = 1 if frames == 1 else made_for
    table = np.zeros((known * grid * grid, dim))
    for position in range(len(table)):
        for j in range(dim):
            angle = position / np.power(10000, 2 * (j // 2) / dim)
            table[position, j] = np.sin(angle) if j % 2 == 0 else np.cos(angle)
    table = table.astype(np.float32).reshape(known, grid * grid, dim)
    rows = []
    for t in range(frames):
        place = min(max((t + 0.5) * known / frames - 0.5, 0.0), known - 1.0)
        low = int(place)
        high = min(low + 1, known - 1)
        rows.append(table[low] * (1 - (place - low)) + table[high] * (place - low))
    return torch.from_numpy(np.concatenate(rows).astype(np.float32))


def heads(x: Tensor, number: int) -> Tensor:
    return x.reshape(x.shape[0], x.shape[1], number, -1).transpose(1, 2)


def attend(query: Tensor, key: Tensor, value: Tensor, number: int, mask: Tensor | None = None) -> Tensor:
    """Softmax attention of [N, S, D]; mask [N, keys], 0 = out of sight."""
    q, k, v = (heads(x, number) for x in (query, key, value))
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if mask is not None:
        scores = scores.masked_fill(mask[:, None, None] == 0, -1e30)
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


def vision(state: dict[str, Tensor], pixels: Tensor, number: int, patch: int, made_for: int = 4) -> Tensor:
    """[N, T, 3, H, W] -> [N, S, D]; `state` holds the tower's weights."""
    inputs, frames, _, height, width = pixels.shape
    grid = height // patch
    tokens = []
    for n in range(inputs):  # frame by frame, patch by patch
        rows = []
        for t in range(frames):
            for y in range(0, height, patch):
                for x in range(0, width, patch):
                    rows.append(pixels[n, t, :, y : y + patch, x : x + patch].reshape(-1))
        tokens.append(torch.stack(rows))
    weight = state["patch_embed.proj.weight"]
    x = torch.stack(tokens) @ weight.reshape(len(weight), -1).T + state["patch_embed.proj.bias"]
    dim = x.shape[-1]
    x = x + positions(frames, grid, dim, made_for)
    block = 0
    while f"blocks.{block}.norm1.weight" in state:
        s = {k.removeprefix(f"blocks.{block}."): v for k, v in state.items() if k.startswith(f"blocks.{block}.")}
        y = F.layer_norm(x, (dim,), s["norm1.weight"], s["norm1.bias"], 1e-6)
        q, k, v = (y @ s["attn.qkv.weight"].T).split(dim, dim=-1)
        y = attend(q + s["attn.q_bias"], k, v + s["attn.v_bias"], number)
        x = x + y @ s["attn.proj.weight"].T + s["attn.proj.bias"]
        y = F.layer_norm(x, (dim,), s["norm2.weight"], s["norm2.bias"], 1e-6)
        y = F.gelu(y @ s["mlp.fc1.weight"].T + s["mlp.fc1.bias"])
        x = x + y @ s["mlp.fc2.weight"].T + s["mlp.fc2.bias"]
        block += 1
    return F.layer_norm(x, (dim,), state["layernorm.weight"], state["layernorm.bias"], 1e-12)


def connector(state: dict[str, Tensor], seen: Tensor, ids: Tensor, mask: Tensor, number: int) -> Tensor:
    """Vision tokens [N, S, D] and the instruction [N, K] -> visual tokens [N, Q, D]; `state` is of `model.model`."""

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (x.shape[-1],), state[f"{name}.weight"], state[f"{name}.bias"], 1e-12)

    def attention(x: Tensor, other: Tensor, name: str, mask: Tensor | None) -> Tensor:
        q, k, v = (
            linear(value, f"{name}.attention.{key}") for value, key in ((x, "query"), (other, "key"), (other, "value"))
        )
        return norm(linear(attend(q, k, v, number, mask), f"{name}.output.dense") + x, f"{name}.output.LayerNorm")

    def feed_forward(x: Tensor, layer: str, kind: str) -> Tensor:
        y = linear(F.gelu(linear(x, f"{layer}.intermediate{kind}.dense")), f"{layer}.output{kind}.dense")
        return norm(y + x, f"{layer}.output{kind}.LayerNorm")

    queries = torch.cat([state["queries.query_tokens"], state["queries.extra_query_tokens"]], dim=1)
    size = queries.shape[1]
    words = state["qformer.embeddings.word_embeddings.weight"][ids]
    words = words + state["qformer.embeddings.position_embeddings.weight"][: ids.shape[1]]
    x = norm(torch.cat([queries.expand(len(ids), -1, -1), words], dim=1), "qformer.embeddings.layernorm")
    whole = torch.cat([torch.ones(len(ids), size, dtype=mask.dtype), mask], dim=1)
    number_of_layers = 1 + max(int(k.split(".")[3]) for k in state if k.startswith("qformer.encoder.layer."))
    for i in range(number_of_layers):
        layer = f"qformer.encoder.layer.{i}"
        x = attention(x, x, f"{layer}.attention", whole)
        query, text = x[:, :size], x[:, size:]
        if i % 2 == 0:
            query = attention(query, seen, f"{layer}.crossattention", None)
        x = torch.cat([feed_forward(query, layer, "_query"), feed_forward(text, layer, "")], dim=1)
    return linear(x[:, :size], "multi_modal_projector")
