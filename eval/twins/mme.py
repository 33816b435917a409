"""The MME twin: yes/no questions in pairs, two for each picture.

Pictures come in couples: what holds in one is asked of both, and so for the other. So each picture has one question
with each answer, as MME's acc+ needs, and each question is asked once with each answer: text alone scores one half.

The stock score adds up the categories that it finds, 200 each at most: 1,000 for this twin's five in perception and
200 for its one in cognition, where MME has 2,000 and 800. Guessing scores 75 a category, one constant answer 50.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

from eval.twins.base import Twin, write_card, write_parquet
from eval.twins.stills import Still, first, sides, stills
from eval.world.vocabulary import NUMBERS, WORLD_VERSION

PER_COUPLE = 4
SUFFIX = " Please answer yes or no."  # MME's own; the stock task replaces it by its prompt
Fact = tuple[tuple[str, ...], str]  # a subject and what holds of it


@dataclass(frozen=True)
class Category:
    """`facts`: what holds in a still. `question`: asks for a fact. A false one is another value of a true subject."""

    plots: tuple[str, ...]
    facts: Callable[[Still], set[Fact]]
    question: Callable[[tuple[str, ...], str], str]


def _existence(still: Still) -> set[Fact]:
    return {((), noun) for noun in still.nouns}


def _count(still: Still) -> set[Fact]:
    return {((), NUMBERS[len(still.items)])} if still.items else set()


def _ask_count(_: tuple[str, ...], number: str) -> str:
    return "is there one thing in the picture?" if number == "one" else f"are there {number} things in the picture?"


def _color(still: Still) -> set[Fact]:
    return {((item.noun,), item.colour) for item in still.items}


def _position(still: Still) -> set[Fact]:
    facts: set[Fact] = set()
    for a, b in permutations(still.items, 2):
        across, along = sides(a, b)
        facts |= {((a.noun, b.noun, "x"), f"{across} of")} if across else set()
        facts |= {((a.noun, b.noun, "y"), along)} if along else set()
    return facts


def _scene(still: Still) -> set[Fact]:
    return {((), still.ground)}


def _toward(still: Still) -> set[Fact]:
    """In which direction a thing would have to slide to come closer to another one."""
    opposite = {"left of": "right", "right of": "left", "above": "down", "below": "up"}
    return {(subject, opposite[side]) for subject, side in _position(still)}


SEVERAL = ("duo", "trio", "swap", "shuffle", "bump", "front", "behind")
CATEGORIES = {
    "existence": Category(SEVERAL, _existence, lambda _, noun: f"is there a {noun} in the picture?"),
    "count": Category(("solo", "duo", "trio"), _count, _ask_count),
    "position": Category(SEVERAL, _position, lambda s, side: f"is the {s[0]} {side} the {s[1]}?"),
    "color": Category(SEVERAL, _color, lambda s, colour: f"is the {s[0]} {colour}?"),
    "scene": Category(SEVERAL, _scene, lambda _, ground: f"is the ground in the picture {ground}?"),
    "commonsense_reasoning": Category(
        SEVERAL, _toward, lambda s, way: f"if the {s[0]} slid {way}, would it come closer to the {s[1]}?"
    ),
}


def rows(category: str, count: int, seed: int) -> Iterator[dict[str, Any]]:
    """Questions of one category: `count`, rounded up to whole couples of pictures (4 questions)."""
    rng = random.Random(f"mme {WORLD_VERSION} {seed} {category}")
    spec = CATEGORIES[category]
    source = stills(rng, spec.plots)
    for k in range(-(-count // PER_COUPLE)):
        a, facts = first(source, spec.facts)
        subject, value = rng.choice(sorted(facts))

        def other(still: Still, subject=subject, value=value, facts=facts) -> list[str]:
            """Values of the same subject that hold in this still and not in the first one, if `value` does not hold."""
            found = spec.facts(still)
            return [] if (subject, value) in found else sorted(v for s, v in found - facts if s == subject)

        b, values = first(source, other)
        truths = (value, rng.choice(values))
        for side, still in enumerate((a, b)):
            image, name = still.image(), f"{category}/{seed}_{2 * k + side:04d}.png"
            for asked in rng.sample(truths, 2):
                yield {
                    "question_id": name,
                    "image": image,
                    "question": spec.question(subject, asked) + SUFFIX,
                    "answer": "Yes" if asked == truths[side] else "No",
                    "category": category,
                }


def write(folder: Path, count: int, seed: int) -> None:
    """One config, split `test`, category after category; the two questions of a picture follow each other."""
    import datasets

    text = ("question_id", "question", "answer", "category")
    features = datasets.Features({key: datasets.Value("string") for key in text} | {"image": datasets.Image()})
    every = [row for category in CATEGORIES for row in rows(category, count, seed)]
    write_card(folder, {"default": {"test": write_parquet(folder, "default", "test", every, features)}})


TWIN = Twin(
    name="mme",
    shown=tuple(CATEGORIES),
    not_shown={
        "posters": "the world has no films or books",
        "celebrity": "the world has no people",
        "landmark": "the world has no places with a name",
        "artwork": "the world has no paintings",
        "OCR": "the world writes no text",
        "numerical_calculation": "the world writes no sums",
        "text_translation": "the world writes no text",
        "code_reasoning": "the world writes no code",
    },
    write=write,
)
