"""Attention over frames as pictures: rows of frames with heat on one scale, what each frame gets, grounding scores.

Pure functions: arrays and records in; figures, tables and text out. No torch, no Streamlit.

Legend: Q answer tokens, T slices of time, R x C cells of a slice, F frames of H x W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import matplotlib
import numpy as np
import pandas as pd
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from app.views.theme import Look

HEAT = "inferno"
DIFFERENCE = {"light": "PuOr", "dark": "berlin_r"}
"""Perceptually uniform, and diverging around the page's paper; all read the same to colour-blind eyes. Orange and blue
are the sides of standard fine-tuning and of ReGATE, as in all figures."""
VEIL = 0.68  # how much of a frame the heat covers
MOST = 8  # frames in a row
FRAME_PIXELS = 192  # height of a frame in the picture
GAP = 8  # pixels between frames
LONGEST = 16  # characters of a model's name at the end of a colour bar
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
    for model, weights in _with_difference(shown.rows).items():
        for (t, r, c), weight in np.ndenumerate(weights):
            frames = " ".join(str(f + 1) for f in shown.slices[t])
            rows.append((model, t + 1, frames, r + 1, c + 1, float(weight)))
    return pd.DataFrame(rows, columns=["model", "slice", "frames", "row", "column", "weight"])


# --- the picture ---


def picture(shown: Shown, look: Look, smooth: bool = True) -> Figure:
    """RGB frames, the same with each model's heat on one colour scale, and the difference of the last two.

    Args:
        smooth: heat runs from cell to cell, as in the paper's Figure 4; False: each cell is filled evenly.
    """
    chosen = frames_in_row(len(shown.frames))
    frames = [enlarge(shown.frames[f]) for f in chosen]
    height, width = frames[0].shape[:2]
    top = max(max(float(w.max()) for w in shown.rows.values()), 1e-9)
    strips: list[tuple[str, str, np.ndarray]] = [("RGB frames", "", _strip(frames, look))]
    scale = Normalize(0, top)
    for model, weights in shown.rows.items():
        heat = [spread(weights[slice_of(shown.slices, f)], (height, width), shown.extent, smooth) for f in chosen]
        over = [veiled(frame, matplotlib.colormaps[HEAT](scale(h))) for frame, h in zip(frames, heat, strict=True)]
        strips.append((model, f"{on_frames(weights):.0%} of the token's attention is on frames", _strip(over, look)))
    bars: list[_Bar] = [_Bar(scale, HEAT, "attention on one visual token", ("Low", "High"))]
    if len(shown.rows) == 2:
        name, change = list(_with_difference(shown.rows).items())[-1]
        most = max(float(np.abs(change).max()), 1e-9)
        around = Normalize(-most, most)
        heat = [spread(change[slice_of(shown.slices, f)], (height, width), shown.extent, smooth) for f in chosen]
        over = [
            veiled(frame, matplotlib.colormaps[DIFFERENCE[look.name]](around(h)))
            for frame, h in zip(frames, heat, strict=True)
        ]
        strips.append((name, "", _strip(over, look)))
        first, second = shown.rows
        short = max(len(first), len(second)) <= LONGEST
        ends = (f"{first} more", f"{second} more") if short else ("the first more", "the second more")
        bars.append(_Bar(around, DIFFERENCE[look.name], "difference, in points", ends))
    return _compose(strips, bars, shown, chosen, (height, width), look)


@dataclass(frozen=True)
class _Bar:
    """A colour bar: its scale, its map, what it measures, the words at its ends."""

    scale: Normalize
    colours: str
    label: str
    ends: tuple[str, str]


def _compose(
    strips: list[tuple[str, str, np.ndarray]],
    bars: Sequence[_Bar],
    shown: Shown,
    chosen: list[int],
    size: tuple[int, int],
    look: Look,
) -> Figure:
    wide, high = 11.0, 11.0 * strips[0][2].shape[0] / strips[0][2].shape[1]  # inches of a strip
    head, foot, between = 0.34, 0.74, 0.06
    total = len(strips) * (high + head) + foot
    figure = Figure(figsize=(wide, total), dpi=100, facecolor=look.paper)
    y = total
    for name, note, image in strips:
        y -= head
        figure.text(0.0, (y + between) / total, name, color=look.ink, fontsize=12.5, fontweight="bold", va="bottom")
        if note:
            figure.text(1.0, (y + between) / total, note, color=look.muted, fontsize=10.5, va="bottom", ha="right")
        y -= high
        axes = figure.add_axes((0, y / total, 1, high / total))
        axes.imshow(image, interpolation="antialiased", aspect="auto")
        axes.set_axis_off()
        if shown.box is not None:
            _outline(axes, shown, chosen, size)
    for bar, (left, span) in zip(bars, ((0.0, 0.3), (0.62, 0.38)), strict=False):
        _bar(figure, (left, 0.36 / total, span, 0.13 / total), bar, look)
    return figure


def _bar(figure: Figure, where: tuple[float, float, float, float], of: _Bar, look: Look) -> None:
    """A colour bar with words and numbers at its ends."""
    axes = figure.add_axes(where)
    bar = figure.colorbar(ScalarMappable(of.scale, of.colours), cax=axes, orientation="horizontal")
    bar.outline.set_edgecolor(look.line)
    low, high = float(of.scale.vmin or 0), float(of.scale.vmax or 0)
    if low < 0:
        ticks, words = [low, 0, high], [of.ends[0], "same", of.ends[1]]
        values = [signed(100 * low), "", signed(100 * high)]
    else:
        ticks, words, values = [low, high], list(of.ends), ["0", f"{high:.1%}"]
    bar.set_ticks(ticks, labels=[f"{w}\n{v}" for w, v in zip(words, values, strict=True)], fontsize=9.5)
    bar.ax.tick_params(length=0, pad=4, labelcolor=look.muted)
    for text, align in ((bar.ax.get_xticklabels()[0], "left"), (bar.ax.get_xticklabels()[-1], "right")):
        text.set(ha=align)
    bar.ax.text(0.5, -2.35, of.label, transform=bar.ax.transAxes, color=look.muted, fontsize=9.5, ha="center", va="top")


def _outline(axes: Any, shown: Shown, chosen: list[int], size: tuple[int, int]) -> None:
    """The true box in every frame: white on black, so that it shows on all colours."""
    height, width = size
    sy, sx = height / shown.frames.shape[1], width / shown.frames.shape[2]
    for at, f in enumerate(chosen):
        x0, y0, x1, y1 = shown.box[f]  # type: ignore[index]
        if np.isnan(x0):
            continue
        corner = (at * (width + GAP) + x0 * sx - 0.5, y0 * sy - 0.5)
        for colour, line in (("black", 2.6), ("white", 1.2)):
            box = Rectangle(corner, (x1 - x0) * sx, (y1 - y0) * sy, fill=False, edgecolor=colour, linewidth=line)
            axes.add_patch(box)


def _strip(frames: Sequence[np.ndarray], look: Look) -> np.ndarray:
    """Frames [H, W, 3] beside each other, with the page's colour between them."""
    paper = np.array([int(look.paper[i : i + 2], 16) for i in (1, 3, 5)], np.uint8)
    gap = np.broadcast_to(paper, (frames[0].shape[0], GAP, 3))
    parts = [part for frame in frames for part in (frame, gap)][:-1]
    return np.concatenate(parts, 1)


def frames_in_row(count: int) -> list[int]:
    """The frames that are drawn: all, or `MOST` of them evenly spread."""
    return list(range(count)) if count <= MOST else [round(i * (count - 1) / (MOST - 1)) for i in range(MOST)]


def slice_of(slices: Sequence[Sequence[int]], frame: int) -> int:
    """The (first) slice that stands for a frame."""
    return next(t for t, members in enumerate(slices) if frame in members)


def enlarge(frame: np.ndarray) -> np.ndarray:
    """A frame at `FRAME_PIXELS` height: small ones by whole pixels, so that they stay crisp."""
    height, width = frame.shape[:2]
    size = (max(1, round(width * FRAME_PIXELS / height)), FRAME_PIXELS)
    how = Image.Resampling.NEAREST if FRAME_PIXELS % height == 0 else Image.Resampling.LANCZOS
    return np.asarray(Image.fromarray(np.ascontiguousarray(frame)).resize(size, how))


def veiled(frame: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Heat colours [H, W, 4] in [0, 1] over a frame uint8 [H, W, 3], made grey: its own colours would change them."""
    grey = (frame @ np.array([0.299, 0.587, 0.114]))[..., None]
    return np.clip((1 - VEIL) * grey + VEIL * 255 * colours[..., :3], 0, 255).astype(np.uint8)


def spread(
    cells: np.ndarray, size: tuple[int, int], extent: tuple[float, float, float, float], smooth: bool
) -> np.ndarray:
    """Cells [R, C] on a frame of `size` pixels: float [H, W], bilinear between the cells' centres, or flat in each."""
    sides = []
    for axis, (count, pixels) in enumerate(((cells.shape[1], size[1]), (cells.shape[0], size[0]))):
        low, high = extent[axis], extent[axis + 2]
        place = ((np.arange(pixels) + 0.5) / pixels - low) / (
            high - low
        ) * count - 0.5  # in cells, from the first centre
        place = place if smooth else np.round(place).clip(0, count - 1)
        sides.append(np.stack([np.interp(place, np.arange(count), one) for one in np.eye(count)], 1))  # [pixels, count]
    return sides[1] @ cells @ sides[0].T


def _with_difference(rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
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
        text = token.strip() or repr(token)[1:-1]
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
