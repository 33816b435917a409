"""Gating over training: kept or elided step by step, the teacher against the student, and what is kept of each kind."""

from __future__ import annotations

import altair as alt
import numpy as np
import pandas as pd

from app.artefacts import Traced, Visit
from app.views.gate import Answer, Gated, gate, lambda_ranges
from app.views.theme import Layers, Look, blend
from app.views.tokens import shown

DECISIONS = ("kept", "elided", "kept, dense step")
SHOWN = {
    "decision": "Decision",
    "reference": "Teacher's loss",
    "ema": "Student's running loss",
    "score": "Combined score",
    "loss": "Loss in this step",
}
ROW = 15  # pixels a token
TAGS = ("visual", "wording", "template")


def history(traced: Traced, sample_id: int) -> pd.DataFrame:
    """One line a visit and token: what the gate saw and decided; `until` is the next visit, or the run's end."""
    visits = traced.visits[sample_id]
    ends = [visit.step for visit in visits[1:]] + [max(traced.steps, visits[-1].step + 1)]
    parts = []
    for visit, end in zip(visits, ends, strict=True):
        answer = traced.answer(sample_id, visit)
        n = len(answer.tokens)
        parts.append(
            pd.DataFrame(
                {
                    "step": visit.step, "until": end, "ratio": visit.ratio, "position": np.arange(1, n + 1),
                    "token": [shown(token) for token in answer.tokens], "tag": list(answer.tags or [""] * n),
                    "kept": visit.kept,
                    "decision": [_decision(visit, kept) for kept in visit.kept],
                    "reference": visit.reference.astype(float), "ema": visit.ema.astype(float),
                    "score": np.where(np.isfinite(visit.score), visit.score, np.nan).astype(float),
                    "loss": visit.loss.astype(float),
                }
            )
        )  # fmt: skip
    return pd.concat(parts, ignore_index=True)


def _decision(visit: Visit, kept: bool) -> str:
    return DECISIONS[2] if visit.dense else DECISIONS[0] if kept else DECISIONS[1]


def decision_colours(look: Look) -> dict[str, str]:
    """From kept to elided they fade: they differ in grey as well. Bare paper is before the first visit."""
    dense = blend(look.paper, look.kept, 0.45)
    return {"kept": look.kept, "elided": blend(look.paper, look.elided, 0.22), "kept, dense step": dense}


def strip(data: pd.DataFrame, look: Look, now: int | None = None, by: str = "decision") -> Layers:
    """Training steps from left to right, the answer's tokens from top to bottom. A block begins at the step in which
    the sample was in the batch and lasts until its next visit: between them nothing about it changes."""
    tokens = data.drop_duplicates("position")
    labels = ",".join("'" + token.replace("\\", "\\\\").replace("'", "\\'") + "'" for token in tokens.token)
    y = alt.Y("position:O", title=None, axis=alt.Axis(
        labelExpr=f"[{labels}][datum.value - 1]", labelLimit=130, grid=False, ticks=False, domain=False,
        labelColor=look.ink, labelOverlap=False))  # fmt: skip
    top = int(data.until.max())
    x = alt.X("step:Q", title="training step", scale=alt.Scale(domain=[0, top], nice=False),
              axis=alt.Axis(tickCount=9, grid=False, format="d"))  # fmt: skip
    if by == "decision":
        colours = decision_colours(look)
        seen = [d for d in DECISIONS if d in set(data.decision)]
        colour = alt.Color(
            "decision:N", scale=alt.Scale(domain=seen, range=[colours[d] for d in seen]),
            legend=alt.Legend(symbolStrokeColor=look.elided, symbolStrokeWidth=1, symbolType="square", symbolOpacity=1),
        )  # fmt: skip
    else:
        colour = alt.Color(
            f"{by}:Q", scale=alt.Scale(domain=[0, 6], clamp=True, range=[look.low, look.high]),
            legend=alt.Legend(title=f"{SHOWN[by]} (nat)", gradientLength=160, titleColor=look.ink, titlePadding=6),
        )  # fmt: skip
    tips = [alt.Tooltip("token:N"), alt.Tooltip("tag:N"), alt.Tooltip("step:Q"), alt.Tooltip("decision:N"), *(
        alt.Tooltip(f"{name}:Q", format=".2f", title=SHOWN[name] + " (nat)")
        for name in ("reference", "ema", "score", "loss")
    )]  # fmt: skip
    blocks = (
        alt.Chart(data)
        .mark_rect(stroke=look.elided, strokeWidth=0.6)
        .encode(x=x, x2="until:Q", y=y, color=colour, tooltip=tips)
    )
    layers: list[alt.Chart] = [blocks]
    if now is not None:
        here = alt.Chart(pd.DataFrame({"step": [now]}))
        layers.append(here.mark_rule(color=look.ink, strokeWidth=2.5).encode(x="step:Q"))
    return alt.layer(*layers).properties(height=ROW * len(tokens), width="container")


def points(answer: Answer, gated: Gated, ratio: float, combine: str = "convex") -> pd.DataFrame:
    """One line a candidate: both losses, the score, the decision, and the lambdas that keep it."""
    seen = ~np.isnan(answer.ema)
    frame = pd.DataFrame(
        {
            "token": [shown(token) for token in answer.tokens],
            "tag": list(answer.tags or [""] * len(answer.tokens)),
            "teacher": answer.reference.astype(float),
            "student": np.where(seen, answer.ema, answer.reference).astype(float),
            "observed": np.where(seen, "observed", "never observed: the teacher stands in"),
            "score": np.where(np.isfinite(gated.score), gated.score, np.nan).astype(float),
            "decision": np.where(gated.kept, "kept", "elided"),
            "kept_at_lambda": lambda_ranges(answer, ratio, combine),
        }
    )
    return frame[answer.candidate].reset_index(drop=True)


def boundary(data: pd.DataFrame, lambda_: float, top: float, combine: str = "convex") -> pd.DataFrame:
    """The line of equal score between the lowest kept and the highest elided token (Eq. 3): (teacher, student)."""
    kept, elided = data[data.decision == "kept"].score, data[data.decision == "elided"].score
    if kept.empty or elided.empty or kept.isna().any() or elided.isna().any():
        return pd.DataFrame({"teacher": [], "student": []})
    level, weight = (kept.min() + elided.max()) / 2, 1 - lambda_ if combine == "convex" else 1.0
    if weight == 0:
        return pd.DataFrame({"teacher": [level / lambda_] * 2, "student": [0.0, top]})
    teacher = np.linspace(0, top, 200)
    student = (level - lambda_ * teacher) / weight
    inside = (student >= 0) & (student <= top)
    return pd.DataFrame({"teacher": teacher[inside], "student": student[inside]})


def scatter(data: pd.DataFrame, look: Look, lambda_: float, combine: str = "convex", named: int = 8) -> Layers:
    """The teacher's loss against the student's, and the gate's line between kept and elided. Square-root axes: most
    losses are small. The tokens with the highest scores are named; a hover names the others."""
    top = float(max(4.0, np.ceil(data[["teacher", "student"]].max().max())))
    scale = alt.Scale(type="sqrt", domain=[0, top], nice=False)
    ticks = [v for v in (0, 0.1, 0.5, 1, 2, 4, 8, 16) if v <= top]
    axis = alt.Axis(values=ticks, format="~g")
    colour = alt.Scale(domain=["kept", "elided"], range=[look.kept, look.elided])
    shape = alt.Scale(domain=["kept", "elided"], range=["circle", "cross"])
    legend = alt.Legend(symbolOpacity=1, symbolSize=90)
    dots = (
        alt.Chart(data)
        .mark_point(filled=True, size=80, opacity=0.9)
        .encode(
            x=alt.X("teacher:Q", title="teacher's loss (nat)", scale=scale, axis=axis),
            y=alt.Y("student:Q", title="student's running loss (nat)", scale=scale, axis=axis),
            color=alt.Color("decision:N", scale=colour, legend=legend),
            shape=alt.Shape("decision:N", scale=shape, legend=legend),
            fillOpacity=alt.condition("datum.observed == 'observed'", alt.value(0.9), alt.value(0.15)),
            stroke=alt.Stroke("decision:N", scale=colour, legend=None),
            tooltip=[
                alt.Tooltip("token:N"), alt.Tooltip("decision:N"), alt.Tooltip("tag:N"),
                alt.Tooltip("teacher:Q", format=".2f"), alt.Tooltip("student:Q", format=".2f"),
                alt.Tooltip("observed:N", title="student"), alt.Tooltip("score:Q", format=".2f"),
                alt.Tooltip("kept_at_lambda:N", title="kept at λ"),
            ],
        )
    )  # fmt: skip
    line = (
        alt.Chart(boundary(data, lambda_, top, combine))
        .mark_line(color=look.ink, strokeDash=[5, 4], strokeWidth=1.5, clip=True)
        .encode(x="teacher:Q", y="student:Q")
    )
    words = (
        alt.Chart(_apart(data.nlargest(named, "score"), top))
        .mark_text(align="left", dx=8, dy=-7, fontSize=12, color=look.ink)
        .encode(x="teacher:Q", y="student:Q", text="token:N")
    )
    return alt.layer(line, dots, words).properties(height=400, width="container")


def _apart(data: pd.DataFrame, top: float) -> pd.DataFrame:
    """Of names that would print over each other only the one of the higher score stays."""
    rows: list[int] = []
    place = np.sqrt(data[["teacher", "student"]].to_numpy() / top)
    for i in range(len(data)):
        if all(abs(place[i, 0] - place[j, 0]) > 0.14 or abs(place[i, 1] - place[j, 1]) > 0.05 for j in rows):
            rows.append(i)
    return data.iloc[rows]


def kept_by_tag(traced: Traced, bins: int = 8) -> pd.DataFrame:
    """Share kept of each kind of token, over the sparse visits of all traced samples, in `bins` stretches of training.

    Columns: step (the middle of the stretch), tag, share in [0, 1], tokens.
    """
    lines = []
    for sample_id, visits in traced.visits.items():
        for visit in visits:
            if visit.dense:
                continue
            answer = traced.answer(sample_id, visit)
            tags = np.array(answer.tags or ["all"] * len(visit.kept))
            for tag in np.unique(tags[answer.candidate]):
                here = (tags == tag) & answer.candidate
                lines.append((visit.step, tag, int(visit.kept[here].sum()), int(here.sum())))
    frame = pd.DataFrame(lines, columns=["step", "tag", "kept", "tokens"])
    if frame.empty:
        return pd.DataFrame(columns=["step", "tag", "share", "tokens"])
    width = max(1.0, traced.steps / bins)
    frame["step"] = (frame.step // width + 0.5) * width
    grouped = frame.groupby(["step", "tag"], as_index=False)[["kept", "tokens"]].sum()
    grouped["share"] = grouped.kept / grouped.tokens
    return grouped[["step", "tag", "share", "tokens"]]


def tag_chart(data: pd.DataFrame, look: Look, steps: int) -> alt.Chart:
    """Share kept of each kind of token over training."""
    tags = [tag for tag in (*TAGS, "all") if tag in set(data.tag)]
    colours = [look.tags.get(tag, look.kept) for tag in tags]
    return (
        alt.Chart(data.assign(line=data.tag))  # dashes by a field of their own: the legend shows marks
        .mark_line(point=alt.OverlayMarkDef(filled=True, size=60), strokeWidth=2)
        .encode(
            x=alt.X("step:Q", title="training step", scale=alt.Scale(domain=[0, steps], nice=False),
                    axis=alt.Axis(tickCount=9, grid=False)),
            y=alt.Y("share:Q", title="share kept", scale=alt.Scale(domain=[0, 1]),
                    axis=alt.Axis(format="%", tickCount=5)),
            color=alt.Color("tag:N", scale=alt.Scale(domain=tags, range=colours)),
            shape=alt.Shape("tag:N", scale=alt.Scale(domain=tags)),
            strokeDash=alt.StrokeDash("line:N", scale=alt.Scale(domain=tags), legend=None),
            tooltip=[alt.Tooltip("tag:N"), alt.Tooltip("step:Q", format=".0f"),
                     alt.Tooltip("share:Q", format=".0%"), alt.Tooltip("tokens:Q", title="tokens seen")],
        )
        .properties(height=240, width="container")
    )  # fmt: skip


def agreement(answer: Answer, visit: Visit, lambda_: float, ratio: float, combine: str) -> str:
    """Whether the sliders stand where the run's own gate stood, in words."""
    if visit.dense:
        return "This was a dense step: the run kept every token. The chart shows what the gate would keep."
    same = np.array_equal(gate(answer, lambda_, ratio, combine).kept, visit.kept)
    return "Exactly what the run decided." if same else "Not what the run decided: λ or the ratio differ from its own."
