"""Many runs: what is fresh is reused, baselines come first, one failure stops no other."""

import types

import pytest

from repro import grid, recipes


@pytest.fixture
def started(monkeypatch) -> list[str]:
    names: list[str] = []

    def start(name, runs, seeds, jobs, options):
        names.append(name)
        return 1 if name == "table5-internvl-lambda1-s0" else 0

    monkeypatch.setattr(grid, "_start", start)
    monkeypatch.setattr(grid, "Material", lambda *args: types.SimpleNamespace(prepare=lambda teacher: None))
    monkeypatch.setattr(grid, "existing", lambda recipe, material, records: recipe.method == "dense")
    return names


@pytest.mark.parametrize("jobs", [1, 2])
def test_order_reuse_and_failures(started, tmp_path, capsys, jobs):
    wanted = recipes.table4_and(("5",), 1)
    assert grid.run_all(wanted, tmp_path, 1, jobs) == 1
    said = capsys.readouterr()
    assert "table4-internvl-dense-s0: there and fresh" in said.out
    assert "failed: table5-internvl-lambda1-s0" in said.err
    missing = {recipe.name for recipe in wanted if recipe.method != "dense"}
    assert set(started) == missing
    assert started[-1] == "table4-internvl-regate-s0"  # read against the baseline, so after it
    assert len(started) == len(missing)


def test_what_cannot_be_prepared_stops_no_other_run(started, tmp_path, capsys, monkeypatch):
    def prepare(teacher):
        if teacher == "larger":
            raise FileNotFoundError("results/teachers/internvl-larger holds no teacher: run `make teachers`")

    monkeypatch.setattr(grid, "Material", lambda *args: types.SimpleNamespace(prepare=prepare))
    wanted = recipes.table4_and(("5",), 1)
    assert grid.run_all(wanted, tmp_path, 1) == 1
    said = capsys.readouterr().err
    assert "cannot run: FileNotFoundError: results/teachers/internvl-larger" in said
    assert "table5-internvl-teacher-larger-s0" in said.splitlines()[-1]
    missing = {recipe.name for recipe in wanted if recipe.method != "dense"}
    assert set(started) == missing - {"table5-internvl-teacher-larger-s0"}
