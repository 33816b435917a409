"""What the guard finds, case by case, on results of the shape that lmms-eval writes."""

import copy

import pytest

from eval.guard import problems, tasks_of


def run(n=4):
    """A sound run of VideoMME with n questions, half of them right."""

    def line(k):
        row = {"answer": "A", "score": float(k % 2), "understood": True, "part": "short", "unit": "", "options": 4}
        return {"doc_id": k, "regate": {**row, "truth": None, "prompt": "p"}}

    value = 100 * (n // 2) / n
    results = {
        "results": {"videomme": {"videomme_perception_score,none": value}},
        "n-samples": {"videomme": {"original": n, "effective": n}},
    }
    return results, {"videomme": [line(k) for k in range(n)]}


def found(results, samples, **kwargs):
    return problems("videomme", results, samples, ["videomme"], **kwargs)


def test_a_sound_run_has_no_problems():
    assert found(*run()) == []


def test_nothing_written():
    assert found(None, {}) == ["videomme: lmms-eval wrote no results"]


def test_a_missing_task_is_named():
    results, samples = run()
    assert problems("mvbench", results, samples, ["mvbench_action_count"]) == [
        "mvbench_action_count: missing from lmms-eval's results"
    ]


def test_lost_answers_are_named():  # a rank that was lost takes every second one
    results, samples = run(6)
    samples["videomme"] = samples["videomme"][::2]
    assert found(results, samples) == ["videomme: 3 of 6 questions were not answered: 1, 3, 5"]
    assert found(results, {}) == ["videomme: no samples were logged"]


def test_answers_too_many_are_named():
    results, samples = run()
    samples["videomme"] += copy.deepcopy(samples["videomme"][:1])
    samples["videomme"].append({**samples["videomme"][0], "doc_id": 9})
    assert found(results, samples) == [
        "videomme: answers to questions that were not asked: 9",
        "videomme: scored more than once: 0",
    ]


def test_empty_answers_are_named():
    results, samples = run()
    for k in (1, 2):
        samples["videomme"][k]["regate"]["answer"] = " \n"
    assert found(results, samples) == ["videomme: 2 empty answers: 1, 2"]


def test_unparsable_answers_count_against_a_share():
    results, samples = run(40)
    for k in (0, 2):
        samples["videomme"][k]["regate"] |= {"understood": False, "answer": "well ..."}
    assert found(results, samples) == []  # 5 %
    samples["videomme"][4]["regate"] |= {"understood": False, "answer": "well ..."}
    (problem,) = found(results, samples)
    assert problem.startswith("videomme: 3 of 40 answers hold no option, allowed are 5%: videomme 0: 'well ...'")
    assert found(results, samples, max_unparsable=0.1) == []


def test_a_score_that_lmms_eval_counts_otherwise_is_named():
    results, samples = run()
    results["results"]["videomme"]["videomme_perception_score,none"] = 100.0  # say, it left out two answers
    assert found(results, samples) == ["videomme: accuracy is 50.0 by our count and 100.0 by lmms-eval's"]


def test_samples_of_a_stock_task_are_refused():
    results, samples = run()
    del samples["videomme"][0]["regate"]
    assert found(results, samples) == [
        "videomme: samples without a 'regate' line; run it as a group of eval/suites",
    ]


@pytest.mark.parametrize(("name", "n"), [("mvbench", 20), ("scienceqa", 2), ("pope", 1)])
def test_tasks_of_a_benchmark(name, n):
    assert len(tasks_of(name)) == n
    assert tasks_of("mvbench", ["action_count", "state_change"]) == ["mvbench_action_count", "mvbench_state_change"]
