"""Drawing targets by their score: how many, how often, and that the step's loss is the dense one in expectation."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from regate.gate import POLICIES, decide, signals_of
from regate.scoring import count_kept, draw, hashes, inclusion, shift_labels
from tests.core.experiment import arguments


@st.composite
def weighted_rows(data):
    rows, length = data(st.integers(1, 4)), data(st.integers(1, 24))
    generator = torch.Generator().manual_seed(data(st.integers(0, 2**31)))
    weight = torch.rand(rows, length, generator=generator) ** data(st.sampled_from([0, 1, 6]))  # even to very uneven
    return weight, torch.rand(rows, length, generator=generator) < data(st.floats(0, 1))


@given(weighted_rows(), st.floats(0.01, 1.0))
def test_probabilities_add_up_to_the_share_and_follow_the_weights(rows, ratio):
    weight, candidate = rows
    probability = inclusion(weight, candidate, ratio)
    assert torch.allclose(probability.sum(1), count_kept(candidate.sum(1), ratio).double())
    assert ((probability >= 0) & (probability <= 1)).all()
    assert (probability[~candidate] == 0).all()
    for p, w in zip(probability, weight.double().clamp(min=1e-12), strict=True):
        uncertain = (p > 0) & (p < 1)
        share = p[uncertain] / w[uncertain]
        assert torch.allclose(share, share[:1].expand_as(share), rtol=1e-6)  # proportional
        if (p == 1).any() and uncertain.any():
            assert w[p == 1].min() >= w[uncertain].max() * (1 - 1e-9)  # the certain ones are the heaviest


@given(weighted_rows(), st.floats(0.01, 1.0), st.integers(0, 1000))
def test_as_many_are_drawn_as_were_to_be_kept(rows, ratio, seed):
    weight, candidate = rows
    start = hashes(seed, torch.arange(len(weight))).double() / 2**63
    drawn = draw(inclusion(weight, candidate, ratio), candidate, start)
    assert not (drawn & ~candidate).any()
    assert (drawn.sum(1) - count_kept(candidate.sum(1), ratio)).abs().max() <= 1  # a sum of floats may miss a whole


def test_each_is_drawn_with_its_probability():
    weight = torch.tensor([[5.0, 0.1, 1.0, 0.5, 0.1, 2.0, 0.0, 1.0]])
    candidate = torch.tensor([[True] * 6 + [False, True]])
    probability = inclusion(weight, candidate, 0.5)
    steps = 2000
    starts = (torch.arange(steps).double() + 0.5) / steps
    share = sum(draw(probability, candidate, start[None]).double() for start in starts) / steps
    assert torch.allclose(share, probability, atol=2 / steps)


@pytest.mark.parametrize(("ratio", "lambda_"), [(0.25, 0.5), (0.5, 0.5), (0.5, 0.0)])
def test_the_weighted_loss_is_the_dense_loss_in_expectation(ratio, lambda_):
    labels = torch.full((1, 16), -100)
    labels[0, 3:15] = torch.arange(10, 22)
    labels[0, 14] = 7  # a marker: never a candidate, always there
    target = shift_labels(labels) != -100
    loss = torch.rand(1, 16, generator=torch.Generator().manual_seed(0)).double() * 4
    reference = torch.where(target, loss.float(), float("nan"))
    total = 0.0
    steps = 4000
    for step in range(steps):
        signals = signals_of(
            labels, torch.tensor([5]), torch.full_like(reference, float("nan")), reference,
            step=step, seed=1, lambda_=lambda_, combine="convex",
        )  # fmt: skip
        gate = decide(POLICIES["drawn"], signals, labels, torch.ones_like(target), torch.tensor([7]), ratio)
        assert gate.weight is not None
        assert gate.supervised.sum() == count_kept(torch.tensor(11), ratio) + 1
        total += float((loss * gate.weight)[gate.supervised].sum())
    assert total / steps == pytest.approx(float(loss[target].sum()), rel=0.01)


@pytest.mark.parametrize("active_set", ["kept-unsupervised", "prefix"])
def test_active_sets_that_leave_drawn_targets_unsupervised_are_refused(tmp_path, active_set):
    with pytest.raises(ValueError, match="stand for the others"):
        arguments(tmp_path, policy="drawn", active_set=active_set)
