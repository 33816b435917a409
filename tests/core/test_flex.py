"""The flex path: the block mask says what it should; forward agrees. The CPU has no backward pass for it."""

import pytest
import torch
from torch.nn.attention.flex_attention import create_mask

from regate import Elision, UnsupportedModel
from regate.compaction import Packed
from regate.paths.flex import attention_inputs, block_mask, sees
from regate.paths.select import Paths
from tests.core.test_elision import gate_of, llama, text_batch


@pytest.mark.parametrize("window", [None, 3])
def test_mask_is_causal_by_sample_and_windowed_by_original_position(window):
    active = torch.rand(3, 40, generator=torch.Generator().manual_seed(0)) < 0.6
    active[:, 0] = True
    layout = Packed.of(active)
    total = len(layout.index)
    sample, position = active.nonzero().T
    expected = (sample[:, None] == sample) & (position[:, None] >= position)
    if window:
        expected &= position[:, None] - position < window
    assert torch.equal(create_mask(sees(layout, window), 1, 1, total, total, device="cpu")[0, 0], expected)
    blocks = block_mask(layout, window)
    assert blocks.shape == (1, 1, total, total)
    assert torch.equal(create_mask(blocks.mask_mod, 1, 1, total, total, device="cpu")[0, 0], expected)


def test_each_kind_of_layer_gets_its_mask():
    active = torch.ones(2, 24, dtype=torch.bool)
    kinds = ["sliding_attention", "full_attention"]
    model = llama(kind="Qwen3", sliding_window=6, use_sliding_window=True, layer_types=kinds, head_dim=8)
    masks = attention_inputs(model.get_decoder(), {}, Packed.of(active))["attention_mask"]
    near, far = (create_mask(masks[k].mask_mod, 1, 1, 48, 48, device="cpu").sum() for k in kinds)
    assert near < far == 2 * 24 * 25 // 2


def test_forward_equals_the_padded_path():
    """A layer with a window, which flash attention would count in slots (T6), and one without."""
    window = {"sliding_window": 6, "use_sliding_window": True, "layer_types": ["sliding_attention", "full_attention"]}
    model, batch = llama(kind="Qwen3", hidden_size=64, head_dim=16, **window).eval(), text_batch()
    active, kept = gate_of(batch)
    found = {}
    for attention in ("sdpa", "flex_attention"):
        model.config._attn_implementation = attention
        elision = Elision(model)
        assert elision.paths == Paths({"sdpa": "padded", "flex_attention": "flex"}[attention], "chunked")
        with torch.no_grad(), elision(active, kept):
            found[attention] = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        elision.remove()
    torch.testing.assert_close(found["flex_attention"], found["sdpa"], rtol=1e-5, atol=1e-5)


def test_t12_torch_refuses_to_train_with_it_on_the_cpu():
    model, batch = llama(hidden_size=64, head_dim=16), text_batch()
    model.config._attn_implementation = "flex_attention"
    active, kept = gate_of(batch)
    with pytest.raises(Exception, match=r"(?i)backward on CPU|CPU"), Elision(model)(active, kept):
        model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.sum().backward()


def test_chunked_attention_is_refused():
    model = llama()
    model.config.attention_chunk_size = 8
    with pytest.raises(UnsupportedModel, match="chunks of 8 positions, shorter than the 24"):
        attention_inputs(model.get_decoder(), {}, Packed.of(torch.ones(2, 24, dtype=torch.bool)))
