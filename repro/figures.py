"""Figures from records: the paper's efficiency curves, and those of the variants. Free of torch.

    python -m repro.figures           # results/figures from committed records; runs/figures from those and your own
    python -m repro.figures --check   # exit 1 and name the figures that are not what the committed records give

Beside each PNG and SVG lies a CSV of what is plotted. Pictures differ from machine to machine by a few pixels, so a
figure is checked by its CSV, whose sha256 both pictures carry. Units: tokens (the paper's count), seconds, percent.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from repro import compare, timing
from repro.compare import METRIC, Group
from repro.curve import running_mean
from repro.drawing import LOOKS, OTHER, STYLE, Drawing, Look, draw, stale
from repro.record import Record, load
from repro.tables import arguments, report
from repro.variant_figures import variant_drawings

NOT_ALONE = "not alone"
AXES = {"tokens": "supervised tokens", "train_seconds": "train time"}
"""What accuracy is drawn against: column of the data -> label."""


# --- data ---


def curve_data(group: Group, metric: str = METRIC) -> pd.DataFrame:
    """What the curve shows, by `kind`: evaluations of each run, their mean over seeds with the lowest and highest seed,
    and the arrow from the baseline's peak to where ReGATE first reaches it."""
    lines: list[dict[str, Any]] = []
    for method, runs in sorted(group.methods.items(), key=lambda item: _order(item[0])):
        of_runs = [line for seed, run in sorted(runs.items()) for line in _run_lines(method, seed, run, metric)]
        lines += of_runs + _mean_lines(method, of_runs, len(runs))
    lines += _arrow_lines(group, metric)
    columns = ["kind", "method", "seed", "step", "tokens", "train_seconds", "raw", "smooth", "low", "high", "note"]
    return pd.DataFrame(lines, columns=columns).astype({"seed": "Int64", "step": "Int64"})


def _order(method: str) -> tuple[int, str]:
    return (list(LOOKS).index(method) if method in LOOKS else len(LOOKS), method)


def _run_lines(method: str, seed: int, run: Record, metric: str) -> list[dict[str, Any]]:
    smooth = dict(running_mean(run.curve, metric))
    return [
        {
            "kind": "run", "method": method, "seed": seed, "step": point.step, "tokens": point.tokens["paper"],
            "train_seconds": point.train_seconds, "raw": 100 * value,
            "smooth": 100 * smooth[point.step] if point.step in smooth else None,
            "note": "" if compare.known_time(run) else NOT_ALONE,
        }
        for point in run.curve
        if (value := point.metrics.get(metric)) is not None
    ]  # fmt: skip


def _mean_lines(method: str, lines: list[dict[str, Any]], seeds: int) -> list[dict[str, Any]]:
    """Mean over seeds at the steps that every seed evaluated."""
    found = []
    for step in sorted({line["step"] for line in lines}):
        here = [line for line in lines if line["step"] == step]
        if len(here) != seeds:
            continue
        smooth = [line["smooth"] for line in here if line["smooth"] is not None]
        whole = len(smooth) == seeds
        found.append({
            "kind": "mean", "method": method, "step": step, "tokens": _mean(here, "tokens"),
            "train_seconds": _mean(here, "train_seconds"), "smooth": float(np.mean(smooth)) if whole else None,
            "low": min(smooth) if whole else None, "high": max(smooth) if whole else None,
        })  # fmt: skip
    return found


def _mean(lines: Sequence[dict[str, Any]], key: str) -> float | None:
    values = [line[key] for line in lines]
    return None if any(value is None for value in values) else float(np.mean(values))


def _arrow_lines(group: Group, metric: str) -> list[dict[str, Any]]:
    """Two ends (or one, where the peak is not reached): means over the seeds that reach it."""
    if "regate" not in group.methods or not group.baseline:
        return []
    pairs = compare.reached(group.baseline, group.methods["regate"], metric)
    there = [pair for pair in pairs if pair.at is not None]
    note = f"{len(there)} of {len(pairs)} seeds"
    ends = [("arrow from", group.baseline_method, [(pair.target, pair.peak) for pair in there or pairs])]
    if there:
        ends.append(("arrow to", "regate", [(pair.target, pair.at) for pair in there if pair.at]))
    lines = []
    for kind, method, marks in ends if pairs else []:
        at = [{"tokens": point.tokens["paper"], "train_seconds": point.train_seconds} for _, point in marks]
        level = 100 * float(np.mean([target for target, _ in marks]))
        where = {axis: _mean(at, axis) for axis in AXES}
        lines.append({"kind": kind, "method": method, "smooth": level, "note": note, **where})
    shares = {axis: compare.mean_share(pairs, axis) for axis in AXES}
    if there:
        lines.append({"kind": "arrow share", "method": "regate", "note": f"percent, {note}", **shares})
    return lines


# --- drawing ---


def efficiency(data: pd.DataFrame, title: str, subtitle: str = "") -> Figure:
    """The efficiency curve, two panels: against tokens, and against train time where that was measured."""
    means = data[data.kind == "mean"]
    axes_shown = [axis for axis in AXES if means[axis].notna().any()]
    width, height = 3.45 * len(axes_shown), 2.7  # inches: two panels are as wide as a page's text
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(1, len(axes_shown), figsize=(width, height), sharey=True, squeeze=False)
        for panel, axis in zip(panels[0], axes_shown, strict=True):
            _panel(panel, data, axis)
        panels[0][0].set_ylabel("accuracy on validation (%)")
        left = 0.52 / width
        figure.subplots_adjust(
            left=left, right=1 - 0.1 / width, bottom=0.42 / height, top=1 - 0.55 / height, wspace=0.1
        )
        head = figure.text(left, 1 - 0.09 / height, title, ha="left", va="top", fontsize=9.5, fontweight="bold")
        after = head.get_window_extent(figure.canvas.get_renderer()).x1 / figure.bbox.width  # type: ignore[attr-defined]
        figure.text(after + 0.08 / width, 1 - 0.1 / height, subtitle, ha="left", va="top", fontsize=8, color="#55606b")
        figure.legend(*panels[0][0].get_legend_handles_labels(), loc="upper left", frameon=False, borderaxespad=0,
                      bbox_to_anchor=(left - 0.02 / width, 1 - 0.29 / height), ncols=5, borderpad=0,
                      handlelength=2.6, columnspacing=1.6, handletextpad=0.6)  # fmt: skip
    return figure


def _unit(data: pd.DataFrame, axis: str) -> tuple[float, str]:
    """What an axis counts in: the size of its unit, and its label."""
    top = float(data[axis].max())
    sizes = [(1e9, "billions"), (1e6, "millions"), (1e3, "thousands"), (1.0, "")]
    if axis == "train_seconds":
        sizes = [(3600.0, "hours"), (60.0, "minutes"), (1.0, "seconds")]
    size, name = next((one for one in sizes if top >= 2 * one[0]), sizes[-1])
    return size, AXES[axis] + (f" ({name})" if name else "")


def _panel(panel: Axes, data: pd.DataFrame, axis: str) -> None:
    size, label = _unit(data[data.kind == "run"], axis)
    for method in dict.fromkeys(data.method):
        look = LOOKS.get(method, Look(method, OTHER.colour, OTHER.dashes, OTHER.marker))
        mine = data[(data.method == method) & data[axis].notna()]
        runs, means = mine[mine.kind == "run"], mine[(mine.kind == "mean") & mine.smooth.notna()]
        panel.plot(
            runs[axis] / size, runs.raw, ls="", marker=".", ms=2.8, mew=0, color=look.colour, alpha=0.25, zorder=1
        )
        if (means.high > means.low).any():
            panel.fill_between(means[axis] / size, means.low, means.high, color=look.colour, alpha=0.16, lw=0, zorder=2)
        panel.plot(means[axis] / size, means.smooth, color=look.colour, ls=look.dashes, lw=1.5, marker=look.marker,
                   ms=3.6, mec="white", mew=0.6, markevery=max(1, len(means) // 9), label=look.label,
                   zorder=look.front)  # fmt: skip
    panel.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    panel.margins(x=0.03, y=0.07)
    timed_beside_others = axis == "train_seconds" and (data.note == NOT_ALONE).any()
    panel.set_xlabel(label + (", timed beside other work" if timed_beside_others else ""))
    _arrow(panel, data, axis, size)


def _arrow(panel: Axes, data: pd.DataFrame, axis: str, size: float) -> None:
    """From the baseline's peak to where ReGATE first reaches it; the words stand where rising curves leave room."""
    start, end = data[data.kind == "arrow from"], data[data.kind == "arrow to"]
    if start.empty or start[axis].isna().any():
        return
    x, level, ink = float(start[axis].iloc[0]) / size, float(start.smooth.iloc[0]), "#222a31"
    reached, pairs = start.note.iloc[0].removesuffix(" seeds").split(" of ")
    if end.empty:
        panel.axhline(level, color=ink, lw=0.9, ls=(0, (1, 2)), zorder=6)
        words = "ReGATE does not reach\nthe baseline's peak"
    else:
        to = float(end[axis].iloc[0]) / size
        share = float(data.loc[data.kind == "arrow share", axis].iloc[0])
        panel.annotate("", (to, level), (x, level), zorder=6,
                       arrowprops={"arrowstyle": "-|>,head_width=0.22,head_length=0.45", "color": ink, "lw": 1.1,
                                   "shrinkA": 0, "shrinkB": 0})  # fmt: skip
        panel.plot([x], [level], marker="|", color=ink, ms=7, mew=1.1, zorder=6)
        what = "tokens" if axis == "tokens" else "time"
        some = "" if reached == pairs else f"\nin {reached} of {pairs} seeds"
        words = f"ReGATE reaches the baseline's\npeak at {share:.0f} % of its {what}{some}"
    panel.text(0.985, 0.05, words, transform=panel.transAxes, ha="right", va="bottom", fontsize=8, linespacing=1.35,
               bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5}, zorder=7)  # fmt: skip


# --- files ---


def drawings(records: Sequence[Record], costs: timing.Calibrations = MappingProxyType({})) -> list[Drawing]:
    """Every figure that records have data for."""
    return efficiency_drawings(timing.timed_alone(records, costs)) + variant_drawings(
        timing.timed_alike(records, costs)
    )


def efficiency_drawings(records: Sequence[Record]) -> list[Drawing]:
    """One efficiency curve for each student, scale and origin of Table 4's runs that have one."""
    found = []
    for group in compare.groups(record for record in records if compare.in_table(record, "4")):
        data = curve_data(group)
        if (data.kind == "mean").any() and data.smooth.notna().any():
            seeds = max(len(runs) for runs in group.methods.values())
            name = f"efficiency-{group.student}-{group.scale}".lower()
            seen = "one seed" if seeds == 1 else f"mean and range of {seeds} seeds"
            subtitle = f"{group.scale}, {seen}; lines are running means of three evaluations"
            name = name if group.origin == "committed" else f"{name}-own"
            found.append(Drawing(name, group.student, subtitle, data, efficiency))
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    options = arguments("Figures of the paper from records.", "figures").parse_args(argv)
    out = options.out or options.results / "figures"
    committed, problems = load([options.results / "records"])
    costs, unread = timing.load([options.results / "calibration"])
    problems += unread
    kept = drawings(committed, costs)
    if options.check:
        return report([*problems, *stale(out, kept)])
    own, damaged = load([options.runs])
    measured, unread = timing.load([options.runs / "calibration"])
    damaged += unread
    paths = draw(out, kept) if kept else []
    paths += draw(options.runs / "figures", drawings([*committed, *own], {**costs, **measured})) if own else []
    print("\n".join(f"Written: {path}" for path in paths) or "No curves yet: `make repro-table4` makes the first.")
    report([*problems, *damaged])
    return 0


if __name__ == "__main__":
    sys.exit(main())
