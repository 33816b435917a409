"""`make students`: the prepared micro student, checked, or made anew with `--rebuild`.

    python -m repro.students              # does the committed student match its record?
    python -m repro.students --rebuild    # prepare it from nothing (resumable), about 15 minutes on two cores

A prepared student is a folder that `from_pretrained` reads (bf16 safetensors, configuration, tokenizer, processor) and
a `record.json` with the configuration, seed, commit, versions, hardware, learning curves and the hash of every file.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from transformers import InternVLForConditionalGeneration

from eval.world import WORLD_VERSION
from repro.machine import environment
from repro.prepare import Preparation, PrepareConfig, prepare_student
from repro.student_model import count_parameters

ROOT = Path(__file__).resolve().parent.parent
PREPARED = ROOT / "results" / "students" / "internvl"
WORK = ROOT / "runs" / "students" / "internvl"
RECORD = "record.json"


def config_hash(config: PrepareConfig) -> str:
    """What the states of stages are filed under: those of another configuration or world are never gone on with."""
    text = json.dumps({**dataclasses.asdict(config), "world_version": WORLD_VERSION}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def rebuild(
    config: PrepareConfig, output: Path = PREPARED, work: Path = WORK, *, progress: bool = True
) -> dict[str, Any]:
    """Prepares the student (going on where a run of this configuration stopped) and writes `output`; its record."""
    machine = environment(ROOT, threads=torch.get_num_threads())
    preparation = prepare_student(config, work / config_hash(config), progress=progress)
    return export(preparation, output, machine)


def export(preparation: Preparation, output: Path, machine: dict[str, Any]) -> dict[str, Any]:
    """Writes the student's folder and its record: whole, or not at all."""
    part = output.with_name(f".{output.name}.{os.getpid()}")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    scores = {"from_scripts": preparation.scores(scripts=True), "from_pixels": preparation.scores(scripts=False)}
    model = preparation.model
    counts = count_parameters(model)
    model.to(torch.bfloat16).save_pretrained(part)
    preparation.processor.save_pretrained(part)
    record = {
        "student": output.name,
        "config": dataclasses.asdict(preparation.config),
        "config_hash": config_hash(preparation.config),
        "world_version": WORLD_VERSION,
        "seed": preparation.config.seed,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        **machine,
        "parameters": counts,
        "vocabulary": len(preparation.processor.tokenizer),
        "validation": scores,
        "seconds": preparation.seconds,
        "curves": preparation.curves,
        "files": {path.name: sha256(path) for path in sorted(part.iterdir())},
    }
    (part / RECORD).write_text(json.dumps(record, indent=1) + "\n")
    shutil.rmtree(output, ignore_errors=True)
    os.replace(part, output)
    return record


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def check(folder: Path = PREPARED) -> dict[str, Any]:
    """The record of a prepared student whose files all match it, and which loads without a missing or spare key.

    Raises:
        FileNotFoundError: there is no prepared student.
        ValueError: a file differs from the record, the world has another version, or the weights do not fit.
    """
    if not (folder / RECORD).is_file():
        raise FileNotFoundError(f"{folder} holds no prepared student; make it with `make students REBUILD=1`")
    record = json.loads((folder / RECORD).read_text())
    for name, digest in record["files"].items():
        if not (folder / name).is_file() or sha256(folder / name) != digest:
            raise ValueError(f"{folder / name} is not the file of the record; restore it or `make students REBUILD=1`")
    if record["world_version"] != WORLD_VERSION:
        raise ValueError(
            f"the student in {folder} was prepared on world {record['world_version']}, this is {WORLD_VERSION}; "
            "`make students REBUILD=1`"
        )
    _, info = InternVLForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True, local_files_only=True
    )
    wrong = {kind: sorted(map(str, keys)) for kind, keys in info.items() if keys}
    if wrong:
        raise ValueError(f"the weights in {folder} do not fit the model: {wrong}; `make students REBUILD=1`")
    return record


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m repro.students", description=__doc__.split("\n")[0])
    parser.add_argument("--rebuild", action="store_true", help="prepare the student from nothing")
    parser.add_argument("--output", type=Path, default=PREPARED, help="folder of the prepared student")
    parser.add_argument("--work", type=Path, default=WORK, help="states of the stages, to go on from")
    parser.add_argument("--seed", type=int, default=PrepareConfig.seed)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    if args.rebuild:
        rebuild(PrepareConfig(seed=args.seed), args.output, args.work)
    record = check(args.output)
    parts = ", ".join(f"{name} {count:,}" for name, count in record["parameters"].items())
    print(f"{args.output}: parameters {parts}; commit {record['commit']}; validation {record['validation']}")


if __name__ == "__main__":
    main()
