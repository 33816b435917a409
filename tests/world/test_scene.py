"""Scenes: seeds, splits, held-out combinations, JSON."""

import dataclasses
import json
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.world import SPLITS, Scene, sample_scene
from eval.world.sample import PLOTS
from eval.world.vocabulary import COLOURS, NOUNS, VERBS, owner

SEEDS = st.integers(0, 2**53)


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.sampled_from(SPLITS), st.sampled_from([None, *PLOTS]), st.booleans())
def test_a_scene_follows_from_its_seed_and_survives_json(seed, split, plot, uniform):
    scene = sample_scene(seed, split, plot, uniform)
    assert scene == sample_scene(seed, split, plot, uniform)
    assert Scene.from_dict(json.loads(json.dumps(scene.to_dict()))) == scene
    nouns = [o.noun for o in scene.objects]
    assert 1 <= len(nouns) <= 3
    assert len(set(nouns)) == len(nouns), "a question that names a noun would be ambiguous"


def test_splits_share_no_seed_stream():
    streams = [[sample_scene(seed, split).to_dict() | {"split": ""} for seed in range(20)] for split in SPLITS]
    assert not any(scene in streams[1] + streams[2] for scene in streams[0])


def test_held_out_combinations_never_enter_training():
    shown = {split: Counter() for split in SPLITS}
    for split in SPLITS:
        for seed in range(1000):
            for combinations in sample_scene(seed, split).combinations():
                owners = {owner(*combination) for combination in combinations}
                assert split in owners, f"{combinations} holds nothing of {split}"
                shown[split].update(combinations)
    for held in ("validation", "test"):
        own = {c for c in shown[held] if owner(*c) == held}
        assert len(own) > 0.9 * len(NOUNS) * len(VERBS)
        assert not own & set(shown["train"])
    assert not {c for c in shown["test"] if owner(*c) == "test"} & set(shown["validation"])


def test_each_noun_and_verb_keep_one_colour_for_test_and_one_for_validation():
    for noun in NOUNS:
        for verb in VERBS:
            owners = Counter(owner(noun, colour, verb) for colour in COLOURS)
            assert owners == {"train": len(COLOURS) - 2, "validation": 1, "test": 1}


def test_training_words_follow_a_zipf_law_and_benchmark_words_do_not():
    def nouns(uniform):
        scenes = [sample_scene(seed, "train", "solo", uniform) for seed in range(1500)]
        return Counter(scene.objects[0].noun for scene in scenes)

    common, even = nouns(False), nouns(True)
    assert common[NOUNS[0]] > 4 * common[NOUNS[-1]]
    assert max(even.values()) < 2 * min(even.values())


def test_every_plot_is_drawn():
    assert {sample_scene(seed, "train").plot for seed in range(1000)} == set(PLOTS)


@pytest.mark.parametrize(
    ("arguments", "message"), [((0, "dev"), "unknown split"), ((0, "test", "opera"), "unknown plot")]
)
def test_unknown_names_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        sample_scene(*arguments)


def test_scenes_with_unknown_words_or_of_another_version_are_refused():
    scene = sample_scene(0, "train", "bump")
    with pytest.raises(ValueError, match="unknown background 'mars'"):
        dataclasses.replace(scene, background="mars")
    with pytest.raises(ValueError, match="unknown colour 'beige'"):
        dataclasses.replace(scene, objects=(dataclasses.replace(scene.objects[0], colour="beige"),), relations=())
    with pytest.raises(ValueError, match="no object of the scene"):
        dataclasses.replace(scene, objects=scene.objects[:1])
    with pytest.raises(ValueError, match="a cut needs"):
        dataclasses.replace(scene, cut_frame=0, cut_background="sand")
    with pytest.raises(ValueError, match="world '0'"):
        Scene.from_dict(scene.to_dict() | {"world": "0"})
