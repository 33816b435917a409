"""Figures of the variants: accuracy over budgets and over lambda, what each gate keeps over training. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from repro import budgets, compare
from repro.compare import Group
from repro.drawing import LOOKS, OTHER, STYLE, Drawing
from repro.record import Record
from repro.rows import LABELS
from repro.stats import seed_interval
from repro.variants import VARIANTS

TAG_LOOKS = {"visual": ("#0072B2", "s"), "template": ("#7A7F85", "D"), "wording": ("#D55E00", "o")}
LAMBDAS = {
    0.5: "regate",
    **{v.gate["lambda_"]: m for m, v in VARIANTS.items() if v.table == "5" and "lambda_" in v.gate},
}
"""lambda -> method."""


def variant_drawings(records: Sequence[Record]) -> list[Drawing]:
    """The figures that these records have data for."""
    found = []
    for group in compare.groups(records):
        seeds = max(len(runs) for runs in group.methods.values())
        seen = "one seed" if seeds == 1 else f"up to {seeds} seeds"
        end = "" if group.origin == "committed" else "-own"
        for name, data_of, plot, what in (
            ("budgets", budget_data, budget_figure, "each point a run with its whole schedule; bars: 95 % over seeds"),
            ("lambda", lambda_data, lambda_figure, "at the end of the run; bars: 95 % over seeds"),
            ("tokens-by-kind", kept_data, kept_figure, "share of targets supervised in sparse steps, mean over seeds"),
        ):
            data = data_of(group)
            if not data.empty:
                file = f"{name}-{group.student}-{group.scale}{end}".lower()
                found.append(Drawing(file, group.student, f"{group.scale}, {seen}; {what}", data, plot))
    return found


def _over_seeds(values: Sequence[float]) -> dict[str, float | None]:
    over = seed_interval(list(values))
    return {
        "accuracy": 100 * float(np.mean(list(values))),
        "low": 100 * over.low if over else None,
        "high": 100 * over.high if over else None,
    }


# --- budgets ---


def budget_data(group: Group) -> pd.DataFrame:
    """Accuracy on validation and mean costs at each budget, dense and ReGATE; the baseline at its end."""
    lines: list[dict[str, Any]] = []
    wanted = {of: [m for m in budgets.methods_of(of) if m in group.methods] for of in ("dense", "regate")}
    if all(len(methods) < 2 for methods in wanted.values()):
        return pd.DataFrame()
    for of, methods in ({"stock": ["stock"]} | wanted).items():
        for method in methods:
            readings = compare.at_end(group.methods.get(method, {}))
            values = compare.validated(readings)
            if not values:
                continue
            costs = {"tokens": compare.mean(readings, "tokens.paper"), "flops": compare.mean(readings, "flops")}
            timed = all(compare.known_time(reading.record) for reading in readings.values())
            costs["train_seconds"] = compare.mean(readings, "train_seconds") if timed else None
            lines.append({"curve": of, "method": method, **costs, **_over_seeds(list(values.values()))})
    return pd.DataFrame(lines)


def budget_figure(data: pd.DataFrame, title: str, subtitle: str) -> Figure:
    """A panel for each cost: supervised tokens, FLOPs, and train time where all runs were timed alike."""
    axes = {
        "tokens": (1e3, "supervised tokens (thousands)"), "flops": (1e12, "FLOPs of decoder and head (10¹²)"),
        "train_seconds": (60.0, "train time (minutes)"),
    }  # fmt: skip
    axes = {axis: how for axis, how in axes.items() if data[axis].notna().all()}
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(1, len(axes), figsize=(3.45 * len(axes), 2.9), sharey=True, squeeze=False)
        panels = panels[0]
        for panel, (axis, (size, label)) in zip(panels, axes.items(), strict=True):
            for of in dict.fromkeys(data.curve):
                look, mine = LOOKS[of], data[(data.curve == of) & data[axis].notna()].sort_values(axis)
                bars = None if mine.low.isna().any() else [mine.accuracy - mine.low, mine.high - mine.accuracy]
                panel.errorbar(mine[axis] / size, mine.accuracy, yerr=bars, color=look.colour, ls=look.dashes, lw=1.4,
                               marker=look.marker, ms=4, capsize=2, label=look.label, zorder=look.front)  # fmt: skip
                if of == "stock" and len(mine):
                    panel.axhline(float(mine.accuracy.iloc[0]), color=look.colour, lw=0.8, ls=(0, (1, 2)))
            panel.set_xlabel(label)
        panels[0].set_ylabel("accuracy on validation (%)")
        panels[-1].legend(frameon=False, loc="lower right")
        _head(figure, title, subtitle)
    return figure


# --- lambda ---


def lambda_data(group: Group) -> pd.DataFrame:
    """Accuracy on validation and on the twin for each lambda."""
    known = {value: method for value, method in sorted(LAMBDAS.items()) if method in group.methods}
    if len(known) < 3:
        return pd.DataFrame()
    lines = []
    for value, method in known.items():
        readings = compare.at_end(group.methods[method])
        score = compare.accuracy(readings, "mvbench")
        scores = {"validation": compare.validated(readings), "MVBench": score.by_seed if score else {}}
        lines += [
            {"lambda": value, "metric": metric, "seeds": len(by_seed), **_over_seeds(list(by_seed.values()))}
            for metric, by_seed in scores.items()
            if by_seed
        ]
    return pd.DataFrame(lines)


def lambda_figure(data: pd.DataFrame, title: str, subtitle: str) -> Figure:
    """A panel for each accuracy."""
    metrics = list(dict.fromkeys(data.metric))
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(1, len(metrics), figsize=(3.45 * len(metrics), 2.7), squeeze=False)
        look = LOOKS["regate"]
        for panel, metric in zip(panels[0], metrics, strict=True):
            mine = data[data.metric == metric]
            bars = [(mine.accuracy - mine.low).fillna(0), (mine.high - mine.accuracy).fillna(0)]
            panel.errorbar(mine["lambda"], mine.accuracy, yerr=bars, color=look.colour, marker=look.marker, ms=4,
                           lw=1.4, capsize=2)  # fmt: skip
            panel.set_xticks(mine["lambda"])
            panel.set_xlabel("λ: weight of the reference loss")
            panel.set_ylabel("accuracy on validation (%)" if metric == "validation" else f"{metric}'s twin (%)")
        _head(figure, title, subtitle)
    return figure


# --- tokens by kind ---

SHOWN = ("regate", "lambda0", "lambda1", "random", "loss_only", "batch")
"""Methods whose choice is drawn, where they were run."""


def kept_data(group: Group) -> pd.DataFrame:
    """Mean over seeds of the share of each tag's targets that sparse steps supervise, window by window."""
    lines = []
    for method in (m for m in SHOWN if m in group.methods):
        shares: dict[tuple[int, str], list[float]] = {}
        for run in group.methods[method].values():
            for window in (run.by_tag or {}).get("windows", []):
                for tag in TAG_LOOKS:
                    if window["sparse_steps"] and window["targets"][tag]:
                        share = 100 * window["kept"][tag] / window["targets"][tag]
                        shares.setdefault((window["step"], tag), []).append(share)
        lines += [
            {"method": method, "step": step, "tag": tag, "kept": float(np.mean(values)), "seeds": len(values)}
            for (step, tag), values in sorted(shares.items())
        ]
    return pd.DataFrame(lines)


def kept_figure(data: pd.DataFrame, title: str, subtitle: str) -> Figure:
    """A panel for each method, a line for each tag, named in the first panel."""
    methods = list(dict.fromkeys(data.method))
    with plt.rc_context(STYLE):
        size = (max(5.2, 1.75 * len(methods)), 2.7)  # the subtitle's line fits
        figure, panels = plt.subplots(1, len(methods), figsize=size, sharey=True, squeeze=False)
        for panel, method in zip(panels[0], methods, strict=True):
            for tag, (colour, marker) in TAG_LOOKS.items():
                mine = data[(data.method == method) & (data.tag == tag)]
                panel.plot(mine.step, mine.kept, color=colour, marker=marker, ms=3, lw=1.3)
                if panel is panels[0][0] and len(mine):
                    panel.annotate(tag, (mine.step.max(), mine.kept.iloc[-1]), xytext=(0, -5), ha="right", va="top",
                                   textcoords="offset points", fontsize=8, color=colour)  # fmt: skip
            panel.set_title(LABELS.get(method, OTHER.label or method), fontsize=8)
            panel.set_xlabel("step")
            panel.set_ylim(0, 100)
        panels[0][0].set_ylabel("targets supervised (%)")
        _head(figure, title, subtitle)
    return figure


def _head(figure: Figure, title: str, subtitle: str) -> None:
    figure.tight_layout(rect=(0, 0, 1, 0.9))
    figure.text(0.02, 0.985, title, ha="left", va="top", fontsize=9.5, fontweight="bold")
    figure.text(0.02, 0.925, subtitle, ha="left", va="top", fontsize=8, color="#55606b")
