"""The numbers of `make world-check`, on hand-made losses."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.world.check import accuracy, auc, chance_interval, exit_code, hard_dropped, kept, report, table, token_tags


def world(hard=0.7, n=40, answers=20, seed=0):
    """Answers whose template tokens are easy, with `hard` of the tokens above half a nat."""
    rng = np.random.default_rng(seed)
    tags = ["template"] * round(n * (1 - hard)) + ["visual"] * round(n * hard * 0.6)
    tags += ["wording"] * (n - len(tags))
    losses = [np.where(np.array(tags) == "template", 0.01, rng.uniform(0.6, 3, n)) for _ in range(answers)]
    return losses, [tags] * answers


def by_name(rows, part):
    return next(row for row in rows if part in row.name)


def test_tokens_get_the_tag_they_share_most_with():
    spans = ((0, 1, "template"), (1, 5, "visual"), (5, 10, "wording"))
    assert token_tags(spans, [(0, 1), (1, 5), (4, 10)]) == ["template", "visual", "wording"]
    with pytest.raises(ValueError, match=r"characters 10\.\.12"):
        token_tags(spans, [(10, 12)])


@given(st.lists(st.floats(0, 20), min_size=1, max_size=50), st.floats(0.05, 1))
def test_the_gate_keeps_the_highest_losses(losses, ratio):
    mask = kept(np.array(losses), ratio)
    assert mask.sum() == np.ceil(ratio * len(losses))
    if not mask.all():
        assert np.array(losses)[mask].min() >= np.array(losses)[~mask].max()


def test_hard_tokens_that_the_gate_must_drop():
    assert hard_dropped([np.array([2.0, 2.0, 2.0, 0.1])]) == pytest.approx(1 / 3)
    assert hard_dropped([np.array([2.0, 0.1, 0.1, 0.1])]) == 0
    assert hard_dropped([np.zeros(4)]) == 0


def test_auc_against_a_count_over_all_pairs():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 5, 30).astype(float), rng.integers(0, 4, 20).astype(float)
    pairs = (a[:, None] > b).mean() + (a[:, None] == b).mean() / 2
    assert auc(a, b) == pytest.approx(pairs)
    assert np.isnan(auc(a, b[:0]))


def test_the_interval_of_chance_holds_simulated_guessers():
    options = [2] * 60 + [4] * 60
    mean, low, high = chance_interval(options)
    assert mean == pytest.approx(0.375)
    rng = np.random.default_rng(0)
    guesses = (rng.random((4000, 120)) < 1 / np.array(options)).mean(1)
    assert ((guesses >= low) & (guesses <= high)).mean() > 0.985
    assert high - low < 0.25
    assert not low <= 0.55 <= high


def test_accuracy_shares_a_point_between_ties():
    assert accuracy([np.array([0.0, 1.0]), np.array([1.0, 1.0])], [1, 0]) == 0.75


def test_a_good_world_passes_and_each_flaw_is_found():
    losses, tags = world()
    kinds = ["long"] * 17 + ["letter"] * 3
    rows = report(losses, tags, kinds)
    assert exit_code(rows) == 0, table(rows)
    assert by_name(rows, "AUC of loss, visual against template").value == 1

    easy = report(*world(hard=0.4), kinds)
    assert exit_code(easy) == 1
    assert not by_name(easy, "dropped by a gate").ok
    assert not by_name(easy, "tokens above").ok
    assert "MISSED" in table(easy)
    assert not by_name(report(*world(n=20), kinds), "30 to 60").ok
    assert not by_name(report(losses, tags, ["long"] * 20), "short answers").ok


def test_a_twin_that_text_can_answer_is_found():
    losses, tags = world()
    rng = np.random.default_rng(0)
    right = rng.integers(0, 4, 400)
    blind = list(rng.random((400, 4)))
    leaky = [score + 0.5 * np.eye(4)[k] for score, k in zip(blind, right, strict=True)]
    kinds = ["long"] * 17 + ["letter"] * 3
    assert exit_code(report(losses, tags, kinds, blind, right)) == 0
    assert not by_name(report(losses, tags, kinds, leaky, right), "text-only accuracy").ok


def test_mismatched_arrays_are_refused():
    losses, tags = world()
    with pytest.raises(ValueError, match="one entry per answer"):
        report(losses, tags[:-1], ["long"] * 20)
    with pytest.raises(ValueError, match="answer 0 has 39 losses"):
        report([losses[0][:-1], *losses[1:]], tags, ["long"] * 20)
    with pytest.raises(ValueError, match="no answer of kind 'long'"):
        report(losses, tags, ["letter"] * 20)
