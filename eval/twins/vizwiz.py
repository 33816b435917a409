"""The VizWiz twin: short questions with ten answers each, a quarter of them unanswerable.

A question cannot be answered where the picture shows nothing (a lens covered by a finger) or where the thing asked
about is not in it. Every form of question is unanswerable in a quarter of its cases, so that its words do not tell.
The ten answers are one answer in ten spellings: they differ in what the stock score takes away (case, articles, full
stops, digits for words), so that a right answer scores 1 and a wrong one 0. Without the picture, "unanswerable" scores
25 % and the best guess for each form 29 %.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from eval.twins.base import Twin, write_card, write_parquet
from eval.twins.stills import Still, first, stills
from eval.world.mvbench import balanced
from eval.world.vocabulary import BACKGROUNDS, COLOURS, NOUNS, NUMBERS, SIZE, WORLD_VERSION

ANSWERS = 10
UNANSWERABLE = "unanswerable"
Row = tuple[Image.Image, str, str]  # picture, question, answer
Words = Callable[[Still], str]


def _noun(still: Still) -> str:
    return still.items[0].noun


def _colour(still: Still) -> str:
    return still.items[0].colour


OTHER: dict[str, tuple[tuple[str, ...], Words]] = {  # question: its answers, and where a still has them
    "what is this?": (NOUNS, _noun),
    "what colour is this?": (tuple(COLOURS), _colour),
    "which ground is this on?": (BACKGROUNDS, lambda still: still.ground),
}
IS_THIS: dict[str, tuple[tuple[str, ...], Words]] = {
    "is this a {}?": (NOUNS, _noun),
    "is this {}?": (tuple(COLOURS), _colour),
}
HOW_MANY = "how many things are here?"


def _alone(rng: random.Random) -> Iterator[Still]:
    """Stills with one thing."""
    return (still for still in stills(rng, ("solo",)) if len(still.items) == 1)


def _with(source: Iterator[Still], words: Words, value: str) -> Still:
    return first(source, lambda still: words(still) == value)[0]


def _other(rng: random.Random) -> Iterator[Row]:
    source = _alone(rng)
    wanted = {question: balanced(rng, values) for question, (values, _) in OTHER.items()}
    for question, (_, words) in cycle(OTHER.items()):
        answer = next(wanted[question])
        yield _with(source, words, answer).image(), question, answer


def _yes_no(rng: random.Random) -> Iterator[Row]:
    """Each question is asked of two pictures: one where the answer is yes, and one where it is no."""
    source = _alone(rng)
    wanted = {form: balanced(rng, values) for form, (values, _) in IS_THIS.items()}
    for form, (values, words) in cycle(IS_THIS.items()):
        value = next(wanted[form])
        wrong = rng.choice([v for v in values if v != value])
        question = form.format(value)
        yield _with(source, words, value).image(), question, "yes"
        yield _with(source, words, wrong).image(), question, "no"


def _number(rng: random.Random) -> Iterator[Row]:
    source = stills(rng, ("solo", "duo", "trio"))
    for number in balanced(rng, NUMBERS[1:]):
        yield _with(source, lambda still: NUMBERS[len(still.items)], number).image(), HOW_MANY, number


def _unanswerable(rng: random.Random) -> Iterator[Row]:
    """The questions of the other categories in the same shares, of a covered lens, or of a ground without things."""
    empty = (still for still in stills(rng, ("order",)) if not still.items)
    about_things = {
        question: values for question, (values, _) in (OTHER | IS_THIS).items() if values is not BACKGROUNDS
    }
    others, checks = cycle(OTHER), cycle(IS_THIS)
    while True:
        for form in (next(others), next(checks), HOW_MANY):
            question = form.format(rng.choice(about_things[form])) if form in IS_THIS else form
            bare = form in about_things and rng.random() < 0.5
            yield next(empty).image() if bare else covered(rng), question, UNANSWERABLE


def covered(rng: random.Random) -> Image.Image:
    """What a camera gives behind a finger: dark noise, RGB 64x64."""
    noise = np.random.default_rng(rng.getrandbits(32)).integers(0, 24, (SIZE, SIZE, 3), dtype=np.uint8)
    return Image.fromarray(noise)


CATEGORIES = {"other": _other, "yes/no": _yes_no, "number": _number, "unanswerable": _unanswerable}


def spellings(answer: str, rng: random.Random) -> list[str]:
    """Ten answers of ten people who mean the same."""
    forms = [answer, answer.capitalize(), f"{answer}."]
    if answer in NOUNS:
        forms += [f"a {answer}", f"The {answer}"]
    if answer in NUMBERS:
        forms.append(str(NUMBERS.index(answer)))
    return [answer] * (ANSWERS - len(forms)) + rng.sample(forms, len(forms))


def rows(count: int, seed: int) -> Iterator[dict[str, Any]]:
    """`count` questions of each category."""
    number = 0
    for category, build in CATEGORIES.items():
        rng = random.Random(f"vizwiz {WORLD_VERSION} {seed} {category}")
        source = build(rng)
        for _ in range(count):
            image, question, answer = next(source)
            yield {
                "question_id": f"VizWiz_val_{number:08d}",
                "image": image,
                "question": question,
                "answers": spellings(answer, rng),
                "category": category,
            }
            number += 1


def write(folder: Path, count: int, seed: int) -> None:
    """One config, split `val`."""
    import datasets

    text = datasets.Value("string")
    features = datasets.Features(
        {"question_id": text, "image": datasets.Image(), "question": text}
        | {"answers": datasets.Sequence(text), "category": text}
    )
    path = write_parquet(folder, "default", "val", list(rows(count, seed)), features)
    write_card(folder, {"default": {"val": path}})


TWIN = Twin(
    name="vizwiz",
    shown=tuple(CATEGORIES),
    not_shown={
        "questions about text": "the world writes none; VizWiz asks for labels, displays and dates",
        "answers that differ in meaning": "the ten people agree, so that a right answer scores 1",
    },
    write=write,
)
