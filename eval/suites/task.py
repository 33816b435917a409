"""A stock task of lmms-eval, with the prompts of a profile, on data of the hub or of a folder.

Question, options, scoring and aggregation are lmms-eval's own. Added are: Table 6's prompts; what a model that ranks
options needs to know (`multiple_choice` in the last message); and a line `regate` in every logged sample, from which
`eval.guard` and `eval.scores` read. An empty answer counts as a wrong one: stock MVBench leaves it out of the average.

    REGATE_EVAL_PROMPTS   paper (default) or stock
    REGATE_EVAL_DATA      a folder with one data set for each benchmark, in the place of the hub's; the videos lie below
                          HF_HOME, as always. `python -m eval.run` sets both, and makes both.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import nltk
from lmms_eval.api.task import ConfigurableMessagesTask

from eval.benchmarks import BENCHMARK_OF_TASK
from eval.prompts import prompt_text, specific_kwargs
from eval.suites.answers import SCORES, UNDERSTOOD
from eval.suites.questions import CHOICES, PARTS, unit

PROMPTS, DATA = "REGATE_EVAL_PROMPTS", "REGATE_EVAL_DATA"
SAMPLE = "regate"
NOTHING = "?"  # what an empty answer is scored as

# NExT-QA's stock module downloads three corpora when it is imported; its multiple choice uses none of them.
nltk.download = lambda *_, **__: False


class SuiteTask(ConfigurableMessagesTask):
    """One task; `class` of an entry in a group's YAML."""

    def __init__(self, config: dict[str, Any], **kwargs: Any) -> None:
        config = {key: value for key, value in config.items() if key != "class"}
        self.benchmark = BENCHMARK_OF_TASK[config["task"]]
        self.profile = os.environ.get(PROMPTS, "paper")
        name = self.benchmark.name
        config["lmms_eval_specific_kwargs"] = specific_kwargs(
            name, self.profile, config.get("lmms_eval_specific_kwargs")
        )
        if root := os.environ.get(DATA):
            folder = Path(root) / name
            if not folder.is_dir():
                raise FileNotFoundError(f"{folder}: no such folder; {DATA} must hold a data set called {name}")
            config |= {"dataset_path": str(folder.resolve()), "dataset_kwargs": {}}
            local = dict(self.benchmark.configs).get(config["task"])
            if local and (folder / local).is_dir():
                config["dataset_name"] = local
        super().__init__(config=config, **kwargs)

    def doc_to_text(self, doc: dict[str, Any]) -> str:
        """The prompt, as the model sees it."""
        return prompt_text(self.benchmark.name, self.profile, super().doc_to_text(doc))

    def doc_to_messages(self, doc: dict[str, Any], **kwargs: Any) -> list[dict[str, Any]]:
        """The conversation; its last message says which answers it may have, where they are known."""
        messages = super().doc_to_messages(doc, **kwargs)
        if self.benchmark.name in CHOICES:
            question, texts, answers = CHOICES[self.benchmark.name](doc, self.doc_to_text(doc))
            messages[-1]["multiple_choice"] = {"question": question, "texts": texts, "answers": answers}
        return messages

    def process_results(self, doc: dict[str, Any], results: list[str], full_docs: Any = None) -> dict[str, Any]:
        """The stock metrics, and what the guard needs to know about this sample."""
        answer = results[0] if isinstance(results[0], str) else ""
        stock = super().process_results(doc, [answer.strip() or NOTHING], full_docs)
        name = self.benchmark.name
        choice = CHOICES[name](doc, self.doc_to_text(doc)) if name in CHOICES else None
        sample = {
            "answer": answer,
            "score": float(SCORES[name](doc, stock)),
            "understood": bool(answer.strip()) and bool(UNDERSTOOD[name](doc, answer, stock)),
            "part": PARTS[name](doc, self.config.task),
            "unit": unit(name, doc),
            "options": len(choice[1]) if choice else None,
            "prompt": self.doc_to_text(doc),
            "truth": str(doc["answer"]).lower() if name == "pope" else None,
        }
        return {**stock, SAMPLE: sample}
