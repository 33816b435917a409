"""Pieces of markup that every style of text shares: what an object is, where it is, what it does."""

from __future__ import annotations

from eval.world.acts import time_of
from eval.world.scene import Act, Scene, Thing
from eval.world.vocabulary import COLUMNS, COUNTS, ROWS

PRESENT = {
    "slide": "slides", "hop": "hops", "spin": "spins", "grow": "grows", "blink": "blinks", "stay": "stays",
    "shrink": "shrinks", "vanish": "vanishes", "appear": "appears", "swap": "swaps",
}  # fmt: skip


def looks(thing: Thing) -> str:
    """Size, unusual pose, colour and noun: `*large *flat *red *star`."""
    pose = "" if thing.pose == "upright" else f"*{thing.pose} "
    return f"*{thing.size} {pose}*{thing.colour} *{thing.noun}"


def does(act: Act) -> str:
    """A verb with its direction or count: `*slides *left`, `*hops *twice`, `*spins`."""
    detail = f" *{act.direction}" if act.direction else f" *{COUNTS[act.count - 1]}" if act.count else ""
    return f"*{PRESENT[act.verb]}{detail}"


def band(value: float, names: tuple[str, ...]) -> str:
    """Third of the frame: below 24 px, between, above 40 px."""
    return names[0] if value < 24 else names[2] if value > 40 else names[1]


def where(thing: Thing) -> str:
    """The place of an object at the start: of a slider only the lane it keeps, of others row and column."""
    slides = [act.direction for act in thing.acts if act.verb == "slide"]
    row, column = f"*{band(thing.y, ROWS)}", f"*{band(thing.x, COLUMNS)}"
    if any(d in ("left", "right") for d in slides):
        return row
    return column if slides else f"{row} *{band(thing.x, COLUMNS)}"


def when(thing: Thing) -> str:
    """`*early`, `*midway` or `*late` for an object with one local act, else ""."""
    time = time_of(thing.acts[0]) if len(thing.acts) == 1 and thing.verbs[0] not in ("appear", "vanish") else ""
    return f"*{time}" if time else ""


def placed_in_sight(scene: Scene, thing: Thing) -> bool:
    """Whether a place may be told: not where the camera travels or things trade places."""
    return not scene.camera and "swap" not in thing.verbs


def ground(scene: Scene) -> str:
    return f"*{scene.background}"
