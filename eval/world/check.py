"""Whether the world can tell gates apart: its numbers from spans, token offsets and a text-only teacher's losses.

No torch and no teacher here: callers pass arrays. `report` compares the numbers with what `embedded-world.md` asks for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from eval.world.markup import TAGS, Span

HARD = 0.5  # nat; a token above is one that a gate should not drop


@dataclass(frozen=True)
class Row:
    """One number, what is required of it ("" = only told), and whether it holds."""

    name: str
    value: float
    required: str
    ok: bool


def token_tags(spans: Sequence[Span], offsets: Sequence[tuple[int, int]]) -> list[str]:
    """The tag of each token: that of the span which shares the most characters with it.

    offsets: (first, last + 1) characters of each token in the answer, as fast tokenizers give them. A token outside of
    the answer raises a ValueError: then the offsets are of another text.
    """
    tags = []
    for start, end in offsets:
        shared = [(min(end, b) - max(start, a), tag) for a, b, tag in spans if min(end, b) > max(start, a)]
        if not shared:
            raise ValueError(f"token at characters {start}..{end} lies outside of the answer's spans {list(spans)}")
        tags.append(max(shared, key=lambda s: s[0])[1])
    return tags


def kept(losses: np.ndarray, ratio: float = 0.5) -> np.ndarray:
    """Tokens that a gate keeps, bool [n]: the ceil(ratio * n) with the highest losses; ties go to the first."""
    order = np.argsort(-np.asarray(losses), kind="stable")
    mask = np.zeros(len(order), bool)
    mask[order[: math.ceil(ratio * len(order))]] = True
    return mask


def hard_dropped(losses: Sequence[np.ndarray], ratio: float = 0.5) -> float:
    """Share of all tokens above `HARD` that the gate drops, answer by answer."""
    hard = sum(int((one > HARD).sum()) for one in losses)
    dropped = sum(int(((one > HARD) & ~kept(one, ratio)).sum()) for one in losses)
    return dropped / hard if hard else 0.0


def auc(positive: np.ndarray, negative: np.ndarray) -> float:
    """Probability that a random positive lies above a random negative; ties count half. NaN without one of them."""
    if not len(positive) or not len(negative):
        return math.nan
    ranked = np.sort(negative)
    below, upto = np.searchsorted(ranked, positive, "left"), np.searchsorted(ranked, positive, "right")
    return float((below + upto).mean() / 2 / len(negative))


def chance_interval(options: Sequence[int], confidence: float = 0.99) -> tuple[float, float, float]:
    """(mean, low, high) accuracy of a guesser on questions with so many options each: exact, as a Poisson binomial."""
    mass = np.ones(1)
    for k in options:
        mass = np.convolve(mass, (1 - 1 / k, 1 / k))
    cumulative = np.cumsum(mass)
    tail = (1 - confidence) / 2
    low, high = np.searchsorted(cumulative, tail), np.searchsorted(cumulative, 1 - tail)
    n = len(options)
    return float(np.mean([1 / k for k in options])), float(low / n), float(high / n)


def accuracy(scores: Sequence[np.ndarray], correct: Sequence[int]) -> float:
    """Share of questions whose right option has the highest score; a tie between m options counts 1/m."""
    points = []
    for score, right in zip(scores, correct, strict=True):
        best = np.flatnonzero(score == np.max(score))
        points.append(float(right in best) / len(best))
    return float(np.mean(points))


def report(
    losses: Sequence[np.ndarray],
    tags: Sequence[Sequence[str]],
    kinds: Sequence[str],
    twin_scores: Sequence[np.ndarray] = (),
    twin_correct: Sequence[int] = (),
    ratio: float = 0.5,
) -> list[Row]:
    """The world's numbers, each with its requirement.

    losses: per answer, the text-only teacher's loss of each answer token (float [n_tokens], nat). tags: per answer, a
    tag per token (`token_tags`). kinds: per answer, the turn's kind; lengths, tags and the gate are judged on the
    `long` ones. twin_scores: per question of the twin, the teacher's score of each option without the video;
    twin_correct: right indices.
    """
    if not len(losses) == len(tags) == len(kinds):
        raise ValueError(
            f"one entry per answer expected, got {len(losses)} losses, {len(tags)} tags, {len(kinds)} kinds"
        )
    for i, (one, names) in enumerate(zip(losses, tags, strict=True)):
        if len(one) != len(names):
            raise ValueError(f"answer {i} has {len(one)} losses but {len(names)} tags")
    is_long = [kind == "long" for kind in kinds]
    if not any(is_long):
        raise ValueError("no answer of kind 'long' given; the requirements are about those")
    long_losses = [np.asarray(one, np.float64) for one, keep in zip(losses, is_long, strict=True) if keep]
    long_tags = np.concatenate([list(names) for names, keep in zip(tags, is_long, strict=True) if keep])
    flat = np.concatenate(long_losses)
    lengths = np.array([len(one) for one in long_losses])
    by_tag = {tag: flat[long_tags == tag] for tag in TAGS}
    shares = {tag: len(values) / len(flat) for tag, values in by_tag.items()}

    rows = [
        _row("short answers, share of turns", 1 - float(np.mean(is_long)), 0.10, 0.20),
        _row("long answers of 30 to 60 tokens, share", float(((lengths >= 30) & (lengths <= 60)).mean()), 0.95),
        _row("tokens of a long answer, median", float(np.median(lengths)), 30, 60),
        _row("template tokens, share", shares["template"], 0.30, 0.50),
        _row("visual tokens, share", shares["visual"], 0.25),
        _row("wording tokens, share", shares["wording"], 0.15),
        _row(f"tokens above {HARD} nat, share", float((flat > HARD).mean()), 0.60),
        _row(f"of those, dropped by a gate at p = {ratio:g}", hard_dropped(long_losses, ratio), 0.15),
    ]
    for tag, values in by_tag.items():
        rows.append(_row(f"mean loss of {tag} tokens, nat", float(values.mean()) if len(values) else math.nan))
    rows.append(_row("AUC of loss, visual against template", auc(by_tag["visual"], by_tag["template"])))
    rows.append(_row("AUC of loss, visual against wording", auc(by_tag["visual"], by_tag["wording"])))
    if len(twin_scores):
        mean, low, high = chance_interval([len(score) for score in twin_scores])
        rows.append(_row("chance on the twin", mean))
        rows.append(
            _row(
                "text-only accuracy on the twin (99 % interval of chance)",
                accuracy(twin_scores, twin_correct),
                low,
                high,
            )
        )
    return rows


def _row(name: str, value: float, low: float | None = None, high: float | None = None) -> Row:
    limits = {">=": low, "<=": high}
    bounds = [f"{sign} {limit:.3g}" for sign, limit in limits.items() if limit is not None]
    ok = not math.isnan(value) or not bounds
    ok = ok and (low is None or value >= low) and (high is None or value <= high)
    return Row(name, value, " and ".join(bounds), ok)


def table(rows: Sequence[Row]) -> str:
    """The report as aligned text, one line a row; failures are marked."""
    wide = max(len(row.name) for row in rows)
    mark = {True: "ok", False: "MISSED"}
    return "\n".join(
        f"{row.name:<{wide}}  {row.value:>8.3f}  {row.required:<22}{mark[row.ok] if row.required else ''}".rstrip()
        for row in rows
    )


def exit_code(rows: Sequence[Row]) -> int:
    """0 if every requirement holds, else 1."""
    return int(not all(row.ok for row in rows))
