"""Every word that the world can show or say, its prior, and which combinations are held out.

Three kinds of words, one per tag of an answer's tokens: *visual* words (nouns, colours, verbs, places: only the frames
tell), *wording* (free choice among equals: nothing tells), and *template* (the frame of a sentence). Visual words are
listed from common to rare; scenes for training draw them by a Zipf law, benchmarks uniformly.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import accumulate
from typing import TypeVar

T = TypeVar("T")

WORLD_VERSION = "2"
FRAMES = 8
SIZE = 64
SPLITS = ("train", "validation", "test")

NOUNS = ("star", "ball", "box", "ring", "heart", "cross", "kite", "moon", "cone", "cup", "bow", "flag")
COLOURS = {  # RGB
    "red": (225, 25, 30),
    "blue": (35, 60, 235),
    "yellow": (250, 225, 20),
    "green": (20, 165, 40),
    "white": (255, 255, 255),
    "purple": (150, 30, 190),
    "orange": (250, 130, 10),
    "black": (15, 15, 15),
}
SIZES = {"large": 24.0, "small": 14.0, "medium": 19.0}  # longest side, pixels
POSES = {"upright": (1.0, 1.0), "flat": (1.0, 0.5), "thin": (0.5, 1.0)}  # width and height, as shares of the size
VERBS = ("slide", "hop", "spin", "grow", "blink", "stay", "shrink", "vanish", "appear", "swap")
DIRECTIONS = {"right": (1, 0), "left": (-1, 0), "down": (0, 1), "up": (0, -1)}
OPPOSITE = {"right": "left", "left": "right", "down": "up", "up": "down"}
BACKGROUNDS = ("grass", "sand", "brick", "water", "snow", "wood", "stone", "cloth")
TIMES = ("early", "midway", "late")
COUNTS = ("once", "twice", "thrice")
NUMBERS = ("zero", "one", "two", "three")
ROWS = ("top", "middle", "bottom")
COLUMNS = ("left", "centre", "right")
RELATIONS = {"bump": "bumps", "pass": "passes", "behind": "hides behind", "swap": "swaps with"}
ANTONYM = {"grow": "shrink", "shrink": "grow", "appear": "vanish", "vanish": "appear"}

# Free choice: no word of a set says more than another, and every word is drawn with the same probability.
WORDING: dict[str, tuple[str, ...]] = {
    "this": ("this", "that", "the"),
    "clip": ("clip", "video", "scene", "film", "shot"),
    "shows": ("shows", "presents", "holds", "contains", "offers"),
    "thing": ("thing", "shape", "item", "object", "figure"),
    "things": ("things", "shapes", "items", "objects", "figures"),
    "then": ("then", "next", "later", "afterwards", "soon"),
    "first": ("first", "initially", "originally"),
    "meanwhile": ("meanwhile", "besides", "also", "moreover"),
    "simply": ("simply", "just", "clearly", "calmly"),
    "people": ("we", "you", "people", "viewers"),
    "notice": ("notice", "see", "spot", "find", "observe"),
    "part": ("part", "side", "area", "region", "zone"),
    "sitting": ("sitting", "resting", "standing", "placed"),
    "beginning": ("beginning", "start", "opening"),
    "view": ("view", "camera", "picture", "frame"),
    "turns": ("turns", "moves", "goes", "heads"),
}


def zipf(n: int, exponent: float = 1.0) -> list[float]:
    """Weights 1/k**exponent for ranks 1..n, summing to one."""
    raw = [1 / k**exponent for k in range(1, n + 1)]
    return [w / sum(raw) for w in raw]


def draw(rng: random.Random, items: Sequence[T], *, uniform: bool = False) -> T:
    """One of `items`: by a Zipf law over their order, or uniformly."""
    if uniform:
        return items[rng.randrange(len(items))]
    return rng.choices(items, cum_weights=_cumulative(len(items)))[0]


@cache
def _cumulative(n: int) -> list[float]:
    return list(accumulate(zipf(n)))


def _shifts() -> dict[tuple[str, str], int]:
    """One shift per (noun, verb): with the colour's index it says which split owns a combination."""
    rng = random.Random("held-out combinations")
    return {(noun, verb): rng.randrange(len(COLOURS)) for noun in NOUNS for verb in VERBS}


_SHIFTS = _shifts()
_COLOUR_INDEX = {colour: i for i, colour in enumerate(COLOURS)}


def owner(noun: str, colour: str, verb: str) -> str:
    """The split that owns a combination: of a (noun, verb), one colour is test's, one validation's, six are training's.

    So every noun, every colour and every verb is held out equally often, and training sees each of them with many
    partners.
    """
    slot = (_COLOUR_INDEX[colour] + _SHIFTS[noun, verb]) % len(COLOURS)
    return "test" if slot == 0 else "validation" if slot == 1 else "train"


def fits_split(noun: str, colour: str, verbs: Iterable[str], split: str) -> bool:
    """Whether an object may appear in `split`: training shows its own combinations, other splits need one of theirs.

    A held-out object may repeat a training combination with one of two verbs, never one of the other held-out split.
    """
    owners = {owner(noun, colour, verb) for verb in verbs}
    return owners == {"train"} if split == "train" else split in owners and owners <= {split, "train"}
