"""Lengths of a data set's text, for a plan: what a tokenizer makes of questions and answers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from repro.forecast import Lengths

MEASURED = 2000  # samples, evenly spread over the data
TURN = 5  # tokens that a chat template puts around a turn: assumed


def read_lengths(
    data: Path, tokenizer: Path | None, visual: int, max_length: int, media_root: Path | None = None
) -> tuple[int, Lengths | None]:
    """Number of samples in ``data`` and, where there is a tokenizer, lengths of up to 2000 of them.

    ``data`` is anything that `regate.load_conversations` reads; it checks every sample. Each turn counts its text and 5
    tokens of the template, of which an answer's end of turn is the one marker. Answers are cut at ``max_length``.
    Samples without an image or a video have no visual tokens, but count as if they had: an upper bound.
    """
    from regate.conversations import load_conversations

    rows = load_conversations(data, media_root)
    if tokenizer is None:
        return len(rows), None
    if not (tokenizer / "tokenizer_config.json").is_file():
        raise FileNotFoundError(f"{tokenizer}: found no tokenizer_config.json, expected the folder of a tokenizer")
    from transformers import AutoTokenizer

    encode = AutoTokenizer.from_pretrained(tokenizer)
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(MEASURED, len(rows))).astype(int))
    prompt, answer, markers = (np.zeros(len(chosen)) for _ in range(3))
    for index, row in enumerate(rows.select(chosen)):
        for message in json.loads(row["messages"]):
            text = "\n".join(item["text"] for item in message["content"] if item["type"] == "text")
            count = len(encode(text, add_special_tokens=False)["input_ids"])
            if message["role"] == "assistant":
                prompt[index] += TURN - 1
                answer[index] += count + 1
                markers[index] += 1
            else:
                prompt[index] += count + TURN
    answer = np.minimum(answer, np.maximum(max_length - visual - prompt, markers))
    return len(rows), Lengths(visual, prompt, answer, markers)
