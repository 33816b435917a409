"""One look for all figures: colours that colour-blind readers tell apart, in light and dark, and Vega's settings.

Methods keep the colours of Okabe and Ito that `repro.figures` prints; losses run from paper to orange; what the gate
keeps is blue. Nothing is said by colour alone: kept tokens are underlined, lines have dashes and markers of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import altair as alt

    Layers = alt.LayerChart | alt.FacetChart  # what Altair says that `layer` gives
else:  # what needs no chart does not wait for Altair
    Layers = Any

FONT = "Source Sans, Helvetica, Arial, sans-serif"


@dataclass(frozen=True)
class Look:
    """Colours of a theme, as #rrggbb."""

    name: str
    paper: str
    panel: str  # behind cards
    ink: str
    muted: str  # second-rank text: at least 4.5:1 on paper
    line: str  # grids and borders
    low: str  # a loss of 0
    high: str  # the largest loss
    kept: str
    elided: str
    methods: dict[str, str]
    tags: dict[str, str]


LIGHT = Look(
    name="light", paper="#ffffff", panel="#f4f6f8", ink="#1b2430", muted="#5b6672", line="#dde3e9",
    low="#fdf6ec", high="#f29b3f", kept="#0067a5", elided="#a3adb8",
    methods={"stock": "#d55e00", "dense": "#6f767d", "regate": "#0072b2", "random": "#b87900", "loss_only": "#008a66"},
    tags={"visual": "#0072b2", "wording": "#b87900", "template": "#6f767d", "special": "#b3bac2"},
)  # fmt: skip
DARK = Look(
    name="dark", paper="#12171d", panel="#1b222a", ink="#e8ecf0", muted="#a2adb8", line="#323c47",
    low="#242c35", high="#9c5410", kept="#6cb8ec", elided="#66717d",
    methods={"stock": "#f08a3c", "dense": "#a5adb5", "regate": "#6cb8ec", "random": "#e0b040", "loss_only": "#4cc7a0"},
    tags={"visual": "#6cb8ec", "wording": "#e0b040", "template": "#a5adb5", "special": "#66717d"},
)  # fmt: skip


def look(kind: str | None) -> Look:
    """The look of Streamlit's theme type; light where it is not known yet."""
    return DARK if kind == "dark" else LIGHT


def dressed(chart: alt.TopLevelMixin, look: Look) -> Any:
    """The chart in a look: fonts, grid, legend and the colours of axes; no menu of vega-embed, which links outside."""
    text = {"labelColor": look.muted, "titleColor": look.ink, "labelFontSize": 12, "titleFontSize": 12.5}
    axis = text | {
        "titleFontWeight": 500, "gridColor": look.line, "domainColor": look.muted, "tickColor": look.muted,
        "tickSize": 4, "labelPadding": 4, "titlePadding": 8, "gridOpacity": 0.7,
    }  # fmt: skip
    return chart.properties(usermeta={"embedOptions": {"actions": False}}).configure(
        font=FONT,
        background=look.paper,
        view={"stroke": None},
        axis=axis,
        header=text | {"labelFontSize": 13, "labelFontWeight": 600, "labelColor": look.ink, "titleFontWeight": 500},
        legend=text | {"title": None, "symbolStrokeWidth": 2, "orient": "top", "offset": 6, "labelLimit": 0},
        title={"color": look.ink, "fontSize": 14, "fontWeight": 600, "anchor": "start", "subtitleColor": look.muted,
               "subtitleFontSize": 12.5, "offset": 10},
        text={"color": look.ink, "fontSize": 12},
    )  # fmt: skip


def blend(low: str, high: str, share: float) -> str:
    """The colour between two, `share` in [0, 1] of the way."""
    share = min(1.0, max(0.0, share))
    pairs = [(int(low[i : i + 2], 16), int(high[i : i + 2], 16)) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in pairs)


def contrast(one: str, other: str) -> float:
    """WCAG's contrast of two colours, 1 to 21."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)
