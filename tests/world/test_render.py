"""Frames and boxes: what the scene says is what the pixels show."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.world import FRAMES, SIZE, Act, Scene, Thing, boxes, render, sample_scene
from eval.world.sample import PLOTS
from eval.world.vocabulary import BACKGROUNDS, COLOURS, NOUNS, SIZES


def alone(*acts, noun="star", colour="red", size="medium", x=32.0, y=32.0, **scene):
    return Scene("test", "grass", (Thing(noun, colour, size, "upright", x, y, acts or (Act("stay"),)),), **scene)


def without(scene, index):
    rest = tuple(o for i, o in enumerate(scene.objects) if i != index)
    return dataclasses.replace(scene, objects=rest, relations=())


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**40), st.sampled_from(list(PLOTS)))
def test_boxes_enclose_exactly_the_pixels_that_a_sprite_changes(seed, plot):
    scene = sample_scene(seed, "train", plot)
    for index in range(len(scene.objects)):
        only = dataclasses.replace(scene, objects=scene.objects[index : index + 1], relations=())
        changed = (render(only) != render(without(only, 0))).any(-1)  # [8, 64, 64]
        for box, mask in zip(boxes(scene)[:, index], changed, strict=True):
            if not mask.any():
                assert np.isnan(box).all()
                continue
            ys, xs = np.nonzero(mask)
            found = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
            # The outline's palest pixels may round to the background's own colour.
            assert np.abs(found - box).max() <= 1, f"drawn {found}, box {box}"


def test_frames_and_boxes_have_the_promised_types():
    scene = sample_scene(0, "train", "trio")
    assert render(scene).dtype == np.uint8
    assert render(scene).shape == (FRAMES, SIZE, SIZE, 3)
    assert boxes(scene).dtype == np.float32
    assert boxes(scene).shape == (FRAMES, 3, 4)


@pytest.mark.parametrize(
    ("direction", "step"), [("left", (-32, 0)), ("right", (32, 0)), ("up", (0, -32)), ("down", (0, 32))]
)
def test_a_slide_goes_where_it_says(direction, step):
    act = Act("slide", direction=direction, dx=float(step[0]), dy=float(step[1]))
    found = boxes(alone(act, x=32.0 - step[0] / 2, y=32.0 - step[1] / 2))[:, 0]
    assert (found[-1] - found[0] == np.array(step * 2)).all()


def test_verbs_show():
    area = {}
    for verb in ("grow", "shrink", "stay"):
        found = boxes(alone(Act(verb)))[:, 0]
        area[verb] = (found[-1, 2] - found[-1, 0]) / (found[0, 2] - found[0, 0])
    assert area["grow"] > 1.4
    assert area["shrink"] < 0.65
    assert area["stay"] == 1
    widths = np.diff(boxes(alone(Act("spin")))[:, 0, [0, 2]])[:, 0]
    assert widths.min() < 0.5 * widths.max()
    assert np.isnan(boxes(alone(Act("appear", 4, 5)))[:, 0, 0]).tolist() == [True] * 4 + [False] * 4
    assert np.isnan(boxes(alone(Act("vanish", 4, 5)))[:, 0, 0]).tolist() == [False] * 4 + [True] * 4


@pytest.mark.parametrize("count", [1, 2, 3])
def test_hops_and_blinks_can_be_counted(count):
    tops = boxes(alone(Act("hop", count=count)))[:, 0, 1]
    assert (np.diff((tops < tops.max()).astype(int)) == 1).sum() == count
    hidden = np.isnan(boxes(alone(Act("blink", count=count)))[:, 0, 0])
    assert (np.diff(hidden.astype(int)) == 1).sum() == count
    assert not hidden[0]


def test_behind_and_in_front_differ():
    ball = Thing("ball", "red", "small", "upright", 32.0, 32.0, (Act("stay"),), depth=-1)
    box = Thing("box", "blue", "large", "upright", 32.0, 32.0, (Act("stay"),))
    hidden = render(Scene("test", "snow", (ball, box)))[0, 32, 32]
    shown = render(Scene("test", "snow", (dataclasses.replace(ball, depth=1), box)))[0, 32, 32]
    assert tuple(hidden) == COLOURS["blue"]
    assert tuple(shown) == COLOURS["red"]


def test_camera_shifts_everything_the_other_way():
    still, moved = (render(alone(Act("stay"), camera=camera)) for camera in ("", "right"))
    assert (moved[2][:, :-6] == still[2][:, 6:])[:, 10:].all()
    assert (moved[0] == still[0]).all()


def test_a_cut_changes_the_background_in_its_frame():
    frames = render(alone(cut_frame=5, cut_background="sand"))
    assert (frames[:5] == frames[0]).all()
    assert (frames[5:] == frames[5]).all()
    assert (frames[4][:8] != frames[5][:8]).mean() > 0.9


def test_silhouettes_colours_sizes_and_backgrounds_differ():
    def still(**fields):
        return render(alone(**fields))[0].astype(int)

    for name, values in {"noun": NOUNS, "colour": COLOURS, "size": SIZES}.items():
        pictures = [still(**{name: value}) for value in values]
        for i, one in enumerate(pictures):
            for other in pictures[:i]:
                differing = (np.abs(one - other).sum(-1) > 60).sum()
                assert differing > 40, f"two values of {name} differ in {differing} pixels only"
    grounds = [render(dataclasses.replace(alone(), background=name))[0, :16].mean((0, 1)) for name in BACKGROUNDS]
    for i, one in enumerate(grounds):
        assert all(np.abs(one - other).max() > 12 for other in grounds[:i])
