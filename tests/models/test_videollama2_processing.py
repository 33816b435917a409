"""The processor against an independent computation: sampling, padding, normalising, templates, targets, round trips."""

import json
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoImageProcessor, AutoProcessor, AutoVideoProcessor

from regate.data import BadSample, ConversationCollator, ConversationEncoder
from regate.media import MediaError
from regate.models.videollama2 import (
    VideoLlama2ImageProcessor,
    VideoLlama2Processor,
    VideoLlama2VideoProcessor,
    build_processor,
)
from regate.models.videollama2.processing import add_markers
from tests.media_files import write_video
from tests.models.tiny_videollama2 import RELEASES, tiny_config, tiny_processor, tiny_text_tokenizer, tiny_videollama2

CLIP_MEAN = np.array([0.48145466, 0.4578275, 0.40821073])
CLIP_STD = np.array([0.26862954, 0.26130258, 0.27577711])


@pytest.fixture(params=RELEASES)
def release(request) -> str:
    return request.param


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def expected_pixels(frame: np.ndarray, release: str, pad: bool) -> np.ndarray:
    """[3, 32, 32] by PIL: pad on the mean colour, resize (CLIP: the shorter edge, then the middle), normalise."""
    mean, std = (CLIP_MEAN, CLIP_STD) if release == "v2.0" else (np.full(3, 0.5), np.full(3, 0.5))
    image = Image.fromarray(frame)
    if pad:
        side = max(image.size)
        square = Image.new("RGB", (side, side), tuple(int(255 * m) for m in mean))
        square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        image = square
    if release == "v2.1":
        image = image.resize((32, 32), Image.Resampling.BICUBIC)
    else:
        scale = 32 / min(image.size)
        width, height = (max(32, int(size * scale)) for size in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (width - 32) // 2, (height - 32) // 2
        image = image.crop((left, top, left + 32, top + 32))
    return ((np.asarray(image) / 255 - mean) / std).transpose(2, 0, 1)


@pytest.mark.parametrize("aspect", ["pad", None])
@pytest.mark.parametrize("size", [(48, 64), (64, 40), (32, 32)])
def test_pixels_of_images_and_frames(release, aspect, size):
    processor = tiny_processor(release, image_aspect_ratio=aspect)
    clip = noise(4, *size, 3)
    image = processor.image_processor(Image.fromarray(clip[0]), return_tensors="np")["pixel_values"][0]
    np.testing.assert_allclose(image, expected_pixels(clip[0], release, aspect == "pad"), atol=1e-5)
    frames = processor.video_processor(clip, return_tensors="np")["pixel_values_videos"]
    assert frames.shape == (1, 4, 3, 32, 32)
    for frame, original in zip(frames[0], clip, strict=True):
        np.testing.assert_allclose(frame, expected_pixels(original, release, aspect == "pad"), atol=1e-5)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 40), st.integers(1, 12))
def test_frames_are_the_midpoints_and_short_videos_end_in_black(total, wanted):
    clip = np.broadcast_to(np.arange(1, total + 1, dtype=np.uint8)[:, None, None, None], (total, 8, 8, 3))
    processor = VideoLlama2VideoProcessor(num_frames=wanted, do_resize=False, do_rescale=False, do_normalize=False)
    seen = processor(clip, return_tensors="np")["pixel_values_videos"][0, :, 0, 0, 0]
    if total >= wanted:
        middles = [(i + 0.5) * total / wanted for i in range(wanted)]
        assert seen.tolist() == [int(middle) + 1 for middle in middles]
    else:
        assert seen.tolist() == [*range(1, total + 1), *[0] * (wanted - total)]


def test_a_file_a_folder_and_its_frames_are_the_same(tmp_path):
    """Also where the data layer read the file and repeated the last frame of a short video."""
    frames = noise(3, 32, 32, 3)
    folder = tmp_path / "clip"
    folder.mkdir()
    for index, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"{index}.png")
    processor = tiny_processor("v2.1")
    given_as_array = processor.video_processor(frames, return_tensors="np")["pixel_values_videos"]
    assert (given_as_array[0, 3] == -1).all()  # black
    for path in (folder, str(folder), [str(folder)]):
        again = processor.video_processor(path, return_tensors="np")["pixel_values_videos"]
        np.testing.assert_array_equal(again, given_as_array)
    row = sample([str(folder)], "video")
    encoded = ConversationEncoder(processor, num_frames=4)(row)
    np.testing.assert_array_equal(encoded["pixel_values_videos"].numpy(), given_as_array)


def test_an_mp4_is_read(tmp_path):
    path = tmp_path / "clip.mp4"
    write_video(path, frames=10)
    processor = tiny_processor("v2.1")
    assert processor.video_processor(path, return_tensors="pt")["pixel_values_videos"].shape == (1, 4, 3, 32, 32)


@pytest.mark.parametrize("how", ["list of arrays", "list of images", "tensor", "channels first", "nested"])
def test_forms_of_a_video(how):
    clip = noise(4, 32, 32, 3)
    forms = {
        "list of arrays": list(clip),
        "list of images": [Image.fromarray(frame) for frame in clip],
        "tensor": torch.from_numpy(clip),
        "channels first": torch.from_numpy(clip).permute(0, 3, 1, 2),
        "nested": [[clip]],
    }
    processor = tiny_processor("v2.1").video_processor
    theirs = processor(forms[how], return_tensors="pt")["pixel_values_videos"]
    torch.testing.assert_close(theirs, processor(clip, return_tensors="pt")["pixel_values_videos"])


def test_visual_tokens_follow_from_the_frames_given(release):
    processor = tiny_processor(release)
    for frames, expected in ((4, {"v2.1": 8, "v2.0": 27}), (6, {"v2.1": 12, "v2.0": 36})):
        out = processor(text=["a <video> b"], videos=[noise(frames, 32, 32, 3)], do_sample_frames=False)
        assert out["input_ids"][0].count(processor.video_token_id) == expected[release]
    image = processor(text=["<image>"], images=[noise(32, 32, 3)])
    assert image["input_ids"][0].count(processor.image_token_id) == {"v2.1": 8, "v2.0": 27}[release]


def test_mixed_rows_in_one_call(release):
    """Two rows, one with a video and an image, one with two images: the model takes them."""
    model, processor = tiny_videollama2(release)
    out = processor(
        text=["<image>a<video>", "b<image><image>"],
        images=[[noise(32, 32, 3)], [noise(40, 32, 3), noise(32, 40, 3)]],
        videos=[noise(9, 32, 32, 3)],
        padding=True,
        return_tensors="pt",
    )
    assert out["pixel_values"].shape == (3, 3, 32, 32)
    assert out["pixel_values_videos"].shape == (1, 4, 3, 32, 32)
    assert model(**out).logits.isfinite().all()


def sample(files: list[str], what: str = "video") -> dict:
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "What happens?"}, {"type": what}]},
        {"role": "assistant", "content": [{"type": "text", "text": "It moves up."}]},
        {"role": "user", "content": [{"type": "text", "text": "Is it red?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "(Yes), it is."}]},
    ]
    return {"id": "s", "messages": json.dumps(messages), what + "s": files}


@pytest.fixture
def clip_folder(tmp_path) -> str:
    for index, frame in enumerate(noise(9, 32, 32, 3)):
        Image.fromarray(frame).save(tmp_path / f"{index}.png")
    return str(tmp_path)


TEXTS = {
    "v2.1": (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n<video>\nWhat happens?<|im_end|>\n"
        "<|im_start|>assistant\nIt moves up.<|im_end|>\n<|im_start|>user\nIs it red?<|im_end|>\n"
        "<|im_start|>assistant\n(Yes), it is.<|im_end|>\n"
    ),
    "v2.0": "<s>[INST] <video>\nWhat happens? [/INST] It moves up.</s>[INST] Is it red? [/INST] (Yes), it is.</s>",
}
TARGETS = {
    "v2.1": ["It moves up.<|im_end|>", "(Yes), it is.<|im_end|>"],
    "v2.0": [" It moves up.</s>", " (Yes), it is.</s>"],
}


def test_template_and_targets(release, clip_folder):
    """The text of the original training, one marker blown up; answers with their end markers are the only targets."""
    processor = tiny_processor(release)
    row = sample([clip_folder])
    assert processor.apply_chat_template(json.loads(row["messages"]), tokenize=False) == TEXTS[release]
    encoded = ConversationEncoder(processor, num_frames=4)(row)
    ids, labels = encoded["input_ids"], encoded["labels"]
    tokens = {"v2.1": 8, "v2.0": 27}[release]
    assert processor.decode(ids) == TEXTS[release].replace("<video>", "<video>" * tokens)
    runs, run = [], []
    for token, label in zip(ids.tolist(), labels.tolist(), strict=True):
        assert label in (token, -100)
        if label != -100:
            run.append(token)
        elif run:
            runs, run = [*runs, run], []
    runs = [*runs, run] if run else runs
    assert [processor.decode(r) for r in runs] == TARGETS[release]


def test_a_system_message_takes_the_place_of_the_default(release):
    processor = tiny_processor(release)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Is it red?"}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    expected = {
        "v2.1": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nIs it red?<|im_end|>\n"
        "<|im_start|>assistant\n",
        "v2.0": "<s>[INST] Be brief.\n\nIs it red? [/INST]",
    }
    assert text == expected[release]


def test_apply_chat_template_reads_the_file(clip_folder):
    processor = tiny_processor("v2.1")
    messages = [{"role": "user", "content": [{"type": "video", "path": clip_folder}, {"type": "text", "text": "Red?"}]}]
    out = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    assert out["pixel_values_videos"].shape == (1, 4, 3, 32, 32)
    assert int((out["input_ids"] == processor.video_token_id).sum()) == 8


@pytest.mark.parametrize("side", ["right", "left"])
def test_the_collator_makes_batches_for_the_model(release, side, clip_folder):
    model, processor = tiny_videollama2(release)
    rows = [sample([clip_folder]), sample([f"{clip_folder}/0.png"], "image")]
    batch = ConversationCollator(processor, num_frames=4, padding_side=side)(rows)
    assert batch["pixel_values"].shape[0] == batch["pixel_values_videos"].shape[0] == 1
    assert model(**batch).loss.isfinite()


def test_survives_a_save(release, tmp_path):
    model, processor = tiny_videollama2(release)
    processor.save_pretrained(tmp_path)
    model.config.save_pretrained(tmp_path)
    again = AutoProcessor.from_pretrained(tmp_path)
    assert type(again) is VideoLlama2Processor
    assert type(AutoImageProcessor.from_pretrained(tmp_path)) is VideoLlama2ImageProcessor
    assert type(AutoVideoProcessor.from_pretrained(tmp_path)) is VideoLlama2VideoProcessor
    assert again.to_dict() == processor.to_dict()
    assert again.chat_template == processor.chat_template
    call = {"text": ["<image><video>"], "images": [noise(40, 32, 3)], "videos": [noise(9, 40, 32, 3)]}
    for ours, theirs in zip(processor(**call).values(), again(**call).values(), strict=True):
        np.testing.assert_array_equal(np.array(ours), np.array(theirs))


def test_uses_nothing_of_torchvision(monkeypatch, clip_folder):
    for module in ("image_processing_backends", "image_processing_utils", "video_processing_utils"):
        monkeypatch.setattr(f"transformers.{module}.tvF", None)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    processor = tiny_processor("v2.0")
    call = {"text": ["<image><video>"], "images": [noise(40, 32, 3)], "videos": [noise(9, 40, 32, 3)]}
    assert processor(**call, return_tensors="pt")["pixel_values_videos"].shape == (1, 4, 3, 32, 32)
    assert "pixel_values_videos" in ConversationEncoder(processor, num_frames=4)(sample([clip_folder]))


class TestBadInput:
    def test_a_tokenizer_without_the_video_token(self):
        whole = tiny_processor("v2.1")
        with pytest.raises(ValueError, match=r"the tokenizer \(.*\) has no <image>, expected it"):
            VideoLlama2Processor(whole.image_processor, tiny_text_tokenizer("v2.1"), whole.video_processor)

    def test_a_tokenizer_of_another_model(self):
        tokenizer = tiny_text_tokenizer("v2.1")
        tokenizer.add_tokens(["<extra>"])
        add_markers(tokenizer)
        with pytest.raises(ValueError, match=r"image_token_id is \d+ in the model's configuration but <image> is \d+"):
            build_processor(tiny_config("v2.1"), tokenizer)

    @pytest.mark.parametrize("video", [[], [[]], np.zeros((0, 32, 32, 3), np.uint8)], ids=["list", "nested", "array"])
    def test_a_video_of_zero_frames(self, video):
        processor = tiny_processor("v2.1")
        for call in (processor.video_processor, lambda videos: processor(text=["<video>"], videos=videos)):
            with pytest.raises(ValueError, match="a video of zero frames"):
                call(video)

    def test_one_frame_where_time_is_halved(self):
        processor = tiny_processor("v2.1")
        with pytest.raises(ValueError, match="found 1 frames of 4 x 4 patches, expected at least 2"):
            processor(text=["<video>"], videos=[noise(1, 32, 32, 3)], do_sample_frames=False)

    def test_videos_of_unequal_lengths(self):
        processor = tiny_processor("v2.1")
        with pytest.raises(ValueError, match="found videos of 2 and 4 frames"):
            processor.video_processor([noise(2, 32, 32, 3), noise(4, 32, 32, 3)], do_sample_frames=False)

    @pytest.mark.parametrize(
        ("video", "message"),
        [
            (noise(4, 32, 32, 2), r"shape \(4, 32, 32, 2\), expected"),
            ([noise(32, 32, 3), noise(32, 16, 3)], "frames of several shapes"),
            (7, "found int, expected a video"),
        ],
    )
    def test_what_is_no_video(self, video, message):
        with pytest.raises(ValueError, match=message):
            VideoLlama2VideoProcessor()(video)

    def test_a_file_that_is_missing_or_broken(self, tmp_path):
        with pytest.raises(MediaError, match=r"gone\.mp4: found no such file"):
            VideoLlama2VideoProcessor()(str(tmp_path / "gone.mp4"))
        (tmp_path / "bad.mp4").write_bytes(b"no video")
        with pytest.raises(MediaError, match=r"bad\.mp4"):
            VideoLlama2VideoProcessor()(tmp_path / "bad.mp4")

    def test_metadata_of_another_number_of_videos(self):
        with pytest.raises(ValueError, match="found 2 video_metadata for 1 videos"):
            VideoLlama2VideoProcessor()(
                noise(4, 32, 32, 3), video_metadata=[{"total_num_frames": 4}, {"total_num_frames": 4}]
            )

    def test_the_data_layer_names_the_sample(self, clip_folder):
        encode = ConversationEncoder(tiny_processor("v2.1"), num_frames=1)
        with pytest.raises(BadSample, match="sample 's': VideoLlama2Processor refuses it: found 1 frames"):
            encode(sample([clip_folder]))
