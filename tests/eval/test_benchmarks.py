"""Every benchmark through lmms-eval's own tasks: who knows all scores 100, who errs 0, who guesses chance."""

import math
from statistics import fmean

import pytest

from eval.benchmarks import BENCHMARKS
from eval.guard import problems
from eval.scores import HEADLINES, rows_of, scores_of
from tests.eval import scripted


def scored(evaluate, name, script):
    results, samples, tasks = evaluate(name, scripted.Scripted(script))
    rows = rows_of({task: samples[task] for task in tasks})
    return scores_of(name, rows), rows, problems(name, results, samples, tasks)


@pytest.mark.parametrize("name", BENCHMARKS)
class TestEveryBenchmark:
    def test_who_knows_all_scores_the_maximum(self, evaluate, name):
        scores, rows, wrong = scored(evaluate, name, scripted.oracle)
        assert wrong == []
        assert [s.value for s in scores] == [s.maximum for s in scores]
        assert all(s.low <= s.value <= s.high and s.n > 0 and s.unparsable == 0 for s in scores)
        assert set(HEADLINES[name]) <= {s.name for s in scores}
        assert len(rows) >= 8

    def test_who_errs_scores_nothing(self, evaluate, name):
        scores, _, wrong = scored(evaluate, name, scripted.wrong)
        assert wrong == []
        assert {s.value for s in scores} == {0.0}

    def test_who_guesses_scores_chance(self, evaluate, name):
        _, rows, wrong = scored(evaluate, name, scripted.guess)
        assert wrong == []
        shares = [1 / (row.options or 2) for row in rows]
        spread = math.sqrt(sum(p * (1 - p) for p in shares)) / len(rows)
        assert fmean(row.score for row in rows) == pytest.approx(fmean(shares), abs=4 * spread)

    def test_who_says_nothing_fails_the_guard(self, evaluate, name):
        results, samples, tasks = evaluate(name, scripted.Scripted(scripted.silent))
        wrong = problems(name, results, samples, tasks)
        assert len(wrong) == len(tasks)
        for task, problem in zip(tasks, wrong, strict=True):
            assert problem.startswith(f"{task}: {len(samples[task])} empty answers: 0, 1, 2, 3, 4"[:40])
        assert {row.score for row in rows_of({task: samples[task] for task in tasks})} == {0.0} or name in RANDOM


RANDOM = ("longvideobench", "egoschema", "nextqa")  # stock parsers that draw an option where they find none
