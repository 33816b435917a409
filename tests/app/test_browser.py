"""The app in a real browser: what no other test can see. `make test-app` runs it.

Every page opened by `new_page` fails its test on a console error or a request to another host.
"""

import io
import itertools
import json
import re
import socket
from xml.etree import ElementTree

import pandas as pd
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.app.support import REGATE, ROOT, SHOWN_FIRST, settle, shoot
from tests.media_files import write_video

pytestmark = pytest.mark.browser

PAGES = {
    "": "Token losses", "gating": "Gating over training", "attention": "Attention maps", "efficiency": "Efficiency",
    "ablations": "Ablations", "tables": "Tables",
}  # fmt: skip


def kept_in(page) -> list[str]:
    return page.locator(".rg-answer").first.locator(".rg-t.kept").all_inner_texts()


def token_count(page) -> int:
    return page.locator(".rg-answer").first.locator(".rg-t").count()


def slide(page, label: str, key: str, times: int = 1) -> None:
    """Moves a slider by keyboard, and waits for what it says."""
    slider = page.get_by_role("slider", name=re.compile(label)).first
    slider.focus()
    for _ in range(times):
        page.keyboard.press(key)
    settle(page)


def eventually(page, holds) -> None:
    """Waits for what a rerun of the app brings."""
    for _ in range(100):
        if holds():
            return
        page.wait_for_timeout(100)
    assert holds()


@pytest.mark.parametrize("path", PAGES)
def test_pages_open_in_both_looks_and_widths(new_page, screenshots, path):
    for width, scheme in itertools.product((1280, 768), ("light", "dark")):
        page = new_page(path, width, scheme)
        assert page.get_by_role("heading", level=2).first.inner_text() == PAGES[path]
        assert page.get_by_text("Traceback").count() == 0
        over = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert over <= 0, "the page scrolls sideways"
        shoot(page, screenshots / f"{path or 'losses'}-{width}-{scheme}.png")


def test_the_menu_goes_everywhere_by_keyboard(new_page):
    page = new_page()
    for title in list(PAGES.values())[1:]:
        link = page.get_by_role("link", name=title)
        link.focus()
        page.keyboard.press("Enter")
        page.get_by_role("heading", level=2, name=title).wait_for()
    settle(page)


def test_sliders_change_what_is_kept(new_page):
    page = new_page("?source=The+paper%27s+examples")
    assert kept_in(page) == ["tank", "top", "red", "stripe"]
    slide(page, "Ratio kept", "ArrowLeft", 5)  # 0.25 of 8
    page.wait_for_function("document.querySelectorAll('.rg-answer .rg-t.kept').length === 2")
    assert kept_in(page) == ["tank", "stripe"]
    slide(page, "weight of the teacher", "End")  # the teacher alone
    page.wait_for_function("document.querySelector('.rg-answer').innerText.includes('red')")
    page.locator(".rg-t.kept", has_text="red").wait_for()
    assert kept_in(page) == ["red", "stripe"]
    assert page.locator(".rg-t.kept").first.evaluate("e => getComputedStyle(e).borderBottomColor") == "rgb(0, 103, 165)"


def test_hover_and_focus_show_the_values(new_page):
    page = new_page("?source=The+paper%27s+examples")
    tip = "e => getComputedStyle(e, '::after').content"
    token = page.locator(".rg-answer .rg-t", has_text="tank")
    assert token.evaluate(tip) == "none"
    token.hover()
    said = token.evaluate(tip)
    for part in ("teacher  7.22 nat", "student  11.36 nat", "score    9.29 nat, rank 2 of 8", "kept at λ: all"):
        assert part in said
    page.mouse.move(0, 0)
    token.focus()
    page.keyboard.press("Tab")
    after = page.locator(".rg-answer .rg-t", has_text="top")
    assert "teacher  2.29 nat" in after.evaluate(tip)
    assert "teacher 2.29 nat" in after.get_attribute("aria-label")


def test_the_url_restores_a_state_in_a_new_window(new_page):
    page = new_page()
    page.get_by_role("combobox", name="Sample").click()
    page.get_by_role("option").nth(4).click()
    settle(page)
    before = kept_in(page)
    slide(page, "Ratio kept", "ArrowRight", 4)
    slide(page, "weight of the teacher", "ArrowLeft", 3)
    page.wait_for_function("location.search.includes('ratio=0.7') && location.search.includes('lambda=0.35')")
    other = new_page(page.url.split("/", 3)[3])
    eventually(page, lambda: kept_in(page) == kept_in(other))
    assert len(kept_in(other)) > len(before)
    assert (
        other.get_by_role("combobox", name="Sample").input_value()
        == page.get_by_role("combobox", name="Sample").input_value()
    )


def test_what_is_kept_is_what_the_trace_recorded(new_page, server):
    page = new_page("gating")
    shown = int(page.get_by_role("combobox", name="Sample").input_value().split(" ")[0])
    rows = pq.read_table(ROOT / "results" / "artefacts" / SHOWN_FIRST / "trace.parquet").to_pylist()
    last = max((row for row in rows if row["sample_id"] == shown), key=lambda row: row["step"])
    assert last["ratio"] < 1
    assert token_count(page) == len(last["kept"])
    assert len(kept_in(page)) == sum(last["kept"])


def test_play_walks_through_training(new_page):
    page = new_page("gating")
    note = page.locator(".rg-note").first
    end = note.inner_text()
    page.get_by_role("button", name="Play").click()
    seen = set()
    for _ in range(120):
        seen.add(note.inner_text())
        if len(seen) > 2 and page.get_by_role("button", name="Play").count():
            break
        page.wait_for_timeout(250)
    assert len(seen) >= 3, seen
    page.get_by_role("button", name="Play").wait_for()
    assert end in seen


@pytest.mark.parametrize("path", PAGES)
def test_everything_can_be_downloaded_and_opens(new_page, path):
    page = new_page(path)
    buttons = page.locator("[class*='st-key-export-']").get_by_role("button")
    kinds = dict.fromkeys(("png", "svg", "csv", "md", "tex"), 0)
    for i in range(buttons.count()):
        with page.expect_download() as waiting:
            buttons.nth(i).click()
        kind = waiting.value.suggested_filename.rsplit(".", 1)[1]
        kinds[kind] += 1
        assert_opens(waiting.value.path().read_bytes(), kind)
    figures = page.get_by_test_id("stVegaLiteChart").count()
    assert kinds["png"] == kinds["svg"] == kinds["csv"] >= max(1, figures), kinds


def assert_opens(raw: bytes, kind: str) -> None:
    """A downloaded file is what its name says, and not empty."""
    if kind == "png":
        picture = Image.open(io.BytesIO(raw))
        assert picture.width > 800
        assert len(picture.convert("RGB").getcolors(maxcolors=2**24)) > 4
    elif kind == "svg":
        assert ElementTree.fromstring(raw).tag.endswith("svg")
    elif kind == "csv":
        assert len(pd.read_csv(io.BytesIO(raw))) > 1
    else:
        assert len(raw.decode().splitlines()) > 10


def test_an_upload_is_scored_and_a_damaged_one_is_refused(new_page, tmp_path):
    page = new_page("?source=Your+file")
    rows = [{"id": f"s{i}", "question": "what happens?", "answer": text}
            for i, text in enumerate(["a ball.", "a small red ball slides left, then hops."])]  # fmt: skip
    (tmp_path / "mine.json").write_text(json.dumps(rows))
    page.locator("input[type=file]").set_input_files(tmp_path / "mine.json")
    page.get_by_role("heading", name="Most visual").wait_for()
    page.get_by_text("sample s", exact=False).first.wait_for()
    settle(page)

    page = new_page("?source=Your+file")
    (tmp_path / "broken.json").write_bytes(b'[{"id": 1, \x00')
    page.locator("input[type=file]").set_input_files(tmp_path / "broken.json")
    page.get_by_text("broken.json: no valid JSON").wait_for()
    page.get_by_role("link", name="Tables").click()
    page.get_by_role("heading", level=2, name="Tables").wait_for()


def show_attention(page, video, checkpoint=None) -> None:
    """Fills in the form of the attention page."""
    if checkpoint:
        page.get_by_role("textbox", name="Checkpoint", exact=True).fill(checkpoint)
    page.locator("input[type=file]").set_input_files(video)
    page.get_by_role("textbox", name="Answer").fill("a small red ball slides left , then hops .")
    settle(page)
    page.get_by_role("button", name="Show attention").click()


def test_a_video_is_looked_into_and_what_cannot_be_is_named(new_page, screenshots, tmp_path):
    page = new_page("attention?whose=Your+own+model+and+video")
    video = write_video(tmp_path / "holiday.mp4", frames=16)
    show_attention(page, video)
    page.get_by_role("img", name=re.compile("^internvl: attention when the model says")).wait_for()
    settle(page)
    shoot(page, screenshots / "own-video.png")

    for what, words in (({"checkpoint": "/nowhere/model"}, "/nowhere/model: no such folder"), ({}, "damaged.mp4")):
        page = new_page("attention?whose=Your+own+model+and+video")
        (tmp_path / "damaged.mp4").write_bytes(video.read_bytes()[:400])
        show_attention(page, tmp_path / "damaged.mp4" if not what else video, **what)
        page.get_by_test_id("stAlert").get_by_text(words).wait_for()
        page.get_by_role("button", name="Show attention").wait_for()  # the page goes on


def test_no_other_machine_is_answered(server):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as outward:
        try:
            outward.connect(("192.0.2.1", 9))  # sends nothing: asks which address would be used
        except OSError:
            pytest.skip("this machine has no address but localhost")
        address = outward.getsockname()[0]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((address, int(server.rsplit(":", 1)[1])), timeout=5)


def test_two_gigabytes_are_refused_before_they_are_sent(new_page, tmp_path):
    page = new_page("?source=Your+file")
    with (tmp_path / "huge.json").open("wb") as file:
        file.truncate(2 * 2**30)  # sparse: takes no room
    page.locator("input[type=file]").set_input_files(tmp_path / "huge.json")
    page.get_by_text("200.0MB", exact=False).or_(page.get_by_text("200MB", exact=False)).first.wait_for()
    page.get_by_text(re.compile("must be|exceeds|too large", re.I)).first.wait_for()


def test_a_number_opens_its_record(new_page):
    page = new_page("tables")
    row = page.get_by_role("row", name=re.compile("^ReGATE committed"))
    row.get_by_role("link").first.click()
    page.get_by_role("dialog").get_by_text(f"{REGATE}.json").wait_for()
    page.get_by_role("dialog").get_by_role("button", name="Close").click()
    page.get_by_role("dialog").wait_for(state="detached")
    eventually(page, lambda: "behind" not in page.url)


def test_charts_answer_a_hover(new_page):
    page = new_page("efficiency")
    chart = page.get_by_test_id("stVegaLiteChart").first
    chart.scroll_into_view_if_needed()
    box = chart.bounding_box()
    tooltip = page.locator("#vg-tooltip-element")
    for share in range(20, 96, 3):
        for height in range(10, 80, 7):
            page.mouse.move(box["x"] + box["width"] * share / 100, box["y"] + box["height"] * height / 100)
            if tooltip.count() and "method" in tooltip.inner_text():
                return
    pytest.fail("no point of the curve said its values")
