"""A trace: what the gate saw and decided about chosen samples, step by step, as a Parquet file for the app."""

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from torch import Tensor

_LOSSES = pa.list_(pa.float32())
SCHEMA = pa.schema(
    [
        ("step", pa.int32()),
        ("sample_id", pa.int64()),
        ("ratio", pa.float32()),
        ("reference", _LOSSES),  # the teacher's loss of each target, nats
        ("ema", _LOSSES),  # the student's EMA before the step, NaN = never observed
        ("score", _LOSSES),  # NaN in dense steps
        ("kept", pa.list_(pa.bool_())),
        ("loss", _LOSSES),  # the student's loss in this step, NaN = elided
    ]
)


class Trace:
    """Rows of :data:`SCHEMA` for the samples in ``sample_ids``, kept in memory and rewritten at every save.

    Each rank observes its own micro-batches; what it has ``taken`` goes to the rank that writes the file.
    """

    def __init__(self, path: str | os.PathLike[str], sample_ids: list[int]):
        self.path = Path(path)
        self.sample_ids = set(sample_ids)
        self._rows: list[dict] = []
        self._observed: list[dict] = []

    def observe(self, step: int, sample: Tensor, target: Tensor, ratio: float, **columns: Tensor) -> None:
        """One micro-batch: sample ids [B], ``target`` and every column [B, L] in predictor space."""
        for row, sample_id in enumerate(sample.tolist()):
            if sample_id in self.sample_ids and target[row].any():
                values = {name: column[row][target[row]].tolist() for name, column in columns.items()}
                self._observed.append({"step": step, "sample_id": sample_id, "ratio": ratio, **values})

    def taken(self) -> bytes:
        """What was observed since the last call, for :meth:`add` on any rank; empty if nothing was."""
        if not self._observed:
            return b""
        table, self._observed = pa.Table.from_pylist(self._observed, schema=SCHEMA), []
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, SCHEMA) as writer:
            writer.write_table(table)
        return sink.getvalue().to_pybytes()

    def add(self, taken: bytes) -> None:
        """Keep rows that some rank has observed."""
        if taken:
            self._rows += pa.ipc.open_stream(taken).read_all().to_pylist()

    def save(self) -> None:
        """Write the file, atomically."""
        temporary = self.path.with_suffix(".tmp")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        table = pa.Table.from_pylist(self._rows, schema=SCHEMA)
        pq.write_table(table.replace_schema_metadata({"xxh3": _digest(table.to_pylist())}), temporary)
        os.replace(temporary, self.path)

    def rewind(self, step: int) -> None:
        """Go on from the rows before ``step`` of the file that is there."""
        rows = read_trace(self.path) if self.path.exists() else []
        self._rows = [row for row in rows if row["step"] < step]


def read_trace(path: Path) -> list[dict]:
    """Rows of :data:`SCHEMA`, as they were written; ValueError naming the file where it is damaged."""
    try:
        table = pq.read_table(path)
        rows = table.to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{path}: damaged ({error}). Move it away to go on without it.") from error
    written = (table.schema.metadata or {}).get(b"xxh3")
    if written is not None and written.decode("ascii", "replace") != _digest(rows):
        raise ValueError(f"{path}: damaged (not the rows that were written). Move it away to go on without it.")
    return rows


def _digest(rows: list[dict]) -> str:
    return xxhash.xxh3_128_hexdigest(repr(rows).encode())
