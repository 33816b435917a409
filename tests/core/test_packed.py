"""The packed path equals the padded one: transformers' flash attention with a reference in the place of the kernel."""

import pytest
import torch
import transformers

from regate import Elision, UnsupportedModel
from regate.accounting import read_steps
from regate.compaction import Packed, Padded
from regate.paths.select import Paths
from regate.scoring import IGNORE, shift_labels
from tests.core import test_deepstack as deepstack
from tests.core.experiment import experiment, losses, with_lora
from tests.core.flash import FLASH, flash_calls  # noqa: F401 - a fixture
from tests.core.test_elision import assert_same, gate_of, llama, text_batch
from tests.models.tiny_videochat2 import tiny_videochat2, videochat2_rows
from tests.models.tiny_videollama2 import RELEASES, tiny_rows_batch, tiny_videollama2
from tests.tiny import tiny_batch, tiny_collate, tiny_model

pytestmark = pytest.mark.usefixtures("flash_calls")


def run(model, batch: dict, active, kept, attention: str, passthrough: bool = False):
    """Losses [N], their sum and every gradient of a pass; the decoder's attention becomes ``attention``."""
    model.zero_grad()
    model.get_decoder().config._attn_implementation = attention
    elision = Elision(model)
    inputs = {k: v for k, v in batch.items() if k != "labels"}
    with elision(active, kept, shift_labels(batch["labels"])[kept], passthrough=passthrough) as step:
        outputs = model(**inputs)
    elision.remove()
    found = step.losses(outputs)
    found.sum().backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return found.detach(), found.sum().item(), gradients


def assert_packed_equals_padded(model, batch, active, kept, dense: bool = False, passthrough: bool = False):
    theirs = run(model, batch, None if dense else active, kept, "sdpa", passthrough)
    assert_same(run(model, batch, active, kept, FLASH, passthrough), theirs)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("dense", [False, True])
def test_packed_equals_padded(kind, side, checkpointing, dense):
    model, processor = tiny_model(kind)
    if checkpointing:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    batch = tiny_batch(kind, processor, lengths=[5, 12, 9], padding_side=side)
    active, kept = gate_of(batch)
    active = batch["attention_mask"].bool() if dense else active
    assert_packed_equals_padded(model, batch, active, kept, dense)


def test_packed_equals_padded_under_lora(kind):
    model, processor = tiny_model(kind)
    model = with_lora(model)
    batch = tiny_batch(kind, processor, lengths=[5, 12, 9])
    assert_packed_equals_padded(model, batch, *gate_of(batch))


def test_packed_equals_padded_with_passed_through_embeddings(kind):
    model, processor = tiny_model(kind)
    batch = tiny_batch(kind, processor, lengths=[7, 12, 4])
    assert_packed_equals_padded(model, batch, *gate_of(batch, active_set="kept-passthrough"), passthrough=True)


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("side", ["right", "left"])
def test_packed_equals_padded_on_videollama2(release, side):
    model, processor = tiny_videollama2(release)
    batch = tiny_rows_batch(processor, [5, 12, 9], side)
    assert_packed_equals_padded(model, batch, *gate_of(batch))


@pytest.mark.parametrize("side", ["right", "left"])
def test_packed_equals_padded_on_videochat2(side):
    model, processor = tiny_videochat2()
    batch = tiny_collate(processor, videochat2_rows(processor, [5, 12, 9]), side)
    assert_packed_equals_padded(model, batch, *gate_of(batch))


def test_ragged_rows_and_a_row_of_one_token(kind):
    model, processor = tiny_model(kind)
    batch = tiny_batch(kind, processor, lengths=[2, 25, 9])
    active, kept = gate_of(batch)
    first = int(batch["labels"][2].ne(IGNORE).nonzero()[0]) - 1  # the predictor of the row's first target
    active[2], kept[2] = False, False
    active[2, first] = kept[2, first] = True
    assert active[2].sum() == 1
    assert_packed_equals_padded(model, batch, active, kept)


def test_packing_gathers_row_by_row_and_scatters_back():
    active = torch.tensor([[1, 0, 1, 1], [0, 1, 0, 0]], dtype=torch.bool)
    packed = Packed.of(active)
    assert packed.index.tolist() == [0, 2, 3, 5]
    assert packed.starts.tolist() == [0, 3, 4]
    assert packed.longest == 3
    values = torch.arange(8.0).view(2, 4, 1)
    assert packed.gather(values).flatten().tolist() == [0, 2, 3, 5]
    assert packed.gather_last(torch.arange(4)[None, None].expand(3, 1, 4)).tolist() == [[[0, 2, 3, 1]]] * 3
    back = packed.scatter(packed.gather(values), torch.full_like(values, -1))
    assert back.flatten().tolist() == [0, -1, 2, 3, -1, 5, -1, -1]
    assert torch.equal(back, Padded.of(active).scatter(Padded.of(active).gather(values), torch.full_like(values, -1)))
    with pytest.raises(ValueError, match=r"rows \[0\] have no active position"):
        Packed.of(torch.tensor([[False, False], [True, False]]))


def test_t1_gaps_in_positions_start_no_new_sample(flash_calls):  # noqa: F811
    """T1 on the packed path: positions jump where tokens are elided, yet each sample stays one."""
    model, batch = llama(), text_batch()
    active, kept = gate_of(batch)
    assert_packed_equals_padded(model, batch, active, kept)
    assert all(len(call["cu_seqlens_q"]) == 3 for call in flash_calls)


def test_t2_no_cache_is_built_while_packed():
    model, batch = llama(), text_batch()
    model.config.use_cache = True
    model.config._attn_implementation = FLASH
    active, kept = gate_of(batch)
    with Elision(model)(active, kept):
        assert model(input_ids=batch["input_ids"], use_cache=True).past_key_values is None


def test_t4_deepstack_features_stay_in_row_order():
    model = deepstack.TextModel()
    embeds, visual, features, positions, active = deepstack.inputs()
    full = {"inputs_embeds": embeds, "position_ids": positions, "visual_pos_masks": visual}
    full |= {"attention_mask": torch.ones(active.shape), "deepstack_visual_embeds": features}
    found = {}
    for attention in ("sdpa", FLASH):
        model.config._attn_implementation = attention
        elision = Elision(model)
        assert elision.paths.attention == {"sdpa": "padded", FLASH: "packed"}[attention]
        with elision(active):
            found[attention] = model(**full)[active]
        elision.remove()
    torch.testing.assert_close(found[FLASH], found["sdpa"], rtol=1e-5, atol=1e-5)


def test_t5_masks_of_queries_by_keys_are_refused():
    model, batch = llama(), text_batch()
    model.config._attn_implementation = FLASH
    active, kept = gate_of(batch)
    length = active.shape[1]
    square = torch.ones(1, 1, length, length, dtype=torch.bool).tril()
    with pytest.raises(UnsupportedModel, match="queries by keys"), Elision(model)(active, kept):
        model(input_ids=batch["input_ids"], attention_mask=square)


@pytest.mark.parametrize("kind", ["Mistral", "Qwen3"])
def test_t6_windows_that_count_slots(kind):
    """Refused where a row is longer than the window and has gaps; exact in dense steps and in shorter rows."""
    extra = {} if kind == "Mistral" else {"layer_types": ["sliding_attention", "full_attention"], "head_dim": 8}
    extra |= {} if kind == "Mistral" else {"use_sliding_window": True}
    model, batch = llama(kind=kind, sliding_window=6, **extra), text_batch()
    active, kept = gate_of(batch)
    everything = batch["attention_mask"].bool()
    assert_packed_equals_padded(model, batch, everything, kept, dense=True)
    for attention in ("auto", "padded"):
        model.config._attn_implementation = FLASH
        elision = Elision(model, Paths(attention="packed" if attention == "auto" else "padded"))
        with (
            pytest.raises(UnsupportedModel, match=r"sees windows of 6 positions, rows \[0, 1\]"),
            elision(active, kept),
        ):
            model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        elision.remove()
    short = torch.zeros_like(active)
    short[:, 7:13] = active[:, 7:13]  # six original positions
    assert (short.sum(1) < 6).any()  # with gaps
    assert_packed_equals_padded(model, batch, short, kept & short)


def test_t10_all_four_lengths_arrive_at_every_layer(kind, flash_calls):  # noqa: F811
    model, processor = tiny_model(kind)
    batch = tiny_batch(kind, processor, lengths=[5, 12, 9])
    active, kept = gate_of(batch)
    run(model, batch, active, kept, FLASH)
    assert len(flash_calls) == 2  # layers of the decoder: the vision tower, which takes the same names, is not packed
    count = active.sum(1)
    for call in flash_calls:
        assert call["cu_seqlens_q"].tolist() == call["cu_seqlens_k"].tolist() == [0, *count.cumsum(0).tolist()]
        assert call["max_seqlen_q"] == call["max_seqlen_k"] == int(count.max())
        assert type(call["max_seqlen_q"]) is int


def test_t10_transformers_guesses_without_one_of_them(flash_calls):  # noqa: F811
    """The canary: why all four are passed."""
    model, batch = llama(), text_batch()
    model.config._attn_implementation = FLASH
    packed = Packed.of(gate_of(batch)[0])
    inputs = {"input_ids": packed.gather(batch["input_ids"]), "position_ids": torch.arange(len(packed.index))[None]}
    lengths = {"cu_seq_lens_q": packed.starts, "cu_seq_lens_k": packed.starts, "max_length_q": packed.longest}
    decoder = model.get_decoder()
    whole = decoder(**inputs, **lengths, max_length_k=packed.longest, use_cache=False)[0]
    guessed = decoder(**inputs, **lengths, use_cache=False)[0]
    assert (whole[:, packed.starts[1] :] - guessed[:, packed.starts[1] :]).abs().max() > 1e-3
    assert len(flash_calls) == 2


def test_t10_a_decoder_that_drops_the_lengths_is_refused(monkeypatch):
    model, batch = llama(), text_batch()
    model.config._attn_implementation = FLASH
    active, kept = gate_of(batch)
    elision = Elision(model)
    layer = model.get_decoder().layers[1]
    whole = layer.forward

    def forgetful(*args, cu_seq_lens_k=None, **kwargs):
        return whole(*args, **kwargs)

    monkeypatch.setattr(layer, "forward", forgetful)
    with pytest.raises(UnsupportedModel, match="does not hand cu_seq_lens_k on"), elision(active, kept):
        model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])


def test_t11_attention_without_a_mask_function_is_refused():
    transformers.AttentionInterface.register("maskless", lambda *args, **kwargs: None)
    model = llama()
    model.config._attn_implementation = "maskless"
    with pytest.raises(UnsupportedModel, match=r"'maskless' has no mask function.*AttentionMaskInterface"):
        Elision(model)


@pytest.mark.parametrize("side", ["right", "left"])
def test_training_on_packed_rows_equals_training_on_padded_rows(kind, side, tmp_path, flash_calls):  # noqa: F811
    options = {"side": side, "max_steps": 5, "optim": "sgd", "learning_rate": 0.05}
    theirs = experiment(kind, tmp_path / "padded", **options)
    ours = experiment(kind, tmp_path / "packed", attention=FLASH, **options)
    assert [t.elision.paths.attention for t in (theirs, ours)] == ["padded", "packed"]
    assert theirs.buffer is not None
    flash_calls.clear()
    theirs.train()
    assert not flash_calls
    ours.train()
    assert len(flash_calls) == 5 * 2
    assert losses(ours) == pytest.approx(losses(theirs), rel=2e-5)
    torch.testing.assert_close(ours.buffer.ema, theirs.buffer.ema, rtol=2e-3, atol=2e-3, equal_nan=True)
    tokens = [[s["tokens"] for s in read_steps(tmp_path / d / "steps.jsonl")] for d in ("padded", "packed")]
    assert tokens[0] == tokens[1]
