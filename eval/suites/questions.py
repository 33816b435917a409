"""Where each benchmark keeps the question, the options and the kind of a question. `doc` is a row of its data set.

A choice is (question, texts of the options, answers that stand for them): what a model that ranks options needs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Doc = Mapping[str, Any]
Choice = tuple[str, Sequence[str], Sequence[str]]
LETTERS = "ABCDEFGH"
_OPTION = re.compile(r"^\(?([A-H])[.)]\s*(.*)$")


def _letters(question: str, texts: Sequence[str]) -> Choice:
    return question, list(texts), list(LETTERS[: len(texts)])


def _bare(options: Sequence[str]) -> list[str]:
    """Options without the letter that stands before them."""
    return [match[2] if (match := _OPTION.match(option.strip())) else option for option in options]


def _written_out(text: str) -> Choice:
    """A question whose text holds its options, one to a line, each behind its letter."""
    lines = text.split("\n")
    found = [(k, match[2]) for k, line in enumerate(lines) if (match := _OPTION.match(line.strip()))]
    if len(found) < 2:
        raise ValueError(f"found no options in the question {text!r}, expected lines such as '(A) ...' or 'A. ...'")
    return _letters("\n".join(lines[: found[0][0]]).strip(), [option for _, option in found])


def _scienceqa(doc: Doc, _: str) -> Choice:
    context = f"Context: {doc['hint']}\n" if doc["hint"] else ""
    return _letters(context + doc["question"], doc["choices"])


def _yes_no(doc: Doc, _: str) -> Choice:
    question = doc["question"].strip().removesuffix("Please answer yes or no.").strip()
    return question, ["yes", "no"], ["yes", "no"]


def _longvideobench(doc: Doc, _: str) -> Choice:
    return _letters(
        doc["question"], [doc[f"option{k}"] for k in range(5) if doc.get(f"option{k}") not in ("N/A", None)]
    )


CHOICES: dict[str, Callable[[Doc, str], Choice]] = {
    "scienceqa": _scienceqa,
    "mme": _yes_no,
    "pope": _yes_no,
    "seedbench": lambda doc, _: _letters(doc["question"], [doc[f"choice_{c}"] for c in "abcd"]),
    "videomme": lambda doc, _: _letters(doc["question"], _bare(doc["options"])),
    "longvideobench": _longvideobench,
    "mlvu": lambda doc, _: _written_out(doc["question"]),
    "egoschema": lambda doc, _: _letters(doc["question"], _bare(doc["option"])),
    "mvbench": lambda doc, _: _letters(doc["question"], doc["candidates"]),
    "perceptiontest": lambda doc, _: _letters(doc["question"], doc["options"]),
    "nextqa": lambda doc, _: _letters(doc["question"].strip(), [doc[f"a{k}"].strip() for k in range(5)]),
    "vinoground": lambda _, prompt: _written_out(prompt),
}
"""Question and options of a row and its prompt. VizWiz is not here: its answers are open."""


PARTS: dict[str, Callable[[Doc, str], str]] = {
    "scienceqa": lambda _, task: {"scienceqa_img": "images", "scienceqa": "all"}[task],
    "mme": lambda doc, _: doc["category"],
    "vizwiz": lambda doc, _: doc.get("category") or "all",
    "pope": lambda doc, _: doc["category"],
    "seedbench": lambda doc, _: doc["data_type"],
    "videomme": lambda doc, _: doc["duration"],
    "longvideobench": lambda doc, _: str(doc["duration_group"]),
    "mlvu": lambda doc, _: doc["task_type"],
    "egoschema": lambda _doc, _task: "subset",
    "mvbench": lambda _, task: task.removeprefix("mvbench_"),
    "perceptiontest": lambda doc, _: doc["area"],
    "nextqa": lambda doc, _: doc["type"],
    "vinoground": lambda doc, _: doc["index"].split("_")[2],
}
"""What a score is split by, of a row and its task."""


def unit(benchmark: str, doc: Doc) -> str:
    """Questions of one unit score together: the two of an MME picture, the four of a Vinoground pair."""
    if benchmark == "mme":
        return f"{doc['category']}/{doc['question_id']}"
    return doc["index"].split("_")[0] if benchmark == "vinoground" else ""
