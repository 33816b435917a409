"""Stories: clips of several scenes, each on a ground of its own, so that a question can say which scene it means.

A `Teller` makes the story of a seed. Eight evenly spaced frames hit each scene of a story once or more: nouns, colours,
places and grounds can be told from them. Deeds need more than one frame of a scene.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from eval.world.mvbench import clip
from eval.world.sample import sample_scene
from eval.world.scene import Scene
from eval.world.vocabulary import BACKGROUNDS, NOUNS


@dataclass(frozen=True)
class Story:
    """Scenes one after the other. `task`: the MVBench subtask whose view of a scene is shown (see `mvbench.clip`)."""

    scenes: tuple[Scene, ...]
    task: str = ""

    @property
    def slow(self) -> int:
        """How often each frame is shown: long stories are played at half speed."""
        return 2 if len(self.scenes) > 2 else 1

    def frames(self) -> np.ndarray:
        """The clip, uint8 [T, 64, 64, 3]; T is 8, 16, 64 and 128 for one, two, four and eight scenes."""
        return np.repeat(np.concatenate([clip(self.task, scene) for scene in self.scenes]), self.slow, axis=0)

    def having(self, noun: str) -> list[Scene]:
        """The scenes that show a noun."""
        return [scene for scene in self.scenes if any(o.noun == noun for o in scene.objects)]

    @property
    def nouns(self) -> list[str]:
        """All nouns of the story, once each, in the order of their first scenes."""
        return list(dict.fromkeys(o.noun for scene in self.scenes for o in scene.objects))


Teller = Callable[[random.Random, int, str], Story]
"""(generator, number of scenes, wanted answer or "") -> a story; the answer is a hint, and most tellers ignore it."""


def scene_of(rng: random.Random, plot: str, fits: Callable[[Scene], bool] = lambda _: True) -> Scene:
    """A random test scene of a plot that fits, with uniform words and without a cut."""
    for _ in range(20_000):
        scene = sample_scene(rng.getrandbits(53), "test", plot, uniform=True)
        if fits(scene):
            return replace(scene, cut_frame=0, cut_background="")
    raise AssertionError(f"no scene of plot {plot} fits")


def on_grounds(rng: random.Random, scenes: Sequence[Scene], grounds: Sequence[str] = ()) -> Story:
    """The scenes on these grounds; left out, on different random ones (up to eight scenes)."""
    grounds = grounds or rng.sample(BACKGROUNDS, len(scenes))
    return Story(tuple(replace(s, background=g) for s, g in zip(scenes, grounds, strict=True)))


def scenes(*plots: str) -> Teller:
    """Scenes of random plots out of these."""
    return lambda rng, n, _: on_grounds(rng, [scene_of(rng, rng.choice(plots)) for _ in range(n)])


def clipped(task: str, *plots: str) -> Teller:
    """One scene as an MVBench subtask shows it."""
    return lambda rng, _, __: Story((scene_of(rng, rng.choice(plots)),), task)


def odd(rare: Sequence[str], *plots: str) -> Teller:
    """One scene of a rare plot among others."""

    def tell(rng: random.Random, n: int, _: str) -> Story:
        k = rng.randrange(n)
        return on_grounds(rng, [scene_of(rng, rng.choice(rare if i == k else plots)) for i in range(n)])

    return tell


def hero(*plots: str) -> Teller:
    """The same noun in every scene."""

    def tell(rng: random.Random, n: int, _: str) -> Story:
        noun = rng.choice(NOUNS)
        return on_grounds(rng, [scene_of(rng, rng.choice(plots), _showing(noun)) for _ in range(n)])

    return tell


def mostly(*plots: str) -> Teller:
    """The wanted noun in most scenes: both of two, three of four, five of eight. Others are in fewer."""

    def tell(rng: random.Random, n: int, wanted: str) -> Story:
        main = set(rng.sample(range(n), n // 2 + 1))
        return on_grounds(
            rng,
            [scene_of(rng, rng.choice(plots), _showing(wanted, i in main)) for i in range(n)],
        )

    return tell


def _showing(noun: str, wanted: bool = True) -> Callable[[Scene], bool]:
    """Whether a scene shows a noun, or (wanted=False) does not."""
    return lambda scene: any(o.noun == noun for o in scene.objects) == wanted


def tour(rng: random.Random, directions: Sequence[str]) -> list[Scene]:
    """A scene for each direction of the camera ("" = it is still)."""

    def going(way: str) -> Callable[[Scene], bool]:
        return lambda scene: scene.camera == way

    return [scene_of(rng, "camera" if way else rng.choice(("duo", "trio")), going(way)) for way in directions]
