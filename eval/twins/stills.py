"""Pictures for the image twins: one frame of a held-out clip, and what is in it.

Questions use the lower-case words of the world's own questions, which its students know. No question tells a noun from
a colour or the other way round, unless the same text is asked with every answer: the test split shows some (noun,
colour) pairs more often than others, and that would be a hint.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from PIL import Image

from eval.world.render import camera_shift, place, render
from eval.world.sample import sample_scene
from eval.world.scene import Scene

T = TypeVar("T")
SPLIT = "test"
TRIES = 100_000
CLEAR = 10.0  # pixels between two centres that nobody overlooks


@dataclass(frozen=True)
class Item:
    """A thing that a still shows; (x, y) is its centre in pixels, `size` what it had when the clip began."""

    noun: str
    colour: str
    size: str
    x: float
    y: float


@dataclass(frozen=True)
class Still:
    """One frame of a scene: `items` are the things that can be seen in it."""

    scene: Scene
    frame: int
    items: tuple[Item, ...]

    @property
    def nouns(self) -> tuple[str, ...]:
        return tuple(item.noun for item in self.items)

    @property
    def ground(self) -> str:
        cut = self.scene.cut_frame
        return self.scene.cut_background if cut and self.frame >= cut else self.scene.background

    def image(self) -> Image.Image:
        """RGB, 64x64."""
        return Image.fromarray(render(self.scene)[self.frame])


def look(scene: Scene, frame: int = 0) -> Still:
    """The still of a frame. In the first one everything has its own size and pose, and hides no more than an edge."""
    items = []
    for thing in scene.objects:
        if at := place(thing, frame, camera_shift(scene, frame)):
            x, y = at.left + at.width / 2, at.top + at.height / 2
            items.append(Item(thing.noun, thing.colour, thing.size, x, y))
    return Still(scene, frame, tuple(items))


def stills(rng: random.Random, plots: Sequence[str], frames: Sequence[int] = (0,)) -> Iterator[Still]:
    """Endless stills of the test split, all words uniform; the frame is one of `frames`."""
    while True:
        yield look(sample_scene(rng.getrandbits(53), SPLIT, rng.choice(plots), uniform=True), rng.choice(frames))


def first(source: Iterator[Still], wanted: Callable[[Still], T | None]) -> tuple[Still, T]:
    """The first still of which `wanted` makes something, and what it makes."""
    for _ in range(TRIES):
        still = next(source)
        if made := wanted(still):
            return still, made
    raise AssertionError(f"none of {TRIES} stills is what was wanted")


def placed(answer: str, wrong: Sequence[str], position: int) -> list[str]:
    """Options with the answer at a position, for positions that come from `balanced`."""
    return [*wrong[:position], answer, *wrong[position:]]


def sides(a: Item, b: Item) -> tuple[str, str]:
    """Where a is, seen from b: ("left" | "right" | "", "above" | "below" | ""); "" where the eye might hesitate."""
    across = "" if abs(a.x - b.x) < CLEAR else "left" if a.x < b.x else "right"
    along = "" if abs(a.y - b.y) < CLEAR else "above" if a.y < b.y else "below"
    return across, along
