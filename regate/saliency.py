"""What is read off attention maps: sinks, and whether attention lies where an object is. Pure functions of arrays.

Legend: Q queries, T slices of time, R x C cells of a slice, F frames. `...` are layers and heads.
"""

from __future__ import annotations

import numpy as np

Extent = tuple[float, float, float, float]
TIMES, SHARE, FEWEST = 10.0, 0.9, 8


def find_sinks(weights: np.ndarray, times: float = TIMES, share: float = SHARE) -> np.ndarray:
    """Which visual tokens are attention sinks: attended to by every query, whatever it is about.

    A visual token is a sink of a head if at least `share` of the queries give it more than `times` as much as each
    visual token would have if their attention on visual tokens were spread evenly. This is the rule of Gu et al. (When
    Attention Sink Emerges in Language Models, ICLR 2025: attention above a threshold, whichever the query), with a
    threshold that follows the number of tokens, and a quorum in the place of their mean, which one query could lift.
    Its limit: what all queries are rightly about looks like a sink. Where there are no more than `times` visual tokens,
    none can be one.

    Args:
        weights: float [layers, heads, Q, T, R, C], all answer tokens as queries.

    Returns:
        bool [layers, heads, T, R, C].

    Raises:
        ValueError: fewer than 8 queries, of which nothing of the kind can be said.
    """
    queries = weights.shape[2]
    if queries < FEWEST:
        raise ValueError(
            f"found {queries} answer tokens, expected at least {FEWEST}: too few to tell sinks from objects"
        )
    even = weights.mean((-3, -2, -1), keepdims=True)  # [layers, heads, Q, 1, 1, 1]
    above = weights > times * even
    return above.mean(2) >= share


def without(weights: np.ndarray, sinks: np.ndarray) -> np.ndarray:
    """The weights [layers, heads, Q, T, R, C] with nothing on the `sinks` bool [layers, heads, T, R, C]."""
    return np.where(sinks[:, :, None], np.float32(0), weights)


def cover(boxes: np.ndarray, cells: tuple[int, int], size: tuple[int, int], extent: Extent) -> np.ndarray:
    """Share of each cell's area inside a box.

    Args:
        boxes: float [..., 4], x0, y0, x1, y1 in pixels; NaN where there is no box.
        cells: R, C.
        size: height and width of a frame in pixels.
        extent: the rectangle that the cells divide, in shares of the frame (see `Grid`).

    Returns:
        float [..., R, C]; 0 where there is no box.
    """
    along = []
    for axis, (count, pixels) in enumerate(((cells[1], size[1]), (cells[0], size[0]))):  # x, then y
        edges = np.linspace(extent[axis], extent[axis + 2], count + 1) * pixels
        low, high = boxes[..., axis, None], boxes[..., axis + 2, None]
        inside = np.minimum(high, edges[1:]) - np.maximum(low, edges[:-1])
        along.append(np.nan_to_num(np.clip(inside, 0, None)) / np.diff(edges))
    return along[1][..., :, None] * along[0][..., None, :]


def hits(boxes: np.ndarray, cells: tuple[int, int], size: tuple[int, int], extent: Extent) -> np.ndarray:
    """Whether each cell hits a box in the pointing game: bool [..., R, C]; arguments as of `cover`.

    A cell hits if its centre is in the box, or the box's centre is in the cell: the first is the usual rule, the second
    stands in for it where cells are larger than objects.
    """
    along_cell, along_box = [], []
    for axis, (count, pixels) in enumerate(((cells[1], size[1]), (cells[0], size[0]))):
        edges = np.linspace(extent[axis], extent[axis + 2], count + 1) * pixels
        low, high = boxes[..., axis, None], boxes[..., axis + 2, None]
        centre, middle = (edges[1:] + edges[:-1]) / 2, (low + high) / 2
        along_cell.append((low <= centre) & (centre < high))
        along_box.append((edges[:-1] <= middle) & (middle < edges[1:]))
    both = [a[1][..., :, None] & a[0][..., None, :] for a in (along_cell, along_box)]
    return both[0] | both[1]


def over_slices(per_frame: np.ndarray, frames: tuple[tuple[int, ...], ...]) -> np.ndarray:
    """[F, R, C] -> float [T, R, C]: the mean over the frames that each slice stands for."""
    return np.stack([per_frame[list(shown)].astype(np.float64).mean(0) for shown in frames])


def mass_inside(weights: np.ndarray, covered: np.ndarray) -> np.ndarray:
    """Share of the attention on visual tokens that lies inside a box: [...].

    Args:
        weights: float [..., T, R, C], of queries about one object.
        covered: float [..., T, R, C], share of each cell inside its box; what a cell gets is spread evenly over it.

    Returns:
        float [...] in [0, 1]; NaN where no attention is on visual tokens.
    """
    seen = weights.sum((-3, -2, -1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(seen > 0, (weights * covered).sum((-3, -2, -1)) / seen, np.nan)


def pointing(weights: np.ndarray, hit: np.ndarray) -> np.ndarray:
    """The pointing game (Zhang et al., 2016): does the cell with the most attention hit? float [...], 0 or 1.

    Args:
        weights: float [..., T, R, C].
        hit: [..., T, R, C], see `hits`; a slice of two frames hits where one of them does. Ties count by their share.

    Returns:
        float [...]; NaN where no attention is on visual tokens.
    """
    most = weights.max((-3, -2, -1), keepdims=True)
    first = weights == most
    score = (first & (hit > 0)).sum((-3, -2, -1)) / first.sum((-3, -2, -1))
    return np.where(most[..., 0, 0, 0] > 0, score, np.nan)
