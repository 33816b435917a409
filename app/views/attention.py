"""Attention of a word over frames: what is looked at, what each frame gets, grounding scores, words.

Pure functions: arrays and records in; figures, tables and text out. No torch, no Streamlit.

Legend: Q answer tokens, T slices of time, R x C cells of a slice, F frames of H x W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from app.views.theme import Look
from app.views.tokens import shown as visible

METHODS = {"stock": "Standard FT", "regate": "ReGATE"}


@dataclass(frozen=True)
class Shown:
    """Attention of one answer token on one set of frames.

    Attributes:
        frames: uint8 [F, H, W, 3].
        rows: for each model, by the name that is shown, float [T, R, C] in shares of all that the token's row gives.
        slices, extent: `frames` and `extent` of the grid (`regate.visual_grid.Grid`).
        box: float [F, 4] in pixels, the true box of what the token names, NaN where there is none; None: not known.
    """

    frames: np.ndarray
    rows: Mapping[str, np.ndarray]
    slices: Sequence[Sequence[int]]
    extent: tuple[float, float, float, float]
    box: np.ndarray | None = None


@dataclass(frozen=True)
class Chosen:
    """Which weights are looked at: None means the mean over all."""

    token: int
    layer: int | None = None
    head: int | None = None
    without_sinks: bool = False


def look_at(weights: np.ndarray, sinks: np.ndarray | None, chosen: Chosen) -> np.ndarray:
    """From float [layers, heads, Q, T, R, C] the chosen [T, R, C]. Sinks count as nothing in the mean."""
    one = weights[:, :, chosen.token]  # [layers, heads, T, R, C]
    if chosen.without_sinks and sinks is not None:
        one = np.where(sinks, np.float32(0), one)
    one = one.mean(0) if chosen.layer is None else one[chosen.layer]
    return one.mean(0) if chosen.head is None else one[chosen.head]


def on_frames(row: np.ndarray) -> float:
    """Share of the token's attention that lies on frames."""
    return float(row.sum())


def per_frame(shown: Shown) -> pd.DataFrame:
    """Frame importance: `frame` (1-based), `model`, `share` of the token's attention. A slice's is split evenly."""
    rows = []
    for model, weights in shown.rows.items():
        shares = np.zeros(len(shown.frames))
        for mass, members in zip(weights.sum((1, 2)), shown.slices, strict=True):
            shares[list(members)] += mass / len(members)
        rows += [(f + 1, model, float(share)) for f, share in enumerate(shares)]
    return pd.DataFrame(rows, columns=["frame", "model", "share"])


def table(shown: Shown) -> pd.DataFrame:
    """Every number of the picture: model, slice, frames (1-based), row, column, weight; and the difference."""
    rows = []
    for model, weights in with_difference(shown.rows).items():
        for (t, r, c), weight in np.ndenumerate(weights):
            frames = " ".join(str(f + 1) for f in shown.slices[t])
            rows.append((model, t + 1, frames, r + 1, c + 1, float(weight)))
    return pd.DataFrame(rows, columns=["model", "slice", "frames", "row", "column", "weight"])


def with_difference(rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The rows and, where there are two, how the second differs from the first."""
    found = dict(rows)
    if len(rows) == 2:
        (first, a), (second, b) = rows.items()
        found[f"{second} minus {first}"] = b - a
    return found


# --- charts ---


def importance_chart(frame: pd.DataFrame, look: Look) -> Any:
    """Bars of `per_frame`: each frame's share of the token's attention, model beside model."""
    models = list(frame["model"].unique())
    colours = [look.methods["stock"], look.methods["regate"]][-len(models) :]
    return (
        alt.Chart(frame, height=190, width="container")
        .mark_bar(cornerRadiusTopLeft=2, cornerRadiusTopRight=2)
        .encode(
            x=alt.X("frame:O", title="frame", axis=alt.Axis(labelAngle=0)),
            xOffset=alt.XOffset("model:N", sort=models),
            y=alt.Y("share:Q", title="share of attention", axis=alt.Axis(format="%", tickCount=4)),
            color=alt.Color("model:N", sort=models, scale=alt.Scale(domain=models, range=colours)),
            tooltip=["model", "frame", alt.Tooltip("share", format=".2%")],
        )
    )


MEASURES = {
    "pointing": "How often the strongest visual token is on the object",
    "mass": "Share of the attention on frames that is in the true box",
}


@dataclass(frozen=True)
class Grounding:
    """One entry of a grounding record, in words.

    Attributes:
        table: what, low, estimate, high, of the measure (fractions).
        difference: estimate, low, high of ReGATE minus standard.
    """

    measure: str
    sinks: str
    layer: int | None
    clips: int
    table: pd.DataFrame
    difference: Mapping[str, float]

    @property
    def verdict(self) -> str:
        """What the interval of the difference allows to say."""
        low, high, points = (100 * self.difference[name] for name in ("low", "high", "estimate"))
        within = f"95 % interval {signed(low)} to {signed(high)}"
        if low <= 0 <= high:
            return f"no difference seen ({signed(points)} points, {within})"
        who = "ReGATE" if points > 0 else "standard fine-tuning"
        return f"{who} scores higher by {abs(points):.1f} points ({within})"


def signed(points: float) -> str:
    """A difference with its sign and one digit."""
    text = f"{points:+.1f}"
    return "0.0" if float(text) == 0 else text.replace("-", "−")


def grounding(record: Mapping[str, Any], measure: str, sinks: str, layer: int | None) -> Grounding | None:
    """An entry of a grounding record (`repro.grounding.compare`), or None where it has none for these choices."""
    for entry in record["scores"]:
        if (entry["measure"], entry["sinks"], entry["layer"]) == (measure, sinks, layer):
            rows = [(METHODS["stock"], *_three(entry["standard"])), (METHODS["regate"], *_three(entry["regate"]))]
            rows += [("even attention", *[entry["even"]] * 3), ("best cell", *[entry["best"]] * 3)]
            found = pd.DataFrame(rows, columns=["what", "low", "estimate", "high"])
            return Grounding(measure, sinks, layer, entry["clips"], found, entry["difference"])
    return None


def over_seeds(found: Mapping[int, Grounding]) -> str:
    """The differences of several training runs, in words: an interval over clips knows nothing of them."""
    listed = ", ".join(signed(100 * one.difference["estimate"]) for one in found.values())
    return f"Seeds {', '.join(map(str, found))}: {listed} points."


def _three(value: Mapping[str, float]) -> tuple[float, float, float]:
    return value["low"], value["estimate"], value["high"]


def grounding_chart(found: Grounding, look: Look) -> Any:
    """Both models with their intervals, between even attention and the best cell."""
    models, limits = found.table[:2], found.table[2:]
    order = list(models["what"])
    scale = alt.Scale(domain=[0, float(found.table["high"].max()) * 1.06], nice=False)
    x = alt.X("estimate:Q", scale=scale, title=None, axis=alt.Axis(format="%", tickCount=5))
    y = alt.Y("what:N", sort=order, title=None, axis=alt.Axis(labelLimit=200, ticks=False, domain=False))
    tip = [alt.Tooltip("what"), *(alt.Tooltip(name, format=".1%") for name in ("estimate", "low", "high"))]
    colours = [look.methods["stock"], look.methods["regate"]]
    colour = alt.Color("what:N", scale=alt.Scale(domain=order, range=colours), legend=None)
    base = alt.Chart(models).encode(y=y, color=colour)
    rule = base.mark_rule(strokeWidth=3).encode(x=alt.X("low:Q", scale=scale, title=None), x2="high:Q")
    dots = base.mark_point(filled=True, size=110, opacity=1).encode(
        x=x, shape=alt.Shape("what:N", legend=None), tooltip=tip
    )
    words = base.mark_text(dy=-12, fontWeight=600).encode(x=x, text=alt.Text("estimate:Q", format=".1%"))
    line = alt.Chart(limits).encode(x=x, tooltip=tip[:2])
    lines = line.mark_rule(strokeDash=[4, 4], color=look.muted)
    names = line.mark_text(baseline="bottom", dy=-5, color=look.muted, fontSize=11).encode(y=alt.value(0), text="what")
    return alt.layer(lines, names, rule, dots, words).properties(height=130, width="container")


# --- words ---


def token_labels(tokens: Sequence[str], named: Sequence[int | None]) -> list[str]:
    """A label for each token, all different, as Markdown: those that name an object are bold; repeated ones carry a
    subscript."""
    seen: dict[str, int] = {}
    labels = []
    for token, owner in zip(tokens, named, strict=True):
        text = visible(token)
        seen[text] = seen.get(text, 0) + 1
        label = f"**{plain(text)}**" if owner is not None else plain(text)
        labels.append(label + (str(seen[text]).translate(_BELOW) if seen[text] > 1 else ""))
    return labels


def plain(text: str) -> str:
    """Text that Markdown shows as it is."""
    return "".join(f"\\{c}" if c in r"\`*_{}[]()#+-.!|:$~<>" else c for c in text)


_BELOW = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")


def first_named(named: Sequence[int | None]) -> int:
    """The token that a page opens on: the last of the first word group that names an object, or the first token."""
    for i, owner in enumerate(named):
        if owner is not None and (i + 1 == len(named) or named[i + 1] != owner):
            return i
    return 0
