"""ReGATE on VideoLLaMA2, unchanged: elision equals a literal Algorithm 1, ratio 1 equals the stock Trainer, LoRA."""

import datasets
import pytest
import torch
from transformers import Trainer, TrainingArguments

from regate import Elision, ReGateTrainer, add_reference_losses
from regate.accounting import read_steps
from tests.core.experiment import TinyCollator, arguments, losses, weights, with_lora
from tests.core.literal import literal_elision
from tests.core.test_elision import assert_same, gate_of, run
from tests.models.tiny_videollama2 import RELEASES, ROW_KIND, tiny_rows_batch, tiny_videollama2
from tests.tiny import tiny_rows

LENGTHS = [6, 11, 4, 9, 13, 7, 5, 10]


@pytest.fixture(params=RELEASES)
def release(request) -> str:
    return request.param


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_fast_path_equals_literal_algorithm_1(release, attention, side, checkpointing):
    model, processor = tiny_videollama2(release, attn_implementation=attention)
    if checkpointing:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    batch = tiny_rows_batch(processor, [5, 12, 9], side)
    active, kept = gate_of(batch)
    assert (batch["attention_mask"].bool() & ~active).sum() >= 8  # something is elided
    with literal_elision(model.get_decoder(), active):
        theirs = run(model, batch, kept)
    with Elision(model)(active, kept):
        ours = run(model, batch, kept)
    assert_same(ours, theirs)


@pytest.mark.parametrize("active_set", ["predictors+kept", "kept-passthrough"])
def test_other_active_sets_equal_literal_algorithm_1(release, active_set):
    model, processor = tiny_videollama2(release)
    batch = tiny_rows_batch(processor, [7, 12, 4])
    active, kept = gate_of(batch, active_set=active_set)
    with literal_elision(model.get_decoder(), active):
        theirs = run(model, batch, kept)
    with Elision(model)(active, kept, passthrough=active_set == "kept-passthrough"):
        ours = run(model, batch, kept)
    assert_same(ours, theirs)


def trainer_of(release: str, output, gated: bool, lora: bool = False, side: str = "right", **kwargs):
    """A trainer, not yet run, on eight rows of videos, images and text."""
    model, processor = tiny_videollama2(release)
    rows = tiny_rows(ROW_KIND, processor, LENGTHS, num_frames=4)
    columns = {name: [row[name].tolist() for row in rows] for name in ("input_ids", "labels")}
    data = datasets.Dataset.from_dict({**columns, "index": list(range(len(rows)))})
    if gated:
        data = add_reference_losses(data, model, processor)
    model = with_lora(model) if lora else model
    collate = TinyCollator(ROW_KIND, processor, rows, side)
    if not gated:
        return Trainer(model, arguments(output, TrainingArguments, **kwargs), collate, data)
    return ReGateTrainer(model, arguments(output, **kwargs), collate, data, processing_class=processor)


@pytest.mark.parametrize("side", ["right", "left"])
def test_ratio_1_equals_the_stock_trainer(release, side, tmp_path):
    options = {"side": side, "max_steps": 6, "gradient_accumulation_steps": 2}
    theirs = trainer_of(release, tmp_path / "stock", gated=False, **options)
    ours = trainer_of(release, tmp_path / "ours", gated=True, keep_ratio=1.0, **options)
    theirs.train()
    ours.train()
    assert len(losses(ours)) == 6
    assert losses(ours) == pytest.approx(losses(theirs), rel=2e-5)


def test_sparse_steps_compute_fewer_positions_and_learn(release, tmp_path):
    trainer = trainer_of(release, tmp_path, gated=True, max_steps=24)
    trainer.train()
    steps = read_steps(tmp_path / "steps.jsonl")
    sparse = [step["tokens"] for step in steps if step["ratio"] < 1]
    assert sparse
    assert all(tokens["supervised"] < tokens["target"] for tokens in sparse)
    assert sum(t["active"] for t in sparse) < sum(t["visual"] + t["prompt"] + t["answer"] for t in sparse)
    visual = trainer.model.config.visual_tokens()
    assert {step["tokens"]["visual"] % visual for step in steps} == {0}
    assert losses(trainer)[-1] < losses(trainer)[0]


def test_gated_lora_moves_only_adapters(release, tmp_path):
    trainer = trainer_of(release, tmp_path, gated=True, lora=True)
    frozen = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if not p.requires_grad}
    start = weights(trainer)
    trainer.train()
    after = dict(trainer.model.named_parameters())
    assert all(torch.equal(after[name], value) for name, value in frozen.items())
    assert all("lora_" in name for name in start)
    assert any(not torch.equal(after[name], value) for name, value in start.items())


def test_only_kept_targets_make_gradients(release):
    """A target that is not kept could have any value: no gradient changes."""
    model, processor = tiny_videollama2(release)
    batch = tiny_rows_batch(processor, [7, 12, 5])
    active, kept = gate_of(batch)
    elision = Elision(model)
    with elision(active, kept):
        before = run(model, batch, kept)
    dropped = torch.zeros_like(kept)
    dropped[:, 1:] = (batch["labels"] != -100)[:, 1:] & ~kept[:, :-1]
    other = batch | {"labels": torch.where(dropped, 3, batch["labels"])}
    assert dropped.any()
    with elision(active, kept):
        after = run(model, other, kept)
    assert after[1] == before[1]
    assert all(torch.equal(after[2][name], gradient) for name, gradient in before[2].items())
