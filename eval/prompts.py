"""Table 6: the response-formatting prompt of every benchmark, and the two profiles that put prompts together.

    paper   every prompt ends with Table 6's sentence, to the letter, and holds no other formatting of the stock task
    stock   lmms-eval's own prompts

Table 6 says "-" for three benchmarks: profile `paper` reads that as no formatting at all. Its typographic quotation
marks are typewriter ones here, as in lmms-eval and in models' training data. Line breaks around the sentences are those
of lmms-eval. Free of torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

PROFILES = ("paper", "stock")

LETTER = "Answer with the option's letter from the given choices directly."
SHORT = "Answer the question using a single word or phrase."

TABLE_6: dict[str, str] = {
    "pope": "",
    "mme": SHORT,
    "vizwiz": f'{SHORT} When the provided information is insufficient, respond with "Unanswerable".',
    "scienceqa": LETTER,
    "seedbench": LETTER,
    "mlvu": "",
    "mvbench": "Only give the best option.",
    "videomme": LETTER,
    "egoschema": LETTER,
    "nextqa": "",
    "perceptiontest": LETTER,
    "vinoground": "Please only output one English character.",
    "longvideobench": LETTER,
}


@dataclass(frozen=True)
class Layout:
    """How the stock task of a benchmark puts its sentence into the prompt.

    Args:
        post: the task's `post_prompt`, `{}` being the sentence; None where the sentence is in the task's code.
        header: text of the stock prompt that formats the answer as well, and that Table 6 does not have.
    """

    post: str | None = None
    header: str = ""


_VIDEOMME_HEADER = (
    "Select the best answer to the following multiple-choice question based on the video and the subtitles. "
    "Respond with only the letter (A, B, C, or D) of the correct option.\n"
)
LAYOUTS: dict[str, Layout] = {
    "pope": Layout("{}"),
    "mme": Layout("\n{}"),
    "vizwiz": Layout("\n{}"),
    "scienceqa": Layout("\n{}"),
    "seedbench": Layout(),
    "mlvu": Layout("{}"),
    "mvbench": Layout("{}\n"),
    "videomme": Layout("\n{}", _VIDEOMME_HEADER),
    "egoschema": Layout(),
    "nextqa": Layout(),
    "perceptiontest": Layout(),
    "vinoground": Layout(),
    "longvideobench": Layout("{}\n"),
}


def check_profile(profile: str) -> str:
    """The profile; ValueError where there is none of this name."""
    if profile not in PROFILES:
        raise ValueError(f"prompt profile {profile!r}, expected one of {', '.join(PROFILES)}")
    return profile


def specific_kwargs(benchmark: str, profile: str, stock: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """`lmms_eval_specific_kwargs` of a task under a profile, from those of the stock task."""
    post = LAYOUTS[benchmark].post
    if check_profile(profile) == "stock" or post is None:
        return dict(stock) if stock is not None else None
    default = {"pre_prompt": "", **((stock or {}).get("default") or {})}
    return {"default": default | {"post_prompt": post.format(TABLE_6[benchmark])}}


def prompt_text(benchmark: str, profile: str, stock: str) -> str:
    """The prompt that a model sees, from the one that the task builds.

    Raises:
        ValueError: the stock prompt no longer starts as this version knows it.
    """
    header = LAYOUTS[benchmark].header
    if check_profile(profile) == "stock" or not header:
        return stock
    if not stock.startswith(header):
        raise ValueError(
            f"the prompt of {benchmark} starts {stock[:60]!r}, expected {header[:60]!r}: lmms-eval changed"
        )
    return stock[len(header) :]


def prompts_hash(prompts: Iterable[str]) -> str:
    """16 hex digits over prompts as they were sent, in order."""
    digest = hashlib.blake2b(digest_size=8)
    for prompt in prompts:
        digest.update(prompt.encode())
        digest.update(b"\0")
    return digest.hexdigest()
