"""METHOD_VERSION changes exactly when gating does: what a fixed history of losses makes the gate decide, as a hash."""

import hashlib
import math
from collections.abc import Sequence

import numpy as np
import torch

from regate.difficulty import DifficultyBuffer, Observations
from regate.gate import METHOD_VERSION, POLICIES, decide, signals_of
from regate.schedule import keep_ratio_at
from regate.scoring import ACTIVE_SETS, COMBINATIONS, shift_labels, spread

PAPER = (
    ("dense", "loss_only", "random", "regate"),
    ("predictors", "predictors+kept", "kept-passthrough", "kept-unsupervised"),
)
BEYOND = (
    ("batch", "chunks", "earliest", "mixed", "drawn", "dependence", "dependence_loss_only"),
    ("predictors", "prefix"),
)
DECISIONS = {"1": ("a2c8a6eff3f91efb", "9d10af51fab7e4c4")}
"""METHOD_VERSION -> hash of the paper's gates, and of those beyond it. If a hash below changed on purpose, count the
version up: every record is then stale."""


def decisions(policies: Sequence[str], active_sets: Sequence[str]) -> str:
    """Decisions of every policy, combination and active set over two epochs of three steps, as a hash."""
    digest = hashlib.sha256()
    marker, rows, targets = 7, 6, [9, 4, 12, 1, 7, 10]
    for policy in policies:
        for combine in COMBINATIONS:
            for active_set in active_sets:
                generator = np.random.default_rng(0)
                labels = np.full((rows, 16), -100)
                for row, n in enumerate(targets):
                    labels[row, 3 : 3 + n] = generator.integers(10, 50, n)
                    labels[row, 2 + n] = marker
                reference = torch.tensor(generator.integers(0, 40, (rows, 12)) / 8).float()
                buffer = DifficultyBuffer(np.arange(rows), np.array(targets))
                for step in range(6):
                    ids = torch.tensor([2 * (step % 3), 2 * (step % 3) + 1])
                    batch = torch.tensor(labels)[ids]
                    target = shift_labels(batch) != -100
                    ratio = keep_ratio_at(step, keep_ratio=0.5, warmup=1, cycle=3, dense_steps=1)
                    signals = signals_of(
                        batch, ids, spread(buffer.lookup(ids, 12), target), spread(reference[ids], target),
                        step=step, seed=5, lambda_=0.5, combine=combine,
                    )  # fmt: skip
                    everything, special = torch.ones_like(target), torch.tensor([marker])
                    gate = decide(POLICIES[policy], signals, batch, everything, special, ratio, active_set)
                    digest.update(torch.stack([gate.kept, gate.supervised, gate.active]).numpy().tobytes())
                    loss = torch.tensor(generator.integers(0, 40, gate.supervised.shape) / 8).float()
                    ordinal = (target.cumsum(1) - 1)[gate.supervised]
                    row = gate.supervised.nonzero()[:, 0]
                    buffer.update(Observations(ids, row, ordinal, loss[gate.supervised]), epoch=step // 3)
                digest.update(buffer.ema.nan_to_num(-1).numpy().tobytes())
    assert math.isfinite(buffer.ema.nan_to_num(0).sum())
    return digest.hexdigest()[:16]


def test_the_same_version_decides_the_same():
    assert (decisions(*PAPER), decisions(*BEYOND)) == DECISIONS[METHOD_VERSION]
    assert {*PAPER[0], *BEYOND[0]} == set(POLICIES)
    assert {*PAPER[1], *BEYOND[1]} == set(ACTIVE_SETS)
