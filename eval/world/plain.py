"""The plain style: captions, and the endless text on which backbones are pre-trained. One fact per short sentence."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from eval.world.markup import Turn, plain, turn
from eval.world.phrases import does, ground, looks, placed_in_sight, when, where
from eval.world.questions import TASKS, ask, choices, letter_prompt
from eval.world.sample import sample_scene
from eval.world.scene import Scene, Thing
from eval.world.vocabulary import NUMBERS, RELATIONS

CAPTION_PROMPTS = (
    "describe the clip .", "what is there ?", "say what you see .", "caption this {clip} .",
    "what does the {clip} show ?",
    "name the {things} in the {clip} .", "write a caption .", "tell what is on the screen .",
)  # fmt: skip
STARTS = (
    "", "", "{meanwhile}", "{meanwhile} ,", "{then}", "{then} ,", "{first}", "in the {beginning}", "after that ,",
    "there is", "{meanwhile} there is",
)  # fmt: skip


def caption(scene: Scene, rng: random.Random) -> Turn:
    """A short turn in the plain style, mostly visual words: a caption, or half of the time an attribute question."""
    if rng.random() < 0.5:
        asked = [a for a in (ask(task, scene, rng) for task in rng.sample(list(TASKS), 6)) if a]
        if asked:
            one = asked[0]
            return turn(one.question, one.markup, "attribute", rng)
    parts = [_caption(scene, thing, rng) for thing in scene.objects]
    if len(parts) > 2 and rng.random() < 0.5:
        parts = parts[: rng.randint(1, 2)]
    tail = []
    if rng.random() < 0.6:
        tail.append(f"on {ground(scene)}")
    if scene.cut_frame:
        tail.append(f"then on *{scene.cut_background}")
    if scene.camera:
        tail.append(f"the camera goes *{scene.camera}")
    return turn(rng.choice(CAPTION_PROMPTS), " , ".join(parts + tail) + " .", "caption", rng)


def _caption(scene: Scene, thing: Thing, rng: random.Random) -> str:
    acts = " then ".join(does(act) for act in thing.acts)
    place = f" {where(thing)}" if placed_in_sight(scene, thing) and rng.random() < 0.6 else ""
    relation = [r for r in scene.relations if scene.objects[r.a] is thing and r.kind != "swap"]
    if relation:
        other = scene.objects[relation[0].b]
        acts += f" and *{RELATIONS[relation[0].kind]} the *{other.noun}"
    return f"a {looks(thing)}{place} {acts} {when(thing)}".strip()


def corpus(seed: int) -> Iterator[str]:
    """Endless documents for pre-training a language backbone: notes, tales with free wording, dialogues."""
    rng = random.Random(f"corpus {seed}")
    kinds: tuple[Callable[[Scene, random.Random], str], ...] = (_note, _tale, _dialogue, _line)
    while True:
        scene = sample_scene(rng.getrandbits(62), "train")
        yield rng.choices(kinds, (0.1, 0.5, 0.3, 0.1))[0](scene, rng)


def _line(scene: Scene, rng: random.Random) -> str:
    spoken = caption(scene, rng)
    return f"{spoken.question}\n{spoken.answer}"


def _place(thing: Thing) -> str:
    place = where(thing).split()
    return f"at the {place[0]}" if len(place) == 1 else f"at the {place[0]} , on the {place[1]}"


def _note(scene: Scene, rng: random.Random) -> str:
    """Facts in a fixed order, no free wording."""
    lines = [f"there is {ground(scene)} and {NUMBERS[len(scene.objects)]} of them ."]
    for thing in scene.objects:
        lines.append(f"a {looks(thing)} .")
        if placed_in_sight(scene, thing) and rng.random() < 0.6:
            lines.append(f"it is {_place(thing)} .")
        lines.append("it " + " and it ".join(does(act) for act in thing.acts) + f" {when(thing)} .")
    if scene.cut_frame:
        lines.append(f"the ground is {scene.cut_background} in the end .")
    return plain(" ".join(lines), rng)


def _tale(scene: Scene, rng: random.Random) -> str:
    """Sentences with free wording. The joints of fine-tuning answers occur, among others: a backbone knows them."""
    number = f"{NUMBERS[len(scene.objects)]} " + ("{thing}" if len(scene.objects) == 1 else "{things}")
    place = f"on {scene.background}"
    if scene.cut_frame:
        place += rng.choice((f" and {{then}} {scene.cut_background}", "", f" , {{then}} on {scene.cut_background}"))
    comma = rng.choice((" ,", ""))
    lines = [rng.choice((
        f"{{people}} {{notice}} {number} {rng.choice((place, ''))} .",
        f"{{this}} {{clip}} {{shows}} {number} {rng.choice((place, ''))} .",
        f"{place}{comma} {{people}} {{notice}} {number} .",
        f"{place}{comma} there {'is' if len(scene.objects) == 1 else 'are'} {number} .",
    ))]  # fmt: skip
    for thing in scene.objects:
        lines += [_sentence(scene, thing, rng) for _ in range(rng.randint(1, 2))]
    for r in scene.relations:
        a, b = (rng.choice((f"a {looks(o)}", f"the {o.noun}")) for o in (scene.objects[r.a], scene.objects[r.b]))
        start = rng.choice(("{then} ,", "{first}", "{then}", ""))
        manner = rng.choice(("{simply}", ""))
        if scene.plot == "shuffle" or (r.kind == "swap" and rng.random() < 0.3):
            lines.append(f"{start} {a} and {b} {manner} swap .")
        else:
            slide = "" if r.kind == "swap" else rng.choice((f"{does(scene.objects[r.a].acts[0])} and {{then}}", ""))
            lines.append(f"{start} {a} {manner} {slide} {RELATIONS[r.kind]} {b} .")
    if scene.plot == "shuffle":
        names = " , ".join(f"a {looks(o)}" for o in scene.objects[:2]) + f" and a {looks(scene.objects[2])}"
        lines.insert(1, rng.choice((f"{names} are {{sitting}} in a row .", f"{number} are in a row .", f"{names} .")))
    if scene.camera:
        lines.append(f"the {{view}} {{turns}} {scene.camera} .")
    return plain(" ".join(lines), rng)


def _sentence(scene: Scene, thing: Thing, rng: random.Random) -> str:
    """One sentence about a thing: start, subject, place and deeds joined at random."""
    place = f"in the {where(thing)} {{part}}" if placed_in_sight(scene, thing) else ""
    noticed = rng.random() < 0.25
    start = "{people} {notice} " + rng.choice(("", "", "that ", "how ")) if noticed else rng.choice(STARTS)
    if place and rng.random() < 0.3:
        start, place = rng.choice((f"{place} {rng.choice((',', ''))} {start}", f"{start} {place} ,")), ""
    subject = f"a {looks(thing)}"
    if not noticed and rng.random() < 0.4:
        subject = rng.choice(("{this} {thing}", "{this} {thing}", "it", f"the {thing.colour} {thing.noun}"))
    if "there is" in start:
        subject = rng.choice((f"a {looks(thing)}", "some {thing}"))
    if place and rng.random() < 0.4:
        subject += rng.choice((f" , {{sitting}} {place} ,", f" {place}", f" {{sitting}} {place}"))
        place = ""
    that = " that" if "there is" in start or (noticed and rng.random() < 0.7) else ""
    manner = rng.choice(("{simply} ", ""))
    deeds = f"{does(thing.acts[0])} {when(thing)}"
    if len(thing.acts) > 1:
        second = does(thing.acts[1])
        deeds = rng.choice((
            deeds, second, f"{deeds} and {{then}} {second}", f"{{first}} {deeds} and {second} {{then}}",
            f"{deeds} and {second}",
        ))  # fmt: skip
    end = rng.choice(("", "", "", place, "in the {beginning}", "after that"))
    return f"{start} {subject}{that} {manner}{deeds} {end} ."


def _dialogue(scene: Scene, rng: random.Random) -> str:
    """Short questions with answers, some of them multiple choice, and now and then a tale."""
    asked = [a for a in (ask(task, scene, rng) for task in rng.sample(list(TASKS), 8)) if a][:4]
    lines = []
    for one in asked:
        if rng.random() < 0.3:
            options = choices(one, rng)
            answer = "ABCDE"[options.index(one.answer)] if rng.random() < 0.5 else one.answer
            lines.append(f"{letter_prompt(one.question_text(rng), options)}{answer}")
        else:
            lines.append(f"{one.question_text(rng)}\n{one.answer}")
    if rng.random() < 0.5:
        lines.append(plain(rng.choice(CAPTION_PROMPTS), rng) + "\n" + _tale(scene, rng))
    thing = rng.choice(scene.objects)
    lines.append(
        plain(f"what about the {thing.noun} ?", rng) + "\n" + plain(f"it is {thing.colour} and {thing.size} .", rng)
    )
    rng.shuffle(lines)
    return "\n".join(lines)
