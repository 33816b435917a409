"""`make teachers`: text-only teachers of other capacity, for the ablation of Table 5. The aligned one is the student.

    python -m repro.teachers                        # do the committed teachers match their records?
    python -m repro.teachers --rebuild              # make them anew (resumable)

A teacher is the language stage of the student's own preparation (`repro.prepare`: the same texts, tokenizer and
rehearsal) at another width, saved as a plain causal language model with a record like a prepared student's.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from eval.machine import environment
from eval.world import WORLD_VERSION
from repro.material import TEACHERS
from repro.prepare import CONFIGS, Preparation, PrepareConfig
from repro.students import RECORD, ROOT, sha256

WORK = ROOT / "runs" / "teachers"
WIDTHS: dict[str, dict[str, int]] = {
    "smaller": {"hidden_size": 64, "num_heads": 2, "num_kv_heads": 2, "intermediate_size": 192},
    # Twice as wide; its MLP a little less, for a file below 6 MB.
    "larger": {"hidden_size": 256, "num_heads": 8, "num_kv_heads": 8, "intermediate_size": 512},
}
"""Name of a teacher -> what it changes of the student's size (hidden size 128, 4 heads, MLP 384)."""


def config_of(student: str, name: str) -> PrepareConfig:
    """The student's preparation at the teacher's width, with a learning rate that shrinks as width grows."""
    config = CONFIGS[student]
    size = dataclasses.replace(config.size, **WIDTHS[name])
    rate = config.language.lr * min(1.0, config.size.hidden_size / size.hidden_size)
    return dataclasses.replace(config, size=size, language=dataclasses.replace(config.language, lr=rate))


def causal_model(preparation: Preparation) -> PreTrainedModel:
    """The prepared backbone with its head as a causal language model."""
    model = preparation.model
    text = AutoModelForCausalLM.from_config(model.config.get_text_config())
    text.model.load_state_dict(model.get_decoder().state_dict())
    text.get_output_embeddings().load_state_dict(model.get_output_embeddings().state_dict())
    return text


def rebuild(student: str, config: PrepareConfig, output: Path, work: Path = WORK, *, progress: bool = True) -> None:
    """Run the language stage (going on where it stopped) and write the teacher's folder: whole, or not at all."""
    machine = environment(ROOT, threads=torch.get_num_threads())
    commit = f"{machine['commit']}{'+' if machine['dirty'] else ''}"
    preparation = Preparation(student, config, work / output.name, progress=progress, commit=commit)
    preparation.language()
    part = output.with_name(f".{output.name}.{os.getpid()}")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    model = causal_model(preparation)
    model.to(torch.bfloat16).save_pretrained(part)
    record = {
        "teacher_of": student,
        "config": dataclasses.asdict(config),
        "config_hash": config.stage_hash("language"),
        "world_version": WORLD_VERSION,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        **machine,
        "parameters": sum(p.numel() for p in model.parameters()),
        "validation": preparation.scores(scripts=True),
        "seconds": preparation.seconds,
        "stage_commits": preparation.origin,
        "curves": preparation.curves,
        "files": {str(f.relative_to(part)): sha256(f) for f in sorted(part.rglob("*")) if f.is_file()},
    }
    (part / RECORD).write_text(json.dumps(record, indent=1) + "\n")
    shutil.rmtree(output, ignore_errors=True)
    os.replace(part, output)


def check(folder: Path) -> dict[str, Any]:
    """The record of a teacher whose files match it; FileNotFoundError or ValueError saying what to do."""
    if not (folder / RECORD).is_file():
        raise FileNotFoundError(f"{folder} holds no teacher; make it with `make teachers REBUILD=1`")
    record = json.loads((folder / RECORD).read_text())
    for name, digest in record["files"].items():
        if not (folder / name).is_file() or sha256(folder / name) != digest:
            raise ValueError(f"{folder / name} is not the file of the record; restore it or `make teachers REBUILD=1`")
    return record


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m repro.teachers", description=__doc__.split("\n")[0])
    parser.add_argument("--student", choices=list(CONFIGS), default="internvl")
    parser.add_argument("--name", nargs="+", choices=list(WIDTHS), default=list(WIDTHS))
    parser.add_argument("--rebuild", action="store_true", help="make them from nothing")
    parser.add_argument("--output", type=Path, default=TEACHERS, help="folder of the teachers")
    parser.add_argument("--work", type=Path, default=WORK, help="states, to go on from")
    args = parser.parse_args(arguments)
    for name in args.name:
        folder = args.output / f"{args.student}-{name}"
        if args.rebuild:
            rebuild(args.student, config_of(args.student, name), folder, args.work)
        record = check(folder)
        print(f"{folder.name}: {record['parameters']:,} parameters; validation {record['validation']}")


if __name__ == "__main__":
    main()
