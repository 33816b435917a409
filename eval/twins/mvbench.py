"""The MVBench twin: 18 of its 20 subtasks. The questions are those of `eval.world.mvbench`, which Table 4 uses too."""

from __future__ import annotations

from pathlib import Path

from eval.twins.base import Twin
from eval.world import mvbench


def write(folder: Path, count: int, seed: int) -> None:
    """`count` questions for each subtask, as JSON; one video each below `video/`, in the stock folders."""
    mvbench.write(folder, count, seed)


TWIN = Twin(
    "mvbench",
    tuple(mvbench.TASKS),
    {
        "fine_grained_action": "no two deeds of the world look nearly alike",
        "unexpected_action": "surprise and humour need expectations about real life",
    },
    write,
    media="video",
)
