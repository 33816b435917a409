"""A user's JSON with real mp4, gif, jpg and png files, through the installed command, in processes of their own."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from regate.accounting import read_steps
from tests.media_files import turns, write_conversations, write_video
from tests.tiny import tiny_model

ROOT = Path(__file__).resolve().parents[2]


def run(folder, *command):
    """`regate ...` in a folder; returns what it printed."""
    script = shutil.which("regate", path=str(Path(sys.executable).parent))
    start = [script] if script else [sys.executable, "-m", "regate.cli"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*start, *map(str, command)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_reference_train_and_resume(tmp_path):
    model, processor = tiny_model("qwen2_vl")
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    write_video(tmp_path / "media" / "c.gif", 7)
    extra = [
        {"id": "gif", "video": "c.gif", "conversations": turns("What moves?", "The yellow cylinder.")},
        {"id": "lost", "video": "lost.mp4", "conversations": turns("What moves?", "Nothing.")},
    ]
    write_conversations(tmp_path, extra)
    score = ["reference", "--model", "./model", "--data", "train.json", "--media-root", "media", "--output", "scored"]
    score += ["--num-frames", "4"]
    assert "7 samples, 1 left out" in run(tmp_path, *score, "--on-bad-sample", "skip")
    command = ["train", "--model", "./model", "--data", "scored", "--output", "run", "--batch-size", "2", "--cpu"]
    command += ["--gate-warmup-steps", "1", "--cycle", "2", "--dense-steps", "1", "--save-steps", "2"]
    assert "starting" in run(tmp_path, *command, "--max-steps", "3")
    # as after a kill while the last checkpoint was written
    (tmp_path / "run" / "checkpoint-3" / "complete.json").unlink()
    first = read_steps(tmp_path / "run" / "steps.jsonl")
    out = run(tmp_path, *command, "--max-steps", "3")
    assert "going on from run/checkpoint-2" in out
    steps = read_steps(tmp_path / "run" / "steps.jsonl")
    keys = ("step", "ratio", "tokens", "loss_kept", "reference_kept", "reference_elided")
    assert [[s[k] for k in keys] for s in steps] == [[s[k] for k in keys] for s in first]
    assert [s["ratio"] for s in steps] == [1.0, 1.0, 0.5]
    assert (tmp_path / "run" / "final" / "processor_config.json").exists()
    settings = json.loads((tmp_path / "scored" / "regate.json").read_text())
    assert settings["skipped"] == 1
