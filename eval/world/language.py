"""The fine-tuning style: long sentence answers that join many facts, in frames that the plain style never uses."""

from __future__ import annotations

import random

from eval.world.markup import Turn, turn
from eval.world.phrases import does, ground, looks, placed_in_sight, when, where
from eval.world.questions import LETTERS, TASKS, ask, choices, letter_prompt
from eval.world.scene import Scene, Thing
from eval.world.vocabulary import NUMBERS, RELATIONS

PROMPTS = (
    "what happens in the {clip} ?", "tell me all that goes on here .", "explain the {clip} in full .",
    "give a full account .", "what do {people} {notice} ?", "tell the {clip} from beginning to end .",
    "write about the {clip} at length .",
    "what is going on here ?",
)  # fmt: skip
SHORT = 0.18  # share of letter, yes/no and short answers


def conversation(scene: Scene, rng: random.Random) -> Turn:
    """A turn of the fine-tuning mix: 82 % long answers; the rest are short answers, texts of options and letters."""
    return short(scene, rng) if rng.random() < SHORT else long(scene, rng)


def short(scene: Scene, rng: random.Random) -> Turn:
    """A short answer, from the tasks that the scene can show; one in eight is told by its own question."""
    if rng.random() < 0.125:
        return _told(rng)
    one = next(a for a in (ask(task, scene, rng) for task in rng.sample(list(TASKS), len(TASKS))) if a)
    question = one.question_text(rng)
    draw = rng.random()
    if draw < 0.45:
        options = choices(one, rng)
        prompt = letter_prompt(question, options)
        if draw < 0.1:  # small students cannot bind letters, and options are ranked by their text
            return turn(prompt, f"*{LETTERS[options.index(one.answer)]}", "letter", rng)
        return turn(prompt, one.markup, "choice", rng)
    return turn(question, one.markup, "yesno" if one.answer in ("yes", "no") else "short", rng)


def _told(rng: random.Random) -> Turn:
    """A question that text alone answers: the contrast to all others."""
    first, second = rng.sample(("hops", "spins", "grows", "blinks", "shrinks"), 2)
    ordinal, answer = rng.choice((("first", first), ("last", second)))
    return turn(f"some {{thing}} {first} and then {second} . what does it do {ordinal} ?", answer, "told", rng)


def long(scene: Scene, rng: random.Random) -> Turn:
    """30 to 60 tokens: how many things on which ground, then a sentence for each thing, then camera."""
    sentences = [_opening(scene, rng)]
    if scene.plot == "shuffle":
        sentences += _shuffle(scene)
    elif scene.plot == "solo":
        sentences += _solo(scene, rng)
    else:
        rest = list(scene.objects)
        if scene.relations:
            sentences.append(_relation(scene, rng))
            rest = rest[2:]
        brief = len(scene.objects) > 2 and not scene.relations
        sentences += [_thing(scene, thing, rng, brief and k > 0) for k, thing in enumerate(rest)]
    if scene.camera:
        sentences.append(f"the {{view}} {{turns}} *{scene.camera} .")
    return turn(rng.choice(PROMPTS), " ".join(sentences), "long", rng)


def _opening(scene: Scene, rng: random.Random) -> str:
    things = f"*{NUMBERS[len(scene.objects)]} " + ("{thing}" if len(scene.objects) == 1 else "{things}")
    place = f"on {ground(scene)}" + (f" and {{then}} *{scene.cut_background}" if scene.cut_frame else "")
    return rng.choice((
        f"{{this}} {{clip}} {{shows}} {things} {place} .",
        f"{place} , {{people}} {{notice}} {things} .",
    ))  # fmt: skip


def _deeds(thing: Thing, rng: random.Random) -> str:
    if len(thing.acts) == 1:
        return f"{does(thing.acts[0])} {when(thing)}".rstrip()
    first, second = (does(act) for act in thing.acts)
    return rng.choice((f"{first} and {{then}} {second}", f"{first} and {second} {{then}}"))


def _thing(scene: Scene, thing: Thing, rng: random.Random, brief: bool) -> str:
    deeds = _deeds(thing, rng)
    if brief or not placed_in_sight(scene, thing):
        return rng.choice((
            f"{{meanwhile}} there is a {looks(thing)} that {{simply}} {deeds} .",
            f"{{people}} {{notice}} how a {looks(thing)} {deeds} .",
        ))  # fmt: skip
    place = f"in the {where(thing)} {{part}}"
    return rng.choice((
        f"a {looks(thing)} , {{sitting}} {place} , {{simply}} {deeds} .",
        f"{place} , {{people}} {{notice}} a {looks(thing)} that {deeds} .",
        f"{{meanwhile}} , {place} , a {looks(thing)} {{simply}} {deeds} .",
    ))  # fmt: skip


def _solo(scene: Scene, rng: random.Random) -> list[str]:
    thing = scene.objects[0]
    first, second = (does(act) for act in thing.acts)
    place = f"in the {where(thing)} {{part}}"
    return [
        rng.choice((
            f"a {looks(thing)} , {{sitting}} {place} , {first} in the {{beginning}} .",
            f"in the {{beginning}} a {looks(thing)} {{simply}} {first} {place} .",
        )),
        rng.choice((
            f"after that , {{this}} {{thing}} {{simply}} {second} .",
            f"{{then}} , {{this}} {{thing}} {{simply}} {second} .",
        )),
    ]  # fmt: skip


def _relation(scene: Scene, rng: random.Random) -> str:
    r = scene.relations[0]
    a, b = scene.objects[r.a], scene.objects[r.b]
    tie = f"*{RELATIONS[r.kind]}"
    deed = tie if r.kind == "swap" else f"{does(a.acts[0])} and {{then}} {tie}"
    return f"{{first}} a {looks(a)} {{simply}} {deed} a {looks(b)} ."


def _shuffle(scene: Scene) -> list[str]:
    a, b, c = scene.objects
    lines = [f"a {looks(a)} , a {looks(b)} and a {looks(c)} are {{sitting}} in a row ."]
    for word, r in zip(("first", "then"), scene.relations, strict=True):
        lines.append(f"{{{word}}} the *{scene.objects[r.a].noun} and the *{scene.objects[r.b].noun} {{simply}} swap .")
    return lines
