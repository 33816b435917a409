"""VideoChat2 as a model of transformers: loading, batching, generating, and what it refuses."""

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText

from regate.models import videochat2
from regate.models.videochat2 import VideoChat2Config, VideoChat2ForConditionalGeneration, VideoChat2Model
from tests.models.tiny_videochat2 import tiny_videochat2, videochat2_rows
from tests.tiny import tiny_collate


@pytest.fixture
def made():
    return tiny_videochat2()


def batch_of(processor, lengths=(5, 12, 9), side="right"):
    return tiny_collate(processor, videochat2_rows(processor, list(lengths)), side)


def inputs_of(batch):
    return {name: value for name, value in batch.items() if name != "labels"}


class TestLoading:
    def test_round_trip(self, made, tmp_path):
        videochat2.register()
        videochat2.register()  # twice is once
        model, processor = made
        model.save_pretrained(tmp_path)
        again, info = AutoModelForImageTextToText.from_pretrained(tmp_path, output_loading_info=True)
        assert type(again) is VideoChat2ForConditionalGeneration
        assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        for name, weight in model.state_dict().items():
            assert torch.equal(again.state_dict()[name], weight), name
        batch = batch_of(processor)
        assert torch.equal(again.eval()(**batch).logits, model.eval()(**batch).logits)
        assert type(AutoModel.from_pretrained(tmp_path)) is VideoChat2Model
        config = AutoConfig.from_pretrained(tmp_path)
        assert type(config) is VideoChat2Config
        assert config.constant_bos
        assert config.num_visual_tokens == 8

    def test_of_no_text_for_the_qformer(self, tmp_path):
        """As in stage 2: no weights that only text would use, and the instruction changes nothing."""
        model, processor = tiny_videochat2(qformer_text_input=False)
        assert not [
            n
            for n in model.state_dict()
            if "word_embeddings" in n or (".output.LayerNorm" in n and "attention" not in n)
        ]
        batch = batch_of(processor)
        loss = model(**batch).loss
        batch["qformer_input_ids"] = torch.full_like(batch["qformer_input_ids"], 5)
        assert model(**batch).loss == loss
        model.save_pretrained(tmp_path)
        again = VideoChat2ForConditionalGeneration.from_pretrained(tmp_path)
        assert again.eval()(**batch).loss == model.eval()(**batch).loss

    def test_accessors(self, made):
        model, _ = made
        assert model.get_decoder() is model.model.language_model
        assert model.get_encoder(modality="video") is model.get_encoder(modality="image") is model.model.vision_tower
        assert model.get_input_embeddings() is model.model.language_model.embed_tokens
        assert model.get_output_embeddings() is model.lm_head


class TestBatches:
    @pytest.mark.parametrize("side", ["right", "left"])
    def test_rows_are_independent(self, made, side):
        """A mixed batch is its rows one by one: order of pictures, instructions, padding of both texts."""
        model, processor = made
        rows = videochat2_rows(processor, [5, 12, 9, 3, 6])[::-1]  # an image comes before the first video
        batch = tiny_collate(processor, rows, side)
        together = model(**inputs_of(batch)).logits
        for i, row in enumerate(rows):
            alone = model(**inputs_of(tiny_collate(processor, [row], side))).logits[0]
            real = batch["attention_mask"][i].bool()
            torch.testing.assert_close(together[i][real], alone, rtol=1e-4, atol=1e-5)

    def test_several_pictures_of_both_kinds_in_one_row(self, made):
        model, processor = made
        pixels = torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8).numpy()
        content = [{"type": "image"}, {"type": "video"}, {"type": "image"}, {"type": "text", "text": "Compare."}]
        text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        inputs = processor(
            text=[text], images=[pixels[0], pixels[1]], videos=[pixels], do_sample_frames=False, return_tensors="pt"
        )
        inputs["qformer_input_ids"] = torch.tensor([[2, 5, 3], [2, 6, 3], [2, 7, 3]])
        inputs["qformer_attention_mask"] = torch.ones(3, 3, dtype=torch.int64)
        outputs = model(**inputs)
        ids, pictures = inputs["qformer_input_ids"], inputs["pixel_values"]
        expected = model.get_image_features(pictures, ids[[0, 2]]).pooler_output
        torch.testing.assert_close(outputs.image_hidden_states, expected)
        expected = model.get_video_features(inputs["pixel_values_videos"], ids[[1]]).pooler_output
        torch.testing.assert_close(outputs.video_hidden_states, expected)

    @pytest.mark.parametrize("what", ["video", "image"])
    def test_features_given_instead_of_pixels(self, made, what):
        model, processor = made
        batch = batch_of(processor)
        expected = model(**batch).loss
        name, rows = {"video": ("pixel_values_videos", [0]), "image": ("pixel_values", [1])}[what]
        encode = {"video": model.get_video_features, "image": model.get_image_features}[what]
        ids, mask = batch["qformer_input_ids"], batch["qformer_attention_mask"]
        features = encode(batch.pop(name), ids[rows], mask[rows], return_dict=True)
        batch |= {"qformer_input_ids": ids[[1 - rows[0]]], "qformer_attention_mask": mask[[1 - rows[0]]]}
        ours = model(**batch, mm_encoder_outputs={what: features}).loss
        assert ours.item() == pytest.approx(expected.item(), rel=1e-6)

    def test_eager_equals_sdpa(self, made):
        model, processor = made
        batch = batch_of(processor)
        eager = tiny_videochat2(attn_implementation="eager")[0]
        torch.testing.assert_close(eager(**batch).logits, model(**batch).logits, rtol=1e-4, atol=1e-5)
        seen = eager.get_video_features(
            batch["pixel_values_videos"], batch["qformer_input_ids"][:1], output_attentions=True
        )
        assert seen.vision_outputs.attentions[0].shape == (1, 2, 64, 64)
        assert seen.qformer_outputs.cross_attentions[0].shape == (1, 2, 8, 64)

    def test_checkpointing_recomputes_the_tower_too(self, made):
        model, processor = made
        batch = batch_of(processor)
        calls = []
        model.model.vision_tower.blocks[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))

        def gradients():
            model.zero_grad()
            model(**batch).loss.backward()
            return {n: p.grad.clone() for n, p in model.named_parameters()}

        plain, once = gradients(), len(calls)
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        again = gradients()
        assert len(calls) - once == 2 * once
        for name, gradient in plain.items():
            torch.testing.assert_close(again[name], gradient, msg=name)

    def test_half_precision(self, made):
        model, processor = made
        batch = batch_of(processor)
        expected = model(**batch).loss
        assert model.to(torch.bfloat16)(**batch).loss.item() == pytest.approx(expected.item(), rel=0.05)

    def test_constant_bos_is_a_switch(self, made):
        model, processor = made
        batch = batch_of(processor)
        other = tiny_videochat2(constant_bos=False)[0]
        assert (other(**batch).logits - model(**batch).logits).abs().max() > 1e-3
        with torch.no_grad():
            other.get_input_embeddings().weight[processor.tokenizer.bos_token_id] = 1.0
        torch.testing.assert_close(other(**batch).logits, model(**batch).logits)


class TestGenerate:
    def test_images_videos_and_text_only(self, made):
        model, processor = made
        model.eval()
        rows = videochat2_rows(processor, [1, 1, 1, 1])
        batch = inputs_of(tiny_collate(processor, rows, "left"))
        together = model.generate(**batch, max_new_tokens=5, do_sample=False)[:, -5:]
        for row, expected in zip(rows, together, strict=True):
            alone = model.generate(**inputs_of(tiny_collate(processor, [row])), max_new_tokens=5, do_sample=False)
            assert alone[0, -5:].tolist() == expected.tolist()

    def test_with_a_cache_as_without(self, made):
        model, processor = made
        batch = inputs_of(batch_of(processor, (1, 1, 1), "left"))
        model.eval()
        ids = model.generate(**batch, max_new_tokens=4, do_sample=False, use_cache=False)
        assert torch.equal(model.generate(**batch, max_new_tokens=4, do_sample=False), ids)

    def test_beams_keep_each_row_s_pictures(self, made):
        model, processor = made
        model.eval()
        rows = videochat2_rows(processor, [1, 1])
        batch = inputs_of(tiny_collate(processor, rows, "left"))
        together = model.generate(**batch, max_new_tokens=4, num_beams=3, num_return_sequences=2)
        for i, row in enumerate(rows):
            alone = inputs_of(tiny_collate(processor, [row]))
            alone = model.generate(**alone, max_new_tokens=4, num_beams=3, num_return_sequences=2)
            assert together[2 * i : 2 * i + 2, -4:].tolist() == alone[:, -4:].tolist()


class TestRefusals:
    def test_placeholders_and_features_that_do_not_match(self, made):
        model, processor = made
        batch = inputs_of(batch_of(processor))
        seat = (batch["input_ids"] == processor.video_token_id).nonzero()[0]
        short = batch["input_ids"].clone()
        short[tuple(seat)] = 5
        with pytest.raises(
            ValueError, match=r"found 7 video placeholders \(video_token_id \d+\).*expected 8: 8 for each of 1 v"
        ):
            model(**batch | {"input_ids": short})
        without = {k: v[:1] if "qformer" in k else v for k, v in batch.items() if k != "pixel_values"}
        with pytest.raises(ValueError, match=r"found 8 image placeholders .* expected 0"):
            model(**without)
        features = model.get_video_features(batch["pixel_values_videos"], batch["qformer_input_ids"][:1])
        twice = type(features)(pooler_output=features.pooler_output.repeat(2, 1, 1))
        with pytest.raises(ValueError, match=r"found 8 video placeholders .* expected 16"):
            model(input_ids=batch["input_ids"][:1], mm_encoder_outputs={"video": twice})

    def test_instructions_that_are_missing_or_of_another_number(self, made):
        model, processor = made
        batch = inputs_of(batch_of(processor))
        del batch["qformer_attention_mask"]
        with pytest.raises(ValueError, match="qformer_input_ids: found none, expected one row for each of 1"):
            model(**batch | {"qformer_input_ids": None})
        with pytest.raises(ValueError, match="qformer_input_ids: found 3 rows, expected one row for each of 2"):
            model(**batch | {"qformer_input_ids": batch["qformer_input_ids"][[0, 1, 1]]})
        with pytest.raises(ValueError, match=r"qformer_attention_mask: found the shape \(1, 1\), expected .* \(1, 2\)"):
            model.get_image_features(batch["pixel_values"], torch.tensor([[2, 3]]), torch.tensor([[1]]))

    @pytest.mark.parametrize("shape", [(1, 0, 3, 32, 32), (1, 4, 3, 32, 40), (4, 3, 32, 32), (1, 4, 1, 32, 32)])
    def test_pixels_of_another_shape(self, made, shape):
        model, _ = made
        with pytest.raises(
            ValueError, match=rf"shape \({shape[0]}, {shape[1]}, .*expected \[clips, frames, 3, 32, 32\]"
        ):
            model.get_video_features(torch.zeros(shape), torch.tensor([[2, 3]]))

    def test_inputs_twice_or_not_at_all(self, made):
        model, processor = made
        batch = inputs_of(batch_of(processor, (3,)))
        embeds = model.get_input_embeddings()(torch.tensor([[1, 2]]))
        with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
            model(**batch, inputs_embeds=embeds)
        with pytest.raises(ValueError, match="need input_ids"):
            model(pixel_values=torch.zeros(1, 3, 32, 32), inputs_embeds=embeds)
        features = model.get_video_features(batch["pixel_values_videos"], batch["qformer_input_ids"])
        with pytest.raises(ValueError, match="both pixels and mm_encoder_outputs of video"):
            model(**batch, mm_encoder_outputs={"video": features})

    @pytest.mark.parametrize(
        ("part", "fields", "message"),
        [
            (
                "vision_config",
                {"image_size": 30, "patch_size": 8},
                "image_size is 30, expected a multiple of patch_size",
            ),
            ("vision_config", {"hidden_size": 30, "num_attention_heads": 4}, "hidden_size is 30, expected a multiple"),
        ],
    )
    def test_configuration(self, part, fields, message):
        with pytest.raises(ValueError, match=message):
            VideoChat2Config(**{part: fields})
        with pytest.raises(ValueError, match="are both 5"):
            VideoChat2Config(video_token_id=5, image_token_id=5)
