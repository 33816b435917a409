"""Does attention lie on the object that a word names? Scores of two models on the same clips, with intervals.

Measures (see `regate.saliency`): `mass`, the share of attention on visual tokens inside the object's true boxes, and
`pointing`, whether the cell with the most attention hits it. Beside each stands what even attention and attention on
the best cell would score on the same words: where cells are larger than objects, mass cannot reach 1. Tokens are
averaged within a clip; the interval is a percentile bootstrap over clips, which are what a second test set would draw
anew. It says nothing of other seeds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from regate.saliency import cover, find_sinks, hits, mass_inside, over_slices, pointing, without
from repro.stats import LEVEL, REPS

MEASURES = ("mass", "pointing")
SINKS = ("kept", "removed")
Key = tuple[str, str, int | None]
"""Measure, sinks kept or removed, layer (None: the mean over layers and heads)."""


def clip_scores(
    weights: np.ndarray,
    named: list[int | None],
    boxes: np.ndarray,
    frames: tuple[tuple[int, ...], ...],
    extent: tuple[float, float, float, float],
    size: tuple[int, int],
) -> dict[Key, float]:
    """The scores of one model on one clip. Under (measure, "even", None) stands what even attention would score, under
    (measure, "best", None) what attention on the best cell of the clip would.

    Args:
        weights: float [layers, heads, Q, T, R, C], of all answer tokens.
        named: for each of them the object that it names, or None.
        boxes: float [F, O, 4], NaN where there is none.
        frames, extent: of the grid.
        size: height and width of a frame in pixels.

    Raises:
        ValueError: no token names an object, or too few tokens to tell sinks.
    """
    queries = [q for q, thing in enumerate(named) if thing is not None]
    if not queries:
        raise ValueError("no answer token names an object")
    cells = weights.shape[-2:]

    def places(of: Callable[..., np.ndarray]) -> np.ndarray:  # [Q, T, R, C]
        per_frame = of(boxes, cells, size, extent)  # [F, O, R, C]
        return np.stack([over_slices(per_frame[:, named[q]], frames) for q in queries])

    covered, hit = places(cover), places(hits)
    seen = {"kept": weights, "removed": without(weights, find_sinks(weights))}
    scores: dict[Key, float] = {}
    for sinks, all_weights in seen.items():
        by_layer = all_weights[:, :, queries].mean(1)  # [layers, Q, T, R, C]
        for layer, chosen in [(None, by_layer.mean(0)), *enumerate(by_layer)]:
            scores["mass", sinks, layer] = _mean(mass_inside(chosen, covered))
            scores["pointing", sinks, layer] = _mean(pointing(chosen, hit))
    for measure, place in (("mass", covered), ("pointing", (hit > 0).astype(float))):
        scores[measure, "even", None] = float(place.mean())
        scores[measure, "best", None] = float(place.max((1, 2, 3)).mean())
    return scores


def compare(standard: list[dict[Key, float]], regate: list[dict[Key, float]], seed: int = 0) -> list[dict[str, Any]]:
    """Scores over clips for every measure, with and without sinks, in the mean and layer by layer.

    Args:
        standard, regate: `clip_scores` of the same clips in the same order.

    Returns:
        Entries {measure, sinks, layer, clips, even, best, standard, regate, difference}; the last three are {estimate,
        low, high}, the difference (ReGATE minus standard) of pairs. Clips in which a model gives visual tokens nothing
        in a layer are left out there; `clips` counts the others, and a layer without any has no entry.
    """
    same = [(scores["mass", "even", None], scores["mass", "best", None]) for scores in standard]
    assert same == [(s["mass", "even", None], s["mass", "best", None]) for s in regate], "two lists of other clips"
    n = len(standard)
    drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=REPS)  # [REPS, n]: one for all scores
    entries = []
    for key in standard[0]:
        measure, sinks, layer = key
        if sinks not in SINKS:
            continue
        a, b = (np.array([scores[key] for scores in of]) for of in (standard, regate))
        good = np.isfinite(a) & np.isfinite(b)
        if not good.any():
            continue
        entry: dict[str, Any] = {"measure": measure, "sinks": sinks, "layer": layer, "clips": int(good.sum())}
        for name in ("even", "best"):
            entry[name] = float(np.array([scores[measure, name, None] for scores in standard])[good].mean())
        for name, values in (("standard", a), ("regate", b), ("difference", b - a)):
            entry[name] = _interval(values, good, drawn)
        entries.append(entry)
    return entries


def _interval(values: np.ndarray, good: np.ndarray, drawn: np.ndarray) -> dict[str, float]:
    """The mean of `values` [n] where they are `good`, with bounds from resampled counts [REPS, n]."""
    estimate = float(values[good].mean())
    counts = drawn[:, good]
    means = (counts @ values[good]) / np.maximum(counts.sum(1), 1)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return {"estimate": estimate, "low": min(float(low), estimate), "high": max(float(high), estimate)}


def _mean(values: np.ndarray) -> float:
    """The mean of what is a number; NaN where nothing is."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")
