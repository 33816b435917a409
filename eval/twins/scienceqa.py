"""The ScienceQA twin: multiple choice with a hint that states a rule, with a picture or with the facts in words.

`ScienceQA-IMG` asks what only the picture tells: with the hint alone, every choice is as likely as the others.
`ScienceQA-FULL` adds the same lessons without a picture; their hint states what the picture would show, so that text
alone answers them, as in ScienceQA. Each rule is made up anew for its question: knowledge of the world does not help.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from eval.twins.base import Twin, write_card, write_parquet
from eval.twins.stills import CLEAR, Still, first, placed, stills
from eval.world.mvbench import balanced
from eval.world.vocabulary import BACKGROUNDS, SIZES, WORLD_VERSION

PLOTS = ("trio", "bump", "front", "behind", "swap", "shuffle")
POINTS = {"north": ("y", 1), "south": ("y", -1), "west": ("x", 1), "east": ("x", -1)}  # axis, sign towards it
HEAT = ("hot", "warm", "cold")
TRIBES = ("zibs", "dobs", "mups", "tegs")


@dataclass(frozen=True)
class Lesson:
    """`facts` is what the picture shows, in words; `wrong` are the other choices. Equal `key`s are equally frequent."""

    rule: str
    facts: str
    question: str
    answer: str
    wrong: tuple[str, ...]
    key: str


def _map(still: Still, rng: random.Random) -> Lesson | None:
    point = rng.choice(list(POINTS))
    axis, sign = POINTS[point]
    items = sorted(still.items, key=lambda item: sign * getattr(item, axis))
    if any(abs(getattr(a, axis) - getattr(b, axis)) < CLEAR for a, b in pairwise(items)):
        return None
    facts = [f"the {a.noun} lies {point} of the {b.noun}" for a, b in pairwise(items)]
    return Lesson(
        "north is at the top of the map.",
        " and ".join(rng.sample(facts, len(facts))) + ".",
        f"which thing lies farthest {point}?",
        items[0].noun,
        tuple(item.noun for item in items[1:]),
        point,
    )


def _sizes(still: Still) -> str:
    return ", ".join(f"the {item.noun} is {item.size}" for item in still.items) + "."


def _magnet(still: Still, rng: random.Random) -> Lesson | None:
    size = rng.choice(list(SIZES))
    lifted = [item.noun for item in still.items if item.size == size]
    if len(lifted) != 1:
        return None
    return Lesson(
        f"this magnet lifts {size} things and no others.",
        _sizes(still),
        "which thing does the magnet lift?",
        lifted[0],
        tuple(noun for noun in still.nouns if noun != lifted[0]),
        size,
    )


def _heat(still: Still, rng: random.Random) -> Lesson | None:
    heat = dict(zip(SIZES, rng.sample(HEAT, len(HEAT)), strict=True))
    item = rng.choice(still.items)
    answer = heat[item.size]
    return Lesson(
        ", ".join(f"{size} things are {heat[size]}" for size in SIZES) + ".",
        _sizes(still),
        f"how warm is the {item.noun}?",
        answer,
        tuple(word for word in HEAT if word != answer),
        answer,
    )


def _habitat(still: Still, rng: random.Random) -> Lesson | None:
    others = rng.sample([ground for ground in BACKGROUNDS if ground != still.ground], len(TRIBES) - 1)
    lives = dict(zip(rng.sample(TRIBES, len(TRIBES)), [still.ground, *others], strict=True))
    answer = next(tribe for tribe in lives if lives[tribe] == still.ground)
    return Lesson(
        ", ".join(f"{tribe} live on {lives[tribe]}" for tribe in TRIBES) + ".",
        f"the ground here is {still.ground}.",
        "who lives here?",
        answer,
        tuple(tribe for tribe in TRIBES if tribe != answer),
        still.ground,
    )


@dataclass(frozen=True)
class Skill:
    """Where ScienceQA files a skill, and how the twin asks for it."""

    subject: str
    topic: str
    category: str
    ask: Callable[[Still, random.Random], Lesson | None]
    keys: tuple[str, ...]


SKILLS = {
    "Read a map: cardinal directions": Skill("social science", "geography", "Maps", _map, tuple(POINTS)),
    "Predict what a magnet attracts": Skill("natural science", "physics", "Magnets", _magnet, tuple(SIZES)),
    "Compare temperatures": Skill("natural science", "physics", "Thermal energy", _heat, HEAT),
    "Describe ecosystems": Skill("natural science", "biology", "Ecosystems", _habitat, BACKGROUNDS),
}


def rows(pictured: bool, count: int, seed: int) -> Iterator[dict[str, Any]]:
    """`count` questions of each skill, with pictures or without."""
    for name, skill in SKILLS.items():
        rng = random.Random(f"scienceqa {WORLD_VERSION} {seed} {name} {pictured}")
        source = (still for still in stills(rng, PLOTS) if len(still.items) == 3)
        keys = balanced(rng, skill.keys)
        places: Iterator[int] | None = None
        for _ in range(count):
            wanted = next(keys)

            def teach(still: Still, skill=skill, rng=rng, wanted=wanted) -> Lesson | None:
                lesson = skill.ask(still, rng)
                return lesson if lesson and lesson.key == wanted else None

            still, lesson = first(source, teach)
            places = places or balanced(rng, range(len(lesson.wrong) + 1))
            place = next(places)
            yield {
                "image": still.image() if pictured else None,
                "question": lesson.question,
                "choices": placed(lesson.answer, rng.sample(lesson.wrong, len(lesson.wrong)), place),
                "answer": place,
                "hint": lesson.rule if pictured else f"{lesson.facts} {lesson.rule}",
                "task": "closed choice",
                "grade": "grade2",
                "subject": skill.subject,
                "topic": skill.topic,
                "category": skill.category,
                "skill": name,
                "lecture": "",
                "solution": "",
            }


def write(folder: Path, count: int, seed: int) -> None:
    """Configs `ScienceQA-IMG` (with pictures) and `ScienceQA-FULL` (those, and as many without), split `test`."""
    import datasets

    text = ("question", "hint", "task", "grade", "subject", "topic", "category", "skill", "lecture", "solution")
    features = datasets.Features(
        {key: datasets.Value("string") for key in text}
        | {"image": datasets.Image(), "answer": datasets.Value("int8")}
        | {"choices": datasets.Sequence(datasets.Value("string"))}
    )
    pictured, worded = list(rows(True, count, seed)), list(rows(False, count, seed))
    parts = {"ScienceQA-IMG": pictured, "ScienceQA-FULL": pictured + worded}
    write_card(
        folder,
        {config: {"test": write_parquet(folder, config, "test", part, features)} for config, part in parts.items()},
    )


TWIN = Twin(
    name="scienceqa",
    shown=tuple(f"{skill.subject}, {skill.topic}: {name}" for name, skill in SKILLS.items()),
    not_shown={
        "language science": "grammar, vocabulary and rhetoric need texts that the world does not hold",
        "chemistry, earth science, economics, history": "the world shows none of their matter",
        "lectures and solutions": "the columns are empty: no stock task reads them",
    },
    write=write,
)
