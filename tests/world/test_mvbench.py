"""The MVBench twin: schema, videos, resuming, and that text alone tells nothing."""

import json
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest

from eval.world import boxes, mvbench, render
from eval.world.check import chance_interval
from eval.world.vocabulary import owner

SEVERAL = ("moving_direction", "object_existence", "egocentric_navigation")


@pytest.fixture(scope="module")
def twin(tmp_path_factory):
    return mvbench.write(tmp_path_factory.mktemp("twin") / "mvbench", 8, 0, tasks=SEVERAL)


@pytest.fixture(scope="module")
def asked():
    return {task: list(mvbench.build(task, 48, 0)) for task in mvbench.TASKS}


def test_the_schema_is_mvbenchs(twin):
    for task in SEVERAL:
        rows = json.loads((twin / "json" / f"{task}.json").read_text())
        assert len(rows) == 8
        for row in rows:
            assert set(row) == {"video", "question", "candidates", "answer"}
            assert row["answer"] in row["candidates"]
            assert (twin / "video" / mvbench.TASKS[task].folder / row["video"]).exists()


def test_datasets_reads_the_folder_like_the_public_one(twin, tmp_path):
    import datasets

    rows = datasets.load_dataset(str(twin), "moving_direction", split="train", cache_dir=str(tmp_path))
    assert rows["question"][:] == [q.question for q in mvbench.questions(twin) if q.task == "moving_direction"]


def test_videos_decode_to_the_frames(twin):
    for question, (built, scene) in zip(mvbench.questions(twin), mvbench.build("moving_direction", 4, 0), strict=False):
        assert Path(question.video).name == built.video
        assert question.candidates == built.candidates
        frames = mvbench.decode(question.video)
        assert frames.shape == (8, 64, 64, 3)
        assert np.abs(frames.astype(int) - render(scene)).max() <= 4


def test_a_cut_off_folder_is_completed_and_a_finished_one_left_alone(tmp_path, monkeypatch):
    whole = mvbench.write(tmp_path / "whole", 3, 1, tasks=SEVERAL[:2])
    calls = []
    encode = mvbench.encode

    def failing(frames, path):
        calls.append(path.name)
        if len(calls) == 4:
            path.with_name(path.name + ".part").write_bytes(b"half")
            raise KeyboardInterrupt
        encode(frames, path)

    monkeypatch.setattr(mvbench, "encode", failing)
    with pytest.raises(KeyboardInterrupt):
        mvbench.write(tmp_path / "cut", 3, 1, tasks=SEVERAL[:2])
    with pytest.raises(FileNotFoundError, match="no complete twin"):
        mvbench.questions(tmp_path / "cut")
    mvbench.write(tmp_path / "cut", 3, 1, tasks=SEVERAL[:2])
    assert calls[4:] == calls[3:4] + calls[5:], "the video that was cut off is the first to be made again"
    assert len(calls) == 4 + 3, "finished videos are not made again"
    assert [p.name for p in _files(tmp_path / "cut")] == [p.name for p in _files(whole)]
    assert [p.read_bytes() for p in _files(tmp_path / "cut")] == [p.read_bytes() for p in _files(whole)]
    mvbench.write(tmp_path / "cut", 3, 1, tasks=SEVERAL[:2])
    assert len(calls) == 7


def _files(folder):
    return sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix != ".part")


def test_other_folders_are_not_overwritten(twin, tmp_path):
    with pytest.raises(ValueError, match="holds another twin"):
        mvbench.write(twin, 8, 1, tasks=SEVERAL)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty"):
        mvbench.write(tmp_path, 2, 0)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_half_made_folder_of_other_arguments_starts_over(tmp_path):
    mvbench.write(tmp_path, 2, 0, tasks=SEVERAL[:1])
    (tmp_path / mvbench.DONE).unlink()
    mvbench.write(tmp_path, 2, 5, tasks=SEVERAL[:1])
    assert sorted(p.name for p in tmp_path.rglob("*.mp4")) == [
        "moving_direction-5-0000.mp4",
        "moving_direction-5-0001.mp4",
    ]


def test_right_answers_and_their_places_are_even(asked):
    for task, pairs in asked.items():
        questions = [q for q, _ in pairs]
        options = len(questions[0].candidates)
        assert {len(q.candidates) for q in questions} == {options}, task
        assert all(len(set(q.candidates)) == options for q in questions), task
        places = Counter(q.correct for q in questions)
        assert len(places) == options
        assert max(places.values()) - min(places.values()) <= 1, f"{task}: {places}"
        answers = Counter(q.answer.split()[0] if task == "scene_transition" else q.answer for q in questions)
        assert set(answers) == set(mvbench.TASKS[task].answers)
        assert max(answers.values()) - min(answers.values()) <= 1, f"{task}: {answers}"
        assert all(1 <= len(option.split()) <= 4 for q in questions for option in q.candidates)


def test_scenes_hold_only_held_out_things(asked):
    for pairs in asked.values():
        for _, scene in pairs:
            assert all("test" in {owner(*c) for c in combos} for combos in scene.combinations())


def test_counting_text_does_not_beat_chance(asked):
    """A guesser that has counted, on another twin, which option wins next to which words, stays at chance."""
    hits, options = 0.0, []
    for task, pairs in asked.items():
        seen: dict[tuple[str, str], list[float]] = defaultdict(lambda: [1.0, 4.0])  # wins and offers
        for q, _ in mvbench.build(task, 60, 7):
            for option in q.candidates:
                for cue in _cues(q, option):
                    seen[cue][0] += option == q.answer
                    seen[cue][1] += 1
        for q, _ in pairs:
            scores = [sum(np.log(seen[cue][0] / seen[cue][1]) for cue in _cues(q, o)) for o in q.candidates]
            hits += q.candidates[int(np.argmax(scores))] == q.answer
            options.append(len(q.candidates))
    _, low, high = chance_interval(options)
    assert low <= hits / len(options) <= high, f"{hits / len(options):.3f} outside of {low:.3f}..{high:.3f}"


def _cues(question, option):
    others = [o for o in question.candidates if o != option]
    words = question.question.rstrip("?").split()
    overlap = sum(w in " ".join(others).split() for w in option.split())
    return [
        ("option", option),
        ("place", str(question.candidates.index(option))),
        ("overlap", str(overlap)),
        *(("word", f"{w} {option}") for w in words),
        *(("other", f"{o} {option}") for o in others),
    ]


def test_clips_are_scenes_but_those_of_predictions_which_stop_before_what_they_ask_about(asked):
    for task, pairs in asked.items():
        for question, scene in pairs[:4]:
            frames, whole = mvbench.clip(task, scene), render(scene)
            assert frames.shape == whole.shape
            if task != "action_prediction":
                assert np.array_equal(frames, whole)
            else:
                assert np.array_equal(frames, whole[[0, 0, 1, 1, 2, 2, 3, 3]])
                if question.answer == "bumps":
                    a, b = boxes(scene)[:, 0], boxes(scene)[:, 1]
                    apart = (a[:, 2:] < b[:, :2]).any(1) | (b[:, 2:] < a[:, :2]).any(1)
                    assert apart[:4].all()
                    assert not apart[4]


def test_prompts_are_those_of_the_training_turns(asked):
    question = asked["moving_direction"][0][0]
    assert question.prompt.startswith(f"Question:{question.question}\nOption:\n(A) {question.candidates[0]}\n(B) ")
    assert question.prompt.endswith("Only give the best option.\n")


def test_unknown_subtasks_are_refused():
    with pytest.raises(ValueError, match="unknown subtask 'juggling'"):
        next(mvbench.build("juggling", 1, 0))
