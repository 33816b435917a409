"""The sentences of the paper's two pictures of token losses (second version, Figures 1 and 2)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from app.views.gate import Answer, ties


@dataclass(frozen=True)
class Example:
    """A question and answer as printed; and, where the picture prints them, both losses of each word (nats)."""

    name: str
    question: str
    answer: str
    note: str
    reference: tuple[float, ...] = ()
    student: tuple[float, ...] = ()

    def published(self) -> Answer:
        """The printed losses, one token a word."""
        words = self.answer.split()
        n = len(words)
        return Answer(
            self.question,
            tuple(f" {word}" for word in words),
            np.array(self.reference, dtype=np.float32),
            np.array(self.student, dtype=np.float32),
            np.ones(n, dtype=bool),
            ties(0, 0, n),
            name=self.name,
        )


EXAMPLES = (
    Example(
        "Figure 2: a white tank top with a red stripe",
        "What is the athlete wearing in the video?",
        "A white tank top with a red stripe",
        "The picture prints both losses of each word and hatches “A white”, “with a” as masked: at λ 0.5 and ratio 0.5 "
        "the gate keeps what the picture keeps.",
        (1.01, 3.98, 7.22, 2.29, 1.85, 0.24, 9.62, 10.88),
        (0.99, 2.31, 11.36, 8.12, 0.81, 0.11, 5.21, 10.01),
    ),
    Example(
        "Figure 1: mixing a drink behind the counter",
        "What is the bartender doing in the video?",
        "The bartender is mixing a drink behind the counter in a bar setting.",
        "The picture prints no losses. It calls “mixing”, “drink behind”, “counter in” and “bar setting” important.",
    ),
)
