"""What the views say and draw: strips, charts, tables, colours."""

import dataclasses
import io
import itertools
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
import vl_convert
from PIL import Image

from app import artefacts
from app.artefacts import Places
from app.views import ablations, efficiency, gating, losses, saved, style, tables, theme, tokens
from app.views.examples import EXAMPLES
from app.views.gate import Answer, gate, ties
from app.views.table_picture import picture
from app.views.theme import DARK, LIGHT
from repro import benchmark_tables, compare
from repro.figures import curve_data
from repro.tables import TABLES, read_published, table4
from tests.app.support import REGATE, ROOT
from tests.repro import synthetic
from tests.repro.test_benchmark_tables import result

PAPER = read_published(ROOT / "results" / "published.json")


def answer(words=(" the", " red", " <b>&\"'", "\n", "<end>"), reference=(0.1, 6.0, 2.0, 0.4, 0.2), ema=None) -> Answer:
    n = len(words)
    ema = np.full(n, np.nan) if ema is None else np.array(ema)
    return Answer(
        "what & <why>?", tuple(words), np.array(reference, np.float32), ema.astype(np.float32),
        np.array([word != "<end>" for word in words]), ties(0, 0, n), tuple(["visual"] * (n - 1) + ["special"]),
    )  # fmt: skip


@pytest.fixture
def traced(results):
    places = Places.here()
    trace = next(t for t in artefacts.find_traces(artefacts.load_records(places)[0], places) if t.name == REGATE)
    return artefacts.read_trace(trace)


def png_of(chart, look=LIGHT) -> Image.Image:
    """The chart as a picture; fails where Vega does."""
    spec = theme.dressed(chart.properties(width=600), look).to_dict()
    return Image.open(io.BytesIO(vl_convert.vegalite_to_png(spec)))


def colours_of(picture: Image.Image) -> set[tuple[int, ...]]:
    return {colour[:3] for _, colour in picture.convert("RGB").getcolors(maxcolors=2**24)}


def rgb(colour: str) -> tuple[int, ...]:
    return tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))


# --- strips ---


def spans_of(html: str) -> list[ElementTree.Element]:
    root = ElementTree.fromstring(f"<div>{html.replace('&#8203;', '').replace('&nbsp;', ' ')}</div>")
    return [span for span in root.iter("span") if span.get("role") == "listitem"]


def test_a_strip_escapes_texts_and_marks_what_is_kept():
    one = answer()
    gated = gate(one, 0.5, 0.5)
    spans = spans_of(tokens.strip_html(one, gated, LIGHT))
    assert [span.text for span in spans] == ["the", "red", "<b>&\"'", "↵", "<end>"]
    assert ["kept" in span.get("class").split() for span in spans] == gated.kept.tolist()
    assert "elided" in spans[0].get("class")
    assert all(span.get("tabindex") == "0" for span in spans)


def test_a_hover_says_the_values():
    one = answer(ema=(0.3, np.nan, 1.0, 0.2, 0.1))
    spans = spans_of(tokens.strip_html(one, gate(one, 0.5, 0.5), LIGHT, ranges=["all"] * 5))
    tip = spans[2].get("data-tip")
    for part in ("teacher  2.00 nat", "student  1.00 nat", "score    1.50 nat, rank 2 of 4", "kept at λ: all"):
        assert part in tip
    assert "student  not observed" in spans[1].get("data-tip")
    assert "a marker, always kept" in spans[4].get("data-tip")


@pytest.mark.parametrize("quantity", tokens.QUANTITIES)
def test_a_strip_exports_as_svg_and_png(quantity):
    one = answer(tuple(f" word{i}" for i in range(60)), np.linspace(0, 9, 60))
    one = dataclasses.replace(one, ema=one.reference / 2)
    gated = gate(one, 0.5, 0.5)
    svg = tokens.strip_svg(one, gated, LIGHT, quantity)
    root = ElementTree.fromstring(svg)
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert [f"word{i}" for i in range(60)] == texts[:60]
    underlines = [e for e in root.iter("{http://www.w3.org/2000/svg}rect") if e.get("height") == "3"]
    assert len(underlines) == gated.kept.sum()
    right = [float(e.get("x")) + float(e.get("width")) for e in underlines]
    assert max(right) <= 900 - 16
    picture = Image.open(io.BytesIO(vl_convert.svg_to_png(svg)))
    top = tokens.fill(np.nanmax(tokens.values_of(one, gated, quantity)), LIGHT)
    assert {rgb(LIGHT.kept), rgb(top)} <= colours_of(picture)


# --- colours ---


@pytest.mark.parametrize("look", [LIGHT, DARK], ids=lambda look: look.name)
def test_texts_can_be_read(look):
    for loss in np.linspace(0, 8, 33):
        assert theme.contrast(look.ink, tokens.fill(loss, look)) >= 4.5, loss
    assert min(theme.contrast(look.muted, ground) for ground in (look.paper, look.panel)) >= 4.5
    assert theme.contrast(look.kept, look.paper) >= 4.5  # links and underlines
    assert all(theme.contrast(colour, look.paper) >= 3 for colour in look.methods.values())


# Machado, Oliveira, Fernandes 2009, severity 1: what protanopes and deuteranopes see, in linear RGB
BLIND = {
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
}


@pytest.mark.parametrize("blindness", BLIND)
@pytest.mark.parametrize("look", [LIGHT, DARK], ids=lambda look: look.name)
def test_colour_blind_readers_tell_what_matters_apart(look, blindness):
    def seen(colour: str) -> np.ndarray:
        linear = (np.array(rgb(colour)) / 255) ** 2.2
        return np.clip(np.array(BLIND[blindness]) @ linear, 0, 1) ** (1 / 2.2)

    pairs = [(look.kept, look.high), (look.kept, look.paper), (look.low, look.high), (look.kept, look.elided)]
    pairs += list(itertools.combinations([look.methods[name] for name in ("stock", "dense", "regate")], 2))
    for one, other in pairs:
        assert np.linalg.norm(seen(one) - seen(other)) > 0.17, (one, other)


def test_styles_name_no_other_host():
    for look in (LIGHT, DARK):
        assert "http" not in style.css(look)
        assert "url(" not in style.css(look)


# --- one answer ---


def test_the_papers_picture_is_gated_as_the_paper_gates_it():
    one = EXAMPLES[0].published()
    kept = [token.strip() for token, keep in zip(one.tokens, gate(one, 0.5, 0.5).kept, strict=True) if keep]
    assert kept == ["tank", "top", "red", "stripe"]


def test_the_summary_counts():
    one = answer()
    said = {label: value for label, value, _ in losses.summary(one, gate(one, 0.5, 0.5))}
    assert said == {
        "Tokens kept": "2 of 4", "Teacher's loss, kept": "4.00 nat", "Teacher's loss, elided": "0.25 nat",
        "Visual tokens kept": "2 of 4",
    }  # fmt: skip


def test_the_table_holds_every_token():
    one = answer(ema=(0.3, np.nan, 1.0, 0.2, 0.1))
    frame = losses.table(one, gate(one, 0.0, 0.5), 0.5)
    assert frame.token.tolist() == list(one.tokens)
    assert frame.kept.sum() == 3  # two and the marker
    assert pd.isna(frame.score[1]), "never observed at lambda 0: first, without a number"


@pytest.mark.parametrize("look", [LIGHT, DARK], ids=lambda look: look.name)
@pytest.mark.parametrize("observed", [True, False])
def test_bars_are_drawn(look, observed):
    one = answer(ema=(0.3, 4.0, 1.0, 0.2, 0.1) if observed else None)
    assert rgb(look.paper) in colours_of(png_of(losses.bars(one, gate(one, 0.5, 0.5), look), look))


def test_the_most_visual_answers_come_first():
    many = [answer((" a", " b"), values) for values in ((0.1, 0.2), (5.0, 4.0), (1.0, 1.0))]
    frame = losses.ranking(many)
    assert frame["index"].tolist() == [1, 2, 0]
    assert frame.above_half_nat.tolist() == [1.0, 1.0, 0.0]
    png_of(losses.ranking_chart(frame, LIGHT))


# --- gating over training ---


def test_the_history_holds_every_visit(traced):
    sample_id, visits = next(iter(traced.visits.items()))
    data = gating.history(traced, sample_id)
    assert len(data) == sum(len(visit.kept) for visit in visits)
    assert data.groupby("step").kept.sum().to_dict() == {visit.step: int(visit.kept.sum()) for visit in visits}
    assert data.until.max() == 256
    assert set(data.decision) <= set(gating.DECISIONS)
    assert (data[data.ratio == 1].decision == gating.DECISIONS[2]).all()


def test_samples_of_which_most_was_elided_come_first(traced):
    visits = list(traced.visits.values())
    ends = [of[-1].dense for of in visits]
    assert ends == sorted(ends)
    elided = [sum(int((~visit.kept).sum()) for visit in of) for of in visits if not of[-1].dense]
    assert elided == sorted(elided, reverse=True)
    assert elided[0] > 0


@pytest.mark.parametrize("by", gating.SHOWN)
def test_the_strip_is_drawn(traced, by):
    data = gating.history(traced, next(iter(traced.visits)))
    picture = png_of(gating.strip(data, LIGHT, now=int(data.step.max()), by=by))
    assert picture.height > gating.ROW * data.position.max()
    if by == "decision":
        assert rgb(LIGHT.kept) in colours_of(picture)


@pytest.mark.parametrize("lambda_", [0.0, 0.3, 0.5, 1.0])
def test_the_line_parts_kept_from_elided(traced, lambda_):
    checked = 0
    for sample_id, visits in traced.visits.items():
        one = traced.answer(sample_id, visits[-1])
        data = gating.points(one, gate(one, lambda_, 0.5), 0.5)
        line = gating.boundary(data, lambda_, top=20.0)
        if line.empty:
            continue
        level = (1 - lambda_) * line.student + lambda_ * line.teacher
        assert np.allclose(level, level.iloc[0], atol=1e-4)
        assert data[data.decision == "kept"].score.min() >= level.iloc[0] - 1e-4
        assert data[data.decision == "elided"].score.max() <= level.iloc[0] + 1e-4
        png_of(gating.scatter(data, LIGHT, lambda_)) if checked < 2 else None
        checked += 1
    assert checked or lambda_ == 0.0  # at 0 what was never observed ranks first, without a score


def test_the_sliders_say_whether_they_stand_where_the_run_stood(traced):
    sample_id, visit = next((s, v) for s, vs in traced.visits.items() for v in vs if not v.dense)
    one = traced.answer(sample_id, visit)
    assert gating.agreement(one, visit, 0.5, 0.5, "convex") == "Exactly what the run decided."
    assert "differ" in gating.agreement(one, visit, 0.5, 0.2, "convex")


def test_shares_kept_by_kind_are_those_of_the_trace(traced):
    shares = gating.kept_by_tag(traced, bins=1)
    kept = candidates = 0
    for sample_id, visits in traced.visits.items():
        for visit in visits:
            if not visit.dense:
                mask = traced.answer(sample_id, visit).candidate
                kept, candidates = kept + int(visit.kept[mask].sum()), candidates + int(mask.sum())
    assert shares.tokens.sum() == candidates
    assert round((shares.share * shares.tokens).sum()) == kept
    png_of(gating.tag_chart(shares, LIGHT, 256))


# --- efficiency ---


def group_of(records) -> compare.Group:
    return next(iter(efficiency.groups(synthetic.committed(records)).values()))


@pytest.mark.parametrize(("final", "words"), [(0.9, "reaches the baseline's peak"), (0.5, "does not reach")])
@pytest.mark.parametrize("axis", efficiency.AXES)
def test_the_arrow_says_whether_the_peak_is_reached(final, words, axis):
    runs = [synthetic.record(method, seed, final=final if method == "regate" else 0.8)
            for method in synthetic.SHARE for seed in range(3)]  # fmt: skip
    data = curve_data(group_of(runs))
    assert words in efficiency.verdict(data, axis)
    for look in (LIGHT, DARK):
        assert rgb(look.methods["regate"]) in colours_of(png_of(efficiency.chart(data, look, axis), look))


def test_the_summary_compares_with_the_baseline():
    said = {label: value for label, value, _ in efficiency.summary(group_of(synthetic.runs(3)))}
    assert said["Tokens"] == "−40.0 %"
    assert set(said) == {"Tokens", "Train time", "FLOPs", "Accuracy"}


# --- ablations ---


def test_values_of_an_axis_stand_together_only_where_all_else_is_equal():
    def run(lambda_, seed, lr=1e-3):
        gate_settings = {"policy": "regate", "lambda_": lambda_, "keep_ratio": 0.5}
        name = f"t5-{lambda_}-{lr}-s{seed}"
        return synthetic.record("regate", seed, name=name, table="5",
                                config=synthetic.config("regate", seed, gate=gate_settings, lr=lr))  # fmt: skip

    records = [run(value, seed) for value in (0.0, 0.5, 1.0) for seed in range(2)]
    records += [run(0.5, 0, lr=5e-3), run(1.0, 0, lr=5e-3), run(0.5, 0, lr=7e-3)]  # the last varies nothing
    axis = ablations.AXES["lambda"]
    frame = ablations.measured(records, axis, "mvbench")
    assert frame[frame.setting == 1].value.tolist() == [0.0, 0.5, 1.0]
    assert frame.seeds.tolist() == [2, 2, 2, 1, 1]
    assert frame.setting.nunique() == 2
    assert ablations.measured(records[-1:], axis, "mvbench").value.tolist() == [0.5]
    png_of(ablations.measured_chart(frame, axis, LIGHT))


def test_published_ablations_are_the_papers():
    frame = ablations.published(PAPER, ablations.AXES["lambda"])
    first = frame[frame.version == "v1"].set_index("value").accuracy
    assert first.to_dict() == {0.0: 51.3, 0.5: 53.6, 1.0: 51.1}
    teachers = ablations.published(PAPER, ablations.AXES["teacher"])
    assert dict(zip(teachers.value, teachers.accuracy, strict=True)) == {
        "Qwen2-1.5B": 45.4, "Qwen2-57B": 46.8, "Qwen2-7B": 48.9,
    }  # fmt: skip
    assert teachers.value.tolist() == ["Qwen2-1.5B", "Qwen2-7B", "Qwen2-57B"]
    for name in ("lambda", "teacher"):
        png_of(ablations.published_chart(ablations.published(PAPER, ablations.AXES[name]), ablations.AXES[name], LIGHT))


@pytest.mark.parametrize("name", ablations.AXES)
def test_committed_records_fit_the_axes(results, name):
    records, _ = artefacts.load_records(Places.here())
    frame = ablations.measured(records, ablations.AXES[name], "mvbench")
    if not frame.empty:
        png_of(ablations.measured_chart(frame, ablations.AXES[name], DARK), DARK)


# --- tables ---


def test_every_measured_number_links_to_the_runs_behind_it(results):
    records, _ = artefacts.load_records(Places.here())
    build, layout = TABLES["4"]
    grid = tables.layout_grid(build(records, PAPER), layout, 0)
    column = grid.heads.index("accuracy %")
    linked = [row for row, measured in zip(grid.rows, grid.measured, strict=True) if measured]
    assert linked
    for row in linked:
        key = row[column].runs
        runs = tables.runs_behind(records, key, "4")
        assert runs, key
        if row[column].text != "not reached":
            found = compare.accuracy(compare.at_end({run.seed: run for run in runs}), "mvbench")
            assert row[column].text.startswith(f"{found.percent:.1f}")
        assert f"behind={key.replace('/', '%2F')}" in tables.to_html(grid, "4")


@pytest.mark.parametrize("number", ["1", "2", "3", "5", "6", "teacher"])
def test_published_numbers_stand_as_printed(number):
    grid = tables.paper_grid(PAPER, number)
    ours = [c for c in PAPER["cells"] if c["table"] == number and c["column"] not in tables.SKIPPED]
    printed = " ".join(cell.text for row in grid.rows for cell in row)
    for cell in ours:
        if cell["value"] is not None:
            assert tables._printed(cell) in printed
    assert not any(grid.measured)
    ElementTree.fromstring(tables.to_html(grid, number))


def test_a_pair_in_one_cell_is_taken_apart():
    grid = tables.paper_grid(PAPER, "1")
    row = next(row for row in grid.rows if row[0].text == "InternVL3.5-ReGATE")
    values = dict(zip(grid.heads, (cell.text for cell in row), strict=True))
    assert (values["MME cognition"], values["MME perception"]) == ("689.3", "1698.8")


def test_results_on_benchmarks_link_to_themselves_and_to_the_training_runs():
    records = synthetic.committed(synthetic.runs(2))
    found = [result(f"table4-internvl-{method}-s{seed}") for method in ("stock", "regate") for seed in (0, 1)]
    runs = benchmark_tables.evaluated([*((one, "committed") for one in found), (result("mine"), "own")])
    table = benchmark_tables.table("2", runs, records, PAPER)
    grid = tables.layout_grid(table, benchmark_tables.layout("2"), 0)
    column = grid.heads.index("VideoMME")
    rows = {row[0].text: row for row in grid.rows if row[column].runs}
    assert set(rows) == {"baseline (stock Trainer)", "ReGATE", "mine"}, "a guesser has no record"
    scored = tables.evaluations_behind(runs, rows["ReGATE"][column].runs, "2")
    assert [(run.method, run.seed) for run in scored] == [("regate", 0), ("regate", 1)]
    assert tables.evaluations_behind(runs, rows["ReGATE"][column].runs, "4") == []
    assert [run.name for run in tables.evaluations_behind(runs, rows["mine"][column].runs, "2")] == ["mine"]
    assert "75.0" in dict(tables.result_details(scored[0].results["videomme"]))["Scores"]


@pytest.mark.parametrize("number", ["4", "6"])
@pytest.mark.parametrize("look", [LIGHT, DARK])
def test_tables_are_pictures_too(number, look):
    records = synthetic.committed(synthetic.runs(2))
    build, layout = TABLES["4"]
    grid = tables.layout_grid(build(records, PAPER), layout, 0) if number == "4" else tables.paper_grid(PAPER, number)
    drawn = picture(grid, look, "Table <1>")
    with Image.open(io.BytesIO(saved.png(drawn, 60))) as image:
        assert image.convert("RGB").getpixel((1, 1)) == rgb(look.paper)
    said = "".join(ElementTree.fromstring(saved.svg(drawn)).itertext())
    assert "Table <1>" in said
    for row in grid.rows:
        assert row[0].text.split()[0] in said


def test_a_link_of_another_checkout_fits_nothing():
    assert tables.runs_behind(synthetic.runs(1), "a/b/c/d", "4") == []


def test_runs_of_table_4_are_found_from_other_tables(results):
    records, _ = artefacts.load_records(Places.here())
    runs = tables.runs_behind(records, "InternVL3.5/micro/committed/regate", "5")
    assert REGATE in {run.name for run in runs}


def test_the_menu_holds_the_papers_tables_and_ours_that_have_a_record():
    records = [dataclasses.replace(synthetic.record("regate", 0), table="rivals")]
    found = tables.titles(PAPER, records, ["4", "rivals", "push"])
    assert found["rivals"] == "Rivals"
    assert "push" not in found
    assert list(found)[:4] == ["1", "2", "3", "4"]


def test_names_in_tables_are_escaped():
    records = [dataclasses.replace(record, student="<script>") for record in synthetic.committed(synthetic.runs(1))]
    html = tables.to_html(tables.layout_grid(table4(records, PAPER), TABLES["4"][1], 0), "4")
    assert "<script>" not in html
    ElementTree.fromstring(html)
