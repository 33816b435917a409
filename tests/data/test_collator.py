"""Batches: what the models take, equal to what the processors make, with bad rows left out and told."""

import json
import logging
import pickle

import pytest
import torch
from torch.utils.data import DataLoader

from regate.conversations import load_conversations
from regate.data import ConversationCollator
from regate.media import read_image
from regate.turns import BadSample
from tests.media_files import write_conversations, write_image
from tests.tiny import tiny_model, tiny_processor


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("conversations")
    return load_conversations(write_conversations(folder), folder / "media").to_list()


@pytest.fixture
def bad_row(rows, tmp_path):
    path = tmp_path / "broken.mp4"
    path.write_bytes(b"")
    return rows[0] | {"id": "bad", "videos": [str(path)]}


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_mixed_batch_has_the_losses_of_its_samples(kind, rows, side):
    model, processor = tiny_model(kind)
    collate = ConversationCollator(processor, num_frames=2, padding_side=side)
    batch = collate(rows)
    assert collate.last_kept == list(range(6))
    assert collate.skipped == 0
    width = batch["input_ids"].shape[1]
    padding = batch["attention_mask"] == 0
    edge = padding[:, -1] if side == "right" else padding[:, 0]
    assert edge.any()
    assert not (padding[:, 0] if side == "right" else padding[:, -1]).any()
    assert (batch["input_ids"][padding] == processor.tokenizer.pad_token_id).all()
    assert (batch["labels"][padding] == -100).all()
    assert all(batch[k].shape == (6, width) for k in ("input_ids", "attention_mask", "labels"))
    single = [collate([row]) for row in rows]
    with torch.no_grad():
        logits = model(**batch).logits
        for i, one in enumerate(single):
            expected = model(**one).logits[0]
            assert torch.allclose(logits[i][~padding[i]], expected, atol=2e-4), rows[i]["id"]


def test_equal_to_the_processor_on_the_whole_batch(kind, rows):
    processor = tiny_processor(kind)
    batch_rows = [rows[2], rows[3], rows[4]]  # one image, two images, none
    texts, images = [], []
    for row in batch_rows:
        texts.append(processor.apply_chat_template(json.loads(row["messages"])))
        images.append([read_image(path) for path in row["images"]])
    batch = ConversationCollator(processor, padding_side="right")(batch_rows)
    expected = processor(text=texts, images=images, padding=True, padding_side="right", return_tensors="pt")
    for key, value in expected.items():
        if key in ("pixel_values", "pixel_attention_mask") and kind == "smolvlm":
            value = value[: len(batch[key])]  # it adds an empty picture for the row without one
        assert torch.equal(batch[key], value), key


def test_other_columns_are_ignored(kind, rows):
    processor = tiny_processor(kind)
    extra = {"sample_id": 3, "reference_losses": [0.5], "reference_id": "teacher=x", "note": None}
    plain = ConversationCollator(processor)(rows[:2])
    batch = ConversationCollator(processor)([row | extra for row in rows[:2]])
    assert batch.keys() == plain.keys()
    named_by_messages = [{k: row[k] for k in ("messages", "images", "videos")} for row in rows[:2]]
    assert ConversationCollator(processor)(named_by_messages).keys() == plain.keys()


def test_bad_rows_are_refused_or_left_out_and_told(kind, rows, bad_row, caplog):
    processor = tiny_processor(kind)
    with pytest.raises(BadSample, match=r"sample 'bad': .*an empty file"):
        ConversationCollator(processor)([rows[0], bad_row])
    collate = ConversationCollator(processor, on_bad_sample="skip")
    with caplog.at_level(logging.WARNING):
        batch = collate([bad_row, rows[4], bad_row, rows[2]])
    assert collate.last_kept == [1, 3]
    assert collate.skipped == 2
    assert "sample 'bad'" in caplog.text
    expected = ConversationCollator(processor)([rows[4], rows[2]])
    assert batch.keys() == expected.keys()
    assert all(torch.equal(batch[k], expected[k]) for k in batch)
    assert collate([rows[4]])["input_ids"].shape[0] == 1
    assert collate.last_kept == [0]
    with pytest.raises(BadSample, match=r"none of the 2 samples of a batch can be used; the first: .*bad") as error:
        collate([bad_row, bad_row])
    assert error.value.file == bad_row["videos"][0]
    assert collate.last_kept == []


def test_works_in_workers(rows, bad_row):
    collate = ConversationCollator(tiny_processor("internvl"), on_bad_sample="skip")
    again = pickle.loads(pickle.dumps(collate))
    assert torch.equal(again([rows[0]])["input_ids"], collate([rows[0]])["input_ids"])
    loader = DataLoader([*rows[:3], bad_row], batch_size=2, collate_fn=collate, num_workers=1)
    assert [len(batch["input_ids"]) for batch in loader] == [2, 1]
    loader = DataLoader([bad_row], collate_fn=ConversationCollator(tiny_processor("internvl")), num_workers=1)
    batches = iter(loader)
    with pytest.raises(BadSample, match="sample 'bad'"):
        next(batches)
    batches._shutdown_workers()  # the traceback keeps it alive


def test_pictures_with_different_numbers_of_tiles(tmp_path):
    model, processor = tiny_model("llava_onevision")
    names = [write_image(tmp_path / f"{w}x{h}.png", (w, h)) for w, h in ((32, 32), (64, 32), (20, 64))]
    rows = [
        {
            "messages": [
                {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]},
                {"role": "assistant", "content": [{"type": "text", "text": "Noise."}]},
            ],
            "images": [str(name)],
            "videos": [],
        }
        for name in names
    ]
    collate = ConversationCollator(processor)
    assert {len(collate([row])["pixel_values"][0]) for row in rows} == {2, 3}
    assert model(**collate(rows)).loss.isfinite()


def test_wrong_settings_are_named():
    processor = tiny_processor("internvl")
    with pytest.raises(ValueError, match="padding_side is 'middle'"):
        ConversationCollator(processor, padding_side="middle")
    with pytest.raises(ValueError, match="on_bad_sample is 'ignore'"):
        ConversationCollator(processor, on_bad_sample="ignore")
    processor.tokenizer.pad_token = None
    with pytest.raises(ValueError, match="no pad token"):
        ConversationCollator(processor)
