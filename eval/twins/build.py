"""Task types -> questions: right answers, their places and the lengths of clips are balanced, each by itself."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from eval.twins.story import Story, Teller
from eval.world.markup import plain
from eval.world.mvbench import balanced
from eval.world.questions import Ask, choices
from eval.world.vocabulary import WORLD_VERSION

TRIES = 5_000

Asker = Callable[[Story, random.Random], list[Ask]]
"""All questions of a kind that a story can show."""


@dataclass(frozen=True)
class Task:
    """One task type.

    ask: its questions about a story. tell: its stories. answers: the right ones, equally frequent; () where they are
    symmetric by themselves (orders, nouns of the story) and cannot be listed. scenes: how many a story has, in turn.
    """

    ask: Asker
    tell: Teller
    answers: tuple[str, ...] = ()
    scenes: tuple[int, ...] = (1,)


@dataclass(frozen=True)
class Item:
    """A question of a twin; `options[correct]` is right."""

    id: str
    task: str
    question: str
    options: tuple[str, ...]
    correct: int
    story: Story

    @property
    def letter(self) -> str:
        return "ABCDE"[self.correct]


def build(benchmark: str, tasks: Mapping[str, Task], most: int, count: int, seed: int) -> Iterator[Item]:
    """`count` questions for each task type with at most `most` options each (fewer where a task has fewer answers)."""
    for name, task in tasks.items():
        rng = random.Random(f"{benchmark} {WORLD_VERSION} {seed} {name}")
        wanted, lengths = balanced(rng, task.answers or ("",)), balanced(rng, task.scenes)
        places: dict[int, Iterator[int]] = {}  # by number of options
        for index in range(count):
            story, one = _find(name, task, next(lengths), next(wanted), rng)
            k = min(most, len(one.pool))
            options = choices(replace(one, options=k), rng)
            options.remove(one.answer)
            correct = next(places.setdefault(k, balanced(rng, range(k))))
            options.insert(correct, one.answer)
            yield Item(
                f"{name}-{seed}-{index:04d}".replace(" ", "-"),
                name, plain(one.question, rng), tuple(options), correct, story,
            )  # fmt: skip


def _find(name: str, task: Task, scenes: int, wanted: str, rng: random.Random) -> tuple[Story, Ask]:
    """A story and a question about it whose answer is the wanted one ("" = any)."""
    for _ in range(TRIES):
        story = task.tell(rng, scenes, wanted)
        found = [one for one in task.ask(story, rng) if wanted in ("", one.answer)]
        if found:
            return story, rng.choice(found)
    raise AssertionError(f"no story of {scenes} scenes answers {name} with {wanted!r} in {TRIES} tries")
