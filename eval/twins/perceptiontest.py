"""The Perception Test twin (validation, multiple choice): its four areas and four kinds of reasoning, three options."""

from __future__ import annotations

from pathlib import Path

from eval.twins import scene_questions as scene_q
from eval.twins.base import Twin, write_card, write_parquet, write_video
from eval.twins.build import Task, build
from eval.twins.story import clipped, scenes
from eval.world.questions import DEEDS, TIES
from eval.world.vocabulary import BACKGROUNDS, COLOURS, COLUMNS, COUNTS, DIRECTIONS, NOUNS, NUMBERS, POSES

MEETING = ("bump", "front", "behind", "swap")
MEETS = tuple(TIES.values())
about = scene_q.about

# (area, reasoning, tag) as the benchmark labels its questions
TASKS = {
    ("memory", "descriptive", "sequencing"): Task(about("character_order"), scenes("order"), NOUNS),
    ("memory", "descriptive", "event recall"): Task(about("action_sequence"), scenes("solo", "duo"), DEEDS),
    ("memory", "descriptive", "change detection"): Task(scene_q.gone, scenes("duo", "trio"), NOUNS),
    ("abstraction", "descriptive", "object counting"): Task(
        about("number"), scenes("solo", "duo", "trio"), NUMBERS[1:]
    ),
    ("abstraction", "descriptive", "action counting"): Task(about("action_count"), scenes("duo", "trio"), COUNTS),
    ("physics", "descriptive", "motion"): Task(about("moving_direction"), scenes("solo", "duo"), tuple(DIRECTIONS)),
    ("physics", "descriptive", "collision"): Task(about("object_interaction"), scenes(*MEETING), MEETS),
    ("physics", "descriptive", "occlusion"): Task(scene_q.hider, scenes("behind"), NOUNS),
    ("physics", "descriptive", "object permanence"): Task(about("object_shuffle"), scenes("shuffle"), COLUMNS),
    ("physics", "explanatory", "collision"): Task(scene_q.cause, scenes("bump"), scene_q.BUMPS),
    ("physics", "predictive", "motion"): Task(
        about("action_prediction"), clipped("action_prediction", *MEETING), MEETS
    ),
    ("physics", "counterfactual", "collision"): Task(scene_q.without, scenes("bump", "duo"), scene_q.ALONE),
    ("semantics", "descriptive", "object recognition"): Task(scene_q.noun, scenes("duo", "trio"), NOUNS),
    ("semantics", "descriptive", "action recognition"): Task(scene_q.deed, scenes("duo", "trio"), scene_q.ACTIONS),
    ("semantics", "descriptive", "state recognition"): Task(about("fine_grained_pose"), scenes("duo"), tuple(POSES)),
    ("semantics", "descriptive", "place recognition"): Task(about("ground"), scenes("duo", "trio"), BACKGROUNDS),
    ("semantics", "descriptive", "spatial relations"): Task(scene_q.side, scenes("trio", "camera"), scene_q.SIDES),
    ("semantics", "descriptive", "colour recognition"): Task(scene_q.colour, scenes("duo", "trio"), tuple(COLOURS)),
}


def write(folder: Path, count: int, seed: int) -> None:
    """`count` questions for each of `TASKS`, one video of 8 frames each under `videos/`."""
    import datasets

    text = datasets.Value("string")
    columns = dict.fromkeys(("video_name", "question", "question_id", "answer_id", "area", "reasoning"), text)
    features = datasets.Features({**columns, "options": datasets.List(text), "tag": datasets.List(text)})
    labels = {" ".join(key): key for key in TASKS}
    tasks = {name: TASKS[key] for name, key in labels.items()}
    rows = []
    for number, item in enumerate(build("perceptiontest", tasks, 3, count, seed)):
        write_video(folder / "videos" / f"{item.id}.mp4", item.story.frames())
        area, reasoning, tag = labels[item.task]
        rows.append({
            "video_name": item.id,
            "question": item.question,
            "question_id": str(number),
            "options": list(item.options),
            "answer_id": str(item.correct),
            "area": area,
            "reasoning": reasoning,
            "tag": [tag],
        })  # fmt: skip
    path = write_parquet(folder, "mc_question_val", "validation", rows, features)
    write_card(folder, {"mc_question_val": {"validation": path}})


TWIN = Twin(
    "perceptiontest",
    tuple(f"{area}, {reasoning}: {tag}" for area, reasoning, tag in TASKS),
    {
        "containment, solidity, stability, conservation, material": "things have no inside, weight or substance",
        "task completion, adversarial action, distractor action and object": "nobody acts on purpose or pretends to",
        "pattern discovery and breaking, feature matching, part recognition": "things have no patterns and no parts",
        "language, general knowledge": "nothing is written, and clips need no knowledge",
        "audio": "clips are silent",
    },
    write,
)
