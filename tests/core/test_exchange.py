"""What ranks send is what they observed, to the bit, and small; growing reports cost a second gather once."""

import itertools

import numpy as np
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, SequentialSampler

from regate import tail
from regate.difficulty import DifficultyBuffer, Observations
from regate.exchange import Exchange, Report, merged, pack, unpack

_ROW = st.tuples(st.integers(0, 2**31 - 1), st.lists(st.integers(0, 2000), unique=True, max_size=30))


def observations(rows: list[tuple[int, list[int]]]) -> Observations:
    row = [number for number, (_, ordinals) in enumerate(rows) for _ in ordinals]
    ordinal = [o for _, ordinals in rows for o in sorted(ordinals)]
    loss = torch.rand(len(row), generator=torch.Generator().manual_seed(len(row))) * 9
    return Observations(torch.tensor([s for s, _ in rows], dtype=torch.long), torch.tensor(row, dtype=torch.long),
                        torch.tensor(ordinal, dtype=torch.long), loss)  # fmt: skip


def report(seen: Observations, trace: bytes = b"") -> Report:
    return Report(
        torch.arange(10), torch.tensor([0.1, torch.nan, -1e300, 0, 1, 2, 3, 4], dtype=torch.float64), seen, trace
    )


def equal(ours: Observations, theirs: Observations) -> bool:
    return all(torch.equal(getattr(ours, name), getattr(theirs, name)) for name in ("sample", "row", "ordinal", "loss"))


@given(st.lists(_ROW, max_size=12), st.binary(max_size=50))
def test_reports_come_back_to_the_bit(rows, trace):
    own = report(merged([observations(rows)]), trace)
    back = unpack(pack(own), 10, 8)
    assert equal(back.seen, own.seen)
    assert torch.equal(back.counts, own.counts)
    assert back.sums.numpy().tobytes() == own.sums.numpy().tobytes()
    assert back.trace == trace


def test_four_bytes_and_a_few_bits_an_observation():
    rows = [(number, list(range(100))) for number in range(128)]
    size = len(pack(report(merged([observations(rows)]))))
    assert size == 24 + 10 * 8 + 8 * 8 + 128 * 8 + 128 * 100 // 8 + 128 * 100 * 4


@given(st.lists(st.lists(_ROW, max_size=4), min_size=1, max_size=4))
def test_merged_micro_batches_are_one(parts):
    """Rows without observations vanish, the others keep their order."""
    together = merged([observations(rows) for rows in parts])
    whole = merged([observations([row for rows in parts for row in rows])])
    assert torch.equal(together.sample, torch.tensor([s for rows in parts for s, o in rows if o], dtype=torch.long))
    for name in ("sample", "row", "ordinal"):
        assert torch.equal(getattr(together, name), getattr(whole, name))


class Others:
    """An accelerator whose other ranks send what ``others`` packed; counts the collectives."""

    num_processes, device, calls = 3, torch.device("cpu"), 0

    def __init__(self, others: list[Report]):
        self.others = others

    def gather(self, part: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        parts = [part.numpy().tobytes()]
        for other in self.others:
            packed = pack(other)
            parts.append((len(packed).to_bytes(8, "little") + packed)[: len(part)].ljust(len(part), b"\0"))
        return torch.frombuffer(bytearray(b"".join(parts)), dtype=torch.uint8)


def test_one_collective_but_where_a_report_is_larger_than_any_before():
    small, large = ([(number, list(range(50))) for number in range(rows)] for rows in (2, 200))
    accelerator = Others([report(observations(small)), report(observations(small), b"trace")])
    exchange = Exchange(accelerator)
    for step in range(3):
        found = exchange(report(observations(small)))
        assert accelerator.calls == step + 1
    assert [r.trace for r in found] == [b"", b"", b"trace"]
    accelerator.others[0] = report(observations(large))  # another rank's, at that
    found = exchange(report(observations(small)))
    assert accelerator.calls == 5
    assert equal(found[1].seen, observations(large))
    exchange(report(observations(small)))
    assert accelerator.calls == 6


def test_the_buffer_of_many_reports_is_that_of_one():
    rng = np.random.default_rng(0)
    one, many = (DifficultyBuffer(np.arange(40), np.full(40, 12)) for _ in range(2))
    for epoch in range(3):
        rows = [(int(s), rng.permutation(12)[: rng.integers(1, 12)].tolist()) for s in rng.permutation(40)[:24]]
        seen = observations(rows)
        one.update(seen, epoch)
        bounds = [0, 5, 11, 24]
        parts = []
        for low, high in itertools.pairwise(bounds):
            inside = (seen.row >= low) & (seen.row < high)
            parts.append(
                Observations(seen.sample[low:high], seen.row[inside] - low, seen.ordinal[inside], seen.loss[inside])
            )
        back = [unpack(pack(report(merged([part]))), 10, 8).seen for part in parts]
        many.update(merged(back), epoch)
        assert torch.equal(one.ema.view(torch.int16), many.ema.view(torch.int16))
        assert torch.equal(one.mark, many.mark)


@pytest.mark.parametrize("split", [False, True])
@given(st.integers(1, 40), st.integers(1, 3), st.integers(1, 4))
def test_rows_of_its_own_are_each_row_once(split, rows, share, ranks):
    """For every size of data, batch and world: what ranks count of the last batches is what one process would."""
    seen = []
    steps = -(-rows // (share * ranks))
    for rank in range(ranks):
        sampler = BatchSampler(SequentialSampler(range(rows)), share * (ranks if split else 1), drop_last=False)
        shard = BatchSamplerShard(sampler, ranks, rank, split_batches=split)
        batches = list(shard)
        assert len(batches) == steps
        for number, batch in enumerate(batches):
            own = tail.own_of(shard, len(batch)) if number == steps - 1 else len(batch)
            seen += batch[:own]
    assert sorted(seen) == list(range(rows))
