"""The POPE twin: is this object in the picture?

Pictures come in couples, and each is asked about its own three things (yes) and the other's three (no). So every
question is asked once with each answer, and text alone scores exactly one half. The splits differ in how the couple is
chosen, hence in what is asked in vain: `random` takes any other picture, `popular` two pictures of the nouns that
training shows most, `adversarial` two pictures with the same nouns and colours, combined otherwise.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from eval.twins.base import Twin, write_card, write_parquet
from eval.twins.stills import Still, stills
from eval.world.vocabulary import NOUNS, WORLD_VERSION

PLOTS = ("trio", "bump", "front", "behind", "swap", "shuffle")  # three things each
POPULAR = NOUNS[: len(NOUNS) // 2]  # nouns are listed from common to rare
PER_COUPLE = 12  # two pictures, six questions each, as in POPE
Couple = tuple[Still, Still]


def objects(still: Still) -> set[str]:
    return {f"{item.colour} {item.noun}" for item in still.items}


def _full(source: Iterator[Still]) -> Iterator[Still]:
    return (still for still in source if len(still.items) == 3)


def _any(source: Iterator[Still]) -> Iterator[Couple]:
    for a in source:
        yield a, next(b for b in source if objects(a).isdisjoint(objects(b)))


def _popular(source: Iterator[Still]) -> Iterator[Couple]:
    return _any(still for still in source if set(still.nouns) <= set(POPULAR))


def _adversarial(source: Iterator[Still]) -> Iterator[Couple]:
    """Pictures are kept until one comes with the nouns and colours of an earlier one, none of its objects the same."""
    waiting: dict[tuple[frozenset[str], frozenset[str]], list[Still]] = {}
    for b in source:
        key = (frozenset(b.nouns), frozenset(item.colour for item in b.items))
        same = waiting.setdefault(key, [])
        for a in same:
            if objects(a).isdisjoint(objects(b)):
                same.remove(a)
                yield a, b
                break
        else:
            same.append(b)


SPLITS = {"random": _any, "popular": _popular, "adversarial": _adversarial}


def rows(split: str, count: int, seed: int) -> Iterator[dict[str, Any]]:
    """Questions of one split: `count`, rounded up to whole couples of pictures (12 questions)."""
    rng = random.Random(f"pope {WORLD_VERSION} {seed} {split}")
    couples = SPLITS[split](_full(stills(rng, PLOTS)))
    number = 0
    for k in range(-(-count // PER_COUPLE)):
        couple = next(couples)
        for side, still in enumerate(couple):
            image = still.image()
            asked = [(name, "yes") for name in objects(still)] + [(name, "no") for name in objects(couple[1 - side])]
            for name, answer in rng.sample(sorted(asked), len(asked)):
                yield {
                    "id": str(number),
                    "question_id": str(number + 1),
                    "question": f"is there {_article(name)} {name} in the picture?",
                    "answer": answer,
                    "image_source": f"{split}_{seed}_{2 * k + side:06d}",
                    "image": image,
                    "category": split,
                }
                number += 1


def _article(name: str) -> str:
    return "an" if name[0] in "aeiou" else "a"


def write(folder: Path, count: int, seed: int) -> None:
    """Config `Full` with the three splits, and config `default` with all of them in `test`."""
    import datasets

    text = ("id", "question_id", "question", "answer", "image_source", "category")
    features = datasets.Features({key: datasets.Value("string") for key in text} | {"image": datasets.Image()})
    by_split = {split: list(rows(split, count, seed)) for split in SPLITS}
    full = {split: write_parquet(folder, "Full", split, by_split[split], features) for split in SPLITS}
    together = [row for split in ("adversarial", "popular", "random") for row in by_split[split]]
    whole = write_parquet(folder, "default", "test", together, features)
    write_card(folder, {"Full": full, "default": {"test": whole}})


TWIN = Twin(name="pope", shown=tuple(SPLITS), not_shown={}, write=write)
