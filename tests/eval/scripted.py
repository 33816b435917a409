"""Models for lmms-eval that answer by a script: from the ground truth, wrong, at random, or nothing at all.

Where the truth stands is written here anew for every benchmark, apart from what `eval/suites` knows. The module is also
what the command line's entry points find (see `as_plugin`).
"""

import json
import os
import random
from pathlib import Path

from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest

from eval.benchmarks import BENCHMARK_OF_TASK

YES_NO = {"yes": "no", "no": "yes"}


_GT = {}


def _vinoground(doc):
    if doc["index"] not in _GT:
        for kind, folder in (("text", "vinoground_videos"), ("video", "vinoground_videos_concated")):
            path = Path(os.environ["HF_HOME"]) / "vinoground" / folder / f"vinoground_{kind}score.json"
            _GT.update({f"{row['idx']}_{kind}": row["GT"] for row in json.loads(path.read_text())})
    return _GT[doc["index"]]


TRUTH = {
    "scienceqa": lambda doc: "ABCDE"[doc["answer"]],
    "mme": lambda doc: doc["answer"].lower(),
    "vizwiz": lambda doc: doc["answers"][0],
    "pope": lambda doc: doc["answer"],
    "seedbench": lambda doc: doc["answer"],
    "videomme": lambda doc: doc["answer"],
    "longvideobench": lambda doc: "ABCDE"[doc["correct_choice"]],
    "mlvu": lambda doc: doc["answer"],
    "egoschema": lambda doc: "ABCDE"[int(doc["answer"])],
    "mvbench": lambda doc: "ABCDE"[doc["candidates"].index(doc["answer"])],
    "perceptiontest": lambda doc: "ABC"[int(doc["answer_id"])],
    "nextqa": lambda doc: "ABCDE"[doc["answer"]],
    "vinoground": _vinoground,
}
OPTIONS = {
    "scienceqa": lambda doc: len(doc["choices"]),
    "mme": lambda doc: 2,
    "vizwiz": lambda doc: 2,  # the truth or something wrong
    "pope": lambda doc: 2,
    "seedbench": lambda doc: 4,
    "videomme": lambda doc: len(doc["options"]),
    "longvideobench": lambda doc: 5,
    "mlvu": lambda doc: doc["question"].count("\n("),
    "egoschema": lambda doc: len(doc["option"]),
    "mvbench": lambda doc: len(doc["candidates"]),
    "perceptiontest": lambda doc: len(doc["options"]),
    "nextqa": lambda doc: 5,
    "vinoground": lambda doc: 2,
}


def oracle(benchmark, doc):
    return TRUTH[benchmark](doc)


def wrong(benchmark, doc):
    truth = TRUTH[benchmark](doc)
    if benchmark == "vizwiz":
        return "nothing of that kind"
    return YES_NO.get(truth, "B" if truth == "A" else "A")


_RANDOM = random.Random(0)


def guess(benchmark, doc):
    truth = TRUTH[benchmark](doc)
    if truth in YES_NO or benchmark == "vizwiz":
        return truth if _RANDOM.random() < 0.5 else wrong(benchmark, doc)
    return "ABCDE"[_RANDOM.randrange(OPTIONS[benchmark](doc))]


def silent(benchmark, doc):
    return ""


class Scripted(lmms):
    """Answers by `script`; keeps the prompts that it saw."""

    is_simple = False
    script = staticmethod(oracle)

    def __init__(self, script=None, **_):
        super().__init__()
        self.script = script or type(self).script
        self.device = "cpu"
        self.seen = {}

    def generate_until(self, requests):
        for request in requests:
            _, doc_to_messages, _, doc_id, task, split = request.args
            doc = self.task_dict[task][split][doc_id]
            content = doc_to_messages(doc)[-1]["content"]
            for item in content:
                assert item["type"] == "text" or not isinstance(item["url"], str) or Path(item["url"]).is_file()
            self.seen[task, doc_id] = content[-1]["text"]
            yield self.script(BENCHMARK_OF_TASK[task].name, doc)

    def loglikelihood(self, requests):
        raise NotImplementedError

    def generate_until_multi_round(self, requests):
        raise NotImplementedError


class Oracle(Scripted):
    script = staticmethod(oracle)


class Wrong(Scripted):
    script = staticmethod(wrong)


class Guess(Scripted):
    script = staticmethod(guess)


class Silent(Scripted):
    script = staticmethod(silent)


def manifests():
    """What lmms-eval's command line finds by the entry point of `as_plugin`."""
    names = {"oracle": "Oracle", "wrong": "Wrong", "guess": "Guess", "silent": "Silent"}
    return [ModelManifest(model_id=k, chat_class_path=f"tests.eval.scripted.{v}") for k, v in names.items()]


def as_plugin(folder):
    """A folder for PYTHONPATH whose entry point brings these models to any lmms-eval."""
    info = Path(folder) / "scripted-0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: scripted\nVersion: 0\n")
    (info / "entry_points.txt").write_text("[lmms_eval.models]\nscripted = tests.eval.scripted:manifests\n")
    return folder
