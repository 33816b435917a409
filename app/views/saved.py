"""A matplotlib figure as files to download."""

from __future__ import annotations

import io
from typing import Any

import matplotlib
from matplotlib.figure import Figure

MARGIN = 0.15  # inches around an exported picture


def png(figure: Figure, dpi: int = 200, margin: float = MARGIN) -> bytes:
    """The figure as a PNG file with a margin in inches."""
    return _saved(figure, "png", margin, dpi=dpi)


def svg(figure: Figure) -> str:
    """The figure as an SVG file, its text as text."""
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "regate"}):
        return _saved(figure, "svg", MARGIN, metadata={"Date": None}).decode()


def _saved(figure: Figure, kind: str, margin: float, **how: Any) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format=kind, facecolor=figure.get_facecolor(), bbox_inches="tight", pad_inches=margin, **how)
    return out.getvalue()
