"""Questions across the scenes of a story: what comes first or next, how often, what is unlike the rest, the subject.

As in `scene_questions`, each gives all questions that a story can show. Wrong answers are drawn from the story where
that tempts, and in a way that is symmetric to the right one: text alone does not tell them apart.
"""

from __future__ import annotations

import random
from collections import Counter
from itertools import permutations

from eval.twins.scene_questions import ACTIONS, asked, colours_of, tempting
from eval.twins.story import Story
from eval.world.phrases import PRESENT
from eval.world.questions import TIES, Ask
from eval.world.scene import Scene, Thing
from eval.world.vocabulary import BACKGROUNDS, DIRECTIONS, NOUNS, NUMBERS

COUNTED = ("slide", "hop", "spin", "blink")  # deeds that scenes show equally often
PAIRS = tuple(f"{a} and {b}" for a in NUMBERS[1:] for b in NUMBERS[1:])
WAYS = (*DIRECTIONS, "nowhere")


def _mixed(rng: random.Random, items: list[str]) -> tuple[str, ...]:
    return tuple(rng.sample(items, len(items)))


def _lone(story: Story) -> list[tuple[Scene, Thing]]:
    """The things whose noun is in no other scene."""
    return [(s, o) for s in story.scenes for o in s.objects if len(story.having(o.noun)) == 1]


def _orders(items: list[str]) -> tuple[str, ...]:
    return tuple(" , ".join(order) for order in permutations(items))


def edge_ground(story: Story, rng: random.Random) -> list[Ask]:
    """The first or the last ground."""
    grounds = [s.background for s in story.scenes]
    return [
        asked(f"on which ground does the video {word} ?", grounds[k], BACKGROUNDS, _mixed(rng, grounds))
        for word, k in (("begin", 0), ("end", -1))
    ]


def ground_order(story: Story, rng: random.Random) -> list[Ask]:
    """Three grounds of the story in the order of their scenes."""
    kept = [story.scenes[i].background for i in sorted(rng.sample(range(len(story.scenes)), 3))]
    return [asked("in which order do the grounds come ?", " , ".join(kept), _orders(kept))]


def thing_order(story: Story, rng: random.Random) -> list[Ask]:
    """Three things of different scenes in the order of these."""
    found = _lone(story)
    lone = {scene.background: o.noun for scene, o in rng.sample(found, len(found))}
    kept = [lone[s.background] for s in story.scenes if s.background in lone]
    if len(kept) < 3:
        return []
    kept = [kept[i] for i in sorted(rng.sample(range(len(kept)), 3))]
    return [asked("in which order do the {things} come ?", " , ".join(kept), _orders(kept))]


def next_thing(story: Story, rng: random.Random) -> list[Ask]:
    """What the next scene shows; for stories with one thing in each scene."""
    found = []
    for scene, following in zip(story.scenes, story.scenes[1:], strict=False):
        noun, answer = scene.objects[0].noun, following.objects[0].noun
        if noun != answer and len(story.having(noun)) == 1:
            others = [n for n in story.nouns if n not in (noun, answer)]
            pool = tuple(n for n in NOUNS if n != noun)
            found.append(asked(f"which one comes next after the {noun} ?", answer, pool, _mixed(rng, others)))
    return found


def _events(scenes: list[Scene]) -> list[tuple[str, str]]:
    """Noun and sentence of what each thing does that does one thing and does not just stay."""
    return [
        (o.noun, f"the {o.noun} {PRESENT[o.verbs[0]]}")
        for s in scenes
        for o in s.objects
        if len(o.acts) == 1 and o.verbs[0] != "stay"
    ]


def next_event(story: Story, rng: random.Random) -> list[Ask]:
    """What happens in the next scene after something has happened in one."""
    found = []
    every = Counter(event for _, event in _events(list(story.scenes)))
    for k, following in enumerate(story.scenes[1:]):
        for noun, event in _events([story.scenes[k]]):
            answers = [e for n, e in _events([following]) if n != noun and every[e] == 1]
            rest = [e for n, e in _events([s for s in story.scenes if s is not following]) if n != noun]
            if every[event] > 1 or not answers or len(set(rest)) < 4:
                continue
            answer = rng.choice(answers)
            near = _mixed(rng, sorted(set(rest)))
            found.append(asked(f"{event} . what comes next after that ?", answer, (answer, *near), near))
    return found


def grounds_with_thing(story: Story, rng: random.Random) -> list[Ask]:
    """In how many scenes a noun is."""
    counts = {noun: len(story.having(noun)) for noun in NOUNS}
    return [
        asked(f"on how many grounds is there a {noun} ?", NUMBERS[c], NUMBERS) for noun, c in counts.items() if c < 4
    ]


def grounds_with_deed(story: Story, rng: random.Random) -> list[Ask]:
    """In how many scenes something does a deed."""
    counts = {verb: sum(any(verb in o.verbs for o in s.objects) for s in story.scenes) for verb in COUNTED}
    return [
        asked(f"on how many grounds does some {{thing}} {verb} ?", NUMBERS[c], NUMBERS)
        for verb, c in counts.items()
        if c < 4
    ]


def numbers(story: Story, rng: random.Random) -> list[Ask]:
    """How many things are in each of two scenes."""
    a, b = story.scenes
    answer = f"{NUMBERS[len(a.objects)]} and {NUMBERS[len(b.objects)]}"
    question = f"how many {{things}} are there on {a.background} and how many on {b.background} ?"
    return [asked(question, answer, PAIRS)]


def repeated(story: Story, rng: random.Random) -> list[Ask]:
    """The one noun that is in more scenes than one."""
    twice = [noun for noun in story.nouns if len(story.having(noun)) > 1]
    if len(twice) != 1:
        return []
    return [asked("which one is there on more than one ground ?", twice[0], NOUNS, _mixed(rng, story.nouns))]


def subject(story: Story, rng: random.Random) -> list[Ask]:
    """The one noun that is in more than half of the scenes."""
    main = [noun for noun in story.nouns if len(story.having(noun)) * 2 > len(story.scenes)]
    if len(main) != 1:
        return []
    return [asked("what is the video about , in most of it ?", main[0], NOUNS, _mixed(rng, story.nouns))]


def lone_colour(story: Story, rng: random.Random) -> list[Ask]:
    """The colour of something that only one scene shows."""
    found = []
    for scene, o in _lone(story):
        near = tempting(rng, [b.colour for b in scene.objects if b is not o], colours_of(o.noun))
        found.append(asked(f"what colour is the {o.noun} ?", o.colour, near, near))
    return found


def lone_deed(story: Story, rng: random.Random) -> list[Ask]:
    """What something does that only one scene shows."""
    return [
        asked(f"what does the {o.noun} do ?", PRESENT[o.verbs[0]], ACTIONS)
        for _, o in _lone(story)
        if len(o.acts) == 1 and PRESENT[o.verbs[0]] in ACTIONS
    ]


def lone_ground(story: Story, rng: random.Random) -> list[Ask]:
    """The ground of something that only one scene shows."""
    grounds = _mixed(rng, [s.background for s in story.scenes])
    return [
        asked(f"on which ground is the {o.noun} ?", scene.background, BACKGROUNDS, grounds) for scene, o in _lone(story)
    ]


def doer(story: Story, rng: random.Random) -> list[Ask]:
    """The only thing that does a deed."""
    done = Counter(verb for s in story.scenes for o in s.objects for verb in o.verbs)
    return [
        asked(f"which one {PRESENT[verb]} ?", o.noun, NOUNS, _mixed(rng, story.nouns))
        for _, o in _lone(story)
        for verb in o.verbs
        if done[verb] == 1
    ]


def thing_on(story: Story, rng: random.Random) -> list[Ask]:
    """The thing of a scene, among things of others; for stories with one thing in each scene."""
    return [
        asked(f"which one is there on {s.background} ?", s.objects[0].noun, NOUNS, _mixed(rng, story.nouns))
        for s in story.scenes
    ]


def other_ground(story: Story, rng: random.Random) -> list[Ask]:
    """Where else something is that two scenes show."""
    found = []
    for noun in story.nouns:
        if len(having := story.having(noun)) == 2:
            here, there = rng.sample([s.background for s in having], 2)
            pool = tuple(g for g in BACKGROUNDS if g != here)
            near = [s.background for s in story.scenes if s.background != here]
            question = f"there is a {noun} on {here} . on which ground is there one also ?"
            found.append(asked(question, there, pool, _mixed(rng, near)))
    return found


def other_colour(story: Story, rng: random.Random) -> list[Ask]:
    """The colour of something in the second of two scenes, told its other colour in the first."""
    found = []
    for noun in story.nouns:
        if len(having := story.having(noun)) == 2:
            (here, old), (there, new) = (
                (s.background, next(o.colour for o in s.objects if o.noun == noun)) for s in having
            )
            near = tempting(rng, [], colours_of(noun) | {old: 0})
            if old != new and len(near) >= 5:  # one noun has too few other colours for five options
                question = f"the {noun} is {old} on {here} . what colour is it then , on {there} ?"
                found.append(asked(question, new, near, near))
    return found


def encounter(story: Story, rng: random.Random) -> list[Ask]:
    """What happens in the one scene where things meet."""
    kinds = [TIES[r.kind] for s in story.scenes for r in s.relations]
    if len(kinds) != 1:
        return []
    question = "two {things} meet . what does one do to the other ?"
    return [asked(question, kinds[0], tuple(TIES.values()))]


def camera_order(story: Story, rng: random.Random) -> list[Ask]:
    """The directions of the camera, scene by scene; all are different."""
    ways = [s.camera for s in story.scenes]
    return [asked("which way does the camera go first , and which way then ?", " , ".join(ways), _orders(ways))]


def main_ground(story: Story, rng: random.Random) -> list[Ask]:
    """The ground of the most scenes."""
    (ground, most), (_, less) = Counter(s.background for s in story.scenes).most_common(2)
    grounds = _mixed(rng, list({s.background: None for s in story.scenes}))
    return [asked("on which ground is most of the video ?", ground, BACKGROUNDS, grounds)] if most > less else []


def main_way(story: Story, rng: random.Random) -> list[Ask]:
    """Where the camera goes in most scenes, if anywhere."""
    (way, most), *_ = Counter(s.camera for s in story.scenes).most_common(1)
    if most * 2 <= len(story.scenes):
        return []
    return [asked("which way does the camera go , in most of the video ?", way or "nowhere", WAYS)]
