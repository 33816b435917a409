"""Efficiency: accuracy on validation against tokens and against train time, seeds as bands, and the arrow from the
baseline's peak to where ReGATE first reaches it - or the plain words that it does not.

What is plotted is `repro.figures.curve_data`, the data of the committed figure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt
import pandas as pd

from app.views.theme import Layers, Look
from repro import compare
from repro.compare import Group
from repro.figures import AXES, LOOKS
from repro.record import Record
from repro.render import WORDS, Cell, signed_percent
from repro.rows import measured_group

DASHES = {"stock": [7, 3], "dense": [2, 2], "regate": [1, 0], "random": [6, 2, 1, 2], "loss_only": [4, 1, 1, 1]}
SHAPES = {"stock": "circle", "dense": "diamond", "regate": "square", "random": "triangle-up",
          "loss_only": "triangle-down"}  # fmt: skip
UNITS = {
    "tokens": [(1e9, "billions"), (1e6, "millions"), (1e3, "thousands"), (1.0, "")],
    "train_seconds": [(3600.0, "hours"), (60.0, "minutes"), (1.0, "seconds")],
}
HEIGHT = 340


def groups(records: Sequence[Record]) -> dict[str, Group]:
    """Groups of Table 4's runs that have a curve, by the name that a menu shows."""
    found = compare.groups(record for record in records if compare.in_table(record, "4") and record.curve)
    found.sort(key=lambda group: (group.origin != "committed", group.scale != "small"))  # a real teacher first
    return {f"{group.student} · {group.scale} · {group.origin}": group for group in found}


def unit(data: pd.DataFrame, axis: str) -> tuple[float, str]:
    """What an axis counts in: the size of its unit, and its title."""
    top = float(data[axis].max())
    size, name = next((one for one in UNITS[axis] if top >= 2 * one[0]), UNITS[axis][-1])
    return size, AXES[axis] + (f" ({name})" if name else "")


def label(method: str) -> str:
    """How a method is called in a legend."""
    return LOOKS[method].label if method in LOOKS else method


def chart(data: pd.DataFrame, look: Look, axis: str) -> Layers:
    """One panel: evaluations as faint dots, running means as lines, lowest to highest seed as bands."""
    size, title = unit(data[data.kind == "run"], axis)
    data = data[data[axis].notna()].assign(x=data[axis] / size)
    methods = list(dict.fromkeys(data[data.kind == "mean"].method))
    data = data.assign(name=data.method.map(label), line=data.method.map(label))
    names = [label(method) for method in methods]
    colours = [look.methods.get(method, look.ink) for method in methods]
    means, runs = data[(data.kind == "mean") & data.smooth.notna()], data[data.kind == "run"]
    x = alt.X("x:Q", title=title, axis=alt.Axis(tickCount=6, grid=False), scale=alt.Scale(nice=False, padding=8))
    y = alt.Y("smooth:Q", title="accuracy on validation (%)", scale=alt.Scale(zero=False, padding=10),
              axis=alt.Axis(tickCount=6))  # fmt: skip
    legend = alt.Legend(symbolOpacity=1, symbolSize=80, symbolStrokeWidth=0)
    colour = alt.Color("name:N", scale=alt.Scale(domain=names, range=colours), legend=legend)
    shape = alt.Shape("name:N", scale=alt.Scale(domain=names, range=[_shape(m) for m in methods]), legend=legend)
    dashes = alt.Scale(domain=names, range=[_dash(m) for m in methods])
    dash = alt.StrokeDash("line:N", scale=dashes, legend=None)  # a field of its own: the legend shows marks
    tips = [alt.Tooltip("name:N", title="method"), alt.Tooltip("step:Q"),
            alt.Tooltip("x:Q", format=".4~g", title=title),
            alt.Tooltip("smooth:Q", format=".2f", title="running mean (%)"),
            alt.Tooltip("low:Q", format=".2f", title="lowest seed"),
            alt.Tooltip("high:Q", format=".2f", title="highest seed")]  # fmt: skip
    layers: list[Any] = [
        alt.Chart(runs).mark_circle(size=14, opacity=0.28).encode(
            x=x, y=alt.Y("raw:Q"), color=colour,
            tooltip=[alt.Tooltip("name:N", title="method"), "seed:Q", "step:Q",
                     alt.Tooltip("raw:Q", format=".2f", title="accuracy (%)")]),
        alt.Chart(means[means.high > means.low]).mark_area(opacity=0.16, line=False).encode(
            x=x, y=alt.Y("low:Q"), y2="high:Q", color=colour),
        alt.Chart(means).mark_line(strokeWidth=2.2).encode(x=x, y=y, color=colour, strokeDash=dash),
        alt.Chart(means).mark_point(size=46, filled=True, opacity=1).encode(
            x=x, y=y, color=colour, shape=shape, tooltip=tips),
        *arrow(data, look, axis, size),
    ]  # fmt: skip
    return alt.layer(*layers).properties(height=HEIGHT, width="container")


def _dash(method: str) -> list[int]:
    return DASHES.get(method, [3, 2])


def _shape(method: str) -> str:
    return SHAPES.get(method, "cross")


def arrow(data: pd.DataFrame, look: Look, axis: str, size: float) -> list[alt.Chart]:
    """The iso-accuracy arrow with its words; a dotted level and plain words where the peak is not reached."""
    start, end = data[data.kind == "arrow from"], data[data.kind == "arrow to"]
    if start.empty:
        return []
    level = float(start.smooth.iloc[0])
    words = alt.Chart(pd.DataFrame({"text": [verdict(data, axis)]}))
    text = words.mark_text(
        align="right", baseline="bottom", dx=-6, dy=-26, fontSize=12.5, lineBreak="\n", lineHeight=16, color=look.ink,
        fontWeight=500,
    ).encode(x=alt.value("width"), y=alt.value("height"), text="text:N")  # fmt: skip
    if end.empty:
        line = alt.Chart(pd.DataFrame({"smooth": [level]})).mark_rule(
            color=look.ink, strokeDash=[1, 3], strokeWidth=1.4
        )
        return [line.encode(y="smooth:Q"), text]
    ends = pd.DataFrame({"x": [float(start.x.iloc[0])], "to": [float(end.x.iloc[0])], "smooth": [level]})
    base = alt.Chart(ends)
    return [
        base.mark_rule(color=look.ink, strokeWidth=1.8).encode(x="x:Q", x2="to:Q", y="smooth:Q"),
        base.mark_point(shape="triangle-left", filled=True, size=110, color=look.ink, opacity=1).encode(
            x="to:Q", y="smooth:Q"
        ),
        base.mark_tick(color=look.ink, thickness=1.8, height=12).encode(x="x:Q", y="smooth:Q"),
        text,
    ]


def verdict(data: pd.DataFrame, axis: str) -> str:
    """Whether and where ReGATE reaches the baseline's peak, in two lines."""
    start = data[data.kind == "arrow from"]
    reached, pairs = start.note.iloc[0].removesuffix(" seeds").split(" of ")
    if reached == "0":
        return f"ReGATE does not reach the baseline's\npeak (dotted) in any of {pairs} seeds"
    share = float(data.loc[data.kind == "arrow share", axis].iloc[0])
    what = "tokens" if axis == "tokens" else "train time"
    some = "" if reached == pairs else f", in {reached} of {pairs} seeds"
    return f"ReGATE reaches the baseline's peak\nat {share:.0f} % of its {what}{some}"


def timed(data: pd.DataFrame) -> bool:
    """Whether train time was measured for every method."""
    return bool(data[data.kind == "mean"].train_seconds.notna().any())


# --- in numbers and words ---


def summary(group: Group, benchmark: str = "mvbench") -> list[tuple[str, str, str]]:
    """(label, value, help) of ReGATE against the baseline."""
    cells = {cell.column: cell for cell in measured_group(group, benchmark) if cell.method == "regate"}
    found = []
    for key, name in (("tokens.paper", "Tokens"), ("train_seconds", "Train time"), ("flops", "FLOPs")):
        cell = cells.get(f"{key}.change")
        if cell and cell.value is not None:
            found.append((name, minus(signed_percent(cell.value)), _interval(cell, "%")))
    gap = cells.get("accuracy.difference")
    if gap and gap.value is not None:
        found.append(("Accuracy", minus(f"{gap.value:+.1f} points"), gap.text))
    return found


def minus(text: str) -> str:
    """Hyphens before digits as minus signs."""
    return text.replace("-", "−")


def _interval(cell: Cell, what: str) -> str:
    if cell.low is None or cell.high is None:
        return "one seed: no interval"
    return f"95 % interval over {cell.over}: {cell.low:+.1f} to {cell.high:+.1f} {what}"


def words(group: Group, benchmark: str = "mvbench") -> list[str]:
    """What the comparison says, in the sentences of the tables."""
    return [cell.text for cell in measured_group(group, benchmark) if cell.column == WORDS]
