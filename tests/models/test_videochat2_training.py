"""VideoChat2 under the gate and under LoRA: elision, the trainer, what moves, what is saved."""

from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from peft import PeftModel
from transformers import Trainer, TrainingArguments

from regate import Elision, ReGateTrainer, add_reference_losses
from regate.accounting import read_steps
from regate.models.videochat2 import add_lora
from regate.scoring import IGNORE, shift_labels
from tests.core.experiment import LENGTHS, TinyCollator, arguments, losses, weights
from tests.core.literal import literal_elision
from tests.core.test_elision import assert_same, gate_of, run
from tests.core.test_trainer import StopAt, bits
from tests.models.tiny_videochat2 import tiny_videochat2, videochat2_rows
from tests.tiny import tiny_collate


def tuned(model: Any) -> Any:
    """LoRA as published, smaller, without dropout, and with matrices that do something from the start."""
    model = add_lora(model, r=4, alpha=8, dropout=0.0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


def data_of(processor: Any) -> tuple[datasets.Dataset, list[dict]]:
    rows = videochat2_rows(processor, LENGTHS)
    columns = {name: [row[name].tolist() for row in rows] for name in ("input_ids", "labels")}
    return datasets.Dataset.from_dict({**columns, "index": list(range(len(rows)))}), rows


def gated(output_dir: Path, *, side: str = "right", lora: bool = False, **kwargs: Any) -> ReGateTrainer:
    model, processor = tiny_videochat2()
    data, rows = data_of(processor)
    data = add_reference_losses(data, model, processor)
    model = tuned(model) if lora else model
    collator = TinyCollator("videochat2", processor, rows, side)
    return ReGateTrainer(model, arguments(output_dir, **kwargs), collator, data, processing_class=processor)


def stock(output_dir: Path, *, side: str = "right", lora: bool = False, **kwargs: Any) -> Trainer:
    model, processor = tiny_videochat2()
    data, rows = data_of(processor)
    model = tuned(model) if lora else model
    collator = TinyCollator("videochat2", processor, rows, side)
    return Trainer(model, arguments(output_dir, TrainingArguments, **kwargs), collator, data)


class TestElision:
    @pytest.mark.parametrize("lora", [False, True])
    @pytest.mark.parametrize("attention", ["sdpa", "eager"])
    @pytest.mark.parametrize("side", ["right", "left"])
    def test_fast_path_equals_literal_algorithm_1(self, attention, side, lora):
        model, processor = tiny_videochat2(attn_implementation=attention)
        model = tuned(model) if lora else model
        batch = tiny_collate(processor, videochat2_rows(processor, [5, 12, 9]), side)
        active, kept = gate_of(batch)
        assert (batch["attention_mask"].bool() & ~active).sum() >= 8
        with literal_elision(model.get_decoder(), active):
            theirs = run(model, batch, kept)
        with Elision(model)(active, kept):
            ours = run(model, batch, kept)
        assert_same(ours, theirs)
        if lora:
            assert {n for n, p in model.named_parameters() if p.requires_grad} == ours[2].keys()

    def test_under_checkpointing(self):
        model, processor = tiny_videochat2()
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        batch = tiny_collate(processor, videochat2_rows(processor, [5, 12, 9]))
        active, kept = gate_of(batch)
        with literal_elision(model.get_decoder(), active):
            theirs = run(model, batch, kept)
        with Elision(model)(active, kept):
            ours = run(model, batch, kept)
        assert_same(ours, theirs)

    def test_dense_steps_compute_logits_at_predictors_only(self):
        model, processor = tiny_videochat2()
        batch = tiny_collate(processor, videochat2_rows(processor, [5, 3]))
        kept = shift_labels(batch["labels"]) != IGNORE
        theirs = run(model, batch, kept)
        with Elision(model)(None, kept):
            ours = run(model, batch, kept)
        assert ours[0].shape[0] == kept.sum()
        assert_same(ours, theirs)

    def test_only_kept_targets_make_gradients(self):
        """Elided answers may be any text: neither loss nor gradients change."""
        model, processor = tiny_videochat2()
        model = tuned(model)
        batch = tiny_collate(processor, videochat2_rows(processor, [9, 12]))
        active, kept = gate_of(batch)
        elided = batch["attention_mask"].bool() & ~active
        elision = Elision(model)
        with elision(active, kept):
            before = run(model, batch, kept)
        batch["input_ids"] = torch.where(elided, (batch["input_ids"] + 7) % 380, batch["input_ids"])
        with elision(active, kept):
            after = run(model, batch, kept)
        assert elided.any()
        assert torch.equal(before[0], after[0])
        assert all(torch.equal(after[2][name], gradient) for name, gradient in before[2].items())


class TestTrainer:
    @pytest.mark.parametrize("lora", [False, True])
    def test_ratio_1_equals_the_stock_trainer(self, lora, tmp_path):
        options = {"max_steps": 12, "lora": lora, "gradient_accumulation_steps": 2}
        theirs = stock(tmp_path / "stock", **options)
        ours = gated(tmp_path / "ours", keep_ratio=1.0, **options)
        theirs.train()
        ours.train()
        assert len(losses(ours)) == 12
        assert losses(ours) == pytest.approx(losses(theirs), rel=2e-5)

    def test_frozen_weights_keep_their_bits(self, tmp_path):
        trainer = gated(tmp_path, lora=True)
        start = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
        trainer.train()
        moved = {n for n, p in trainer.model.named_parameters() if not torch.equal(p, start[n])}
        trainable = {n for n, p in trainer.model.named_parameters() if p.requires_grad}
        assert moved <= trainable
        assert not any("modules_to_save" not in n and ".lora_" not in n for n in moved)
        for part in ("vision_tower", "qformer", "queries", "multi_modal_projector", "lm_head", "q_proj", "down_proj"):
            assert any(f"{part}." in n for n in moved), part
        steps = read_steps(tmp_path / "steps.jsonl")
        assert any(s["ratio"] < 1 for s in steps)
        assert all(s["tokens"]["visual"] in (8, 16) for s in steps)

    @pytest.mark.parametrize("lora", [False, True])
    def test_resume_is_bit_exact(self, lora, tmp_path):
        options = {"max_steps": 7, "save_strategy": "steps", "save_steps": 3, "lora": lora}
        whole = gated(tmp_path / "whole", **options)
        whole.train()
        first = gated(tmp_path / "parts", **options)
        first.add_callback(StopAt(5))
        first.train()
        second = gated(tmp_path / "parts", **options)
        second.train(resume_from_checkpoint=True)
        assert second.state.global_step == 7
        for name, weight in weights(whole).items():
            assert torch.equal(weights(second)[name], weight), name
        assert torch.equal(bits(second.buffer.ema), bits(whole.buffer.ema))

    def test_the_teacher_is_the_backbone_whatever_the_adapter(self, tmp_path):
        """Its losses are those of the language model alone, with its own embedding of the BOS token."""
        model, processor = tiny_videochat2()
        data, rows = data_of(processor)
        scored = add_reference_losses(data, model, processor)
        row = rows[2]  # text only: nothing is left out
        states = model.get_decoder()(input_ids=row["input_ids"][None]).last_hidden_state
        logits = model.lm_head(states)[0]
        expected = torch.nn.functional.cross_entropy(logits[:-1], row["labels"][1:], reduction="none")
        expected = expected[row["labels"][1:] != IGNORE].tolist()
        assert scored[2]["reference_losses"] == pytest.approx(expected, rel=1e-3)  # kept in half precision
        again = add_reference_losses(data, tuned(model), processor)
        assert again["reference_losses"][:] == scored["reference_losses"][:]
        assert again["reference_id"][:] == scored["reference_id"][:]


class TestAdapter:
    def test_round_trip_and_merging(self, tmp_path):
        model, processor = tiny_videochat2()
        batch = tiny_collate(processor, videochat2_rows(processor, [5, 12, 9]))
        untouched = model(**batch).loss.item()
        model = tuned(model)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "modules_to_save" in name:
                    parameter.add_(0.01)
        trained = model.eval()(**batch).logits
        assert abs(model(**batch).loss.item() - untouched) > 1e-4
        model.save_pretrained(tmp_path)
        again = PeftModel.from_pretrained(tiny_videochat2()[0], tmp_path).eval()
        assert torch.equal(again(**batch).logits, trained)
        merged = again.merge_and_unload()
        torch.testing.assert_close(merged(**batch).logits, trained, rtol=1e-4, atol=1e-5)
        merged.save_pretrained(tmp_path / "merged")
        whole, info = type(merged).from_pretrained(tmp_path / "merged", output_loading_info=True)
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        assert torch.equal(whole.eval()(**batch).logits, merged(**batch).logits)

    def test_generates(self):
        model, processor = tiny_videochat2()
        model = tuned(model).eval()
        batch = tiny_collate(processor, videochat2_rows(processor, [1, 1, 1]), "left")
        del batch["labels"]
        assert model.generate(**batch, max_new_tokens=3).shape[1] == batch["input_ids"].shape[1] + 3

    def test_checkpointing_reaches_the_tower_that_trains(self):
        model, processor = tiny_videochat2()
        model = tuned(model)
        model.base_model.model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        calls = []
        tower = model.base_model.model.model.vision_tower
        tower.blocks[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
        model(**tiny_collate(processor, videochat2_rows(processor, [5]))).loss.backward()
        assert len(calls) == 2
        assert tower.blocks[0].mlp.fc1.weight.grad is not None

    def test_fewer_targets_and_unknown_ones(self):
        model = add_lora(tiny_videochat2()[0], targets=("q_proj",))
        assert sum(".lora_" in n for n, _ in model.named_parameters()) == 2 * 2
        head = add_lora(tiny_videochat2()[0], targets=("lm_head",))
        assert [n for n, _ in head.named_parameters() if ".lora_A." in n] == [
            "base_model.model.lm_head.lora_A.default.weight"
        ]
        with pytest.raises(ValueError, match="targets: found qkv, expected layers of the language model"):
            add_lora(tiny_videochat2()[0], targets=("q_proj", "qkv"))
