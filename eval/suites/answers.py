"""What the stock scoring made of an answer: its score in [0, 1], and whether it found an answer in the text at all.

Some stock parsers draw an option at random where they find none, others count it as wrong; none says so.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from eval.suites.questions import LETTERS

Doc = Mapping[str, Any]
Stock = Mapping[str, Any]
_LONGVIDEOBENCH_PREFIXES = (
    "The best answer is", "The correct answer is", "The answer is", "The answer", "The best option is",
    "The correct option is", "Best answer:", "Best option:",
)  # fmt: skip


@cache
def _vinoground_truths(home: str) -> dict[tuple[str, str], str]:
    """(index, kind of question) -> right letter, from the two files that the stock task reads."""
    folder, truths = Path(home) / "vinoground", {}
    for kind, name in (("text", "vinoground_videos"), ("video", "vinoground_videos_concated")):
        for row in json.loads((folder / name / f"vinoground_{kind}score.json").read_text()):
            truths[row["idx"], kind] = row["GT"].lower()
    return truths


def _vinoground(doc: Doc, stock: Stock) -> float:
    number, name, kind = doc["index"].split("_")
    truth = _vinoground_truths(os.path.expanduser(os.environ.get("HF_HOME", "~/.cache/huggingface")))
    return float(stock["vinoground_score"]["pred"][0].lower() == truth[f"{number}_{name}", kind])


SCORES: dict[str, Callable[[Doc, Stock], float]] = {
    "scienceqa": lambda _, stock: stock["exact_match"],
    "mme": lambda _, stock: next(iter(stock.values()))["score"],
    "vizwiz": lambda _, stock: stock["exact_match"],
    "pope": lambda _, stock: stock["pope_accuracy"]["score"],
    "seedbench": lambda _, stock: _same(stock["seed_all"]["pred"].lower().strip(), stock["seed_all"]["answer"].lower()),
    "videomme": lambda _, stock: _pair(stock["videomme_perception_score"], "pred_answer"),
    "longvideobench": lambda _, stock: _pair(stock["lvb_acc"], "parsed_pred"),
    "mlvu": lambda _, stock: _pair(stock["mlvu_percetion_score"], "pred_answer"),
    "egoschema": lambda _, stock: _same(str(stock["score"]["pred"]), str(stock["score"]["ground_truth"])),
    "mvbench": lambda _, stock: stock["mvbench_accuracy"]["score"],
    "perceptiontest": lambda _, stock: stock["accuracy"]["correct"],
    "nextqa": lambda _, stock: float(stock["exact_match"]),
    "vinoground": _vinoground,
}
"""Score of an answer from what the stock task's `process_results` returned."""


def _pair(stock: Stock, said: str) -> float:
    return _same(stock[said], stock["answer"])


def _same(a: str, b: str) -> float:
    return float(a == b)


def _one_of(letters: str, answer: str) -> bool:
    return answer.strip()[:1].upper() in tuple(letters)


def _scienceqa(doc: Doc, answer: str, _: Stock) -> bool:
    letters = LETTERS[: len(doc["choices"])]
    answer = answer.strip()
    return answer.upper() in tuple(letters) or bool(re.match(rf"[{letters}]\.", answer))


def _mme(_: Doc, answer: str, __: Stock) -> bool:
    from lmms_eval.tasks.mme.utils import parse_pred_ans

    return parse_pred_ans(answer) != "other"


def _mvbench(_: Doc, answer: str, __: Stock) -> bool:
    from lmms_eval.tasks.mvbench.utils import mcq_acc

    return any(mcq_acc(letter, answer) for letter in LETTERS[:5])


def _longvideobench(_: Doc, answer: str, __: Stock) -> bool:
    for prefix in _LONGVIDEOBENCH_PREFIXES:
        answer = answer.replace(prefix, "")
    return re.search("[A-E]", answer) is not None


def _lettered_or_quoted(answer: str, texts: list[str]) -> bool:
    """A letter in one of three forms, or, in a long answer, the text of an option."""
    for sign in ",.!?;:'":
        answer = answer.strip(sign)
    answer = f" {answer} "
    if any(form in answer for letter in "ABCDE" for form in (f"({letter})", f"{letter} ", f"{letter}.")):
        return True
    return len(answer.split()) > 5 and any(text.strip().lower() in answer.lower() for text in texts)


UNDERSTOOD: dict[str, Callable[[Doc, str, Stock], bool]] = {
    "scienceqa": _scienceqa,
    "mme": _mme,
    "vizwiz": lambda _doc, answer, _stock: bool(answer.strip()),
    "pope": lambda _doc, answer, _stock: answer.lower().strip() in ("yes", "no"),
    "seedbench": lambda _doc, answer, _stock: _one_of("ABCD", answer),
    "videomme": lambda _doc, _answer, stock: bool(stock["videomme_perception_score"]["pred_answer"]),
    "longvideobench": _longvideobench,
    "mlvu": lambda _doc, _answer, stock: bool(stock["mlvu_percetion_score"]["pred_answer"]),
    "egoschema": lambda doc, answer, _stock: _lettered_or_quoted(answer, doc["option"]),
    "mvbench": _mvbench,
    "perceptiontest": lambda _doc, _answer, stock: stock["accuracy"]["pred_id"] >= 0,
    "nextqa": lambda doc, answer, _stock: _lettered_or_quoted(answer, [doc[f"a{k}"] for k in range(5)]),
    "vinoground": lambda _doc, answer, _stock: _one_of("AB", answer),
}
"""Whether the stock parser finds an answer in the text."""
