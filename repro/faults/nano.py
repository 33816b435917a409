"""The smallest run that has everything: a random LLaVA of a few thousand weights, rows of tokens, our trainer.

A step takes milliseconds and a checkpoint as long as its files take to reach the disk, so that a kill at a random
moment falls into all that a run does.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import TrainerCallback
from transformers.utils import logging as transformers_logging

from regate import ReGateConfig, ReGateTrainer
from regate.accounting import read_steps
from repro.bench.material import TEACHER, Collator, build_model, build_rows
from repro.bench.workloads import Decoder, Workload

WORKLOAD = Workload(
    "nano", images=1, image_tokens=4, prompt=6, answer=10, batch=2, dtype="float32",
    decoder=Decoder(hidden=16, layers=2, heads=2, kv_heads=1, intermediate=32, vocabulary=64),
)  # fmt: skip
ROWS, STEPS, SAVE_EVERY, KEEP = 24, 24, 4, 2
LEDGER = "ledger"
"""A line for each checkpoint that was complete: what no fault may take away, but for the oldest ones."""
OUTCOME = "outcome.json"
_CLOCKS = ("seconds", "data_seconds", "peak_memory_bytes")


class Ledger(TrainerCallback):
    """Writes down that a checkpoint is complete, after it is."""

    def on_save(self, args, state, control, **kwargs):
        if args.process_index == 0:
            with (Path(args.output_dir) / LEDGER).open("a") as file:
                file.write(f"{state.global_step}\n")


def material(seed: int = 0) -> tuple[Any, Any, datasets.Dataset]:
    """The model, its tokenizer and its rows, the same for a seed in every process."""
    torch.set_num_threads(1)
    transformers_logging.set_verbosity_error()
    datasets.disable_progress_bars()
    model, tokenizer = build_model(WORKLOAD, seed, "cpu")
    return model, tokenizer, build_rows(WORKLOAD, model, tokenizer, ROWS, seed)


def trainer(folder: Path, steps: int = STEPS, **changes: Any) -> ReGateTrainer:
    """A ReGateTrainer in ``folder``, on the CPU, with a gate that is at work from the second step on."""
    model, tokenizer, rows = material()
    options: dict[str, Any] = {
        "per_device_train_batch_size": WORKLOAD.batch,
        "max_steps": steps,
        "learning_rate": 1e-2,
        "save_steps": SAVE_EVERY,
        "save_total_limit": KEEP,
        "logging_steps": 1,
        "gate_warmup_steps": 1,
        "cycle": 4,
        "dense_steps": 1,
        "trace_samples": [1, 2],
    }
    args = ReGateConfig(
        output_dir=str(folder), seed=3, use_cpu=True, report_to=[], disable_tqdm=True, teacher=TEACHER,
        **{**options, **changes},
    )  # fmt: skip
    made = ReGateTrainer(model, args, Collator(WORKLOAD, model, 0), rows, processing_class=tokenizer)
    made.add_callback(Ledger())
    return made


def train(folder: Path, changes: dict[str, Any] | None = None) -> None:
    """What a user's script does: go on from the last complete checkpoint, or begin; then write down what came out."""
    made = trainer(folder, **(changes or {}))
    made.train(resume_from_checkpoint=made.last_complete_checkpoint())
    if made.is_world_process_zero():
        (folder / OUTCOME).write_text(json.dumps(outcome(made, folder)))


def outcome(made: ReGateTrainer, folder: Path) -> dict[str, Any]:
    """Hashes of all weights, of the optimizer's state and of the EMA, and the log without its clocks."""
    assert made.buffer is not None
    tensors = dict(made.model.state_dict())
    for i, state in enumerate(made.optimizer.state_dict()["state"].values()):
        tensors |= {f"optimizer.{i}.{name}": value for name, value in state.items()}
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        digest.update(name.encode() + tensors[name].numpy().tobytes())
    ema = hashlib.blake2b(made.buffer.ema.numpy().tobytes() + made.buffer.mark.numpy().tobytes(), digest_size=16)
    steps = [{k: v for k, v in e.items() if k not in _CLOCKS} for e in read_steps(folder / "steps.jsonl")]
    trace = hashlib.blake2b((folder / "trace.parquet").read_bytes(), digest_size=16)
    return {"weights": digest.hexdigest(), "ema": ema.hexdigest(), "steps": steps, "trace": trace.hexdigest()}


def result(folder: Path) -> dict[str, Any]:
    """What `train` wrote down when it was done."""
    return json.loads((folder / OUTCOME).read_text())


def completed(folder: Path) -> list[int]:
    """Steps whose checkpoints were complete, as the run itself wrote them down."""
    path = folder / LEDGER
    return [int(line) for line in path.read_text().split()] if path.exists() else []
