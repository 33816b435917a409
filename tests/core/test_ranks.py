"""Two gloo ranks equal one process with the batch of both (T28: SGD, no clipping, or a wrong factor would hide)."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
_SCRIPT = """
import json, os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
from tests.core.experiment import experiment, losses, weights

out, batch, lora = Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "lora"
trainer = experiment(
    "internvl", out, per_device_train_batch_size=batch, max_steps=9, optim="sgd", learning_rate=0.05,
    max_grad_norm=0.0, ddp_backend="gloo" if "RANK" in os.environ else None, lora=lora, lr_scheduler_type="constant",
    ddp_find_unused_parameters=False, dataloader_drop_last=False,
)
trainer.train()
if trainer.is_world_process_zero():
    digest = {n: [w.double().sum().item(), w.double().abs().sum().item()] for n, w in weights(trainer).items()}
    tokens = [json.loads(l)["tokens"] for l in (out / "steps.jsonl").read_text().splitlines()]
    ema = trainer.buffer.ema.float().nan_to_num(-1).tolist()
    print("RESULT" + json.dumps({"losses": losses(trainer), "weights": digest, "tokens": tokens, "ema": ema}))
"""


def result(tmp_path: Path, ranks: int, batch: int, mode: str) -> dict:
    script = tmp_path / "run.py"
    script.write_text(_SCRIPT)
    launcher = [sys.executable]
    if ranks > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    command = [*launcher, str(script), str(ROOT), str(tmp_path / f"{ranks}"), str(batch), mode]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.split("RESULT")[1].splitlines()[0])


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_two_ranks_equal_one_process(mode, tmp_path):
    one, two = result(tmp_path, 1, 4, mode), result(tmp_path, 2, 2, mode)
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-5)
    assert two["ema"] == pytest.approx(one["ema"], abs=4e-3)  # one fp16 ulp at 6 nats
    for name, (total, size) in one["weights"].items():
        assert two["weights"][name][0] == pytest.approx(total, abs=1e-5 * size + 1e-6), name
    for ours, theirs in zip(two["tokens"], one["tokens"], strict=True):
        assert {k: v for k, v in ours.items() if k != "padding"} == {k: v for k, v in theirs.items() if k != "padding"}
