"""Every page by AppTest: on committed results, on none, on damaged ones, and in the states that a URL asks for."""

import json
import shutil

import pytest
from streamlit.testing.v1 import AppTest

from tests.app.support import DENSE, MAIN, REGATE, SHOWN_FIRST

PAGES = {
    "losses": "Token losses", "gating": "Gating over training", "efficiency": "Efficiency",
    "ablations": "Ablations", "tables": "Tables",
}  # fmt: skip


def run(page: str = "losses", **query: str) -> AppTest:
    """The app on a page; no page may end in an exception."""
    app = AppTest.from_file(str(MAIN), default_timeout=120)
    for name, value in query.items():
        app.query_params[name] = value
    app.run()
    if page != "losses":
        app.switch_page(f"screens/{page}.py").run()
    assert not app.exception, app.exception
    return app


def metric(app: AppTest, label: str) -> str:
    return next(metric.value for metric in app.metric if metric.label == label)


def texts(app: AppTest) -> str:
    kinds = (app.error, app.info, app.warning, app.markdown, app.caption, app.code)
    return "\n".join(str(element.value) for kind in kinds for element in kind)


@pytest.mark.parametrize("page", PAGES)
def test_every_page_shows_committed_results(results, page):
    app = run(page)
    assert [head.value for head in app.header] == [PAGES[page]]
    assert not app.error
    assert not app.warning


@pytest.mark.parametrize("page", PAGES)
def test_an_empty_installation_says_which_command_makes_the_first_record(results, page):
    for folder in ("records", "artefacts"):
        shutil.rmtree(results / folder)
    app = run(page)
    assert not app.error
    assert "make repro-table" in texts(app)


@pytest.mark.parametrize("page", PAGES)
def test_a_damaged_record_is_named_and_the_page_goes_on(results, page):
    path = results / "records" / f"{DENSE}.json"
    path.write_text('{"name": "half')
    app = run(page)
    assert [head.value for head in app.header] == [PAGES[page]]
    assert str(path) in app.error[0].value
    assert len(app.error) == 1


@pytest.mark.parametrize("page", ["losses", "gating"])
def test_a_trace_that_is_gone_is_named(results, page):
    (results / "artefacts" / SHOWN_FIRST / "trace.parquet").unlink()
    app = run(page)
    assert "trace.parquet" in app.error[0].value


def test_published_numbers_that_are_gone_are_named(results):
    (results / "published.json").unlink()
    assert "published.json" in run("tables").error[0].value


# --- token losses ---


def test_the_sliders_decide_what_is_kept(results):
    app = run()
    kept, of = metric(app, "Tokens kept").split(" of ")
    assert int(kept) == -(-int(of) // 2)
    app.slider(key="ratio").set_value(0.25).run()
    assert int(metric(app, "Tokens kept").split(" of ")[0]) == -(-int(of) // 4)
    app.slider(key="ratio").set_value(1.0).run()
    assert metric(app, "Tokens kept") == f"{of} of {of}"


def test_another_run_brings_its_own_samples(results):
    app = run()
    app.selectbox(key="sample").set_value(app.selectbox(key="sample").options[3]).run()
    app.selectbox(key="run").set_value(DENSE).run()
    assert not app.exception
    assert not app.error
    assert "Visual tokens kept" in [metric.label for metric in app.metric]


def test_the_url_presets_a_state(results):
    app = run(source="The paper's examples", ratio="0.75")
    assert metric(app, "Tokens kept") == "6 of 8"
    assert app.slider(key="lambda").value == 0.5


def test_nonsense_in_the_url_is_ignored(results):
    app = run(source="Nobody", ratio="lots", run="../../etc/passwd")
    assert app.slider(key="ratio").value == 0.5
    assert not app.error


def test_a_text_is_scored_by_the_committed_student(results):
    app = run(source="Your text", question="what happens?", answer="a small red ball slides left.")
    assert "make teacher" in texts(app)
    assert int(metric(app, "Tokens kept").split(" of ")[1]) >= 7
    assert "No student has seen it" in texts(app)


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ({"answer": ""}, "The answer is empty"),
        ({"answer": "ball " * 2000}, "reads 512 at most"),
        ({"teacher": "another model, by its folder", "teacher_path": "/nowhere"}, "/nowhere: no such folder"),
    ],
)
def test_bad_texts_and_teachers_are_named_on_the_page(results, query, words):
    app = run(source="Your text", **query)
    assert words in app.error[0].value
    assert [head.value for head in app.header] == ["Token losses"]


def test_samples_of_a_file_are_ranked(results):
    app = run(source="Your file")
    rows = [{"id": f"s{i}", "question": "what happens?", "answer": text}
            for i, text in enumerate(["a ball.", "a small red ball slides left, then hops.", ""])]  # fmt: skip
    app.file_uploader[0].set_value(("mine.json", json.dumps(rows).encode(), "application/json")).run()
    assert not app.exception
    assert {"Most visual", "Least visual"} <= {head.value for head in app.subheader}
    assert "1 of 3 samples left out" in [expander.label for expander in app.expander]


@pytest.mark.parametrize("raw", [b"\x00\xff\xfe", b"[{", b"[]"])
def test_a_damaged_file_is_named(results, raw):
    app = run(source="Your file")
    app.file_uploader[0].set_value(("mine.json", raw, "application/json")).run()
    assert app.error[0].value.startswith("mine.json")


# --- gating ---


def test_play_walks_through_the_visits_and_stops(results):
    app = run("gating")
    slider = app.select_slider(key="step")
    steps = [int(option) for option in slider.options]
    assert slider.value == steps[-1]
    app.button(key="play").click().run()
    seen = [app.select_slider(key="step").value]
    for _ in range(len(steps) + 2):  # what the fragment's clock would do
        app.run()
        assert not app.exception
        seen.append(app.select_slider(key="step").value)
    assert list(dict.fromkeys(seen)) == steps
    assert not app.session_state["playing"]


def test_the_gates_sliders_start_where_the_run_stood(results):
    app = run("gating")
    app.selectbox(key="run").set_value(REGATE).run()
    assert "Exactly what the run decided." in texts(app)
    app.slider(key="gate_ratio").set_value(0.2).run()
    assert "Not what the run decided" in texts(app)


# --- ablations and tables ---


@pytest.mark.parametrize("axis", ["The teacher's capacity", "The ratio kept", "Which positions", "Which method"])
def test_every_axis_is_shown(results, axis):
    app = run("ablations", axis=axis)
    assert not app.error


@pytest.mark.parametrize("table", ["1 · Image understanding", "3 · Short video", "5 · λ", "6 · Prompts"])
def test_every_table_is_shown(results, table):
    app = run("tables", table=table)
    assert not app.error


def test_a_link_opens_the_records_behind_a_number(results):
    app = run("tables", behind="InternVL3.5/micro/committed/regate")
    assert app.selectbox(key="record").value == REGATE
    assert "gate" in app.json[0].value


def test_a_number_of_a_benchmark_opens_result_and_training_run(results):
    app = run("tables", table="3 · Short video", behind="InternVL3.5/micro/committed/regate")
    assert app.selectbox(key="result").value == f"{REGATE}: mvbench"
    assert app.selectbox(key="record").value == REGATE


def test_a_damaged_result_is_named_and_the_table_goes_on(results):
    path = results / "evaluations" / REGATE / "mvbench.json"
    path.write_text(path.read_text()[:300])
    app = run("tables", table="3 · Short video")
    assert str(path) in app.error[0].value
    assert len(app.error) == 1


def test_a_link_of_another_checkout_says_so(results):
    assert "No record fits" in run("tables", behind="a/b/c/d").warning[0].value
