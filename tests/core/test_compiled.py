"""T13: the decoder alone is compiled, once for many lengths, and computes what it computed before."""

import functools

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from regate import Elision
from regate.paths.select import Paths
from regate.scoring import shift_labels
from tests.core.experiment import experiment, losses
from tests.core.flash import FLASH, flash_calls  # noqa: F401 - a fixture
from tests.core.test_elision import assert_same, gate_of
from tests.tiny import tiny_batch, tiny_model


@pytest.fixture
def counter(monkeypatch):
    """Compiles by tracing forward and backward, without generating code; counts the graphs."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=counter))
    yield counter
    torch._dynamo.reset()


def run(model, elision, batch):
    model.zero_grad()
    active, kept = gate_of(batch)
    inputs = {k: v for k, v in batch.items() if k != "labels"}
    with elision(active, kept, shift_labels(batch["labels"])[kept]) as step:
        outputs = model(**inputs)
    found = step.losses(outputs)
    found.sum().backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return found.detach(), found.sum().item(), gradients


def test_compiled_decoder_equals_eager_and_compiles_once_for_many_lengths(counter):
    model, processor = tiny_model("qwen2_vl", layers=1)
    batches = [tiny_batch("qwen2_vl", processor, [4 + n, 9, 13 - n], seed=n) for n in range(6)]
    eager = Elision(model, Paths())
    theirs = [run(model, eager, batch) for batch in batches]
    eager.remove()
    elision = Elision(model, Paths(compiled=True))
    graphs = []
    for batch, expected in zip(batches, theirs, strict=True):
        assert_same(run(model, elision, batch), expected)
        graphs.append(counter.frame_count)
    assert graphs[0] >= 1
    assert graphs[-1] == graphs[1]  # six lengths: none compiles anew after the second
    elision.remove()
    assert "forward" not in vars(model.get_decoder())


def test_compiled_on_packed_rows(counter, flash_calls):  # noqa: F811
    """The first pass proves that the lengths arrive, uncompiled; the others are compiled."""
    model, processor = tiny_model("internvl", layers=1)
    batches = [tiny_batch("internvl", processor, [4 + n, 9, 13 - 2 * n], seed=n) for n in range(5)]
    eager = Elision(model, Paths())
    theirs = [run(model, eager, batch) for batch in batches]
    eager.remove()
    model.get_decoder().config._attn_implementation = FLASH
    elision = Elision(model, Paths("packed", compiled=True))
    graphs = []
    for batch, expected in zip(batches, theirs, strict=True):
        assert_same(run(model, elision, batch), expected)
        graphs.append(counter.frame_count)
    assert graphs[0] == 0
    assert graphs[1] >= 1
    assert graphs[-1] == graphs[2]


def test_training_compiles_and_evaluation_does_not(counter, tmp_path):
    options = {"max_steps": 2, "optim": "sgd", "learning_rate": 0.05, "evaluate": True}
    theirs = experiment("internvl", tmp_path / "eager", **options)
    ours = experiment("internvl", tmp_path / "compiled", compile_decoder=True, **options)
    theirs.train()
    ours.train()
    graphs = counter.frame_count
    assert graphs >= 1
    assert losses(ours) == pytest.approx(losses(theirs), rel=2e-5)
    assert ours.evaluate()["eval_loss"] == pytest.approx(theirs.evaluate()["eval_loss"], rel=2e-5)
    assert counter.frame_count == graphs
