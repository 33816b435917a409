"""Random-LTD: the schedule, who is dropped where, and equality with a literal layer-by-layer version."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from repro.rivals.random_ltd import RandomLTD, Schedule

FIXED = Schedule(start=6, steps=10**9, granularity=1)


def tiny(layers: int = 4) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32, num_hidden_layers=layers, num_attention_heads=2, num_key_value_heads=1, intermediate_size=48,
        vocab_size=50, use_cache=False,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def batch(rows: int = 3, length: int = 12):
    ids = torch.randint(3, 50, (rows, length), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@given(st.integers(1, 64), st.integers(1, 50), st.integers(1, 16), st.integers(1, 80))
def test_the_schedule_grows_to_everything(start, steps, granularity, length):
    schedule = Schedule(start, steps, granularity)
    kept = [schedule.kept(step, length) for step in range(steps + 2)]
    assert kept == sorted(kept)
    assert kept[0] == min(start, length)
    assert kept[steps] == length
    assert all(k in (length, start) or k % granularity == 0 for k in kept)


def test_a_schedule_that_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="start"):
        Schedule(start=0, steps=5)


def test_keeping_everything_changes_nothing():
    model, inputs = tiny(), batch()
    with torch.no_grad():
        plain = model(**inputs).logits
        random_ltd = RandomLTD(model)
        assert torch.equal(model(**inputs).logits, plain)  # not armed
        with random_ltd(Schedule(start=12, steps=9), step=0):
            assert torch.equal(model(**inputs).logits, plain)
        with random_ltd(FIXED, step=0):
            assert not torch.allclose(model(**inputs).logits, plain)
        random_ltd.remove()
        assert torch.equal(model(**inputs).logits, plain)


@pytest.mark.parametrize("padded", [False, True])
def test_equals_a_literal_version(padded):
    """Layer by layer: the kept positions attend to each other at their original positions, the others pass."""
    model, inputs = tiny(), batch()
    if padded:
        inputs["attention_mask"][0, 9:] = 0
        inputs["attention_mask"][1, 4:] = 0  # fewer tokens than are kept
    random_ltd = RandomLTD(model, seed=5)
    with torch.no_grad(), random_ltd(FIXED, step=7):
        found = model(**inputs).logits
        chosen = {layer: random_ltd.positions(layer, 3, 12, 6) for layer in (1, 2)}
    random_ltd.remove()
    decoder = model.model
    with torch.no_grad():
        for row in range(3):
            hidden = decoder.embed_tokens(inputs["input_ids"][row : row + 1])
            attended = inputs["attention_mask"][row].bool()
            for number, layer in enumerate(decoder.layers):
                at = chosen[number][row] if number in chosen else torch.arange(12)
                allowed = (at[:, None] >= at[None]) & (attended[at][None] | (at[:, None] == at[None]))
                mask = torch.zeros(len(at), len(at)).masked_fill(~allowed, torch.finfo(torch.float32).min)[None, None]
                part = hidden[:, at]
                out = layer(part, attention_mask=mask, position_embeddings=decoder.rotary_emb(part, at[None]))
                hidden = hidden.index_copy(1, at, out)
            expected = model.lm_head(decoder.norm(hidden))[0]
            torch.testing.assert_close(found[row][attended], expected[attended], rtol=1e-4, atol=1e-5)


def test_positions_are_seeded_by_step_micro_batch_and_layer_and_prefer_tokens():
    model, inputs = tiny(), batch()
    inputs["attention_mask"][:, 8:] = 0
    random_ltd = RandomLTD(model, seed=5)

    def drawn(step: int, layer: int, passes: int = 1) -> torch.Tensor:
        with torch.no_grad(), random_ltd(FIXED, step):
            for _ in range(passes):
                model(**inputs)
            return random_ltd.positions(layer, 3, 12, 6)

    first = drawn(0, 1)
    assert torch.equal(first, drawn(0, 1))
    for other in (drawn(1, 1), drawn(0, 2), drawn(0, 1, passes=2)):
        assert not torch.equal(first, other)
    assert (first < 8).all()
    assert (first.diff(dim=1) > 0).all()


def test_gradients_reach_kept_and_dropped_positions_also_with_checkpointing():
    grads = []
    for checkpointing in (False, True):
        model, inputs = tiny().train(), batch()
        if checkpointing:
            model.activation_checkpointing_enable()
        random_ltd = RandomLTD(model, seed=2)
        with random_ltd(FIXED, step=3):
            model(**inputs, labels=inputs["input_ids"]).loss.backward()
        grads.append([p.grad for p in model.parameters()])
    for plain, again in zip(*grads, strict=True):
        assert plain is not None
        torch.testing.assert_close(plain, again)
