"""Files are cut short, lose a bit, or vanish: each such fault is found before anything of the file is used."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from repro.faults.record import Fault

KINDS = ("bit flipped", "truncated", "deleted")
FOUND = "found, refused by name"
HARMLESS = "the same values: nothing to find"


def damaged(path: Path, rng: random.Random, kinds: tuple[str, ...] = KINDS) -> tuple[str, str, Callable[[], None]]:
    """Damage a file: the kind, where, and how to undo it."""
    content = path.read_bytes()
    times = os.stat(path)
    kind = rng.choice(kinds)
    if kind == "bit flipped":
        at, bit = rng.randrange(len(content)), rng.randrange(8)
        path.write_bytes(content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :])
        detail = f"{path.name}, bit {bit} of byte {at} of {len(content)}"
    elif kind == "truncated":
        size = rng.randrange(len(content))
        path.write_bytes(content[:size])
        detail = f"{path.name}, {size} of {len(content)} bytes left"
    else:
        path.unlink()
        detail = path.name

    def restore() -> None:
        path.write_bytes(content)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))

    return kind, detail, restore


def judge(
    part: str, target: str, path: Path, rng: random.Random, read: Callable[[], Any], expected: Any, names: str,
    kinds: tuple[str, ...] = KINDS, errors: tuple[type[Exception], ...] = (ValueError,),
) -> Fault:  # fmt: skip
    """Damage ``path``, ``read`` it, undo the damage: an error that names ``names``, or what is expected."""
    kind, detail, restore = damaged(path, rng, kinds)
    try:
        found = read()
        held = found == expected
        outcome = HARMLESS if held else "used as if nothing had happened"
    except errors as error:
        held = names in str(error)
        outcome = FOUND if held else f"an error that does not name {names}: {error}"
    except Exception as error:
        held, outcome = False, f"{type(error).__name__}: {error}"
    finally:
        restore()
    return Fault(part, kind, target, detail, outcome, held)


def checkpoints(count: int, rng: random.Random, folder: Path) -> list[Fault]:
    """``count`` damaged files in the newest of two checkpoints: it is refused by name, and the older one found."""
    from regate.checkpoint import MARKER, IncompleteCheckpoint, checkpoints, last_complete, require_complete

    newest, older = checkpoints(folder)[:2]
    files = sorted(p for p in newest.iterdir() if p.is_file())
    faults = []
    for i in range(count):
        path = files[i % len(files)]

        def read() -> str | None:
            found = last_complete(folder)
            require_complete(newest)
            return found

        target = f"checkpoint: {path.name}"
        names = "" if path.name == MARKER else path.name  # a marker that lies speaks of the other files
        fault = judge("files", target, path, rng, read, None, names, errors=(IncompleteCheckpoint,))
        faults.append(fault)
        kind, _, restore = damaged(path, rng)
        if last_complete(folder) != str(older):
            faults[-1] = Fault("files", kind, fault.target, fault.detail, "the older checkpoint was not found", False)
        restore()
    return faults


def logs(count: int, rng: random.Random, folder: Path) -> list[Fault]:
    """Damage to what a run wrote of its past: steps.jsonl and trace.parquet."""
    from regate.accounting import StepLog
    from regate.checkpoint import checkpoints
    from regate.trace import read_trace

    newest = checkpoints(folder)[0]
    log, trace = folder / "steps.jsonl", folder / "trace.parquet"
    before, rows = log.read_bytes(), repr(read_trace(trace))
    faults = []
    for i in range(count):
        if i % 2:
            read: Callable[[], Any] = lambda: repr(read_trace(trace))  # noqa: E731
            faults.append(judge("files", "trace.parquet", trace, rng, read, rows, "trace.parquet", KINDS[:2]))
        else:

            def resume() -> bytes:
                StepLog(log).rewind(10**9, newest)
                return log.read_bytes()

            faults.append(judge("files", "steps.jsonl", log, rng, resume, before, "steps.jsonl", KINDS[:2]))
    return faults


def records(count: int, rng: random.Random, folder: Path, results: Path) -> list[Fault]:
    """Damage to records of runs, of evaluations and of the bench: refused by name, or the same values."""
    from eval import results as evaluations
    from repro import record as run_record
    from repro.bench import record as bench_record

    kept = []
    for target, module, path in (
        ("record of a run", run_record, next((results / "records").glob("*.json"))),
        ("result of an evaluation", evaluations, next((results / "evaluations").rglob("*.json"))),
        ("record of the bench", bench_record, next((results / "bench").glob("*.json"))),
    ):
        copy = folder / "records" / target.replace(" ", "-") / path.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        value: Any = module.read(path)
        if module is evaluations:
            evaluations.write(value, copy)
        else:
            module.write(value, copy.parent)  # type: ignore[attr-defined]
        kept.append((target, module, copy, module.read(copy)))
    faults = []
    for i in range(count):
        target, module, path, value = kept[i % len(kept)]
        read = lambda module=module, path=path: module.read(path)  # noqa: E731
        faults.append(judge("files", target, path, rng, read, value, path.name))
    return faults


def caches(count: int, rng: random.Random, folder: Path) -> list[Fault]:
    """Damage to entries of a cache: as if they were not there."""
    import torch

    from regate.store import Store, key_of

    store = Store(folder / "cache", 1.0)
    values = {"frames": torch.arange(3000, dtype=torch.int16)}
    faults = []
    for i in range(count):
        key = key_of("entry", i)
        store.put(key, values)
        path = next((folder / "cache").rglob(f"{key}.safetensors"))
        kind, detail, _ = damaged(path, rng)
        found = store.get(key)
        store.put(key, values)
        again = store.get(key)
        held = found is None and again is not None and torch.equal(again["frames"], values["frames"])
        outcome = "found, made again, equal" if held else "used as if nothing had happened"
        faults.append(Fault("files", kind, "entry of a cache", detail.split(", ", 1)[-1], outcome, held))
    return faults


def folders(count: int, rng: random.Random, scored: Path, final: Path) -> list[Fault]:
    """Damage to what `regate reference` and `regate train` wrote: refused by name when it is to be used."""
    from regate.conversations import load_conversations
    from regate.integrations.checkpoint import require_intact

    faults = []
    tables = [p for p in sorted(scored.iterdir()) if p.is_file() and p.name not in ("complete.json", "state.json")]
    models = [p for p in sorted(final.iterdir()) if p.suffix == ".safetensors" or p.name == "config.json"]
    expected = load_conversations(scored)[:]
    for i in range(count):
        if i % 2:
            path = models[(i // 2) % len(models)]
            read: Callable[[], Any] = lambda: require_intact(str(final))  # noqa: E731
            faults.append(judge("files", "trained model", path, rng, read, "nothing", path.name))
        else:
            path = tables[(i // 2) % len(tables)]
            again: Callable[[], Any] = lambda: load_conversations(scored)[:]  # noqa: E731
            faults.append(judge("files", "scored data set", path, rng, again, expected, path.name))
    return faults
