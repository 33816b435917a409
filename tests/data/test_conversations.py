"""Conversation files: both styles, all kinds of folders, and every structural fault named."""

import json
import logging
import pickle
from pathlib import Path

import datasets
import pytest

from regate.conversations import BadSamples, load_conversations
from regate.turns import BadSample
from tests.media_files import turns, write_conversations, write_image, write_video


@pytest.fixture
def folder(tmp_path):
    write_video(tmp_path / "v.mp4", 2)
    write_image(tmp_path / "i.jpg")
    (tmp_path / "frames").mkdir()
    return tmp_path


def load(folder, *samples, **kwargs):
    path = folder / "x.json"
    path.write_text(json.dumps(list(samples)))
    return load_conversations(path, **kwargs)


def good(name="good", **fields):
    return {"id": name, "conversations": turns("Is it?", "Yes.")} | fields


def test_the_table(tmp_path):
    path = write_conversations(tmp_path)
    table = load_conversations(path, tmp_path / "media")
    assert table["id"][:] == ["video", "short", "image", "two", "text", "5"]
    assert table["sample_id"][:] == list(range(6))
    assert table.features["sample_id"].dtype == "int64"
    media = str(tmp_path / "media")
    assert table[3]["images"] == [f"{media}/a.jpg", f"{media}/b.png"]
    assert table[5]["videos"] == [f"{media}/a.mp4"]
    contents = [json.loads(row["messages"])[0]["content"] for row in table]
    video, image = {"type": "video"}, {"type": "image"}
    assert contents[0] == [video, {"type": "text", "text": "What happens?"}]
    assert contents[1] == [video, {"type": "text", "text": "Describe it."}]  # <image>, but the file is a video
    assert contents[2] == [image, {"type": "text", "text": "How many objects?"}]  # no tag: before the question
    assert contents[3] == [image, image, {"type": "text", "text": "Compare."}]
    assert [m["role"] for m in json.loads(table[5]["messages"])] == ["system", "user", "assistant"]


def test_tags_keep_their_place(folder):
    row = load(folder, good(image="i.jpg", conversations=turns("Before <image>\nafter.", "Yes.")))[0]
    texts = [item.get("text", item["type"]) for item in json.loads(row["messages"])[0]["content"]]
    assert texts == ["Before", "image", "after."]


def test_jsonl_parquet_and_folders_give_the_same_table(tmp_path):
    path = write_conversations(tmp_path)
    media = tmp_path / "media"
    expected = load_conversations(path, media)
    samples = json.loads(path.read_text())
    lines = tmp_path / "train.jsonl"
    lines.write_text("\n".join(json.dumps(s) for s in samples) + "\n\n")
    assert load_conversations(lines, media).to_list() == expected.to_list()
    # parquet has one type a column: turns as JSON, as our own table has them
    plain = expected.remove_columns("sample_id")
    (tmp_path / "parquet").mkdir()
    plain.to_parquet(tmp_path / "parquet" / "part0.parquet")
    assert load_conversations(tmp_path / "parquet", media).to_list() == expected.to_list()
    plain.save_to_disk(tmp_path / "plain")
    assert load_conversations(tmp_path / "plain", media).to_list() == expected.to_list()


def test_a_saved_table_comes_back_with_its_columns(tmp_path):
    table = load_conversations(write_conversations(tmp_path), tmp_path / "media")
    table = table.add_column("reference_losses", [[0.5, 1.0]] * 6).select([0, 2, 3, 5])  # some were skipped
    table.save_to_disk(tmp_path / "saved")
    again = load_conversations(tmp_path / "saved")
    assert again.to_list() == table.to_list()
    assert again["sample_id"][:] == [0, 2, 3, 5]
    datasets.concatenate_datasets([table, table.map(lambda r: {"id": r["id"] + "b"})]).save_to_disk(tmp_path / "twice")
    with pytest.raises(ValueError, match="4 values of sample_id occur more than once"):
        load_conversations(tmp_path / "twice")


def test_a_folder_with_metadata(folder):
    line = {"file_name": "i.jpg", "id": "a", "conversations": turns("What?", "A cube.")}
    other = line | {"file_name": "v.mp4", "id": "b"}
    (folder / "metadata.jsonl").write_text(json.dumps(line) + "\n" + json.dumps(other))
    table = load_conversations(folder)
    assert table["images"][:] == [[str(folder / "i.jpg")], []]
    assert table["videos"][:] == [[], [str(folder / "v.mp4")]]


def test_image_columns_of_datasets(folder, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
    rows = {"id": ["a"], "image": [str(folder / "i.jpg")], "conversations": [turns("What?", "A cube.")]}
    table = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    table.save_to_disk(folder / "saved")  # this puts the file's bytes inside
    (image,) = load_conversations(folder / "saved")["images"][0]
    assert Path(image).read_bytes() == (folder / "i.jpg").read_bytes()
    assert load_conversations(folder / "saved")["images"][0] == [image]
    assert len(list((folder / "cache" / "regate-media").iterdir())) == 1


FAULTS = {
    "no turns": ({"id": "x"}, r"'x', messages: found nothing, expected a list of turns"),
    "turns of text": (good("x", conversations="Is it?"), r"'x', conversations: found a string that is no JSON"),
    "empty turns": (good("x", conversations=[]), r"'x', conversations: found an empty list"),
    "a turn of text": (good("x", conversations=["Hi"]), r"conversations\[0\]: found a string"),
    "unknown role": (
        good("x", conversations=[{"from": "bot", "value": "Hi"}]),
        r"conversations\[0\].from: found 'bot'",
    ),
    "no text": (good("x", conversations=[{"from": "human"}]), r"conversations\[0\]: found no text, expected text"),
    "a number": (good("x", conversations=[{"from": "human", "value": 3}]), r"conversations\[0\]: found a number"),
    "empty answer": (good("x", conversations=turns("Hi", " \n")), r"conversations\[1\]: found an empty answer"),
    "empty question": (good("x", conversations=turns("", "Hi")), r"conversations\[0\]: found an empty turn"),
    "no answer": (good("x", conversations=turns("Hi")), r"conversations: found no answer"),
    "no question": (good("x", conversations=turns("Hi", "Ho")[1:]), r"found an answer before any question"),
    "open end": (good("x", conversations=turns("Hi", "Ho", "Hi")), r"found a last turn of user"),
    "image in answer": (
        good("x", image="i.jpg", conversations=turns("Hi", "<image>Ho")),
        r"an image or a video in an answer",
    ),
    "missing file": (good("x", video="no.mp4"), r"'x', video: found no file at .*no.mp4, expected the video there"),
    "a folder as image": (good("x", image="frames"), r"'x', image: found a folder"),
    "a number as path": (good("x", image=3), r"'x', image: found a number, expected a path"),
    "an empty path": (good("x", image=["i.jpg", ""]), r"'x', image: found an empty path"),
    "both names": (good("x", image="i.jpg", images=["i.jpg"]), r"'x', image: found both image and images"),
    "more tags": (
        good("x", image="i.jpg", conversations=turns("<image><image>?", "Ho")),
        r"found 1 files and 2 <image>",
    ),
    "fewer tags": (
        good("x", image=["i.jpg"] * 2, conversations=turns("<image>?", "Ho")),
        r"found 2 files and 1 <image>",
    ),
    "tag without file": (good("x", conversations=turns("<video>?", "Ho")), r"found 0 files and 1 <video>"),
    "escape": (
        good("x", image="../secret.jpg"),
        r"'x', image: found '../secret.jpg', which lies outside of the media folder",
    ),
    "hidden escape": (good("x", image="frames/../../secret.jpg"), r"outside of the media folder"),
    "absolute": (good("x", image="/etc/passwd"), r"outside of the media folder"),
    "address": (good("x", video="https://example.org/a.mp4"), r"found an address .* expected a local file"),
    "half a character": (
        good("x", conversations=turns("Hi", "Ho \ud83d")),
        r"a text: found half a character \('.ud83d'\)",
    ),
    "odd content": (
        good("x", conversations=[{"role": "user", "content": [{"type": "audio"}]}]),
        r"found content .*audio",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_named(folder, fault):
    sample, found = FAULTS[fault]
    with pytest.raises(BadSample, match=found) as error:
        load(folder, good(), sample)
    assert str(folder / "x.json") in str(error.value)
    assert error.value.sample_id == "x"
    assert error.value.file
    assert "skip" in str(error.value)


def test_rows_that_are_no_objects(folder):
    with pytest.raises(ValueError, match=r"1 of 2 samples have no id \(rows 1\)"):
        load(folder, good(), "hello", on_bad_sample="skip")


def test_several_faults_are_told_together(folder):
    bad = [good(f"x{i}", image="no.jpg") for i in range(7)]
    with pytest.raises(BadSample, match="7 of 8 samples are unusable") as error:
        load(folder, good(), *bad)
    assert "x4" in str(error.value)
    assert "x5" not in str(error.value)
    assert str(pickle.loads(pickle.dumps(error.value))) == str(error.value)


def test_skip_drops_logs_and_counts(folder, caplog):
    skipped = BadSamples()
    bad = [good(f"x{i}", image="no.jpg") for i in range(7)]
    with caplog.at_level(logging.WARNING):
        table = load(folder, *bad, good(), good("last"), on_bad_sample="skip", skipped=skipped)
    assert table["id"][:] == ["good", "last"]
    assert table["sample_id"][:] == [0, 1]
    assert skipped.count == 7
    assert "7 of 9 samples skipped" in caplog.text
    assert "x4" in caplog.text
    assert "x5" not in caplog.text
    with pytest.raises(ValueError, match=r"no usable sample \(7 skipped\)"):
        load(folder, *bad, on_bad_sample="skip")


@pytest.mark.parametrize("on_bad_sample", ["raise", "skip"])
def test_ids_must_be_there_and_unique(folder, on_bad_sample):
    with pytest.raises(ValueError, match=r"2 ids occur more than once \(a, 1\).*append"):
        load(folder, good("a"), good("b"), good("a"), good(1), good("1"), on_bad_sample=on_bad_sample)
    for missing in (None, "", [], True):
        with pytest.raises(ValueError, match=r"1 of 2 samples have no id \(rows 1\).*row number"):
            load(folder, good("a"), good(missing), on_bad_sample=on_bad_sample)


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("x.json", "[{", "line 1, column 3: no valid JSON"),
        ("x.jsonl", '{"id": 1}\n{"id"', "line 2: no valid JSON"),
        ("x.json", "", "no usable sample"),
        ("x.json", b"\xff\xfe\x00", "no UTF-8"),
    ],
)
def test_files_that_are_no_json(tmp_path, name, text, found):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=found) as error:
        load_conversations(path)
    assert str(path) in str(error.value)


def test_paths_that_hold_no_conversations(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        load_conversations(tmp_path / "no.json")
    with pytest.raises(ValueError, match="a folder with 0 JSON files"):
        load_conversations(tmp_path)
    path = write_conversations(tmp_path)
    with pytest.raises(FileNotFoundError, match="media_root"):
        load_conversations(path, tmp_path / "no")
    with pytest.raises(ValueError, match="on_bad_sample is 'ignore'"):
        load_conversations(path, on_bad_sample="ignore")
    datasets.DatasetDict({"train": datasets.Dataset.from_dict({"id": ["a"]})}).save_to_disk(tmp_path / "splits")
    with pytest.raises(ValueError, match=r"several splits \(train\)"):
        load_conversations(tmp_path / "splits")


def test_links_out_of_the_media_folder_are_followed_only_when_told_to(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    write_image(elsewhere / "far.jpg")
    (folder / "link.jpg").symlink_to(elsewhere / "far.jpg")
    (folder / "away").symlink_to(elsewhere)
    (folder / "near.jpg").symlink_to("i.jpg")
    for name in ("link.jpg", "away/far.jpg"):
        with pytest.raises(BadSample, match=r"a link out of the media folder .* --follow-links"):
            load(folder, good(image=name))
        assert load(folder, good(image=name), follow_links=True)["images"][:] == [[str(folder / name)]]
    assert load(folder, good(image="near.jpg"))["images"][:] == [[str(folder / "near.jpg")]]
    inside = folder.with_name("linked")
    inside.symlink_to(folder)  # the folder itself may be a link
    assert load(inside, good(image="near.jpg"), media_root=inside)["images"][:] == [[str(inside / "near.jpg")]]


def test_a_megabyte_of_spaces_is_read_at_once(folder):
    """Linear, not quadratic: a pattern with spaces in it took more than a minute, and a hundred times that for ten."""
    row = load(folder, good(image="i.jpg", conversations=turns("Is" + "\n " * 500_000 + "<image> \n it?", "Yes.")))[0]
    texts = [item.get("text", item["type"]) for item in json.loads(row["messages"])[0]["content"]]
    assert texts == ["Is", "image", "it?"]
