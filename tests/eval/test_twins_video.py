"""The video twins: scored by lmms-eval's own tasks, true to their frames, and silent about the answer in text alone."""

import dataclasses
import importlib.util
import json
import random
import sys
import types
from collections import Counter, defaultdict
from pathlib import Path

import datasets
import numpy as np
import pytest

from eval import twins
from eval.twins import base, build, egoschema, longvideobench, mlvu, nextqa, perceptiontest, videomme
from eval.twins import scene_questions as scene_q
from eval.twins import story_questions as story_q
from eval.twins.story import scenes
from eval.world import boxes, mvbench
from eval.world.check import chance_interval
from eval.world.phrases import PRESENT
from eval.world.vocabulary import owner

COUNT = 4
LABELS = {" ".join(key): task for key, task in perceptiontest.TASKS.items()}
TASKS = {  # benchmark: task types, and how many options there are at most
    "videomme": (videomme.TASKS, 4),
    "longvideobench": (longvideobench.TASKS, 5),
    "mlvu": (mlvu.TASKS["dev"], 4),
    "egoschema": (egoschema.TASKS, 5),
    "perceptiontest": (LABELS, 3),
    "nextqa": (nextqa.TASKS, 5),
}
ASKED = [(name, task) for name, (tasks, _) in TASKS.items() for task in tasks]
STOCK = {  # stock task: twin, its YAML, config of the twin where the stock one names none, <cache_dir>, best score
    "videomme": ("videomme", "videomme/videomme.yaml", None, "videomme", 100),
    "longvideobench_val_v": (
        "longvideobench", "longvideobench/longvideobench_val_v.yaml", None, "datasets/longvideobench", 1,
    ),
    "mlvu_dev": ("mlvu", "mlvu/mlvu_dev.yaml", "dev", "mlvu", 100),
    "mlvu_test": ("mlvu", "mlvu/mlvu_test.yaml", "test", "mlvu_test", 700 / 9),
    "egoschema_subset": ("egoschema", "egoschema/egoschema_subset.yaml", None, "egoschema", 1),
    "perceptiontest_val_mc": (
        "perceptiontest", "perceptiontest/val/perceptiontest_mc.yaml", None, "perceptiontest_val", 1,
    ),
    "nextqa_mc_test": ("nextqa", "nextqa/nextqa_mc_test.yaml", None, "nextqa", 1),
    **{
        f"mvbench_{task}": ("mvbench", f"mvbench/mvbench_{task}.yaml", None, "mvbench_video", 100)
        for task in ("action_prediction", "moving_count", "object_existence")
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """HF_HOME of the stock tasks, with the twins where public releases lie."""
    pytest.importorskip("lmms_eval", reason="the twins are scored by lmms-eval's tasks: pip install -e .[eval]")
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HOME", str(folder))
        patch.setenv("LMMS_EVAL_DATASETS_CACHE", str(folder / "cache"))
        if "decord" not in sys.modules:  # imported by LongVideoBench's code for a variant that is not run here
            patch.setitem(sys.modules, "decord", types.SimpleNamespace(VideoReader=None, cpu=None))
        if importlib.util.find_spec("nltk"):  # NExT-QA's task code downloads word lists with it on import
            patch.setattr("nltk.download", lambda *_, **__: False)
        yield folder


@pytest.fixture(scope="module")
def stock(home):
    """The stock task of a name on the twin's folder: its YAML with another `dataset_path`, and no other change."""
    import lmms_eval
    import lmms_eval.api.metrics  # registers "mean"
    from lmms_eval.api.task import ConfigurableTask
    from lmms_eval.utils import load_yaml_config

    tasks = {}

    def load(name):
        if name not in tasks:
            twin, yaml, config_name, cache_dir, _ = STOCK[name]
            folder = twins.make(twin, home / "twins", COUNT, 0)
            if not (home / cache_dir).exists():
                (home / cache_dir).parent.mkdir(exist_ok=True)
                (home / cache_dir).symlink_to(folder / twins.TWINS[twin].media)
            config = load_yaml_config(str(Path(lmms_eval.__file__).parent / "tasks" / yaml))
            config |= {"dataset_path": str(folder), "dataset_kwargs": {}}
            tasks[name] = ConfigurableTask(config=config | ({"dataset_name": config_name} if config_name else {}))
        return tasks[name]

    return load


def docs(task):
    return list(task.dataset[task.config.test_split])


def key(name, doc):
    """Index of the right option and number of options, read from the benchmark's own columns."""
    match STOCK[name][0]:
        case "videomme":
            return "ABCD".index(doc["answer"]), len(doc["options"])
        case "longvideobench":
            return doc["correct_choice"], sum(doc[f"option{k}"] != "N/A" for k in range(5))
        case "mlvu":
            return "ABCD".index(doc["answer"]), len(doc["candidates"])
        case "egoschema":
            return int(doc["answer"]), len(doc["option"])
        case "perceptiontest":
            return int(doc["answer_id"]), len(doc["options"])
        case "nextqa":
            return doc["answer"], 5
        case "mvbench":
            return doc["candidates"].index(doc["answer"]), len(doc["candidates"])


def score(name, task, answer):
    """The stock code's score for a model that gives the letter number `answer(right, options)`."""
    found = []
    for doc in docs(task):
        results = task.process_results(doc, ["ABCDE"[answer(*key(name, doc))]])
        found.append(results[task.config.metric_list[0]["metric"]])
    aggregate = task.aggregation()[task.config.metric_list[0]["metric"]]
    try:
        return aggregate(found)
    except TypeError:  # some take the command line's arguments too
        return aggregate(found, None)


@pytest.mark.parametrize("name", STOCK)
def test_an_oracle_scores_the_maximum_and_wrong_answers_nothing(stock, name):
    task = stock(name)
    assert score(name, task, lambda right, _: right) == pytest.approx(STOCK[name][4])
    assert score(name, task, lambda right, options: (right + 1) % options) == 0


@pytest.mark.parametrize("name", STOCK)
def test_a_guesser_is_at_chance_and_so_is_a_constant_answer(stock, name):
    task, rng = stock(name), random.Random(0)
    options = [key(name, doc)[1] for doc in docs(task)]
    mean, low, high = chance_interval(options, 0.999)
    best = STOCK[name][4]
    assert low <= score(name, task, lambda _, n: rng.randrange(n)) / best <= high
    for letter in range(min(options)):
        # in each task type the right places differ by one at most
        assert abs(score(name, task, lambda _, n, letter=letter: letter) / best - mean) < 1 / COUNT


@pytest.mark.parametrize("name", STOCK)
def test_prompts_hold_question_and_options_and_videos_are_found(stock, home, name):
    task = stock(name)
    for doc in docs(task)[::7]:
        prompt = task.doc_to_text(doc)
        shown = doc.get("candidates") or doc.get("options") or doc.get("option")
        shown = shown or [doc.get(f"a{k}") or doc[f"option{k}"] for k in range(5)]
        assert all(str(part) in prompt for part in (doc["question"], *shown))
        (video,) = task.doc_to_visual(doc)
        frames = mvbench.decode(video)
        assert frames.shape[0] in (8, 16, 64, 128)
        assert frames.shape[1:] == (64, 64, 3)


def test_videomme_has_short_medium_and_long_videos(stock):
    lengths = defaultdict(set)
    for doc in docs(stock("videomme")):
        lengths[doc["duration"]].add(len(mvbench.decode(stock("videomme").doc_to_visual(doc)[0])))
    assert lengths == {"short": {16}, "medium": {64}, "long": {128}}


@pytest.mark.parametrize("name", TASKS)
def test_folders_load_and_hold_what_build_asks(tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    twins.TWINS[name].write(folder, 2, 3)
    tasks, most = TASKS[name]
    items = list(build.build("mlvu dev" if name == "mlvu" else name, tasks, most, 2, 3))
    config = datasets.get_dataset_config_names(str(folder))[0]
    (split,) = datasets.get_dataset_split_names(str(folder), config)
    rows = datasets.load_dataset(str(folder), config, split=split, cache_dir=str(tmp_path / "cache"))
    assert [row["question"].split("\n")[0] for row in rows] == [item.question for item in items]
    videos = sorted(path for path in folder.rglob("*.mp4") if "test" not in path.parts)
    assert len(videos) == len(items)
    by_name = {path.stem: path for path in videos}
    for item, row in zip(items[::5], list(rows)[::5], strict=True):
        frames = mvbench.decode(by_name[str(row["video"]) if name == "nextqa" else item.id])
        assert np.abs(frames.astype(int) - item.story.frames()).max() <= 4


@pytest.fixture(scope="module")
def items():
    return {
        (name, task): list(build.build(name, {task: tasks[task]}, most, 24, 0))
        for name, (tasks, most) in TASKS.items()
        for task in tasks
    }


def test_answers_and_their_places_are_even_and_options_differ(items):
    for (name, task), found in items.items():
        sizes = {len(item.options) for item in found}
        assert len(sizes) == 1, f"{name} {task}: {sizes}"
        assert all(len(set(item.options)) == len(item.options) for item in found), task
        places = Counter(item.correct for item in found)
        assert len(places) == sizes.pop()
        assert max(places.values()) - min(places.values()) <= 1, f"{name} {task}: {places}"
        if answers := TASKS[name][0][task].answers:
            right = Counter(dict.fromkeys(answers, 0))
            right.update(item.options[item.correct] for item in found)
            assert max(right.values()) - min(right.values()) <= 1, f"{name} {task}: {right}"
            assert set(right) == set(answers)
        lengths = Counter(len(item.story.scenes) for item in found)
        assert set(lengths) == set(TASKS[name][0][task].scenes)
        assert max(lengths.values()) - min(lengths.values()) <= 1


def test_scenes_hold_only_held_out_things(items):
    for found in items.values():
        for scene in (scene for item in found for scene in item.story.scenes):
            assert all("test" in {owner(*c) for c in combos} for combos in scene.combinations())


def test_counting_text_does_not_beat_chance(items):
    """A guesser that has counted, on other seeds, which option wins next to which words stays at chance."""
    hits, options = 0, []
    for (name, task), found in items.items():
        tasks, most = TASKS[name]
        seen: dict[tuple, list[float]] = defaultdict(lambda: [1.0, 4.0])  # wins and offers
        for item in build.build(name, {task: tasks[task]}, most, 24, 7):
            for k, option in enumerate(item.options):
                for cue in _cues(item, option):
                    seen[cue][0] += k == item.correct
                    seen[cue][1] += 1
        for item in found:
            scores = [sum(np.log(seen[c][0] / seen[c][1]) for c in _cues(item, o)) for o in item.options]
            hits += int(np.argmax(scores)) == item.correct
            options.append(len(item.options))
    _, low, high = chance_interval(options)
    assert low <= hits / len(options) <= high, f"{hits / len(options):.3f} outside of {low:.3f}..{high:.3f}"


def _cues(item, option):
    others = [o for o in item.options if o != option]
    words = item.question.rstrip("?").split()
    return [
        ("option", option),
        ("place", item.options.index(option)),
        ("overlap", sum(w in " ".join(others).split() for w in option.split())),
        ("asked", sum(w in words for w in option.split())),
        *(("word", w, option) for w in words),
        *(("other", o, option) for o in others),
    ]


def told(asker, plots, answers, count=12, n=1):
    """Questions of an asker about stories of n scenes: (question's words, right answer, story)."""
    task = build.Task(asker, scenes(*plots), answers, (n,))
    for item in build.build("told", {asker.__name__: task}, 5, count, 0):
        yield item.question.replace("?", "").replace(",", "").split(), item.options[item.correct], item.story


def centres(scene, noun):
    """Centres (x, y) of a noun's true box, float [8, 2]; NaN where it is not drawn."""
    box = boxes(scene)[:, [o.noun for o in scene.objects].index(noun)]
    return (box[:, :2] + box[:, 2:]) / 2


def test_places_and_sides_are_those_of_the_true_boxes():
    for words, answer, story in told(scene_q.place, ("duo", "trio"), scene_q.PLACES, count=16):
        x, y = np.nanmedian(centres(story.scenes[0], words[-1]), axis=0)
        row, column = answer.split()
        assert row == ("top" if y < 24 else "bottom" if y > 40 else "middle")
        assert column == ("left" if x < 24 else "right" if x > 40 else "centre")
    for words, answer, story in told(scene_q.side, ("trio", "camera"), scene_q.SIDES):
        a, b = (np.nanmedian(centres(story.scenes[0], noun), axis=0) for noun in (words[-1], words[5]))
        dx, dy = a - b
        assert {"left": dx < -9, "right": dx > 9, "top": dy < -9, "bottom": dy > 9}[answer], (words, answer, a, b)


def test_what_is_gone_is_not_drawn_and_the_others_are():
    for _, answer, story in told(scene_q.gone, ("duo", "trio"), ()):
        (scene,) = story.scenes
        drawn = {o.noun for o in scene.objects if not np.isnan(centres(scene, o.noun)[-1]).any()}
        assert drawn == {o.noun for o in scene.objects} - {answer}


def test_what_would_stay_is_what_was_pushed():
    for words, answer, story in told(scene_q.without, ("bump", "duo"), scene_q.ALONE):
        path = centres(story.scenes[0], words[3])
        far = np.nanmax(np.abs(path - path[0])[:, :]) > 12
        assert far == (answer in ("slides", "stays")), "what would stay moves in the clip: that is the point"
        assert ("bump" in [r.kind for r in story.scenes[0].relations]) or answer != "stays"


def test_orders_and_counts_are_those_of_the_story():
    for _, answer, story in told(story_q.thing_order, ("solo", "duo"), (), n=8):
        firsts = [story.scenes.index(story.having(noun)[0]) for noun in answer.split(" , ")]
        assert firsts == sorted(set(firsts))
    for _, answer, story in told(story_q.ground_order, ("duo",), (), n=4):
        grounds = [s.background for s in story.scenes]
        assert [g for g in grounds if g in answer.split(" , ")] == answer.split(" , ")
    for words, answer, story in told(story_q.grounds_with_thing, ("duo",), (), n=8):
        drawn = sum(words[-1] in [o.noun for o in s.objects] for s in story.scenes)
        assert drawn == ("zero", "one", "two", "three").index(answer)
    for words, answer, story in told(story_q.next_event, ("trio",), (), n=4):
        events = [{f"the {o.noun} {PRESENT[o.verbs[0]]}" for o in s.objects} for s in story.scenes]
        (k,) = (i for i, scene in enumerate(events) if " ".join(words[:3]).rstrip(".") in scene)
        assert answer in events[k + 1]


def test_a_twin_is_found_again_and_the_same_arguments_give_the_same_bytes(tmp_path):
    first = twins.make("nextqa", tmp_path / "a", 1, 5)
    stamp = (first / twins.STAMP).stat().st_mtime_ns
    assert twins.make("nextqa", tmp_path / "a", 1, 5) == first
    assert (first / twins.STAMP).stat().st_mtime_ns == stamp
    second, other = twins.make("nextqa", tmp_path / "b", 1, 5), twins.make("nextqa", tmp_path / "b", 1, 6)
    assert _bytes(first) == _bytes(second) != _bytes(other)
    assert sorted(p.name for p in (tmp_path / "b").iterdir()) == sorted([second.name, other.name])


def _bytes(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_twin_is_whole_or_not_there(tmp_path, monkeypatch):
    written = []

    def failing(path, frames):
        written.append(path)
        if len(written) == 3:
            raise KeyboardInterrupt
        base.write_video(path, frames)

    monkeypatch.setattr(nextqa, "write_video", failing)
    with pytest.raises(KeyboardInterrupt):
        twins.make("nextqa", tmp_path, 1, 0)
    assert len(written) == 3
    assert not list(tmp_path.iterdir())


def test_who_comes_second_takes_what_the_first_has_made(tmp_path, monkeypatch):
    twin, made = twins.TWINS["egoschema"], []

    def late(folder, count, seed):
        monkeypatch.setitem(twins.TWINS, "egoschema", twin)
        made.append(twins.make("egoschema", tmp_path, count, seed))
        twin.write(folder, count, seed)

    monkeypatch.setitem(twins.TWINS, "egoschema", dataclasses.replace(twin, write=late))
    assert twins.make("egoschema", tmp_path, 1, 0) == made[0]
    assert list(tmp_path.iterdir()) == made


def test_foreign_folders_and_other_versions_are_refused(tmp_path):
    folder = twins.make("egoschema", tmp_path, 1, 0)
    stamp = json.loads((folder / twins.STAMP).read_text())
    (folder / twins.STAMP).write_text(json.dumps(stamp | {"version": "0"}))
    with pytest.raises(ValueError, match=r"holds .*'version': '0'.*remove it or give another root"):
        twins.make("egoschema", tmp_path, 1, 0)
    (folder / twins.STAMP).unlink()
    with pytest.raises(ValueError, match=r"holds no twin\.json"):
        twins.make("egoschema", tmp_path, 1, 0)
    assert (folder / "README.md").exists()
    with pytest.raises(ValueError, match="unknown benchmark 'imagenet'"):
        twins.make("imagenet", tmp_path, 1, 0)
    with pytest.raises(ValueError, match="at least one question"):
        twins.make("egoschema", tmp_path, 0, 0)


def test_every_twin_says_what_it_shows_and_what_not(tmp_path):
    assert len(twins.TWINS) == 13
    for name, twin in twins.TWINS.items():
        assert twin.name == name
        assert twin.shown
        assert not set(twin.shown) & set(twin.not_shown)
        assert all(reason for reason in twin.not_shown.values())
    card = (twins.make("egoschema", tmp_path, 1, 0) / "README.md").read_text()
    assert "- action sequence\n" in card
    assert "- purpose or goal: nobody holds the camera" in card


def test_rows_with_other_columns_are_refused(tmp_path):
    features = datasets.Features({"question": datasets.Value("string")})
    with pytest.raises(ValueError, match=r"row 1 of MC/test has the columns \['answer', 'question'\]"):
        base.write_parquet(tmp_path, "MC", "test", [{"question": "?"}, {"question": "?", "answer": "A"}], features)
