"""`python -m repro.bench.plots`: how cost grows, one figure a sweep, from the record of the sweeps. Free of torch.

Left: seconds of a step; right: bytes kept for the backward pass. Dashed: the bound, which is what the contestant above
needs (stock for dense, dense for gated) times the share of FLOPs, or of positions, that remain. For samples: a line
through the smallest data set, as cost per batch should not grow, and the bytes that the data structures must hold.

    python -m repro.bench.plots            # results/bench/*.svg from the committed record; RUNS/bench from your own
    python -m repro.bench.plots --check    # exit 1 and name the figures that were not drawn from the committed record
"""

from __future__ import annotations

import hashlib
import io
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from repro.bench.record import BenchRecord, load
from repro.figures import LOOKS, STYLE, Look
from repro.tables import arguments, report, save

LABELS = {
    "length": "positions of a sequence",
    "ratio": "share of answer tokens kept",
    "batch": "sequences in a batch",
    "short": "short-fp32: sequences in a batch",
    "vocabulary": "entries of the vocabulary",
    "samples": "samples of the data set",
}
STYLES = {
    "stock": LOOKS["stock"],
    "dense": LOOKS["dense"],
    "gated": LOOKS["regate"],
    "buffer": Look("EMA: read and update a batch", "#0072B2"),
    "column": Look("reference losses: read a batch", "#009E73", marker="s"),
}
ABOVE = {"dense": "stock", "gated": "dense"}
TOKEN_BYTES, SAMPLE_BYTES, COLUMN_BYTES = 2, 14, 12
"""Of the EMA: fp16 a target, id, offset and mark a sample; of the column: id and list offset a sample."""


def series(points: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, list[float]]]:
    """Contestant -> x, seconds (median of rounds), bytes, and the bounds of both."""
    found: dict[str, dict[str, list[float]]] = {}
    for point in sorted(points, key=lambda point: point["x"]):
        medians = {name: float(np.median(times)) for name, times in point["times"].items()}
        for name, seconds in medians.items():
            lines = found.setdefault(name, {k: [] for k in ("x", "seconds", "bytes", "seconds_bound", "bytes_bound")})
            bound = _bound(name, point, medians, found)
            for key, value in zip(lines, (point["x"], seconds, point["bytes"][name], *bound), strict=True):
                lines[key].append(value)
    return found


def _bound(
    name: str, point: Mapping[str, Any], medians: Mapping[str, float], found: Mapping[str, Any]
) -> tuple[float, float]:
    if point["sweep"] == "samples":
        earlier = found[name]["seconds"]
        each = SAMPLE_BYTES if name == "buffer" else COLUMN_BYTES
        return (earlier[0] if earlier else medians[name]), point["x"] * (each + TOKEN_BYTES * point["targets"])
    above = ABOVE.get(name)
    if above is None:
        return float("nan"), float("nan")
    share = point["flops"][name] / point["flops"][above]
    tokens = point["positions"][name] / point["positions"][above]
    return medians[above] * share, (point["bytes"][above] * tokens if tokens < 1 else float("nan"))


def draw(sweep: str, points: Sequence[Mapping[str, Any]]) -> bytes:
    """The sweep's figure as SVG, which carries the sha256 of its points."""
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(7.2, 2.9), layout="constrained")
        for name, lines in series(points).items():
            for axes, key in ((left, "seconds"), (right, "bytes")):
                _line(axes, STYLES[name], lines, key)
        for axes, label in ((left, "seconds a step"), (right, "bytes")):
            axes.set_xlabel(LABELS[sweep])
            axes.set_ylabel(label)
            axes.set_yscale("log")
            if sweep != "ratio":
                axes.set_xscale("log")
                axes.set_xticks([point["x"] for point in points], labels=[_short(point["x"]) for point in points])
                axes.xaxis.set_minor_locator(NullLocator())
        left.legend(frameon=False, fontsize=7)
        buffer = io.BytesIO()
        metadata = {"Date": None, "Creator": None, "Identifier": f"data-sha256:{digest(points)}"}
        figure.savefig(buffer, format="svg", metadata=metadata)
    plt.close(figure)
    return buffer.getvalue()


def _short(count: float) -> str:
    """151936 -> 152k."""
    for unit, letter in ((1_000_000, "M"), (1_000, "k")):
        if count >= 10 * unit or (count >= unit and count % unit == 0):
            return f"{count / unit:.0f}{letter}"
    return f"{count:g}"


def _line(axes: Axes, look: Look, lines: Mapping[str, list[float]], key: str) -> None:
    axes.plot(lines["x"], lines[key], color=look.colour, marker=look.marker, markersize=3.5, label=look.label)
    axes.plot(lines["x"], lines[f"{key}_bound"], color=look.colour, linestyle=(0, (2, 2)), linewidth=0.9)


def digest(points: Sequence[Mapping[str, Any]]) -> str:
    """sha256 of a sweep's points."""
    return hashlib.sha256(json.dumps(points, sort_keys=True).encode()).hexdigest()


def sweeps(record: BenchRecord) -> dict[str, list[dict[str, Any]]]:
    """Sweep -> its points."""
    found: dict[str, list[dict[str, Any]]] = {}
    for point in record.measured.values():
        found.setdefault(point["sweep"], []).append(point)
    return found


def figures(records: Sequence[BenchRecord]) -> dict[str, tuple[str, list[dict[str, Any]]]]:
    """File name -> sweep and points, of all records of sweeps."""
    return {
        f"{record.name}-{sweep}.svg": (sweep, points)
        for record in records
        if record.kind == "scaling"
        for sweep, points in sweeps(record).items()
    }


def stale(out: Path, wanted: Mapping[str, tuple[str, list[dict[str, Any]]]]) -> list[str]:
    """Figures that are missing, were drawn from other points, or come from no record."""
    problems = []
    for name, (_, points) in wanted.items():
        path = out / name
        if not path.is_file():
            problems.append(f"{path}: missing")
        elif f"data-sha256:{digest(points)}" not in path.read_text(encoding="utf-8")[:4000]:
            problems.append(f"{path}: was drawn from other data")
    return problems + [f"{p}: comes from no record" for p in sorted(out.glob("*.svg")) if p.name not in wanted]


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    options = arguments("Figures of the bench's sweeps.", "figures").parse_args(argv)
    out = options.out or options.results / "bench"
    committed, problems = load(options.results / "bench")
    if options.check:
        return report([*problems, *stale(out, figures(committed))])
    own, damaged = load(options.runs / "bench")
    for folder, records in ((out, committed), (options.runs / "bench", own)):
        drawn = {name: draw(*of) for name, of in figures(records).items()}
        for path in save(folder, drawn) if drawn else []:
            print(f"Written: {path}")
    return report([*problems, *damaged])


if __name__ == "__main__":
    sys.exit(main())
