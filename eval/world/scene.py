"""What happens in a clip, as plain data: objects with acts, relations, background, cut and camera. JSON both ways."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from eval.world.vocabulary import (
    BACKGROUNDS,
    COLOURS,
    DIRECTIONS,
    FRAMES,
    NOUNS,
    POSES,
    RELATIONS,
    SIZES,
    SPLITS,
    VERBS,
    WORLD_VERSION,
)


@dataclass(frozen=True)
class Act:
    """One verb of an object in the frames `start <= f < end`.

    `slide` and `swap` move by (dx, dy) pixels; `arc` bends a swap's path sideways; `hop` and `blink` happen `count`
    times.
    """

    verb: str
    start: int = 0
    end: int = FRAMES
    direction: str = ""
    count: int = 0
    dx: float = 0.0
    dy: float = 0.0
    arc: float = 0.0


@dataclass(frozen=True)
class Thing:
    """A sprite: (x, y) is its centre in frame 0 in pixels, a larger `depth` is drawn in front."""

    noun: str
    colour: str
    size: str
    pose: str
    x: float
    y: float
    acts: tuple[Act, ...]
    depth: int = 0

    @property
    def verbs(self) -> tuple[str, ...]:
        return tuple(act.verb for act in self.acts)


@dataclass(frozen=True)
class Relation:
    """`kind` (see `RELATIONS`) between the objects number `a` (who does it) and `b`."""

    kind: str
    a: int
    b: int


@dataclass(frozen=True)
class Scene:
    """A clip of 8 frames. Objects come in reading order (lane by lane), or who acts first; language keeps that order.

    `camera` names where the camera travels ("" = it is still), so all things shift the other way. From frame
    `cut_frame` on (0 = no cut) the background is `cut_background`.
    """

    plot: str
    background: str
    objects: tuple[Thing, ...]
    relations: tuple[Relation, ...] = ()
    cut_frame: int = 0
    cut_background: str = ""
    camera: str = ""
    split: str = "train"
    seed: int = 0

    def __post_init__(self) -> None:
        known = {"split": SPLITS, "background": BACKGROUNDS}
        for field, values in known.items():
            if getattr(self, field) not in values:
                raise ValueError(f"unknown {field} {getattr(self, field)!r}; the world has {', '.join(values)}")
        if self.camera and self.camera not in DIRECTIONS:
            raise ValueError(f"unknown camera {self.camera!r}; expected '' or one of {', '.join(DIRECTIONS)}")
        if bool(self.cut_frame) != (self.cut_background in BACKGROUNDS) or not 0 <= self.cut_frame < FRAMES:
            raise ValueError(
                f"a cut needs a frame in 1..{FRAMES - 1} and a background; got {self.cut_frame}, "
                f"{self.cut_background!r}"
            )
        for thing in self.objects:
            for field, words in {"noun": NOUNS, "colour": COLOURS, "size": SIZES, "pose": POSES}.items():
                if getattr(thing, field) not in words:
                    raise ValueError(f"unknown {field} {getattr(thing, field)!r}; the world has {', '.join(words)}")
            for verb in thing.verbs:
                if verb not in VERBS:
                    raise ValueError(f"unknown verb {verb!r}; the world has {', '.join(VERBS)}")
        for relation in self.relations:
            if relation.kind not in RELATIONS or not {relation.a, relation.b} <= set(range(len(self.objects))):
                raise ValueError(f"{relation} names no relation of {', '.join(RELATIONS)} or no object of the scene")

    def combinations(self) -> list[set[tuple[str, str, str]]]:
        """Per object, its (noun, colour, verb) combinations."""
        return [{(o.noun, o.colour, verb) for verb in o.verbs} for o in self.objects]

    def to_dict(self) -> dict[str, Any]:
        return {"world": WORLD_VERSION, **asdict(self)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Scene:
        """Inverse of `to_dict`; a scene of another world version is an error."""
        data = dict(data)
        if (world := data.pop("world", None)) != WORLD_VERSION:
            raise ValueError(f"the scene was made by world {world!r}, this is world {WORLD_VERSION!r}; make it again")
        data["objects"] = tuple(Thing(**{**o, "acts": tuple(Act(**act) for act in o["acts"])}) for o in data["objects"])
        data["relations"] = tuple(Relation(**r) for r in data["relations"])
        return cls(**data)
