"""The page of attention maps: its pictures by their pixels, its words, and the page itself on committed artefacts,
damaged ones, and a model and a video of one's own."""

import io
import json
import shutil
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from streamlit.testing.v1 import AppTest

from app import attention
from app.artefacts import Places, Problem
from app.views import attention as view
from app.views import frames, saved
from app.views.attention import Chosen, Shown
from app.views.theme import DARK, LIGHT
from repro import attention_file
from repro.attention_file import Clip, ClipAttention, StoredAttention
from repro.grounding import clip_scores, compare
from tests import tiny
from tests.media_files import write_video

ROOT = Path(__file__).resolve().parents[2]
WHOLE = (0.0, 0.0, 1.0, 1.0)


def maps(seed: int, layers=2, heads=3, tokens=10, slices=4, rows=2, columns=2) -> np.ndarray:
    """Random weights, about a third of all attention."""
    shape = (layers, heads, tokens)
    flat = np.random.default_rng(seed).dirichlet(np.full(slices * rows * columns, 0.3), size=shape) / 3
    return flat.reshape(*shape, slices, rows, columns).astype(np.float32)


def shown(rows=2, box=True, frames=4) -> Shown:
    rng = np.random.default_rng(0)
    clips = rng.integers(0, 255, (frames, 64, 64, 3), dtype=np.uint8)
    sides = {name: maps(i)[0, 0, 0] for i, name in enumerate(("Standard FT", "ReGATE")[:rows])}
    boxes = np.array([[8, 8, 24, 40], [np.nan] * 4, [0, 0, 64, 64], [10, 10, 20, 20]]) if box else None
    return Shown(clips, sides, [(0,), (1,), (2,), (3,)], WHOLE, boxes)


# --- numbers ---


def test_means_and_single_heads():
    weights = maps(0)
    np.testing.assert_array_equal(view.look_at(weights, None, Chosen(3, 1, 2)), weights[1, 2, 3])
    np.testing.assert_allclose(view.look_at(weights, None, Chosen(3)), weights[:, :, 3].mean((0, 1)), rtol=1e-6)
    np.testing.assert_allclose(view.look_at(weights, None, Chosen(3, layer=1)), weights[1, :, 3].mean(0), rtol=1e-6)
    np.testing.assert_allclose(view.look_at(weights, None, Chosen(3, head=0)), weights[:, 0, 3].mean(0), rtol=1e-6)
    sinks = np.zeros(weights.shape[:2] + weights.shape[3:], bool)
    sinks[1, 2, 0, 1, 1] = True
    assert view.look_at(weights, sinks, Chosen(3, 1, 2, without_sinks=True))[0, 1, 1] == 0
    np.testing.assert_array_equal(view.look_at(weights, sinks, Chosen(3, 1, 2)), weights[1, 2, 3])


def test_frames_share_what_their_slice_gets():
    weights = np.zeros((2, 1, 2))
    weights[0], weights[1] = 0.1, 0.05
    bars = view.per_frame(Shown(np.zeros((3, 4, 4, 3), np.uint8), {"m": weights}, [(0, 1), (2,)], WHOLE))
    assert bars["frame"].tolist() == [1, 2, 3]
    assert bars["share"].tolist() == pytest.approx([0.1, 0.1, 0.1])
    assert bars["share"].sum() == pytest.approx(view.on_frames(weights))


def test_the_table_holds_every_number_of_the_picture():
    one = shown()
    found = view.table(one)
    assert found["model"].unique().tolist() == ["Standard FT", "ReGATE", "ReGATE minus Standard FT"]
    assert len(found) == 3 * 4 * 4
    row = found[(found.model == "ReGATE") & (found.slice == 2) & (found.row == 1) & (found.column == 2)]
    assert float(row["weight"].iloc[0]) == pytest.approx(float(one.rows["ReGATE"][1, 0, 1]))
    totals = found.groupby("model")["weight"].sum()
    assert totals["ReGATE minus Standard FT"] == pytest.approx(totals["ReGATE"] - totals["Standard FT"], abs=1e-6)


# --- pictures ---


@settings(deadline=None)
@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 40), st.integers(1, 40), st.booleans())
def test_heat_stays_between_its_cells(rows, columns, height, width, smooth):
    cells = np.random.default_rng(rows * 10 + columns).random((rows, columns))
    heat = frames.spread(cells, (height, width), WHOLE, smooth)
    assert heat.shape == (height, width)
    assert heat.min() >= cells.min() - 1e-9
    assert heat.max() <= cells.max() + 1e-9


def test_heat_is_where_its_cell_is():
    cells = np.arange(6.0).reshape(2, 3)
    flat = frames.spread(cells, (20, 30), WHOLE, smooth=False)
    np.testing.assert_array_equal(flat, np.kron(cells, np.ones((10, 10))))
    smooth = frames.spread(cells, (22, 33), WHOLE, smooth=True)
    assert smooth[5, 5] == pytest.approx(cells[0, 0])  # the middles of cells
    assert smooth[16, 27] == pytest.approx(cells[1, 2])
    assert smooth[5, 10] == pytest.approx(5 / 11)
    padded = frames.spread(np.pad(cells, 1, constant_values=-9), (20, 30), (-1 / 3, -1 / 2, 4 / 3, 3 / 2), smooth=False)
    np.testing.assert_array_equal(padded, flat)  # cells in the padding are beyond the frame


def test_the_picture_shows_heat_where_attention_is():
    weights = {"a": np.zeros((1, 2, 2)), "b": np.zeros((1, 2, 2))}
    weights["b"][0, 1, 0] = 0.5
    grey = Shown(np.full((1, 64, 64, 3), 128, np.uint8), weights, [(0,)], WHOLE)
    figure = frames.picture(grey, LIGHT, smooth=False)
    images = [axes.get_images()[0].get_array() for axes in figure.axes if axes.get_images()][:4]
    assert len(images) == 4  # frames, a, b, difference
    rgb, a, b, change = images
    assert (rgb == 128).all()
    assert (a == a[0, 0]).all()
    hot = b[144, 48].astype(int)
    assert (b[48, 48] == a[0, 0]).all()
    assert hot.sum() > 1.5 * b[48, 48].astype(int).sum()
    assert abs(change[144, 48].astype(int) - change[48, 48]).sum() > 60
    words = {text.get_text() for text in figure.texts}
    assert {"RGB frames", "a", "b", "b minus a", "50% of the token's attention is on frames"} <= words


@pytest.mark.parametrize("look", [LIGHT, DARK])
@pytest.mark.parametrize("count", [1, 2])
def test_files_open(look, count):
    figure = frames.picture(shown(count), look)
    with Image.open(io.BytesIO(saved.png(figure, 60))) as image:
        image.load()
        assert image.width > 500
        background = tuple(int(look.paper[i : i + 2], 16) for i in (1, 3, 5))
        assert image.convert("RGB").getpixel((1, 1)) == background
    text = saved.svg(figure)
    root = ElementTree.fromstring(text)
    assert root.tag.endswith("svg")
    assert "RGB frames" in text
    assert text == saved.svg(frames.picture(shown(count), look))  # the same picture, the same file


def test_long_videos_are_thinned_and_slow_ones_enlarged():
    assert frames.frames_in_row(8) == list(range(8))
    assert frames.frames_in_row(32) == [0, 4, 9, 13, 18, 22, 27, 31]
    assert frames.enlarge(np.zeros((64, 64, 3), np.uint8)).shape == (192, 192, 3)
    assert frames.enlarge(np.zeros((1080, 1920, 3), np.uint8)).shape == (192, 341, 3)
    assert frames.slice_of([(0, 1), (2, 3)], 3) == 1


# --- words ---


@settings(deadline=None)
@given(st.lists(st.text(max_size=6), min_size=1, max_size=12))
def test_labels_are_all_different(tokens):
    assert len(set(view.token_labels(tokens, [None] * len(tokens)))) == len(tokens)


def test_labels_and_the_first_word():
    labels = view.token_labels([" a", " red", " star", " a", "*"], [None, 0, 0, None, None])
    assert labels == ["a", "**red**", "**star**", "a₂", "\\*"]
    assert view.first_named([None, 0, 0, None, 1]) == 2
    assert view.first_named([None, None]) == 0


def test_the_verdict_follows_the_interval():
    def verdict(low, estimate, high):
        table = pd.DataFrame({"what": [], "low": [], "estimate": [], "high": []})
        return view.Grounding("mass", "kept", None, 9, table, {"low": low, "estimate": estimate, "high": high}).verdict

    assert verdict(-0.01, 0.01, 0.03).startswith("no difference seen (+1.0 points, 95 % interval −1.0 to +3.0)")
    assert verdict(0.01, 0.02, 0.03).startswith("ReGATE scores higher by 2.0 points")
    assert verdict(-0.01, -0.0001, 0.01).startswith("no difference seen (0.0 points")
    assert verdict(-0.03, -0.02, -0.01).startswith("standard fine-tuning scores higher by 2.0 points")


# --- the page ---


def leave_artefacts(folder: Path, seeds=(0,)) -> Path:
    """Attention and grounding of a pair of runs that never happened, as `make artefacts` leaves them."""
    frames = np.random.default_rng(0).integers(0, 255, (4, 64, 64, 3), dtype=np.uint8)
    words = ["a", " red", " star", " hops", " and", " a", " blue", " ball", " spins", "."]
    named = [None, 0, 0, None, None, None, 1, 1, None, None]
    boxes = [[[0, 0, 30, 30], [40, 40, 60, 60]]] * 3 + [[None, [40, 40, 60, 60]]]
    for seed in seeds:
        scores = {}
        for i, method in enumerate(("stock", "regate")):
            home = folder / f"table4-internvl-{method}-s{seed}"
            home.mkdir(parents=True)
            source = {"run": home.name, "method": method, "student": "internvl", "seed": seed}
            clips, scores[method] = [], []
            for c in range(6):
                clip = Clip(f"clip{c}", "what happens ?", "".join(words), words, ["visual"] * 10,
                            ["red star", "blue ball"], named, boxes, f"clip{c}.webp")  # fmt: skip
                weights = maps(10 * c + i)
                scores[method].append(
                    clip_scores(weights, named, clip.box_array(), ((0,), (1,), (2,), (3,)), WHOLE, (64, 64))
                )
                if c < 2:
                    sinks = np.zeros((2, 3, 4, 2, 2), bool)
                    sinks[0, 0, 0, 0, 0] = c == 1
                    clips.append(ClipAttention(clip, weights, 1 - weights.sum((-3, -2, -1)), sinks))
                    attention_file.write_strip(home / clip.frames, frames)
            if seed == 0:
                attention_file.write(home, StoredAttention(clips, ((0,), (1,), (2,), (3,)), WHOLE, source))
        record = {"regate": source, "tokens": 24, "scores": compare(scores["stock"], scores["regate"])}
        (home / "grounding.json").write_text(json.dumps(record))
    return folder


@pytest.fixture
def places(tmp_path, monkeypatch) -> Places:
    """Empty results and runs."""
    found = Places(tmp_path / "results", tmp_path / "runs")
    for name, path in (("RESULTS", found.results), ("RUNS", found.runs)):
        path.mkdir()
        monkeypatch.setenv(f"REGATE_{name}", str(path))
    return found


def page(**query: str) -> AppTest:
    """The page, run with a query string."""
    app = AppTest.from_file(str(ROOT / "app" / "screens" / "attention.py"), default_timeout=300)
    for name, value in query.items():
        app.query_params[name] = value
    return app.run()


def texts(app: AppTest) -> str:
    return " ".join(str(e.value) for e in [*app.markdown, *app.caption, *app.error, *app.info, *app.code])


def test_an_empty_installation_names_the_command(places):
    app = page()
    assert not app.exception
    assert "make repro-table4 artefacts" in texts(app)


def test_the_page_on_artefacts(places):
    leave_artefacts(places.results / "artefacts", seeds=(0, 1))
    app = page()
    assert not app.exception, app.exception
    assert not app.error
    assert "true box of the red star" in texts(app)
    assert "says **star**" in texts(app)
    assert "Seeds 0, 1:" in texts(app)
    assert "95 % interval" in texts(app)
    assert app.query_params["token"] == "3"
    app = page(token="8", layer="2", head="1", measure="Attention in the box", sinks="true", smooth="false")
    assert not app.exception, app.exception
    assert "says **ball**" in texts(app)
    assert "nothing changes" in texts(app)
    assert "Layer 2, all heads" in texts(app)
    assert "in the true box" in texts(app)
    app = page(clip="2 · a red star hops and a blue ball spins.", sinks="true")
    assert "Sinks removed, over all heads: 1 of Standard FT, 1 of ReGATE" in texts(app)
    app = page(token="99")
    assert not app.exception
    assert app.query_params["token"] == "3"


def test_damage_is_a_message_on_the_page(places):
    folder = leave_artefacts(places.runs)
    home = folder / "table4-internvl-regate-s0"
    (home / "grounding.json").write_text("{")
    app = page()
    assert not app.exception
    assert "grounding.json: no grounding scores" in texts(app)
    assert "says **star**" in texts(app)  # the maps are there all the same
    (home / "clip0.webp").unlink()
    assert "clip0.webp: found no such file" in texts(page())
    whole = (home / "attention.npz").read_bytes()
    (home / "attention.npz").write_bytes(whole[:500])
    assert "attention.npz" in texts(page())
    (home / "attention.npz").write_bytes(whole)
    (home / "attention.json").write_text("[")
    app = page()
    assert "attention.json: JSONDecodeError" in texts(app).replace("\\", "")
    assert not app.exception


def test_two_runs_of_different_clips_are_refused(places):
    folder = leave_artefacts(places.runs)
    stored = attention_file.read(folder / "table4-internvl-stock-s0")
    shorter = StoredAttention(stored.clips[:1], stored.frames, stored.extent, stored.source)
    attention_file.write(folder / "table4-internvl-stock-s0", shorter)
    assert "show different clips" in texts(page())


# --- a model of one's own ---


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("own") / "model"
    model, processor = tiny.tiny_model("internvl")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def test_a_model_of_your_own_on_a_file(checkpoint, tmp_path):
    path = write_video(tmp_path / "clip.mp4", frames=12, size=(48, 32))
    model, processor = attention.load_model(checkpoint)
    live = attention.attend(model, processor, path, "clip.mp4", "What happens?", "The red ball moves left.", 4)
    assert live.frames.shape == (4, 32, 48, 3)
    assert live.weights.shape[2:] == (len(live.tokens), 4, 2, 2)
    assert live.sinks is not None
    figure = frames.picture(Shown(live.frames, {"m": view.look_at(live.weights, live.sinks, Chosen(0))}, live.slices,
                                live.extent), LIGHT)  # fmt: skip
    assert saved.png(figure, 40)
    short = attention.attend(model, processor, path, "clip.mp4", "What?", "Yes", 4)
    assert short.sinks is None
    assert "different tokens" in attention.unlike(live, short)
    assert "different grids" in attention.unlike(
        live, attention.attend(model, processor, path, "clip.mp4", "What happens?", "The red ball moves left.", 8)
    )
    assert attention.unlike(live, live) is None


def test_failures_name_their_cause(checkpoint, tmp_path):
    model, processor = attention.load_model(checkpoint)
    good = write_video(tmp_path / "good.mp4")
    broken = tmp_path / "tmpabc.mp4"
    broken.write_bytes(good.read_bytes()[:300])
    for path, name, answer, message in (
        (broken, "holiday.mp4", "Yes.", "holiday.mp4.*does not decode"),
        (good, "good.mp4", "  ", "the answer is empty"),
        (good, "good.mp4", "word " * 5000, "expected at most the 4096"),
    ):
        with pytest.raises(Problem, match=message) as error:
            attention.attend(model, processor, path, name, "What?", answer, 4)
        assert "tmpabc" not in str(error.value)
    with pytest.raises(Problem, match="no such folder"):
        attention.load_model(tmp_path / "gone")
    with pytest.raises(Problem, match=r"holds no config\.json"):
        attention.load_model(tmp_path)
    damaged = tmp_path / "damaged"
    shutil.copytree(checkpoint, damaged)
    (damaged / "model.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(Problem, match="cannot be loaded as a multimodal model"):
        attention.load_model(damaged)


def test_names_tell_checkpoints_apart():
    assert attention.names_of(["a/b/final"]) == ["final"]
    assert attention.names_of(["runs/one/final", "runs/two/final"]) == ["one", "two"]
    assert attention.names_of(["a/b", "a/b"]) == ["b (1)", "b (2)"]


def test_the_form_asks_for_what_is_missing(places, checkpoint):
    app = page(whose="Your own model and video", model=str(checkpoint))
    assert not app.exception, app.exception
    app.button[0].click().run()
    assert not app.exception
    assert "No video yet" in texts(app)
