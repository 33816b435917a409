"""Visual dependence: what it measures, that it never looks at the label, and that a gate on it trains."""

import math

import pytest
import torch

from regate import ReGateTrainer, add_reference_losses, add_visual_dependence
from regate.accounting import read_steps
from regate.dependence import divergence
from regate.scoring import IGNORE, shift_labels
from regate.tokens import placeholder_token_ids
from tests.core.experiment import TinyCollator, arguments, tiny_data
from tests.tiny import tiny_collate, tiny_model


def test_divergence_is_zero_for_equals_and_ln_2_for_strangers():
    logits = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    other = torch.randn(5, 7, generator=torch.Generator().manual_seed(1))
    assert divergence(logits, logits + 3).max() < 1e-6
    assert torch.allclose(divergence(logits, other), divergence(other, logits))
    certain = torch.eye(2) * 200
    assert divergence(certain, certain.flip(0)).tolist() == pytest.approx([math.log(2)] * 2)


def literal(model, processor, row) -> torch.Tensor:
    """Divergence at the targets of one row from all logits of two full-length forward passes."""
    batch = tiny_collate(processor, [row], "right")
    ids, labels = batch["input_ids"], batch.pop("labels")
    placeholder = torch.isin(ids, torch.tensor(sorted(placeholder_token_ids(processor, model.config))))
    with torch.no_grad():
        seeing = model(**batch).logits[0]
        hidden = model.get_decoder()(
            input_ids=ids.masked_fill(placeholder, processor.tokenizer.pad_token_id),
            attention_mask=(~placeholder).long(),
            position_ids=torch.arange(ids.shape[1])[None],
            use_cache=False,
        )[0]
        blind = model.get_output_embeddings()(hidden)[0]
    return divergence(seeing, blind)[shift_labels(labels)[0] != IGNORE]


@pytest.mark.parametrize("side", ["right", "left"])
def test_the_column_is_what_two_full_passes_give(kind, side):
    model, processor = tiny_model(kind)
    data, rows = tiny_data(kind, processor)
    found = add_visual_dependence(data, model, processor, TinyCollator(kind, processor, rows, side), batch_size=3)
    for row, scores in zip(rows, found["reference_losses"], strict=True):
        torch.testing.assert_close(torch.tensor(scores), literal(model.eval(), processor, row), rtol=2e-3, atol=1e-4)
    assert model.get_decoder()._forward_hooks == {}


def test_the_label_itself_does_not_matter():
    model, processor = tiny_model("internvl")
    data, rows = tiny_data("internvl", processor)
    scores = add_visual_dependence(data, model, processor, TinyCollator("internvl", processor, rows))
    last = [int((row["labels"] != IGNORE).nonzero()[-1]) for row in rows]
    for row, at in zip(rows, last, strict=True):  # another last word
        row["input_ids"][at] = row["labels"][at] = int(row["input_ids"][at - 1])
    other = add_visual_dependence(data, model, processor, TinyCollator("internvl", processor, rows))
    for one, two in zip(scores["reference_losses"], other["reference_losses"], strict=True):
        assert one[-1] == pytest.approx(two[-1], abs=1e-4)


@pytest.mark.parametrize("policy", ["dependence", "dependence_loss_only", "drawn"])
def test_a_gate_beyond_the_paper_trains_and_counts(tmp_path, policy):
    model, processor = tiny_model("internvl")
    data, rows = tiny_data("internvl", processor)
    collator = TinyCollator("internvl", processor, rows)
    if policy == "drawn":
        data = add_reference_losses(data, model, processor)
    else:
        data = add_visual_dependence(data, model, processor, collator)
    trainer = ReGateTrainer(model, arguments(tmp_path, policy=policy), collator, data, processing_class=processor)
    trainer.train()
    steps = read_steps(tmp_path / "steps.jsonl")
    sparse = [s for s in steps if s["ratio"] < 1]
    assert sparse
    assert all(s["tokens"]["supervised"] < s["tokens"]["target"] for s in sparse)
    computed = [
        s["tokens"]["active"] < s["tokens"]["visual"] + s["tokens"]["prompt"] + s["tokens"]["answer"] for s in sparse
    ]
    assert all(computed) is (policy != "dependence_loss_only")


def test_each_gate_asks_for_its_own_measure(tmp_path):
    model, processor = tiny_model("internvl")
    data, rows = tiny_data("internvl", processor)
    collator = TinyCollator("internvl", processor, rows)
    losses = add_reference_losses(data, model, processor)
    scores = add_visual_dependence(data, model, processor, collator)
    for policy, wrong in (("dependence", losses), ("regate", scores)):
        with pytest.raises(ValueError, match="another measure"):
            ReGateTrainer(model, arguments(tmp_path, policy=policy), collator, wrong, processing_class=processor)
    with pytest.raises(ValueError, match="already"):
        add_visual_dependence(scores, model, processor, collator)


def test_a_collator_that_leaves_rows_out_is_refused():
    model, processor = tiny_model("internvl")
    data, rows = tiny_data("internvl", processor)
    whole = TinyCollator("internvl", processor, rows)
    with pytest.raises(ValueError, match="left out some of the samples"):
        add_visual_dependence(data, model, processor, lambda batch: whole(batch[:-1]))


def test_a_second_call_finds_what_the_first_one_stored(tmp_path):
    model, processor = tiny_model("internvl")
    data, rows = tiny_data("internvl", processor)
    whole = TinyCollator("internvl", processor, rows)
    calls = []

    def counting(batch):
        calls.append(len(batch))
        return whole(batch)

    shared = {"batch_size": 2, "cache_dir": tmp_path, "shard_rows": 4}
    with pytest.raises(RuntimeError, match="killed"):  # after the first shard
        add_visual_dependence(data, model, processor, lambda batch: killed(counting, batch, calls), **shared)
    calls.clear()
    again = add_visual_dependence(data, model, processor, counting, **shared)
    assert sum(calls) == len(data) - 4
    plain = add_visual_dependence(data, model, processor, whole, batch_size=2)
    assert again["reference_losses"][:] == plain["reference_losses"][:]


def killed(collator, batch, calls):
    if sum(calls) >= 4:
        raise RuntimeError("killed")
    return collator(batch)
