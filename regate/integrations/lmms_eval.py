"""`lmms-eval --model regate --model_args pretrained=...`: any checkpoint of ours, any multimodal model of transformers.

    answer=generate   the model's own words (default)
    answer=rank       the likeliest option: its text is scored after the bare question, its letter is what lmms-eval
                      gets; for students too small to bind letters. Needs tasks that say which options a question has
                      (`eval/suites`); a question without options is answered in the model's own words

Answers come one after the other in the order of the requests, so that a run with `--use_cache` goes on where it was
stopped. A failure is an error that names the question, never an empty answer.

Never run on a GPU.
"""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import wraps
from itertools import groupby
from typing import Any, ClassVar

import torch
from lmms_eval import utils
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.models.model_utils.gen_metrics import log_metrics

from regate.answering import Question, generate, rank_options
from regate.integrations.checkpoint import fingerprint as checkpoint_fingerprint
from regate.integrations.loading import load_checkpoint

ANSWERS = ("generate", "rank")
CHOICE = "multiple_choice"
"""Key of a message that says which answers it may have: {"question": str, "texts": [str], "answers": [str]}."""
_NEW_TOKENS = 64  # where a task sets none: an option, or a short answer
_SAMPLING = ("temperature", "top_p", "top_k", "num_beams", "repetition_penalty")


class RegateModel(lmms):
    """A chat model of lmms-eval around `regate.answering`.

    Args:
        pretrained: folder or hub name of a checkpoint or of a PEFT adapter.
        base: the checkpoint of an adapter; left out, the one that the adapter names.
        answer: "generate" or "rank".
        normalize: with "rank": "sum" or "mean" of an option's log-probabilities.
        batch_size: questions at once.
        num_frames: frames of each video.
        dtype, attn_implementation, device: of the model; each process takes a GPU of its own where there are some.
        max_length: longest prompt in tokens; longer ones are an error.
        fingerprint: hash of the checkpoint, where the caller knows it; else it is computed. It joins the key of
            lmms-eval's cache: another checkpoint at the same path is never answered from it.
    """

    is_simple: ClassVar[bool] = False

    def __init__(
        self,
        pretrained: str,
        base: str | None = None,
        answer: str = "generate",
        normalize: str = "sum",
        batch_size: int | str = 1,
        num_frames: int = 8,
        dtype: str = "auto",
        attn_implementation: str | None = None,
        max_length: int | None = None,
        device: str | None = None,
        fingerprint: str | None = None,
    ) -> None:
        super().__init__()
        if answer not in ANSWERS:
            raise ValueError(f"answer is {answer!r}, expected one of {', '.join(ANSWERS)}")
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise ValueError(f"batch_size is {batch_size!r}, expected a whole number of at least 1")
        self.answer, self.normalize, self.batch_size = answer, normalize, int(batch_size)
        self._device = torch.device(device or _own_device())
        self._limits: dict[str, Any] = {"num_frames": int(num_frames), "max_length": max_length}
        self.fingerprint = str(fingerprint) if fingerprint else checkpoint_fingerprint(pretrained, base)
        _key_cache_by(self.fingerprint)
        self.model, self.processor = load_checkpoint(pretrained, base, dtype, attn_implementation, self._device)

    @property
    def device(self) -> torch.device:
        return self._device

    def generate_until(self, requests: Sequence[Instance]) -> Iterator[GenerationResult]:
        """One answer for each request, in their order, as soon as its batch is done."""
        began, tokens, left = time.perf_counter(), 0, len(requests)
        for batch in _batches(requests, self.batch_size):
            results = self._answer(batch)
            tokens += sum(result.token_counts.output_tokens or 0 for result in results if result.token_counts)
            left -= len(batch)
            if not left:  # whoever reads may stop at the last answer, so this comes before it
                seconds = time.perf_counter() - began
                extra = {"requests": len(requests), "rank": self.rank}
                log_metrics(seconds, tokens, tokens / seconds, additional_metrics=extra)
            yield from results

    def _answer(self, batch: Sequence[Instance]) -> list[GenerationResult]:
        _, _, kwargs, *_ = batch[0].args
        asked = [self._question(request) for request in batch]
        results: dict[int, GenerationResult] = {}
        ranked = [i for i, (_, answers) in enumerate(asked) if answers]
        shared = {"batch_size": self.batch_size, **self._limits}
        questions = [asked[i][0] for i in ranked]
        for i, found in zip(
            ranked, rank_options(self.model, self.processor, questions, self.normalize, **shared), strict=True
        ):
            counts = TokenCounts(input_tokens=found.prompt_tokens, output_tokens=sum(found.option_tokens))
            results[i] = GenerationResult(text=asked[i][1][found.best], token_counts=counts)
        free = [i for i in range(len(batch)) if i not in results]
        generation, stops = _generation(kwargs)
        said = generate(self.model, self.processor, [asked[i][0] for i in free], **shared, **generation)
        for i, text in zip(free, said, strict=True):
            counts = TokenCounts(input_tokens=text.prompt_tokens, output_tokens=text.new_tokens)
            results[i] = GenerationResult(text=_until(text.text, stops), token_counts=counts)
        return [results[i] for i in range(len(batch))]

    def _question(self, request: Instance) -> tuple[Question, Sequence[str]]:
        """What to ask, and with `rank` the answer that each of its options stands for."""
        _, doc_to_messages, _, doc_id, task, split = request.args
        messages = doc_to_messages(self.task_dict[task][split][doc_id])
        choice = messages[-1].get(CHOICE) if self.answer == "rank" else None
        images: list[Any] = []
        videos: list[Any] = []
        plain = []
        for message in messages:
            content: list[dict[str, Any]] = []
            for item in message["content"]:
                if item["type"] == "text":
                    content.append({"type": "text", "text": item["text"]})
                    continue
                if item["type"] not in ("image", "video") or isinstance(item["url"], Mapping):
                    raise ValueError(
                        f"{task}, document {doc_id}: found {item}, expected text, an image or a video file"
                    )
                content.append({"type": item["type"]})
                (images if item["type"] == "image" else videos).append(item["url"])
            plain.append({"role": message["role"], "content": content})
        texts: Sequence[str] = ()
        if choice:
            texts = choice["texts"]
            visual = [item for item in plain[-1]["content"] if item["type"] != "text"]
            plain[-1]["content"] = [*visual, {"type": "text", "text": choice["question"]}]
        question = Question(plain, texts, images, videos, name=f"{task}, document {doc_id}")
        return question, choice["answers"] if choice else ()

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        raise NotImplementedError("tasks of chat models are generate_until; likelihoods are ranked by answer=rank")

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[str]:
        raise NotImplementedError("conversations of several rounds are not supported: choose single-round tasks")

    def clean(self) -> None:
        """The model stays: whoever evaluates again with it need not load it again."""


def _batches(requests: Sequence[Instance], size: int) -> Iterator[list[Instance]]:
    """Consecutive requests with the same generation settings."""
    for _, same in groupby(requests, key=lambda request: repr(request.args[2])):
        group = list(same)
        for start in range(0, len(group), size):
            yield group[start : start + size]


def _generation(kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """lmms-eval's settings as `model.generate` takes them, and the strings that end an answer."""
    sampling = bool(kwargs.get("temperature")) or bool(kwargs.get("do_sample"))
    settings = {"max_new_tokens": kwargs.get("max_new_tokens") or _NEW_TOKENS, "do_sample": sampling}
    names = _SAMPLING if sampling else ("num_beams", "repetition_penalty")
    settings |= {name: kwargs[name] for name in names if kwargs.get(name)}
    until = kwargs.get("until") or []
    return settings, [until] if isinstance(until, str) else list(until)


def _until(text: str, stops: Sequence[str]) -> str:
    text = text.strip()  # a stop at the very start would leave nothing
    for stop in stops:
        text = text.split(stop)[0]
    return text.strip()


def _own_device() -> str:
    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"


def _key_cache_by(fingerprint: str) -> None:
    """lmms-eval keys its cache by the text of the model's arguments and by its own version: the hash joins that."""
    version = getattr(utils.get_lmms_eval_cache_version, "__wrapped__", utils.get_lmms_eval_cache_version)

    @wraps(version)
    def keyed() -> str:
        return f"{version()}+{fingerprint}"

    utils.get_lmms_eval_cache_version = keyed
