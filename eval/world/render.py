"""Scene -> frames and true boxes. Over a thousand clips a second on one core: sprites and backgrounds are cached."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from eval.world.scene import Scene, Thing
from eval.world.sprites import background, sprite
from eval.world.vocabulary import DIRECTIONS, FRAMES, POSES, SIZE, SIZES

HOP = 10  # pixels
PAN = 3  # pixels per frame that the camera travels
GROWN, SHRUNK = 1.6, 0.5
TURN = (1.0, 0.55, 0.2, 0.55)  # a spin is a turn around the upright axis, which shows on every silhouette


@dataclass
class Placed:
    """A sprite in one frame: integer top left corner and size in pixels, outline included."""

    left: int
    top: int
    width: int
    height: int


def _beats(count: int, start: int, end: int) -> set[int]:
    """Frames of `count` hops or blinks, one frame each, with a resting frame before and after."""
    return {start + 1 + k * (end - start) // count for k in range(count)}


def place(thing: Thing, frame: int, shift: tuple[int, int] = (0, 0)) -> Placed | None:
    """Where an object is in a frame, or None where it cannot be seen."""
    x, y, scale, turn = thing.x, thing.y, 1.0, 1.0
    for act in thing.acts:
        last = min(act.end, FRAMES - 1)
        done = (
            min(max((frame - act.start) / (last - act.start), 0.0), 1.0) if last > act.start else float(frame >= last)
        )
        within = act.start <= frame < act.end
        if act.verb in ("slide", "swap"):
            x, y = x + act.dx * done, y + act.dy * done
            if act.arc:
                length = math.hypot(act.dx, act.dy)
                bend = act.arc * math.sin(math.pi * done)
                x, y = x + bend * act.dy / length, y - bend * act.dx / length
        elif act.verb == "hop" and frame in _beats(act.count, act.start, act.end):
            y -= HOP
        elif act.verb == "blink" and frame in _beats(act.count, act.start, act.end):
            return None
        elif act.verb == "spin" and within:
            turn = TURN[(frame - act.start) % len(TURN)]
        elif act.verb == "grow":
            scale *= 1 + (GROWN - 1) * done
        elif act.verb == "shrink":
            scale *= 1 + (SHRUNK - 1) * done
        elif (act.verb == "appear" and frame < act.start) or (act.verb == "vanish" and frame >= act.start):
            return None
    side = SIZES[thing.size] * scale
    pose = POSES[thing.pose]
    width, height = max(3, round(side * pose[0] * turn)), max(3, round(side * pose[1]))
    x, y = x - shift[0], y - shift[1]
    return Placed(math.floor(x - width / 2 + 0.5) - 1, math.floor(y - height / 2 + 0.5) - 1, width + 2, height + 2)


def camera_shift(scene: Scene, frame: int) -> tuple[int, int]:
    """Pixels (x, y) that the camera has travelled by a frame."""
    ux, uy = DIRECTIONS.get(scene.camera, (0, 0))
    return ux * PAN * frame, uy * PAN * frame


def render(scene: Scene) -> np.ndarray:
    """The clip: uint8 [8, 64, 64, 3], RGB."""
    frames = np.empty((FRAMES, SIZE, SIZE, 3), np.uint8)
    things = sorted(scene.objects, key=lambda o: o.depth)
    for f in range(FRAMES):
        shift = camera_shift(scene, f)
        name = scene.cut_background if scene.cut_frame and f >= scene.cut_frame else scene.background
        x, y = 32 + shift[0], 32 + shift[1]  # the texture reaches 32 px beyond the frame on each side
        frame = frames[f]
        frame[:] = background(name)[y : y + SIZE, x : x + SIZE]
        for thing in things:
            if placed := place(thing, f, shift):
                _paint(frame, thing, placed)
    return frames


def _paint(frame: np.ndarray, thing: Thing, at: Placed) -> None:
    x0, y0 = max(at.left, 0), max(at.top, 0)
    x1, y1 = min(at.left + at.width, SIZE), min(at.top + at.height, SIZE)
    if x0 >= x1 or y0 >= y1:
        return
    paint, remain = sprite(thing.noun, thing.colour, at.width - 2, at.height - 2)
    rows, columns = slice(y0 - at.top, y1 - at.top), slice(x0 - at.left, x1 - at.left)
    under = frame[y0:y1, x0:x1]
    under[:] = (paint[rows, columns] + under * remain[rows, columns]) >> 8


def boxes(scene: Scene) -> np.ndarray:
    """True boxes, float32 [8, n_objects, 4]: x0, y0, x1, y1 in pixels (x1 and y1 exclusive), clipped to the frame.

    The box encloses all that is drawn of the sprite, its outline included, also where another sprite hides it. NaN in
    frames where nothing is drawn of it.
    """
    out = np.full((FRAMES, len(scene.objects), 4), np.nan, np.float32)
    for f in range(FRAMES):
        shift = camera_shift(scene, f)
        for i, thing in enumerate(scene.objects):
            if at := place(thing, f, shift):
                inside = _painted(thing.noun, thing.colour, at)
                if inside is not None:
                    out[f, i] = inside
    return out


def _painted(noun: str, colour: str, at: Placed) -> tuple[int, int, int, int] | None:
    """Tight box of the pixels that a sprite changes, or None."""
    _, remain = sprite(noun, colour, at.width - 2, at.height - 2)
    ys, xs = np.nonzero(remain[..., 0] < 256)
    keep = (xs + at.left >= 0) & (xs + at.left < SIZE) & (ys + at.top >= 0) & (ys + at.top < SIZE)
    if not keep.any():
        return None
    xs, ys = xs[keep] + at.left, ys[keep] + at.top
    return int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1
