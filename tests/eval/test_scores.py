"""Scores against lmms-eval's own aggregation, and intervals against what is known of them."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.scores import Row, disagreements, scores_of


def rows(scores, part="p", unit="", options=2, **kwargs):
    return [Row("t", k, part, unit, float(s), True, options, "yes", None, **kwargs) for k, s in enumerate(scores)]


@settings(deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=200))
def test_wilson_holds_its_estimate(bits):
    (score,) = scores_of("egoschema", rows(bits))
    assert score.value == pytest.approx(100 * sum(bits) / len(bits))
    assert 0 <= score.low <= score.value <= score.high <= 100
    assert score.low < score.high
    assert (score.n, score.chance) == (len(bits), 50)


def test_wilson_is_the_known_one():
    (score,) = scores_of("egoschema", rows([1] * 15 + [0] * 5))
    assert (round(score.low, 2), round(score.high, 2)) == (53.13, 88.81)  # R: binom.confint(15, 20, "wilson")


def test_parts_weigh_the_same_in_an_average():
    parts = rows([1] * 30, "a", options=4) + rows([0, 0], "b", options=2)
    average, a, b = scores_of("mvbench", parts)
    assert (average.value, a.value, b.value) == (50, 100, 0)
    assert (average.n, average.chance) == (32, 37.5)
    assert average.low == average.high == 50  # no spread within either part


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=30))
def test_mme_counts_as_lmms_eval_does(pairs):
    from lmms_eval.tasks.mme.utils import mme_aggregate_results

    asked, stock = [], []
    for k, pair in enumerate(pairs):
        category = ("count", "OCR", "code_reasoning")[k % 3]
        for right in pair:
            asked.append(Row("mme", len(asked), category, str(k), float(right), True, 2, "yes", None))
            stock.append({"question_id": str(k), "category": category, "score": float(right)})
    found = {score.name: score for score in scores_of("mme", asked)}
    for name, chosen in (("perception", ("count", "OCR")), ("cognition", ("code_reasoning",))):
        theirs = [row for row in stock if row["category"] in chosen]
        if theirs:
            assert found[name].value == pytest.approx(mme_aggregate_results(theirs))
            assert found[name].low <= found[name].value <= found[name].high <= found[name].maximum
            assert found[name].maximum == 200 * len({row["category"] for row in theirs})
        else:
            assert name not in found


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["yes", "no", "maybe"]), st.sampled_from(["yes", "no"])), min_size=1))
def test_pope_counts_as_lmms_eval_does(pairs):
    from lmms_eval.tasks.pope.utils import pope_aggregate_f1_score

    asked = [Row("pope", k, "all", "", float(s == t), True, 2, s, t) for k, (s, t) in enumerate(pairs)]
    accuracy, f1 = scores_of("pope", asked)[:2]
    stock = [{"prediction": said, "ground_truth": truth} for said, truth in pairs]
    assert f1.value == pytest.approx(100 * pope_aggregate_f1_score(stock))
    assert f1.low <= f1.value <= f1.high
    assert accuracy.value == pytest.approx(100 * sum(s == t for s, t in pairs) / len(pairs))


def test_vinoground_counts_whole_pairs():
    asked = []
    for pair, right in enumerate([(1, 1, 1, 1), (1, 1, 1, 0), (0, 1, 1, 1), (0, 1, 0, 1)]):
        for kind, score in zip(("text", "text", "video", "video"), right, strict=True):
            asked.append(Row("vinoground", len(asked), kind, str(pair), float(score), True, 2, "A", None))
    scores = {score.name: score for score in scores_of("vinoground", asked)}
    assert {name: score.value for name, score in scores.items()} == {"text": 50, "video": 50, "group": 25}
    assert {name: score.chance for name, score in scores.items()} == {"text": 25, "video": 25, "group": 6.25}
    assert {name: score.n for name, score in scores.items()} == {"text": 8, "video": 8, "group": 16}


def test_parts_of_a_point_get_a_bootstrap():
    (score,) = scores_of("vizwiz", rows([1 / 3, 1, 0.9, 0], options=None))
    assert score.value == pytest.approx(100 * (1 / 3 + 1.9) / 4)
    assert 0 <= score.low < score.value < score.high <= 100
    assert score.chance is None


def test_absent_types_of_mlvu_count_nothing_in_lmms_eval():
    asked = rows([1, 1], "count") + rows([1, 0], "ego")
    scores = scores_of("mlvu", asked)
    stock = {"mlvu_dev": {"mlvu_percetion_score,none": (100 + 50) / 7}}
    assert scores[0].value == 75
    assert disagreements("mlvu", scores, stock) == []
    assert math.isclose(scores[0].chance, 50)
