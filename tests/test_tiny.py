"""The tiny models are what other tests take them for: small, deterministic, trainable, and they survive a save."""

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.tiny import KINDS, tiny_batch, tiny_model


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_batch_trains_every_part(kind, side):
    model, processor = tiny_model(kind)
    batch = tiny_batch(kind, processor, [5, 9, 3], side)
    assert (batch["labels"] != -100).sum(dim=1).tolist() == [5, 9, 3]
    model(**batch).loss.backward()
    without = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0}
    assert all("post_layernorm" in name for name in without)  # LLaVA-OneVision takes an earlier layer
    assert sum(p.numel() for p in model.parameters()) < 150_000


def test_padding_sides_agree(kind):
    model, processor = tiny_model(kind)
    losses = [model(**tiny_batch(kind, processor, [5, 9, 3], side)).loss.item() for side in ("right", "left")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_same_seed_same_model_and_batch(kind):
    state = torch.get_rng_state()
    (a, processor), (b, again) = tiny_model(kind, seed=3), tiny_model(kind, seed=3, attn_implementation="eager")
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    first, second = tiny_batch(kind, processor, [4, 6], seed=1), tiny_batch(kind, again, [4, 6], seed=1)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert a(**first).loss.item() == pytest.approx(b(**first).loss.item(), rel=1e-5)


def test_survives_a_save(kind, tmp_path):
    model, processor = tiny_model(kind)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    model2 = AutoModelForImageTextToText.from_pretrained(tmp_path).train()
    processor2 = AutoProcessor.from_pretrained(tmp_path)
    assert type(model2) is type(model)
    assert type(processor2) is type(processor)
    loss = model2(**tiny_batch(kind, processor2, [4, 6])).loss
    assert loss.item() == model(**tiny_batch(kind, processor, [4, 6])).loss.item()


def test_unknown_kind_is_named():
    with pytest.raises(ValueError, match=f"'llava'.*{KINDS[0]}"):
        tiny_model("llava")
