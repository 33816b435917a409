"""VideoChat2's own JSON: questions and answers, clips in seconds, no ids."""

import json

import numpy as np
import pytest

from regate.conversations import BadSamples, load_conversations
from regate.data import ConversationEncoder
from regate.media import MediaError, load_video, midpoints
from regate.turns import BadSample
from tests.media_files import grey, turns, write_image, write_video
from tests.models.tiny_videochat2 import tiny_processor
from tests.tiny import tiny_processor as stock_processor


@pytest.fixture
def folder(tmp_path):
    write_video(tmp_path / "v.mp4", 40, fps=10)
    write_image(tmp_path / "i.jpg")
    return tmp_path


def load(folder, *samples, **kwargs):
    path = folder / "x.json"
    path.write_text(json.dumps(list(samples)))
    return load_conversations(path, **kwargs)


def qa(*triples: tuple[str, str, str]) -> list[dict]:
    return [{"i": i, "q": q, "a": a} for i, q, a in triples]


def messages(row) -> list[tuple[str, list[str]]]:
    """(role, texts and kinds of visuals) of each turn."""
    return [(m["role"], [item.get("text", item["type"]) for item in m["content"]]) for m in json.loads(row["messages"])]


class TestReading:
    def test_the_table(self, folder):
        table = load(
            folder,
            {"video": "v.mp4", "QA": qa(("Watch.", "What?", "A ball."), ("Other.", "And?", "A box."))},
            {"image": "i.jpg", "QA": qa(("", "", "A dog."))},
            {"QA": [{"q": "Hi?", "a": "Ho."}]},
        )
        assert table["id"][:] == ["0", "1", "2"]
        assert messages(table[0]) == [
            ("system", ["Watch."]), ("user", ["video", "What?"]), ("assistant", ["A ball."]), ("user", ["And?"]),
            ("assistant", ["A box."]),
        ]  # fmt: skip
        assert messages(table[1]) == [("user", ["image"]), ("assistant", ["A dog."])]
        assert messages(table[2]) == [("user", ["Hi?"]), ("assistant", ["Ho."])]
        assert table[0]["videos"] == [str(folder / "v.mp4")]
        assert table[1]["images"] == [str(folder / "i.jpg")]

    def test_tags_in_a_question_are_text(self, folder):
        row = load(folder, {"video": "v.mp4", "QA": qa(("", "Is <image> a tag?", "Yes."))})[0]
        assert messages(row)[0] == ("user", ["video", "Is <image> a tag?"])

    def test_ids_are_kept_where_there_are_any_and_rows_keep_their_numbers(self, folder):
        first, last = ({"id": name, "QA": qa(("", "Q?", "A."))} for name in ("mine", "7"))
        skipped = BadSamples()
        table = load(
            folder, first, {"QA": []}, {"QA": qa(("", "Q?", "A."))}, last, on_bad_sample="skip", skipped=skipped
        )
        assert table["id"][:] == ["mine", "2", "7"]
        assert table["sample_id"][:] == [0, 1, 2]
        assert "sample '1', QA: found an empty list" in skipped.first[0]

    def test_lines(self, folder):
        path = folder / "x.jsonl"
        path.write_text("\n".join(json.dumps({"QA": qa(("", "Q?", "A."))}) for _ in range(3)))
        assert load_conversations(path)["id"][:] == ["0", "1", "2"]

    def test_a_clip_stands_beside_its_video_and_survives_saving(self, folder):
        table = load(folder, {"video": "v.mp4", "QA": qa(("", "Q?", "A.")), "start": 1, "end": 2.5})
        table.save_to_disk(folder / "saved")
        for row in (table[0], load_conversations(folder / "saved")[0]):
            content = json.loads(row["messages"])[0]["content"]
            assert content[0] == {"type": "video", "start": 1.0, "end": 2.5}

    def test_clips_in_the_other_formats(self, folder):
        chat = [
            {
                "role": "user",
                "content": [
                    {"type": "video", "path": "v.mp4", "start": 0, "end": 1},
                    {"type": "video", "path": "v.mp4", "start": 2, "end": 3},
                    {"type": "text", "text": "Which?"},
                ],
            },
            {"role": "assistant", "content": "It."},
        ]
        table = load(
            folder,
            {"id": "a", "messages": chat},
            {"id": "b", "video": "v.mp4", "conversations": turns("Q?", "A."), "start": 1, "end": 2},
        )
        clips = [
            [(i["start"], i["end"]) for m in json.loads(row["messages"]) for i in m["content"] if i["type"] == "video"]
            for row in table
        ]
        assert clips == [[(0.0, 1.0), (2.0, 3.0)], [(1.0, 2.0)]]


class TestFrames:
    @pytest.mark.parametrize("kind", ["videochat2", "internvl"])
    def test_the_encoder_sees_the_clip_only(self, folder, kind):
        """Seconds 1 to 2.6 at 10 frames a second are frames 10 to 25, of which each takes its own kind of middle."""
        table = load(folder, {"video": "v.mp4", "QA": qa(("", "Q?", "A.")), "start": 1, "end": 2.6})
        processor = tiny_processor() if kind == "videochat2" else stock_processor("internvl")
        expected = [11, 15, 19, 23] if kind == "videochat2" else [12, 16, 20, 24]
        chosen = load_video(folder / "v.mp4", 4, (1, 2.6), getattr(processor, "choose_frames", midpoints))
        assert chosen.indices == expected
        assert np.abs(chosen.frames.mean((1, 2, 3)) - [grey(i, 40) for i in expected]).max() < 4
        encoded = ConversationEncoder(processor, num_frames=4)(table[0])
        pixels = encoded["pixel_values_videos" if kind == "videochat2" else "pixel_values"].flatten(0, -4)
        assert len(pixels) == 4
        greys = (pixels[:, 0].mean((1, 2)) * 0.229 + 0.485) * 255
        expected_greys = [grey(i, 40) for i in expected]
        if kind == "videochat2":
            np.testing.assert_allclose(greys, expected_greys, atol=4)
        assert greys.argsort().tolist() == [0, 1, 2, 3]

    def test_bounds(self, folder):
        path = folder / "v.mp4"
        assert load_video(path, 2, (3.5, 99)).indices == [36, 38]  # to the end
        assert load_video(path, 3, (2.0, 2.01)).indices == [20, 20, 20]  # less than a frame
        assert load_video(path, 4, (0, 4)).indices == load_video(path, 4).indices
        with pytest.raises(MediaError, match=r"a clip from 4 s to 5 s of a video of 4\.00 s"):
            load_video(path, 4, (4, 5))

    def test_a_long_video_is_sought(self, tmp_path):
        path = write_video(tmp_path / "long.mp4", 300, fps=10)
        clip = load_video(path, 3, (25.0, 28.0))
        assert clip.indices == [255, 265, 275]
        assert np.abs(clip.frames.mean((1, 2, 3)) - [grey(i, 300) for i in clip.indices]).max() < 4

    def test_a_folder_of_frames_has_no_seconds(self, tmp_path):
        for i in range(3):
            write_image(tmp_path / "f" / f"{i}.png")
        with pytest.raises(MediaError, match="no frame rate to find the clip from 1 s to 2 s by"):
            load_video(tmp_path / "f", 2, (1, 2))

    def test_a_clip_behind_the_end_names_sample_and_file(self, folder):
        table = load(folder, {"video": "v.mp4", "QA": qa(("", "Q?", "A.")), "start": 9, "end": 10})
        with pytest.raises(BadSample, match=r"sample '0': .*v\.mp4: found a clip from 9 s to 10 s") as error:
            ConversationEncoder(tiny_processor(), num_frames=4)(table[0])
        assert error.value.file == str(folder / "v.mp4")


@pytest.mark.parametrize(
    ("change", "field", "found"),
    [
        ({"QA": {}}, "QA", "an object"),
        ({"QA": []}, "QA", "an empty list"),
        ({"QA": ["Q?"]}, r"QA\[0\]", "a string"),
        ({"QA": [{"q": "Q?"}]}, r"QA\[0\]\.a", "nothing"),
        ({"QA": [{"a": "A."}]}, r"QA\[0\]\.q", "nothing"),
        ({"QA": [{"q": "Q?", "a": " "}]}, r"QA\[0\]\.a", "an empty answer"),
        ({"QA": [{"q": "Q?", "a": "A."}, {"q": 3, "a": "A."}]}, r"QA\[1\]\.q", "a number"),
        ({"QA": [{"i": None, "q": "Q?", "a": "A."}]}, r"QA\[0\]\.i", "nothing"),
        ({"start": 1}, "end", "nothing"),
        ({"end": 1}, "start", "nothing"),
        ({"start": "1", "end": 2}, "start", "'1'"),
        ({"start": True, "end": 2}, "start", "True"),
        ({"start": 1, "end": float("nan")}, "end", "nan"),
        ({"start": 2, "end": 2}, "start", "a clip from 2 s to 2 s"),
        ({"start": -1, "end": 2}, "start", "a clip from -1 s to 2 s"),
        ({"start": 1, "end": 2, "video": None}, "start", "a clip and 0 videos"),
        ({"start": 1, "end": 2, "video": None, "image": "i.jpg"}, "start", "a clip and 0 videos"),
        ({"video": "nothing.mp4"}, "video", "no file at"),
    ],
)
def test_faults_name_sample_and_field(folder, change, field, found):
    sample = {"video": "v.mp4", "QA": qa(("Watch.", "Q?", "A."))} | change
    with pytest.raises(BadSample, match=rf"x\.json: sample '0', {field}: found {found}.*, expected"):
        load(folder, sample)
