"""Sentences: tags, vocabulary, lengths, truth."""

import itertools
import random
import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.world import SPLITS, caption, conversation, corpus, sample_scene
from eval.world.language import long
from eval.world.markup import TAGS, tagged
from eval.world.questions import LETTERS, TASKS, ask, choices, letter_prompt
from eval.world.vocabulary import BACKGROUNDS, COLOURS, COLUMNS, NOUNS, NUMBERS, POSES, ROWS, SIZES, WORDING

WORD = re.compile(r"[A-Za-z]+")
TOKEN = re.compile(r"[A-Za-z]+|[.,?]")


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**40), st.sampled_from(SPLITS), st.sampled_from([caption, conversation, long]))
def test_spans_cover_the_whole_answer_and_keep_words_whole(seed, split, speak):
    turn = speak(sample_scene(seed, split), random.Random(seed))
    assert turn.spans[0][0] == 0
    assert turn.spans[-1][1] == len(turn.answer)
    for (_, end, tag), (start, _, following) in itertools.pairwise(turn.spans):
        assert end == start
        assert tag != following
        assert not (turn.answer[end - 1].isalpha() and turn.answer[end].isalpha()), "a border inside a word"
    assert {tag for *_, tag in turn.spans} <= set(TAGS)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**40))
def test_long_answers_name_what_is_in_the_scene(seed):
    scene = sample_scene(seed, "train")
    answer = long(scene, random.Random(seed)).answer
    words = set(WORD.findall(answer))
    things = [o.noun for o in scene.objects]
    assert words & set(NOUNS) == set(things)
    assert words & set(COLOURS) == {o.colour for o in scene.objects}
    assert words & set(BACKGROUNDS) == {scene.background, *filter(None, [scene.cut_background])}
    assert NUMBERS[len(things)] in words
    assert [w for w in WORD.findall(answer) if w in NOUNS][: len(things)] == things, (
        "things are told in the scene's order"
    )


def test_wording_and_visual_words_are_disjoint():
    visual = {*NOUNS, *COLOURS, *SIZES, *POSES, *BACKGROUNDS, *NUMBERS, *ROWS, *COLUMNS}
    for name, words in WORDING.items():
        assert 3 <= len(set(words)) == len(words) <= 8, name
        assert not visual & set(words), name


def test_wording_is_drawn_evenly():
    rng = random.Random(0)
    for name, words in WORDING.items():
        counts = Counter(tagged(f"{{{name}}}", rng)[0] for _ in range(400 * len(words)))
        assert set(counts) == set(words)
        assert min(counts.values()) > 300


def test_the_mix_has_long_answers_and_all_short_kinds():
    rng = random.Random(0)
    turns = [conversation(sample_scene(seed, "train"), rng) for seed in range(2000)]
    kinds = Counter(turn.kind for turn in turns)
    assert set(kinds) == {"long", "letter", "choice", "yesno", "short", "told"}
    assert 0.82 < kinds["long"] / len(turns) < 0.88
    lengths = [len(TOKEN.findall(turn.answer)) for turn in turns if turn.kind == "long"]
    assert min(lengths) >= 30
    assert max(lengths) <= 60
    assert all(turn.answer in LETTERS for turn in turns if turn.kind == "letter")
    for turn in turns:
        if turn.kind in ("letter", "choice"):
            options = dict(re.findall(r"^\(([A-E])\) (.+)$", turn.question, re.M))
            assert turn.answer in (options if turn.kind == "letter" else options.values())


def test_shares_of_tags_leave_the_gate_a_choice():
    rng = random.Random(0)
    count = Counter()
    for seed in range(500):
        turn = long(sample_scene(seed, "train"), rng)
        for start, end, tag in turn.spans:
            count[tag] += len(TOKEN.findall(turn.answer[start:end]))
    total = count.total()
    assert 0.32 < count["template"] / total < 0.42
    assert count["visual"] / total > 0.34
    assert count["wording"] / total > 0.2


def test_questions_for_long_answers_give_nothing_away():
    rng = random.Random(0)
    told = {*NOUNS, *COLOURS, *SIZES, *BACKGROUNDS, "slides", "left", "right"}
    for seed in range(200):
        assert not told & set(WORD.findall(long(sample_scene(seed, "train"), rng).question))


def test_fine_tuning_words_are_known_from_the_corpus():
    """Same vocabulary, other frames: every word of an answer occurs in the text that backbones are pre-trained on."""
    known = set(WORD.findall(" ".join(itertools.islice(corpus(0), 3000))))
    rng = random.Random(1)
    answers = {w for seed in range(600) for w in WORD.findall(conversation(sample_scene(seed, "train"), rng).answer)}
    assert not answers - known
    assert len(known) < 260, "a tokenizer of about 1,000 entries must hold them all"


def test_the_corpus_follows_from_its_seed():
    first, again, other = (list(itertools.islice(corpus(seed), 30)) for seed in (5, 5, 6))
    assert first == again
    assert first != other
    assert len(set(first)) > 25


def test_every_task_can_be_asked_and_answered_in_its_pool():
    rng = random.Random(0)
    seen = Counter()
    for seed in range(1500):
        scene = sample_scene(seed, "train")
        for task in TASKS:
            if one := ask(task, scene, rng):
                seen[task] += 1
                options = choices(one, rng)
                assert one.answer in one.pool
                assert one.answer in options
                assert len(set(options)) == len(options) == one.options
    assert set(seen) == set(TASKS)
    assert min(seen.values()) >= 3


@pytest.mark.parametrize(
    ("task", "plot", "truth"),
    [
        ("egocentric_navigation", "camera", lambda s: s.camera),
        ("number", "trio", lambda s: "three"),
        ("ground", "solo", lambda s: s.background),
        ("scene_transition", "duo", lambda s: f"{s.background} to {s.cut_background}"),
        ("object_interaction", "bump", lambda s: "bumps"),
        ("object_interaction", "front", lambda s: "passes"),
    ],
)
def test_answers_are_true(task, plot, truth):
    rng = random.Random(0)
    asked = [(scene, ask(task, scene, rng)) for scene in (sample_scene(seed, "test", plot) for seed in range(40))]
    asked = [(scene, one) for scene, one in asked if one]
    assert asked
    assert all(one.answer == truth(scene) for scene, one in asked)


def test_shuffled_places_are_those_of_the_last_frame():
    from eval.world import boxes

    rng = random.Random(0)
    for seed in range(20):
        scene = sample_scene(seed, "test", "shuffle")
        one = ask("object_shuffle", scene, rng)
        noun = one.question.split()[3]
        box = boxes(scene)[-1, [o.noun for o in scene.objects].index(noun)]
        assert one.answer == COLUMNS[int((box[0] + box[2]) / 2 / 64 * 3)]


def test_prompts_follow_lmms_eval():
    prompt = letter_prompt("which way does the star slide?", ["left", "up"])
    assert prompt == "Question:which way does the star slide?\nOption:\n(A) left\n(B) up\nOnly give the best option.\n"


def test_unknown_wording_and_tasks_are_refused():
    with pytest.raises(KeyError, match=r"no wording set \{whatever\}"):
        tagged("a {whatever}", random.Random(0))
    with pytest.raises(ValueError, match="unknown task 'juggling'"):
        ask("juggling", sample_scene(0, "train"), random.Random(0))
