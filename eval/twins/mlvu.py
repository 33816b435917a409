"""The MLVU twin: all seven types of the dev set, seven of the nine of the test set, about stories of 64 and 128 frames.

The stock average counts a type that is absent as zero: of the test set no model can score more than 7/9 of 100.
"""

from __future__ import annotations

from pathlib import Path

from eval.twins import scene_questions as scene_q
from eval.twins import story_questions as story_q
from eval.twins.base import Twin, write_card, write_parquet, write_video
from eval.twins.build import Task, build
from eval.twins.story import hero, mostly, odd, scenes
from eval.world.mvbench import FPS
from eval.world.questions import TIES
from eval.world.vocabulary import COLOURS, DIRECTIONS, NOUNS, NUMBERS

MANY = (4, 8)
MEETING = ("bump", "front", "behind", "swap")
NEEDLE = Task(story_q.lone_colour, scenes("duo"), tuple(COLOURS), MANY)
SHARED = {
    "plotQA": Task(scene_q.deed, hero("duo", "trio"), scene_q.ACTIONS, MANY),
    "ego": Task(scene_q.about("egocentric_navigation"), scenes("camera"), tuple(DIRECTIONS), MANY),
    "count": Task(story_q.grounds_with_deed, scenes("duo"), NUMBERS, MANY),
    "order": Task(story_q.thing_order, scenes("solo", "duo"), (), MANY),
    "anomaly_reco": Task(story_q.encounter, odd(MEETING, "duo", "trio"), tuple(TIES.values()), MANY),
    "topic_reasoning": Task(story_q.subject, mostly("duo", "trio"), NOUNS, MANY),
}
TASKS = {"dev": {**SHARED, "needle": NEEDLE}, "test": {**SHARED, "needleQA": NEEDLE}}


def write(folder: Path, count: int, seed: int) -> None:
    """`count` questions for each type of the configs `dev` and `test`, one video each under `dev/` and `test/`.

    `question` holds the options too, as in the public sets. There are four in both: the public test set has six, of
    which the stock parser knows the first four.
    """
    import datasets

    text = datasets.Value("string")
    features = datasets.Features(
        {
            **dict.fromkeys(("video_name", "question", "answer", "task_type"), text),
            "candidates": datasets.List(text),
            "duration": datasets.Value("float64"),
        }
    )
    card = {}
    for config, tasks in TASKS.items():
        rows = []
        for item in build(f"mlvu {config}", tasks, 4, count, seed):
            video, frames = f"{config}/{item.id}.mp4", item.story.frames()
            write_video(folder / video, frames)
            options = [f"({letter}) {option}" for letter, option in zip("ABCD", item.options, strict=True)]
            rows.append({
                "video_name": video,
                "duration": len(frames) / FPS,
                "question": "\n".join([item.question, *options]),
                "candidates": list(item.options),
                "answer": item.letter,
                "task_type": item.task,
            })  # fmt: skip
        card[config] = {"test": write_parquet(folder, config, "test", rows, features)}
    write_card(folder, card)


TWIN = Twin(
    "mlvu",
    (*TASKS["dev"], "needleQA"),
    {
        "sportsQA": "the world knows no sports",
        "tutorialQA": "nobody shows how something is done",
        "motives, dialogue and plots of films (within plotQA)": "its plots are what the one thing of all scenes does",
        "crimes and accidents (within anomaly_reco)": "its anomaly is the one scene in which things meet",
    },
    write,
)
