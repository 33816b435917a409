"""The Vinoground twin: pairs of clips that hold the same frames in another order, and captions of the same words.

The second clip of a pair is the first one with its halves exchanged, or played backwards: frame by frame the two are
equal, and so are the words of their captions. Only order tells them apart. A model without eyes gives both clips of a
pair the same letter, and scores 0 where guessing scores 25, 25 (text, video) and 6.25 (group).

There are always 500 pairs, whatever `count` says: the stock score divides by 500 and fails where a pair is missing.
They take about 8 seconds and 12 MB.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from eval.twins.base import Twin, write_card, write_parquet, write_video
from eval.twins.stills import SPLIT, TRIES
from eval.world.markup import plain
from eval.world.mvbench import FPS, balanced
from eval.world.phrases import does
from eval.world.render import render
from eval.world.sample import sample_scene
from eval.world.scene import Act, Scene, Thing
from eval.world.vocabulary import BACKGROUNDS, FRAMES, OPPOSITE, fits_split

PAIRS = 500
BLACK = 2 * FPS  # frames between the two clips of a video question: two seconds
HALF = FRAMES // 2
REPEATABLE = {"hop", "spin", "blink"}  # a thing rests after them as it rested before
VIDEOS, CONCATED = "vinoground_videos", "vinoground_videos_concated"  # (sic)
LETTER = "Answer with the option's letter from the given choices directly."


@dataclass(frozen=True)
class Pair:
    """Two clips (uint8 [8, 64, 64, 3]) with their captions."""

    clips: tuple[np.ndarray, np.ndarray]
    captions: tuple[str, str]


def _halves(scene: Scene, *captions: str) -> Pair:
    frames = render(scene)
    return Pair((frames, np.concatenate([frames[HALF:], frames[:HALF]])), (captions[0], captions[1]))


def _backwards(scene: Scene, *captions: str) -> Pair:
    frames = render(scene)
    return Pair((frames, frames[::-1]), (captions[0], captions[1]))


def _with(thing: Thing, *acts: Act) -> Thing | None:
    """The thing with other acts, if the test split may show it so."""
    fits = fits_split(thing.noun, thing.colour, {act.verb for act in acts}, SPLIT)
    return replace(thing, acts=acts) if fits else None


def _alone(scene: Scene, thing: Thing) -> Scene:
    return replace(scene, objects=(thing,), relations=(), cut_frame=0, cut_background="", camera="")


def _in_order(scene: Scene, first: str, last: str) -> Pair:
    noun = scene.objects[0].noun
    return _halves(scene, f"the {noun} {first} and then {last}", f"the {noun} {last} and then {first}")


def _two_acts(scene: Scene, rng: random.Random) -> Pair | None:
    thing = scene.objects[0]
    if not set(thing.verbs) <= REPEATABLE:
        return None
    first, last = (plain(does(act), rng) for act in thing.acts)
    return _in_order(_alone(scene, thing), first, last)


def _there_and_back(scene: Scene, rng: random.Random) -> Pair | None:
    out = scene.objects[0].acts[0]
    if out.verb != "slide":
        return None
    back = replace(out, start=HALF, end=FRAMES, direction=OPPOSITE[out.direction], dx=-out.dx, dy=-out.dy)
    thing = _with(scene.objects[0], out, back)
    return _in_order(_alone(scene, thing), f"slides {out.direction}", f"slides {back.direction}") if thing else None


def _size(scene: Scene, rng: random.Random) -> Pair | None:
    if scene.objects[0].size == "large":  # would grow out of the frame
        return None
    thing = _with(scene.objects[0], Act("grow", 0, HALF), Act("shrink", HALF, FRAMES))
    return _in_order(_alone(scene, thing), "grows", "shrinks") if thing else None


def _bump(scene: Scene, rng: random.Random) -> Pair | None:
    a, b = (scene.objects[k].noun for k in (0, 1))
    scene = replace(scene, objects=scene.objects[:2], cut_frame=0, cut_background="")
    return _backwards(scene, f"the {a} bumps the {b}", f"the {b} bumps the {a}")


def _turn_into(scene: Scene, rng: random.Random) -> Pair | None:
    """One thing vanishes in the moment in which another one appears in its place."""
    old, new = scene.objects[:2]
    gone = _with(old, Act("vanish", HALF, HALF + 1))
    come = _with(replace(new, x=old.x, y=old.y), Act("appear", HALF, HALF + 1))
    if not gone or not come:
        return None
    captions = (f"the {a.noun} turns into the {b.noun}" for a, b in ((old, new), (new, old)))
    return _halves(replace(scene, objects=(gone, come), cut_frame=0, cut_background=""), *captions)


def _ground(scene: Scene, rng: random.Random) -> Pair | None:
    thing = _with(scene.objects[0], Act("stay"))
    if not thing:
        return None
    a, b = scene.background, rng.choice([ground for ground in BACKGROUNDS if ground != scene.background])
    captions = (f"the ground changes from {x} to {y}" for x, y in ((a, b), (b, a)))
    return _halves(replace(_alone(scene, thing), cut_frame=HALF, cut_background=b), *captions)


def _camera(scene: Scene, rng: random.Random) -> Pair | None:
    thing = _with(scene.objects[0], Act("stay"))
    if not thing:
        return None
    names = {"right": "right", "left": "left", "up": "top", "down": "bottom"}
    ends = names[OPPOSITE[scene.camera]], names[scene.camera]
    captions = (f"the camera goes from the {x} to the {y}" for x, y in (ends, ends[::-1]))
    return _backwards(replace(scene, objects=(thing,)), *captions)


@dataclass(frozen=True)
class Kind:
    """Pairs of one making, under Vinoground's categories: one major, and minors joined by ";" or None."""

    major: str
    minor: str | None
    plot: str
    build: Callable[[Scene, random.Random], Pair | None]


KINDS = (
    Kind("action", None, "solo", _two_acts),
    Kind("action", "cyclical;spatial", "solo", _there_and_back),
    Kind("action", "interaction", "bump", _bump),
    Kind("object", "cyclical", "solo", _size),
    Kind("object", None, "order", _turn_into),
    Kind("viewpoint", "contextual", "solo", _ground),
    Kind("viewpoint", "spatial", "camera", _camera),
)


def pairs(seed: int) -> Iterator[tuple[Kind, Pair]]:
    """Endless pairs, every kind equally often; which of the two comes first is random."""
    rng = random.Random(f"vinoground {seed}")
    for kind in balanced(rng, KINDS):
        pair = _first(kind, rng)
        yield kind, pair if rng.random() < 0.5 else Pair(pair.clips[::-1], pair.captions[::-1])


def _first(kind: Kind, rng: random.Random) -> Pair:
    for _ in range(TRIES):
        if pair := kind.build(sample_scene(rng.getrandbits(53), SPLIT, kind.plot, uniform=True), rng):
            return pair
    raise AssertionError(f"no scene of plot {kind.plot} makes a pair")


def write(folder: Path, count: int, seed: int) -> None:
    """500 pairs: split `lmmseval` with 4 rows each, the clips, and the two JSON lists that the stock task reads.

    In half of the pairs the first option is right for the first clip. `video_name` is relative to `folder`.
    """
    import datasets

    rng = random.Random(f"vinoground order {seed}")
    flips = balanced(rng, (0, 1)), balanced(rng, (0, 1))
    black = np.zeros((BLACK, *render(sample_scene(0, SPLIT)).shape[1:]), np.uint8)
    rows, texts, videos = [], [], []
    for index, (kind, pair) in zip(range(PAIRS), pairs(seed), strict=False):
        text_flip, video_flip = (next(flip) for flip in flips)
        options, segments = (pair.captions, pair.clips)
        options = options[::-1] if text_flip else options
        segments = segments[::-1] if video_flip else segments
        write_video(folder / CONCATED / f"{index}.mp4", np.concatenate([segments[0], black, segments[1]]))
        for which, name in enumerate(("pos", "neg")):
            idx = f"{index}_{name}"
            write_video(folder / VIDEOS / f"{idx}.mp4", pair.clips[which])
            texts.append(
                {
                    "idx": idx,
                    "video_name": f"{VIDEOS}/{idx}.mp4",
                    "question": f"Which caption best describes this video?\nA. {options[0]}\nB. {options[1]}\n{LETTER}",
                    "GT": "AB"[which ^ text_flip],
                }
            )
            videos.append(
                {
                    "idx": idx,
                    "video_name": f"{CONCATED}/{index}.mp4",
                    "question": "Which video segment matches this caption? Note: The video contains two segments "
                    f"separated by a 2-second black frame.\nCaption: {pair.captions[which]}\n"
                    f"A. First segment (before black frame)\nB. Second segment (after black frame)\n{LETTER}",
                    "GT": "AB"[which ^ video_flip],
                }
            )
        categories = {"major": kind.major, "minor": kind.minor}
        captions = {"pos_cap": pair.captions[0], "neg_cap": pair.captions[1]}
        for question in ("text", "video"):
            rows += [{"index": f"{index}_{name}_{question}", **categories, **captions} for name in ("pos", "neg")]
    (folder / VIDEOS / "vinoground_textscore.json").write_text(json.dumps(texts, indent=1))
    (folder / CONCATED / "vinoground_videoscore.json").write_text(json.dumps(videos, indent=1))
    keys = ("index", "major", "minor", "pos_cap", "neg_cap")
    features = datasets.Features({key: datasets.Value("string") for key in keys})
    write_card(folder, {"default": {"lmmseval": write_parquet(folder, "default", "lmmseval", rows, features)}})


TWIN = Twin(
    name="vinoground",
    shown=tuple(f"{kind.major}{f' ({kind.minor})' if kind.minor else ''}" for kind in KINDS),
    not_shown={
        "contextual pairs of stories": "a clip has one event or two; only its ground can give the context",
        "long captions": "captions have five to ten words, where Vinoground's describe scenes with people",
    },
    write=write,
)
