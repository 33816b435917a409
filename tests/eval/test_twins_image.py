"""The image twins and Vinoground, scored by lmms-eval's own task code; and that their text tells nothing."""

import json
import random
from collections import Counter, defaultdict
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("lmms_eval", reason="the twins are scored by lmms-eval's tasks: pip install -e .[eval]")

from eval.twins import make, mme, pope, scienceqa, seedbench, vinoground, vizwiz
from eval.twins.stills import look
from eval.world import boxes, mvbench, sample_scene
from eval.world.check import chance_interval
from eval.world.sprites import background
from eval.world.vocabulary import BACKGROUNDS, COLOURS, DIRECTIONS, FRAMES, NUMBERS

COUNT = 12
STOCK = {  # task: twin, its YAML, and the choices of a guess
    "scienceqa_img": ("scienceqa", "scienceqa/scienceqa_img.yaml", "ABCD"),
    "scienceqa": ("scienceqa", "scienceqa/scienceqa.yaml", "ABCD"),
    "mme": ("mme", "mme/mme.yaml", ("Yes", "No")),
    "vizwiz_vqa_val": ("vizwiz", "vizwiz_vqa/vizwiz_vqa_val.yaml", ("yes", "no", "unanswerable")),
    "pope": ("pope", "pope/pope.yaml", ("yes", "no")),
    "pope_random": ("pope", "pope/pope_random.yaml", ("yes", "no")),
    "pope_pop": ("pope", "pope/pope_pop.yaml", ("yes", "no")),
    "pope_adv": ("pope", "pope/pope_adv.yaml", ("yes", "no")),
    "seedbench": ("seedbench", "seedbench/seedbench.yaml", "ABCD"),
    "vinoground": ("vinoground", "vinoground/vinoground.yaml", "AB"),
}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """HF_HOME of the stock tasks; below it, the twins."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HOME", str(folder))
        patch.setenv("LMMS_EVAL_DATASETS_CACHE", str(folder / "cache"))
        yield folder


@pytest.fixture(scope="module")
def stock(home):
    """The stock task of a name on the twin's folder: its YAML with another `dataset_path`, as the suites do it."""
    import lmms_eval
    import lmms_eval.api.metrics  # registers "mean"
    from lmms_eval.api.task import ConfigurableTask
    from lmms_eval.utils import load_yaml_config

    tasks = {}

    def load(name):
        if name not in tasks:
            twin, yaml, _ = STOCK[name]
            folder = make(twin, home / "twins", COUNT, 0)
            if twin == "vinoground":
                (home / "vinoground").symlink_to(folder)  # HF_HOME/<cache_dir>, where its code looks
            config = load_yaml_config(str(Path(lmms_eval.__file__).parent / "tasks" / yaml))
            tasks[name] = ConfigurableTask(config={**config, "dataset_path": str(folder), "dataset_kwargs": {}})
        return tasks[name]

    return load


def scores(task, answer):
    """What the stock code makes of the answers: per metric the samples' results and their aggregate."""
    results = defaultdict(list)
    for doc in task.dataset_no_image[task.config.test_split]:
        for metric, value in task.process_results(doc, [answer(doc)]).items():
            results[metric].append(value)
    return results, {m: task.aggregation()[m](values) for m, values in results.items() if m in task.aggregation()}


@pytest.fixture(scope="module")
def truth(home, stock):
    """The right answer of a document, by task."""
    keys = {}
    stock("vinoground")
    for name in ("vinoground_videos/vinoground_textscore", "vinoground_videos_concated/vinoground_videoscore"):
        kind = name.removesuffix("score")[-5:].removeprefix("_")
        for item in json.loads((home / "vinoground" / f"{name}.json").read_text()):
            keys[f"{item['idx']}_{kind}"] = item["GT"]

    def find(name):
        if name == "vinoground":
            return lambda doc: keys[doc["index"]]
        if name == "vizwiz_vqa_val":
            return lambda doc: doc["answers"][0]
        return stock(name).doc_to_target

    return find


def wrong_of(name, right):
    choices = STOCK[name][2]
    return next(choice for choice in choices if choice.lower() != right.lower())


BEST = {
    "scienceqa_img": {"exact_match": 1},
    "scienceqa": {"exact_match": 1},
    "mme": {"mme_perception_score": 1000, "mme_cognition_score": 200},
    "vizwiz_vqa_val": {"exact_match": 1},
    **{
        name: {f"pope_{metric}": 1 for metric in ("accuracy", "precision", "recall", "f1_score")}
        for name in ("pope", "pope_random", "pope_pop", "pope_adv")
    },
    "seedbench": {"seed_image": 1, "seed_video": 1, "seed_all": 1},
    "vinoground": {"vinoground_score": (100, 100, 100)},
}


@pytest.mark.parametrize("name", STOCK)
def test_an_oracle_scores_the_maximum_and_wrong_answers_nothing(stock, truth, name):
    task, right = stock(name), truth(name)
    _, best = scores(task, right)
    assert {metric: best[metric] for metric in BEST[name]} == BEST[name]
    _, worst = scores(task, lambda doc: wrong_of(name, right(doc)))
    for metric, value in BEST[name].items():
        assert worst[metric] == (0 if isinstance(value, int) else (0, 0, 0)), metric


@pytest.mark.parametrize("name", [name for name in STOCK if name != "vizwiz_vqa_val"])
def test_guesses_score_by_chance(stock, name):
    """Within the 99 % interval of the exact distribution."""
    task, rng = stock(name), random.Random(4)
    results, aggregated = scores(task, lambda doc: rng.choice(options(name, doc)))
    if name == "vinoground":
        for score, ways in zip(aggregated["vinoground_score"], (4, 4, 16), strict=True):
            _, low, high = chance_interval([ways] * vinoground.PAIRS)
            assert low <= score / 100 <= high
        return
    docs = task.dataset_no_image[task.config.test_split]
    _, low, high = chance_interval([len(options(name, doc)) for doc in docs])
    hits = [hit(one) for metric in ACCURACY.get(name, ("pope_accuracy",)) for one in results[metric]]
    assert len(hits) == len(docs)
    assert low <= np.mean(hits) <= high


ACCURACY = {
    "scienceqa_img": ("exact_match",),
    "scienceqa": ("exact_match",),
    "mme": ("mme_perception_score", "mme_cognition_score"),
    "seedbench": ("seed_all",),
}


def hit(result):
    if not isinstance(result, dict):
        return result
    return result["score"] if "score" in result else result["pred"] == result["answer"]


def options(name, doc):
    return "ABCDE"[: len(doc["choices"])] if "choices" in doc else STOCK[name][2]


@pytest.mark.parametrize(
    ("name", "answer", "expected"),
    [
        ("pope", "yes", {"pope_accuracy": 0.5}),
        ("pope_adv", "no", {"pope_accuracy": 0.5}),
        ("mme", "Yes", {"mme_perception_score": 250, "mme_cognition_score": 50}),
        ("seedbench", "A", {"seed_all": 0.25, "seed_video": 0.25}),
        ("scienceqa_img", "A", {"exact_match": (1 / 3 * 3 + 1 / 4) / 4}),
        ("scienceqa", "C", {"exact_match": (1 / 3 * 3 + 1 / 4) / 4}),
        ("vizwiz_vqa_val", "Unanswerable", {"exact_match": 0.25}),
        ("vinoground", "B", {"vinoground_score": (0, 0, 0)}),
    ],
)
def test_one_constant_answer_scores_chance(stock, name, answer, expected):
    _, found = scores(stock(name), lambda doc: answer)
    for metric, value in expected.items():
        assert found[metric] == pytest.approx(value), metric


COLUMNS_OF = {
    "scienceqa_img": "image question choices answer hint task grade subject topic category skill lecture solution",
    "mme": "question_id image question answer category",
    "vizwiz_vqa_val": "question_id image question answers category",
    "pope": "id question_id question answer image_source image category",
    "seedbench": "answer choice_a choice_b choice_c choice_d data_id data_type question question_id question_type_id "
    "image segment",
}


@pytest.mark.parametrize("name", COLUMNS_OF)
def test_columns_and_pictures_are_those_of_the_benchmark(stock, name):
    task = stock(name)
    docs = task.dataset[task.config.test_split]
    assert set(docs.column_names) == set(COLUMNS_OF[name].split())
    for doc in docs.select(range(0, len(docs), 7)):
        clip = doc.get("data_type") == "video"
        pictures = task.doc_to_visual(doc)
        assert [(p.mode, p.size) for p in pictures] == [("RGB", (64, 64))] * (FRAMES if clip else 1)
        assert doc["question"].split("?")[0].lower() in task.doc_to_text(doc).lower()


def test_scienceqa_full_adds_lessons_in_words(stock):
    docs = stock("scienceqa").dataset["test"]
    half = len(docs) // 2
    assert docs["image"][:half] == stock("scienceqa_img").dataset["test"]["image"][:]
    for doc in docs.select(range(half, len(docs))):
        assert stock("scienceqa").doc_to_visual(doc) == []
        assert stock("scienceqa").doc_to_text(doc).startswith(f"Context: {doc['hint']}\n{doc['question']}\nA. ")


def test_vizwiz_has_ten_answers_that_the_stock_score_takes_as_one(stock):
    from lmms_eval.tasks._task_utils.vqa_eval_metric import EvalAIAnswerProcessor

    docs = stock("vizwiz_vqa_val").dataset_no_image["val"]
    for doc in docs:
        assert len(doc["answers"]) == 10
        assert len(set(doc["answers"])) >= 3
        assert len({EvalAIAnswerProcessor()(answer) for answer in doc["answers"]}) == 1
    assert Counter(docs["category"][:]) == dict.fromkeys(vizwiz.CATEGORIES, COUNT)


def test_mme_pairs_follow_each_other(stock):
    """So that any even limit leaves whole pairs."""
    docs = stock("mme").dataset_no_image["test"]
    for a, b in zip(docs.select(range(0, len(docs), 2)), docs.select(range(1, len(docs), 2)), strict=True):
        assert a["question_id"] == b["question_id"]
        assert {a["answer"], b["answer"]} == {"Yes", "No"}


# What is asked, without writing it


def test_each_yes_no_question_is_asked_once_with_each_answer():
    asked = [list(pope.rows(split, 48, 1)) for split in pope.SPLITS] + [
        list(mme.rows(category, 24, 1)) for category in mme.CATEGORIES
    ]
    for rows in asked:
        answers = defaultdict(Counter)
        for row in rows:
            answers[row["question"]][row["answer"].lower()] += 1
        assert all(found["yes"] == found["no"] for found in answers.values())


@pytest.fixture(scope="module")
def choices():
    """(question, options, right one, what it tells) of the multiple choice twins, for two seeds."""
    made = {}
    for seed in (0, 1):
        for name in seedbench.TYPES:
            made["seedbench", name, seed] = [
                (r["question"], [r[f"choice_{c}"] for c in "abcd"], "ABCD".index(r["answer"]))
                for r in seedbench.rows(name, 36, seed)
            ]
        for row in scienceqa.rows(True, 36, seed):
            group = made.setdefault(("scienceqa", row["skill"], seed), [])
            group.append((f"{row['hint']} {row['question']}", row["choices"], row["answer"]))
    return made


def test_options_are_distinct_and_right_answers_and_their_letters_even(choices):
    listed = {name: kind.keys for name, kind in seedbench.TYPES.items()} | {"Compare temperatures": scienceqa.HEAT}
    keyed_otherwise = ("Instance Attributes", "Visual Reasoning", "Procedure Understanding")
    for (_, name, _), asked in choices.items():
        assert all(len(set(options)) == len(options) for _, options, _ in asked), name
        letters = Counter(correct for *_, correct in asked)
        assert max(letters.values()) - min(letters.values()) <= 1, f"{name}: {letters}"
        if name in listed and name not in keyed_otherwise:
            answers = Counter(options[correct] for _, options, correct in asked)
            assert set(answers) == set(listed[name]), name
            assert max(answers.values()) - min(answers.values()) <= 1, f"{name}: {answers}"


def test_counting_words_does_not_beat_chance(choices):
    """A guesser that has counted, on another twin, which option wins next to which words, stays at chance."""
    for twin in ("seedbench", "scienceqa"):
        hits, ways = 0, []
        for (name, kind, seed), asked in choices.items():
            if name != twin or seed != 0:
                continue
            seen = defaultdict(lambda: [1.0, 4.0])  # wins and offers
            for question, offered, correct in choices[twin, kind, 1]:
                for k, option in enumerate(offered):
                    for cue in cues(question, offered, option):
                        seen[cue][0] += k == correct
                        seen[cue][1] += 1
            for question, offered, correct in asked:
                odds = [sum(np.log(np.divide(*seen[cue])) for cue in cues(question, offered, o)) for o in offered]
                hits += int(np.argmax(odds)) == correct
                ways.append(len(offered))
        _, low, high = chance_interval(ways)
        assert low <= hits / len(ways) <= high, f"{twin}: {hits / len(ways):.3f} outside of {low:.3f}..{high:.3f}"


def cues(question, offered, option):
    others = [other for other in offered if other != option]
    return [
        ("option", option),
        ("place", offered.index(option)),
        ("shared", sum(word in " ".join(others).split() for word in option.split())),
        *(("word", word, option) for word in question.rstrip("?").split()),
        *(("other", other, option) for other in others),
    ]


def test_vizwiz_questions_do_not_tell_whether_they_can_be_answered():
    rows = list(vizwiz.rows(54, 3))
    for words in ("what is", "what colour", "which ground", "is this", "how many"):
        found = Counter(row["category"] for row in rows if row["question"].startswith(words))
        assert found["unanswerable"] / sum(found.values()) == 0.25, words


# Whether the pictures show it


def test_a_still_knows_where_things_are():
    for seed in range(40):
        scene = sample_scene(seed, "test", uniform=True)
        for frame in (0, 5):
            true = [box for box in boxes(scene)[frame] if not np.isnan(box[0])]
            items = look(scene, frame).items
            inside = [(item, box) for item, box in zip(items, true, strict=True) if box.min() > 0 and box.max() < 64]
            for item, (x0, y0, x1, y1) in inside:
                assert abs(item.x - (x0 + x1) / 2) <= 2
                assert abs(item.y - (y0 + y1) / 2) <= 2


def shows(image, colour):
    return (np.abs(np.asarray(image).astype(int) - COLOURS[colour]).max(-1) <= 3).sum() >= 8


def lies_on(frame, ground):
    return (frame == np.asarray(background(ground))[0, 1]).all(-1).any() and ground == max(
        BACKGROUNDS, key=lambda name: (frame == background(name)[32:96, 32:96]).all(-1).sum()
    )


def test_pictures_show_the_colours_and_grounds_that_answers_tell():
    for row in pope.rows("random", 24, 2):
        if row["answer"] == "yes":
            assert shows(row["image"], row["question"].split()[3])
    for row in pope.rows("adversarial", 24, 2):  # what is asked in vain has a colour that is there
        assert shows(row["image"], row["question"].split()[3])
    for row in seedbench.rows("Instance Attributes", 16, 2):
        assert shows(row["image"][0], row[f"choice_{row['answer'].lower()}"])
    for row in mme.rows("scene", 16, 2):
        ground = row["question"].removesuffix(mme.SUFFIX).rstrip("?").split()[-1]
        assert lies_on(np.asarray(row["image"]), ground) == (row["answer"] == "Yes")


def test_numbers_are_those_of_the_things_that_can_be_seen():
    for row in seedbench.rows("Instances Counting", 16, 2):
        there = sum(bool(shows(row["image"][0], colour)) for colour in COLOURS)  # no two things share a colour
        assert NUMBERS[there] == row[f"choice_{row['answer'].lower()}"]


def test_covered_lenses_show_nothing():
    assert all(np.asarray(vizwiz.covered(random.Random(seed))).max() < 24 for seed in range(3))


# Vinoground


@pytest.fixture(scope="module")
def pairs():
    return list(islice(vinoground.pairs(0), 140))


def test_clips_of_a_pair_hold_the_same_frames_in_another_order(pairs):
    assert Counter(kind for kind, _ in pairs) == dict.fromkeys(vinoground.KINDS, 20)
    for _, pair in pairs:
        first, second = pair.clips
        assert sorted(f.tobytes() for f in first) == sorted(f.tobytes() for f in second)
        assert not np.array_equal(first, second)
        assert sorted(pair.captions[0].split()) == sorted(pair.captions[1].split())
        assert pair.captions[0] != pair.captions[1]


def test_captions_tell_what_comes_first(pairs):
    told = Counter()
    for kind, pair in pairs:
        for clip, caption in zip(pair.clips, pair.captions, strict=True):
            words = caption.split()
            if kind.minor == "contextual":
                assert lies_on(clip[0], words[4])
                assert lies_on(clip[-1], words[6])
                told["ground"] += 1
            elif kind.minor == "cyclical;spatial":
                away = np.abs(clip.astype(int) - np.median(clip, axis=0)).max(-1) > 30  # [8, 64, 64]
                y, x = np.mean(np.nonzero(away[3]), 1) - np.mean(np.nonzero(away[0]), 1)
                way = max(DIRECTIONS, key=lambda name: x * DIRECTIONS[name][0] + y * DIRECTIONS[name][1])
                assert way == words[3], caption
                told["slide"] += 1
    assert told == {"ground": 40, "slide": 40}


def test_files_hold_the_clips(stock, home, pairs):
    task = stock("vinoground")
    docs = task.dataset["lmmseval"]
    assert set(docs.column_names) == {"index", "major", "minor", "pos_cap", "neg_cap"}
    for doc in docs.select(range(40)):
        index, which, question = doc["index"].split("_")
        pair = pairs[int(index)][1]
        (path,) = task.doc_to_visual(doc)
        frames = mvbench.decode(path).astype(int)
        caption = doc[f"{which}_cap"]
        assert caption in task.doc_to_text(doc)
        if question == "text":
            assert np.abs(frames - pair.clips[pair.captions.index(caption)]).max() <= 4
        else:
            first, black, last = np.split(frames, (FRAMES, FRAMES + vinoground.BLACK))
            assert black.max() <= 4
            right = {"A": first, "B": last}[next(v["GT"] for v in videos(home) if v["idx"] == f"{index}_{which}")]
            assert np.abs(right - pair.clips[pair.captions.index(caption)]).max() <= 4


def videos(home):
    return json.loads((home / "vinoground/vinoground_videos_concated/vinoground_videoscore.json").read_text())
