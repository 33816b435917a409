"""The teacher: compaction is exact, columns are resumable, and what does not belong is refused."""

import datasets
import numpy as np
import pytest
import torch
import transformers

from regate import add_reference_losses
from regate.reference import TextTeacher, length_batches, load_teacher, score_rows, weights_fingerprint
from regate.reference_column import check_reference
from regate.scoring import IGNORE, shift_labels
from regate.tokens import placeholder_token_ids
from tests.core.experiment import tiny_data, with_lora
from tests.tiny import tiny_model, tiny_rows


def full_length_losses(model, processor, row, attend: bool) -> torch.Tensor:
    """The literal teacher: full sequence, placeholders replaced by the pad token, masked or attended, all logits."""
    ids, labels = row["input_ids"][None], row["labels"][None]
    placeholder = torch.isin(ids, torch.tensor(sorted(placeholder_token_ids(processor, model.config))))
    pad = processor.tokenizer.pad_token_id
    mask = torch.ones_like(ids) if attend else (~placeholder).long()
    decoder = model.get_decoder()
    positions = torch.arange(ids.shape[1])[None]
    with torch.no_grad():
        hidden = decoder(
            input_ids=ids.masked_fill(placeholder, pad), attention_mask=mask, position_ids=positions, use_cache=False
        )[0]
        logits = model.get_output_embeddings()(hidden).float()
    shifted = shift_labels(labels)
    losses = torch.nn.functional.cross_entropy(logits[0], shifted[0].clamp(min=0), reduction="none")
    return losses[shifted[0] != IGNORE]


@pytest.mark.parametrize("attend", [False, True])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_compaction_equals_the_full_length_masked_forward(kind, attend, attention):
    model, processor = tiny_model(kind, attn_implementation=attention)
    rows = tiny_rows(kind, processor, [6, 11, 4, 9])
    teacher = load_teacher(model, processor, attend)
    ours = score_rows(teacher, [(r["input_ids"], r["labels"]) for r in rows], batch_tokens=200)
    for loss, row in zip(ours, rows, strict=True):
        theirs = full_length_losses(model.eval(), processor, row, attend)
        torch.testing.assert_close(loss, theirs, rtol=1e-5, atol=1e-5)


def test_pixels_do_not_reach_the_teacher(kind):
    model, processor = tiny_model(kind)
    one, two = (tiny_rows(kind, processor, [6, 6], seed=0) for _ in range(2))
    teacher = load_teacher(model, processor, attend_placeholders=False)
    losses = [score_rows(teacher, [(r["input_ids"], r["labels"]) for r in rows], 500) for rows in (one, two)]
    assert torch.equal(torch.cat(losses[0]), torch.cat(losses[1]))


def test_own_backbone_equals_the_same_weights_as_a_text_model():
    model, processor = tiny_model("internvl")
    text = transformers.Qwen2ForCausalLM(model.config.text_config)
    text.model.load_state_dict(model.get_decoder().state_dict())
    text.lm_head.load_state_dict(model.get_output_embeddings().state_dict())
    rows = [(r["input_ids"], r["labels"]) for r in tiny_rows("internvl", processor, [6, 11])]
    own, other = (load_teacher(m, processor, False) for m in (model, text))
    assert own.fingerprint() == other.fingerprint()
    torch.testing.assert_close(score_rows(own, rows, 500), score_rows(other, rows, 500))


def test_adapters_are_left_out_of_teacher_and_fingerprint():
    model, processor = tiny_model("internvl")
    rows = [(r["input_ids"], r["labels"]) for r in tiny_rows("internvl", processor, [6, 11])]
    plain = load_teacher(model, processor, False)
    before, name = score_rows(plain, rows, 500), plain.fingerprint()
    adapted = with_lora(model)
    with torch.no_grad():
        for n, p in adapted.named_parameters():
            if "lora_B" in n:
                p.fill_(1.0)
    teacher = load_teacher(adapted, processor, False)
    assert teacher.fingerprint() == name
    torch.testing.assert_close(score_rows(teacher, rows, 500), before)


def test_fingerprint_tells_weights_apart_but_not_dtypes():
    model, _ = tiny_model("internvl")
    other, _ = tiny_model("internvl", seed=1)
    name = weights_fingerprint(model.get_decoder())
    assert weights_fingerprint(other.get_decoder()) != name
    assert weights_fingerprint(model.bfloat16().get_decoder()) == name


def test_teacher_is_left_as_it_was():
    model, processor = tiny_model("internvl")
    model.train()
    score_rows(
        load_teacher(model, processor, False),
        [(r["input_ids"], r["labels"]) for r in tiny_rows("internvl", processor, [4])],
        100,
    )
    assert model.training
    assert all(p.requires_grad for p in model.parameters())


def test_length_batches_hold_every_row_once_within_the_budget():
    lengths = np.random.default_rng(0).integers(1, 60, 200).tolist()
    batches = length_batches(lengths, 128)
    assert sorted(i for b in batches for i in b) == list(range(200))
    assert all(len(b) == 1 or len(b) * max(lengths[i] for i in b) <= 128 for b in batches)


class TestColumns:
    def test_losses_are_aligned_and_said_of_whom(self):
        model, processor = tiny_model("internvl")
        data, rows = tiny_data("internvl", processor)
        scored = add_reference_losses(data, model, processor)
        assert scored["sample_id"][:] == list(range(8))
        for row, source in zip(scored, rows, strict=True):
            theirs = full_length_losses(model.eval(), processor, source, attend=False)
            assert row["reference_losses"] == pytest.approx(theirs.tolist(), rel=2e-3)
        name = TextTeacher.of(model).fingerprint()
        assert set(scored["reference_id"]) == {f"placeholders=masked;teacher={name}"}
        assert check_reference(scored, {"teacher": name}).tolist() == [6, 11, 4, 9, 13, 7, 5, 10]

    def test_scoring_twice_is_refused(self):
        model, processor = tiny_model("internvl")
        data, _ = tiny_data("internvl", processor)
        with pytest.raises(ValueError, match="has reference losses already"):
            add_reference_losses(add_reference_losses(data, model, processor), model, processor)

    def test_stopped_and_damaged_shards_are_made_again_and_whole_ones_are_not(self, tmp_path):
        model, processor = tiny_model("internvl")
        data, _ = tiny_data("internvl", processor)
        encoded: list[int] = []

        def encode(row):
            encoded.append(row["index"])
            if len(encoded) == 6 and not (tmp_path / "went on").exists():
                raise KeyboardInterrupt
            return {"input_ids": torch.tensor(row["input_ids"]), "labels": torch.tensor(row["labels"])}

        options = {"encode": encode, "cache_dir": tmp_path / "cache", "shard_rows": 2}
        with pytest.raises(KeyboardInterrupt):
            add_reference_losses(data, model, processor, **options)
        (tmp_path / "went on").touch()
        encoded.clear()
        whole = add_reference_losses(data, model, processor, **options)["reference_losses"][:]
        assert encoded == [4, 5, 6, 7]  # two shards of two were complete
        shard = sorted((tmp_path / "cache").rglob("*.arrow"))[1]
        shard.write_bytes(shard.read_bytes()[:100])
        encoded.clear()
        again = add_reference_losses(data, model, processor, **options)
        assert encoded == [2, 3]
        assert again["reference_losses"][:] == whole
        assert whole == add_reference_losses(data, model, processor)["reference_losses"][:]

    def test_a_sample_without_targets_is_named_or_skipped(self, caplog):
        model, processor = tiny_model("internvl")
        data, _ = tiny_data("internvl", processor)
        data = data.map(lambda r: {"labels": [-100] * len(r["labels"])} if r["index"] == 2 else {})
        with pytest.raises(ValueError, match="sample 2: no target"):
            add_reference_losses(data, model, processor)
        scored = add_reference_losses(data, model, processor, on_bad_sample="skip")
        assert scored["sample_id"][:] == [0, 1, 3, 4, 5, 6, 7]
        assert "left out: sample 2" in caplog.text
        assert [len(x) for x in scored["reference_losses"]] == [6, 11, 9, 13, 7, 5, 10]

    def test_teacher_with_another_tokenizer_is_refused(self, tmp_path):
        other, processor = tiny_model("internvl")
        data, _ = tiny_data("internvl", processor)
        other.save_pretrained(tmp_path)
        tokenizer = processor.tokenizer.train_new_from_iterator(["entirely other words"], 300)
        tokenizer.save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="has another tokenizer than the student: their vocabularies"):
            add_reference_losses(data, str(tmp_path), processor)
        config = transformers.Qwen2Config(
            vocab_size=100, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=2,
        )  # fmt: skip
        with pytest.raises(ValueError, match="knows 100 tokens"):
            add_reference_losses(data, transformers.Qwen2ForCausalLM(config), processor)
        assert isinstance(data, datasets.Dataset)
