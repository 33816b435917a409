"""The SEED-Bench twin: four choices, about pictures (question types 1-9) and clips (10-12, given as eight frames)."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from eval.twins.base import Twin, write_card, write_parquet
from eval.twins.stills import SPLIT, Still, first, placed, sides, stills
from eval.world.markup import plain
from eval.world.mvbench import FPS, balanced, clip
from eval.world.phrases import PRESENT, band
from eval.world.questions import DEEDS, LETTERS, TIES, ask
from eval.world.render import place, render
from eval.world.sample import FREE
from eval.world.scene import Scene, Thing
from eval.world.sprites import sprite
from eval.world.vocabulary import (
    BACKGROUNDS,
    COLOURS,
    COLUMNS,
    FRAMES,
    NOUNS,
    NUMBERS,
    ROWS,
    SIZE,
    WORLD_VERSION,
    owner,
)

CHOICES = 4
EDGES, MARGIN = (24, 40), 3  # where `band` divides the frame, and how far a centre keeps from there, pixels
OVERLAP = 12  # pixels that a thing in front must hide
PLACES = tuple(f"{row} {column}" for row in ROWS for column in COLUMNS)
SEEN_FROM = ("left of it", "right of it", "above it", "below it")
LIES = ("in front of it", "behind it", "touching it", "away from it")
VERBS = tuple(PRESENT[verb] for verb in FREE)


@dataclass(frozen=True)
class Choice:
    """A question with its answer and three wrong ones. Equal `key`s are equally frequent."""

    question: str
    answer: str
    wrong: tuple[str, ...]
    key: str


def _others(rng: random.Random, pool: tuple[str, ...], *without: str) -> tuple[str, ...]:
    return tuple(rng.sample([word for word in pool if word not in without], CHOICES - 1))


def _scene(still: Still, rng: random.Random) -> Choice | None:
    return Choice(
        "which ground does the picture show?", still.ground, _others(rng, BACKGROUNDS, still.ground), still.ground
    )


def _identity(still: Still, rng: random.Random) -> Choice | None:
    if not still.items:
        return None
    noun = rng.choice(still.nouns)
    return Choice("which thing is in the picture?", noun, _others(rng, NOUNS, *still.nouns), noun)


@cache
def colours_of(noun: str) -> tuple[str, ...]:
    """Colours that a noun has in stills of the test split: only these are offered, so that a noun tells nothing."""
    return tuple(c for c in COLOURS if any(owner(noun, c, verb) == SPLIT for verb in FREE if verb != "appear"))


PAIRS = tuple(f"{colour} {noun}" for noun in NOUNS for colour in colours_of(noun))


def _attributes(still: Still, rng: random.Random) -> Choice | None:
    if not still.items:
        return None
    item = rng.choice(still.items)
    wrong = _others(rng, colours_of(item.noun), item.colour)
    return Choice(f"what colour is the {item.noun}?", item.colour, wrong, f"{item.colour} {item.noun}")


def _location(still: Still, rng: random.Random) -> Choice | None:
    if not still.items:
        return None
    item = rng.choice(still.items)
    if any(abs(value - edge) < MARGIN for value in (item.x, item.y) for edge in EDGES):
        return None
    answer = f"{band(item.y, ROWS)} {band(item.x, COLUMNS)}"
    return Choice(f"where in the picture is the {item.noun}?", answer, _others(rng, PLACES, answer), answer)


def _counting(still: Still, rng: random.Random) -> Choice | None:
    number = NUMBERS[len(still.items)]
    return Choice("how many things are in the picture?", number, _others(rng, NUMBERS, number), number)


def _relation(still: Still, rng: random.Random) -> Choice | None:
    if len(still.items) < 2:
        return None
    a, b = rng.sample(still.items, 2)
    across, along = sides(a, b)
    if bool(across) == bool(along):  # diagonal
        return None
    answer = f"{across} of it" if across else f"{along} it"
    question = f"where is the {a.noun}, seen from the {b.noun}?"
    return Choice(question, answer, _others(rng, SEEN_FROM, answer), answer)


def _interaction(still: Still, rng: random.Random) -> Choice | None:
    """How the two things of a relation lie to each other, in any frame."""
    relation = still.scene.relations[0]
    a, b = still.scene.objects[relation.a], still.scene.objects[relation.b]
    lies = _lies(a, b, relation.kind, still.frame)
    if not lies:
        return None
    if rng.random() < 0.5:
        a, b, lies = b, a, {LIES[0]: LIES[1], LIES[1]: LIES[0]}.get(lies, lies)
    return Choice(f"how is the {a.noun} placed to the {b.noun}?", lies, _others(rng, LIES, lies), lies)


def _lies(a: Thing, b: Thing, kind: str, frame: int) -> str:
    """How a lies to b, where a picture shows it clearly, else ""."""
    if kind == "bump":  # touching in the middle of the clip, 13 pixels or more between them at its ends
        return LIES[2] if frame == FRAMES // 2 else LIES[3] if frame in (0, FRAMES - 1) else ""
    pixels_a, pixels_b = _pixels(a, frame), _pixels(b, frame)
    overlap = int((pixels_a & pixels_b).sum())
    hidden, answer = (pixels_a, LIES[1]) if kind == "behind" else (pixels_b, LIES[0])
    return answer if OVERLAP <= overlap <= hidden.sum() / 2 else ""  # else one cannot tell what, or whether


def _pixels(thing: Thing, frame: int) -> np.ndarray:
    """Where a thing is: bool [128, 128], the frame in the middle."""
    out = np.zeros((2 * SIZE, 2 * SIZE), bool)
    if at := place(thing, frame):
        _, remain = sprite(thing.noun, thing.colour, at.width - 2, at.height - 2)
        y, x = at.top + SIZE // 2, at.left + SIZE // 2
        out[y : y + at.height, x : x + at.width] = remain[..., 0] < 128
    return out


def _reasoning(still: Still, rng: random.Random) -> Choice | None:
    """What a thing of three in a row would meet: the next one, or nothing."""
    row = sorted(still.items, key=lambda item: item.x)
    spot, way = rng.randrange(3), rng.choice(("left", "right"))
    target = spot + (1 if way == "right" else -1)
    others = [item.noun for item in row if item is not row[spot]]
    options = ["nothing", *others, rng.choice([noun for noun in NOUNS if noun not in still.nouns])]
    answer = row[target].noun if 0 <= target < 3 else "nothing"
    question = f"if the {row[spot].noun} slid {way}, what would it meet first?"
    key = "nothing" if answer == "nothing" else "something"
    return Choice(question, answer, tuple(option for option in options if option != answer), key)


def _action(still: Still, rng: random.Random) -> Choice | None:
    thing = rng.choice(still.scene.objects)
    if len(thing.acts) != 1:
        return None
    answer = PRESENT[thing.verbs[0]]
    return Choice(f"what does the {thing.noun} do?", answer, _others(rng, VERBS, answer), answer)


def _procedure(still: Still, rng: random.Random) -> Choice | None:
    """Two acts in order; options come in pairs of opposite order, so that none stands out."""
    thing = rng.choice(still.scene.objects)
    acts = tuple(PRESENT[verb] for verb in thing.verbs)
    if len(acts) != 2 or not set(acts) <= set(DEEDS):
        return None
    c, d = rng.sample([deed for deed in DEEDS if deed not in acts], 2)
    answer, *wrong = (f"it {x}, then it {y}" for x, y in ((acts[0], acts[1]), acts[::-1], (c, d), (d, c)))
    return Choice(f"what does the {thing.noun} do, in order?", answer, tuple(wrong), acts[0])


def _prediction(still: Still, rng: random.Random) -> Choice | None:
    """What one thing is about to do to another, where the clip stops; MVBench's question of that name."""
    one = ask("action_prediction", still.scene, rng)
    if not one:
        return None
    return Choice(plain(one.question, rng), one.answer, _others(rng, one.pool, one.answer), one.answer)


@dataclass(frozen=True)
class Type:
    """A question type under SEED-Bench's number. `keys` come equally often. `clip`: the frames of a video question."""

    number: int
    ask: Callable[[Still, random.Random], Choice | None]
    keys: tuple[str, ...]
    plots: tuple[str, ...]
    frames: tuple[int, ...] = (0,)
    clip: Callable[[Scene], np.ndarray] | None = None


SEVERAL = ("duo", "trio", "swap", "shuffle", "bump", "front", "behind")
TYPES = {
    "Scene Understanding": Type(1, _scene, BACKGROUNDS, SEVERAL),
    "Instance Identity": Type(2, _identity, NOUNS, ("swap", "trio", "shuffle")),
    "Instance Attributes": Type(3, _attributes, PAIRS, ("duo",)),
    "Instance Location": Type(4, _location, PLACES, ("solo", "duo", "trio", "shuffle")),
    "Instances Counting": Type(5, _counting, NUMBERS, ("order", "solo", "duo", "trio")),
    "Spatial Relation": Type(6, _relation, SEEN_FROM, ("duo", "trio", "swap", "shuffle")),
    "Instance Interaction": Type(7, _interaction, LIES, ("front", "behind", "bump"), tuple(range(FRAMES))),
    "Visual Reasoning": Type(8, _reasoning, ("nothing", *["something"] * 3), ("shuffle",)),
    "Action Recognition": Type(10, _action, VERBS, ("duo",), clip=render),
    "Action Prediction": Type(
        11,
        _prediction,
        tuple(TIES.values()),
        ("bump", "front", "behind", "swap"),
        clip=partial(clip, "action_prediction"),
    ),
    "Procedure Understanding": Type(12, _procedure, DEEDS, ("duo", "solo"), clip=render),
}


def rows(name: str, count: int, seed: int) -> Iterator[dict[str, Any]]:
    """`count` questions of one type."""
    rng = random.Random(f"seedbench {WORLD_VERSION} {seed} {name}")
    spec = TYPES[name]
    source = stills(rng, spec.plots, spec.frames)
    keys, places = balanced(rng, spec.keys), balanced(rng, range(CHOICES))
    for index in range(count):
        wanted = next(keys)

        def make(still: Still, wanted=wanted) -> Choice | None:
            one = spec.ask(still, rng)
            return one if one and one.key == wanted else None

        still, one = first(source, make)
        correct = next(places)
        options = placed(one.answer, rng.sample(one.wrong, CHOICES - 1), correct)
        kind = "video" if spec.clip else "image"
        yield {
            "data_id": f"{kind}-{spec.number}-{seed}-{index:05d}",
            "data_type": kind,
            "question_id": f"{spec.number}{index:05d}_{seed}",
            "question_type_id": spec.number,
            "question": one.question,
            **{f"choice_{letter.lower()}": option for letter, option in zip(LETTERS, options, strict=False)},
            "answer": LETTERS[correct],
            "segment": [0, FRAMES // FPS] if spec.clip else [],
            "image": _pictures(spec.clip(still.scene)) if spec.clip else [still.image()],
        }


def _pictures(frames: np.ndarray) -> list[Image.Image]:
    return [Image.fromarray(frame) for frame in frames]


def write(folder: Path, count: int, seed: int) -> None:
    """One config, split `test`, type after type."""
    import datasets

    text = ("data_id", "data_type", "question_id", "question", "answer", *(f"choice_{c}" for c in "abcd"))
    features = datasets.Features(
        {key: datasets.Value("string") for key in text}
        | {"question_type_id": datasets.Value("int16"), "segment": datasets.Sequence(datasets.Value("int64"))}
        | {"image": datasets.Sequence(datasets.Image())}
    )
    every = [row for name in TYPES for row in rows(name, count, seed)]
    write_card(folder, {"default": {"test": write_parquet(folder, "default", "test", every, features)}})


TWIN = Twin(
    name="seedbench",
    shown=tuple(TYPES),
    not_shown={"Text Understanding": "the world writes no text"},
    write=write,
)
