"""Short questions with one right answer, by task: MVBench's subtasks under their names, and plain attribute questions.

Each task is a function of a scene: an `Ask`, or None where the scene cannot show it. Training turns and the benchmark
twins ask the same questions, of different scenes; those in `UNTAUGHT` are the benchmarks' alone.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from eval.world.acts import time_of
from eval.world.markup import plain
from eval.world.phrases import PRESENT, band
from eval.world.scene import Scene, Thing
from eval.world.vocabulary import (
    ANTONYM,
    BACKGROUNDS,
    COLOURS,
    COLUMNS,
    COUNTS,
    DIRECTIONS,
    NOUNS,
    NUMBERS,
    OPPOSITE,
    POSES,
    SIZES,
    TIMES,
)

LETTERS = "ABCDE"
YES_NO = ("yes", "no")
TIES = {"bump": "bumps", "pass": "passes", "behind": "hides", "swap": "swaps"}
DEEDS = tuple(
    PRESENT[v] for v in ("slide", "hop", "spin", "grow", "blink", "stay")
)  # verbs that can come first and last


@dataclass(frozen=True)
class Ask:
    """A question (markup), its answer (plain words), and the pool of answers that it could have.

    `options` are offered in multiple choice, `near` among them: wrong answers that the clip makes tempting.
    """

    task: str
    question: str
    answer: str
    pool: tuple[str, ...]
    options: int
    near: tuple[str, ...] = ()

    @property
    def markup(self) -> str:
        """The answer as markup: all of it is visual."""
        return " ".join(f"*{word}" for word in self.answer.split())

    def question_text(self, rng: random.Random) -> str:
        return plain(self.question, rng)


def choices(one: Ask, rng: random.Random) -> list[str]:
    """Options in random order: the answer, the near misses, and others of the pool drawn uniformly."""
    near = [o for o in dict.fromkeys(one.near) if o != one.answer][: one.options - 1]
    rest = [o for o in one.pool if o != one.answer and o not in near]
    options = [one.answer, *near, *rng.sample(rest, one.options - 1 - len(near))]
    rng.shuffle(options)
    return options


def letter_prompt(question: str, options: Sequence[str], post: str = "Only give the best option.\n") -> str:
    """Question and options laid out as lmms-eval lays out MVBench's."""
    lines = "".join(f"({letter}) {option}\n" for letter, option in zip(LETTERS, options, strict=False))
    return f"Question:{question}\nOption:\n{lines}{post}"


Asker = Callable[[Scene, random.Random], Ask | None]
TASKS: dict[str, Asker] = {}


def _task(asker: Asker) -> Asker:
    TASKS[asker.__name__] = asker
    return asker


def ask(task: str, scene: Scene, rng: random.Random) -> Ask | None:
    """The question of a task about a scene, or None where the scene cannot show the task."""
    asker = TASKS.get(task) or UNTAUGHT.get(task)
    if asker is None:
        raise ValueError(f"unknown task {task!r}; the world can ask {', '.join((*TASKS, *UNTAUGHT))}")
    return asker(scene, rng)


def _one(rng: random.Random, things: Sequence[Thing]) -> Thing | None:
    return rng.choice(things) if things else None


def _slides(thing: Thing) -> list[str]:
    return [act.direction for act in thing.acts if act.verb == "slide"]


@_task
def moving_direction(scene: Scene, rng: random.Random) -> Ask | None:
    thing = _one(rng, [o for o in scene.objects if len(_slides(o)) == 1])
    return (
        Ask("moving_direction", f"which way does the {thing.noun} slide ?", _slides(thing)[0], tuple(DIRECTIONS), 4)
        if thing
        else None
    )


@_task
def action_antonym(scene: Scene, rng: random.Random) -> Ask | None:
    """A verb or a direction against its opposite."""
    pairs = []
    for o in scene.objects:
        for act in o.acts:
            if act.verb in ANTONYM:
                pairs.append((o, PRESENT[act.verb], PRESENT[ANTONYM[act.verb]]))
            elif act.verb == "slide" and len(_slides(o)) == 1:
                pairs.append((o, f"slides {act.direction}", f"slides {OPPOSITE[act.direction]}"))
    if not pairs:
        return None
    o, answer, other = rng.choice(pairs)
    return Ask("action_antonym", f"what does the {o.noun} do ?", answer, (answer, other), 2)


@_task
def moving_attribute(scene: Scene, rng: random.Random) -> Ask | None:
    sliders = [o for o in scene.objects if _slides(o)]
    if len(sliders) != 1 or len(scene.objects) < 2:
        return None
    others = tuple(o.colour for o in scene.objects if o is not sliders[0])
    return Ask("moving_attribute", "what colour is the sliding {thing} ?", sliders[0].colour, tuple(COLOURS), 4, others)


@_task
def object_existence(scene: Scene, rng: random.Random) -> Ask | None:
    """Half of the answers are no: the colour or the noun is there, but not together."""
    thing = rng.choice(scene.objects)
    noun, colour = thing.noun, thing.colour
    answer = rng.choice(YES_NO)
    if answer == "no" and rng.random() < 0.5:
        noun = rng.choice([n for n in NOUNS if n not in {o.noun for o in scene.objects}])
    elif answer == "no":
        colour = rng.choice([c for c in COLOURS if c not in {o.colour for o in scene.objects}])
    return Ask("object_existence", f"is there a {colour} {noun} ?", answer, YES_NO, 2)


@_task
def action_sequence(scene: Scene, rng: random.Random) -> Ask | None:
    able = [o for o in scene.objects if len(o.acts) == 2 and all(PRESENT[v] in DEEDS for v in o.verbs)]
    if not (thing := _one(rng, able)):
        return None
    k = rng.randrange(2)
    first, last = (PRESENT[v] for v in thing.verbs)
    word, answer, other = ("first", first, last) if k == 0 else ("last", last, first)
    return Ask("action_sequence", f"what does the {thing.noun} do {word} ?", answer, DEEDS, 4, (other,))


@_task
def action_count(scene: Scene, rng: random.Random) -> Ask | None:
    able = [(o, act) for o in scene.objects for act in o.acts if act.count and act.end - act.start == 8]
    if not able:
        return None
    thing, act = rng.choice(able)
    return Ask("action_count", f"how often does the {thing.noun} {act.verb} ?", COUNTS[act.count - 1], COUNTS, 3)


@_task
def state_change(scene: Scene, rng: random.Random) -> Ask | None:
    able = [o for o in scene.objects if not {"spin", "appear", "vanish"} & set(o.verbs)]
    if not (thing := _one(rng, able)):
        return None
    answer = next((PRESENT[v] for v in thing.verbs if v in ("grow", "shrink")), "stays")
    return Ask(
        "state_change", f"how does the size of the {thing.noun} change ?", answer, ("grows", "shrinks", "stays"), 3
    )


@_task
def scene_transition(scene: Scene, rng: random.Random) -> Ask | None:
    """Options come in pairs of opposites, so that no option stands out by what it shares with the others."""
    if not scene.cut_frame:
        return None
    a, b = scene.background, scene.cut_background
    c, d = rng.sample([g for g in BACKGROUNDS if g not in (a, b)], 2)
    pool = (f"{a} to {b}", f"{b} to {a}", f"{c} to {d}", f"{d} to {c}")
    return Ask("scene_transition", "how does the ground change ?", pool[0], pool, 4)


@_task
def character_order(scene: Scene, rng: random.Random) -> Ask | None:
    if len(scene.objects) != 3 or any(o.verbs != ("appear",) for o in scene.objects):
        return None
    if len({o.acts[0].start for o in scene.objects}) < 3:
        return None
    nouns = [o.noun for o in sorted(scene.objects, key=lambda o: o.acts[0].start)]
    word, answer = rng.choice((("first", nouns[0]), ("last", nouns[2])))
    return Ask("character_order", f"which one appears {word} ?", answer, tuple(nouns), 3)


@_task
def moving_count(scene: Scene, rng: random.Random) -> Ask | None:
    number = sum(bool(_slides(o)) for o in scene.objects)
    return Ask("moving_count", "how many {things} slide ?", NUMBERS[number], NUMBERS[:3], 3)


@_task
def object_interaction(scene: Scene, rng: random.Random) -> Ask | None:
    if len(scene.relations) != 1:
        return None
    r = scene.relations[0]
    a, b = scene.objects[r.a].noun, scene.objects[r.b].noun
    return Ask("object_interaction", f"what does the {a} do to the {b} ?", TIES[r.kind], tuple(TIES.values()), 4)


@_task
def action_localization(scene: Scene, rng: random.Random) -> Ask | None:
    able = [
        o for o in scene.objects if len(o.acts) == 1 and time_of(o.acts[0]) and o.verbs[0] not in ("appear", "vanish")
    ]
    thing = _one(rng, able)
    return (
        Ask("action_localization", f"when does the {thing.noun} {thing.verbs[0]} ?", time_of(thing.acts[0]), TIMES, 3)
        if thing
        else None
    )


@_task
def object_shuffle(scene: Scene, rng: random.Random) -> Ask | None:
    if len(scene.relations) != 2:
        return None
    thing = rng.choice(scene.objects)
    x = thing.x + sum(act.dx for act in thing.acts)
    return Ask("object_shuffle", f"where is the {thing.noun} in the end ?", band(x, COLUMNS), COLUMNS, 3)


@_task
def egocentric_navigation(scene: Scene, rng: random.Random) -> Ask | None:
    if not scene.camera:
        return None
    return Ask("egocentric_navigation", "which way does the camera go ?", scene.camera, tuple(DIRECTIONS), 4)


@_task
def fine_grained_pose(scene: Scene, rng: random.Random) -> Ask | None:
    thing = rng.choice(scene.objects)
    return Ask("fine_grained_pose", f"what is the pose of the {thing.noun} ?", thing.pose, tuple(POSES), 3)


@_task
def episodic_reasoning(scene: Scene, rng: random.Random) -> Ask | None:
    """On which of two grounds something happened."""
    able = [
        (o, act)
        for o in scene.objects
        for act in o.acts
        if act.verb in ("appear", "vanish") and act.start != scene.cut_frame
    ]
    if not scene.cut_frame or not able:
        return None
    thing, act = rng.choice(able)
    grounds = (scene.background, scene.cut_background)
    answer, other = grounds if act.start < scene.cut_frame else grounds[::-1]
    return Ask(
        "episodic_reasoning", f"on which ground does the {thing.noun} {act.verb} ?", answer, BACKGROUNDS, 4, (other,)
    )


@_task
def counterfactual_inference(scene: Scene, rng: random.Random) -> Ask | None:
    """Whether something would slide if another thing were not there: no for what is bumped into, yes for all else."""
    sliders = [i for i, o in enumerate(scene.objects) if _slides(o)]
    if len(sliders) != 2:
        return None
    bumped = {r.b for r in scene.relations if r.kind == "bump"}
    i, j = rng.sample(sliders, 2)
    question = f"would the {scene.objects[i].noun} slide without the {scene.objects[j].noun} ?"
    return Ask("counterfactual_inference", question, "no" if i in bumped else "yes", YES_NO, 2)


@_task
def colour(scene: Scene, rng: random.Random) -> Ask | None:
    thing = rng.choice(scene.objects)
    others = tuple(o.colour for o in scene.objects if o is not thing)
    return Ask("colour", f"what colour is the {thing.noun} ?", thing.colour, tuple(COLOURS), 4, others)


@_task
def noun(scene: Scene, rng: random.Random) -> Ask | None:
    thing = rng.choice(scene.objects)
    others = tuple(o.noun for o in scene.objects if o is not thing)
    return Ask("noun", f"what is the {thing.colour} {{thing}} ?", thing.noun, NOUNS, 4, others)


@_task
def size(scene: Scene, rng: random.Random) -> Ask | None:
    thing = rng.choice(scene.objects)
    return Ask("size", f"how large is the {thing.noun} in the beginning ?", thing.size, tuple(SIZES), 3)


@_task
def verb(scene: Scene, rng: random.Random) -> Ask | None:
    thing = _one(rng, [o for o in scene.objects if len(o.acts) == 1])
    return (
        Ask("verb", f"what does the {thing.noun} do ?", PRESENT[thing.verbs[0]], tuple(PRESENT.values()), 4)
        if thing
        else None
    )


@_task
def number(scene: Scene, rng: random.Random) -> Ask | None:
    return Ask("number", "how many {things} are there ?", NUMBERS[len(scene.objects)], NUMBERS[1:], 3)


@_task
def place(scene: Scene, rng: random.Random) -> Ask | None:
    """Whether a thing that stays in its place is left, right or between."""
    thing = _one(rng, [o for o in scene.objects if not scene.camera and not {"slide", "swap"} & set(o.verbs)])
    return Ask("place", f"where is the {thing.noun} ?", band(thing.x, COLUMNS), COLUMNS, 3) if thing else None


@_task
def ground(scene: Scene, rng: random.Random) -> Ask | None:
    return Ask("ground", "on which ground does the {clip} begin ?", scene.background, BACKGROUNDS, 4)


def action_prediction(scene: Scene, rng: random.Random) -> Ask | None:
    """What one thing is about to do to another; to be asked about a clip that stops before it happens."""
    if len(scene.relations) != 1:
        return None
    r = scene.relations[0]
    a, b = scene.objects[r.a].noun, scene.objects[r.b].noun
    question = f"what does the {a} do to the {b} next ?"
    return Ask("action_prediction", question, TIES[r.kind], tuple(TIES.values()), 4)


# Asked by benchmarks alone: a task that joins `TASKS` changes what training says, and with it the world's version.
UNTAUGHT: dict[str, Asker] = {"action_prediction": action_prediction}
