"""Which part of which frame each visual token of a sequence stands for.

    [grid] = visual_grids(model.config, batch)            # one for each row of the batch
    grid.positions[t, r, c]                               # the position in the sequence
    grid.frames[t]                                        # the frames that slice t stands for: (3,), or (6, 7)

Model classes lay visual tokens out in their own ways; each known way is a function below, and a way that is not known
is refused. A token stands for the cell that it had before attention in the vision tower mixed cells: that is where
pictures of attention draw it, here as everywhere.

Legend: B rows, L positions, T slices of time, R x C cells of a slice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np
import torch

from regate.saliency import Extent
from regate.tokens import placeholder_token_ids

WHOLE: Extent = (0.0, 0.0, 1.0, 1.0)


class UnknownGrid(ValueError):
    """Visual tokens whose places in the frames are not known; the message says why and what to do."""


@dataclass(frozen=True)
class Grid:
    """The visual tokens of one sequence, laid out over frames.

    Attributes:
        positions: int64 [T, R, C], positions in the sequence.
        frames: for each of the T slices the frames that it stands for, numbered from 0 in reading order. Mostly one;
            two where the model compresses time.
        extent: the rectangle x0, y0, x1, y1 that the R x C cells divide evenly, in shares of the frame's width and
            height. It reaches beyond the frame where the model pads.
    """

    positions: np.ndarray
    frames: tuple[tuple[int, ...], ...]
    extent: Extent = WHOLE

    @property
    def num_frames(self) -> int:
        """How many frames there are."""
        return max(max(slice_) for slice_ in self.frames) + 1

    def seen_through(self, seen: Extent) -> Grid:
        """The grid on the frame, where the model was given only the part `seen` of it (see `seen_part`)."""
        x0, y0, x1, y1 = seen
        wide, high = x1 - x0, y1 - y0
        left, top, right, bottom = self.extent
        return replace(self, extent=(x0 + left * wide, y0 + top * high, x0 + right * wide, y0 + bottom * high))


@dataclass(frozen=True)
class _Block:
    """One run of placeholders: its slices, and how the frames in it are numbered (from 0)."""

    slices: int
    rows: int
    columns: int
    frames: tuple[tuple[int, ...], ...]
    extent: Extent = WHOLE
    trailing: int = 0  # tokens after the cells that stand for no place


# What a layout returns: (placeholder's id, length of the run) -> its block. Called run by run, row after row.
_Reader = Callable[[int, int], _Block]


def visual_grids(config: Any, inputs: Mapping[str, Any]) -> list[Grid]:
    """A grid for each row of a batch.

    Args:
        config: of the whole model.
        inputs: what the model is called with: `input_ids` int64 [B, L], and the visual inputs that the layout reads
            (`video_grid_thw` and the like, `pixel_values_videos`).

    Raises:
        UnknownGrid: a model type whose layout is not known, or has no places; a row without visual tokens, with
            pictures cut into tiles, or with pictures of several shapes; numbers of tokens that do not fit.
    """
    kind = getattr(config, "model_type", None)
    if kind in _PLACELESS:
        raise UnknownGrid(f"the visual tokens of {kind!r} have no place in a frame: {_PLACELESS[kind]}")
    if kind not in _LAYOUTS:
        raise UnknownGrid(
            f"it is not known how model type {kind!r} lays its visual tokens out over frames; known are "
            f"{', '.join(_LAYOUTS)}. Say it yourself: pass grids=[regate.visual_grid.Grid(positions, frames)]."
        )
    placeholders = placeholder_token_ids(None, config)
    reader = _LAYOUTS[kind](config, inputs)
    return [_grid(row, ids, placeholders, reader) for row, ids in enumerate(inputs["input_ids"].cpu())]


def seen_part(processor: Any, height: int, width: int) -> Extent:
    """The part of a frame of height x width pixels that a video processor hands on, as an `Extent`.

    Raises:
        UnknownGrid: the processor crops.
    """
    part = getattr(processor, "video_processor", None) or getattr(processor, "image_processor", None)
    if getattr(part, "do_center_crop", None):
        raise UnknownGrid(f"{type(part).__name__} crops frames; set its do_center_crop to False, or draw the crop")
    if not getattr(part, "do_pad_to_square", None):
        return WHOLE
    side = max(height, width)
    x, y = (side - width) / 2 / width, (side - height) / 2 / height
    return -x, -y, 1 + x, 1 + y


def _grid(row: int, ids: torch.Tensor, placeholders: set[int], reader: _Reader) -> Grid:
    """The grid of one row of tokens, int64 [L]."""
    cells, frames, extents, before = [], [], [], set()
    count = 0
    for start, length in _runs(ids, placeholders):
        block = reader(int(ids[start]), length)
        size = block.slices * block.rows * block.columns
        if size + block.trailing != length or size == 0:
            raise UnknownGrid(
                f"row {row}: found {length} visual tokens at position {start}, expected {size + block.trailing} "
                f"({block.slices} x {block.rows} x {block.columns} cells and {block.trailing} more). A picture that is "
                "cut into tiles cannot be drawn: switch tiles off in the processor."
            )
        cells.append(start + np.arange(size).reshape(block.slices, block.rows, block.columns))
        frames += [tuple(count + f for f in shown) for shown in block.frames]
        extents.append(block.extent)
        before.add(int(ids[start - 1]) if start else None)
        count = max(max(shown) for shown in frames) + 1
    if not cells:
        raise UnknownGrid(f"row {row} has no visual tokens")
    if len({(c.shape[1:], e) for c, e in zip(cells, extents, strict=True)}) > 1:
        shapes = ", ".join(sorted({f"{c.shape[1]} x {c.shape[2]}" for c in cells}))
        raise UnknownGrid(f"row {row} has pictures of several shapes ({shapes} visual tokens), expected one shape")
    if len(before) > 1:  # <row_1_col_1>, <row_1_col_2>, ..., <global-img>
        raise UnknownGrid(
            f"row {row}: found pictures behind different markers (tokens {sorted(map(str, before))}), as where one is "
            "cut into tiles, expected whole pictures: switch tiles off in the processor"
        )
    return Grid(np.concatenate(cells), tuple(frames), extents[0])


def _runs(ids: torch.Tensor, placeholders: set[int]) -> Iterator[tuple[int, int]]:
    """(start, length) of each run of one placeholder in int64 [L]."""
    start = 0
    for token, run in groupby(ids.tolist()):
        length = len(list(run))
        if token in placeholders:
            yield start, length
        start += length


def _each(frames: int) -> tuple[tuple[int, ...], ...]:
    """Every slice is one frame."""
    return tuple((f,) for f in range(frames))


def _per_picture(side: Callable[[Any], int]) -> Callable[[Any, Mapping[str, Any]], _Reader]:
    """A run for every frame or picture: side x side cells."""

    def layout(config: Any, inputs: Mapping[str, Any]) -> _Reader:
        cells = side(config)
        return lambda token, length: _Block(1, cells, cells, _each(1))

    return layout


def _patches(config: Any) -> int:
    """Patches along one side of a frame."""
    size, patch = (getattr(config.vision_config, name) for name in ("image_size", "patch_size"))
    return (size if isinstance(size, int) else size[0]) // (patch if isinstance(patch, int) else patch[0])


def _llava_onevision(config: Any, inputs: Mapping[str, Any]) -> _Reader:
    """A run for every video: frame by frame, patches pooled 2 x 2, one token at the end that breaks the line."""
    side = -(-_patches(config) // 2)
    video = getattr(config, "video_token_id", None) or config.video_token_index

    def read(token: int, length: int) -> _Block:
        if token != video:
            raise UnknownGrid(
                "LLaVA-OneVision sees an image twice, whole and in tiles: pass it as a video of one frame"
            )
        frames = (length - 1) // side**2
        return _Block(frames, side, side, _each(frames), trailing=1)

    return read


def _qwen2_vl(config: Any, inputs: Mapping[str, Any]) -> _Reader:
    """A run for every video or image; `*_grid_thw` tell its shape before patches are merged."""
    merge = config.vision_config.spatial_merge_size
    spans = {config.image_token_id: 1, config.video_token_id: config.vision_config.temporal_patch_size}
    grids = {
        config.image_token_id: _rows(inputs, "image_grid_thw"),
        config.video_token_id: _rows(inputs, "video_grid_thw"),
    }

    def read(token: int, length: int) -> _Block:
        slices, rows, columns = (int(n) for n in next(grids[token]))
        span = spans[token]
        frames = tuple(tuple(range(t * span, (t + 1) * span)) for t in range(slices))
        return _Block(slices, rows // merge, columns // merge, frames)

    return read


def _videollama2(config: Any, inputs: Mapping[str, Any]) -> _Reader:
    """A run for every video: a convolution over time and space halves all three; the older one pads them by one.

    An image is a video of equal frames.
    """
    side = _patches(config)
    padding = {"stc_connector_v35": 0, "stc_connector": 1}[config.projector_type]
    cells = (side + 2 * padding - 2) // 2 + 1
    low, high = -padding / side, (2 * cells - padding) / side
    clips = _rows(inputs, "pixel_values_videos")

    def read(token: int, length: int) -> _Block:
        image = token == config.image_token_id
        frames = config.num_frames if image else len(next(clips))
        slices = (frames + 2 * padding - 2) // 2 + 1
        shown = [range(max(2 * t - padding, 0), min(2 * t + 2 - padding, frames)) for t in range(slices)]
        return _Block(slices, cells, cells, tuple((0,) if image else tuple(s) for s in shown), (low, low, high, high))

    return read


def _rows(inputs: Mapping[str, Any], name: str) -> Iterator[Any]:
    """The visuals of a batch one by one, in reading order; UnknownGrid where the text holds more of them."""
    values = inputs.get(name)
    yield from () if values is None else values
    raise UnknownGrid(f"the text holds more visuals than `{name}` (found {0 if values is None else len(values)})")


_LAYOUTS: dict[str, Callable[[Any, Mapping[str, Any]], _Reader]] = {
    "internvl": _per_picture(lambda config: round(_patches(config) * config.downsample_ratio)),
    "smolvlm": _per_picture(lambda config: _patches(config) // config.scale_factor),
    "llava_onevision": _llava_onevision,
    "qwen2_vl": _qwen2_vl,
    "videollama2": _videollama2,
}
_QUERIES = "each is a query of a Q-Former that has looked at all of all frames"
_PLACELESS = dict.fromkeys(("videochat2", "instructblip", "instructblipvideo", "blip-2"), _QUERIES)
