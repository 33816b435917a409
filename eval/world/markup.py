"""Sentences with a tag for every character.

A line of markup is words with single spaces: `*red` is visual, `{then}` is drawn from that wording set, the rest is
template.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from eval.world.vocabulary import WORDING

TAGS = ("template", "visual", "wording")
MARKS = ".,?;:"
Span = tuple[int, int, str]


@dataclass(frozen=True)
class Turn:
    """A question about a clip with its answer; `spans` (first, last + 1, tag) cover the whole answer in order."""

    question: str
    answer: str
    kind: str
    spans: tuple[Span, ...]


def tagged(markup: str, rng: random.Random) -> tuple[str, tuple[Span, ...]]:
    """Text and spans of a line of markup. The space before a word belongs to the word, as in byte-level BPE."""
    text = ""
    spans: list[Span] = []
    for word in markup.split():
        tag = "template"
        if word[0] == "*":
            word, tag = word[1:], "visual"
        elif word[0] == "{":
            if word[1:-1] not in WORDING:
                raise KeyError(f"no wording set {word} in {markup!r}; known: {', '.join(WORDING)}")
            word, tag = rng.choice(WORDING[word[1:-1]]), "wording"
        piece = word if not text or word in MARKS else " " + word
        if spans and spans[-1][2] == tag:
            spans[-1] = (spans[-1][0], len(text) + len(piece), tag)
        else:
            spans.append((len(text), len(text) + len(piece), tag))
        text += piece
    return text, tuple(spans)


def plain(markup: str, rng: random.Random) -> str:
    """The text alone."""
    return tagged(markup, rng)[0]


def turn(question: str, answer: str, kind: str, rng: random.Random) -> Turn:
    """A turn from two lines of markup. A question may hold line breaks (multiple choice): then it is taken as it is."""
    text, spans = tagged(answer, rng)
    return Turn(question if "\n" in question else plain(question, rng), text, kind, spans)
