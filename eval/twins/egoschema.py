"""The EgoSchema twin (its labelled subset): what the camera does over a story of 64 or 128 frames; five options."""

from __future__ import annotations

import random
from pathlib import Path

from eval.twins import story_questions as story_q
from eval.twins.base import Twin, write_card, write_parquet, write_video
from eval.twins.build import Task, build
from eval.twins.story import Story, on_grounds, tour
from eval.world.vocabulary import BACKGROUNDS, DIRECTIONS


def _each_way(rng: random.Random, n: int, _: str) -> Story:
    """Every direction once."""
    return on_grounds(rng, tour(rng, rng.sample(list(DIRECTIONS), n)))


def _mostly_one_ground(rng: random.Random, n: int, _: str) -> Story:
    """Three of eight scenes on one ground, two, two and one on others, in random order."""
    a, b, c, d = rng.sample(BACKGROUNDS, 4)
    ways = [rng.choice(list(DIRECTIONS)) for _ in range(n)]
    return on_grounds(rng, tour(rng, ways), rng.sample([a, a, a, b, b, c, c, d], n))


def _mostly_one_way(rng: random.Random, n: int, wanted: str) -> Story:
    """Five of eight scenes with one direction of the camera, or with none."""
    main = wanted.replace("nowhere", "")
    others = [way for way in (*DIRECTIONS, "") if way != main]
    ways = [main] * (n // 2 + 1) + rng.choices(others, k=n - n // 2 - 1)
    return on_grounds(rng, tour(rng, rng.sample(ways, n)))


TASKS = {
    "action sequence": Task(story_q.camera_order, _each_way, (), (4,)),
    "key moment": Task(story_q.main_ground, _mostly_one_ground, BACKGROUNDS, (8,)),
    "overall behaviour": Task(story_q.main_way, _mostly_one_way, story_q.WAYS, (8,)),
}


def write(folder: Path, count: int, seed: int) -> None:
    """`count` questions for each of `TASKS`, one video each under `videos/`; no column holds the type."""
    import datasets

    text = datasets.Value("string")
    columns = dict.fromkeys(("question_idx", "question", "video_idx", "answer"), text)
    features = datasets.Features({**columns, "option": datasets.List(text)})
    rows = []
    for number, item in enumerate(build("egoschema", TASKS, 5, count, seed)):
        write_video(folder / "videos" / f"{item.id}.mp4", item.story.frames())
        rows.append({
            "question_idx": str(number),
            "question": item.question,
            "video_idx": item.id,
            "option": [f"{letter}. {option}" for letter, option in zip("ABCDE", item.options, strict=True)],
            "answer": str(item.correct),
        })  # fmt: skip
    write_card(folder, {"Subset": {"test": write_parquet(folder, "Subset", "test", rows, features)}})


TWIN = Twin(
    "egoschema",
    tuple(TASKS),
    {
        "purpose or goal": "nobody holds the camera, and nothing is done on purpose",
        "tools and materials": "no hands, no tools",
        "interaction of people": "no people",
        "the full test set": "its answers are scored by a server; the twin is of the subset with public answers",
    },
    write,
)
