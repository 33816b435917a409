"""What one object does: act plans drawn for a window of frames, and the room their motion needs."""

from __future__ import annotations

import random

from eval.world.scene import Act
from eval.world.vocabulary import DIRECTIONS, FRAMES, draw

MARGIN = 13.0  # pixels that a centre keeps from the frame's edge
WINDOWS = {"early": (0, 3), "midway": (2, 5), "late": (5, 8)}
MOST = {8: 3, 4: 2, 3: 1}  # hops or blinks that fit into a window of so many frames
MOVING = ("slide", "swap")
LASTING = ("grow", "shrink", "vanish", "appear")  # what they change stays changed


def act(rng: random.Random, verb: str, start: int, end: int, directions: tuple[str, ...], uniform: bool = False) -> Act:
    """One act in a window. A slide covers 28-36 px over the whole clip and 20-26 px over a part of it."""
    frames = end - start
    if verb == "slide":
        direction = draw(rng, directions, uniform=uniform)
        reach = rng.randint(28, 36) if frames == FRAMES else rng.randint(20, 26)
        ux, uy = DIRECTIONS[direction]
        return Act(verb, start, end, direction, dx=float(ux * reach), dy=float(uy * reach))
    if verb in ("hop", "blink"):
        return Act(verb, start, end, count=draw(rng, range(1, MOST[frames] + 1), uniform=uniform))
    if verb in ("appear", "vanish"):  # one frame tells; in the middle of the window it is seen before and after
        frame = start + frames // 2
        return Act(verb, frame, frame + 1)
    return Act(verb, start, end)


def whole(
    rng: random.Random, verbs: tuple[str, ...], directions: tuple[str, ...], uniform: bool = False
) -> tuple[Act, ...]:
    """One act over the clip."""
    return (act(rng, draw(rng, verbs, uniform=uniform), 0, FRAMES, directions, uniform),)


def two_phases(
    rng: random.Random, verbs: tuple[str, ...], directions: tuple[str, ...], uniform: bool = False
) -> tuple[Act, ...]:
    """First one verb, from frame 4 on another. Only the first may appear, only the last may vanish."""
    first = draw(rng, [v for v in verbs if v != "vanish"], uniform=uniform)
    second = draw(
        rng, [v for v in verbs if v not in (first, "appear") and {v, first} != {"grow", "shrink"}], uniform=uniform
    )
    return (act(rng, first, 0, 4, directions, uniform), act(rng, second, 4, FRAMES, directions, uniform))


def local(
    rng: random.Random, verbs: tuple[str, ...], directions: tuple[str, ...], uniform: bool = False
) -> tuple[Act, ...]:
    """One act early, midway or late; still in the other frames."""
    time = draw(rng, list(WINDOWS), uniform=uniform)
    verb = draw(rng, [v for v in verbs if v != "stay"], uniform=uniform)
    return (act(rng, verb, *WINDOWS[time], directions, uniform),)


def time_of(one: Act) -> str:
    """`early`, `midway` or `late` for an act in a local window, else "" (a whole clip or a half)."""
    if one.verb in ("appear", "vanish"):
        return "early" if one.start < 3 else "late" if one.start > 5 else "midway"
    return next((name for name, window in WINDOWS.items() if window == (one.start, one.end)), "")


def reach(acts: tuple[Act, ...]) -> tuple[float, float, float, float]:
    """Least and largest offset from the start, as (x_low, x_high, y_low, y_high) in pixels."""
    x = y = 0.0
    xs, ys = [0.0], [0.0]
    for one in acts:
        x, y = x + one.dx, y + one.dy
        xs.append(x)
        ys.append(y)
    return min(xs), max(xs), min(ys), max(ys)
