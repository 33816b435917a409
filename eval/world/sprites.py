"""The twelve nouns as silhouettes: numpy only, so that a clip is the same on every machine."""

from __future__ import annotations

from functools import cache

import numpy as np

from eval.world.vocabulary import COLOURS

FINE = 4  # sub-pixels per pixel
DARK, PALE = (20, 20, 20), (235, 235, 235)  # outlines


def _polygon(u: np.ndarray, v: np.ndarray, *points: tuple[float, float]) -> np.ndarray:
    """Whether points lie inside a polygon (even-odd rule)."""
    inside = np.zeros(u.shape, bool)
    for (x0, y0), (x1, y1) in zip(points, points[1:] + points[:1], strict=True):
        if y0 != y1:
            crosses = ((v >= y0) != (v >= y1)) & (u < x0 + (v - y0) * (x1 - x0) / (y1 - y0))
            inside ^= crosses
    return inside


def _silhouette(noun: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Whether points of the square [-1, 1]^2 (v points down) belong to a noun."""
    r = np.hypot(u, v)
    if noun == "ball":
        return r <= 1
    if noun == "box":
        return (abs(u) <= 0.92) & (abs(v) <= 0.92)
    if noun == "ring":
        return (r <= 1) & (r >= 0.5)
    if noun == "cross":
        return (abs(u) <= 0.32) | (abs(v) <= 0.32)
    if noun == "moon":
        return (r <= 1) & (np.hypot(u - 0.55, v) >= 0.8)
    if noun == "heart":
        lobes = np.hypot(abs(u) - 0.48, v + 0.45) <= 0.52
        return (
            lobes | _polygon(u, v, (-0.93, -0.2), (0.93, -0.2), (0.0, 1.0)) | ((abs(u) < 0.5) & (abs(v + 0.3) < 0.25))
        )
    if noun == "cone":
        return _polygon(u, v, (0.0, -1.0), (1.0, 1.0), (-1.0, 1.0))
    if noun == "bow":
        return (abs(v) <= 0.2 + 0.8 * abs(u)) & (abs(u) <= 1)
    if noun == "cup":
        return ((abs(u) <= 0.9) & (v >= -0.9) & (v <= 0.9)) & ~((abs(u) < 0.42) & (v < 0.35))
    if noun == "flag":
        return ((u <= -0.6) & (u >= -1)) | _polygon(u, v, (-0.7, -1.0), (1.0, -0.45), (-0.7, 0.15))
    if noun == "kite":
        body = _polygon(u, v, (0.0, -1.0), (0.9, -0.25), (0.0, 0.55), (-0.9, -0.25))
        tail = (v > 0.3) & (abs(u - 0.3 * np.sin(7 * (v - 0.3))) <= 0.17)
        return body | tail
    if noun == "star":
        angle = np.arange(10) * np.pi / 5 - np.pi / 2
        radius = np.where(np.arange(10) % 2 == 0, 1.08, 0.45)
        return _polygon(
            u, v, *zip((radius * np.cos(angle)).tolist(), (radius * np.sin(angle) + 0.08).tolist(), strict=True)
        )
    raise ValueError(f"no silhouette for {noun!r}; draw one in sprites.py")


@cache
def sprite(noun: str, colour: str, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """(paint, remain), uint16 [h, w, 3] and [h, w, 1]: a frame becomes `(paint + frame * remain) >> 8` under it.

    The silhouette fills width x height pixels; an outline of one pixel makes it tell from every background.
    """
    w, h = (width + 2) * FINE, (height + 2) * FINE
    u = ((np.arange(w) + 0.5) / FINE - 1) / width * 2 - 1
    v = ((np.arange(h) + 0.5) / FINE - 1) / height * 2 - 1
    u, v = np.meshgrid(u, v)
    fill = _silhouette(noun, u, v) & (abs(u) <= 1) & (abs(v) <= 1)
    around = fill.copy()
    for shift in range(1, FINE + 1):
        for axis in (0, 1):
            around |= np.roll(fill, shift, axis) | np.roll(fill, -shift, axis)

    def share(mask: np.ndarray) -> np.ndarray:
        return mask.reshape(height + 2, FINE, width + 2, FINE).mean((1, 3))[..., None]

    inner, outer = share(fill), share(around)
    edge = PALE if colour == "black" else DARK
    paint = inner * COLOURS[colour] + (outer - inner) * edge
    return np.round(paint * 256).astype(np.uint32).astype(np.uint16), np.round((1 - outer) * 256).astype(np.uint16)


@cache
def background(name: str) -> np.ndarray:
    """A calm 128x128 texture that repeats every 32 pixels (uint8 [128, 128, 3]): muted colour, low contrast."""
    y, x = np.mgrid[:32, :32]
    base, ink = _GROUNDS[name]
    mark = {
        "grass": (x % 8 == (y // 8 % 2) * 4) & (y % 8 < 4),
        "sand": ((x + 3 * y) % 16 == 0) & (y % 2 == 0),
        "brick": (y % 8 == 0) | ((x + y // 8 % 2 * 8) % 16 == 0),
        "water": (y + np.round(2 * np.sin(x * np.pi / 8)).astype(int)) % 8 < 2,
        "snow": (x % 16 - 4) ** 2 + (y % 16 - 4) ** 2 <= 4,
        "wood": (x % 8 < 2),
        "stone": (x % 32 == 0) | (y % 16 == 0) | ((x == 16) & (y < 16)),
        "cloth": (x // 8 + y // 8) % 2 == 0,
    }[name]
    tile = np.where(mark[..., None], np.array(ink), np.array(base)).astype(np.uint8)
    return np.tile(tile, (4, 4, 1))


_GROUNDS = {  # base and ink
    "grass": ((120, 175, 110), (95, 150, 90)),
    "sand": ((225, 205, 160), (195, 170, 120)),
    "brick": ((175, 110, 95), (205, 165, 150)),
    "water": ((120, 165, 205), (150, 190, 225)),
    "snow": ((222, 226, 232), (200, 208, 220)),
    "wood": ((150, 115, 80), (130, 98, 66)),
    "stone": ((135, 135, 140), (105, 105, 112)),
    "cloth": ((195, 160, 195), (178, 140, 180)),
}
