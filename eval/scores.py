"""Logged samples -> scores on one scale, each with its interval, its number of questions, and what guessing gives.

All scores are percentages but MME's, which are points as in the paper: 200 for each category that was asked. They are
counted anew from single answers, and must agree with what lmms-eval's own aggregation says (`disagreements`).

Free of torch and of lmms-eval.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean
from typing import Any

import numpy as np

LEVEL = 0.95
_REPS = 2000
_TOLERANCE = 2e-3  # LongVideoBench rounds to five digits of a fraction

PERCEPTION = (
    "existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR",
)  # fmt: skip
MLVU_TYPES = 7  # of the dev set; the stock average counts those that are absent as zero


@dataclass(frozen=True)
class Row:
    """One answer. `score` in [0, 1]; `unit`: what scores together; `options`: how many there were, None if open."""

    task: str
    doc: int
    part: str
    unit: str
    score: float
    understood: bool
    options: int | None
    answer: str
    truth: str | None


@dataclass(frozen=True)
class Score:
    """One number of a table: `value` in [0, `maximum`], its 95 % interval over questions, and where it comes from.

    n: questions. unparsable: answers among them in which no option was found. chance: expected value of a guesser;
    None where that is not known.
    """

    name: str
    value: float
    low: float
    high: float
    n: int
    unparsable: int
    chance: float | None
    maximum: float = 100.0


def rows_of(samples: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Row]:
    """The `regate` line of every logged sample, in the order of tasks and documents."""
    fields = ("part", "unit", "score", "understood", "options", "answer", "truth")
    return [
        Row(task, sample["doc_id"], **{name: sample["regate"][name] for name in fields})
        for task, found in samples.items()
        for sample in sorted(found, key=lambda s: s["doc_id"])
    ]


def scores_of(benchmark: str, rows: Sequence[Row]) -> list[Score]:
    """All scores of a benchmark; the ones of the paper's tables are named in `HEADLINES`, the parts follow them."""
    if benchmark == "mme":
        return _mme(rows)
    if benchmark == "vinoground":
        return _vinoground(rows)
    parts = _by(rows, lambda row: row.part)
    detail = [_accuracy(name, found) for name, found in parts.items()]
    if benchmark in ("mvbench", "mlvu"):
        return [_average(parts), *detail]
    if benchmark == "scienceqa":  # the questions with pictures are asked twice: there is no common score
        return detail
    overall = _accuracy("all" if benchmark == "seedbench" else "accuracy", rows)
    return [overall, *([_f1(rows)] if benchmark == "pope" else []), *(detail if len(parts) > 1 else [])]


HEADLINES: dict[str, tuple[str, ...]] = {
    "scienceqa": ("images",),
    "mme": ("cognition", "perception"),
    "vizwiz": ("accuracy",),
    "pope": ("accuracy",),
    "seedbench": ("image",),
    "videomme": ("accuracy",),
    "longvideobench": ("accuracy",),
    "mlvu": ("average",),
    "egoschema": ("accuracy",),
    "mvbench": ("average",),
    "perceptiontest": ("accuracy",),
    "nextqa": ("accuracy",),
    "vinoground": ("text", "video", "group"),
}
"""The scores that fill a benchmark's columns in Tables 1-3."""


# --- one benchmark ---


def _mme(rows: Sequence[Row]) -> list[Score]:
    """Per category: accuracy of single questions plus accuracy of pictures with both right, in points (0-200)."""
    categories = {
        category: [100 * fmean(r.score for r in pair) + 100 * all(r.score == 1 for r in pair) for pair in pairs]
        for category, found in _by(rows, lambda row: row.part).items()
        for pairs in [_by(found, lambda row: row.unit).values()]
    }
    scores = []
    for name, inside in (("cognition", False), ("perception", True)):
        chosen = {c: points for c, points in categories.items() if (c in PERCEPTION) is inside}
        if chosen:
            value, low, high = _stratified(chosen, sum)
            asked = [row for row in rows if row.part in chosen]
            chance = 75.0 * len(chosen)  # 50 for single questions, 25 for pairs
            scores.append(_score(name, value, low, high, asked, chance, 200.0 * len(chosen)))
    for category, points in categories.items():
        value, low, high = _stratified({category: points}, sum)
        asked = [row for row in rows if row.part == category]
        scores.append(_score(category, value, low, high, asked, 75.0, 200.0))
    return scores


def _vinoground(rows: Sequence[Row]) -> list[Score]:
    """A pair counts if both its clips (text), both its captions (video), or all four questions (group) are right."""
    scores = []
    for name in ("text", "video", "group"):
        asked = [row for row in rows if name in (row.part, "group")]
        pairs = list(_by(asked, lambda row: row.unit).values())
        right = [all(row.score == 1 for row in pair) for pair in pairs]
        chance = 100 * fmean(math.prod(1 / (row.options or 2) for row in pair) for pair in pairs)
        scores.append(_score(name, *_wilson(right), asked, chance))
    return scores


def _average(parts: Mapping[str, Sequence[Row]]) -> Score:
    """Every part weighs the same, however many questions it has."""
    value, low, high = _stratified({k: [100 * row.score for row in rows] for k, rows in parts.items()}, fmean)
    chances = [_chance(rows) for rows in parts.values()]
    known = [c for c in chances if c is not None]
    rows = [row for found in parts.values() for row in found]
    return _score("average", value, low, high, rows, fmean(known) if len(known) == len(chances) else None)


def _accuracy(name: str, rows: Sequence[Row]) -> Score:
    values = [row.score for row in rows]
    if set(values) <= {0.0, 1.0}:
        interval = _wilson([value == 1 for value in values])
    else:  # VizWiz gives parts of a point
        interval = _stratified({name: [100 * value for value in values]}, fmean)
    return _score(name, *interval, rows, _chance(rows))


def _f1(rows: Sequence[Row]) -> Score:
    """F1 of "yes" as the stock task counts it: neither "yes" nor "no" is no miss. Bootstrap of the kinds of outcome."""
    pairs = [(row.answer.lower().strip(), row.truth) for row in rows]
    hits, misses = pairs.count(("yes", "yes")), pairs.count(("yes", "no")) + pairs.count(("no", "yes"))
    kinds = np.array([hits, misses, len(rows) - hits - misses])

    def f1(hits: Any, misses: Any) -> Any:
        return 100 * 2 * hits / np.maximum(2 * hits + misses, 1)

    draws = np.random.default_rng(0).multinomial(len(rows), kinds / len(rows), size=_REPS)
    value = float(f1(kinds[0], kinds[1]))
    return _score("f1", value, *_bounds(value, f1(draws[:, 0], draws[:, 1])), rows, None)


# --- statistics ---


def _score(
    name: str,
    value: float,
    low: float,
    high: float,
    rows: Sequence[Row],
    chance: float | None,
    maximum: float = 100.0,
) -> Score:
    unparsable = sum(not row.understood for row in rows)
    return Score(name, float(value), float(low), float(high), len(rows), unparsable, chance, maximum)


def _chance(rows: Sequence[Row]) -> float | None:
    if any(row.options is None for row in rows):
        return None
    return 100 * fmean(1 / (row.options or 1) for row in rows)


def _wilson(right: Sequence[bool]) -> tuple[float, float, float]:
    """Percentage of right ones with Wilson's interval."""
    n, share = len(right), fmean(right)
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return 100 * share, 100 * min(share, max(0.0, centre - half)), 100 * max(share, min(1.0, centre + half))


def _stratified(
    groups: Mapping[str, Sequence[float]], combine: Callable[[Iterable[float]], float]
) -> tuple[float, float, float]:
    """Mean of each group, combined, with a bootstrap in which each group draws from its own questions."""
    value = combine(fmean(points) for points in groups.values())
    rng = np.random.default_rng(0)
    means = []
    for _, points in sorted(groups.items()):
        distinct, counts = np.unique(points, return_counts=True)
        n = int(counts.sum())
        means.append(rng.multinomial(n, counts / n, size=_REPS) @ distinct / n)
    total = np.sum(means, axis=0)
    return value, *_bounds(value, total if combine is sum else total / len(groups))


def _bounds(value: float, draws: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return min(float(low), value), max(float(high), value)


def _by(rows: Iterable[Row], key: Callable[[Row], str]) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[key(row)].append(row)
    return dict(groups)


# --- against lmms-eval's own numbers ---


def stock_scores(benchmark: str, results: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """What lmms-eval's aggregation says, on our scale and under our names; `results`: its own `results`."""

    def get(task: str, metric: str) -> Any:
        return results[task][f"{metric},none"]

    simple = {
        "vizwiz": ("vizwiz_vqa_val", "exact_match", 100, "accuracy"),
        "videomme": ("videomme", "videomme_perception_score", 1, "accuracy"),
        "longvideobench": ("longvideobench_val_v", "lvb_acc", 100, "accuracy"),
        "egoschema": ("egoschema_subset", "score", 100, "accuracy"),
        "perceptiontest": ("perceptiontest_val_mc", "accuracy", 100, "accuracy"),
        "nextqa": ("nextqa_mc_test", "exact_match", 100, "accuracy"),
        "mlvu": ("mlvu_dev", "mlvu_percetion_score", 1, "average"),
    }
    if benchmark in simple:
        task, metric, factor, name = simple[benchmark]
        return {name: factor * get(task, metric)}
    if benchmark == "scienceqa":
        tasks = {"images": "scienceqa_img", "all": "scienceqa"}
        return {name: 100 * get(task, "exact_match") for name, task in tasks.items()}
    if benchmark == "pope":
        metrics = {"accuracy": "pope_accuracy", "f1": "pope_f1_score"}
        return {name: 100 * get("pope", metric) for name, metric in metrics.items()}
    if benchmark == "mme":
        return _present(get, "mme", {"perception": "mme_perception_score", "cognition": "mme_cognition_score"}, 1)
    if benchmark == "seedbench":
        return _present(get, "seedbench", {"image": "seed_image", "video": "seed_video", "all": "seed_all"}, 100)
    if benchmark == "vinoground":
        return dict(zip(("text", "video", "group"), get("vinoground", "vinoground_score"), strict=True))
    assert benchmark == "mvbench", benchmark
    tasks = {task.removeprefix("mvbench_"): task for task in results if task.startswith("mvbench_")}
    return {name: get(task, "mvbench_accuracy") for name, task in tasks.items()} | {
        "average": get("regate_mvbench", "mvbench_accuracy")
    }


def _present(get: Callable[[str, str], Any], task: str, metrics: Mapping[str, str], factor: float) -> dict[str, float]:
    """Metrics that no question of this data set feeds are not there."""
    found = {}
    for name, metric in metrics.items():
        try:
            found[name] = factor * get(task, metric)
        except KeyError:
            continue
    return found


def disagreements(benchmark: str, scores: Sequence[Score], results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Scores that lmms-eval's aggregation puts elsewhere; such a run counted something in another way."""
    ours = {score.name: score.value for score in scores}
    if benchmark == "mlvu":
        ours["average"] *= (len(scores) - 1) / MLVU_TYPES
    found = []
    for name, theirs in stock_scores(benchmark, results).items():
        if name not in ours or not math.isclose(ours[name], theirs, abs_tol=_TOLERANCE):
            found.append(f"{benchmark}: {name} is {ours.get(name)} by our count and {theirs} by lmms-eval's")
    return found
