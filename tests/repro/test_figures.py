"""Efficiency curves: what they plot, that pictures repeat byte for byte, and that stale ones are named."""

from __future__ import annotations

import shutil
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from PIL import Image

from repro import compare, figures
from repro.figures import curve_data, drawings, efficiency
from repro.record import running_mean, write
from tests.repro.synthetic import committed, record, runs

ROOT = Path(__file__).resolve().parents[2]


def data_of(records):
    return curve_data(compare.groups(records)[0])


def test_lines_are_running_means_over_raw_points():
    run = record("stock")
    data = data_of([run])
    raw = data[data.kind == "run"]
    assert raw.raw.tolist() == pytest.approx([100 * point.metrics["content_accuracy"] for point in run.curve])
    assert raw.tokens.tolist() == [point.tokens["paper"] for point in run.curve]
    smooth = [100 * value for _, value in running_mean(run.curve, "content_accuracy")]
    line = data[(data.kind == "mean") & data.smooth.notna()]
    assert line.smooth.tolist() == pytest.approx(smooth)
    assert (line.low == line.high).all()


def test_bands_hold_every_seed():
    data = data_of(runs(3))
    for (method, step), runs_here in data[data.kind == "run"].groupby(["method", "step"]):
        mean = data[(data.kind == "mean") & (data.method == method) & (data.step == step)].iloc[0]
        seen = runs_here.smooth.dropna()
        if len(seen):
            assert (mean.low, mean.high) == (seen.min(), seen.max())
            assert mean.low <= mean.smooth <= mean.high


def test_arrow_goes_from_the_peak_to_the_crossing():
    one = runs(1)
    pair = compare.reached({0: one[0]}, {0: one[2]})[0]
    data = data_of(one).set_index("kind")
    assert data.loc["arrow from", "tokens"] == pair.peak.tokens["paper"]
    assert data.loc["arrow to", "tokens"] == pair.at.tokens["paper"]
    assert data.loc["arrow share", "tokens"] == pytest.approx(pair.share("tokens"))
    assert f"peak at {pair.share('tokens'):.0f} % of its tokens" in texts(one)


def texts(records) -> str:
    figure = efficiency(data_of(records), "title")
    words = "\n".join(text.get_text() for axes in figure.axes for text in [*axes.texts, axes.xaxis.label])
    plt.close(figure)
    return words


def test_what_is_not_reached_is_written():
    assert "does not reach" in texts([record("stock"), record("regate", final=0.6)])
    some = [record("stock", s) for s in range(3)] + [record("regate", s, final=0.6 if s else 0.9) for s in range(3)]
    assert "in 1 of 3 seeds" in texts(some)


def test_times_beside_other_work_are_marked():
    assert "timed beside other work" in texts([record("stock"), record("regate", alone=False)])
    assert "timed beside other work" not in texts(runs(1))


def test_words_and_legend_leave_the_curves_free():
    """No line of any method passes behind the words in a panel, and the legend lies outside the panels."""
    figure = efficiency(data_of(runs(2)), "InternVL3.5", "micro, mean and range of 2 seeds")
    figure.canvas.draw()
    legend = figure.legends[0].get_window_extent()
    for axes in figure.axes:
        assert not legend.overlaps(axes.get_window_extent())
        words = axes.texts[-1].get_window_extent()
        for line in axes.lines:
            points = axes.transData.transform(line.get_xydata())
            assert not any(words.contains(x, y) for x, y in points)
    title_ends = max(text.get_window_extent().x1 for text in figure.texts)
    assert max(title_ends, legend.x1) <= figure.bbox.x1
    plt.close(figure)


def test_without_times_there_is_one_panel():
    data = data_of([record("stock")])
    data["train_seconds"] = None
    figure = efficiency(data, "title")
    assert len(figure.axes) == 1
    plt.close(figure)


def test_pictures_repeat_byte_for_byte():
    first, second = (drawings(runs(1))[0].pictures() for _ in range(2))
    assert first == second
    svg = next(content for name, content in first.items() if name.endswith("svg"))
    assert b"<dc:date>" not in svg


def test_runs_without_a_curve_have_no_figure():
    assert drawings([record(curve=())]) == []


def test_check_names_what_is_stale(tmp_path, capsys):
    options = ["--results", str(tmp_path / "results"), "--runs", str(tmp_path / "runs")]
    out = tmp_path / "results" / "figures"
    assert figures.main([*options, "--check"]) == 0
    for run in runs(1):
        write(run, tmp_path / "results" / "records")
    assert figures.main([*options, "--check"]) == 1
    assert figures.main(options) == 0
    assert figures.main([*options, "--check"]) == 0
    name = "efficiency-internvl3.5-micro"
    assert sorted(path.name for path in out.iterdir()) == [f"{name}.csv", f"{name}.png", f"{name}.svg"]
    with Image.open(out / f"{name}.png") as picture:
        assert picture.size[0] > 1500
    other = drawings(committed([record("stock"), record("regate", final=0.7)]))[0].pictures()
    for suffix in ("png", "svg"):
        kept = (out / f"{name}.{suffix}").read_bytes()
        (out / f"{name}.{suffix}").write_bytes(other[f"{name}.{suffix}"])
        capsys.readouterr()
        assert figures.main([*options, "--check"]) == 1
        assert f"{name}.{suffix}: was drawn from other data" in capsys.readouterr().err
        (out / f"{name}.{suffix}").write_bytes(kept)
    shutil.copy(out / f"{name}.png", out / "efficiency-old.png")
    write(record("stock", final=0.5), tmp_path / "results" / "records")
    assert figures.main([*options, "--check"]) == 1
    said = capsys.readouterr().err
    assert f"{name}.csv: differs" in said
    assert "efficiency-old.png: comes from no record" in said


def test_committed_figures_are_fresh(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert figures.main(["--check"]) == 0
