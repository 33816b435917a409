"""What a multimodal model answers: options ranked by likelihood, or text that it generates. One scorer for every table.

    questions = [Question(messages, options=("red", "blue"), videos=["clip.mp4"])]
    option_scores(model, processor, questions)          # [array([-3.1, -0.4])]: the second option is likelier
    generate(model, processor, questions, max_new_tokens=16)[0].text

The score of an option is the log-likelihood of its text as the assistant's answer, the marker that ends the turn
included. The prompt with its images and videos goes through the model once for each question; the options share its
keys and values. Up to rounding that equals a full forward pass for each option.

Shapes: B prompts of one length L, R options of all of them, S tokens of an option (the longest of R), V vocabulary.
"""

import contextlib
import inspect
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from regate.data import ConversationEncoder, join
from regate.media import Video, load_video, midpoints, read_image
from regate.targets import render
from regate.tokens import tokenizer_of

_AHEAD = 8  # batches of prompts that are read ahead, so that prompts of one length meet


@dataclass(frozen=True)
class Question:
    """A conversation that waits for an answer.

    Args:
        messages: [{"role": ..., "content": [{"type": "video"}, {"type": "text", "text": ...}]}], the user's turn last.
        options: texts that the answer may have; not needed for `generate`.
        images, videos: in the order in which the messages refer to them: files, pictures, or frames
            (uint8 [T, H, W, 3]).
        name: stands in errors.
    """

    messages: Sequence[dict[str, Any]]
    options: Sequence[str] = ()
    images: Sequence[Image.Image | str | Path] = ()
    videos: Sequence[Video | np.ndarray | str | Path] = ()
    name: str = ""


@dataclass(frozen=True)
class Ranking:
    """Log-likelihoods of a question's options (natural logarithm), and how many tokens that took.

    Attributes:
        scores: float64, one for each option: the sum over its tokens, or their mean.
        prompt_tokens: visual ones included.
        option_tokens: of each option, the end marker included.
    """

    scores: np.ndarray
    prompt_tokens: int
    option_tokens: tuple[int, ...]

    @property
    def best(self) -> int:
        """Index of the likeliest option, the first of equal ones."""
        return int(np.argmax(self.scores))


@dataclass(frozen=True)
class Generation:
    """A generated answer without special tokens, and how many tokens it took; padding does not count."""

    text: str
    prompt_tokens: int
    new_tokens: int


def option_scores(
    model: Any,
    processor: Any,
    questions: Sequence[Question],
    normalize: str = "sum",
    batch_size: int = 32,
    num_frames: int = 8,
    max_length: int | None = None,
) -> list[np.ndarray]:
    """The score of every option of every question: see `rank_options`."""
    ranked = rank_options(model, processor, questions, normalize, batch_size, num_frames, max_length)
    return [ranking.scores for ranking in ranked]


def rank_options(
    model: Any,
    processor: Any,
    questions: Sequence[Question],
    normalize: str = "sum",
    batch_size: int = 32,
    num_frames: int = 8,
    max_length: int | None = None,
) -> list[Ranking]:
    """Scores the options of all questions. Prompts of one length form batches of up to `batch_size`.

    Args:
        model: any multimodal model of transformers with a causal decoder; PEFT adapters count.
        processor: the model's, with a chat template.
        normalize: "sum" of the log-probabilities of an option's tokens, or their "mean".
        num_frames: frames of each video file, at the midpoints of equal parts.
        max_length: longest prompt with its longest option, in tokens; None: any.

    Raises:
        ValueError: no options; a prompt longer than `max_length`; a token that holds the end of a prompt and the start
            of an option; the chat template has no end of turn and the tokenizer no end of text.
        regate.media.MediaError: a file that cannot be read.
    """
    if normalize not in ("sum", "mean"):
        raise ValueError(f"normalize is {normalize!r}, expected 'sum' or 'mean'")
    encode = _Encoder(processor, num_frames, max_length)
    model = _unwrapped(model)
    found: list[Ranking] = []
    with _evaluating(model):
        for start in range(0, len(questions), _AHEAD * batch_size):
            window = questions[start : start + _AHEAD * batch_size]
            answers = [encode.options(question) for question in window]
            prompts = [encode.prompt(q, max(map(len, ids))) for q, ids in zip(window, answers, strict=True)]
            ranked: dict[int, Ranking] = {}
            for chosen in _equal_lengths(prompts, batch_size):
                batch = join([prompts[i] for i in chosen], 0, "right")
                logprobs = _score(model, batch, [answers[i] for i in chosen])
                for i, parts in zip(chosen, logprobs, strict=True):
                    totals = [float(p.mean() if normalize == "mean" else p.sum()) for p in parts]
                    length = len(prompts[i]["input_ids"])
                    ranked[i] = Ranking(np.array(totals), length, tuple(map(len, answers[i])))
            found += [ranked[i] for i in range(len(window))]
    return found


def generate(
    model: Any,
    processor: Any,
    questions: Sequence[Question],
    batch_size: int = 8,
    num_frames: int = 8,
    max_length: int | None = None,
    **generation: Any,
) -> list[Generation]:
    """Answers in the model's own words. Prompts of a batch are padded on the left.

    Args:
        max_length: longest prompt, in tokens; None: any.
        **generation: for `model.generate`: `max_new_tokens`, `do_sample`, ...; greedy by default.

    Raises:
        ValueError, regate.media.MediaError: as `rank_options`.
    """
    encode = _Encoder(processor, num_frames, max_length)
    tokenizer = tokenizer_of(processor)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    model = _unwrapped(model)
    found: list[Generation] = []
    with _evaluating(model):
        for start in range(0, len(questions), batch_size):
            prompts = [encode.prompt(question) for question in questions[start : start + batch_size]]
            batch = _to(join(prompts, pad, "left"), model)
            out = model.generate(**batch, **({"do_sample": False, "use_cache": True, "pad_token_id": pad} | generation))
            for prompt, ids in zip(prompts, out[:, batch["input_ids"].shape[1] :], strict=True):
                text = tokenizer.decode(ids, skip_special_tokens=True)
                found.append(Generation(text, len(prompt["input_ids"]), int((ids != pad).sum())))
    return found


class _Encoder:
    """Questions -> tokens: the prompt as the processor makes it, the options as they would stand behind it."""

    def __init__(self, processor: Any, num_frames: int, max_length: int | None) -> None:
        self.processor, self.num_frames, self.max_length = processor, num_frames, max_length
        self.tokenizer = tokenizer_of(processor)
        self._conversations = ConversationEncoder(processor, num_frames=num_frames)
        self._frame: tuple[str, str] | None = None

    def prompt(self, question: Question, room: int = 0) -> dict[str, Tensor]:
        """The model's inputs, unbatched: text [L], visual inputs of this question. `room`: tokens that follow it."""
        images = [image if isinstance(image, Image.Image) else read_image(image) for image in question.images]
        choose = getattr(self.processor, "choose_frames", midpoints)
        videos = [_video(video, self.num_frames, choose) for video in question.videos]
        text = render(self.processor, list(question.messages), prompt=True)
        try:
            inputs, _, _ = self._conversations.process(text, images, videos, told=False)
        except (ValueError, IndexError) as error:
            kind = type(self.processor).__name__
            raise ValueError(f"question {question.name!r}: {kind} refuses it: {error}") from error
        length = len(inputs["input_ids"]) + room
        if self.max_length is not None and length > self.max_length:
            raise ValueError(
                f"question {question.name!r}: found {length} tokens with its answer, expected at most "
                f"{self.max_length}. Raise max_length or lower num_frames"
            )
        return inputs

    def options(self, question: Question) -> list[list[int]]:
        """Token ids of every option as an answer, the end marker last."""
        if not question.options:
            raise ValueError(f"question {question.name!r}: found no options, expected at least one to rank")
        lead, tail = self._frame = self._frame or _around_answers(self.processor)
        prompt = render(self.processor, list(question.messages), prompt=True)
        texts = [prompt, *(f"{prompt}{lead}{option}{tail}" for option in question.options)]
        before, *wholes = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        for option, whole in zip(question.options, wholes, strict=True):
            if whole[: len(before)] != before or len(whole) == len(before):
                raise ValueError(
                    f"question {question.name!r}, option {option!r}: a token holds the end of the prompt and the start "
                    "of the answer, so its likelihood is not that of an answer. End the template's prompt with a "
                    "marker or a line break"
                )
        return [whole[len(before) :] for whole in wholes]


def _around_answers(processor: Any) -> tuple[str, str]:
    """What the chat template puts between the prompt and an answer, and behind it up to the end of the turn."""
    probe = "answer"
    question = {"role": "user", "content": [{"type": "text", "text": "question"}]}
    prompt = render(processor, [question], prompt=True)
    whole = render(processor, [question, {"role": "assistant", "content": [{"type": "text", "text": probe}]}])
    at = whole.rindex(probe)
    lead = whole[len(prompt) : at] if whole.startswith(prompt) else ""
    tail = whole[at + len(probe) :].rstrip() or tokenizer_of(processor).eos_token
    if not tail:
        raise ValueError(
            f"the chat template of {type(processor).__name__} puts nothing behind an answer and its tokenizer has no "
            "end of text, expected one of them: set processor.tokenizer.eos_token"
        )
    return lead, tail


def _score(model: Any, batch: Mapping[str, Tensor], answers: Sequence[Sequence[list[int]]]) -> list[list[Tensor]]:
    """Log-probabilities of the tokens of every option: for each prompt, for each option, float64 [its tokens]."""
    owners = [b for b, options in enumerate(answers) for _ in options]  # [R]
    owner_R = torch.tensor(owners, device=model.device)
    flat = [ids for options in answers for ids in options]
    ids_RS = torch.zeros((len(flat), max(map(len, flat))), dtype=torch.long, device=model.device)
    for row, ids in zip(ids_RS, flat, strict=True):
        row[: len(ids)] = torch.tensor(ids, device=model.device)
    _forget_positions(model)
    out = model(**_to(batch, model), use_cache=True, **_last_logits(model))
    first_R = _logprobs(out.logits[:, -1][owner_R], ids_RS[:, 0])  # the prompt predicts the first token
    parts = [first_R[:, None]]
    if ids_RS.shape[1] > 1:
        out.past_key_values.batch_select_indices(owner_R)
        _select_positions(model, owner_R)
        # Neither padding nor another option is before a token: the causal mask is all that is needed.
        logits_RSV = model(input_ids=ids_RS[:, :-1], past_key_values=out.past_key_values, use_cache=True).logits
        parts.append(_logprobs(logits_RSV, ids_RS[:, 1:]))
    logprob_RS = torch.cat(parts, dim=1).double().cpu()
    found: list[list[Tensor]] = [[] for _ in answers]
    for owner, row, ids in zip(owners, logprob_RS, flat, strict=True):
        found[owner].append(row[: len(ids)])
    return found


def _logprobs(logits: Tensor, ids: Tensor) -> Tensor:
    """Log-probability of each id: logits [..., V], ids [...]."""
    logits = logits.float()
    return logits.gather(-1, ids[..., None])[..., 0] - logits.logsumexp(-1)


# --- models ---


def _unwrapped(model: Any) -> Any:
    """The transformers model itself; PEFT's layers stay inside of it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@contextlib.contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards as it was."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def _last_logits(model: Any) -> dict[str, int]:
    """Saves the prompt's logits where the class can: they are [B, L, V]."""
    return {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}


def _to(batch: Mapping[str, Tensor], model: Any) -> dict[str, Tensor]:
    """On the model's device; pixels in its precision."""
    return {
        name: value.to(model.device, model.dtype if value.is_floating_point() else None)
        for name, value in batch.items()
    }


def _positions(model: Any) -> Iterator[Any]:
    """Modules that keep how far the positions of each prompt lie from a plain count (multimodal rotary embeddings)."""
    return (module for module in model.modules() if hasattr(module, "rope_deltas"))


def _forget_positions(model: Any) -> None:
    for module in _positions(model):
        module.rope_deltas = None


def _select_positions(model: Any, owner_R: Tensor) -> None:
    for module in _positions(model):
        if module.rope_deltas is not None:
            module.rope_deltas = module.rope_deltas[owner_R]


# --- inputs ---


def _video(video: Video | np.ndarray | str | Path, num_frames: int, choose: Callable = midpoints) -> Video:
    if isinstance(video, np.ndarray):
        return Video(video, list(range(len(video))), len(video), None)
    return video if isinstance(video, Video) else load_video(video, num_frames, choose=choose)


def _equal_lengths(prompts: Sequence[Mapping[str, Tensor]], batch_size: int) -> Iterator[list[int]]:
    """Indices in batches of prompts of one length with the same inputs, so that nothing needs padding."""
    groups: dict[Any, list[int]] = defaultdict(list)
    for i, prompt in enumerate(prompts):
        groups[len(prompt["input_ids"]), tuple(sorted(prompt))].append(i)
    for _, group in sorted(groups.items(), key=lambda item: item[0], reverse=True):
        for start in range(0, len(group), batch_size):
            yield group[start : start + batch_size]
