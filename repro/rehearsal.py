"""Rehearsal: scenes written in the backbone's own tokens at the seats of the visual tokens. No pixels, no vision tower.

A micro backbone that met nothing but prose cannot follow anything through frames, and a frozen one cannot learn it
while the vision tower does. So a part of its text pre-training shows it *scripts*: the conversation keeps the layout
that a real clip will have (`Frame1:<img>....</img>` ...), and each seat holds the sum of the embeddings of the tokens
that tell what lies there: noun, colour, background, and codes of place and extent (byte tokens that the world's
language never uses). The vision tower is later trained to put the same sums there from pixels.

Shapes: F frames, Q seats per frame, K symbols, D hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast

from eval.world import FRAMES, SIZE, Scene
from eval.world.render import camera_shift, place
from eval.world.vocabulary import BACKGROUNDS, COLOURS, NOUNS

STEPS = {"x": 16, "y": 16, "width": 12, "height": 12}  # codes along each measure
REACH = {"x": 64.0, "y": 64.0, "width": 42.0, "height": 42.0}  # pixels at the last code
SEATS_PER_SIDE = 2


@dataclass(frozen=True)
class Symbols:
    """Where each kind of symbol starts on the axis K, and the token of each symbol."""

    token_ids: tuple[int, ...]
    start: dict[str, int]

    def __len__(self) -> int:
        return len(self.token_ids)


def symbols(tokenizer: PreTrainedTokenizerFast) -> Symbols:
    """Words as the tokenizer writes them inside a sentence, then one unused byte token for each code."""
    vocab = tokenizer.get_vocab()
    start: dict[str, int] = {}
    ids: list[int] = []
    for kind, words in (("noun", NOUNS), ("colour", tuple(COLOURS)), ("background", BACKGROUNDS)):
        start[kind] = len(ids)
        missing = [word for word in words if "\u0120" + word not in vocab]
        if missing:
            raise ValueError(f"the tokenizer splits {missing}: train it on more of the world's text")
        ids += [vocab["\u0120" + word] for word in words]
    unused = sorted(c for c in ByteLevel.alphabet() if ord(c) > 0xFF and c not in ("\u0120", "\u010a"))
    unused += sorted(c for c in ByteLevel.alphabet() if 0x7F < ord(c) <= 0xFF)
    codes = iter(unused)
    for kind, count in STEPS.items():
        start[kind] = len(ids)
        ids += [vocab[next(codes)] for _ in range(count)]
    return Symbols(tuple(ids), start)


def script(scene: Scene, table: Symbols) -> np.ndarray:
    """Weights float16 [F, Q, K] of the symbols at each seat: what an observer sees, frame by frame.

    An object sits at the seat that holds the centre of its box. A measure between two codes is shared by both, so the
    script moves smoothly. A seat with two objects holds both sums.
    """
    weights = np.zeros((FRAMES, SEATS_PER_SIDE**2, len(table)), np.float16)
    side = SIZE / SEATS_PER_SIDE
    for f in range(FRAMES):
        ground = scene.cut_background if scene.cut_frame and f >= scene.cut_frame else scene.background
        weights[f, :, table.start["background"] + BACKGROUNDS.index(ground)] = 1
        shift = camera_shift(scene, f)
        for thing in scene.objects:
            at = place(thing, f, shift)
            if at is None:
                continue
            x, y = at.left + at.width / 2, at.top + at.height / 2
            if not (0 <= x < SIZE and 0 <= y < SIZE):
                continue
            seat = weights[f, int(y // side) * SEATS_PER_SIDE + int(x // side)]
            seat[table.start["noun"] + NOUNS.index(thing.noun)] += 1
            seat[table.start["colour"] + list(COLOURS).index(thing.colour)] += 1
            for kind, value in (("x", x), ("y", y), ("width", at.width), ("height", at.height)):
                code = min(value / REACH[kind], 1.0) * (STEPS[kind] - 1)
                low = int(code)
                seat[table.start[kind] + low] += 1 - (code - low)
                if code > low:
                    seat[table.start[kind] + low + 1] += code - low
    return weights
