"""The bench itself at nano size: contestants agree on the loss, turns are taken, records and tables hold together."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback

from regate.accounting import FlopModel
from repro import keep, tables
from repro.bench import buffer as buffer_bench
from repro.bench import input as input_bench
from repro.bench import plots, table
from repro.bench.bound import contestant_flops
from repro.bench.contestants import BUILDERS, Arena, obstacle
from repro.bench.gating import METHODS, Meter, SavedBytes
from repro.bench.lanes import Lane
from repro.bench.material import twin
from repro.bench.record import load, read, write
from repro.bench.run import bench
from repro.bench.scaling import scaling
from repro.bench.workloads import CONTESTANTS, GPU_PATHS, nano, workloads
from repro.measured import RecordError

ROOT = Path(__file__).resolve().parents[2]
SHORT = next(w for w in nano() if w.name == "short-fp32")


@pytest.fixture(scope="module")
def arena(tmp_path_factory) -> Arena:
    found = Arena.of(SHORT, "cpu", tmp_path_factory.mktemp("arena"))
    for group in found.optimizer.param_groups:
        group["lr"] = 0.0  # the weights stay: every contestant meets the same ones
    return found


@pytest.fixture(scope="module")
def lanes(arena):
    pytest.importorskip("trl")
    found = {name: Lane(BUILDERS[name](arena)) for name in CONTESTANTS if not obstacle(name, SHORT, "cpu")}
    yield found
    for lane in found.values():
        lane.close()


def test_stock_trl_and_dense_compute_the_same_loss_and_gradient(lanes, arena):
    seen = {}
    for name in ("stock", "trl", "dense"):

        class Look(TrainerCallback):
            def on_pre_optimizer_step(self, args, state, control, name=name, **kwargs):
                seen.setdefault(name, [p.grad.clone() for p in arena.model.parameters() if p.grad is not None])

        lanes[name].trainer.add_callback(Look())
        lanes[name].step()
    losses = {name: float(lanes[name].trainer._tr_loss) for name in seen}
    assert losses["dense"] == pytest.approx(losses["stock"], rel=1e-5)
    assert losses["trl"] == pytest.approx(losses["stock"], rel=1e-5)
    for name in ("trl", "dense"):
        for ours, theirs in zip(seen[name], seen["stock"], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)


def test_what_needs_a_gpu_sits_out_and_says_why(lanes, arena):
    assert {name for name in CONTESTANTS if obstacle(name, SHORT, "cpu")} == {*GPU_PATHS} - {"gated/logits"}
    assert obstacle("gated/packed", SHORT, "cpu") == "needs a GPU"
    for name in ("gated", "gated/logits"):
        lanes[name].step()
    one, other = (float(lanes[name].trainer._tr_loss) for name in ("gated", "gated/logits"))
    assert one == pytest.approx(other, rel=1e-5)
    assert set(GPU_PATHS) <= set(workloads("cuda")[0].contestants)


def test_contestants_take_turns_and_count_their_own_steps(lanes):
    before = {name: lane.trainer.state.global_step for name, lane in lanes.items()}
    for _ in range(2):
        for lane in lanes.values():
            assert lane.step() > 0
    after = {name: lane.trainer.state.global_step for name, lane in lanes.items()}
    assert after == {name: steps + 2 for name, steps in before.items()}


def test_the_bound_of_a_dense_step_is_what_our_trainer_counts(lanes, arena):
    lanes["dense"].step()
    entry = lanes["dense"].trainer._last_entry
    model = FlopModel.of(arena.model.get_decoder(), arena.model.get_output_embeddings())
    counted = entry["decoder_flops"] + entry["head_flops"]
    assert counted == contestant_flops("dense", SHORT, model, SHORT.decoder.layers)


def test_the_meter_sees_every_part_and_leaves_no_trace(lanes):
    lane = lanes["gated"]
    lane.step()
    hooks = len(lane.trainer.elision.decoder._forward_pre_hooks)
    with Meter(lane.trainer) as meter:
        seconds = lane.step()
    parts = {"gated", "observe", "finish_step", "gather", "gather_backward", "rows", "scatter", "scatter_backward"}
    assert set(meter.seconds) == parts
    assert 0 < sum(meter.seconds.values()) < seconds
    assert not set(METHODS) & set(vars(lane.trainer))
    assert len(lane.trainer.elision.decoder._forward_pre_hooks) == hooks


def test_a_gated_step_saves_fewer_bytes_than_a_dense_one(lanes, arena):
    kept = {}
    for name in ("stock", "dense", "gated"):
        counter = SavedBytes(arena.model, torch.device("cpu"))
        lanes[name].step(counter)
        kept[name] = counter.bytes
    assert kept["gated"] < kept["dense"] < kept["stock"]


def test_saved_bytes_counts_storages_once_and_parameters_never():
    linear = torch.nn.Linear(4, 5, bias=False)
    x = torch.ones(3, 4, requires_grad=True)
    with SavedBytes(linear, torch.device("cpu")) as counter:
        y = linear(x)  # keeps x and the weight
        (y * y + linear(x).detach()).sum()  # keeps y, twice
    assert counter.bytes == 4 * (x.numel() + y.numel())


def test_an_error_in_a_trainers_thread_reaches_the_caller(arena):
    trainer = BUILDERS["stock"](arena)
    trainer.compute_loss = lambda *args, **kwargs: 1 / 0
    with pytest.raises(ZeroDivisionError):
        Lane(trainer).step()


def test_twins_share_weights_and_nothing_else(arena):
    one, other = twin(arena.model), twin(arena.model)
    assert [id(p) for p in one.parameters()] == [id(p) for p in other.parameters()]
    one.forward = None
    one.config.text_config.pad_token_id = 7
    assert other.forward is not None
    assert other.config.text_config.pad_token_id != 7
    assert one.get_output_embeddings().weight is one.get_input_embeddings().weight


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Records of a nano bench and of a sweep, through the real command."""
    pytest.importorskip("trl")
    runs = tmp_path_factory.mktemp("runs")
    for more in (["--rounds", "2", "--only", "short-fp32", "long-answer"], ["--scaling", "--only", "samples", "batch"]):
        command = [sys.executable, "-m", "repro", "bench", "--nano", "--runs", str(runs), *more]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    return runs


def test_the_command_writes_a_record_and_its_table(made):
    record = read(made / "bench" / "bench-cpu.json")
    assert set(record.measured) == {"short-fp32", "long-answer"}
    assert {t.result for t in table.targets(record)} <= {"inconclusive", "pass", "fail"}
    assert all(t.result == "inconclusive" for t in table.targets(record) if t.rounds is not None)  # two rounds
    asked = {t.asked for t in table.targets(record)}
    assert asked == set(table.ORDER)
    printed = table.to_markdown(record)
    for name in record.measured["short-fp32"]["times"]:
        assert f"| short-fp32 | {name} |" in printed
    assert table.to_markdown(record) == printed  # the bootstrap is seeded


def test_unknown_names_are_refused(capsys, tmp_path):
    assert bench("cpu", ("nothing",), None, nano_size=True, runs=tmp_path) == 2
    assert "short-bf16" in capsys.readouterr().err
    assert scaling("abacus", (), nano=True, runs=tmp_path) == 2
    assert "abacus" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_damaged_record_is_refused_by_name(made, tmp_path):
    path = made / "bench" / "bench-cpu.json"
    good = json.loads(path.read_text())

    def refused(match: str, **changes):
        (tmp_path / path.name).write_text(json.dumps(good | changes))
        with pytest.raises(RecordError, match=match) as error:
            read(tmp_path / path.name)
        assert path.name in str(error.value)

    refused("config_hash", config=good["config"] | {"rounds": 40})
    refused("schema", schema=0)
    refused("fields", extra=1)
    times = good["measured"]["short-fp32"]["times"]
    for broken in (times | {"dense": [1.0]}, times | {"dense": [-1.0, 1.0]}):
        values = good["measured"]["short-fp32"] | {"times": broken}
        refused("short-fp32.times", measured=good["measured"] | {"short-fp32": values})
    (tmp_path / path.name).write_text(path.read_text()[:1000])
    records, problems = load(tmp_path)
    assert not records
    assert "file" in str(problems[0])


def test_only_a_clean_commit_is_kept_and_tables_know_when_they_are_stale(made, tmp_path):
    record = read(made / "bench" / "bench-cpu.json")
    results = tmp_path / "results"
    dirty = type(record)(**vars(record) | {"dirty": True})
    with pytest.raises(RecordError, match="dirty"):
        write(dirty, results / "bench")
    clean = type(record)(**vars(record) | {"dirty": False, "commit": "0" * 40})
    write(clean, made / "bench")
    sweep = read(made / "bench" / "scaling-cpu.json")
    write(type(sweep)(**vars(sweep) | {"dirty": False, "commit": "0" * 40}), made / "bench")
    kept = keep.keep_bench(made / "bench", results / "bench")
    assert [p.name for p in kept] == ["bench-cpu.json", "scaling-cpu.json"]
    (results / "published.json").write_text((ROOT / "results" / "published.json").read_text())
    arguments = ["--results", str(results), "--runs", str(tmp_path / "none")]
    assert tables.main([*arguments, "--check"]) == 1
    assert tables.main(arguments) == 0
    assert tables.main([*arguments, "--check"]) == 0
    assert plots.main([*arguments, "--check"]) == 1
    assert plots.main(arguments) == 0
    assert plots.main([*arguments, "--check"]) == 0
    assert {p.name for p in (results / "bench").glob("*.svg")} == {"scaling-cpu-batch.svg", "scaling-cpu-samples.svg"}
    broken = json.loads((results / "bench" / "scaling-cpu.json").read_text())
    broken["measured"]["batch=1"]["times"]["dense"][0] += 1
    (results / "bench" / "scaling-cpu.json").write_text(json.dumps(broken))
    assert plots.main([*arguments, "--check"]) == 1


def test_the_input_bench_writes_a_record_and_its_table(tmp_path):
    sizes = {"samples": 4, "batch-size": 2, "rounds": 1, "num-frames": 2, "enlarge": 1, "slow": 1}
    small = [part for name, size in sizes.items() for part in (f"--{name}", str(size))]
    assert input_bench.main([*small, "--models", "micro", "--runs", str(tmp_path)]) == 0
    record = read(tmp_path / "bench" / "input-cpu.json")
    speeds = record.measured["micro"]["samples_per_second"]
    assert set(speeds) == {"plain", "2 workers", "cached frames", "cached vision, first epoch", "cached vision"}
    assert all(len(rounds) == 1 and rounds[0] > 0 for rounds in speeds.values())
    printed = table.files([record])["input.md"]
    assert all(f"| micro | {way} |" in printed for way in speeds)


def test_the_buffer_bench_writes_a_record_and_its_table(tmp_path):
    """Two real ranks; the sizes are those that the plan for more samples counts with."""
    assert buffer_bench.main(["--nano", "--runs", str(tmp_path)]) == 0
    record = read(tmp_path / "bench" / "buffer-cpu.json")
    (point,) = record.measured.values()
    targets, rows = buffer_bench.TARGETS, buffer_bench.BATCH // 2
    assert point["bytes"]["held"] == 1000 * (2 * targets + 14) + 8
    assert point["bytes"]["sent, dense"] == 8 + 168 + rows * 8 + -(-rows * targets // 8) + rows * targets * 4
    assert point["bytes"]["held"] < point["bytes"]["file"] + 1000 * 12 + 1000
    assert {len(rounds) for rounds in point["step"].values()} == {buffer_bench.ROUNDS}
    printed = table.files([record])["buffer.md"]
    assert "| samples, ranks | 1,000, 2 |" in printed
    assert "docs/scale.md" in printed
