"""The numpy twin of the gate equals `regate.scoring`, and repeats every decision that committed traces recorded."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from app import artefacts
from app.artefacts import Places
from app.views import gate
from app.views.gate import Answer
from regate import scoring

losses = st.floats(0, 20, width=32).map(lambda v: round(v * 4) / 4)  # coarse: ties happen
LAMBDAS = st.sampled_from([0.0, 0.25, 0.5, 1.0])


@st.composite
def answers(draw):
    """An answer with tied scores, unseen tokens and markers."""
    n = draw(st.integers(1, 12))
    arrays = [np.array(draw(st.lists(losses, min_size=n, max_size=n)), dtype=np.float32) for _ in range(2)]
    unseen = np.array(draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    candidate = np.array(draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    ema = np.where(unseen, np.float32(np.nan), arrays[1])
    tie = gate.ties(draw(st.integers(0, 9)), draw(st.integers(0, 10**6)), n)
    return Answer("q", tuple("w" * n), arrays[0], ema, candidate, tie)


@settings(deadline=None)
@given(answers(), LAMBDAS, st.sampled_from([0.05, 0.3, 0.5, 0.95]), st.sampled_from(scoring.COMBINATIONS))
def test_scores_and_decisions_equal_the_librarys(answer, lambda_, ratio, combine):
    got = gate.gate(answer, lambda_, ratio, combine)
    reference, ema = torch.from_numpy(answer.reference), torch.from_numpy(answer.ema)
    score = scoring.difficulty(ema, reference, lambda_, combine)
    np.testing.assert_array_equal(got.score, score.numpy())
    candidate = torch.from_numpy(answer.candidate)[None]
    tie = torch.from_numpy(answer.tie.astype(np.int64))[None]
    kept = scoring.select(score[None], candidate, ratio, tie)[0].numpy()
    np.testing.assert_array_equal(got.kept, kept | ~answer.candidate)


@settings(deadline=None)
@given(st.integers(-(2**40), 2**40), st.integers(0, 2**62), st.integers(1, 40))
def test_ties_are_the_librarys_hashes(seed, sample, n):
    ours = gate.ties(seed, sample, n)
    theirs = scoring.hashes(seed, torch.tensor([sample]), torch.arange(n))
    np.testing.assert_array_equal(ours.astype(np.int64), theirs.numpy())


def test_every_decision_of_the_committed_traces_is_repeated(results):
    places = Places.here()
    records, problems = artefacts.load_records(places)
    assert not problems
    traces = [trace for trace in artefacts.find_traces(records, places) if artefacts.gated(trace)]
    assert traces
    repeated = 0
    for trace in traces:
        traced = artefacts.read_trace(trace)
        for sample_id, visits in traced.visits.items():
            for visit in visits:
                answer = traced.answer(sample_id, visit)
                got = gate.gate(answer, trace.gate["lambda_"], visit.ratio, trace.gate.get("combine", "convex"))
                np.testing.assert_array_equal(got.kept, visit.kept, f"{trace.name} {sample_id} {visit.step}")
                if not visit.dense:
                    np.testing.assert_array_equal(got.score, visit.score)
                    repeated += 1
    assert repeated > 50


@settings(deadline=None)
@given(answers(), st.sampled_from([0.25, 0.5]))
def test_lambda_ranges_say_what_the_gate_does(answer, ratio):
    for i, words in enumerate(gate.lambda_ranges(answer, ratio)):
        kept = [bool(gate.gate(answer, float(value), ratio).kept[i]) for value in gate.LAMBDAS]
        assert (words == "all") == all(kept)
        assert (words == "none") == (not any(kept))
        if words not in ("all", "none"):
            inside = [
                any(float(part.split("–")[0]) <= value <= float(part.split("–")[-1]) for part in words.split(" and "))
                for value in gate.LAMBDAS
            ]
            assert inside == kept


@pytest.mark.parametrize("ratio", [0.05, 0.5, 0.95])
def test_the_number_kept_is_the_ceiling(ratio):
    n = 47
    answer = Answer("", tuple("w" * n), np.arange(n, dtype=np.float32), np.full(n, np.nan, np.float32),
                    np.ones(n, bool), gate.ties(0, 0, n))  # fmt: skip
    kept = gate.gate(answer, 0.5, ratio).kept
    assert kept.sum() == math.ceil(ratio * n)
    assert kept[-int(kept.sum()) :].all(), "the highest losses are kept"


def test_a_ratio_of_one_keeps_everything():
    zeros = np.zeros(2, np.float32)
    answer = Answer("", ("a", "b"), zeros, zeros, np.ones(2, bool), gate.ties(0, 0, 2))
    assert gate.gate(answer, 0.5, 1.0).kept.all()
