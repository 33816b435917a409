"""Table 4 from records, the published numbers' arithmetic, and the command that keeps committed tables fresh."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from repro import compare, render, tables
from repro.record import Benchmark, write
from repro.tables import EFFICIENCY, table4
from tests.repro.synthetic import STEPS, TASKS, committed, record, runs

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = tables.read_published(ROOT / "results" / "published.json")


# --- published numbers ---


def number(row: str, column: str, table: str = "4", version: str = "v1") -> float:
    place = (table, version, row, column)
    found = [c["value"] for c in PUBLISHED["cells"] if (c["table"], c["version"], c["row"], c["column"]) == place]
    assert len(found) == 1, place
    return found[0]


def between(numerator: float, denominator: float, half: float) -> tuple[float, float]:
    """Bounds of a ratio of two numbers that were rounded to within `half`."""
    return (numerator - half) / (denominator + half), (numerator + half) / (denominator - half)


STUDENTS = [("VideoLLaMA2", "v1", 5e3), ("VideoChat2", "v1", 5e6), ("InternVL3.5", "v2", 5e6)]


@pytest.mark.parametrize(("student", "version", "half"), STUDENTS)
def test_printed_savings_are_the_ratio_of_the_tokens(student, version, half):
    low, high = between(
        number(f"{student}-ReGATE", "tokens", "4", version), number(student, "tokens", "4", version), half
    )
    saved = number(f"{student}-ReGATE", "tokens_saved", "1", version)
    assert 100 * (1 - high) - 0.005 <= saved <= 100 * (1 - low) + 0.005


def test_fast_row_is_a_checkpoint_of_the_same_run_except_for_videochat2():
    def shares(student, hours, version, half):
        fast, whole = f"{student}-ReGATE @ baseline's peak", f"{student}-ReGATE"
        tokens = between(number(fast, "tokens", "4", version), number(whole, "tokens", "4", version), half)
        time = between(number(fast, hours, "4", version), number(whole, hours, "4", version), 0.05)
        return tokens[0] <= time[1] and time[0] <= tokens[1]

    assert shares("VideoLLaMA2", "train_hours", "v1", 5e3)
    assert shares("InternVL3.5", "train_gpu_hours", "v2", 5e6)
    assert not shares("VideoChat2", "train_hours", "v1", 5e6)  # noted: the paper disagrees with itself


@pytest.mark.parametrize("student", ["VideoLLaMA2", "VideoChat2"])
def test_gpu_hours_are_four_gpus(student):
    for row in (student, f"{student}-ReGATE", f"{student}-ReGATE @ baseline's peak"):
        assert number(row, "train_gpu_hours", "4", "v2") == pytest.approx(4 * number(row, "train_hours"))
        assert number(row, "tokens", "4", "v2") == number(row, "tokens")


def test_claims_of_the_text():
    claims = {(c["version"], c["text"]): c["value"] for c in PUBLISHED["claims"]}
    peaks = [
        number(f"{s}-ReGATE @ baseline's peak", "tokens", "4", v) / number(s, "tokens", "4", v) for s, v, _ in STUDENTS
    ]
    assert (
        round(100 * peaks[0])
        == claims["v1", "VideoLLaMA2 reaches the peak of standard training with this share of the tokens"]
    )
    assert round(100 * sum(peaks) / 3) == 38
    for (version, words), value in claims.items():
        gain = re.fullmatch(r"(.+), (\w+): gain", words)
        if gain:
            benchmark, student = gain.groups()
            table = next(c["table"] for c in PUBLISHED["cells"] if c["column"] == benchmark and c["student"] == student)
            got = number(f"{student}-ReGATE", benchmark, table, version) - number(student, benchmark, table, version)
            assert got == pytest.approx(value, abs=1e-6)
    wrong = claims["v1", "VideoLLaMA2-ReGATE trained to the end processes this many fewer tokens"]
    assert wrong == 41.51 != number("VideoLLaMA2-ReGATE", "tokens_saved", "1")
    assert any("41.51" in note["text"] for note in PUBLISHED["notes"])


def test_tables_agree_with_each_other():
    for student in ("VideoLLaMA2", "VideoChat2"):
        for row in (student, f"{student}-ReGATE"):
            assert number(row, "MVBench") == number(row, "MVBench", "3")
            assert len({number(row, "tokens", table) for table in "1234"}) == 1
    assert number("VideoLLaMA2-ReGATE (lambda 0.5)", "MVBench", "5") == number("VideoLLaMA2-ReGATE", "MVBench")
    average = number("VideoLLaMA2-ReGATE", "accuracy_average", "4", "v2")
    assert number("VideoLLaMA2-ReGATE (lambda 0.5)", "accuracy_average", "5", "v2") == average
    assert number("VideoLLaMA2-ReGATE (teacher Qwen2-7B)", "accuracy_average", "teacher", "v2") == average


def test_savings_stay_below_what_the_schedule_can_save():
    limit = 100 * (1 - (16 + 0.5 * 112) / 128)
    assert limit == 43.75
    assert all(c["value"] < limit for c in PUBLISHED["cells"] if c["column"] == "tokens_saved")


def test_every_number_is_what_was_printed():
    """The value of a cell is the number in its raw text."""
    for cell in PUBLISHED["cells"]:
        if cell["value"] is None:
            assert cell["raw"] in ("–", "-") or cell["unit"] == "text", cell
            continue
        scale = {"M": 1e6, "B": 1e9}.get(cell["raw"][-1], 1) if cell["unit"] == "tokens" else 1
        printed = [float(text) * scale for text in re.findall(r"\d+(?:\.\d+)?", cell["raw"])]
        assert any(value == pytest.approx(cell["value"]) for value in printed), cell
    keys = [(c["table"], c["version"], c["row"], c["column"]) for c in PUBLISHED["cells"]]
    assert len(keys) == len(set(keys))
    assert {c["table"] for c in PUBLISHED["cells"]} == {"1", "2", "3", "4", "5", "6", "teacher"}


# --- table 4 ---


def cell(table: pd.DataFrame, method: str, column: str, origin: str = "own") -> pd.Series:
    found = table[(table.method == method) & (table.column == column) & (table.origin == origin)]
    assert len(found) == 1, (method, column, len(found))
    return found.iloc[0]


def words(table: pd.DataFrame, kind: str = render.WORDS) -> str:
    return "\n".join(table[table.column == kind].text)


def test_measured_rows_hold_what_records_hold():
    one = runs(1)
    table = table4(one, PUBLISHED)
    by_method = {r.method: r for r in one}
    for method, run in by_method.items():
        for kind, count in run.tokens.items():
            assert cell(table, method, f"tokens.{kind}").value == count
        assert cell(table, method, "train_seconds").value == run.train_seconds
        assert cell(table, method, "flops").value == run.flops["decoder"] + run.flops["head"]
        final = run.benchmarks[-1]
        expected = sum(score["correct"] / score["n"] for score in final.tasks.values()) / len(final.tasks)
        accuracy = cell(table, method, "accuracy")
        assert accuracy.value == pytest.approx(100 * expected)
        assert accuracy.low < accuracy.value < accuracy.high
        assert cell(table, method, "chance").value == 25
    assert cell(table, "regate", "tokens.paper.change").value == pytest.approx(-40)
    assert cell(table, "regate", "train_seconds.change").value == pytest.approx(-25)
    assert cell(table, "regate", "teacher.seconds").value == 6.0


def test_one_seed_has_no_interval_over_seeds():
    table = table4(runs(1), PUBLISHED)
    assert not (table.over == "seeds").any()
    assert "one seed" in render.to_markdown(table, EFFICIENCY)
    assert cell(table, "regate", "accuracy.difference").over == "questions"


def test_several_seeds_are_means_with_paired_differences():
    five = runs(5)
    table = table4(five, PUBLISHED)
    scores = {
        m: compare.accuracy(compare.at_end(g), "mvbench").by_seed for m, g in compare.groups(five)[0].methods.items()
    }
    gaps = [100 * (scores["regate"][seed] - scores["stock"][seed]) for seed in range(5)]
    difference = cell(table, "regate", "accuracy.difference")
    assert difference.value == pytest.approx(sum(gaps) / 5)
    assert (difference.over, difference.seeds) == ("seeds", 5)
    assert difference.low < difference.value < difference.high
    seen = "no difference seen" in difference.text
    assert seen == (difference.low <= 0 <= difference.high)
    assert cell(table, "stock", "accuracy.seeds").over == "seeds"
    assert "5 seeds" in words(table)
    assert "Placebo" in words(table)


def test_a_difference_that_is_there_is_said():
    """The same gain for every seed: higher, in pairs, though seeds lie far apart."""

    def scored(run, right):
        bits = {task: [i < right for i in range(80)] for task in TASKS}
        chance = dict.fromkeys(TASKS, 0.25)
        return dataclasses.replace(
            run, benchmarks=[Benchmark.from_bits("mvbench-twin", STEPS, "rank", bits, chance, "q")]
        )

    far = {0: 30, 1: 50, 2: 40}
    made = [scored(record("stock", s), n) for s, n in far.items()] + [
        scored(record("regate", s), n + 4) for s, n in far.items()
    ]
    difference = cell(table4(made, PUBLISHED), "regate", "accuracy.difference")
    assert difference.text.startswith("higher by 5.0 points")


def test_crossing_row_is_the_checkpoint_that_reaches_the_peak():
    one = runs(1)
    pair = compare.reached({0: one[0]}, {0: one[2]})[0]
    table = table4([*one[:2], record("regate", at=pair.at.step)], PUBLISHED)
    assert cell(table, "regate_at_peak", "tokens.paper").value == pair.at.tokens["paper"]
    assert cell(table, "regate_at_peak", "steps").value == pair.at.step < STEPS
    there = sum(score["correct"] for score in record("regate", at=pair.at.step).benchmarks[0].tasks.values()) / 240
    assert cell(table, "regate_at_peak", "accuracy").value == pytest.approx(100 * there)
    assert cell(table, "regate_at_peak", "peak.tokens.share").value == pytest.approx(pair.share("tokens"))
    shown = render.to_markdown(table, EFFICIENCY)
    assert f"reached with {pair.share('tokens'):.0f} % of the tokens" in shown
    assert "peak_memory_bytes" not in set(table[table.method == "regate_at_peak"].column)


def test_crossing_that_was_not_scored_is_missing_and_never_another_checkpoint():
    table = table4([record("stock"), record("regate", at=None)], PUBLISHED)
    row = set(table[(table.method == "regate_at_peak") & (table.origin == "own")].column)
    assert "tokens.paper" in row
    assert "accuracy" not in row


def test_peak_that_is_not_reached_is_said():
    table = table4([record("stock"), record("regate", final=0.6)], PUBLISHED)
    assert cell(table, "regate_at_peak", "tokens.paper").text == "not reached"
    shown = render.to_markdown(table, EFFICIENCY)
    assert re.search(r"ReGATE at baseline's peak +\| +own micro \|[^\n]*not reached", shown)
    assert "on validation): not reached" in words(table)


def test_some_seeds_reach_and_some_do_not():
    made = [record("stock", s) for s in range(3)] + [record("regate", s, final=0.6 if s else 0.9) for s in range(3)]
    table = table4(made, PUBLISHED)
    assert (
        cell(table, "regate_at_peak", "peak.reached").value,
        cell(table, "regate_at_peak", "peak.reached").seeds,
    ) == (1, 3)
    assert "reached in 1 of 3 seeds" in words(table)
    assert "1 of 3" in render.to_markdown(table, EFFICIENCY)


def test_placebo_is_another_seed_of_the_baseline():
    """Of two seeds the better reaches the other's peak, and the worse does not."""
    two = {0: record("stock", 0, final=0.70), 1: record("stock", 1, final=0.80)}
    low, high = compare.placebo(two)
    assert (low.record.seed, high.record.seed) == (1, 0)
    assert low.at.step < STEPS
    assert high.at is None
    assert compare.placebo({0: two[0]}) == []


def test_short_curves_have_no_peak():
    short = [dataclasses.replace(run, curve=run.curve[:2]) for run in runs(1)]
    assert "fewer than three evaluations" in words(table4(short, PUBLISHED))


def test_crossing_read_against_an_older_baseline_is_noted():
    made = [record("stock"), record("regate", crossing={"step": 20, "target": 0.1})]
    assert "recorded its crossing at step 20" in words(table4(made, PUBLISHED), render.NOTE)


def test_groups_do_not_mix():
    """Committed and own runs, and scales, are compared within themselves; of two runs of a seed the newest counts."""
    newer = record("regate", final=0.9, name="again", finished="2025-12-01T00:00:00+00:00", skipped_samples=7)
    made = [*committed(runs(2)), record("stock"), record("regate"), newer, record("regate", scale="small")]
    table = table4(made, PUBLISHED)
    assert set(table[table.column == "steps"].origin) == {"committed", "own"}
    assert cell(table, "stock", "accuracy", "committed").seeds == 2
    small = table[(table.scale == "small") & (table.column == "tokens.paper.change")]
    assert small.empty
    assert "micro): no run" not in words(table, render.NOTE)
    assert "own, small): no run of the stock Trainer" in words(table, render.NOTE)
    micro = table[(table.scale == "micro") & (table.origin == "own") & (table.method == "regate")]
    assert micro[micro.column == "skipped_samples"].value.item() == 7


def test_times_beside_other_work_or_on_another_machine_are_not_compared_in_silence():
    beside = table4([record("stock"), record("regate", alone=False)], PUBLISHED)
    assert cell(beside, "regate", "train_seconds").text == "†"
    assert "2.5 min†" in render.to_markdown(beside, EFFICIENCY)
    machine = record().hardware | {"cpu": "another"}
    other = table4([record("stock"), record("regate", hardware=machine)], PUBLISHED)
    assert other[(other.method == "regate") & (other.column == "train_seconds.change") & (other.origin == "own")].empty


def test_other_protocols_and_other_questions_are_not_compared():
    asked = record("regate")
    for changes in ({"protocol": "letter"}, {"questions": "q2"}):
        changed = [dataclasses.replace(b, **changes) for b in asked.benchmarks]
        table = table4([record("stock"), dataclasses.replace(asked, benchmarks=changed)], PUBLISHED)
        assert table[(table.method == "regate") & (table.column == "accuracy.difference")].empty
        assert "not scored in the same way" in words(table)


def test_what_was_not_measured_is_a_dash():
    bare = {"tokens": {"paper": 10}, "flops": {}, "train_seconds": None, "peak_memory_bytes": None, "benchmarks": ()}
    table = table4([record("stock", **bare)], PUBLISHED)
    line = next(line for line in render.to_markdown(table, EFFICIENCY).splitlines() if "stock Trainer" in line)
    assert [part.strip() for part in line.split("|")[4:-1]] == ["10", "-", "-", "-", "-", "-", "-"]


def test_records_of_other_tables_stay_out():
    assert table4([record(table="table5")], PUBLISHED).equals(table4([], PUBLISHED))
    assert tables.files([record(table="table5")], PUBLISHED) == {}


# --- rendering ---


def test_published_numbers_are_shown_as_printed():
    shown = render.to_markdown(table4([], PUBLISHED), EFFICIENCY)
    for text in (
        "83.82M",
        "49.27M (-41.2 %)",
        "29.32M (-65.0 %)",
        "32.4 h",
        "16.0 h",
        "435.2 GPU-h",
        "69.1 GB",
        "3.93B",
    ):
        assert text in shown, text
    assert "published v1" in shown
    assert "published v2" in shown


def test_columns_of_markdown_line_up_and_latex_is_balanced():
    table = table4(runs(2), PUBLISHED)
    block = []
    for line in [*render.to_markdown(table, EFFICIENCY).splitlines(), ""]:
        if line.startswith("|"):
            block.append(line)
        elif block:
            assert len({len(one) for one in block}) == 1
            block = []
    latex = render.to_latex(table, EFFICIENCY)
    rows = [line for line in latex.splitlines() if line.endswith(r"\\") and not line.startswith(r"\multi")]
    assert {len(re.findall(r"(?<!\\)&", line)) for line in rows} == {len(EFFICIENCY.parts[0].columns) - 1}
    assert not re.search(r"(?<!\\)%", "\n".join(rows))


def test_csv_reads_back():
    table = table4(runs(2), PUBLISHED)
    text = render.to_csv(table)
    lines = text.splitlines()
    assert lines[0].split(",") == list(render.CELL)
    assert len(pd.read_csv(pd.io.common.StringIO(text))) == len(table)


@pytest.mark.parametrize(
    ("form", "value", "expected"),
    [
        (render.si, 999, "999"),
        (render.si, 1.51e9, "1.51B"),
        (render.si, 999_999, "1.00M"),
        (render.tokens, 83_820_000, "83.82M"),
        (render.tokens, 360_000, "360K"),
        (render.flops, 2.5e12, "2.50 T"),
        (render.flops, 4e9, "4.00 G"),
        (render.duration, 57_600, "16.0 h"),
        (render.duration, 200, "3.3 min"),
        (render.duration, 6, "6.0 s"),
        (render.size, 69.1e9, "69.1 GB"),
        (render.signed_percent, -0.04, "0.0 %"),
        (render.signed_percent, -0.96, "-1.0 %"),
    ],
)
def test_forms(form, value, expected):
    assert form(value) == expected


# --- the command ---


@pytest.fixture
def results(tmp_path):
    """A results directory with committed records, and a runs directory beside it."""
    (tmp_path / "results").mkdir()
    shutil.copy(ROOT / "results" / "published.json", tmp_path / "results")
    for run in runs(2):
        write(run, tmp_path / "results" / "records")
    return tmp_path


def command(folder: Path, *options: str) -> int:
    return tables.main(["--results", str(folder / "results"), "--runs", str(folder / "runs"), *options])


def test_check_names_what_is_stale(results, capsys):
    assert command(results, "--check") == 1
    assert "table4.md: missing" in capsys.readouterr().err
    assert command(results) == 0
    assert command(results, "--check") == 0
    made = results / "results" / "tables"
    assert sorted(path.name for path in made.iterdir()) == ["table4.csv", "table4.md", "table4.tex"]
    (made / "table4.md").write_text((made / "table4.md").read_text().replace("83.82M", "83.83M"))
    (made / "table9.csv").write_text("")
    capsys.readouterr()
    assert command(results, "--check") == 1
    said = capsys.readouterr().err
    assert "table4.md: differs" in said
    assert "table9.csv: comes from no record" in said
    assert "table4.csv" not in said
    write(record("stock", 0, final=0.5), results / "results" / "records")
    command(results, "--check")
    assert "table4.csv: differs" in capsys.readouterr().err


def test_own_runs_are_shown_and_stay_out_of_results(results, capsys):
    command(results)
    before = (results / "results" / "tables" / "table4.md").read_text()
    write(record("stock", 0, dirty=True), results / "runs" / "records")
    capsys.readouterr()
    assert command(results) == 0
    printed = capsys.readouterr().out
    assert "own micro" in printed
    assert "committed micro" in printed
    assert (results / "results" / "tables" / "table4.md").read_text() == before
    assert "own micro" in (results / "runs" / "tables" / "table4.md").read_text()
    assert command(results, "--check") == 0


def test_damaged_records_are_named_and_fail_the_check(results, capsys):
    command(results)
    (results / "runs" / "records").mkdir(parents=True)
    (results / "runs" / "records" / "mine.json").write_text("{")
    assert command(results) == 0
    assert "mine.json" in capsys.readouterr().err
    victim = next((results / "results" / "records").glob("*stock-s0.json"))
    victim.write_text(json.dumps({"schema": 7}))
    assert command(results, "--check") == 1
    assert "field 'schema'" in capsys.readouterr().err


def test_command_in_an_empty_folder_shows_what_is_published(tmp_path):
    (tmp_path / "results").mkdir()
    shutil.copy(ROOT / "results" / "published.json", tmp_path / "results")
    environment = {"PYTHONPATH": str(ROOT)}
    run = [sys.executable, "-m", "repro.tables"]
    done = subprocess.run(run, cwd=tmp_path, env=environment, text=True, capture_output=True, check=True)
    assert "83.82M" in done.stdout
    assert command(tmp_path, "--check") == 0
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["published.json", "results"]


def test_committed_tables_are_fresh(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert tables.main(["--check"]) == 0
