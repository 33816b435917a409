"""Which tokens of a rendered conversation are targets: those of the answers, each with the marker that ends its turn.

Where the chat template marks answers with `{% generation %}`, those marks are taken. Elsewhere an answer is what
rendering the conversation up to it adds to rendering the conversation before it with the prompt for an answer. Both
must agree with the text, and with the tokens: an answer that would share a token with its prompt is an error, because
no prompt at inference looks like that.
"""

import re
from bisect import bisect_right
from collections.abc import Callable
from typing import Any

import torch
from jinja2 import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from regate.tokens import tokenizer_of

# Part of the template's fingerprint: count up when the same conversation yields other tokens or other targets than
# before.
ENCODER_VERSION = 1

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
Spans = list[tuple[int, int]]


def render(processor: Any, messages: list[dict], prompt: bool = False) -> str:
    """A conversation as text, with one placeholder for each image or video; `prompt` asks for an answer at the end.

    Raises:
        ValueError: the template refuses the conversation (for instance because of the order of roles).
    """
    try:
        return processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
    except TemplateError as error:
        raise ValueError(f"the chat template of {type(processor).__name__} refuses it: {error}") from error


def template_of(processor: Any) -> str:
    """The text of the chat template.

    Raises:
        ValueError: neither the processor nor its tokenizer has one.
    """
    template = getattr(processor, "chat_template", None) or getattr(tokenizer_of(processor), "chat_template", None)
    if isinstance(template, dict):
        template = template.get("default")
    if not template:
        raise ValueError(
            f"{type(processor).__name__} has no chat template, expected one: set processor.chat_template, "
            "or load the processor of an instruction-tuned checkpoint"
        )
    return template


def answer_spans(processor: Any, messages: list[dict], text: str) -> Spans:
    """Where the answers stand in `text = render(processor, messages)`, in characters.

    Raises:
        ValueError: the template is such that no prefix of a conversation renders to a prefix of its text.
    """
    return _marked_spans(processor, messages, text) or _prefix_spans(processor, messages, text)


def mask_from_offsets(
    processor: Any, spans: Spans, offsets: torch.Tensor, replacements: list[dict], ids: torch.Tensor, markers: set[int]
) -> torch.Tensor:
    """Spans in the text before its placeholders were expanded -> a mask over the tokens after it.

    Args:
        processor: for its messages.
        spans: from `answer_spans`.
        offsets: int [L, 2], the characters of each token in the expanded text.
        replacements: [{"span": (start, end) before, "new_span": (start, end) after}], ascending.
        ids: int64 [L].
        markers: special tokens that are no placeholders: where an answer's span holds no marker at its end, the one
            that follows it is a target too.

    Returns:
        bool [L].

    Raises:
        ValueError: a token belongs to an answer and to what stands before it.
    """
    ends = [r["span"][1] for r in replacements]
    gained = [0] + [r["new_span"][1] - r["span"][1] for r in replacements]
    mask = torch.zeros(len(ids), dtype=torch.bool)
    first, last = offsets[:, 0], offsets[:, 1]
    for start, end in spans:
        start, end = (char + gained[bisect_right(ends, char)] for char in (start, end))
        inside = (first < end) & (last > start)
        places = inside.nonzero().flatten().tolist()
        if not places:
            continue
        if int(first[places[0]]) < start:
            _refuse_shared(processor, int(ids[places[0]]), start - int(first[places[0]]))
        mask |= inside
        after = places[-1] + 1
        if int(ids[places[-1]]) not in markers and after < len(ids) and int(ids[after]) in markers:
            mask[after] = True
    return mask


def mask_from_prefixes(
    processor: Any,
    messages: list[dict],
    encode: Callable[[list[dict], str], torch.Tensor],
    ids: torch.Tensor,
    markers: set[int],
) -> torch.Tensor:
    """The same mask from the tokens of prefixes: for processors that tell nothing about characters. Slower.

    Args:
        processor: for the template.
        messages: the whole conversation.
        encode: (messages, text) -> int64 [l], tokens of a part of the conversation.
        ids: int64 [L], the tokens of the whole.
        markers: special tokens that are no placeholders.

    Returns:
        bool [L].

    Raises:
        ValueError: the tokens of a part are no prefix of the tokens of the whole.
    """
    mask = torch.zeros(len(ids), dtype=torch.bool)
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        borders = []
        for part, prompt in ((messages[:index], True), (messages[: index + 1], False)):
            start_ids = encode(part, render(processor, part, prompt))
            if not torch.equal(start_ids, ids[: len(start_ids)]):
                raise ValueError(_unstable(processor, "the tokens of a part are no prefix of the tokens of the whole"))
            borders.append(len(start_ids))
        start, end = borders
        marker = max((i for i in range(start, end) if int(ids[i]) in markers), default=None)
        if marker is not None and not tokenizer_of(processor).decode(ids[marker + 1 : end]).strip():
            end = marker + 1  # white space after the end of the turn is no target
        mask[start:end] = True
    return mask


def _marked_spans(processor: Any, messages: list[dict], text: str) -> Spans | None:
    """Spans of `{% generation %}` blocks; None where the template has none, or is not the one that was rendered."""
    template = template_of(processor)
    if not _GENERATION.search(template):
        return None
    rendered, marked = render_jinja_template(
        conversations=[messages],
        chat_template=template,
        return_assistant_tokens_mask=True,
        **tokenizer_of(processor).special_tokens_map,
    )
    spans: Spans = list(marked[0])
    return [(start, end) for start, end in spans if end > start] if rendered[0] == text else None


def _prefix_spans(processor: Any, messages: list[dict], text: str) -> Spans:
    spans = []
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = render(processor, messages[:index], prompt=True)
        whole = render(processor, messages[: index + 1])
        if not (text.startswith(whole) and whole.startswith(before)):
            raise ValueError(_unstable(processor, "the text of a part is no prefix of the text of the whole"))
        start = len(before)
        if before == render(processor, messages[:index]):  # a template without a prompt: leave its header out
            answer = next(item["text"] for item in message["content"] if item["type"] == "text")
            start = whole.find(answer, len(before))
            if start < 0:
                raise ValueError(_unstable(processor, "it has no prompt for an answer, and changes the answer's text"))
        spans.append((start, start + len(whole[start:].rstrip())))
    return spans


def _unstable(processor: Any, what: str) -> str:
    return (
        f"the chat template of {type(processor).__name__} does not tell where answers stand: {what}. "
        "Mark the answers in the template with {% generation %} ... {% endgeneration %}."
    )


def _refuse_shared(processor: Any, token: int, characters: int) -> None:
    """Raises unless what a token takes from the prompt is white space."""
    text = tokenizer_of(processor).decode([token])
    if text[:characters].strip():
        raise ValueError(
            _unstable(processor, f"the token {text!r} holds the end of a prompt and the start of an answer")
        )
