"""configs/slurm/launch.sbatch with stand-ins for Slurm's commands; accelerate's launchers and their ranks are real.

The stand-in for srun starts a launcher for each of two "machines" on this one.
"""

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from accelerate.commands.launch import launch_command_parser

from repro.launch import Launch
from repro.paper import recipe_of

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "configs" / "slurm" / "launch.sbatch"
STANDINS = {
    "srun": """
while [ "${1#--}" != "$1" ]; do echo "srun $1" >> calls; shift; done
for node in $(seq 0 $((SLURM_NNODES - 1))); do
    SLURM_NODEID=$node "$@" &
    echo $! >> pids
done
status=0
for pid in $(cat pids); do wait "$pid" || status=$?; done
exit $status
""",
    "scontrol": """
echo "scontrol $*" >> calls
[ "$1" = requeue ] || echo localhost
""",
    "scancel": """
echo "scancel $*" >> calls
kill -TERM $(cat pids)
""",
}
RANK = """
import os, signal, sys, time
from pathlib import Path

name = "-".join(os.environ[k] for k in ("RANK", "LOCAL_RANK", "WORLD_SIZE"))

def save(*_):
    time.sleep(1)
    Path(f"saved-{name}").touch()
    sys.exit(143)

signal.signal(signal.SIGTERM, save)
Path(f"started-{name}").write_text(" ".join(sys.argv[1:]))
while True:
    time.sleep(0.1)
"""


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """A folder with the stand-ins on PATH, and the environment of a job on two machines with one GPU each."""
    for name, body in STANDINS.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{body}")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "rank.py").write_text(RANK)
    for job in range(os.getpid() % 10_000, 30_000):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", 20_000 + job % 10_000)):
                break
    environment = {"SLURM_JOB_ID": job, "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_NNODES": 2, "SLURM_GPUS_ON_NODE": 1}
    for name, value in environment.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("PATH", f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}")
    return tmp_path


def started(cluster: Path, *rank: str) -> subprocess.Popen:
    config = str(ROOT / "configs" / "accelerate" / "ddp.yaml")
    command = ["bash", str(SCRIPT), "--config_file", config, "rank.py", *rank]
    return subprocess.Popen(command, cwd=cluster, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def names(cluster: Path, what: str) -> list[str]:
    return sorted(path.name for path in cluster.glob(f"{what}-*"))


def test_ranks_on_all_machines_save_and_the_job_is_requeued(cluster):
    job = started(cluster, "train", "two words")
    end = time.monotonic() + 120
    while len(names(cluster, "started")) < 2 and job.poll() is None and time.monotonic() < end:
        time.sleep(0.1)
    assert names(cluster, "started") == ["started-0-0-2", "started-1-0-2"]
    assert (cluster / "started-1-0-2").read_text() == "train two words"
    job.terminate()  # as Slurm does with --signal=B:TERM
    output, _ = job.communicate(timeout=60)
    assert names(cluster, "saved") == ["saved-0-0-2", "saved-1-0-2"], output
    assert job.returncode != 0
    number = os.environ["SLURM_JOB_ID"]
    assert (cluster / "calls").read_text().splitlines() == [
        "scontrol show hostnames n[1-2]",
        "srun --kill-on-bad-exit=0",
        "srun --wait=600",
        f"scancel --signal=TERM {number}",
        f"scontrol requeue {number}",
    ]


def test_a_job_that_fails_is_not_requeued(cluster):
    (cluster / "python").write_text("#!/bin/sh\nexit 3\n")  # as a launcher does
    (cluster / "python").chmod(0o755)
    job = started(cluster)
    job.communicate(timeout=60)
    assert job.returncode == 3
    assert "requeue" not in (cluster / "calls").read_text()


def test_its_examples_are_what_the_launch_would_run():
    """The command lines in its head: options that accelerate knows, the student's units, our modules' options."""
    text = re.sub(r" \\\n#\s+", " ", SCRIPT.read_text())
    examples = re.findall(r"#   sbatch --nodes=4 configs/slurm/launch.sbatch (.*)", text)
    assert len(examples) == 2
    launch = Launch("videollama2", Path("MODEL"), Path("DATA"), Path("runs"), 32, "fsdp2")
    for example, command in zip(
        examples, (launch.reference_command(), launch.train_command(recipe_of("videollama2-regate"))), strict=True
    ):
        ours, theirs = (launch_command_parser().parse_args(c) for c in (example.split(), command[3:]))
        for name in ("module", "training_script", "fsdp_transformer_layer_cls_to_wrap"):
            assert getattr(ours, name) == getattr(theirs, name), name
        assert ROOT / ours.config_file == Path(theirs.config_file)
        options = {word for word in ours.training_script_args if word.startswith("--")}
        assert options <= set(theirs.training_script_args)


def test_slurms_options_are_those_of_a_requeued_job():
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(\S+))?", SCRIPT.read_text(), re.MULTILINE))
    assert options["signal"] == "B:TERM@300"
    assert options["ntasks-per-node"] == "1"
    assert {"requeue", "open-mode", "nodes", "gpus-per-node", "time"} <= options.keys()
    subprocess.run(["bash", "-n", SCRIPT], check=True)
