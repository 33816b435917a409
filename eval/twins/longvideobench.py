"""The LongVideoBench twin: 10 of its 17 question categories about stories of one to eight scenes."""

from __future__ import annotations

from pathlib import Path

from eval.twins import scene_questions as scene_q
from eval.twins import story_questions as story_q
from eval.twins.base import Twin, write_card, write_parquet, write_video
from eval.twins.build import Task, build
from eval.twins.story import scenes
from eval.world.mvbench import FPS
from eval.world.vocabulary import BACKGROUNDS, COLOURS, NOUNS

GROUPS = {1: 15, 2: 60, 4: 600, 8: 3600}  # number of scenes -> the public duration group (seconds) that it stands for
ANY, SEVERAL, MANY = (1, 2, 4, 8), (2, 4, 8), (4, 8)

TASKS = {
    "S2E": Task(scene_q.deed, scenes("duo", "trio"), scene_q.ACTIONS, ANY),
    "S2O": Task(story_q.thing_on, scenes("solo"), NOUNS, SEVERAL),
    "S2A": Task(scene_q.colour, scenes("duo"), tuple(COLOURS), ANY),
    "O2E": Task(story_q.lone_deed, scenes("duo", "trio"), scene_q.ACTIONS, ANY),
    "E2O": Task(story_q.doer, scenes("solo", "duo"), NOUNS, ANY),
    "E3E": Task(story_q.next_event, scenes("trio"), (), MANY),
    "O3O": Task(story_q.next_thing, scenes("solo"), NOUNS, SEVERAL),
    "SSS": Task(story_q.ground_order, scenes("duo"), (), MANY),
    "SOS": Task(story_q.other_ground, scenes("duo", "trio"), BACKGROUNDS, SEVERAL),
    "SAA": Task(story_q.other_colour, scenes("duo", "trio"), tuple(COLOURS), SEVERAL),
}
LEVELS = {task: "L2-Relation" if task in ("E3E", "O3O", "SSS", "SOS", "SAA") else "L1-Perception" for task in TASKS}


def write(folder: Path, count: int, seed: int) -> None:
    """`count` questions for each of `TASKS`, one video each under `videos/`; `option4` is always there.

    `duration` is the clip's own, in seconds. Of the public columns those about subtitles, topic, view count and the
    referring query are left out; `longvideobench_val_v` reads none of them.
    """
    import datasets

    text = datasets.Value("string")
    options = [f"option{k}" for k in range(5)]
    columns = ("id", "video_id", "video_path", "question", "question_category", "level", *options)
    number = datasets.Value("int64")
    features = datasets.Features(
        {
            **dict.fromkeys(columns, text),
            "correct_choice": number,
            "duration_group": number,
            "duration": datasets.Value("float64"),
        }
    )
    rows = []
    for item in build("longvideobench", TASKS, 5, count, seed):
        frames = item.story.frames()
        write_video(folder / "videos" / f"{item.id}.mp4", frames)
        rows.append({
            "id": item.id,
            "video_id": item.id,
            "video_path": f"{item.id}.mp4",
            "question": item.question,
            **dict(zip(options, item.options, strict=True)),
            "correct_choice": item.correct,
            "question_category": item.task,
            "level": LEVELS[item.task],
            "duration_group": GROUPS[len(item.story.scenes)],
            "duration": len(frames) / FPS,
        })  # fmt: skip
    write_card(folder, {"default": {"validation": write_parquet(folder, "default", "validation", rows, features)}})


TWIN = Twin(
    "longvideobench",
    tuple(TASKS),
    dict.fromkeys(("T2E", "T2O", "T2A", "T3E", "T3O", "TOS", "TAA"), "refers to subtitles, and clips are silent"),
    write,
)
