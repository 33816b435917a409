"""The MVBench twin: the benchmark's schema and subtasks, asked about clips of the world that training never shows.

`write` lays a folder out as the public data set does (`json/<task>.json`, videos under the folder that lmms-eval looks
in), so that the stock task code scores it. `questions` reads it back. Of the 20 subtasks, 18 are here: fine-grained and
unexpected action need a richer world.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eval.world.questions import DEEDS, TIES, YES_NO, Ask, ask, choices, letter_prompt
from eval.world.render import render
from eval.world.sample import sample_scene
from eval.world.scene import Scene
from eval.world.vocabulary import (
    BACKGROUNDS,
    COLOURS,
    COLUMNS,
    COUNTS,
    DIRECTIONS,
    NOUNS,
    NUMBERS,
    POSES,
    SPLITS,
    TIMES,
    WORLD_VERSION,
)

DONE, BEGUN = "complete.json", "begun.json"
FPS = 4
TRIES = 20_000


@dataclass(frozen=True)
class Task:
    """`folder`: where lmms-eval expects the videos; `plots` show the task; `answers` are equally frequent."""

    folder: str
    plots: tuple[str, ...]
    answers: tuple[str, ...]


TASKS: dict[str, Task] = {
    "moving_direction": Task("clevrer/video_validation", ("solo", "duo"), tuple(DIRECTIONS)),
    "action_antonym": Task(
        "ssv2_video_mp4",
        ("solo", "duo"),
        ("grows", "shrinks", "appears", "vanishes", *(f"slides {d}" for d in DIRECTIONS)),
    ),
    "moving_attribute": Task("clevrer/video_validation", ("duo", "trio"), tuple(COLOURS)),
    "object_existence": Task("clevrer/video_validation", ("duo", "trio"), YES_NO),
    "action_sequence": Task("star/Charades_segment", ("solo", "duo"), DEEDS),
    "action_count": Task("perception/videos", ("duo", "trio"), COUNTS),
    "state_change": Task("perception/videos", ("duo", "trio"), ("grows", "shrinks", "stays")),
    "scene_transition": Task("scene_qa/video", ("solo", "duo"), BACKGROUNDS),
    "character_order": Task("perception/videos", ("order",), NOUNS),
    "moving_count": Task("clevrer/video_validation", ("duo",), NUMBERS[:3]),
    "object_interaction": Task("star/Charades_segment", ("bump", "front", "behind", "swap"), tuple(TIES.values())),
    "action_localization": Task("sta/sta_video_segment", ("duo",), TIMES),
    "object_shuffle": Task("perception/videos", ("shuffle",), COLUMNS),
    "egocentric_navigation": Task("vlnqa", ("camera",), tuple(DIRECTIONS)),
    "fine_grained_pose": Task("nturgbd_convert", ("duo",), tuple(POSES)),
    "episodic_reasoning": Task("tvqa/video_fps3_hq_segment", ("duo", "order"), BACKGROUNDS),
    "counterfactual_inference": Task("clevrer/video_validation", ("bump", "duo"), YES_NO),
    "action_prediction": Task("star/Charades_segment", ("bump", "front", "behind", "swap"), tuple(TIES.values())),
}


@dataclass(frozen=True)
class Question:
    """One question of the twin; `video` is a path, `answer` one of `candidates`."""

    id: str
    task: str
    video: str
    question: str
    candidates: tuple[str, ...]
    answer: str

    @property
    def prompt(self) -> str:
        """The text that lmms-eval builds from a question."""
        return letter_prompt(self.question, self.candidates)

    @property
    def correct(self) -> int:
        return self.candidates.index(self.answer)


def balanced(rng: random.Random, items: Sequence[Any]) -> Iterator[Any]:
    """Endless: every item once in each round, in random order, so that each prefix is even."""
    while True:
        yield from rng.sample(items, len(items))


def _key(one: Ask) -> str:
    """What is balanced of an answer: of a change from one ground to another, the first ground."""
    return one.answer.split()[0] if one.task == "scene_transition" else one.answer


def build(task: str, per_task: int, seed: int, split: str = "test") -> Iterator[tuple[Question, Scene]]:
    """Questions of one subtask with their scenes; `video` is the bare file name.

    Words of the scene are uniform, right answers and their positions are balanced, and neither depends on the other:
    text alone tells nothing.
    """
    if task not in TASKS:
        raise ValueError(f"unknown subtask {task!r}; the twin has {', '.join(TASKS)}")
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; expected one of {', '.join(SPLITS)}")
    rng = random.Random(f"mvbench {WORLD_VERSION} {split} {seed} {task}")
    spec = TASKS[task]
    wanted, plots = balanced(rng, spec.answers), balanced(rng, spec.plots)
    positions: Iterator[int] | None = None
    for index in range(per_task):
        scene, one = _find(task, next(wanted), plots, split, rng)
        options = choices(one, rng)
        positions = positions or balanced(rng, range(one.options))
        options.remove(one.answer)
        options.insert(next(positions), one.answer)
        name = f"{task}-{seed}-{index:04d}"
        yield Question(name, task, f"{name}.mp4", one.question_text(rng), tuple(options), one.answer), scene


def _find(task: str, answer: str, plots: Iterator[str], split: str, rng: random.Random) -> tuple[Scene, Ask]:
    """A scene whose question in this task has the wanted answer."""
    plot = next(plots)
    for tries in range(TRIES):
        scene = sample_scene(rng.getrandbits(53), split, plot, uniform=True)
        one = ask(task, scene, rng)
        if one and _key(one) == answer:
            return scene, one
        if tries % 5 == 4:  # perhaps this plot cannot show it
            plot = next(plots)
    raise AssertionError(f"no scene answers {task} with {answer!r} in {TRIES} tries")


def clip(task: str, scene: Scene) -> np.ndarray:
    """What a question of a task is asked about, uint8 [8, 64, 64, 3]: the scene, or its first half (action prediction).

    The half is played at half speed, so that it has as many frames. Bumps, and the ends of passing, hiding and
    swapping, lie in the frames that are left out.
    """
    frames = render(scene)
    return np.repeat(frames[: len(frames) // 2], 2, axis=0) if task == "action_prediction" else frames


def encode(frames: np.ndarray, path: Path, fps: int = FPS) -> None:
    """Frames (uint8 [T, H, W, 3]) as an mp4: H.264 in full colour resolution, lossless but for the colour space."""
    import av

    half = path.with_name(path.name + ".part")
    with av.open(str(half), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "0", "preset": "veryfast", "threads": "1"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv444p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    os.replace(half, path)


def decode(path: Path | str) -> np.ndarray:
    """All frames of a video: uint8 [T, H, W, 3], RGB."""
    import av

    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return np.stack(frames)


def write(directory: Path | str, per_task: int, seed: int, split: str = "test", tasks: Sequence[str] = ()) -> Path:
    """The twin as a folder of mp4s and a JSON list per subtask (video, question, candidates, answer); returns it.

    A complete folder made with the same arguments is left alone, one that was cut off goes on where it stopped. A
    complete folder made with other arguments, and a folder that is not ours, raise a ValueError: nothing of it is
    removed.
    """
    from tqdm.auto import tqdm

    if per_task < 1:
        raise ValueError(f"the twin needs at least one question per subtask, got per_task={per_task}")
    directory, tasks = Path(directory), tuple(tasks) or tuple(TASKS)
    made = {"world": WORLD_VERSION, "seed": seed, "per_task": per_task, "split": split, "tasks": list(tasks)}
    if (directory / DONE).exists():
        if (found := json.loads((directory / DONE).read_text())) != made:
            raise ValueError(f"{directory} holds another twin: {found}, not {made}; give another folder or remove it")
        return directory
    _begin(directory, made)
    for task in tasks:
        folder = directory / "video" / TASKS[task].folder
        folder.mkdir(parents=True, exist_ok=True)
        rows = []
        for question, scene in tqdm(
            build(task, per_task, seed, split), total=per_task, desc=task, disable=per_task * len(tasks) < 1000
        ):
            if not (folder / question.video).exists():
                encode(clip(task, scene), folder / question.video)
            row = asdict(question)
            rows.append({k: row[k] for k in ("video", "question", "candidates", "answer")})
        _write_text(directory / "json" / f"{task}.json", json.dumps(rows, indent=1))
    _write_text(directory / "README.md", _card(tasks))
    _write_text(directory / DONE, json.dumps(made))
    return directory


def _begin(directory: Path, made: dict[str, Any]) -> None:
    """Keep what an interrupted call with the same arguments wrote; clear what one with others left half done."""
    begun = directory / BEGUN
    if directory.exists() and any(directory.iterdir()):
        if not begun.exists():
            raise ValueError(f"{directory} is not empty and holds no {BEGUN}; give an empty folder")
        if json.loads(begun.read_text()) != made:
            for name in ("json", "video"):
                shutil.rmtree(directory / name, ignore_errors=True)
    for name in ("json", "video"):
        (directory / name).mkdir(parents=True, exist_ok=True)
    _write_text(begun, json.dumps(made))


def _write_text(path: Path, text: str) -> None:
    half = path.with_name(path.name + ".part")
    half.write_text(text)
    os.replace(half, path)


def _card(tasks: Sequence[str]) -> str:
    """A data card whose header tells `datasets.load_dataset` which file is which subtask."""
    lines = ["---", "license: apache-2.0", "configs:"]
    for task in tasks:
        lines += [f"- config_name: {task}", f"  data_files: json/{task}.json"]
    return "\n".join([*lines, "---", "The MVBench twin of the ReGATE toolkit's embedded world.", ""])


def questions(directory: Path | str) -> list[Question]:
    """All questions of a complete folder, in order; `video` holds full paths, which exist."""
    directory = Path(directory)
    if not (directory / DONE).exists():
        raise FileNotFoundError(
            f"{directory} holds no complete twin (no {DONE}); make it with eval.world.mvbench.write"
        )
    made = json.loads((directory / DONE).read_text())
    if made["world"] != WORLD_VERSION:
        raise ValueError(f"{directory} was made by world {made['world']!r}, this is {WORLD_VERSION!r}; make it again")
    found = []
    for task in made["tasks"]:
        for row in json.loads((directory / "json" / f"{task}.json").read_text()):
            video = directory / "video" / TASKS[task].folder / row["video"]
            if not video.exists():
                raise FileNotFoundError(
                    f"{video} is missing from a complete twin; remove {directory} and make it again"
                )
            row |= {"id": video.stem, "task": task, "video": str(video), "candidates": tuple(row["candidates"])}
            found.append(Question(**row))
    return found
