"""What `regate reference` prints of the losses is exact, and does not need all of them in memory at once."""

import datasets
import numpy as np
import pyarrow as pa

from regate.commands import spread_of


def test_quantiles_of_fp16_losses_are_counted():
    rng = np.random.default_rng(0)
    rows = [rng.exponential(2.0, rng.integers(1, 40)).astype(np.float16) for _ in range(300)]
    column = pa.array([row.tolist() for row in rows], pa.list_(pa.float16()))
    data = datasets.Dataset(pa.table({"reference_losses": column})).select(range(10, 300))
    losses = np.concatenate(rows[10:]).astype(np.float64)
    targets, mean, below = spread_of(data)
    assert targets == len(losses)
    assert np.isclose(mean, losses.mean(), rtol=1e-12)
    assert below.tolist() == np.quantile(losses, [0.1, 0.5, 0.9], method="inverted_cdf").tolist()
