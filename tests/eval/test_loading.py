"""Checkpoints of every kind load whole or not at all, and their fingerprint is that of their answers."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from regate.answering import option_scores
from regate.integrations.checkpoint import fingerprint
from regate.integrations.loading import load_checkpoint
from tests.eval.test_answering import questions
from tests.tiny import tiny_model


@pytest.fixture
def saved(tmp_path):
    """A tiny model in a folder, and what it scores."""
    model, processor = tiny_model("internvl")
    path = tmp_path / "full"
    model.save_pretrained(path)
    processor.save_pretrained(path)
    return path, model, processor


def asked():
    import numpy as np

    return questions(np.random.default_rng(0))


def test_loads_what_was_saved(saved):
    path, model, processor = saved
    loaded, its = load_checkpoint(str(path), dtype="float32", attn_implementation="eager")
    assert not loaded.training
    assert loaded.config._attn_implementation == "eager"
    for a, b in zip(option_scores(model, processor, asked()), option_scores(loaded, its, asked()), strict=True):
        assert a == pytest.approx(b, rel=1e-5)


def test_an_adapter_loads_on_its_base(saved, tmp_path):
    path, model, processor = saved
    with torch.random.fork_rng():
        torch.manual_seed(0)
        wrapped = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    expected = option_scores(wrapped, processor, asked())
    adapter = tmp_path / "adapter"
    wrapped.save_pretrained(adapter)
    for base in (str(path), None):
        if base is None:  # the adapter names it
            config = json.loads((adapter / "adapter_config.json").read_text())
            (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": str(path)}))
        loaded, its = load_checkpoint(str(adapter), base)
        for a, b in zip(expected, option_scores(loaded, its, asked()), strict=True):
            assert a == pytest.approx(b, rel=1e-5)
    before = fingerprint(str(adapter))
    assert before == fingerprint(str(adapter), str(path))
    (path / "generation_config.json").write_text("{}")
    assert fingerprint(str(adapter)) != before  # its base changed

    weights = load_file(adapter / "adapter_model.safetensors")
    save_file(dict(list(weights.items())[1:]), adapter / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="does not hold all weights of its adapter"):
        load_checkpoint(str(adapter))


def test_missing_weights_are_no_random_ones(saved):
    path, *_ = saved
    weights = load_file(path / "model.safetensors")
    gone = sorted(weights)[0]
    save_file({k: v for k, v in weights.items() if k != gone}, path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"does not hold the weights of InternVL.*missing_keys"):
        load_checkpoint(str(path))


def test_wrong_arguments_are_named(saved):
    path, *_ = saved
    with pytest.raises(ValueError, match="is no adapter"):
        load_checkpoint(str(path), base="other")
    with pytest.raises(ValueError, match="dtype is 'int4'"):
        load_checkpoint(str(path), dtype="int4")


def test_a_fingerprint_is_that_of_what_answers(saved):
    path, *_ = saved
    before = fingerprint(str(path))
    (path / "trainer_state.json").write_text("{}")
    (path / "optimizer.pt").write_bytes(b"0")
    assert fingerprint(str(path)) == before
    for name in ("chat_template.jinja", "model.safetensors", "tokenizer.json"):
        data = bytearray((path / name).read_bytes())
        data[-1] ^= 1
        (path / name).write_bytes(data)
        assert fingerprint(str(path)) != before, name
        before = fingerprint(str(path))
