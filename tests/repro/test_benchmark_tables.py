"""Tables 1-3 from results on disk: means, intervals, pairs, chance; what is damaged or unclean stays out."""

import dataclasses
import json
from pathlib import Path

import pytest

from eval import results as evaluations
from eval.results import Result
from eval.scores import Score
from repro import tables
from repro.benchmark_tables import COLUMNS, GUESS, benchmarks_of, evaluated, layout, run_name, table
from repro.keep import keep_results
from repro.render import WORDS, cells_of, to_markdown

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = tables.read_published(ROOT / "results" / "published.json")


def result(run: str, benchmark: str = "videomme", right: str = "1101", **changes) -> Result:
    """A result whose accuracy follows from single answers; four options each."""
    values = [float(bit) for bit in right]
    value = 100 * sum(values) / len(values)
    name = {"videomme": "accuracy", "mvbench": "average"}.get(benchmark, "accuracy")
    score = Score(name, value, max(0, value - 10), min(100, value + 10), len(values), 0, 25.0)
    fields = {
        "benchmark": benchmark,
        "checkpoint": {"path": f"runs/{run}/final", "base": None, "fingerprint": "fp-1"},
        "protocol": {"answer": "rank", "num_frames": 8},
        "prompts": {"profile": "paper", "sentence": "", "sha": "0"},
        "data": {"source": "twin", "questions": "same", "missing": []},
        "limit": None,
        "seed": 0,
        "scores": {name: score},
        "outcomes": {benchmark: values},
        "stock": {},
        "cost": {},
        "made": {"finished": "2026-11-22T10:00:00+00:00", "commit": "c" * 40, "dirty": False},
        "max_unparsable": 0.05,
    }
    return Result(**fields | changes)


def cells(results, number="2", origin="own"):
    frame = table(number, evaluated([(r, origin) for r in results]), [], PUBLISHED)
    return cells_of(frame)


def measured(found, row, column):
    return next(c for c in found if (c.row, c.column, c.origin) == (row, column, "own"))


def test_every_benchmark_of_the_paper_stands_in_one_table():
    assert sum(len(benchmarks_of(number)) for number in COLUMNS) == 13
    for number, columns in COLUMNS.items():
        printed = {c["column"] for c in PUBLISHED["cells"] if c["table"] == number}
        assert {column.published for column in columns if column.published} <= printed


def test_published_and_measured_rows_stand_side_by_side():
    found = cells([result("table4-internvl-stock-s0"), result("table4-internvl-regate-s0", right="1111")])
    assert {c.origin for c in found if c.student == "InternVL3.5"} == {"published v2", "own"}
    paper = next(c for c in found if c.origin == "published v2" and c.column == "VideoMME" and c.row == "ReGATE")
    assert paper.value == 63.0
    assert measured(found, "baseline (stock Trainer)", "VideoMME").value == 75.0
    assert measured(found, "ReGATE", "VideoMME").value == 100.0
    assert measured(found, GUESS, "VideoMME").value == 25.0
    assert measured(found, "ReGATE", "above VideoMME").value == 75.0
    text = to_markdown(table("2", evaluated([(result("table4-internvl-stock-s0"), "own")]), [], PUBLISHED), layout("2"))
    assert "| baseline (stock Trainer) |" in text
    assert "75.0 ±10.0" in text


def test_one_seed_has_an_interval_over_questions_and_several_over_seeds():
    one = measured(cells([result("table4-internvl-stock-s0")]), "baseline (stock Trainer)", "VideoMME")
    assert (one.over, one.seeds, one.low, one.high) == ("questions", 1, 65.0, 85.0)
    runs = [result(f"table4-internvl-stock-s{s}", right=bits) for s, bits in enumerate(("1111", "1110", "1100"))]
    several = measured(cells(runs), "baseline (stock Trainer)", "VideoMME")
    assert (several.over, several.seeds, several.value) == ("seeds", 3, 75.0)
    assert several.low == pytest.approx(75 - 4.302653 * 25 / 3**0.5, abs=1e-3)  # Student's t with two degrees


def test_words_are_of_pairs_on_the_same_questions():
    always = [result("table4-internvl-stock-s0", right="0" * 40), result("table4-internvl-regate-s0", right="1" * 40)]
    said = next(c.text for c in cells(always) if c.column == WORDS)
    assert "VideoMME higher by 100.0 points" in said
    same = [result("table4-internvl-stock-s0"), result("table4-internvl-regate-s0")]
    assert "no difference seen" in next(c.text for c in cells(same) if c.column == WORDS)
    other = dataclasses.replace(same[1], data={"questions": "others"})
    assert "one seed" in next(c.text for c in cells([same[0], other]) if c.column == WORDS)


def test_another_checkpoint_stands_under_its_own_name():
    found = cells([result("my-student")])
    assert any(c.student == "my-student" and c.column == "VideoMME" for c in found)


def test_the_command_prints_one_table_and_names_what_is_damaged(tmp_path, capsys):
    results = tmp_path / "results"
    results.mkdir()
    (results / "published.json").write_text(json.dumps(PUBLISHED))
    runs = tmp_path / "runs"
    evaluations.write(result("table4-internvl-stock-s0"), runs / "eval" / "a" / "videomme.json")
    (runs / "eval" / "b").mkdir()
    (runs / "eval" / "b" / "mvbench.json").write_text('{"schema": 1, "scores": {}}')
    tables.main(["--results", str(results), "--runs", str(runs), "--only", "2"])
    out, err = capsys.readouterr()
    assert "# Table 2" in out
    assert "# Table 4" not in out
    assert "no stamp of the guard" in err
    assert (runs / "tables" / "table2.csv").is_file()


def test_only_what_a_clean_tree_made_is_kept(tmp_path):
    good = result("table4-internvl-stock-s0")
    evaluations.write(good, tmp_path / "eval" / "x" / "videomme.json")
    kept = keep_results(tmp_path / "eval", tmp_path / "kept")
    assert [str(path.relative_to(tmp_path / "kept")) for path in kept] == [f"{run_name(good)}/videomme.json"]
    assert evaluations.read(kept[0]) == good
    dirty = dataclasses.replace(good, made=good.made | {"dirty": True})
    evaluations.write(dirty, tmp_path / "eval" / "x" / "videomme.json")
    with pytest.raises(evaluations.ResultError, match="clean tree"):
        keep_results(tmp_path / "eval", tmp_path / "kept")
