"""`make world-check`: the embedded world's numbers under a real text-only teacher, before any seed is spent."""

from pathlib import Path

import numpy as np
import torch

from eval import world
from eval.world import mvbench
from eval.world.check import Row, chance_interval, exit_code, report, table
from regate.reference import load_teacher, score_rows
from repro.evaluate import Choice, choice_accuracy, rank_options
from repro.material import Material
from repro.micro_data import TAGS, Encoder
from repro.recipes import SEEN, Data

_NAMES = {code: name for name, code in TAGS.items()}
_BATCH_TOKENS = 16384


def world_check(student: str, samples: int, runs: Path) -> int:
    """Score ``samples`` validation answers and the twin with the backbone of ``student``; 0 if all is as required."""
    material = Material(student, Data(validation=samples, tasks=SEEN[student]), runs / "cache")
    rows = material.encoded("validation")
    teacher = load_teacher(material.model(), material.processor, attend_placeholders=False)
    pairs = [
        (torch.tensor(r["input_ids"]), torch.tensor(r["labels"])) for r in rows.select_columns(["input_ids", "labels"])
    ]
    losses = [loss.numpy() for loss in score_rows(teacher, pairs, _BATCH_TOKENS)]
    # Markers are no candidates: the requirements speak of words.
    words = [np.array(tags) != TAGS["special"] for tags in rows["tags"]]
    losses = [loss[word] for loss, word in zip(losses, words, strict=True)]
    tags = [[_NAMES[t] for t in tags if t != TAGS["special"]] for tags in rows["tags"]]
    choices, _ = material.questions()
    rows_of = report(losses, tags, rows["kind"][:], _text_only(teacher, material, choices), [c.answer for c in choices])
    rows_of += sight(material)
    print(table(rows_of))
    return exit_code(rows_of)


def sight(material: Material, per_task: int = 100) -> list[Row]:
    """The prepared student on each subtask, on questions about validation scenes: seen where better than a guesser.

    Subtasks of ``Data.tasks`` must be seen before fine-tuning: elsewhere a comparison of methods says nothing.
    """
    rows, model = [], material.model()
    for task in mvbench.TASKS:
        built = mvbench.build(task, per_task, material.data.seed, "validation")
        asked = [Choice(q.question, q.candidates, q.correct, task, mvbench.clip(task, scene)) for q, scene in built]
        score = choice_accuracy(asked, rank_options(model, material.processor, asked))["accuracy"]
        mean, _, high = chance_interval([len(c.options) for c in asked])
        listed = task in material.data.tasks
        rows.append(
            Row(f"{task} (chance {mean:.2f})", score, f"> {high:.3g}" if listed else "", score > high or not listed)
        )
    return rows


def _text_only(teacher, material: Material, choices: list[Choice]) -> list[np.ndarray]:
    """Log-likelihood of every option for a teacher that cannot see, one array a question."""
    encoder = Encoder(material.processor)
    rows = [encoder.encode(c.question, option, world.FRAMES) for c in choices for option in c.options]
    pairs = [(torch.tensor(r["input_ids"]), torch.tensor(r["labels"])) for r in rows]
    scores = np.array([-float(loss.sum()) for loss in score_rows(teacher, pairs, _BATCH_TOKENS)])
    return np.split(scores, np.cumsum([len(c.options) for c in choices])[:-1])
