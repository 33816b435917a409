"""Per-target losses without all logits equal those with them; heads that cannot, do not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers

from regate import Elision
from regate.paths import losses as heads
from regate.paths.select import Paths, select_paths
from regate.scoring import shift_labels
from tests.core.experiment import experiment, losses
from tests.core.test_elision import gate_of, llama, text_batch

ROOT = Path(__file__).resolve().parents[2]


def problem(bias: bool = False, rows: int = 23, dtype: torch.dtype = torch.float32):
    """hidden [N, D], a head, targets [N] and an upstream gradient [N]."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, 16, generator=generator).to(dtype).requires_grad_()
    head = torch.nn.Linear(16, 70, bias=bias).to(dtype)
    with torch.no_grad():
        for p in head.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    return hidden, head, torch.randint(0, 70, (rows,), generator=generator), torch.rand(rows, generator=generator)


def run(compute, hidden, head, targets, upstream):
    """Losses and gradients of hidden states and weights."""
    hidden.grad = None
    head.zero_grad()
    found = compute(hidden, head, targets)
    (found * upstream).sum().backward()
    wanted = [hidden, *head.parameters()]
    return [found.detach(), *(p.grad.clone() for p in wanted if p.grad is not None)]


def by_logits(hidden, head, targets):
    return heads.plain(head(hidden), targets)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, 8, 23, 200])
def test_chunked_equals_logits(bias, rows, monkeypatch):
    monkeypatch.setattr(heads, "LOGITS_AT_ONCE", 70 * 8)  # eight targets at once
    case = problem(bias, rows)
    for ours, theirs in zip(run(heads.chunked, *case), run(by_logits, *case), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6 * max(1.0, theirs.abs().max().item()))


@pytest.mark.parametrize("autocast", [False, True])
def test_chunked_losses_are_float32_in_half_precision(autocast, monkeypatch):
    monkeypatch.setattr(heads, "LOGITS_AT_ONCE", 70 * 8)
    case = problem(dtype=torch.float32 if autocast else torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        ours, theirs = run(heads.chunked, *case), run(by_logits, *case)
    assert ours[0].dtype == torch.float32
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-6, atol=1e-6)  # the same logits, rounded the same
    for a, b in zip(ours[1:], theirs[1:], strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-2 * b.abs().max().item())


def test_chunked_never_holds_all_logits(monkeypatch):
    monkeypatch.setattr(heads, "LOGITS_AT_ONCE", 70 * 8)
    sizes = []
    linear = torch.nn.functional.linear

    def counted(*args):
        out = linear(*args)
        sizes.append(out.numel())
        return out

    monkeypatch.setattr(torch.nn.functional, "linear", counted)
    run(heads.chunked, *problem(rows=50))
    assert max(sizes) <= 70 * 8
    assert sum(sizes) == 2 * 50 * 70  # once forward, once backward


def test_a_frozen_head_gets_no_gradient(monkeypatch):
    monkeypatch.setattr(heads, "LOGITS_AT_ONCE", 70 * 8)
    hidden, head, targets, upstream = problem()
    head.requires_grad_(False)
    ours, theirs = (run(f, hidden, head, targets, upstream) for f in (heads.chunked, by_logits))
    assert len(ours) == len(theirs) == 2
    torch.testing.assert_close(ours[1], theirs[1])


@pytest.mark.parametrize("path", ["chunked", "liger", "cce"])
def test_no_target_is_a_zero_on_the_graph(path):
    hidden, head, _, _ = problem()
    found = heads.fused(path, hidden[:0], head, torch.zeros(0, dtype=torch.long))
    assert found.shape == (0,)
    found.sum().backward()
    assert head.weight.grad.abs().max() == 0


@pytest.mark.parametrize("lora", [False, True])
def test_training_on_chunks_equals_training_on_logits(kind, lora, tmp_path, monkeypatch):
    options = {"max_steps": 5, "optim": "sgd", "learning_rate": 0.05, "lora": lora}
    theirs = experiment(kind, tmp_path / "logits", loss_path="logits", **options)
    theirs.train()
    monkeypatch.setattr(heads, "LOGITS_AT_ONCE", 4 * len(theirs.processing_class.tokenizer))
    ours = experiment(kind, tmp_path / "chunked", **options)
    assert ours.elision.paths.loss == "chunked"
    ours.train()
    assert losses(ours) == pytest.approx(losses(theirs), rel=2e-5)
    torch.testing.assert_close(ours.buffer.ema, theirs.buffer.ema, rtol=2e-3, atol=2e-3, equal_nan=True)


class TestHeadsThatAreNoLinearMap:
    def test_soft_capping_behind_the_head(self):
        config = transformers.Gemma2Config(
            vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
            num_key_value_heads=2, head_dim=8, final_logit_softcapping=5.0,
        )  # fmt: skip
        model, batch = transformers.Gemma2ForCausalLM(config), text_batch()
        assert select_paths(model).loss == "logits"
        with pytest.raises(ValueError, match=r"changes logits behind its head.*final_logit_softcapping"):
            select_paths(model, loss="chunked")
        active, kept = gate_of(batch)
        targets = shift_labels(batch["labels"])[kept]
        with Elision(model)(active, kept, targets) as step:
            outputs = model(input_ids=batch["input_ids"])
        assert outputs.logits.abs().max() < 5
        torch.testing.assert_close(step.losses(outputs), heads.plain(outputs.logits, targets))

    def test_a_change_that_no_configuration_names(self):
        class Scaled(transformers.LlamaForCausalLM):
            def forward(self, *args, **kwargs):
                out = super().forward(*args, **kwargs)
                out.logits = out.logits * 2
                return out

        torch.manual_seed(0)
        config = transformers.LlamaConfig(
            vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4
        )
        model, batch = Scaled(config), text_batch()
        active, kept = gate_of(batch)
        with Elision(model)(active, kept, shift_labels(batch["labels"])[kept]) as step:
            outputs = model(input_ids=batch["input_ids"])
        with pytest.raises(ValueError, match=r"changes what its head computes.*loss_path='logits'"):
            step.losses(outputs)

    def test_lora_on_the_head(self):
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(llama(), LoraConfig(r=2, target_modules=["lm_head", "q_proj"]))
        assert select_paths(model).loss == "logits"
        with pytest.raises(ValueError, match="more than a linear map"):
            select_paths(model, loss="chunked")

    def test_a_head_whose_forward_was_replaced(self):
        model = llama()
        head = model.get_output_embeddings()
        head.forward = lambda hidden: torch.nn.functional.linear(hidden, head.weight) * 2
        assert select_paths(model).loss == "logits"


class TestKernels:
    """The real packages, where installed: Liger in Triton's interpreter, cut-cross-entropy by its torch code."""

    def test_liger(self):
        pytest.importorskip("liger_kernel", reason="liger-kernel is optional")
        code = "from tests.core.test_losses import *; check(heads.liger, 1e-5)"
        environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-2000:]

    def test_cut_cross_entropy(self, monkeypatch):
        package = pytest.importorskip("cut_cross_entropy", reason="cut-cross-entropy is optional")
        monkeypatch.setattr(torch, "compile", lambda function=None, **kwargs: function)
        whole = package.linear_cross_entropy

        def on_the_cpu(*args, filter_eps, **kwargs):
            assert filter_eps is None
            return whole(*args, impl="torch_compile", **kwargs)

        monkeypatch.setattr(package, "linear_cross_entropy", on_the_cpu)
        check(heads.cce, 2e-2, torch.bfloat16)
        with pytest.raises(ValueError, match="half precision"):
            heads.cce(*problem()[:3])


def check(compute, tolerance: float, dtype: torch.dtype = torch.float32) -> None:
    """``compute`` agrees with logits, an upstream gradient of its own for each target included."""
    case = problem(dtype=dtype)
    for ours, theirs in zip(run(compute, *case), run(by_logits, *case), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance * theirs.abs().max().item())


class TestSelection:
    def test_installed_kernels_are_taken_on_a_gpu_only(self):
        from regate.paths.select import loss_path

        both = frozenset(["liger", "cce"])
        assert loss_path("auto", None, "cuda", both, True, False) == "liger"
        assert loss_path("auto", None, "cuda", frozenset(["cce"]), True, False) == "cce"
        assert loss_path("auto", None, "cuda", frozenset(["cce"]), False, False) == "chunked"
        assert loss_path("auto", None, "cuda", frozenset(["cce"]), True, True) == "chunked"
        assert loss_path("auto", None, "cuda", frozenset(), True, False) == "chunked"
        assert loss_path("auto", None, "cpu", both, True, False) == "chunked"
        assert loss_path("auto", "soft-capping", "cuda", both, True, False) == "logits"
        assert loss_path("logits", None, "cuda", both, True, False) == "logits"
        with pytest.raises(ValueError, match="'liger' cannot work here: its kernels need a GPU, found device 'cpu'"):
            loss_path("liger", None, "cpu", both, True, False)
        with pytest.raises(ValueError, match=r"cut-cross-entropy 25.1.1 or newer is not installed"):
            loss_path("cce", None, "cuda", frozenset(), True, False)
        with pytest.raises(ValueError, match="set bf16=True"):
            loss_path("cce", None, "cuda", both, False, False)

    def test_attention_follows_the_implementation(self):
        from regate.paths.select import attention_path

        assert attention_path("auto", "sdpa", False) == "padded"
        assert attention_path("auto", "flash_attention_3", True) == "packed"
        assert attention_path("auto", "kernels-community/flash-attn2", True) == "packed"
        assert attention_path("padded", "flash_attention_2", True) == "padded"
        assert attention_path("auto", "flex_attention", False) == "flex"
        with pytest.raises(ValueError, match=r"'packed' needs a model with attn_implementation 'flash_att.*has 'sdpa'"):
            attention_path("packed", "sdpa", False)
        with pytest.raises(ValueError, match=r"'flex' needs a model with attn_implementation 'flex_att.*has 'eager'"):
            attention_path("flex", "eager", False)

    def test_stock_flash_implementations_take_lengths(self):
        """What transformers registers for them is the function that the packed path relies on."""
        model = llama()
        for name in ("flash_attention_2", "flash_attention_3", "flash_attention_4"):
            model.config._attn_implementation = name
            assert select_paths(model).attention == "packed"

    def test_the_trainer_logs_its_paths_once(self, tmp_path, caplog):
        with caplog.at_level("INFO", "regate"):
            experiment("internvl", tmp_path, compile_decoder=False)
        lines = [r.getMessage() for r in caplog.records if "attention padded" in r.getMessage()]
        assert lines == ["attention padded, loss chunked, decoder eager, attn_implementation sdpa"]

    def test_a_path_that_cannot_work_stops_before_the_first_step(self, tmp_path):
        with pytest.raises(ValueError, match="attention_path='packed' needs"):
            experiment("internvl", tmp_path, attention_path="packed")
        with pytest.raises(ValueError, match="attention_path must be one of"):
            experiment("internvl", tmp_path, attention_path="ring")
        assert Paths().padding_free is False
