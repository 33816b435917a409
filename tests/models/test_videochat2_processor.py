"""VideoChat2's processor against independent arithmetic: prompt, pixels, frames, targets."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoProcessor

from regate.data import ConversationCollator, ConversationEncoder
from regate.media import MediaError
from regate.models import videochat2
from regate.models.videochat2 import VideoChat2Processor, chat_template
from regate.models.videochat2.pixels import middle_frames
from tests.media_files import write_image, write_video
from tests.models.tiny_videochat2 import FRAMES, SIZE, tiny_processor, tiny_qformer_tokenizer, tiny_videochat2
from tests.tiny import tiny_tokenizer as other_tokenizer


@pytest.fixture(scope="module")
def processor():
    return tiny_processor()


def say(role: str, text: str = "", *visuals: str) -> dict:
    content = [{"type": what} for what in visuals] + [{"type": "text", "text": text}] * bool(text)
    return {"role": role, "content": content}


def clip(frames: int = FRAMES, size: tuple[int, int] = (SIZE, SIZE), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, *size, 3), dtype=np.uint8)


class TestPrompt:
    """Strings as the original's `process_qa` builds them, written out by hand."""

    def test_one_question(self, processor):
        messages = [say("system", "Look."), say("user", "What?", "video"), say("assistant", "A ball.")]
        assert processor.apply_chat_template(messages) == (
            "<s>Look. [INST] <video> [/INST] [INST] What? [/INST] A ball. </s>"
        )

    def test_several_questions_and_an_empty_one(self, processor):
        messages = [
            say("user", "", "image"),
            say("assistant", "A dog."),
            say("user", "Where?"),
            say("assistant", "In."),
        ]
        assert processor.apply_chat_template(messages) == (
            "<s>[INST] <image> [/INST] A dog. </s> [INST] Where? [/INST] In. </s>"
        )

    def test_a_prompt_ends_where_the_answer_starts(self, processor):
        messages = [say("user", "What?", "video"), say("assistant", "A ball.")]
        prompt = processor.apply_chat_template(messages[:1], add_generation_prompt=True)
        assert prompt == "<s>[INST] <video> [/INST] [INST] What? [/INST]"
        assert processor.apply_chat_template(messages).removeprefix(prompt) == " A ball. </s>"

    @pytest.mark.parametrize("system", ["Watch.", "It's \\ a\nline."])
    def test_default_instruction(self, system):
        processor = tiny_processor(chat_template=chat_template(system))
        assert processor.apply_chat_template([say("user", "Hi?")]) == f"<s>{system} [INST] Hi? [/INST]"
        own = [say("system", "Mine."), {"role": "user", "content": "Hi?"}]
        assert processor.apply_chat_template(own) == "<s>Mine. [INST] Hi? [/INST]"

    def test_visual_tokens_stand_before_the_closing_tag(self, processor):
        text = processor.apply_chat_template([say("user", "What?", "video")])
        inputs = processor(text=text, videos=[clip()], return_tensors="pt")
        assert processor.tokenizer.decode(inputs["input_ids"][0]) == (
            f"<s>[INST] <Video>{'<video>' * 8}</Video> [/INST] [INST] What? [/INST]"
        )
        assert (inputs["input_ids"] == processor.tokenizer.bos_token_id).sum() == 1

    def test_times_of_the_frames(self):
        processor = tiny_processor(frame_times=True)
        text = processor.apply_chat_template([say("user", "What?", "video")])
        metadata = [{"total_num_frames": 40, "fps": 10.0, "frames_indices": [11, 15, 19, 23]}]
        inputs = processor(text=text, videos=[clip()], video_metadata=metadata, do_sample_frames=False)
        assert "</Video> The video contains 4 frames sampled at 1.1, 1.5, 1.9, 2.3 seconds. [/INST]" in (
            processor.tokenizer.decode(inputs["input_ids"][0])
        )
        unknown = processor(text=text, videos=[clip()], do_sample_frames=False)
        assert "contains" not in processor.tokenizer.decode(unknown["input_ids"][0])

    def test_the_instruction_goes_to_the_qformer(self, processor):
        texts = [
            processor.apply_chat_template([say("system", "Watch the video."), say("user", "What?", "video")]),
            processor.apply_chat_template([say("user", "Is it?")]),
            processor.apply_chat_template([say("user", "Which?", "image", "image")]),
        ]
        images = [Image.fromarray(clip()[0])] * 2
        inputs = processor(text=texts, videos=[clip()], images=images, padding=True, return_tensors="pt")
        assert inputs["qformer_input_ids"].tolist() == [[2, 1, 6, 7, 10, 3], *[[2, 3, 0, 0, 0, 0]] * 2]
        assert inputs["qformer_attention_mask"].tolist() == [[1] * 6, *[[1, 1, 0, 0, 0, 0]] * 2]
        given = processor(text=texts[:1], videos=[clip()], instructions="look", return_tensors="pt")
        assert given["qformer_input_ids"].tolist() == [[2, 11, 3]]
        with pytest.raises(ValueError, match="found 2 instructions, expected one for each of 1 texts"):
            processor(text=texts[:1], videos=[clip()], instructions=["a", "b"])

    def test_long_instructions_lose_their_front(self):
        processor = tiny_processor(max_qformer_length=4)
        text = processor.apply_chat_template([say("system", "look video and answer"), say("user", "", "video")])
        assert processor(text=text, videos=[clip()])["qformer_input_ids"] == [[2, 8, 9, 3]]


class TestPixels:
    @pytest.mark.parametrize(("name", "first"), [("imagenet", 0.485), ("clip", 0.48145466)])
    def test_against_pillow_and_numpy(self, name, first):
        processor = tiny_processor(image_statistics=name)
        frames = clip(FRAMES, (24, 40))
        mean, std = {
            "imagenet": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
            "clip": ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]),
        }[name]
        assert mean[0] == first
        expected = np.stack(
            [
                ((np.asarray(Image.fromarray(f).resize((SIZE, SIZE), Image.Resampling.BICUBIC)) / 255 - mean) / std)
                for f in frames
            ]
        ).transpose(0, 3, 1, 2)
        pixels = processor.video_processor([frames], do_sample_frames=False, return_tensors="pt")["pixel_values_videos"]
        assert pixels.shape == (1, FRAMES, 3, SIZE, SIZE)
        assert pixels.dtype == torch.float32
        np.testing.assert_allclose(pixels[0], expected, rtol=1e-5, atol=1e-5)
        images = [Image.fromarray(f) for f in frames]
        np.testing.assert_allclose(
            processor.image_processor(images, return_tensors="pt")["pixel_values"], expected, rtol=1e-5, atol=1e-5
        )

    def test_grey_and_transparent_images(self, processor):
        for mode in ("L", "RGBA", "P"):
            image = Image.fromarray(clip()[0]).convert(mode)
            assert processor.image_processor(image, return_tensors="pt")["pixel_values"].shape == (1, 3, SIZE, SIZE)

    def test_video_of_no_frames(self, processor):
        with pytest.raises(ValueError, match="video 1 has 0 frames"):
            processor.video_processor([clip(), clip(0)])

    def test_files(self, processor, tmp_path):
        path = write_video(tmp_path / "v.mp4", 12, size=(SIZE, SIZE))
        message = {"role": "user", "content": [{"type": "video", "path": str(path)}, {"type": "text", "text": "What?"}]}
        inputs = processor.apply_chat_template([message], tokenize=True, return_dict=True, return_tensors="pt")
        greys = inputs["pixel_values_videos"][0, :, 0].mean((1, 2)) * 0.229 + 0.485
        expected = [(20 + 200 * i // 11) / 255 for i in (1, 4, 7, 10)]
        np.testing.assert_allclose(greys, expected, atol=0.02)
        assert (inputs["input_ids"] == processor.video_token_id).sum() == 8
        fewer = processor.video_processor(str(path), num_frames=2, return_tensors="pt")["pixel_values_videos"]
        assert fewer.shape == (1, 2, 3, SIZE, SIZE)
        with pytest.raises(MediaError, match="nothing\\.mp4: found no such file"):
            processor.video_processor(str(tmp_path / "nothing.mp4"))


@given(total=st.integers(1, 400), number=st.integers(1, 40))
def test_middle_frames(total, number):
    """The middle of each of n parts whose borders numpy rounds down; a short video repeats its last frame."""
    parts = min(total, number)
    borders = np.linspace(0, total, parts + 1).astype(int)
    expected = [(a + b - 1) // 2 for a, b in pairwise(borders)]
    assert middle_frames(total, number) == expected + [expected[-1]] * (number - parts)


def test_middle_frames_of_nothing():
    with pytest.raises(ValueError, match="total is 0"):
        middle_frames(0, 4)


def test_arrays_are_sampled_unless_told_otherwise(processor):
    frames = clip(10)
    sampled = processor.video_processor([frames], return_tensors="pt")["pixel_values_videos"]
    chosen = processor.video_processor([frames[[0, 3, 5, 8]]], do_sample_frames=False, return_tensors="pt")
    assert middle_frames(10, 4) == [0, 3, 5, 8]
    assert torch.equal(sampled, chosen["pixel_values_videos"])
    short = processor.video_processor([frames[:3]], return_tensors="pt")["pixel_values_videos"][0]
    assert torch.equal(short[2], short[3])


class TestTargets:
    def test_answers_with_their_ends_and_nothing_else(self, processor, tmp_path):
        write_video(tmp_path / "v.mp4", 12, size=(SIZE, SIZE))
        messages = [
            say("system", "Look."), say("user", "What?", "video"), say("assistant", "A ball."), say("user", "And?"),
            say("assistant", "A box, too."),
        ]  # fmt: skip
        row = {"id": "x", "messages": messages, "videos": [str(tmp_path / "v.mp4")], "images": []}
        encoded = ConversationEncoder(processor, num_frames=FRAMES)(row)
        ids, labels = encoded["input_ids"], encoded["labels"]
        targets = labels != -100
        assert torch.equal(labels[targets], ids[targets])
        assert processor.tokenizer.decode(ids[targets]) == " A ball. </s> A box, too. </s>"
        prompt = processor.apply_chat_template(messages[:2], add_generation_prompt=True)
        expected = processor(text=prompt, videos=[clip()], return_tensors="pt")["input_ids"][0]
        first = int(targets.nonzero()[0])
        assert torch.equal(ids[:first], expected)

    def test_rows_of_all_kinds_are_joined(self, processor, tmp_path):
        write_video(tmp_path / "v.mp4", 12, size=(SIZE, SIZE))
        write_image(tmp_path / "i.png")
        video, image = [str(tmp_path / "v.mp4")], [str(tmp_path / "i.png")]
        rows = [
            {"messages": [say("user", "Which?", "image"), say("assistant", "It.")], "images": image},
            {"messages": [say("user", "Is it?"), say("assistant", "Yes, it is.")]},
            {
                "messages": [say("system", "Watch the video."), say("user", "", "video"), say("assistant", "A ball.")],
                "videos": video,
            },
        ]
        batch = ConversationCollator(processor, num_frames=FRAMES)(rows)
        assert batch["pixel_values"].shape == (1, 3, SIZE, SIZE)
        assert batch["pixel_values_videos"].shape == (1, FRAMES, 3, SIZE, SIZE)
        assert batch["qformer_input_ids"].tolist() == [[2, 3, 0, 0, 0, 0], [2, 1, 6, 7, 10, 3]]
        assert batch["qformer_attention_mask"].tolist() == [[1, 1, 0, 0, 0, 0], [1] * 6]
        model = tiny_videochat2()[0]
        losses = []
        for row in rows:
            alone = ConversationCollator(processor, num_frames=FRAMES)([row])
            losses += [model(**alone).loss * (alone["labels"][:, 1:] != -100).sum()]
        expected = sum(losses) / (batch["labels"][:, 1:] != -100).sum()
        torch.testing.assert_close(model(**batch).loss, expected, rtol=1e-5, atol=1e-6)


class TestSaving:
    def test_round_trip_with_both_tokenizers(self, tmp_path):
        videochat2.register()
        processor = tiny_processor(image_statistics="clip", frame_times=True, chat_template=chat_template("Watch."))
        processor.save_pretrained(tmp_path)
        again = AutoProcessor.from_pretrained(tmp_path)
        assert type(again) is VideoChat2Processor
        assert again.chat_template == processor.chat_template
        for name in ("num_image_tokens", "image_statistics", "frame_times", "max_qformer_length", "video_token_id"):
            assert getattr(again, name) == getattr(processor, name)
        messages = [say("system", "look."), say("user", "What?", "video", "image")]
        arguments = {"videos": [clip(9, (20, 30))], "images": [Image.fromarray(clip()[0])], "return_tensors": "pt"}
        ours, theirs = (dict(p(text=p.apply_chat_template(messages), **arguments)) for p in (processor, again))
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(theirs[key])), key

    def test_bad_settings(self):
        with pytest.raises(ValueError, match="image_statistics is 'cifar', expected one of imagenet, clip"):
            tiny_processor(image_statistics="cifar")
        good = tiny_processor()
        kept = VideoChat2Processor(
            good.image_processor, good.tokenizer, good.qformer_tokenizer, good.video_processor, image_statistics=None
        )
        assert kept.image_processor.image_mean == good.image_processor.image_mean
        assert kept.num_image_tokens == 96

    @pytest.mark.parametrize(("kind", "token"), [("internvl", "image"), ("qwen2_vl", "image")])
    def test_tokenizer_without_a_visual_token(self, kind, token):
        good = tiny_processor()
        with pytest.raises(ValueError, match=f"the tokenizer has no {token} token '<{token}>'"):
            VideoChat2Processor(
                good.image_processor, other_tokenizer(kind), tiny_qformer_tokenizer(), good.video_processor
            )

    def test_text_and_files_that_do_not_match(self, processor):
        text = processor.apply_chat_template([say("user", "What?", "video")])
        with pytest.raises(ValueError, match="no videos were passed"):
            processor(text=text)
        with pytest.raises(ValueError, match="Found total 1 <video> tokens and 2 videos"):
            processor(text=text, videos=[clip(), clip()])
