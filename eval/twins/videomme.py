"""The VideoMME twin: 11 of its 12 task types about short, medium and long stories (16, 64 and 128 frames)."""

from __future__ import annotations

from pathlib import Path

from eval.twins import scene_questions as scene_q
from eval.twins import story_questions as story_q
from eval.twins.base import Twin, write_card, write_parquet, write_video
from eval.twins.build import Task, build
from eval.twins.story import mostly, scenes
from eval.world.vocabulary import BACKGROUNDS, COLOURS, NOUNS, NUMBERS

DURATIONS = {2: "short", 4: "medium", 8: "long"}  # by number of scenes
ALL = tuple(DURATIONS)

TASKS = {
    "Temporal Perception": Task(story_q.edge_ground, scenes("duo"), BACKGROUNDS, ALL),
    "Spatial Perception": Task(scene_q.place, scenes("duo", "trio"), scene_q.PLACES, ALL),
    "Attribute Perception": Task(scene_q.colour, scenes("duo"), tuple(COLOURS), ALL),
    "Action Recognition": Task(scene_q.deed, scenes("duo", "trio"), scene_q.ACTIONS, ALL),
    "Object Recognition": Task(scene_q.noun, scenes("duo"), NOUNS, ALL),
    "Counting Problem": Task(story_q.grounds_with_thing, scenes("duo", "trio"), NUMBERS, (4, 8)),
    "Temporal Reasoning": Task(story_q.ground_order, scenes("duo"), (), (4, 8)),
    "Spatial Reasoning": Task(scene_q.side, scenes("trio", "camera"), scene_q.SIDES, ALL),
    "Action Reasoning": Task(scene_q.cause, scenes("bump", "duo"), scene_q.BUMPS, ALL),
    "Object Reasoning": Task(story_q.repeated, scenes("solo", "duo"), NOUNS, (2, 4)),
    "Information Synopsis": Task(story_q.subject, mostly("duo", "trio"), NOUNS, ALL),
}


def write(folder: Path, count: int, seed: int) -> None:
    """`count` questions for each of `TASKS`, one video each under `data/`.

    The columns are the public ones but `url`. Domain and sub-category are the one pair that drawn clips belong to.
    """
    import datasets

    text = datasets.Value("string")
    columns = (
        "video_id", "duration", "domain", "sub_category", "videoID", "question_id", "task_type", "question", "answer",
    )  # fmt: skip
    features = datasets.Features({**dict.fromkeys(columns, text), "options": datasets.List(text)})
    rows = []
    for number, item in enumerate(build("videomme", TASKS, 4, count, seed), 1):
        write_video(folder / "data" / f"{item.id}.mp4", item.story.frames())
        rows.append({
            "video_id": f"{number:03d}",
            "duration": DURATIONS[len(item.story.scenes)],
            "domain": "Film & Television",
            "sub_category": "Animation",
            "videoID": item.id,
            "question_id": f"{number:03d}-1",
            "task_type": item.task,
            "question": item.question,
            "options": [f"{letter}. {option}" for letter, option in zip("ABCD", item.options, strict=False)],
            "answer": item.letter,
        })  # fmt: skip
    write_card(folder, {"videomme": {"test": write_parquet(folder, "videomme", "test", rows, features)}})


TWIN = Twin(
    "videomme",
    tuple(TASKS),
    {
        "OCR Problems": "nothing is written in the world's frames",
        "domains other than Film & Television / Animation": "the world draws no people, sports, news or nature",
        "subtitles and audio": "clips are silent",
    },
    write,
)
