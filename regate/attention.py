"""Attention of chosen positions over the visual tokens of each frame, from any multimodal model with eager attention.

    inputs = collate([row])                                             # what the model is called with
    [maps] = attention_over_frames(model, inputs, predictors(labels))   # one for each row of the batch
    maps.weights                                                        # [layers, heads, queries, T, R, C]
    maps.rest                                                           # [layers, heads, queries]: on everything else

or, from a video file, a question and an answer:

    answer = answer_attention(model, processor, "clip.mp4", "What happens?", "A red ball falls.")

Weights are read from the decoder's own eager attention, layer by layer, by hooks on the unmodified model; only the
chosen rows are kept, so that the most that is in memory at once is the attention [B, heads, L, L] of one layer.

Never run on a GPU.

Legend: B rows, L positions, Q queries of a row, T slices of time, R x C cells of a slice.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from regate.data import IGNORE, ConversationEncoder, join
from regate.elision import UnsupportedModel
from regate.media import load_video
from regate.tokens import tokenizer_of
from regate.visual_grid import Grid, seen_part, visual_grids


@dataclass(frozen=True)
class AttentionMaps:
    """Attention of the queries of one sequence, in shares of what each gives in all.

    Attributes:
        weights: float32 [layers, heads, Q, T, R, C], on the visual tokens, laid out as `grid`.
        rest: float32 [layers, heads, Q], on all other positions together. Each query's weights and rest sum to 1, up to
            the rounding of the model's own softmax.
        queries: int64 [Q], positions in the sequence.
        grid: where the visual tokens are.
    """

    weights: np.ndarray
    rest: np.ndarray
    queries: np.ndarray
    grid: Grid


@dataclass(frozen=True)
class AnswerAttention:
    """What `answer_attention` returns.

    Attributes:
        frames: uint8 [F, H, W, 3], the frames of the video that were shown.
        tokens: text of each answer token.
        maps: their attention; query q is the position that predicts token q.
    """

    frames: np.ndarray
    tokens: list[str]
    maps: AttentionMaps


def predictors(labels: Tensor) -> list[Tensor]:
    """Positions whose states predict a target, for each row of `labels` int64 [B, L] (-100 on all but targets).

    A decoder writes token l from the state at l - 1: what it attends to *when it says a word* is the row of the
    position before the word.
    """
    return [(row[1:] != IGNORE).nonzero().flatten() for row in labels]


@torch.no_grad()
def attention_over_frames(
    model: nn.Module, inputs: Mapping[str, Any], queries: Sequence[Tensor], grids: Sequence[Grid] | None = None
) -> list[AttentionMaps]:
    """Attention of chosen positions over visual tokens, one entry for each row of a batch.

    The model is run once, in evaluation mode, with eager attention in its decoder; its modes and its attention
    implementation are afterwards what they were.

    Args:
        model: a transformers model with a causal decoder and `get_decoder()`, or a PEFT model around one.
        inputs: what it is called with; `labels` are left out. `attention_mask` [B, L] may pad on either side.
        queries: for each row, int64 [Q] positions (see `predictors`).
        grids: for each row, where its visual tokens are; None: `visual_grids` finds out.

    Raises:
        UnknownGrid: it is not known where the visual tokens are.
        UnsupportedModel: no causal decoder, layers without attention, or no eager attention.
        ValueError: queries that are no positions of their row.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    inputs = {name: value for name, value in inputs.items() if name != "labels"}
    grids = visual_grids(base.config, inputs) if grids is None else grids
    _check(inputs, queries, grids)
    decoder, layers = _attention_layers(base)
    columns = [torch.as_tensor(grid.positions.reshape(-1)) for grid in grids]
    chosen: list[list[tuple[np.ndarray, np.ndarray]]] = []  # [layers][B]

    def keep(module: nn.Module, args: tuple, output: tuple) -> tuple:
        weights = output[1] if isinstance(output, tuple) and len(output) > 1 else None  # [B, heads, L, L]
        length = inputs["input_ids"].shape[1]
        if not isinstance(weights, Tensor) or weights.shape[-2:] != (length, length):
            shape = tuple(weights.shape) if isinstance(weights, Tensor) else "none"
            raise UnsupportedModel(
                f"{type(module).__name__} returned attention weights of shape {shape}, expected [B, heads, {length}, "
                f"{length}]: its eager attention does not show them"
            )
        chosen.append([_rows(weights[b], q, c) for b, (q, c) in enumerate(zip(queries, columns, strict=True))])
        return (output[0], None, *output[2:])  # whoever comes next does not need them: free [L, L] now

    with _evaluating(model), _eager(decoder), contextlib.ExitStack() as hooks:
        for layer in layers:
            hooks.callback(layer.register_forward_hook(keep).remove)
        model(**inputs, use_cache=False, logits_to_keep=1)
    if len(chosen) != len(layers):
        raise UnsupportedModel(
            f"the forward pass called {len(chosen)} of the {len(layers)} attention layers of {type(decoder).__name__}"
        )
    maps = []
    for grid, positions, parts in zip(grids, queries, zip(*chosen, strict=True), strict=True):
        weights = np.stack([seen for seen, _ in parts])  # [layers, heads, Q, T * R * C]
        maps.append(
            AttentionMaps(
                weights.reshape(*weights.shape[:3], *grid.positions.shape),
                np.stack([rest for _, rest in parts]),
                positions.cpu().numpy().astype(np.int64),
                grid,
            )
        )
    return maps


def answer_attention(
    model: nn.Module, processor: Any, video: str | Path, question: str, answer: str, num_frames: int = 8
) -> AnswerAttention:
    """Attention of every token of an answer over the frames of a video file.

    Args:
        model, processor: a pair of transformers, with a chat template.
        video: any file that FFmpeg decodes, or a folder of frames.
        question, answer: text; the answer is given, not generated.
        num_frames: frames that the model is shown.

    Raises:
        BadSample: the video cannot be read, or the processor refuses the sample.
        ValueError: an empty answer; a sequence longer than the model's positions.
        UnknownGrid, UnsupportedModel: see `attention_over_frames`.
    """
    for name, text in (("question", question), ("answer", answer)):
        if not text.strip():
            raise ValueError(f"the {name} is empty, expected text")
    content = [{"type": "video"}, {"type": "text", "text": question}]
    messages = [
        {"role": "user", "content": content},
        {"role": "assistant", "content": [{"type": "text", "text": answer}]},
    ]
    row = {"id": Path(video).name, "messages": json.dumps(messages), "videos": [str(video)]}
    encoded = ConversationEncoder(processor, num_frames=num_frames)(row)
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    length = len(encoded["input_ids"])
    if limit is not None and length > limit:
        raise ValueError(
            f"found {length} tokens, expected at most {limit}, the model's positions: show fewer than {num_frames} "
            "frames, or shorten the text"
        )
    tokenizer = tokenizer_of(processor)
    device = next(model.parameters()).device
    batch = join([encoded], tokenizer.pad_token_id or 0, "right")
    batch = {name: value.to(device) for name, value in batch.items()}
    labels = batch.pop("labels")
    frames = load_video(video, num_frames).frames
    seen = seen_part(processor, *frames.shape[1:3])
    grids = [grid.seen_through(seen) for grid in visual_grids(model.config, batch)]
    [maps] = attention_over_frames(model, batch, predictors(labels), grids)
    targets = labels[labels != IGNORE].tolist()
    return AnswerAttention(frames, [tokenizer.decode([target]) for target in targets], maps)


def _rows(weights: Tensor, queries: Tensor, columns: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """From [heads, L, L]: float32 [heads, Q, S] on the columns, and [heads, Q] on all others."""
    rows = weights[:, queries.to(weights.device)].float()  # [heads, Q, L]
    seen = rows[..., columns.to(weights.device)]
    rest = (rows.sum(-1) - seen.sum(-1)).clamp(min=0)
    return seen.cpu().numpy(), rest.cpu().numpy()


def _check(inputs: Mapping[str, Any], queries: Sequence[Tensor], grids: Sequence[Grid]) -> None:
    batch, length = inputs["input_ids"].shape
    if len(queries) != batch or len(grids) != batch:
        raise ValueError(f"found queries of {len(queries)} and grids of {len(grids)} rows, expected {batch} of each")
    mask = inputs.get("attention_mask")
    real = torch.ones(batch, length, dtype=torch.bool) if mask is None else mask.bool().cpu()
    for row, chosen in enumerate(queries):
        if not len(chosen) or int(chosen.min()) < 0 or int(chosen.max()) >= length or not real[row][chosen.cpu()].all():
            raise ValueError(
                f"queries of row {row}: found {chosen.tolist()[:8]}, expected at least one position of a token, "
                f"{int(real[row].nonzero()[0])} to {int(real[row].nonzero()[-1])}"
            )


def _attention_layers(base: nn.Module) -> tuple[Any, list[nn.Module]]:
    """The decoder and its attention modules in order; UnsupportedModel where there is not one in every layer."""
    decoder = base.get_decoder() if hasattr(base, "get_decoder") else None
    if decoder is None or decoder is base:
        raise UnsupportedModel(
            f"{type(base).__name__}.get_decoder() gives no inner decoder; pass the model with its head"
        )
    causal = [m for m in decoder.modules() if getattr(m, "is_causal", None) is True and hasattr(m, "layer_idx")]
    found = [m.layer_idx for m in causal]
    expected = list(range(decoder.config.num_hidden_layers))
    if found != expected:
        raise UnsupportedModel(
            f"{type(decoder).__name__} has causal attention in its layers {found}, expected one in each of "
            f"{len(expected)} layers: models with other mixers have no attention maps there"
        )
    return decoder, causal


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode (dropout would change the weights), and back, module by module."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextlib.contextmanager
def _eager(decoder: Any) -> Iterator[None]:
    """Eager attention in the decoder, and back."""
    before = decoder.config._attn_implementation
    decoder.set_attn_implementation("eager")
    try:
        if decoder.config._attn_implementation != "eager":
            raise UnsupportedModel(
                f"{type(decoder).__name__} cannot be switched to eager attention, expected that it can: load the model "
                "with attn_implementation='eager'"
            )
        yield
    finally:
        decoder.set_attn_implementation(before)
