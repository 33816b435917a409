"""Whether a run counts: every task there, every question answered once, every answer scored, and scored the same twice.

lmms-eval exits with 0 when a rank raised or a task was missing, and MVBench drops empty answers from its average. So a
run counts only if nothing stands in `problems`; `eval.run` fails otherwise, names what is wrong, and writes no result.

Free of torch and of lmms-eval.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from eval.benchmarks import BENCHMARKS
from eval.scores import disagreements, rows_of, scores_of

MAX_UNPARSABLE = 0.05
"""Share of a benchmark's answers in which the stock parser may find no option. Some parsers then draw one at random."""
_SHOWN = 5


def problems(
    benchmark: str,
    results: Mapping[str, Any] | None,
    samples: Mapping[str, Sequence[Mapping[str, Any]]],
    tasks: Sequence[str],
    max_unparsable: float = MAX_UNPARSABLE,
) -> list[str]:
    """Everything that is wrong with the run of one benchmark, in words; empty if it counts.

    Args:
        results: lmms-eval's own, with `results` and `n-samples`; None where it wrote none.
        samples: its logged samples by task.
        tasks: the tasks that were to be run.
    """
    if results is None:
        return [f"{benchmark}: lmms-eval wrote no results"]
    found: list[str] = []
    for task in tasks:
        found += _task_problems(task, results, samples.get(task, []))
    if found:
        return found
    rows = rows_of({task: samples[task] for task in tasks})
    lost = [f"{row.task} {row.doc}: {row.answer[:40]!r}" for row in rows if not row.understood]
    if len(lost) > max_unparsable * len(rows):
        share = f"{len(lost)} of {len(rows)} answers hold no option, allowed are {max_unparsable:.0%}"
        found.append(f"{benchmark}: {share}: {_some(lost)}")
    return found + disagreements(benchmark, scores_of(benchmark, rows), results["results"])


def _task_problems(task: str, results: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]) -> list[str]:
    numbers = results.get("n-samples", {}).get(task)
    if task not in results.get("results", {}) or numbers is None:
        return [f"{task}: missing from lmms-eval's results"]
    if not samples:
        return [f"{task}: no samples were logged"]
    if "regate" not in samples[0]:
        return [f"{task}: samples without a 'regate' line; run it as a group of eval/suites"]
    found = []
    counts = Counter(sample["doc_id"] for sample in samples)
    missing = sorted(set(range(numbers["effective"])) - set(counts))
    if missing:
        found.append(f"{task}: {len(missing)} of {numbers['effective']} questions were not answered: {_some(missing)}")
    if strange := sorted(doc for doc in counts if not 0 <= doc < numbers["effective"]):
        found.append(f"{task}: answers to questions that were not asked: {_some(strange)}")
    if twice := sorted(doc for doc, n in counts.items() if n > 1):
        found.append(f"{task}: scored more than once: {_some(twice)}")
    if empty := sorted(s["doc_id"] for s in samples if not s["regate"]["answer"].strip()):
        found.append(f"{task}: {len(empty)} empty answers: {_some(empty)}")
    return found


def _some(things: Sequence[Any]) -> str:
    more = f" and {len(things) - _SHOWN} more" if len(things) > _SHOWN else ""
    return ", ".join(map(str, things[:_SHOWN])) + more


def tasks_of(benchmark: str, shown: Sequence[str] | None = None) -> list[str]:
    """lmms-eval's tasks of a benchmark; with `shown` (MVBench's subtasks that a twin has), those."""
    tasks = BENCHMARKS[benchmark].tasks
    if benchmark != "mvbench" or shown is None:
        return list(tasks)
    return [task for task in tasks if task.removeprefix("mvbench_") in shown]
