"""Scenes from seeds: plots (who does what to whom), laid out in lanes so that things stay apart and in sight."""

from __future__ import annotations

import random
from dataclasses import replace

from eval.world.acts import MARGIN, MOVING, act, local, reach, two_phases, whole
from eval.world.scene import Act, Relation, Scene, Thing
from eval.world.vocabulary import (
    BACKGROUNDS,
    COLOURS,
    DIRECTIONS,
    NOUNS,
    POSES,
    SIZE,
    SIZES,
    SPLITS,
    VERBS,
    WORLD_VERSION,
    draw,
    fits_split,
)

PLOTS = {
    "solo": 0.27, "duo": 0.37, "trio": 0.08, "camera": 0.06, "order": 0.05,
    "bump": 0.05, "front": 0.04, "behind": 0.03, "swap": 0.03, "shuffle": 0.02,
}  # fmt: skip
FREE = tuple(v for v in VERBS if v != "swap")  # a swap takes two
STILL = tuple(v for v in FREE if v != "slide")
LOW, MIDDLE, HIGH = 15.0, 32.0, 49.0  # anchors along an axis, pixels
ALONG = {"x": ("right", "left"), "y": ("down", "up")}


def sample_scene(seed: int, split: str, plot: str | None = None, uniform: bool = False) -> Scene:
    """The scene of a seed. Each split has its own stream of seeds, and objects that only it shows (see `fits_split`).

    plot: one of `PLOTS` instead of a random one. uniform: draw words uniformly (benchmarks), not by their Zipf law.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; expected one of {', '.join(SPLITS)}")
    if plot is not None and plot not in PLOTS:
        raise ValueError(f"unknown plot {plot!r}; expected one of {', '.join(PLOTS)}")
    rng = random.Random(f"world {WORLD_VERSION} {split} {plot} {uniform} {seed}")
    plot = plot or rng.choices(list(PLOTS), list(PLOTS.values()))[0]
    artist = _Artist(rng, split, uniform)
    objects, relations, camera = getattr(artist, plot)()
    background = draw(rng, BACKGROUNDS, uniform=uniform)
    cut_frame, cut_background = 0, ""
    if plot != "camera" and rng.random() < 0.2:
        cut_frame = rng.randint(3, 5)
        cut_background = draw(rng, [b for b in BACKGROUNDS if b != background], uniform=uniform)
    return Scene(plot, background, tuple(objects), tuple(relations), cut_frame, cut_background, camera, split, seed)


Plan = tuple[list[Thing], list[Relation], str]


class _Artist:
    """Draws objects; one method per plot. Nouns and colours never repeat within a scene."""

    def __init__(self, rng: random.Random, split: str, uniform: bool) -> None:
        self.rng, self.split, self.uniform = rng, split, uniform
        self.nouns: set[str] = set()
        self.colours: set[str] = set()

    def pick(self, items):
        return draw(self.rng, items, uniform=self.uniform)

    def jitter(self, anchor: float) -> float:
        return anchor + self.rng.randint(-2, 2)

    def thing(self, acts: tuple[Act, ...], x: float, y: float, sizes: tuple[str, ...] = (), depth: int = 0) -> Thing:
        """An object for these acts, with a noun and a colour that the split may show with their verbs."""
        verbs = {one.verb for one in acts}
        sizes = tuple(
            s
            for s in sizes or SIZES
            if not ((s == "large" and "grow" in verbs) or (s == "small" and "shrink" in verbs))
        )
        # A thin thing hardly shows that it turns.
        pose = self.rng.choices(list(POSES), (0.7, 0.15, 0.0 if "spin" in verbs else 0.15))[0]
        size = self.pick(sizes)
        for _ in range(10_000):
            noun, colour = self.pick(NOUNS), self.pick(tuple(COLOURS))
            if noun in self.nouns or colour in self.colours or not fits_split(noun, colour, verbs, self.split):
                continue
            self.nouns.add(noun)
            self.colours.add(colour)
            return Thing(noun, colour, size, pose, float(x), float(y), acts, depth)
        raise AssertionError(f"no object of split {self.split} fits {acts}")

    def anchor(self) -> float:
        return self.jitter(self.rng.choice((LOW, MIDDLE, HIGH)))

    def start(self, low: float, high: float) -> float:
        """Where a path starts on one axis: its offsets low..high stay in the frame. Resting things use an anchor."""
        if low == high:
            return self.anchor()
        first, last = MARGIN - low, SIZE - MARGIN - high
        return float(self.rng.randint(round(first), max(round(first), round(last))))

    def solo(self) -> Plan:
        acts = two_phases(self.rng, FREE, tuple(DIRECTIONS), self.uniform)
        x_low, x_high, y_low, y_high = reach(acts)
        return [self.thing(acts, self.start(x_low, x_high), self.start(y_low, y_high))], [], ""

    def lane(self, axis: str, across: float, plan=None, verbs: tuple[str, ...] = FREE) -> Thing:
        """An object alone in a lane along `axis`, `across` pixels from the other axis."""
        plan = plan or self.rng.choices((whole, two_phases, local), (0.4, 0.45, 0.15))[0]
        acts = plan(self.rng, verbs, ALONG[axis], self.uniform)
        x_low, x_high, y_low, y_high = reach(acts)
        along = self.start(x_low, x_high) if axis == "x" else self.start(y_low, y_high)
        across = self.jitter(across)
        return self.thing(acts, *((along, across) if axis == "x" else (across, along)))

    def spot(self, axis: str, along: float, across: float, plan=whole) -> Thing:
        """An object that stays where it is."""
        acts = plan(self.rng, STILL, (), self.uniform)
        place = (self.jitter(along), self.jitter(across))
        return self.thing(acts, *(place if axis == "x" else place[::-1]))

    def axis(self) -> str:
        return self.rng.choices(("x", "y"), (0.6, 0.4))[0]

    def duo(self) -> Plan:
        axis = self.axis()
        return [self.lane(axis, 16), self.lane(axis, 48)], [], ""

    def trio(self) -> Plan:
        axis = self.axis()
        if self.rng.random() < 0.5:
            return [self.lane(axis, 16, whole), self.spot(axis, 16, 48), self.spot(axis, 48, 48)], [], ""
        return [self.spot(axis, 16, 16), self.spot(axis, 48, 16), self.lane(axis, 48, whole)], [], ""

    def camera(self) -> Plan:
        """The camera travels 21 px; things shift the other way, so they start where they stay in sight."""
        camera = self.pick(list(DIRECTIONS))
        ux, uy = DIRECTIONS[camera]
        things = []
        for across in (16, 48):
            acts = whole(self.rng, STILL, (), self.uniform)
            along = self.jitter(32) + 10 * (ux + uy)
            x, y = (along, across) if ux else (across, along)
            things.append(self.thing(acts, x, y, ("small", "medium")))
        return things, [], camera

    def order(self) -> Plan:
        """Two or three things that appear one after the other; listed in that order."""
        spots = self.rng.sample([(x, y) for x in (16, 48) for y in (16, 48)], self.rng.choice((2, 3)))
        return (
            [
                self.thing((Act("appear", 1 + 2 * k, 2 + 2 * k),), self.jitter(x), self.jitter(y))
                for k, (x, y) in enumerate(spots)
            ],
            [],
            "",
        )

    def _along(self, direction: str, along: float, across: float) -> tuple[float, float]:
        """Pixels of a point that is `along` px from where a move in `direction` starts."""
        ux, uy = DIRECTIONS[direction]
        along = along if ux + uy > 0 else SIZE - along
        return (along, across) if ux else (across, along)

    def _slide(self, direction: str, start: int, end: int, distance: float) -> Act:
        ux, uy = DIRECTIONS[direction]
        return Act("slide", start, end, direction, dx=ux * distance, dy=uy * distance)

    def _bystander(self, direction: str, lane: float) -> Thing:
        axis = "x" if DIRECTIONS[direction][0] else "y"
        return self.spot(axis, self.rng.choice((LOW, MIDDLE, HIGH)), 64 - lane)

    def bump(self) -> Plan:
        """A slides into B, and B goes on in A's direction."""
        direction, lane = self.pick(list(DIRECTIONS)), self.rng.choice((16.0, 48.0))
        small = ("small", "medium")
        a = self.thing((self._slide(direction, 0, 4, 16),), *self._along(direction, 8, lane), sizes=small)
        b = self.thing((self._slide(direction, 4, 8, 16),), *self._along(direction, 40, lane), sizes=small)
        horizontal = bool(DIRECTIONS[direction][0])
        room = (extent(a, horizontal) + extent(b, horizontal)) / 2
        gap = self._slide(direction, 0, 4, 32 - room)  # sprites touch in frame 4
        a = replace(a, acts=(gap,))
        return [a, b, self._bystander(direction, lane)], [Relation("bump", 0, 1)], ""

    def _crossing(self, kind: str, depth: int) -> Plan:
        direction, lane = self.pick(list(DIRECTIONS)), self.rng.choice((16.0, 48.0))
        a = self.thing(
            (self._slide(direction, 0, 8, 40),), *self._along(direction, 12, lane), ("small", "medium"), depth
        )
        b = self.thing((Act("stay"),), *self._along(direction, 32, lane), ("large",) if depth < 0 else ())
        return [a, b, self._bystander(direction, lane)], [Relation(kind, 0, 1)], ""

    def behind(self) -> Plan:
        return self._crossing("behind", -1)

    def front(self) -> Plan:
        """A slides across B, in front of it."""
        return self._crossing("pass", 1)

    def swap(self) -> Plan:
        """A and B change places, each on its side of the straight line."""
        direction, lane = self.pick(list(DIRECTIONS)), self.rng.choice((18.0, 46.0))
        ux, uy = DIRECTIONS[direction]
        there = Act("swap", 0, 8, dx=36.0 * ux, dy=36.0 * uy, arc=9.0)
        back = replace(there, dx=-there.dx, dy=-there.dy)
        small = ("small", "medium")
        a = self.thing((there,), *self._along(direction, 14, lane), small)
        b = self.thing((back,), *self._along(direction, 50, lane), small)
        return [a, b, self._bystander(direction, lane)], [Relation("swap", 0, 1)], ""

    def shuffle(self) -> Plan:
        """Three things in a row; two pairs of neighbours or ends change places one after the other."""
        xs = [11.0, 32.0, 53.0]
        pairs = self.rng.sample([(0, 1), (1, 2), (0, 2)], 2)
        plans: list[list[Act]] = [[], [], []]
        places, relations = [0, 1, 2], []  # places[i]: the column where object i is
        for (left, right), (start, end) in zip(pairs, ((0, 4), (4, 8)), strict=True):
            i, j = places.index(left), places.index(right)
            arc = 9.0 if right - left == 1 else 16.0
            plans[i].append(Act("swap", start, end, dx=xs[right] - xs[left], arc=arc))
            plans[j].append(Act("swap", start, end, dx=xs[left] - xs[right], arc=arc))
            places[i], places[j] = right, left
            relations.append(Relation("swap", i, j))
        things = [
            self.thing(tuple(plan) or (Act("stay"),), xs[i], 32.0, ("small", "medium")) for i, plan in enumerate(plans)
        ]
        return things, relations, ""


def extent(thing: Thing, horizontal: bool) -> float:
    """Width or height of a sprite in pixels, in its first frame."""
    return SIZES[thing.size] * POSES[thing.pose][0 if horizontal else 1]


def moves(thing: Thing) -> bool:
    """Whether an object leaves its place."""
    return any(verb in MOVING for verb in thing.verbs)


__all__ = ["PLOTS", "act", "extent", "moves", "sample_scene"]
