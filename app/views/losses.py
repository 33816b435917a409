"""Token losses: the chart of one answer, its table, its numbers in words, and many answers in order of how visual."""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt
import numpy as np
import pandas as pd

from app.views.gate import Answer, Gated, lambda_ranges
from app.views.theme import Layers, Look
from app.views.tokens import shown

MARKS = ["student's running loss", "combined score"]


def table(answer: Answer, gated: Gated, ratio: float, combine: str = "convex") -> pd.DataFrame:
    """One line a token: what is known of it, what the gate does, and which lambdas keep it. Losses in nats."""
    frame = pd.DataFrame(
        {
            "position": np.arange(1, len(answer.tokens) + 1),
            "token": list(answer.tokens),
            "reference": answer.reference.astype(float),
            "ema": answer.ema.astype(float),
            "score": np.where(np.isinf(gated.score), np.nan, gated.score).astype(float),
            "kept": gated.kept,
            "kept_at_lambda": lambda_ranges(answer, ratio, combine),
        }
    )
    if answer.tags:
        frame.insert(2, "tag", list(answer.tags))
    return frame


def summary(answer: Answer, gated: Gated) -> list[tuple[str, str, str]]:
    """(label, value, help) of what is worth a glance."""
    n, kept = int(answer.candidate.sum()), gated.kept & answer.candidate
    found = [("Tokens kept", f"{kept.sum()} of {n}", "Of the tokens that the gate may elide; markers are always kept.")]
    for name, chosen in (("kept", kept), ("elided", answer.candidate & ~kept)):
        value = f"{answer.reference[chosen].mean():.2f} nat" if chosen.any() else "–"
        found.append((f"Teacher's loss, {name}", value, f"Mean reference loss of the {name} tokens."))
    visual = np.array([tag == "visual" for tag in answer.tags]) & answer.candidate if answer.tags else np.zeros(0, bool)
    if visual.any():
        share = f"{(gated.kept & visual).sum()} of {visual.sum()}"
        found.append(("Visual tokens kept", share, "Tokens that only the video can tell."))
    else:
        hard = (answer.reference > 0.5) & answer.candidate
        share = f"{(gated.kept & hard).sum()} of {hard.sum()}"
        found.append(("Hard tokens kept", share, "Tokens whose reference loss is above 0.5 nat."))
    return found


def bars(answer: Answer, gated: Gated, look: Look) -> Layers:
    """Bars of the teacher's loss (kept filled, elided hollow), marks of the student's loss and of the score."""
    data = pd.DataFrame(
        {
            "i": np.arange(len(answer.tokens)),
            "token": [shown(token) for token in answer.tokens],
            "teacher": answer.reference.astype(float),
            "student": answer.ema.astype(float),
            "score": np.where(np.isfinite(gated.score), gated.score, np.nan).astype(float),
            "decision": np.where(gated.kept, "kept", "elided"),
        }
    )
    x = alt.X(
        "i:O", title=None,
        axis=alt.Axis(labelExpr=f"[{','.join(map(_quoted, data.token))}][datum.value]", labelAngle=-55, labelLimit=90,
                      grid=False, ticks=False, labelOverlap=False if len(data) <= 70 else "greedy"),
    )  # fmt: skip
    tips = [alt.Tooltip("token:N"), alt.Tooltip("decision:N"), *(
        alt.Tooltip(f"{name}:Q", format=".2f", title=f"{name} (nat)") for name in ("teacher", "student", "score")
    )]  # fmt: skip
    scale = alt.Scale(domain=["kept", "elided"], range=[look.kept, look.elided])
    legend = alt.Legend(symbolType="square", symbolOpacity=1)
    layers = [
        alt.Chart(data)
        .mark_bar(strokeWidth=1.2, cornerRadiusTopLeft=2, cornerRadiusTopRight=2)
        .encode(
            x=x,
            y=alt.Y("teacher:Q", title="loss (nat)", axis=alt.Axis(tickCount=5)),
            stroke=alt.Stroke("decision:N", scale=scale, legend=None),
            fill=alt.Fill("decision:N", scale=scale, legend=legend),
            fillOpacity=alt.condition("datum.decision == 'kept'", alt.value(0.85), alt.value(0.12)),
            tooltip=tips,
        )
    ]
    if answer.observed:
        marks = data.melt(["i", "token", "decision", "teacher"], ["student", "score"], "what", "nat").dropna()
        marks["what"] = marks.what.map(dict(zip(("student", "score"), MARKS, strict=True)))
        layers.append(
            alt.Chart(marks)
            .mark_point(size=44, strokeWidth=1.7, color=look.ink, opacity=1)
            .encode(
                x=x, y="nat:Q",
                shape=alt.Shape("what:N", scale=alt.Scale(domain=MARKS, range=["circle", "diamond"]),
                                legend=alt.Legend(symbolStrokeColor=look.ink)),
                tooltip=["token:N", "what:N", alt.Tooltip("nat:Q", format=".2f"), "decision:N"],
            )
        )  # fmt: skip
    return alt.layer(*layers).properties(height=290, width="container")


def _quoted(text: str) -> str:
    """A text as a string of Vega's expressions."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def ranking(answers: Sequence[Answer]) -> pd.DataFrame:
    """Answers by their mean reference loss, the most visual first: what text alone can guess the least."""
    lines = [
        {
            "index": i,
            "sample": answer.name,
            "mean_reference": float(answer.reference[answer.candidate].mean()),
            "above_half_nat": float((answer.reference[answer.candidate] > 0.5).mean()),
            "tokens": int(answer.candidate.sum()),
            "question": answer.question,
            "answer": "".join(np.array(answer.tokens)[answer.candidate]).strip(),
        }
        for i, answer in enumerate(answers)
    ]
    columns = ["index", "sample", "mean_reference", "above_half_nat", "tokens", "question", "answer"]
    frame = pd.DataFrame(lines, columns=columns)
    return frame.sort_values("mean_reference", ascending=False, kind="stable", ignore_index=True)


def ranking_chart(frame: pd.DataFrame, look: Look) -> alt.Chart:
    """Mean reference loss of each sample, in order."""
    return (
        alt.Chart(frame.assign(rank=np.arange(1, len(frame) + 1)))
        .mark_bar(color=look.kept)
        .encode(
            x=alt.X("rank:Q", title="samples, the most visual first"),
            y=alt.Y("mean_reference:Q", title="mean reference loss (nat)"),
            tooltip=["sample", "mean_reference", "answer"],
        )
        .properties(height=220, width="container")
    )
