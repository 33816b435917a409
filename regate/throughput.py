"""How fast rows are scored: a progress bar, and one line a shard in a log beside the shards that each process keeps."""

import json
import os
import time
from pathlib import Path

from tqdm.auto import tqdm

_LOG = "throughput-{}.jsonl"


class Throughput:
    """Counts samples, and tokens that a model computed for them, while a process works through its shards."""

    def __init__(self, what: str, samples: int):
        # One bar a machine: the other processes' shares are as large.
        hidden = os.environ.get("LOCAL_RANK", "0") != "0"
        self._bar = tqdm(total=samples, desc=what, unit="sample", delay=5, disable=hidden)
        self._log: Path | None = None
        self._samples = self._tokens = self._all_tokens = 0
        self._since = self._start = time.monotonic()

    def begin(self, samples: int, folder: Path, process: int) -> None:
        """This process will do so many samples, and log in ``folder``."""
        self._bar.reset(samples)
        self._log = folder / _LOG.format(process)
        self._since = self._start = time.monotonic()

    def update(self, samples: int, tokens: int) -> None:
        """So many samples and tokens more."""
        self._samples += samples
        self._tokens += tokens
        self._all_tokens += tokens
        speed = self._all_tokens / max(time.monotonic() - self._start, 1e-9)
        self._bar.set_postfix_str(f"{speed:.0f} tokens/s", refresh=False)
        self._bar.update(samples)

    def shard(self, name: str) -> None:
        """A shard is on disk: log what it took."""
        now = time.monotonic()
        seconds, self._since = now - self._since, now
        line = {"shard": name, "samples": self._samples, "tokens": self._tokens, "seconds": round(seconds, 4)}
        line |= {"samples_per_second": round(self._samples / seconds, 2)}
        line |= {"tokens_per_second": round(self._tokens / seconds, 1)}
        self._samples = self._tokens = 0
        assert self._log is not None
        with self._log.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def close(self) -> None:
        """No more to come."""
        self._bar.close()


def total(folder: Path) -> tuple[int, int, float]:
    """Samples, tokens and seconds of work, of all processes and calls that logged somewhere below ``folder``."""
    samples, tokens, seconds = 0, 0, 0.0
    for path in folder.rglob(_LOG.format("*")):
        for line in path.read_text().splitlines():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                continue  # the process was killed while it wrote this
            samples += entry["samples"]
            tokens += entry["tokens"]
            seconds += entry["seconds"]
    return samples, tokens, seconds
