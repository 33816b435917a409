"""A result file is what the guard wrote, or it is refused."""

import json

import pytest

from eval.results import Result, ResultError, load, read, write
from eval.scores import Score


@pytest.fixture
def result():
    return Result(
        benchmark="vinoground",
        checkpoint={"path": "runs/a", "base": None, "fingerprint": "fp-0"},
        protocol={"answer": "rank"},
        prompts={"profile": "paper", "sentence": "Please only output one English character.", "sha": "0"},
        data={"source": "twin", "fingerprint": "1", "questions": "2", "missing": []},
        limit=None,
        seed=0,
        scores={name: Score(name, 50.0, 40.0, 60.0, 8, 0, 25.0) for name in ("text", "video", "group")},
        outcomes={"vinoground": [1.0, 0.0]},
        stock={"vinoground": {"vinoground_score,none": [50.0, 50.0, 50.0]}},
        cost={"seconds": 1.0},
        made={"commit": None},
        max_unparsable=0.05,
    )


def test_what_is_written_is_read(result, tmp_path):
    path = tmp_path / "run" / "vinoground.json"
    write(result, path)
    assert read(path) == result
    assert [score.name for score in result.headline] == ["text", "video", "group"]
    assert load(tmp_path) == ([result], [])
    assert load(tmp_path / "nowhere") == ([], [])


@pytest.mark.parametrize("change", ["score", "stamp", "schema", "cut"])
def test_what_the_guard_did_not_write_is_refused(result, tmp_path, change):
    path = tmp_path / "run" / "vinoground.json"
    write(result, path)
    values = json.loads(path.read_text())
    if change == "score":
        values["scores"]["text"]["value"] = 99.0
    elif change == "stamp":
        del values["stamp"]
    elif change == "schema":
        values["schema"] = 0
    path.write_text(json.dumps(values)[: 50 if change == "cut" else None])
    expected = {"score": "does not fit", "stamp": "no stamp", "schema": "schema 1", "cut": "complete JSON"}[change]
    with pytest.raises(ResultError, match=rf"vinoground\.json: .*{expected}.*"):
        read(path)
    results, problems = load(tmp_path)
    assert (results, len(problems)) == ([], 1)
