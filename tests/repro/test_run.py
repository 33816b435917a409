"""From rendered clips to records: a nano student through the whole pipeline, stopped, resumed, reused and refused."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from regate.accounting import read_steps
from repro import recipes
from repro.families import FAMILIES
from repro.follow import totals
from repro.material import Material
from repro.pools import tokenizer_texts
from repro.record import read
from repro.run import existing, run

ROOT = Path(__file__).resolve().parents[2]
DATA = recipes.Data(train=24, validation=8, questions_per_task=1)
SMALL = {"steps": 6, "batch_size": 4, "evaluate_every": 2, "save_every": 2, "data": DATA}


def nano(student: str, folder: Path, num_layers: int = 1) -> Material:
    """A random nano student in the place of the prepared one, and its data."""
    family = FAMILIES[student]
    tokenizer = family.tokenizer(tokenizer_texts(0, 300), 900)
    size = dataclasses.replace(
        family.size,
        vocab_size=1024, hidden_size=32, num_layers=num_layers, num_heads=2, num_kv_heads=2, head_dim=16,
        intermediate_size=32, vision_hidden_size=16, vision_layers=1, vision_heads=1, vision_intermediate_size=16,
    )  # fmt: skip
    family.build(tokenizer, size).save_pretrained(folder / "students" / student)
    family.processor(tokenizer, size).save_pretrained(folder / "students" / student)
    return Material(student, DATA, folder / "cache", folder / "students")


@pytest.fixture(scope="module")
def material(tmp_path_factory) -> Material:
    return nano("internvl", tmp_path_factory.mktemp("material"))


def regate(student: str = "internvl", seed: int = 1, **changes):
    recipe = recipes.regate(student, seed=seed, **SMALL | changes)
    return dataclasses.replace(recipe, gate=recipe.gate | {"gate_warmup_steps": 1, "cycle": 3, "dense_steps": 1})


@pytest.mark.parametrize("student", list(FAMILIES))
def test_three_runs_make_three_records_that_agree_where_they_must(student, tmp_path):
    material = nano(student, tmp_path)
    stock = run(recipes.stock(student, seed=1, **SMALL), material, tmp_path)
    dense = run(recipes.dense(student, seed=1, **SMALL), material, tmp_path)
    ours = run(regate(student), material, tmp_path, baseline=stock)

    metric = "content_nll"
    dropout = "lora" in stock.config.get("tuning", {})  # falls on other positions where logits are fewer
    for a, b in zip(stock.curve, dense.curve, strict=True):
        assert b.metrics[metric] == pytest.approx(a.metrics[metric], rel=1e-2 if dropout else 1e-3)
    assert stock.tokens == dense.tokens
    assert stock.flops["decoder"] == dense.flops["decoder"]
    assert stock.flops["head"] > dense.flops["head"]
    assert ours.tokens["target"] == stock.tokens["target"]
    assert ours.tokens["supervised"] < stock.tokens["supervised"]
    assert ours.tokens["active"] < stock.tokens["active"]
    assert ours.teacher["seconds"] > 0
    assert stock.teacher is None
    assert ours.crossing["baseline"] == stock.name

    for record in (stock, dense, ours):
        assert read(tmp_path / "records" / f"{record.name}.json") == record
        assert [p.step for p in record.curve] == [0, 2, 4, 6]
        assert record.train_seconds > 0
        assert record.benchmarks[-1].step == 6
        assert record.benchmarks[-1].name == "mvbench"
        assert sum(t["n"] for t in record.benchmarks[-1].tasks.values()) == len(material.questions()[0])
        assert not list((tmp_path / record.name).glob("checkpoint-*"))
    assert not (tmp_path / ours.name / "trace.parquet").exists()  # seed 0 carries one

    recipe = regate(student)
    assert existing(recipe, material, tmp_path / "records") == ours
    changed = dataclasses.replace(recipe, learning_rate=3e-3)
    assert existing(changed, material, tmp_path / "records") is None


def test_rivals_and_gates_beyond_the_paper_leave_out_what_they_say_and_count_it(material, tmp_path):
    def variant(method: str, gate: dict | None = None):
        recipe = recipes.recipe_of(method, seed=1, **SMALL)
        changes = {"evaluate_every": 3} | ({"gate": recipe.gate | gate} if gate else {})
        return dataclasses.replace(recipe, **changes)

    dense = run(recipes.dense(seed=1, **SMALL), material, tmp_path)
    pruned = run(variant("visual_pruning", {"cycle": 3}), material, tmp_path)
    whole, sparse = "4 rows: dense", "4 rows: all, predictors, visual 0.5"
    assert pruned.timeline == [[whole, 1], [sparse, 2], [whole, 1], [sparse, 2]]
    assert pruned.tokens["supervised"] == dense.tokens["supervised"]
    assert pruned.tokens["active"] == dense.tokens["active"] - dense.tokens["visual"] * 4 // 6 // 2
    assert pruned.flops["decoder"] < dense.flops["decoder"]
    assert pruned.flops["head"] == dense.flops["head"]

    short = {"gate_warmup_steps": 1, "cycle": 3, "dense_steps": 1}
    ours = run(variant("cooldown", short | {"gate_cooldown_steps": 2}), material, tmp_path)
    assert [n for _, n in ours.timeline] == [2, 2, 2]  # dense, sparse, dense
    windows = ours.by_tag["windows"]
    assert [w["step"] for w in windows] == [3, 6]
    assert [w["sparse_steps"] for w in windows] == [1, 1]
    entries = read_steps(tmp_path / ours.name / "kept.jsonl")
    steps = read_steps(tmp_path / ours.name / "steps.jsonl")
    for entry, step in zip(entries, steps, strict=True):
        assert sum(entry["kept"].values()) == step["tokens"]["supervised"]
        assert sum(entry["targets"].values()) == step["tokens"]["target"]
        if step["ratio"] == 1:
            assert entry["kept"] == entry["targets"]
    for auc in windows[-1]["separation"]["reference"].values():
        assert 0 <= auc <= 1
    assert ours.by_tag == json.loads((tmp_path / ours.name / "kept_by_tag.json").read_text())
    assert dense.by_tag["windows"][-1]["sparse_steps"] == 0

    recipe = variant("earliest", {"gate_warmup_steps": 0, "dense_steps": 0})
    assert run(recipe, material, tmp_path).tokens["active"] < dense.tokens["active"]


def test_random_ltd_counts_the_layers_that_drop(tmp_path):
    material = nano("internvl", tmp_path, num_layers=4)
    recipe = dataclasses.replace(recipes.recipe_of("random_ltd", seed=1, **SMALL), evaluate_every=3)
    stock = run(recipes.stock(seed=1, **SMALL), material, tmp_path)
    everything = dataclasses.replace(recipe, random_ltd={"start": 10_000, "steps": 6})
    same = run(everything, material, tmp_path)
    assert same.artefacts["model"] == stock.artefacts["model"] | {"path": same.artefacts["model"]["path"]}
    assert (same.flops, same.tokens) == (stock.flops, stock.tokens)
    few = run(dataclasses.replace(recipe, random_ltd={"start": 8, "steps": 600, "granularity": 1}), material, tmp_path)
    rows = 6 * 4
    assert few.tokens["active"] == pytest.approx((stock.tokens["active"] + rows * 8) / 2, rel=0.01)
    assert few.flops["head"] == stock.flops["head"]
    assert stock.flops["decoder"] / 2 < few.flops["decoder"] < stock.flops["decoder"] * 0.6
    assert few.timeline == [["4 rows: random_ltd", 6]]


def test_steps_are_calibrated_on_the_same_batches(material, tmp_path, monkeypatch):
    from repro import calibrate, timing

    monkeypatch.setattr(calibrate, "Material", lambda student, data, cache: material)
    wanted = [recipes.stock(**SMALL), regate(), recipes.recipe_of("lambda0", **SMALL)]
    (path,) = calibrate.calibrate(wanted, tmp_path, rounds=2)
    measured = json.loads(path.read_text())
    kinds = ("stock", "dense", "regate 0.5, predictors, visual 1")
    assert set(measured["measured"]) == {f"4 rows: {kind}" for kind in kinds}
    assert all(len(rounds) == 2 and min(rounds) > 0 for rounds in measured["measured"].values())
    found, problems = timing.load([tmp_path / "calibration"])
    assert not problems
    costs = found["internvl", "micro"].seconds
    assert costs == {kind: min(rounds) for kind, rounds in measured["measured"].items()}


_KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
from repro import recipes
from repro.follow import Follower
from repro.material import Material
from repro.pools import tokenizer_texts
from repro.run import run
from tests.repro.test_run import DATA, SMALL

cache, prepared, runs, kill = Path(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]), sys.argv[5] == "kill"
if kill:
    visit = Follower._visit
    def killed(self, model, step):
        if step == 4:
            os.kill(os.getpid(), signal.SIGKILL)  # after the optimizer's step, before its evaluation and checkpoint
        visit(self, model, step)
    Follower._visit = killed
run(recipes.stock(seed=2, **SMALL), Material("internvl", DATA, cache, prepared), runs)
"""


def test_a_killed_baseline_goes_on_and_equals_one_that_was_not(material, tmp_path):
    script = tmp_path / "run.py"
    script.write_text(_KILLED)

    def start(runs: str, mode: str) -> int:
        paths = [ROOT, material.cache, material.prepared, tmp_path / runs]
        command = [sys.executable, str(script), *map(str, paths), mode]
        return subprocess.run(
            command, check=False, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
        ).returncode

    assert start("whole", "run") == 0
    assert start("parts", "kill") == -signal.SIGKILL
    assert (tmp_path / "parts" / "table4-internvl-stock-s2" / "checkpoint-2" / "complete.json").exists()
    assert start("parts", "run") == 0
    whole, parts = (read(tmp_path / d / "records" / "table4-internvl-stock-s2.json") for d in ("whole", "parts"))
    assert parts.artefacts["model"]["sha256"] == whole.artefacts["model"]["sha256"]
    assert [p.metrics for p in parts.curve] == [p.metrics for p in whole.curve]
    assert parts.tokens == whole.tokens
    assert parts.benchmarks == whole.benchmarks


def test_a_folder_of_another_configuration_is_not_gone_on_with(material, tmp_path):
    recipe = regate(seed=3)
    baseline = run(recipes.stock(seed=3, **SMALL), material, tmp_path)
    run(recipe, material, tmp_path, baseline)
    old = read_steps(tmp_path / recipe.name / "steps.jsonl")
    gate = recipe.gate | {"keep_ratio": 0.25}
    record = run(dataclasses.replace(recipe, gate=gate), material, tmp_path, baseline)
    new = read_steps(tmp_path / recipe.name / "steps.jsonl")
    assert sum(s["tokens"]["supervised"] for s in new) < sum(s["tokens"]["supervised"] for s in old)
    assert record.tokens == totals(tmp_path / recipe.name / "steps.jsonl", 6)["tokens"]
    with pytest.raises(ValueError, match="holds 6 of 7 steps"):
        totals(tmp_path / recipe.name / "steps.jsonl", 7)


def test_cached_material_is_whole_or_made_again(material):
    rows, cost = material.scored()
    folder = next(material.cache.glob("scored-*"))
    left = folder.with_name(f".{folder.name}.99999")
    left.mkdir()
    again, same = material.scored()
    assert rows["reference_losses"][:] == again["reference_losses"][:]
    assert cost == same
    assert json.loads((folder / "cost.json").read_text())["tokens"] > 0
    assert rows["sample_id"][:] == list(range(24))


def test_missing_student_names_the_command(tmp_path):
    with pytest.raises(FileNotFoundError, match="make students"):
        Material("internvl", DATA, tmp_path, tmp_path).student_hash  # noqa: B018


def test_command_line_refuses_what_it_does_not_know():
    for extra in (["--students", "gpt"], ["--scale", "huge"]):
        done = subprocess.run(
            [sys.executable, "-m", "repro", "table4", *extra], capture_output=True, text=True, cwd=ROOT, check=False
        )
        assert done.returncode == 2
        assert "unknown" in done.stderr
    assert torch.__version__
