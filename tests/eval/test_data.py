"""Twins and folders of the user reach lmms-eval's stock code by the same way: links below HF_HOME."""

from pathlib import Path

import pytest

from eval import data as datasource
from eval.benchmarks import BENCHMARKS
from eval.run import suite
from eval.twins import TWINS


def test_a_folder_is_found_as_a_twin_is(twins, tmp_path):
    root = tmp_path / "benchmarks"
    root.mkdir()
    for name in ("mvbench", "mlvu", "pope"):
        (root / name).symlink_to(twins.folders[name])
    data = datasource.find(str(root), ["mvbench", "mlvu", "pope"], tmp_path, 1, 0)
    assert data.source == str(root)
    assert data.shown == TWINS["mvbench"].shown
    found = datasource.variables(data, tmp_path / "home", tmp_path / "datasets")
    home = Path(found["HF_HOME"])
    assert (home / "mvbench_video").resolve() == twins.folders["mvbench"] / "video"
    assert (home / "mlvu").resolve() == twins.folders["mlvu"]
    assert sorted(p.name for p in Path(found["REGATE_EVAL_DATA"]).iterdir()) == ["mlvu", "mvbench", "pope"]
    assert datasource.variables(data, tmp_path / "home", tmp_path / "datasets") == found  # and again


def test_one_data_set_may_be_named_itself(twins, tmp_path):
    data = datasource.find(str(twins.folders["videomme"]), ["videomme"], tmp_path, 1, 0)
    assert data.folders == {"videomme": twins.folders["videomme"]}
    with pytest.raises(FileNotFoundError, match=r"no such data sets: .*mme, .*pope; expected a folder for each"):
        datasource.find(str(twins.folders["videomme"]), ["mme", "pope"], tmp_path, 1, 0)


def test_the_hub_needs_no_links(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", "/elsewhere")
    assert datasource.variables(datasource.find("hub", ["mme"], tmp_path, 1, 0), tmp_path, tmp_path) == {
        "HF_HOME": "/elsewhere"
    }


def test_a_fingerprint_is_that_of_the_questions(twins, tmp_path):
    folder = tmp_path / "set"
    (folder / "videos").mkdir(parents=True)
    (folder / "test.json").write_text("[1]")
    (folder / "videos" / "a.mp4").write_bytes(b"01")
    seen = {datasource.fingerprint(folder)}
    for path, data in (("test.json", b"[2]"), ("videos/a.mp4", b"012"), ("videos/b.mp4", b"")):
        (folder / path).write_bytes(data)
        seen.add(datasource.fingerprint(folder))
    assert len(seen) == 4


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_suite_holds_the_tasks_of_its_benchmark(name):
    text = suite(name, BENCHMARKS[name].tasks)
    assert text.startswith(f"group: regate_{name}\n")
    assert [line.split()[2].rstrip(",") for line in text.splitlines() if "{task:" in line] == list(
        BENCHMARKS[name].tasks
    )
    first = BENCHMARKS[name].tasks[0]
    assert [line for line in suite(name, [first]).splitlines() if "{task:" in line] == [
        f"  - {{task: {first}, class: !function eval.suites.task.SuiteTask}}"
    ]
