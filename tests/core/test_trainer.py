"""Identities of ReGateTrainer: ratio 1 = stock, accumulation = batch, resume = no interruption."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback

from regate import ReGateConfig, ReGateTrainer
from regate.accounting import read_steps
from regate.checkpoint import MARKER, IncompleteCheckpoint, last_complete, mark_complete, require_complete
from regate.difficulty import FILE_NAME
from tests.core.experiment import TinyCollator, arguments, experiment, losses, stock, tiny_data, weights
from tests.tiny import tiny_model


@pytest.mark.parametrize("policy", ["dense", "regate"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_ratio_1_equals_the_stock_trainer(kind, side, policy, tmp_path):
    theirs = stock(kind, tmp_path / "stock", side=side, max_steps=20)
    ours = experiment(kind, tmp_path / "ours", side=side, max_steps=20, keep_ratio=1.0, policy=policy)
    theirs.train()
    ours.train()
    assert len(losses(ours)) == 20
    assert losses(ours) == pytest.approx(losses(theirs), rel=2e-5)


@pytest.mark.parametrize("lora", [False, True])
def test_ratio_1_equals_the_stock_trainer_under_accumulation(kind, lora, tmp_path):
    if kind == "qwen2_vl":
        pytest.skip("T22: the stock Trainer averages means of micro-batches for classes without loss kwargs")
    options = {"gradient_accumulation_steps": 3, "max_steps": 20, "lora": lora}
    theirs = stock(kind, tmp_path / "stock", **options)
    ours = experiment(kind, tmp_path / "ours", keep_ratio=1.0, **options)
    theirs.train()
    ours.train()
    assert losses(ours) == pytest.approx(losses(theirs), rel=2e-5)


def test_eight_micro_batches_equal_one_batch(kind, tmp_path):
    options = {"optim": "sgd", "learning_rate": 0.05, "max_grad_norm": 0.0, "max_steps": 5}
    one = experiment(kind, tmp_path / "1", per_device_train_batch_size=8, **options)
    eight = experiment(kind, tmp_path / "8", per_device_train_batch_size=1, gradient_accumulation_steps=8, **options)
    start = weights(one)
    one.train()
    eight.train()
    assert losses(eight) == pytest.approx(losses(one), rel=2e-5)
    torch.testing.assert_close(eight.buffer.ema, one.buffer.ema, rtol=1e-3, atol=1e-3, equal_nan=True)
    for name, weight in weights(one).items():
        moved = (weight - start[name]).abs().max().item()
        torch.testing.assert_close(weights(eight)[name], weight, rtol=0, atol=1e-3 * moved + 1e-6, msg=name)


@pytest.mark.parametrize("active_set", ["predictors", "predictors+kept", "kept-passthrough", "kept-unsupervised"])
def test_sparse_steps_compute_fewer_positions_and_learn(active_set, tmp_path):
    trainer = experiment("internvl", tmp_path, active_set=active_set, max_steps=24)
    trainer.train()
    steps = read_steps(tmp_path / "steps.jsonl")
    assert [s["ratio"] for s in steps[:6]] == [1.0, 1.0, 0.5, 0.5, 0.5, 1.0]
    sparse = [s["tokens"] for s in steps if s["ratio"] < 1]
    assert all(t["supervised"] < t["target"] for t in sparse)
    assert sum(t["active"] for t in sparse) < sum(t["visual"] + t["prompt"] + t["answer"] for t in sparse)
    dense = [s["tokens"] for s in steps if s["ratio"] == 1]
    assert all(t["active"] == t["visual"] + t["prompt"] + t["answer"] for t in dense)
    assert losses(trainer)[-1] < losses(trainer)[0]


def test_loss_only_computes_everything_and_elides_nothing(tmp_path):
    trainer = experiment("internvl", tmp_path, policy="loss_only")
    trainer.train()
    for step in read_steps(tmp_path / "steps.jsonl"):
        tokens = step["tokens"]
        assert tokens["active"] == tokens["visual"] + tokens["prompt"] + tokens["answer"]
        assert (tokens["supervised"] < tokens["target"]) == (step["ratio"] < 1)


def test_gated_lora_moves_only_adapters(tmp_path):
    trainer = experiment("internvl", tmp_path, lora=True)
    frozen = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if not p.requires_grad}
    start = weights(trainer)
    trainer.train()
    after = dict(trainer.model.named_parameters())
    assert all(torch.equal(after[n], value) for n, value in frozen.items())
    assert all("lora_" in n for n in start)
    assert any(not torch.equal(after[n], value) for n, value in start.items())


class Logged(TrainerCallback):
    """What integrations (TensorBoard and the like) are told."""

    def __init__(self):
        self.seen = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.seen.append(dict(logs))


def test_every_step_is_logged_with_what_it_cost(tmp_path):
    trainer, logged = experiment("internvl", tmp_path), Logged()
    trainer.add_callback(logged)
    trainer.train()
    steps = read_steps(tmp_path / "steps.jsonl")
    assert [s["step"] for s in steps] == list(range(6))
    for s in steps:
        tokens = s["tokens"]
        assert tokens["padding"] + tokens["visual"] + tokens["prompt"] + tokens["answer"] > 0
        assert s["decoder_flops"] > 0
        assert s["head_flops"] == 6 * 32 * len(trainer.processing_class.tokenizer) * tokens["supervised"]
        assert s["seconds"] > 0
        assert s["peak_memory_bytes"] > 0
        assert s["loss_kept"] > 0
        # Never observed or observed once: the kept ones are the harder ones by construction of the score.
        assert (s["reference_elided"] is None) == (s["ratio"] == 1)
    assert logged.seen[2]["ratio"] == 0.5
    assert logged.seen[2]["tokens_supervised"] == steps[2]["tokens"]["supervised"]
    # What steps.jsonl holds does not stand in every checkpoint's trainer_state.json as well.
    assert all("ratio" not in e and "tokens_supervised" not in e for e in trainer.state.log_history)


def test_trace_holds_what_was_decided(tmp_path):
    import pyarrow.parquet as pq

    trainer = experiment("internvl", tmp_path, trace_samples=[1, 4], max_steps=12)
    trainer.train()
    rows = pq.read_table(tmp_path / "trace.parquet").to_pylist()
    assert {r["sample_id"] for r in rows} == {1, 4}
    assert len(rows) == 2 * 3  # three epochs of four steps
    for row in rows:
        assert len(row["kept"]) == len(row["loss"]) == len(row["reference"])
        supervised = [loss == loss for loss in row["loss"]]
        assert supervised == row["kept"]
        if row["ratio"] < 1:
            *scores, marker = zip(row["score"], row["kept"], strict=True)
            assert marker[1]  # the end of turn is no candidate
            assert min(s for s, kept in scores if kept) >= max(s for s, kept in scores if not kept)


class TestResume:
    """A run that was stopped and went on equals one that was not, bit for bit."""

    @pytest.mark.parametrize("lora", [False, True])
    def test_in_mid_epoch(self, kind, lora, tmp_path):
        options = {"max_steps": 7, "save_strategy": "steps", "save_steps": 3, "lora": lora, "trace_samples": [0]}
        whole = experiment(kind, tmp_path / "whole", **options)
        whole.train()
        first = experiment(kind, tmp_path / "parts", **options)
        first.args.max_steps = 7
        first.add_callback(StopAt(5))
        first.train()  # two steps past the checkpoint: they are forgotten
        second = experiment(kind, tmp_path / "parts", **options)
        second.train(resume_from_checkpoint=True)
        assert second.state.global_step == 7
        for name, weight in weights(whole).items():
            assert torch.equal(weights(second)[name], weight), name
        assert torch.equal(bits(second.buffer.ema), bits(whole.buffer.ema))
        assert torch.equal(second.buffer.mark, whole.buffer.mark)
        drop = ("seconds", "data_seconds", "peak_memory_bytes")
        logs = [
            [{k: v for k, v in s.items() if k not in drop} for s in read_steps(tmp_path / d / "steps.jsonl")]
            for d in ("whole", "parts")
        ]
        assert logs[0] == logs[1]
        assert (tmp_path / "whole/trace.parquet").read_bytes() == (tmp_path / "parts/trace.parquet").read_bytes()

    def test_after_kill(self, tmp_path):
        """A real process, killed with SIGKILL while it trains."""
        script = tmp_path / "run.py"
        script.write_text(_KILLED_RUN)
        whole = _run(script, tmp_path / "whole", "0")
        assert whole.returncode == 0, whole.stderr
        killed = _run(script, tmp_path / "parts", "4")
        assert killed.returncode == -signal.SIGKILL
        resumed = _run(script, tmp_path / "parts", "0")
        assert resumed.returncode == 0, resumed.stderr
        assert "resumed True" in resumed.stdout
        assert whole.stdout.split("digest")[1] == resumed.stdout.split("digest")[1]

    def test_a_finished_run_takes_no_step_more(self, tmp_path):
        """Killed between its last checkpoint and what comes after: in mid-epoch, the stock loop would go on by one."""
        options = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2}
        first = experiment("internvl", tmp_path, **options)
        first.train()
        again = experiment("internvl", tmp_path, **options)
        again.train(resume_from_checkpoint=True)
        assert again.state.global_step == 6
        assert len(read_steps(tmp_path / "steps.jsonl")) == 6
        for name, weight in weights(first).items():
            assert torch.equal(weights(again)[name], weight), name

    def test_best_model_is_loaded_whole(self, tmp_path):
        """T25: the stock Trainer drops nearly all keys of these classes here, with a warning only."""
        trainer = experiment(
            "internvl", tmp_path, evaluate=True, save_strategy="steps", save_steps=2, eval_strategy="steps",
            eval_steps=2,
            load_best_model_at_end=True, metric_for_best_model="loss", greater_is_better=True,
        )  # fmt: skip
        trainer.train()
        from transformers import InternVLForConditionalGeneration

        best = InternVLForConditionalGeneration.from_pretrained(trainer.state.best_model_checkpoint)
        assert trainer.state.best_model_checkpoint != str(tmp_path / "checkpoint-6")
        for name, weight in best.state_dict().items():
            assert torch.equal(trainer.model.state_dict()[name], weight), name

    def test_missing_weights_are_an_error(self, tmp_path):
        trainer = experiment("internvl", tmp_path, save_strategy="steps", save_steps=2, max_steps=2)
        trainer.train()
        from safetensors.torch import load_file, save_file

        path = tmp_path / "checkpoint-2"
        tensors = load_file(path / "model.safetensors")
        name = next(n for n in tensors if "q_proj" in n)
        save_file({k: v for k, v in tensors.items() if k != name}, path / "model.safetensors", {"format": "pt"})
        mark_complete(path)
        with pytest.raises(ValueError, match="missing_keys"):
            experiment("internvl", tmp_path, max_steps=4).train(resume_from_checkpoint=str(path))

    def test_incomplete_checkpoints_are_passed_over(self, tmp_path):
        trainer = experiment("internvl", tmp_path, save_strategy="steps", save_steps=2, save_total_limit=2)
        trainer.train()
        assert sorted(p.name for p in tmp_path.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-6"]
        (tmp_path / "checkpoint-6" / MARKER).unlink()
        assert last_complete(tmp_path) == str(tmp_path / "checkpoint-4")
        with pytest.raises(IncompleteCheckpoint, match="checkpoint-6 has no readable"):
            trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
        model = tmp_path / "checkpoint-4" / "model.safetensors"
        os.truncate(model, model.stat().st_size - 1)
        with pytest.raises(IncompleteCheckpoint, match="were written, found"):
            require_complete(tmp_path / "checkpoint-4")
        # A run with finished checkpoints is not begun anew without a word, because all of them are damaged.
        with pytest.raises(IncompleteCheckpoint, match="all 1 finished checkpoints are damaged"):
            trainer.train(resume_from_checkpoint=True)
        (tmp_path / "checkpoint-4" / MARKER).unlink()
        assert last_complete(tmp_path) is None
        with pytest.raises(ValueError, match="no complete checkpoint"):
            trainer.train(resume_from_checkpoint=True)

    def test_damaged_ema_is_named(self, tmp_path):
        trainer = experiment("internvl", tmp_path, save_strategy="steps", save_steps=2, max_steps=2)
        trainer.train()
        path = tmp_path / "checkpoint-2" / FILE_NAME
        path.write_bytes(path.read_bytes()[:20])
        mark_complete(path.parent)
        with pytest.raises(ValueError, match=FILE_NAME):
            experiment("internvl", tmp_path, max_steps=4).train(resume_from_checkpoint=True)


class TestRefusals:
    """What is wrong is said before the first step."""

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("keep_ratio", 0.0), ("keep_ratio", 1.5), ("beta", 1.0), ("beta", -0.1), ("gate_warmup_steps", -1),
            ("dense_steps", 200), ("cycle", 0), ("lambda_", -1.0), ("lambda_", 1.5), ("policy", "sparse"),
            ("combine", "sum"), ("active_set", "all"), ("on_bad_sample", "ignore"), ("num_frames", 0),
        ],
    )  # fmt: skip
    def test_config(self, field, value, tmp_path):
        with pytest.raises(ValueError, match=rf"{field} must be .* got {value!r}"):
            ReGateConfig(output_dir=str(tmp_path), **{field: value})

    def test_no_reference_losses(self, tmp_path):
        model, processor = tiny_model("internvl")
        data, rows = tiny_data("internvl", processor)
        with pytest.raises(ValueError, match="run add_reference_losses"):
            ReGateTrainer(model, arguments(tmp_path), TinyCollator("internvl", processor, rows), data)

    def test_other_teacher(self, tmp_path):
        other, _ = tiny_model("internvl", seed=1)
        trainer = experiment("internvl", tmp_path)
        rest = (trainer.args, trainer.data_collator.collator, trainer.train_dataset)
        with pytest.raises(ValueError, match="computed with another teacher"):
            ReGateTrainer(other, *rest, processing_class=trainer.processing_class)
        found = trainer.train_dataset[0]["reference_id"].split("teacher=")[1]
        trainer.args.teacher = found  # on purpose
        ReGateTrainer(other, *rest, processing_class=trainer.processing_class)

    def test_wrong_length_duplicates_and_mixed_origins(self, tmp_path):
        trainer = experiment("internvl", tmp_path)
        model = trainer.model
        trainer.elision.remove()
        data = trainer.train_dataset

        def start(rows):
            return ReGateTrainer(
                model, trainer.args, trainer.data_collator, rows, processing_class=trainer.processing_class
            )

        short = data.map(lambda r: {"reference_losses": r["reference_losses"][:-1]})
        with pytest.raises(ValueError, match=r"row 0 \(and 7 more\) has 5 reference losses for 6 targets"):
            start(short)
        with pytest.raises(ValueError, match="occur more than once"):
            start(data.map(lambda r: {"sample_id": r["sample_id"] // 2}))
        mixed = data.map(lambda r, i: {"reference_id": f"teacher={i % 2}"}, with_indices=True)
        with pytest.raises(ValueError, match="of 2 origins"):
            start(mixed)

    def test_not_finite_loss_stops_with_the_samples(self, tmp_path):
        trainer = experiment("internvl", tmp_path, save_strategy="steps", save_steps=2)

        class Poison(StopAt):
            def on_step_end(self, args, state, control, model=None, **kwargs):
                if state.global_step == 3:
                    model.get_output_embeddings().weight.data.fill_(float("nan"))

        trainer.add_callback(Poison(0))
        with pytest.raises(FloatingPointError, match=r"loss is nan in step 3, samples \[\d, \d\].*checkpoint-2"):
            trainer.train()
        assert len(read_steps(tmp_path / "steps.jsonl")) == 3
        assert last_complete(tmp_path) == str(tmp_path / "checkpoint-2")

    def test_gated_already(self, tmp_path):
        trainer = experiment("internvl", tmp_path)
        with pytest.raises(ValueError, match="gated already"):
            ReGateTrainer(trainer.model, trainer.args, trainer.data_collator, trainer.train_dataset)


def test_a_batch_without_supervised_targets_has_a_zero_gradient(tmp_path):
    """T9: no NaN, and every trainable weight still gets a gradient, so that no rank hangs."""
    trainer = experiment("internvl", tmp_path, policy="dense")
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(3)])
    batch["labels"].fill_(-100)
    batch["reference_losses"] = batch["reference_losses"][:, :0]
    trainer.state.epoch = 0
    (gated,), number = trainer.get_batch_samples(iter([batch]), 1, torch.device("cpu"))
    loss = trainer.compute_loss(trainer.model, gated, num_items_in_batch=number)
    loss.backward()
    assert loss.item() == 0
    head = trainer.model.get_output_embeddings().weight.grad
    assert head is not None
    assert head.abs().max() == 0


def test_autocast_and_checkpointing(tmp_path):
    trainer = experiment("internvl", tmp_path, bf16=True, activation_checkpointing=True, max_steps=8)
    trainer.train()
    assert all(torch.isfinite(torch.tensor(losses(trainer))))


def bits(x: torch.Tensor) -> torch.Tensor:
    return x.view(torch.int16)


class StopAt(TrainerCallback):
    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop |= state.global_step == self.step


_KILLED_RUN = """
import hashlib, os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
from transformers import TrainerCallback
from tests.core.experiment import experiment, weights

out, kill_at = Path(sys.argv[2]), int(sys.argv[3])
trainer = experiment("internvl", out, max_steps=7, save_strategy="steps", save_steps=1, save_total_limit=2)

class Kill(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        if kill_at and state.global_step == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

trainer.add_callback(Kill())
resume = trainer.last_complete_checkpoint() is not None
print("resumed", resume)
trainer.train(resume_from_checkpoint=resume)
digest = hashlib.sha256()
for name, weight in weights(trainer).items():
    digest.update(weight.numpy().tobytes())
digest.update(trainer.buffer.ema.numpy().tobytes())
print("digest", digest.hexdigest())
"""


def _run(script: Path, out: Path, kill_at: str) -> subprocess.CompletedProcess:
    root = str(Path(__file__).resolve().parents[2])
    return subprocess.run([sys.executable, script, root, out, kill_at], capture_output=True, text=True, check=False)


def test_resume_refuses_another_data_set(tmp_path):
    trainer = experiment("internvl", tmp_path, save_strategy="steps", save_steps=2, max_steps=2)
    trainer.train()
    model, processor = tiny_model("internvl")
    data = trainer.train_dataset.select(range(6))
    collator = trainer.data_collator.collator
    other = ReGateTrainer(model, arguments(tmp_path, max_steps=4), collator, data, processing_class=processor)
    with pytest.raises(ValueError, match="another training set"):
        other.train(resume_from_checkpoint=True)
    json.loads((tmp_path / "checkpoint-2" / MARKER).read_text())
