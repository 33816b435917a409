"""Questions about one scene that MVBench does not ask: places, deeds, causes, what was before, what would be without.

Each gives all questions that a story can show, with all their answers; pools hold only words that can be right, so that
no option is ruled out by text alone. In a story of several scenes the question names the scene's ground.
"""

from __future__ import annotations

import random
from dataclasses import replace
from functools import cache

from eval.twins.build import Asker
from eval.twins.story import Story
from eval.world.phrases import PRESENT, band
from eval.world.questions import DEEDS, Ask, ask
from eval.world.scene import Scene, Thing
from eval.world.vocabulary import COLOURS, COLUMNS, DIRECTIONS, FRAMES, NOUNS, ROWS, VERBS, owner

ACTIONS = tuple(PRESENT[v] for v in VERBS if v != "swap")  # what one thing can do on its own
PLACES = tuple(
    f"{r} {c}" for r in ROWS for c in COLUMNS if (r, c) != ("middle", "centre")
)  # lanes leave the middle out
SIDES = ("left", "right", "top", "bottom")
MOVES = (*(f"slides {d}" for d in DIRECTIONS), "stays")
ALONE = ("stays", "slides", "hops")
BUMPS = tuple(f"the {noun} bumps it" for noun in NOUNS)


def asked(question: str, answer: str, pool: tuple[str, ...], near: tuple[str, ...] = ()) -> Ask:
    """A question of a twin: as many options as the benchmark has."""
    return Ask("", question, answer, pool, len(pool), near)


def at(story: Story, scene: Scene, question: str) -> str:
    """The question, with the scene's ground before it where there are others."""
    return f"on {scene.background} , {question}" if len(story.scenes) > 1 else question


def about(task: str) -> Asker:
    """A question of the world about each scene."""

    def asker(story: Story, rng: random.Random) -> list[Ask]:
        found = [(scene, ask(task, scene, rng)) for scene in story.scenes]
        return [replace(one, question=at(story, scene, one.question)) for scene, one in found if one]

    return asker


def tempting(rng: random.Random, shown: list[str], weights: dict[str, float]) -> tuple[str, ...]:
    """Options of the question for a colour or a noun: what else the scene shows, then others drawn by their weights.

    Only those that can be right: held-out combinations leave some colours of a noun out, and whoever knows which would
    never take them. Weights say how often each is right where right answers are even.
    """
    drawn = sorted((w for w in weights if weights[w]), key=lambda w: rng.random() ** (1 / weights[w]), reverse=True)
    return tuple(dict.fromkeys([*(w for w in shown if weights[w]), *drawn]))


@cache
def _test_verbs(noun: str, colour: str) -> int:
    """The verbs that make a test combination of a noun and a colour; for a noun, ten over all colours."""
    return sum(owner(noun, colour, verb) == "test" for verb in VERBS)


def colours_of(noun: str) -> dict[str, float]:
    """Weights of the colours that a noun has in test scenes."""
    return {c: _test_verbs(noun, c) / sum(_test_verbs(n, c) for n in NOUNS) for c in COLOURS}


def _nouns_of(colour: str) -> dict[str, float]:
    return {n: float(_test_verbs(n, colour)) for n in NOUNS}


def colour(story: Story, rng: random.Random) -> list[Ask]:
    """The colour of a thing, told by its noun."""
    found = []
    for scene in story.scenes:
        for o in scene.objects:
            near = tempting(rng, [b.colour for b in scene.objects if b is not o], colours_of(o.noun))
            found.append(asked(at(story, scene, f"what colour is the {o.noun} ?"), o.colour, near, near))
    return found


def noun(story: Story, rng: random.Random) -> list[Ask]:
    """The noun of a thing, told by its colour."""
    found = []
    for scene in story.scenes:
        for o in scene.objects:
            near = tempting(rng, [b.noun for b in scene.objects if b is not o], _nouns_of(o.colour))
            found.append(asked(at(story, scene, f"what is the {o.colour} {{thing}} ?"), o.noun, near, near))
    return found


def _whole(thing: Thing) -> bool:
    """One act that lasts from the first frame to the last."""
    return len(thing.acts) == 1 and thing.acts[0].end - thing.acts[0].start == FRAMES


def deed(story: Story, rng: random.Random) -> list[Ask]:
    """What a thing does that does one thing."""
    return [
        asked(at(story, scene, f"what does the {o.noun} do ?"), PRESENT[o.verbs[0]], ACTIONS)
        for scene in story.scenes
        for o in scene.objects
        if len(o.acts) == 1 and PRESENT[o.verbs[0]] in ACTIONS
    ]


def place(story: Story, rng: random.Random) -> list[Ask]:
    """Row and column of a thing that keeps its place."""
    return [
        asked(at(story, scene, f"where is the {o.noun} ?"), f"{band(o.y, ROWS)} {band(o.x, COLUMNS)}", PLACES)
        for scene in story.scenes
        if not scene.camera
        for o in scene.objects
        if not {"slide", "swap"} & set(o.verbs)
    ]


def side(story: Story, rng: random.Random) -> list[Ask]:
    """On which side of another a thing is, where they share a row or a column and both keep their places."""
    found = []
    for scene in story.scenes:
        still = [o for o in scene.objects if not {"slide", "swap"} & set(o.verbs)]
        for a in still:
            for b in still:
                dx, dy = a.x - b.x, a.y - b.y
                if min(abs(dx), abs(dy)) < 8 and max(abs(dx), abs(dy)) > 20:
                    column, row = ("left" if dx < 0 else "right"), ("top" if dy < 0 else "bottom")
                    answer = column if abs(dx) > abs(dy) else row
                    question = f"on which side of the {b.noun} is the {a.noun} ?"
                    found.append(asked(at(story, scene, question), answer, SIDES))
    return found


def cause(story: Story, rng: random.Random) -> list[Ask]:
    """Why something slides that another thing bumped into; the bystander is the tempting answer."""
    found = []
    for scene in story.scenes:
        for r in scene.relations:
            if r.kind == "bump":
                a, b = scene.objects[r.a].noun, scene.objects[r.b].noun
                others = tuple(f"the {o.noun} bumps it" for o in scene.objects if o.noun not in (a, b))
                pool = tuple(bump for bump in BUMPS if bump != f"the {b} bumps it")
                question = at(story, scene, f"why does the {b} slide ?")
                found.append(asked(question, f"the {a} bumps it", pool, others))
    return found


def movement(story: Story, rng: random.Random) -> list[Ask]:
    """How a thing moves: it slides in a direction, or stays."""
    return [
        asked(at(story, scene, f"how does the {o.noun} move ?"), answer, MOVES)
        for scene in story.scenes
        for o in scene.objects
        if _whole(o) and (answer := f"{PRESENT[o.verbs[0]]} {o.acts[0].direction}".strip()) in MOVES
    ]


def _neighbour(story: Story, word: str, told: int) -> list[Ask]:
    found = []
    for scene in story.scenes:
        for o in scene.objects:
            if len(o.acts) == 2 and all(PRESENT[v] in DEEDS for v in o.verbs):
                pool = tuple(d for d in DEEDS if d != PRESENT[o.verbs[told]])
                question = f"what does the {o.noun} do {word} it {PRESENT[o.verbs[told]]} ?"
                found.append(asked(at(story, scene, question), PRESENT[o.verbs[1 - told]], pool))
    return found


def after(story: Story, rng: random.Random) -> list[Ask]:
    """The second of two deeds, told by the first."""
    return _neighbour(story, "after", 0)


def before(story: Story, rng: random.Random) -> list[Ask]:
    """The first of two deeds, told by the second."""
    return _neighbour(story, "before", 1)


def meanwhile(story: Story, rng: random.Random) -> list[Ask]:
    """What one thing does while another does something."""
    return [
        asked(
            at(story, scene, f"what does the {a.noun} do while the {b.noun} {PRESENT[b.verbs[0]]} ?"),
            PRESENT[a.verbs[0]],
            DEEDS,
        )
        for scene in story.scenes
        for a in scene.objects
        for b in scene.objects
        if a is not b and all(_whole(o) and PRESENT[o.verbs[0]] in DEEDS for o in (a, b))
    ]


def gone(story: Story, rng: random.Random) -> list[Ask]:
    """The one thing that vanishes, among others that do not."""
    found = []
    for scene in story.scenes:
        vanished = [o.noun for o in scene.objects if "vanish" in o.verbs]
        if len(vanished) == 1 and len(scene.objects) > 1:
            others = tuple(o.noun for o in scene.objects if o.noun != vanished[0])
            found.append(asked(at(story, scene, "which one is not there in the end ?"), vanished[0], NOUNS, others))
    return found


def hider(story: Story, rng: random.Random) -> list[Ask]:
    """What something slides behind; the bystander is the tempting answer."""
    found = []
    for scene in story.scenes:
        for r in scene.relations:
            if r.kind == "behind":
                a, b = scene.objects[r.a].noun, scene.objects[r.b].noun
                others = tuple(o.noun for o in scene.objects if o.noun not in (a, b))
                question = at(story, scene, f"what does the {a} hide behind ?")
                found.append(asked(question, b, tuple(n for n in NOUNS if n != a), others))
    return found


def without(story: Story, rng: random.Random) -> list[Ask]:
    """What a thing would do without another: what was bumped into would stay, all else does what it does."""
    found = []
    for scene in story.scenes:
        bumped = {r.b for r in scene.relations if r.kind == "bump"}
        for i, o in enumerate(scene.objects):
            answer = "stays" if i in bumped else PRESENT[o.verbs[0]]
            if len(o.acts) == 1 and answer in ALONE and (answer == "stays") == (i in bumped):
                others = [b for b in scene.objects if b is not o]
                other = (
                    scene.objects[next(r.a for r in scene.relations if r.b == i)] if i in bumped else rng.choice(others)
                )
                question = f"what would the {o.noun} do without the {other.noun} ?"
                found.append(asked(at(story, scene, question), answer, ALONE))
    return found
