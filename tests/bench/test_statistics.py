"""Bounds against closed forms; intervals and verdicts by their properties."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from regate.accounting import FlopModel
from repro.bench.bound import contestant_flops, pairs, teacher_share
from repro.bench.table import exact
from repro.bench.verdicts import FAIL, INCONCLUSIVE, MIN_ROUNDS, PASS, Target, paired_ratio, realised
from repro.bench.workloads import CONTESTANTS, nano, workloads
from repro.stats import Interval

MODEL = FlopModel(linear=1000, linear_trained=1000, attention=40, head=700, head_trained=700)
WORK = nano()[0]
SECONDS = st.lists(st.floats(0.01, 10), min_size=3, max_size=40)


def rng():
    return np.random.default_rng(0)


def test_the_bound_counts_layers_and_head():
    size, length = WORK.batch, WORK.positions
    causal = sum(range(1, length + 1))
    assert pairs(length) == causal
    layers = 3 * size * (2 * 1000 * length + 4 * 40 * causal)  # backward costs twice the forward
    assert contestant_flops("stock", WORK, MODEL, 3) == layers + 3 * 2 * 700 * size * length
    assert contestant_flops("dense", WORK, MODEL, 3) == layers + 3 * 2 * 700 * size * WORK.answer
    assert contestant_flops("trl", WORK, MODEL, 3) == contestant_flops("dense", WORK, MODEL, 3)
    with pytest.raises(ValueError, match="gated"):
        contestant_flops("gated", WORK, MODEL, 3)


def test_random_ltd_spares_the_layers_between_first_and_last():
    stock = contestant_flops("stock", WORK, MODEL, 2)
    assert contestant_flops("random_ltd", WORK, MODEL, 2) == stock  # no layer lies between
    many = contestant_flops("random_ltd", WORK, MODEL, 10_000)
    half = WORK.positions // 2
    assert many == pytest.approx(
        WORK.batch * (3 * (2 * 1000 * half + 4 * 40 * pairs(half)) + 6 * 700 * WORK.positions), rel=1e-3
    )


def test_the_teachers_share_is_text_over_everything():
    head_only = FlopModel(0, 0, 0, 1, 1)
    assert teacher_share(WORK, head_only) == WORK.answer / WORK.positions
    layers_only = FlopModel(1, 1, 0, 0, 0)
    assert teacher_share(WORK, layers_only) == (WORK.prompt + WORK.answer) / WORK.positions


@given(SECONDS, st.floats(0.5, 2))
def test_a_constant_factor_is_found_whatever_the_rounds_took(theirs, factor):
    found = paired_ratio([factor * t for t in theirs], theirs, rng())
    assert found.estimate == pytest.approx(factor)
    assert found.low == pytest.approx(factor)
    assert found.high == pytest.approx(factor)


@given(SECONDS, st.data())
def test_drift_that_meets_both_does_not_move_the_ratio(theirs, data):
    ours = data.draw(st.lists(st.floats(0.01, 10), min_size=len(theirs), max_size=len(theirs)))
    drift = data.draw(st.lists(st.floats(0.5, 3), min_size=len(theirs), max_size=len(theirs)))
    plain = paired_ratio(ours, theirs, rng())
    slow = paired_ratio([a * d for a, d in zip(ours, drift, strict=True)],
                        [b * d for b, d in zip(theirs, drift, strict=True)], rng())  # fmt: skip
    assert slow.estimate == pytest.approx(plain.estimate)
    assert plain.low <= plain.estimate <= plain.high


def test_rounds_that_one_sat_out_do_not_count():
    assert paired_ratio([2.0, None, 2.0], [1.0, 9.0, 1.0], rng()) == Interval(2.0, 2.0, 2.0)
    with pytest.raises(ValueError, match="no round"):
        paired_ratio([1.0, None], [None, 1.0], rng())
    with pytest.raises(ValueError, match=r"shorter|longer"):
        paired_ratio([1.0], [1.0, 1.0], rng())


@given(st.floats(0.1, 2), st.floats(0, 0.3), st.floats(0.1, 2), st.booleans(), st.integers(1, 100))
def test_a_verdict_needs_rounds_and_a_narrow_interval(value, width, limit, at_most, rounds):
    target = Target("", "", Interval(value, value - width / 2, value + width / 2), limit, at_most, rounds)
    wide = target.measured.high - target.measured.low > 0.1
    if rounds < MIN_ROUNDS or wide:
        assert target.result == INCONCLUSIVE
    else:
        assert target.result == (PASS if (value <= limit) == at_most or value == limit else FAIL)
    assert target.crosses == (target.measured.low < limit < target.measured.high)


def test_what_is_counted_needs_no_rounds():
    assert Target("", "", exact(0.5), 0.6, True, None).result == PASS
    assert Target("", "", exact(0.7), 0.6, True, None).result == FAIL


@given(st.floats(0.05, 0.95))
def test_realised_is_one_at_the_bound_and_zero_where_nothing_is_saved(share):
    assert realised(share, share) == pytest.approx(1)
    assert realised(1.0, share) == 0
    assert realised(1.1, share) < 0
    with pytest.raises(ValueError, match="share"):
        realised(0.5, 1.0)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_workload_has_the_contestants_that_its_targets_compare(device):
    for workload in workloads(device):
        assert {"stock", "dense", "gated"} <= set(workload.contestants) <= set(CONTESTANTS)
        assert "dense" in workload.timed
        assert workload.positions == workload.visual + workload.prompt + workload.answer
    shapes = {w.name: (w.visual, w.prompt, w.answer) for w in workloads(device)}
    assert shapes["short-bf16"] == shapes["short-fp32"] == (128, 24, 56)
    assert shapes["long-answer"] == (64, 32, 256)
    assert shapes["paper-shaped"] == (1352, 50, 230)
    assert dataclasses.asdict(workloads(device)[0].decoder)["vocabulary"] == 49152
