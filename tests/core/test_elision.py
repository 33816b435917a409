"""The fast path equals a literal per-layer Algorithm 1, on stock classes; what it does not understand it refuses."""

import pytest
import torch
import transformers

from regate import Elision, UnsupportedModel
from regate.compaction import Padded
from regate.scoring import IGNORE, active_positions, shift_labels
from tests.core.literal import literal_elision
from tests.tiny import tiny_batch, tiny_model


def gate_of(batch: dict, seed: int = 0, active_set: str = "predictors"):
    """A random half of the targets kept: (active, kept) of a batch."""
    labels, attended = batch["labels"], batch["attention_mask"].bool()
    target = shift_labels(labels) != IGNORE
    generator = torch.Generator().manual_seed(seed)
    kept = target & (torch.rand(target.shape, generator=generator) < 0.5)
    kept[:, -2] |= target[:, -2]
    active = active_positions(labels, attended, torch.zeros_like(attended), kept, active_set)
    return active, kept


def run(model, batch: dict, kept: torch.Tensor):
    """Logits [N, V] at predictors, loss, and every gradient."""
    model.zero_grad()
    inputs = {k: v for k, v in batch.items() if k != "labels"}
    logits = model(**inputs).logits
    logits = logits if logits.ndim == 2 else logits[kept]
    loss = torch.nn.functional.cross_entropy(logits.float(), shift_labels(batch["labels"])[kept])
    loss.backward()
    return logits.detach(), loss.item(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_same(ours, theirs):
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-5, atol=1e-5)
    assert ours[1] == pytest.approx(theirs[1], rel=1e-5)
    assert ours[2].keys() == theirs[2].keys()
    scale = max(g.abs().max().item() for g in theirs[2].values())
    for name, gradient in theirs[2].items():
        torch.testing.assert_close(ours[2][name], gradient, rtol=1e-5, atol=1e-5 * scale, msg=name)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_fast_path_equals_literal_algorithm_1(kind, attention, side, checkpointing):
    model, processor = tiny_model(kind, attn_implementation=attention)
    if checkpointing:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    batch = tiny_batch(kind, processor, lengths=[5, 12, 9], padding_side=side)
    active, kept = gate_of(batch)
    assert (batch["attention_mask"].bool() & ~active).sum() >= 8  # something is elided
    with literal_elision(model.get_decoder(), active):
        theirs = run(model, batch, kept)
    elision = Elision(model)
    with elision(active, kept):
        ours = run(model, batch, kept)
    assert_same(ours, theirs)


@pytest.mark.parametrize("active_set", ["predictors+kept", "kept-passthrough", "kept-unsupervised"])
def test_other_active_sets_equal_literal_algorithm_1(kind, active_set):
    model, processor = tiny_model(kind)
    batch = tiny_batch(kind, processor, lengths=[7, 12, 4])
    active, kept = gate_of(batch, active_set=active_set)
    supervised = kept & active if active_set == "kept-unsupervised" else kept
    # The twin passes elided embeddings through every layer and then through the final norm: variant (a).
    with literal_elision(model.get_decoder(), active):
        theirs = run(model, batch, supervised)
    with Elision(model)(active, supervised, passthrough=active_set == "kept-passthrough"):
        ours = run(model, batch, supervised)
    assert_same(ours, theirs)


def test_unarmed_hooks_change_nothing_and_removed_hooks_are_gone(kind):
    model, processor = tiny_model(kind)
    batch = tiny_batch(kind, processor, lengths=[5, 3])
    before = model(**batch).logits
    elision = Elision(model)
    torch.testing.assert_close(model(**batch).logits, before, rtol=0, atol=0)
    elision.remove()
    assert not model.get_decoder()._forward_pre_hooks
    Elision(model)


def test_dense_step_computes_logits_only_at_predictors(kind):
    model, processor = tiny_model(kind)
    batch = tiny_batch(kind, processor, lengths=[5, 3])
    kept = shift_labels(batch["labels"]) != IGNORE
    theirs = run(model, batch, kept)
    with Elision(model)(None, kept):
        ours = run(model, batch, kept)
    assert ours[0].shape == (kept.sum(), theirs[0].shape[-1])
    assert_same(ours, theirs)


def test_gaps_in_positions_without_a_mask_are_taken_for_packing():
    """T1's canary: why the compacted sequence always carries a mask."""
    model, _ = tiny_model("internvl")
    decoder = model.get_decoder().eval()
    embeds, positions = torch.randn(1, 4, 32), torch.tensor([[0, 1, 4, 5]])
    with torch.no_grad():
        unmasked = decoder(inputs_embeds=embeds, position_ids=positions, use_cache=False)[0]
        masked = decoder(
            inputs_embeds=embeds, position_ids=positions, use_cache=False, attention_mask=torch.ones(1, 4)
        )[0]
    assert (unmasked[:, 2:] - masked[:, 2:]).abs().max() > 1e-3


def test_no_cache_is_built_while_gated(kind):
    """T2: text configurations keep use_cache=True in training."""
    model, processor = tiny_model(kind)
    model.get_decoder().config.use_cache = True
    batch = tiny_batch(kind, processor, lengths=[6, 6])
    active, kept = gate_of(batch)
    inputs = {k: v for k, v in batch.items() if k != "labels"}
    with Elision(model)(active, kept):
        assert model(**inputs, use_cache=True).past_key_values is None


def test_multimodal_rope_needs_its_positions():
    """T3: a decoder with multimodal RoPE takes plain positions without a word."""
    model, processor = tiny_model("qwen2_vl")
    batch = tiny_batch("qwen2_vl", processor, lengths=[6, 6])
    active, kept = gate_of(batch)
    inputs = {k: v for k, v in batch.items() if k != "labels"}
    plain = torch.arange(kept.shape[1]).expand(kept.shape)
    with (
        pytest.raises(UnsupportedModel, match="mm_token_type_ids"),
        Elision(model)(active, kept, expects_multimodal_rope=True),
    ):
        model(**inputs, position_ids=plain)


def test_unknown_per_position_input_is_refused_by_name():
    """T4."""
    model, processor = tiny_model("internvl")
    batch = tiny_batch("internvl", processor, lengths=[6, 6])
    active, kept = gate_of(batch)
    inputs = {k: v for k, v in batch.items() if k != "labels"}
    with pytest.raises(UnsupportedModel, match="token_weights"), Elision(model)(active, kept):
        model(**inputs, token_weights=torch.ones(2, 3))


def llama(**config) -> transformers.LlamaForCausalLM:
    torch.manual_seed(0)
    defaults = {
        "vocab_size": 50,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "pad_token_id": 0,
    }
    kind = config.pop("kind", "Llama")
    model = getattr(transformers, f"{kind}ForCausalLM")(getattr(transformers, f"{kind}Config")(**defaults | config))
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1:
                p.normal_(0, 0.1)
    return model


def text_batch(rows: int = 2, length: int = 24):
    generator = torch.Generator().manual_seed(1)
    input_ids = torch.randint(1, 50, (rows, length), generator=generator)
    labels = input_ids.clone()
    labels[:, : length // 3] = IGNORE
    return {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), "labels": labels}


@pytest.mark.parametrize("kind", ["Mistral", "Gemma3", "Qwen3"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_sliding_windows_count_original_positions(kind, attention):
    """T6: equal to dropping keys from the window of the full sequence (dense run with the window and active keys)."""
    window = 6
    extra = {
        "Mistral": {},
        "Gemma3": {"layer_types": ["sliding_attention", "full_attention"], "head_dim": 8},
        "Qwen3": {"layer_types": ["sliding_attention", "full_attention"], "use_sliding_window": True, "head_dim": 8},
    }[kind]
    name = "Gemma3" if kind == "Gemma3" else kind
    if name == "Gemma3":
        config = transformers.Gemma3TextConfig(
            vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, sliding_window=window, attn_implementation=attention, **extra,
        )  # fmt: skip
        torch.manual_seed(0)
        model = transformers.Gemma3ForCausalLM(config)
    else:
        model = llama(kind=name, sliding_window=window, attn_implementation=attention, **extra)
    batch = text_batch()
    active, _ = gate_of(batch)
    length = active.shape[1]
    steps = torch.arange(length)
    allowed = (steps[:, None] >= steps) & active[:, None, :] | torch.eye(length, dtype=torch.bool)
    near = allowed & (steps[:, None] - steps < window)
    fill = lambda m: torch.zeros(m.shape).masked_fill(~m, torch.finfo(torch.float32).min)[:, None]  # noqa: E731
    masks = fill(near) if kind == "Mistral" else {"sliding_attention": fill(near), "full_attention": fill(allowed)}
    theirs = model.get_decoder()(input_ids=batch["input_ids"], attention_mask=masks, use_cache=False)[0]
    with Elision(model)(active):
        ours = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    theirs = model.get_output_embeddings()(theirs)
    if getattr(model.config, "final_logit_softcapping", None) is None:
        torch.testing.assert_close(ours.logits[active], theirs[active], rtol=1e-5, atol=1e-5)


def test_prebuilt_4d_masks_are_gathered():
    """T5, for bool and additive masks, one row broadcast over the batch too."""
    model = llama()
    batch = text_batch()
    active, _ = gate_of(batch)
    length = active.shape[1]
    blocked = torch.ones(length, length, dtype=torch.bool).tril()
    blocked[5:, 2] = False  # nobody from 5 on sees 2
    reference = blocked & active[:, None, :] | torch.eye(length, dtype=torch.bool)
    theirs = model(input_ids=batch["input_ids"], attention_mask=reference[:, None]).logits
    elision = Elision(model)
    with elision(active):
        ours = model(input_ids=batch["input_ids"], attention_mask=blocked[None, None].expand(2, 1, -1, -1)).logits
    torch.testing.assert_close(ours[active], theirs[active], rtol=1e-5, atol=1e-5)
    additive = torch.zeros(1, 1, length, length).masked_fill(~blocked, torch.finfo(torch.float32).min)
    with elision(active):
        ours = model(input_ids=batch["input_ids"], attention_mask=additive).logits
    torch.testing.assert_close(ours[active], theirs[active], rtol=1e-5, atol=1e-5)


def test_compaction_pads_at_the_right_and_scatters_back():
    active = torch.tensor([[1, 0, 1, 1], [0, 1, 0, 0]], dtype=torch.bool)
    padded = Padded.of(active)
    assert padded.index.tolist() == [[0, 2, 3], [1, 1, 1]]
    assert padded.real.tolist() == [[True, True, True], [True, False, False]]
    values = torch.arange(8.0).view(2, 4, 1)
    back = padded.scatter(padded.gather(values), torch.full_like(values, -1))
    assert back.flatten().tolist() == [0, -1, 2, 3, -1, 5, -1, -1]
    with pytest.raises(ValueError, match=r"rows \[0\] have no active position"):
        Padded.of(torch.tensor([[False, False], [True, False]]))


class TestRefusals:
    """A model it would get wrong is refused by name."""

    def test_gated_already(self):
        model = llama()
        Elision(model)
        with pytest.raises(UnsupportedModel, match="LlamaForCausalLM is gated already"):
            Elision(model)

    def test_no_inner_decoder(self):
        with pytest.raises(UnsupportedModel, match="LlamaModel"):
            Elision(llama().model)
        with pytest.raises(UnsupportedModel, match="Linear"):
            Elision(torch.nn.Linear(2, 2))

    def test_encoder_decoder(self):
        config = transformers.T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
        with pytest.raises(UnsupportedModel, match="T5ForConditionalGeneration"):
            Elision(transformers.T5ForConditionalGeneration(config))

    def test_encoder(self):
        config = transformers.BertConfig(
            vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
        )
        with pytest.raises(UnsupportedModel, match="BertForMaskedLM"):
            Elision(transformers.BertForMaskedLM(config))

    @pytest.mark.parametrize("kind", ["Lfm2", "Jamba", "Qwen3Next", "Mamba"])
    def test_hybrid_layers(self, kind):
        """T20: their layers look at neighbouring slots."""
        with torch.device("meta"):
            config = getattr(transformers, f"{kind}Config")(**{"full_attn_idxs": [1]} if kind == "Lfm2" else {})
            config.num_hidden_layers = 4
            model = getattr(transformers, f"{kind}ForCausalLM")(config)
        with pytest.raises(UnsupportedModel, match=f"{kind}Model"):
            Elision(model)

    def test_router_losses(self):
        """T21."""
        with torch.device("meta"):
            config = transformers.MixtralConfig(num_hidden_layers=1, output_router_logits=True)
            model = transformers.MixtralForCausalLM(config)
        with pytest.raises(UnsupportedModel, match="output_router_logits"):
            Elision(model)

    def test_hidden_states_while_elided(self):
        model, batch = llama(), text_batch()
        active, kept = gate_of(batch)
        with pytest.raises(UnsupportedModel, match="output_hidden_states"), Elision(model)(active, kept):
            model(input_ids=batch["input_ids"], output_hidden_states=True)

    def test_filled_cache(self):
        model, batch = llama(), text_batch()
        active, kept = gate_of(batch)
        cache = model(input_ids=batch["input_ids"], use_cache=True).past_key_values
        with pytest.raises(UnsupportedModel, match="KV cache"), Elision(model)(active, kept):
            model(input_ids=batch["input_ids"], past_key_values=cache)

    def test_head_that_is_not_called(self):
        model, batch = llama(), text_batch()
        active, kept = gate_of(batch)
        with pytest.raises(UnsupportedModel, match="did not call the head"), Elision(model)(active, kept):
            model.model(inputs_embeds=model.get_input_embeddings()(batch["input_ids"]))

    def test_sequence_of_another_shape(self):
        model, batch = llama(), text_batch()
        active, kept = gate_of(batch)
        with pytest.raises(UnsupportedModel, match="the gate was made for"), Elision(model)(active, kept):
            model(input_ids=batch["input_ids"][:, :-1])
