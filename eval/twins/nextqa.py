"""The NExT-QA twin (multiple choice, test): its eight question types about clips of one or two scenes; five options."""

from __future__ import annotations

from pathlib import Path

from eval.twins import scene_questions as scene_q
from eval.twins import story_questions as story_q
from eval.twins.base import Twin, write_card, write_parquet, write_video
from eval.twins.build import Task, build
from eval.twins.story import scenes
from eval.world.questions import DEEDS
from eval.world.vocabulary import BACKGROUNDS, NOUNS

TASKS = {
    "CW": Task(scene_q.cause, scenes("bump"), scene_q.BUMPS),
    "CH": Task(scene_q.movement, scenes("duo", "trio"), scene_q.MOVES),
    "TN": Task(scene_q.after, scenes("solo", "duo"), DEEDS),
    "TP": Task(scene_q.before, scenes("solo", "duo"), DEEDS),
    "TC": Task(scene_q.meanwhile, scenes("duo", "trio"), DEEDS),
    "DC": Task(story_q.numbers, scenes("solo", "duo", "trio"), story_q.PAIRS, (2,)),
    "DL": Task(story_q.lone_ground, scenes("duo"), BACKGROUNDS, (2,)),
    "DO": Task(scene_q.noun, scenes("duo", "trio"), NOUNS),
}


def write(folder: Path, count: int, seed: int) -> None:
    """`count` questions for each of `TASKS`, one video each under `NExTVideo/`; videos are named by whole numbers."""
    import datasets

    text, whole = datasets.Value("string"), datasets.Value("int64")
    options = [f"a{k}" for k in range(5)]
    numbers = dict.fromkeys(("video", "frame_count", "width", "height", "answer", "qid"), whole)
    features = datasets.Features({**numbers, **dict.fromkeys(("question", "type", *options), text)})
    rows = []
    for video, item in enumerate(build("nextqa", TASKS, 5, count, seed), 10_000_000):
        frames = item.story.frames()
        write_video(folder / "NExTVideo" / f"{video}.mp4", frames)
        rows.append({
            "video": video,
            "frame_count": len(frames),
            "width": frames.shape[2],
            "height": frames.shape[1],
            "question": item.question,
            "answer": item.correct,
            "qid": 0,
            "type": item.task,
            **dict(zip(options, item.options, strict=True)),
        })  # fmt: skip
    write_card(folder, {"MC": {"test": write_parquet(folder, "MC", "test", rows, features)}})


TWIN = Twin(
    "nextqa",
    tuple(TASKS),
    {
        "DB": "binary questions are in the open-ended set alone",
        "intentions and feelings (within CW and CH)": "its causes are collisions, and its manners are ways of moving",
    },
    write,
)
