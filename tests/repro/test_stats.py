"""Intervals: they hold their estimate, narrow with evidence, repeat with their generator, and cover the truth."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from repro import stats
from repro.stats import Interval

ACCURACIES = st.floats(0, 1, allow_nan=False)
OUTCOMES = st.dictionaries(
    st.sampled_from("abcdef"), st.lists(st.booleans(), min_size=1, max_size=40), min_size=1, max_size=5
)


def rng(seed=0):
    return np.random.default_rng(seed)


# --- over questions ---


@given(st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_accuracy_and_stays_in_range(case):
    correct, n = case
    interval = stats.wilson(correct, n)
    assert interval.estimate == correct / n
    assert 0 <= interval.low <= interval.estimate <= interval.high <= 1


@given(st.integers(1, 200), st.integers(2, 6))
def test_wilson_narrows_with_questions_and_widens_with_level(n, times):
    some, more = stats.wilson(n // 2, n), stats.wilson(times * (n // 2), times * n)
    assert more.half < some.half
    assert stats.wilson(n // 2, n, level=0.99).half > some.half


def test_wilson_known_value():
    """Wilson 1927 for 15 of 20 by hand: (0.75 + z²/40 ± z·sqrt(0.75·0.25/20 + z²/1600)) / (1 + z²/20)."""
    z = 1.959964
    middle, spread = 0.75 + z**2 / 40, z * np.sqrt(0.75 * 0.25 / 20 + z**2 / 1600)
    interval = stats.wilson(15, 20)
    assert interval.low == pytest.approx((middle - spread) / (1 + z**2 / 20), abs=1e-6)
    assert interval.high == pytest.approx((middle + spread) / (1 + z**2 / 20), abs=1e-6)


@settings(max_examples=40)
@given(OUTCOMES, st.integers(0, 5))
def test_question_interval_holds_the_macro_average(outcomes, seed):
    interval = stats.question_interval(outcomes, rng(seed), reps=200)
    assert interval.estimate == pytest.approx(np.mean([np.mean(v) for v in outcomes.values()]))
    assert 0 <= interval.low <= interval.estimate <= interval.high <= 1
    again = stats.question_interval(dict(reversed(outcomes.items())), rng(seed), reps=200)
    assert again == interval


def test_subtasks_weigh_the_same_whatever_their_size():
    assert stats.macro({"small": [1, 1], "large": [0] * 98}) == 0.5


def test_question_interval_equals_a_bootstrap_with_indices():
    values = rng().random(60) < 0.7
    fast = stats.question_interval({"a": values}, rng(1), reps=20_000)
    slow = values[rng(2).integers(60, size=(20_000, 60))].mean(axis=1)
    assert (fast.low, fast.high) == pytest.approx(tuple(np.quantile(slow, [0.025, 0.975])), abs=0.017)


def test_question_interval_covers_the_truth():
    truth, held = {"a": 0.4, "b": 0.6, "c": 0.9}, 0
    draw = rng(3)
    for _ in range(200):
        sample = {task: draw.random(150) < p for task, p in truth.items()}
        held += np.mean(list(truth.values())) in stats.question_interval(sample, draw, reps=500)
    assert 0.90 <= held / 200 <= 0.99


@settings(max_examples=30)
@given(OUTCOMES)
def test_a_model_does_not_differ_from_itself(outcomes):
    interval = stats.paired_questions(outcomes, outcomes, rng(), reps=50)
    assert (interval.low, interval.estimate, interval.high) == (0, 0, 0)


def test_pairs_are_narrower_than_two_intervals():
    """Two models that agree on most questions: the pairs see a difference that two separate intervals do not."""
    draw = rng(4)
    theirs = draw.random(1000) < 0.5
    ours = theirs | (draw.random(1000) < 0.06)
    paired = stats.paired_questions({"a": ours}, {"a": theirs}, draw)
    assert paired.low > 0
    assert paired.half < stats.question_interval({"a": ours}, draw).half / 2


def test_pairs_must_be_of_the_same_questions():
    with pytest.raises(ValueError, match="subtasks"):
        stats.paired_questions({"a": [1]}, {"b": [1]}, rng())
    with pytest.raises(ValueError, match="2 and 1 questions"):
        stats.paired_questions({"a": [1, 0]}, {"a": [1]}, rng())


# --- over seeds ---


def test_one_seed_has_no_interval():
    assert stats.seed_interval([0.7]) is None
    paired = stats.paired_seeds({0: 0.7, 1: 0.3}, {0: 0.6, 2: 0.1}, rng())
    assert paired.seeds == (0,)
    assert paired.mean == pytest.approx(0.1)
    assert (paired.t, paired.bootstrap) == (None, None)
    assert stats.paired_seeds({0: 1.0}, {1: 1.0}, rng()) is None


@given(st.lists(ACCURACIES, min_size=2, max_size=8))
def test_seed_interval_holds_the_mean(values):
    interval = stats.seed_interval(values)
    assert interval.estimate == pytest.approx(np.mean(values))
    assert interval.half <= stats.seed_interval(values, level=0.99).half


def test_seed_interval_known_value():
    """Five seeds: t(0.975, 4) = 2.776."""
    values = [1.0, 2.0, 3.0, 4.0, 5.0]
    assert stats.seed_interval(values).half == pytest.approx(2.776445 * np.std(values, ddof=1) / np.sqrt(5))


@given(st.dictionaries(st.integers(0, 6), ACCURACIES, min_size=2), st.floats(-0.2, 0.2))
def test_a_constant_shift_is_found_exactly(theirs, shift):
    """What seeds share cancels in pairs, however far seeds lie apart."""
    paired = stats.paired_seeds({seed: value + shift for seed, value in theirs.items()}, theirs, rng())
    assert paired.mean == pytest.approx(shift, abs=1e-9)
    assert paired.t.half == pytest.approx(0, abs=1e-9)
    assert paired.bootstrap.half == pytest.approx(0, abs=1e-9)


def test_t_interval_over_five_seeds_covers_the_truth():
    draw = rng(5)
    held = [0.3 in stats.seed_interval(draw.normal(0.3, 0.1, 5)) for _ in range(400)]
    assert 0.92 <= np.mean(held) <= 0.98


# --- runs x tasks ---


def test_aggregates_of_a_matrix():
    scores = np.arange(20.0).reshape(4, 5)
    assert stats.aggregate_mean(scores) == 9.5
    assert stats.aggregate_iqm(scores) == pytest.approx(np.arange(5, 15).mean())
    assert stats.aggregate_median(scores) == 9.5


@settings(max_examples=10)
@given(st.integers(2, 6), st.integers(1, 5), st.integers(0, 99))
def test_aggregate_interval_holds_the_estimate(runs, tasks, seed):
    scores = rng(seed).random((runs, tasks))
    for aggregate in (stats.aggregate_mean, stats.aggregate_iqm, stats.aggregate_median):
        one = stats.aggregate_interval(scores, aggregate, rng(seed), reps=50)
        assert aggregate(scores) in one
        assert one == stats.aggregate_interval(scores, aggregate, rng(seed), reps=50)


def test_paired_aggregate_sees_what_seeds_share():
    noise = rng(6).normal(0, 1, (5, 1))
    ours, theirs = 0.1 + noise + np.zeros((5, 4)), noise + np.zeros((5, 4))
    interval = stats.paired_aggregate_interval(ours, theirs, stats.aggregate_mean, rng(), reps=100)
    assert interval.low == pytest.approx(0.1)
    assert 0 in stats.aggregate_interval(ours, stats.aggregate_mean, rng(), reps=500)


def test_one_run_has_no_aggregate_interval_and_bad_shapes_are_refused():
    assert stats.aggregate_interval([[0.1, 0.2]], stats.aggregate_mean, rng()) is None
    with pytest.raises(ValueError, match=r"\[runs, tasks\]"):
        stats.aggregate_interval([0.1, 0.2], stats.aggregate_mean, rng())
    with pytest.raises(ValueError, match="same seeds and tasks"):
        stats.paired_aggregate_interval([[1.0]], [[1.0, 2.0]], stats.aggregate_mean, rng())


# --- in words ---


def test_words_follow_the_interval():
    assert stats.difference_in_words(Interval(0.3, -1.0, 1.6), 0.3).startswith("no difference seen (+0.3 points")
    assert stats.difference_in_words(Interval(1.2, 0.4, 2.0), 1.2).startswith("higher by 1.2 points (95 %")
    assert stats.difference_in_words(Interval(-1.2, -2.0, -0.4), -1.2).startswith("lower by 1.2 points")
    assert "no interval" in stats.difference_in_words(None, 0.3)


def test_half_width_is_shown_where_there_is_one():
    assert stats.with_half_width(52.06, 2.31) == "52.1 ±2.3"
    assert stats.with_half_width(52.06, None) == "52.1"


@pytest.mark.parametrize("call", [
    lambda: stats.wilson(3, 2),
    lambda: stats.wilson(0, 0),
    lambda: stats.wilson(1, 2, level=95),
    lambda: stats.macro({}),
    lambda: stats.macro({"a": []}),
    lambda: stats.macro({"a": [float("nan")]}),
    lambda: stats.seed_interval([]),
])  # fmt: skip
def test_bad_input_is_refused(call):
    with pytest.raises(ValueError, match="expected"):
        call()
