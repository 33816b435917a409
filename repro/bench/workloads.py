"""What the bench runs: shapes of models, lengths of samples, who competes. Free of torch.

A sample is `images` pictures of `image_tokens` visual tokens each, a prompt and an answer, all rows the same.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from repro.bench.verdicts import MIN_ROUNDS

GPU_PATHS = ("gated/logits", "gated/packed", "gated/flex", "gated/compiled", "packed/compiled", "dense/packed")
"""The gated (or dense) step on other paths of attention, head and decoder: docs/gpu.md."""
CONTESTANTS = ("stock", "trl", "dense", "gated", "gated+kept", "loss_only", "random_ltd", *GPU_PATHS)
"""Names in the order of a round; what each is stands in `contestants.py`."""


@dataclass(frozen=True)
class Decoder:
    """Sizes of a Llama decoder with tied embeddings. The defaults are SmolLM2-135M's."""

    hidden: int = 576
    layers: int = 30
    heads: int = 9
    kv_heads: int = 3
    intermediate: int = 1536
    vocabulary: int = 49152


@dataclass(frozen=True)
class Workload:
    """One model, one shape of batch, and the contestants that run on it in turn."""

    name: str
    images: int
    image_tokens: int
    prompt: int
    answer: int
    batch: int
    dtype: str  # float32 or bfloat16: of weights and computation
    decoder: Decoder | None = Decoder()  # None: the prepared micro student of results/students/internvl
    lora: bool = False
    timed: tuple[str, ...] = ()  # every round; what a target compares
    others: tuple[str, ...] = ()  # every `OTHERS_EVERY` rounds, for the table
    seconds: float = 120.0  # the rounds may take so long, once there are enough of them
    rounds: int = MIN_ROUNDS  # enough: fewer where no target compares the contestants

    @property
    def visual(self) -> int:
        """Visual tokens of a sample."""
        return self.images * self.image_tokens

    @property
    def positions(self) -> int:
        """Length of a sample."""
        return self.visual + self.prompt + self.answer

    @property
    def contestants(self) -> tuple[str, ...]:
        """All that run, in the order of a round."""
        return tuple(name for name in CONTESTANTS if name in (*self.timed, *self.others))

    def config(self) -> dict[str, Any]:
        """Plain values, for the record."""
        return dataclasses.asdict(self)


SMOL = ("stock", "trl", "dense", "gated")
EXTRA = ("gated+kept", "loss_only", "random_ltd")
ALL = (*SMOL, *EXTRA)
PAIR = ("dense", "gated")
LARGE = Decoder(hidden=2048, layers=24, heads=32, kv_heads=32, intermediate=8192)  # SmolLM2-1.7B
NANO = Decoder(hidden=64, layers=3, heads=4, kv_heads=2, intermediate=128, vocabulary=512)


def workloads(device: str = "cpu") -> tuple[Workload, ...]:
    """The bench: batches that two cores finish in about half an hour, or a GPU in a few minutes.

    The paper-shaped decoder is the largest that this leaves time for: 16 of SmolLM2-135M's layers, on a GPU
    SmolLM2-1.7B. There batches are eight times as large, only the workload that is there for float32 has it, and the
    paths that need a GPU take part in half precision.
    """
    times, half = (1, "float32") if device == "cpu" else (8, "bfloat16")
    paper = Decoder(layers=16) if device == "cpu" else LARGE
    peers = ("stock", "trl")
    paths = () if device == "cpu" else GPU_PATHS
    most = (*peers, *paths)
    brief: dict[str, Any] = {"rounds": 15, "seconds": 0.0}
    slow = SMOL[:3] if device == "cpu" else SMOL  # bfloat16 is slow there; what gating costs, float32 tells
    return (
        Workload("short-bf16", 2, 64, 24, 56, 2 * times, "bfloat16", timed=slow, others=("gated", *paths)),
        Workload("short-fp32", 2, 64, 24, 56, 2 * times, "float32", timed=SMOL, others=EXTRA),
        Workload("long-answer", 1, 64, 32, 256, 4 * times, half, timed=PAIR, others=most),
        Workload("paper-shaped", 8, 169, 50, 230, times, half, paper, timed=PAIR, others=most, seconds=240.0),
        Workload("long-answer-lora", 1, 64, 32, 256, times, half, lora=True, timed=PAIR, others=peers, **brief),
        Workload("micro", 8, 4, 40, 24, 32 * times, "float32", None, timed=ALL, seconds=30.0),
    )


def nano(device: str = "cpu") -> tuple[Workload, ...]:
    """The same workloads around a decoder of three narrow layers: whether the bench runs, not how fast anything is."""
    return tuple(
        dataclasses.replace(w, decoder=NANO, batch=2, seconds=0.0) for w in workloads(device) if w.decoder is not None
    )
