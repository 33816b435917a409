"""T14, T27: losses come out of the head inside the model's own call: two ranks of DDP and FSDP2 (gloo) get them right.

Each rank has one row of a batch; the sum of gradients equals that of one process with both rows and with all logits.
"""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from regate import Elision
from regate.paths import losses
from regate.paths.select import Paths
from regate.scoring import shift_labels
from tests.core.test_elision import gate_of, llama, text_batch

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank = dist.get_rank()
losses.LOGITS_AT_ONCE = 50 * 3  # three targets at once

def gradients(model, batch, rows, paths, forward=None):
    active, kept = (t[rows] for t in gate_of(batch))
    elision = Elision(model, paths)
    with elision(active, kept, shift_labels(batch["labels"])[rows][kept]) as step:
        outputs = (forward or model)(input_ids=batch["input_ids"][rows], attention_mask=batch["attention_mask"][rows])
    found = step.losses(outputs)
    assert len(found) > 3
    found.sum().backward()
    whole = lambda t: t.full_tensor() if hasattr(t, "full_tensor") else t
    return found.detach(), {n: whole(p.grad) for n, p in model.named_parameters()}

batch = text_batch(length=40)
theirs = gradients(llama(), batch, slice(0, 2), Paths("padded", "logits"))
for engine in ("ddp", "fsdp2"):
    model, forward = llama(), None
    if engine == "ddp":
        forward = DistributedDataParallel(model)
    else:
        for layer in model.model.layers:
            fully_shard(layer)
        fully_shard(model)
        assert type(model.lm_head.weight).__name__ == "DTensor"
    ours = gradients(model, batch, slice(rank, rank + 1), Paths("padded", "chunked"), forward)
    mine = gate_of(batch)[1][:rank].sum()
    torch.testing.assert_close(ours[0], theirs[0][mine : mine + len(ours[0])], rtol=1e-5, atol=1e-5)
    for name, gradient in theirs[1].items():  # the engines average over ranks
        scale = gradient.abs().max().item()
        torch.testing.assert_close(2 * ours[1][name], gradient, rtol=1e-4, atol=1e-5 * scale, msg=name)
dist.destroy_process_group()
"""


def test_two_ranks_with_a_chunked_head(tmp_path):
    script = tmp_path / "run.py"
    script.write_text(_SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run([*command, str(script), str(ROOT)], capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
