"""The tail of an epoch on several ranks: accelerate fills the last batches with rows that the epoch has seen already.

One process has no such rows. They must be computed, because all ranks have to take part in every step, but they enter
neither loss nor EMA nor counts: ranks then equal one process (the stock Trainer counts them twice).
"""

from typing import Any

from accelerate.data_loader import BatchSamplerShard
from accelerate.state import GradientState


def rows_of_its_own(number: int) -> int:
    """How many of the ``number`` rows that this rank was just given are no repeats; they come first.

    To be called between taking a batch from the prepared data loader and taking the next one. Loaders that are not
    sharded by accelerate's BatchSamplerShard (iterable data sets) repeat in ways not known here: all rows count.
    """
    state = GradientState()
    if not state.in_dataloader or not state.end_of_dataloader:
        return number
    shard: Any = getattr(state.active_dataloader, "batch_sampler", None)
    while shard is not None and not isinstance(shard, BatchSamplerShard):
        shard = getattr(shard, "batch_sampler", None)  # a resumed epoch's loader skips batches
    return number if shard is None else own_of(shard, number)


def own_of(shard: BatchSamplerShard, number: int) -> int:
    """How many of the ``number`` rows of a rank's last batch of an epoch are no repeats; ``shard`` made the batch."""
    if shard.drop_last or not shard.even_batches:
        return number
    share = shard.batch_size // (shard.num_processes if shard.split_batches else 1)
    last = len(shard.batch_sampler.sampler) % (share * shard.num_processes)  # rows in the last batches of all ranks
    return min(max(last - shard.process_index * share, 0), number) if last else number
