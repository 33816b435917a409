"""`make students`: the prepared micro students, checked, or made anew with `--rebuild`.

    python -m repro.students                                  # do the committed students match their records?
    python -m repro.students --student videochat2 --rebuild   # prepare one from nothing (resumable): about 15 minutes

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
from transformers import AutoModelForImageTextToText

import regate.models  # noqa: F401 - the Auto classes know our students
from eval.machine import environment
from eval.world import WORLD_VERSION
from repro.families import FAMILIES, count_parameters
from repro.prepare import CONFIGS, STAGES, Preparation, PrepareConfig, prepare_student

ROOT = Path(__file__).resolve().parent.parent
PREPARED = ROOT / "results" / "students"
WORK = ROOT / "runs" / "students"
RECORD = "record.json"


def rebuild(
    student: str, config: PrepareConfig, output: Path, work: Path = WORK, *, progress: bool = True
) -> dict[str, Any]:
    """Prepares a student (going on where a run of this configuration stopped) and writes `output`; its record."""
    machine = environment(ROOT, threads=torch.get_num_threads())
    commit = f"{machine['commit']}{'+' if machine['dirty'] else ''}"
    preparation = prepare_student(student, config, work / student, progress=progress, commit=commit)
    return export(preparation, output, machine)


def export(preparation: Preparation, output: Path, machine: dict[str, Any]) -> dict[str, Any]:
    """Writes the student's folder and its record: whole, or not at all."""
    part = output.with_name(f".{output.name}.{os.getpid()}")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    scores = {"from_scripts": preparation.scores(scripts=True), "from_pixels": preparation.scores(scripts=False)}
    model = preparation.model
    counts = count_parameters(preparation.family, model)
    model.to(torch.bfloat16).save_pretrained(part)
    preparation.processor.save_pretrained(part)
    record = {
        "student": preparation.family.name,
        "config": dataclasses.asdict(preparation.config),
        "config_hash": preparation.config.stage_hash(STAGES[-1]),
        "world_version": WORLD_VERSION,
        "seed": preparation.config.seed,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        **machine,
        "parameters": counts,
        "vocabulary": len(preparation.processor.tokenizer),
        "validation": scores,
        "seconds": preparation.seconds,
        "stage_commits": preparation.origin,  # with a + where files had changed since
        "curves": preparation.curves,
        "files": {str(f.relative_to(part)): sha256(f) for f in sorted(part.rglob("*")) if f.is_file()},
    }
    (part / RECORD).write_text(json.dumps(record, indent=1) + "\n")
    shutil.rmtree(output, ignore_errors=True)
    os.replace(part, output)
    return record


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def check(folder: Path) -> dict[str, Any]:
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
    _, info = AutoModelForImageTextToText.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True, local_files_only=True
    )
    wrong = {kind: sorted(map(str, keys)) for kind, keys in info.items() if keys}
    if wrong:
        raise ValueError(f"the weights in {folder} do not fit the model: {wrong}; `make students REBUILD=1`")
    return record


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m repro.students", description=__doc__.split("\n")[0])
    parser.add_argument("--student", nargs="+", choices=list(FAMILIES), default=list(FAMILIES))
    parser.add_argument("--rebuild", action="store_true", help="prepare them from nothing")
    parser.add_argument("--output", type=Path, default=PREPARED, help="folder of the prepared students")
    parser.add_argument("--work", type=Path, default=WORK, help="states of the stages, to go on from")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    for student in args.student:
        if args.rebuild:
            rebuild(student, CONFIGS[student], args.output / student, args.work)
        record = check(args.output / student)
        parts = ", ".join(f"{name} {count:,}" for name, count in record["parameters"].items())
        print(f"{student}: parameters {parts}; commit {record['commit']}; validation {record['validation']}")


if __name__ == "__main__":
    main()
