"""A figure as files: a CSV of what is plotted, and pictures that carry its sha256. Free of torch.

Pictures differ from machine to machine by a few pixels, so a figure is checked by its CSV.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from repro import render
from repro.tables import save

STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans", "font.size": 8, "axes.labelsize": 8.5,
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#55606b", "axes.linewidth": 0.7,
    "axes.labelcolor": "#222a31", "text.color": "#222a31", "xtick.color": "#55606b", "ytick.color": "#55606b",
    "xtick.labelcolor": "#222a31", "ytick.labelcolor": "#222a31", "xtick.major.size": 3, "ytick.major.size": 3,
    "axes.grid": True, "grid.color": "#e6eaee", "grid.linewidth": 0.6, "axes.axisbelow": True,
    "svg.hashsalt": "regate", "svg.fonttype": "path", "figure.dpi": 100,
}  # fmt: skip


@dataclass(frozen=True)
class Look:
    """How a method is drawn: colours of Okabe and Ito, told apart by dashes and markers too."""

    label: str
    colour: str
    dashes: Any = "-"
    marker: str = "o"
    front: int = 3


LOOKS = {
    "stock": Look("baseline (stock Trainer)", "#D55E00", (0, (5, 1.6)), "o", 4),
    "dense": Look("dense (our trainer)", "#7A7F85", (0, (1.2, 1.4)), "D", 3),
    "regate": Look("ReGATE", "#0072B2", "-", "s", 5),
    "random": Look("random half", "#E69F00", (0, (3, 1.2, 1, 1.2)), "^", 3),
    "loss_only": Look("loss only (RHO-1 style)", "#009E73", (0, (4, 1, 1, 1, 1, 1)), "v", 3),
}
OTHER = Look("", "#CC79A7", (0, (2, 1)), "X", 3)
PREFIXES = ("efficiency", "budgets", "lambda", "tokens-by-kind")
"""How the names of figures from records begin; other pictures in their folder are not ours to judge."""


@dataclass(frozen=True)
class Drawing:
    """A figure as files: its data, and the pictures that carry the data's sha256."""

    name: str
    title: str
    subtitle: str
    data: pd.DataFrame
    plot: Callable[[pd.DataFrame, str, str], Figure]  # data, title, subtitle

    @property
    def csv(self) -> str:
        """What is plotted."""
        return self.data.to_csv(index=False, float_format="%.10g", lineterminator="\n")

    @property
    def digest(self) -> str:
        """sha256 of the CSV."""
        return hashlib.sha256(self.csv.encode()).hexdigest()

    def pictures(self) -> dict[str, bytes]:
        """PNG (300 dots an inch) and SVG."""
        figure = self.plot(self.data, self.title, self.subtitle)
        found = {}
        for kind, metadata in (
            ("png", {"data-sha256": self.digest, "Software": None}),
            ("svg", {"Date": None, "Creator": None, "Identifier": f"data-sha256:{self.digest}"}),
        ):
            buffer = io.BytesIO()
            with plt.rc_context(STYLE):
                figure.savefig(buffer, format=kind, dpi=300, metadata=metadata)
            found[f"{self.name}.{kind}"] = buffer.getvalue()
        plt.close(figure)
        return found


def stale(out: Path, wanted: Sequence[Drawing]) -> list[str]:
    """Figures whose data are not what the records give, or whose pictures were not drawn from their data."""
    problems = render.stale(out, {f"{drawing.name}.csv": drawing.csv for drawing in wanted}, (".csv",))
    names = {drawing.name for drawing in wanted}
    for drawing in wanted:
        for kind, carried in (("png", _png_digest), ("svg", _svg_digest)):
            path = out / f"{drawing.name}.{kind}"
            if not path.is_file():
                problems.append(f"{path}: missing")
            elif carried(path) != drawing.digest:
                problems.append(f"{path}: was drawn from other data")
    mine = tuple(f"{prefix}-" for prefix in PREFIXES)
    here = sorted(path for path in out.glob("*") if path.suffix in (".png", ".svg") and path.stem.startswith(mine))
    return problems + [f"{path}: comes from no record" for path in here if path.stem not in names]


def _png_digest(path: Path) -> str | None:
    try:
        with Image.open(path) as picture:
            return picture.info.get("data-sha256")
    except OSError:
        return None


def _svg_digest(path: Path) -> str | None:
    head = path.read_bytes()[:4000].decode("utf-8", errors="replace")
    return head.split("data-sha256:", 1)[1][:64] if "data-sha256:" in head else None


def draw(out: Path, wanted: Sequence[Drawing]) -> list[Path]:
    """Write data and pictures; returns the paths of the pictures."""
    save(out, {f"{drawing.name}.csv": drawing.csv for drawing in wanted})
    return save(out, {name: content for drawing in wanted for name, content in drawing.pictures().items()})
