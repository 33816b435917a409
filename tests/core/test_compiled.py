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
def counter(request, monkeypatch):
    """Traces, runs what it traced, and counts the graphs: the backend is the parameter."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend(request.param)
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


def graphs_by_length(model, paths, batches, theirs, counter) -> list[int]:
    """Passes over batches of different lengths, each equal to the eager one: graphs compiled so far after each."""
    elision, graphs = Elision(model, paths), []
    for batch, expected in zip(batches, theirs, strict=True):
        found = run(model, elision, batch)
        if model.dtype == torch.float32:
            assert_same(found, expected)
        else:
            torch.testing.assert_close(found[0], expected[0], rtol=2e-2, atol=2e-2)
        graphs.append(counter.frame_count)
    elision.remove()
    assert "forward" not in vars(model.get_decoder())
    return graphs


@pytest.mark.parametrize("counter", ["aot_eager"], indirect=True)  # backward is traced, too
def test_padded_rows_compile_once_for_many_lengths(counter):
    model, processor = tiny_model("qwen2_vl", layers=1)
    batches = [tiny_batch("qwen2_vl", processor, [4 + n, 9, 13 - n], seed=n) for n in range(6)]
    eager = Elision(model, Paths())
    theirs = [run(model, eager, batch) for batch in batches]
    eager.remove()
    graphs = graphs_by_length(model, Paths(compiled=True), batches, theirs, counter)
    assert graphs[0] >= 1
    assert graphs == graphs[:1] * 6


@pytest.mark.parametrize("counter", ["eager"], indirect=True)
def test_packed_rows_are_one_graph_for_many_lengths(counter, flash_calls):  # noqa: F811
    """In half precision, as flash attention wants it. The first pass is not compiled: it proves the lengths (T10)."""
    model, processor = tiny_model("internvl", layers=1, dtype=torch.bfloat16)
    batches = [tiny_batch("internvl", processor, [4 + n, 9, 13 - 2 * n], seed=n) for n in range(5)]
    for batch in batches:
        batch["pixel_values"] = batch["pixel_values"].bfloat16()
    model.get_decoder().config._attn_implementation = FLASH
    eager = Elision(model, Paths("packed"))
    theirs = [run(model, eager, batch) for batch in batches]
    eager.remove()
    assert graphs_by_length(model, Paths("packed", compiled=True), batches, theirs, counter) == [0, 1, 1, 1, 1]


@pytest.mark.parametrize("counter", ["eager"], indirect=True)
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
