"""The training runs that test_ranks.py compares, in one launch: packages are imported once, and each rank is a fork.

    python -m tests.core.rank_runs FOLDER

The same global batches of four rows, twice a step, by one process, two and four gloo ranks. Eleven rows: an epoch has
three micro-batches for two steps, and in its last one four ranks have three rows left. Rows in turn hold a video, an
image and text alone, so that with a row a rank some have no picture to look at.
"""

import json
import os
import shutil
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft  # noqa: F401 - before forks
import torch
from accelerate import DistributedType, PartialState
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor
from transformers import PrinterCallback

from regate import ReGateConfig, ReGateTrainer, add_reference_losses
from regate.accounting import read_steps
from repro.launch import CONFIGS
from tests.core.experiment import TinyCollator, arguments, losses, tiny_data, with_lora
from tests.tiny import tiny_model

LENGTHS = [6, 11, 4, 9, 13, 7, 5, 10, 8, 12, 3]
STEPS, SAVE = 8, 3
CASES: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": {"lora": True},
    "blank": {"blank": 4},  # a row without targets: four ranks, one row each, and one of them has nothing to learn
}
ENGINES = ("ddp", "fsdp2")
LIMIT_S = 500
"""After so long a rank that waits for others in vain is killed."""


def name_of(case: str, engine: str, ranks: int, resumed: int = 0) -> str:
    """Folder of a run; ``resumed``: the number of ranks that wrote the checkpoint it went on from."""
    return f"{case}-{engine}-{ranks}" + (f"-from-{resumed}" if resumed else "")


def run(folder: Path, case: str, engine: str, ranks: int, resumed: int = 0) -> None:
    """One rank's part of a run; the main process leaves what the test compares."""
    out = folder / name_of(case, engine, ranks, resumed)
    if resumed and int(os.environ.get("RANK", "0")) == 0:
        source = folder / name_of(case, engine, resumed)
        shutil.copytree(source / f"checkpoint-{SAVE}", out / f"checkpoint-{SAVE}")
        shutil.copy(source / "steps.jsonl", out)
    trainer, kept = trainer_of(out, ranks, engine, **CASES[case])
    trainer.accelerator.wait_for_everyone()
    trainer.train(resume_from_checkpoint=bool(resumed))
    whole = {}
    for name, weight in trainer.model.named_parameters():
        if weight.requires_grad:
            assert isinstance(weight, DTensor) == (engine == "fsdp2"), name
            weight = weight.full_tensor() if isinstance(weight, DTensor) else weight
            whole[name.replace("_checkpoint_wrapped_module.", "")] = weight.detach().clone()
    (out / f"kept-{trainer.args.process_index}.json").write_text(json.dumps(kept))
    if not trainer.is_world_process_zero():
        return
    save_file(whole, out / "weights.safetensors")
    if trainer.buffer is not None:
        save_file({"ema": trainer.buffer.ema, "mark": trainer.buffer.mark}, out / "ema.safetensors")
    steps = read_steps(out / "steps.jsonl")
    (out / "result.json").write_text(json.dumps({"losses": losses(trainer), "steps": steps}))


def trainer_of(
    out: Path, ranks: int, engine: str, lora: bool = False, blank: int | None = None
) -> tuple[ReGateTrainer, dict[str, Any]]:
    """A trainer, not yet run, and what its gate will have kept: "step sample" -> kept and score of each target."""
    model, processor = tiny_model("internvl")
    data, rows = tiny_data("internvl", processor, LENGTHS)
    if blank is None:
        data = add_reference_losses(data, model, processor)
    else:
        rows[blank]["labels"] = torch.full_like(rows[blank]["labels"], -100)
        data = data.remove_columns("labels").add_column("sample_id", list(range(len(rows))))
    model = with_lora(model) if lora else model
    sharded = engine == "fsdp2"
    fsdp_environment(checkpointing=not lora) if sharded else forget_fsdp()
    args: ReGateConfig = arguments(
        out,
        per_device_train_batch_size=4 // ranks,
        gradient_accumulation_steps=2,
        max_steps=STEPS,
        save_strategy="steps",
        save_steps=SAVE,
        max_grad_norm=0.0,  # clipping would hide a wrong factor
        dataloader_drop_last=False,
        ddp_backend="gloo" if ranks > 1 else None,
        ddp_find_unused_parameters=True,  # a row of text alone leaves the vision tower out
        accelerator_config={"gradient_accumulation_kwargs": {"sync_each_batch": True}} if sharded else None,
        policy="regate" if blank is None else "random",
        trace_samples=[1, 7],
    )
    if sharded:  # accelerate ignores FSDP on the CPU without a word
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    trainer = ReGateTrainer(
        model,
        args,
        TinyCollator("internvl", processor, rows),
        data,
        processing_class=processor,
        optimizer_cls_and_kwargs=(torch.optim.SGD, {"lr": 0.05, "momentum": 0.9}),
    )
    trainer.remove_callback(PrinterCallback)
    kept: dict[str, Any] = {}

    def observe(step: int, gated: Any) -> None:
        for row, sample in enumerate(gated.sample.tolist()):
            target = gated.gate.target[row]
            if target.any():
                score = gated.gate.score
                values = {"kept": gated.gate.kept[row][target].tolist()}
                values["score"] = None if score is None else score[row][target].tolist()
                assert f"{step} {sample}" not in kept
                kept[f"{step} {sample}"] = values

    trainer.observers.append(observe)
    return trainer, kept


def fsdp_environment(checkpointing: bool) -> None:
    """What `accelerate launch --config_file configs/accelerate/fsdp2.yaml` would set, in fp32."""
    command = ["--config_file", str(CONFIGS / "fsdp2.yaml"), "--mixed_precision", "no"]
    command += ["--fsdp_transformer_layer_cls_to_wrap", "Qwen2DecoderLayer,InternVLVisionLayer"]
    command += ["--fsdp_activation_checkpointing", str(checkpointing).lower(), "script.py"]
    arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args(command))
    made = prepare_multi_gpu_env(arguments)
    os.environ |= {name: value for name, value in made.items() if name.startswith(("FSDP_", "ACCELERATE_"))}


def forget_fsdp() -> None:
    """No engine but DDP."""
    for name in [name for name in os.environ if name.startswith(("FSDP_", "ACCELERATE_"))]:
        del os.environ[name]


def forked(ranks: int, work: Callable[[], None]) -> None:
    """``work`` in ``ranks`` processes that torch.distributed can connect; SystemExit if one of them fails."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = []
    for rank in range(ranks):
        if child := os.fork():
            children.append(child)
            continue
        signal.alarm(LIMIT_S)
        if ranks > 1:
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks)}
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(ranks)}
        code = 1
        try:
            torch.set_num_threads(1)
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    left = set(children)
    while left:
        child, status = os.wait()
        left.discard(child)
        if status:
            for other in left:
                os.kill(other, signal.SIGKILL)
            sys.exit(f"one of {ranks} ranks ended with status {status}")


def main(folder: Path) -> None:
    """All runs."""

    def batch(ranks: int, engines: tuple[str, ...], resumed: tuple[tuple[str, str], ...] = ()) -> Callable[[], None]:
        def work() -> None:
            for engine in engines:
                for case in CASES:
                    timed(folder, case, engine, ranks)
            for case, engine in resumed:
                timed(folder, case, engine, ranks, 2)

        return work

    forked(1, batch(1, ("ddp",)))
    forked(2, batch(2, ENGINES))
    forked(4, batch(4, ENGINES, (("full", "ddp"), ("full", "fsdp2"), ("lora", "fsdp2"))))
    forked(1, batch(1, (), (("full", "ddp"), ("lora", "ddp"))))


def timed(folder: Path, case: str, engine: str, ranks: int, resumed: int = 0) -> None:
    """A run, and how long it took."""
    start = time.monotonic()
    run(folder, case, engine, ranks, resumed)
    if os.environ.get("RANK", "0") == "0":
        print(f"{name_of(case, engine, ranks, resumed)}: {time.monotonic() - start:.1f} s", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
