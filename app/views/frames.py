"""Rows of frames with attention as heat on one colour scale, and their difference: HTML for a page, a figure to export.

Pure functions of arrays. Legend: T slices of time, R x C cells of a slice, F frames of H x W pixels.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from app.views.attention import Shown, on_frames, signed, with_difference
from app.views.theme import Look

HEAT = "inferno"
VEIL = 0.68  # how much of a frame the heat covers
MOST = 8  # frames in a row
FRAME_PIXELS = 192  # height of a frame in the picture
GAP = 8  # pixels between frames
LONGEST = 16  # characters of a model's name at the end of a colour bar
STOPS = 17  # of a colour bar on the page


@dataclass(frozen=True)
class Strip:
    """A row of frames: its name, a note, pixels uint8 [H, W, 3]."""

    name: str
    note: str
    pixels: np.ndarray


@dataclass(frozen=True)
class Bar:
    """A colour bar: its scale, its colours, what it measures, the words and the numbers at its ends."""

    scale: Normalize
    colours: Colormap
    about: str
    words: tuple[str, str]
    numbers: tuple[str, str]


def difference_map(look: Look) -> Colormap:
    """From the colour of standard fine-tuning over the page's paper to that of ReGATE, as in all figures."""
    return LinearSegmentedColormap.from_list("difference", [look.methods["stock"], look.paper, look.methods["regate"]])


def strips(shown: Shown, look: Look, smooth: bool = True) -> tuple[list[Strip], list[Bar]]:
    """RGB frames, the same with each model's heat on one colour scale, and the difference of the last two.

    Args:
        smooth: heat runs from cell to cell, as in the paper's Figure 4; False: each cell is filled evenly.
    """
    chosen = frames_in_row(len(shown.frames))
    frames = [enlarge(shown.frames[f]) for f in chosen]
    size = frames[0].shape[:2]

    def row(pictures: Sequence[np.ndarray]) -> np.ndarray:
        outlined = [_outlined(p, shown, f) for p, f in zip(pictures, chosen, strict=True)]
        return _beside(outlined, look)

    def heat(weights: np.ndarray, scale: Normalize, colours: Colormap) -> np.ndarray:
        spreads = [spread(weights[slice_of(shown.slices, f)], size, shown.extent, smooth) for f in chosen]
        return row([veiled(frame, colours(scale(one))) for frame, one in zip(frames, spreads, strict=True)])

    top = max(max(float(w.max()) for w in shown.rows.values()), 1e-9)
    scale = Normalize(0, top)
    found = [Strip("RGB frames", "", row(frames))]
    for model, weights in shown.rows.items():
        note = f"{on_frames(weights):.0%} of the token's attention is on frames"
        found.append(Strip(model, note, heat(weights, scale, matplotlib.colormaps[HEAT])))
    ends = ("0", f"{top:.1%}")
    bars = [Bar(scale, matplotlib.colormaps[HEAT], "attention on one visual token", ("Low", "High"), ends)]
    if len(shown.rows) == 2:
        name, change = list(with_difference(shown.rows).items())[-1]
        most = max(float(np.abs(change).max()), 1e-9)
        around, colours = Normalize(-most, most), difference_map(look)
        found.append(Strip(name, "", heat(change, around, colours)))
        words = tuple(f"{model if len(model) <= LONGEST else order} more"
                      for model, order in zip(shown.rows, ("the first", "the second"), strict=True))  # fmt: skip
        numbers = (signed(-100 * most), signed(100 * most))
        bars.append(Bar(around, colours, "difference, in points", (words[0], words[1]), numbers))
    return found, bars


# --- on the page ---


def html(found: Sequence[Strip], bars: Sequence[Bar], about: str) -> str:
    """Strips and colour bars as one figure; `about` is read to those who do not see it."""
    parts = []
    for strip in found:
        label = escape(f"{strip.name}: {about}", quote=True)
        parts.append(
            f'<div class="rg-row-head"><b>{escape(strip.name)}</b><span>{escape(strip.note)}</span></div>'
            f'<img alt="{label}" src="data:image/webp;base64,{_webp(strip.pixels)}">'
        )
    scales = "".join(
        f'<div class="rg-scale"><i style="background: linear-gradient(to right, {", ".join(_stops(bar.colours))})"></i>'
        f"<span>{escape(bar.words[0])} {bar.numbers[0]}</span><span>{escape(bar.about)}</span>"
        f"<span>{escape(bar.words[1])} {bar.numbers[1]}</span></div>"
        for bar in bars
    )
    return f'<figure class="rg-rows">{"".join(parts)}<div class="rg-scales">{scales}</div></figure>'


def _webp(pixels: np.ndarray) -> str:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "WEBP", quality=90)
    return base64.b64encode(out.getvalue()).decode()


def _stops(colours: Colormap) -> list[str]:
    return [matplotlib.colors.to_hex(colours(share)) for share in np.linspace(0, 1, STOPS)]


# --- to export ---


def picture(shown: Shown, look: Look, smooth: bool = True) -> Figure:
    """The same as a figure."""
    found, bars = strips(shown, look, smooth)
    wide, high = 11.0, 11.0 * found[0].pixels.shape[0] / found[0].pixels.shape[1]  # inches of a strip
    head, foot, between = 0.34, 0.74, 0.06
    total = len(found) * (high + head) + foot
    figure = Figure(figsize=(wide, total), dpi=100, facecolor=look.paper)
    y = total
    for strip in found:
        y -= head
        figure.text(0, (y + between) / total, strip.name, color=look.ink, fontsize=12.5, fontweight="bold", va="bottom")
        figure.text(1, (y + between) / total, strip.note, color=look.muted, fontsize=10.5, va="bottom", ha="right")
        y -= high
        axes = figure.add_axes((0, y / total, 1, high / total))
        axes.imshow(strip.pixels, interpolation="antialiased", aspect="auto")
        axes.set_axis_off()
    for bar, (left, span) in zip(bars, ((0.0, 0.3), (0.62, 0.38)), strict=False):
        _bar(figure, (left, 0.36 / total, span, 0.13 / total), bar, look)
    return figure


def _bar(figure: Figure, where: tuple[float, float, float, float], bar: Bar, look: Look) -> None:
    axes = figure.add_axes(where)
    drawn = figure.colorbar(ScalarMappable(bar.scale, bar.colours), cax=axes, orientation="horizontal")
    drawn.outline.set_edgecolor(look.line)  # type: ignore[operator]
    drawn.set_ticks([])
    for x, align, words in ((0.0, "left", f"{bar.words[0]}\n{bar.numbers[0]}"), (0.5, "center", bar.about),
                            (1.0, "right", f"{bar.words[1]}\n{bar.numbers[1]}")):  # fmt: skip
        how: dict[str, Any] = {"ha": align, "va": "top", "fontsize": 9.5, "color": look.muted}
        axes.text(x, -0.5, words, transform=axes.transAxes, **how)


# --- pixels ---


def _outlined(picture: np.ndarray, shown: Shown, frame: int) -> np.ndarray:
    """The true box in a frame: white between black lines, so that it shows on all colours."""
    if shown.box is None or np.isnan(shown.box[frame]).any():
        return picture
    sy, sx = picture.shape[0] / shown.frames.shape[1], picture.shape[1] / shown.frames.shape[2]
    x0, y0, x1, y1 = (round(v * s) for v, s in zip(shown.box[frame], (sx, sy, sx, sy), strict=True))
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image)
    for grow, colour in ((1, "black"), (0, "white"), (-1, "white"), (-2, "black")):
        left, top = x0 - grow, y0 - grow
        draw.rectangle((left, top, max(left, x1 - 1 + grow), max(top, y1 - 1 + grow)), outline=colour)
    return np.asarray(image)


def _beside(frames: Sequence[np.ndarray], look: Look) -> np.ndarray:
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
