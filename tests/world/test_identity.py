"""The world is versioned: seeds give the same frames and sentences, and a change of either asks for a new version."""

import hashlib
import itertools
import random

from eval.world import WORLD_VERSION, caption, conversation, corpus, mvbench, render, sample_scene, training_set

IDENTITY = {"2": ("92120b28fd71e275", "b2932259be06c578f02c8f827444766e")}
# Subtasks of the twin that joined after their version was made, each with a digest of its own.
LATER = {"action_prediction": "218912eea85bf10d"}


def _digest(parts) -> str:
    total = hashlib.sha256()
    for part in parts:
        total.update(part)
    return total.hexdigest()[:16]


def _scenes():
    return [sample_scene(seed, split) for split in ("train", "validation", "test") for seed in range(60)]


def test_frames_and_sentences_belong_to_the_version():
    frames = _digest(render(scene).tobytes() for scene in _scenes())
    rng = random.Random(0)
    turns = [speak(scene, rng) for scene in _scenes() for speak in (caption, conversation)]
    turns += [q for task in mvbench.TASKS if task not in LATER for q, _ in mvbench.build(task, 3, 0)]
    text = _digest(repr(turn).encode() for turn in turns) + _digest(d.encode() for d in itertools.islice(corpus(0), 50))
    assert (frames, text) == IDENTITY[WORLD_VERSION], (
        "rendering or language changed: bump WORLD_VERSION in eval/world/vocabulary.py and enter the new digests here"
    )


def test_later_subtasks_have_an_identity_too():
    for task, digest in LATER.items():
        parts = [(repr(q).encode(), mvbench.clip(task, scene).tobytes()) for q, scene in mvbench.build(task, 3, 0)]
        assert _digest(itertools.chain(*parts)) == digest, f"{task} changed: enter the new digest here"


def test_same_seed_same_rows_and_another_seed_other_rows():
    a, b, c = (training_set("train", 40, seed) for seed in (3, 3, 4))
    assert a[:] == b[:]
    assert a["scene"][:] != c["scene"][:]
    assert len(set(a["id"]) | set(c["id"])) == 80
