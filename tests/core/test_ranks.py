"""Two and four gloo ranks equal one process with the batch of all, under DDP and FSDP2, and go on from each other's
checkpoints (T28: SGD, no clipping, or a wrong factor would hide). What is run stands in rank_runs.py."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from tests.core.rank_runs import CASES, ENGINES, LENGTHS, LIMIT_S, SAVE, STEPS, name_of

ROOT = Path(__file__).resolve().parents[2]
RUNS = [(case, engine, ranks, 0) for case in CASES for engine in ENGINES for ranks in (2, 4)]
_ORDER = [("step", "ascending"), ("sample_id", "ascending")]
RESUMED = [("full", "ddp", 1), ("lora", "ddp", 1), ("full", "ddp", 4), ("full", "fsdp2", 4), ("lora", "fsdp2", 4)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.core.rank_runs", str(folder)]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=2 * LIMIT_S
    )
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-4000:]
    return folder


def kept_of(run: Path) -> dict[str, dict]:
    """ "step sample" -> what was decided, of all ranks."""
    parts = [json.loads(path.read_text()) for path in run.glob("kept-*.json")]
    assert len({key for part in parts for key in part}) == sum(map(len, parts)), "a sample counted twice"
    return {key: value for part in parts for key, value in part.items()}


def same_but_for_ties(ours: dict, theirs: dict) -> bool:
    """Same kept targets, or others whose scores are within one fp16 ulp of each other."""
    different = np.flatnonzero(np.array(ours["kept"]) != np.array(theirs["kept"]))
    if not len(different):
        return True
    scores = np.array(theirs["score"])[different].astype(np.float16)
    return sum(ours["kept"]) == sum(theirs["kept"]) and float(np.ptp(scores)) <= float(np.spacing(scores.max()))


@pytest.mark.parametrize(("case", "engine", "ranks", "resumed"), [*RUNS, *((*run, 2) for run in RESUMED)])
def test_ranks_equal_one_process(runs, case, engine, ranks, resumed):
    one, many = runs / name_of(case, "ddp", 1), runs / name_of(case, engine, ranks, resumed)
    ours, theirs = (json.loads((run / "result.json").read_text()) for run in (many, one))
    assert len(ours["losses"]) == STEPS
    assert ours["losses"] == pytest.approx(theirs["losses"], rel=1e-5)

    weights, found = (load_file(run / "weights.safetensors") for run in (one, many))
    assert found.keys() == weights.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-5, atol=1e-5 * weight.abs().max().item(), msg=name)

    counted = ("step", "ratio", "samples", "decoder_flops", "head_flops")
    for mine, other in zip(ours["steps"], theirs["steps"], strict=True):
        assert {k: mine[k] for k in counted} == {k: other[k] for k in counted}
        # Padding depends on who shares a batch with whom.
        assert mine["tokens"] | {"padding": 0} == other["tokens"] | {"padding": 0}
        for mean in ("reference_kept", "reference_elided", "loss_kept", "ema_elided"):
            assert mine[mean] == (None if other[mean] is None else pytest.approx(other[mean], rel=1e-3)), mean

    decided, expected = kept_of(many), kept_of(one)
    if resumed:
        expected = {key: value for key, value in expected.items() if int(key.split()[0]) >= SAVE}
    assert decided.keys() == expected.keys()
    for key, value in decided.items():
        assert same_but_for_ties(value, expected[key]), key

    if CASES[case].get("blank") is None:
        mine, other = load_file(many / "ema.safetensors"), load_file(one / "ema.safetensors")
        assert torch.equal(mine["mark"], other["mark"])
        ulp = np.spacing(other["ema"].abs().numpy())  # of fp16
        assert (np.abs(mine["ema"].numpy() - other["ema"].numpy()) <= 1.01 * ulp).all()


def test_every_sample_counts_once_an_epoch(runs):
    """Also where ranks repeat some to fill the last batch: two steps an epoch, of eight and of three rows."""
    for engine in ENGINES:
        steps = json.loads((runs / name_of("full", engine, 4) / "result.json").read_text())["steps"]
        assert [step["samples"] for step in steps] == [8, 3] * (STEPS // 2)
        decided = kept_of(runs / name_of("full", engine, 4))
        for epoch in range(STEPS // 2):
            seen = sorted(int(key.split()[1]) for key in decided if int(key.split()[0]) // 2 == epoch)
            assert seen == list(range(len(LENGTHS)))


def test_the_trace_has_the_samples_of_all_ranks(runs):
    one, four = (
        pq.read_table(runs / name_of("full", "ddp", ranks) / "trace.parquet").sort_by(_ORDER) for ranks in (1, 4)
    )
    assert one["sample_id"].to_pylist() == four["sample_id"].to_pylist()
    assert set(one["sample_id"].to_pylist()) == {1, 7}
    assert one["kept"].to_pylist() == four["kept"].to_pylist()
