"""The model as a user of transformers meets it: batches, generation, attention, checkpointing, Auto classes, errors."""

import pytest
import torch
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoModelForMultimodalLM

from regate.commands import freeze_vision
from regate.models.videollama2 import VideoLlama2Config, VideoLlama2ForConditionalGeneration, VideoLlama2Model, register
from tests.models.tiny_videollama2 import RELEASES, tiny_config, tiny_rows_batch, tiny_videollama2
from tests.tiny import tiny_collate, tiny_rows

LENGTHS = [5, 9, 3]


@pytest.fixture(params=RELEASES)
def release(request) -> str:
    return request.param


def prompts(processor, what: str) -> dict[str, torch.Tensor]:
    """Two prompts, padded at the left, with what they name."""
    processor.tokenizer.padding_side = "left"
    content = {"text": [], "image": [{"type": "image"}], "video": [{"type": "video"}]}[what]
    messages = [
        [{"role": "user", "content": [*content, {"type": "text", "text": text}]}]
        for text in ("What happens in the video?", "Is it red?")
    ]
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (2, 4, 32, 32, 3), generator=generator, dtype=torch.uint8).numpy()
    visual = {"text": {}, "image": {"images": [[p[0]] for p in pixels]}, "video": {"videos": list(pixels)}}[what]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    return dict(processor(text=text, **visual, padding=True, add_special_tokens=False, return_tensors="pt"))


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_mixed_batch_trains_every_part(release, side):
    model, processor = tiny_videollama2(release)
    batch = tiny_rows_batch(processor, LENGTHS, side)
    assert {"pixel_values", "pixel_values_videos"} < batch.keys()
    model(**batch).loss.backward()
    without = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0}
    unseen = ("vision_tower.encoder.layers.2", "post_layernorm", "vision_tower.head")  # past the layer that is seen
    assert all(any(part in name for part in unseen) for name in without)


def test_padding_sides_agree(release):
    model, processor = tiny_videollama2(release)
    left, right = (model(**tiny_rows_batch(processor, LENGTHS, side)).loss.item() for side in ("left", "right"))
    assert left == pytest.approx(right, rel=1e-5)


def test_rows_do_not_see_each_other(release):
    """A batch of a video, an image and text gives each row the logits that it has alone."""
    model, processor = tiny_videollama2(release)
    rows = tiny_rows("llava_onevision", processor, LENGTHS, num_frames=4)
    together = model.eval()(**tiny_collate(processor, rows)).logits
    for index, row in enumerate(rows):
        alone = model(**tiny_collate(processor, [row])).logits[0]
        torch.testing.assert_close(together[index, : len(alone)], alone, rtol=1e-4, atol=1e-5)


def test_eager_equals_sdpa(release):
    logits = []
    for attention in ("eager", "sdpa"):
        model, processor = tiny_videollama2(release, attn_implementation=attention)
        assert model.model.vision_tower.config._attn_implementation == attention
        assert model.get_decoder().config._attn_implementation == attention
        logits.append(model(**tiny_rows_batch(processor, LENGTHS)).logits)
    torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-4)


def test_says_that_it_takes_flash_attention():
    assert VideoLlama2ForConditionalGeneration._supports_flash_attn
    assert VideoLlama2ForConditionalGeneration._supports_sdpa


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_changes_no_gradient(release, reentrant):
    gradients = []
    for checkpointing in (False, True):
        model, processor = tiny_videollama2(release)
        if checkpointing:
            model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": reentrant})
            blocks = [m for m in model.modules() if type(m).__name__ == "RegStageBlock"]
            assert len(blocks) == 8
            assert all(block.gradient_checkpointing for block in blocks)
            if reentrant:
                model.enable_input_require_grads()
        model(**tiny_rows_batch(processor, LENGTHS)).loss.backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-5, atol=1e-7, msg=name)


@pytest.mark.parametrize("what", ["video", "image", "text"])
def test_generates(release, what):
    """Greedy tokens with a cache are those of full forward passes without one."""
    model, processor = tiny_videollama2(release)
    inputs = prompts(processor, what)
    out = model.eval().generate(**inputs, max_new_tokens=4, do_sample=False, eos_token_id=None)
    ids, mask = inputs.pop("input_ids"), inputs.pop("attention_mask")
    for _ in range(4):
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        step = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False, **inputs)
        ids = torch.cat([ids, step.logits[:, -1:].argmax(-1)], dim=1)
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
    assert torch.equal(out, ids)


def test_generates_several_sequences_a_prompt():
    model, processor = tiny_videollama2("v2.0")
    inputs = prompts(processor, "video")
    beams = model.eval().generate(**inputs, max_new_tokens=3, num_beams=2, num_return_sequences=2)
    assert len(beams) == 4


def test_a_table_that_ends_before_the_placeholders_can_grow():
    """What looks the prompt up in the scores needs rows for it."""
    model, processor = tiny_videollama2("v2.0")
    assert processor.video_token_id >= model.get_input_embeddings().num_embeddings
    model.resize_token_embeddings(len(processor.tokenizer))
    out = model.eval().generate(**prompts(processor, "video"), max_new_tokens=2, repetition_penalty=1.2)
    assert out.max() < len(processor.tokenizer)


def test_features_computed_before_are_the_same(release):
    model, processor = tiny_videollama2(release)
    batch = tiny_rows_batch(processor, LENGTHS)
    expected = model(**batch).logits
    pixels = batch.pop("pixel_values"), batch.pop("pixel_values_videos")
    seen = {
        "image": model.get_image_features(pixels[0], return_dict=True),
        "video": model.get_video_features(pixels[1], return_dict=True),
    }
    tokens = model.config.visual_tokens()
    assert seen["video"].pooler_output.shape == seen["image"].pooler_output.shape == (1, tokens, 32)
    torch.testing.assert_close(model(**batch, mm_encoder_outputs=seen).logits, expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=r"both pixels and mm_encoder_outputs\['video'\]"):
        model(**batch, pixel_values_videos=pixels[1], mm_encoder_outputs=seen)


def test_an_image_is_a_video_of_equal_frames(release):
    model, _ = tiny_videollama2(release)
    image = torch.randn(2, 3, 32, 32)
    frames = image[:, None].repeat(1, 4, 1, 1, 1)
    torch.testing.assert_close(
        model.get_image_features(image).pooler_output, model.get_video_features(frames).pooler_output
    )


def test_images_and_videos_of_other_lengths_go_together():
    model, processor = tiny_videollama2("v2.1")
    batch = tiny_rows_batch(processor, LENGTHS, num_frames=6)  # images are repeated to four
    out = model(**batch)
    assert out.video_hidden_states.shape[1] == 3 * 4
    assert out.image_hidden_states.shape[1] == 2 * 4


def test_sees_the_last_layer_but_one_without_cls():
    model, _ = tiny_videollama2("v2.0")
    tower = model.eval().get_encoder(modality="image")
    pixels = torch.randn(1, 2, 3, 32, 32)
    seen = model.get_video_features(pixels).last_hidden_state
    states = tower(pixels[0], output_hidden_states=True).hidden_states
    assert len(states) == 4
    torch.testing.assert_close(seen[0], states[-2][:, 1:])


def test_a_frozen_tower_builds_no_graph_even_under_input_gradients():
    model, processor = tiny_videollama2("v2.1")
    freeze_vision(model)
    assert not any(p.requires_grad for p in model.model.vision_tower.parameters())
    assert all(p.requires_grad for p in model.model.multi_modal_projector.parameters())
    model.enable_input_require_grads()  # as PEFT does under checkpointing
    batch = tiny_rows_batch(processor, LENGTHS)
    assert not model.get_video_features(batch["pixel_values_videos"]).last_hidden_state.requires_grad
    model(**batch).loss.backward()


def test_auto_classes_find_it_and_it_survives_a_save(release, tmp_path):
    register()
    register()
    model, processor = tiny_videollama2(release)
    model.save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert type(config) is VideoLlama2Config
    assert config.to_dict() == VideoLlama2Config.from_pretrained(tmp_path).to_dict() | {"_name_or_path": str(tmp_path)}
    batch = tiny_rows_batch(processor, LENGTHS)
    expected = model.eval()(**batch).logits
    for auto in (AutoModelForImageTextToText, AutoModelForMultimodalLM):
        again = auto.from_pretrained(tmp_path)
        assert type(again) is VideoLlama2ForConditionalGeneration
        assert torch.equal(again(**batch).logits, expected)
    assert type(AutoModel.from_pretrained(tmp_path)) is VideoLlama2Model


def test_tied_embeddings_stay_tied(tmp_path):
    model, _ = tiny_videollama2("v2.1", tie_word_embeddings=True)
    model.save_pretrained(tmp_path)
    again = VideoLlama2ForConditionalGeneration.from_pretrained(tmp_path)
    assert again.lm_head.weight is again.get_input_embeddings().weight
    assert torch.equal(again.lm_head.weight, model.lm_head.weight)


def test_layers_that_fsdp_wraps_are_there(release):
    """FSDP raises for a class that the model lacks."""
    model, _ = tiny_videollama2(release)
    present = {type(module).__name__ for module in model.modules()}
    decoder = {"v2.1": "Qwen2DecoderLayer", "v2.0": "MistralDecoderLayer"}[release]
    assert {"RegStageBlock", decoder} <= model._no_split_modules <= present


class TestBadInput:
    @pytest.mark.parametrize(("drop", "counts"), [(3, "found 5 video"), (8, "found 0 video")])
    def test_fewer_placeholders_than_visual_tokens(self, drop, counts):
        model, processor = tiny_videollama2("v2.1")
        row = tiny_rows("llava_onevision", processor, [5], num_frames=4)[0]
        seats = (row["input_ids"] == model.config.video_token_id).nonzero().flatten()
        row["input_ids"][seats[:drop]] = 7
        with pytest.raises(ValueError, match=f"{counts} placeholders .* but 8 visual tokens of videos"):
            model(**tiny_collate(processor, [row]))

    def test_placeholders_without_pixels(self):
        model, processor = tiny_videollama2("v2.0")
        batch = tiny_rows_batch(processor, [5])
        del batch["pixel_values_videos"]
        with pytest.raises(ValueError, match=r"found 27 video placeholders .* but 0 visual tokens"):
            model(**batch)

    def test_frames_of_another_size(self):
        model, _ = tiny_videollama2("v2.1")
        with pytest.raises(ValueError, match="frames of 16 x 16 pixels, the vision tower expects 32 x 32"):
            model.get_video_features(torch.zeros(1, 4, 3, 16, 16))

    def test_a_video_of_zero_frames(self):
        model, _ = tiny_videollama2("v2.1")
        with pytest.raises(ValueError, match=r"\(1, 0, 3, 32, 32\).*at least one frame"):
            model.get_video_features(torch.zeros(1, 0, 3, 32, 32))

    def test_a_video_of_one_frame_where_time_is_halved(self):
        model, _ = tiny_videollama2("v2.1")
        with pytest.raises(ValueError, match="found 1 frames of 4 x 4 patches, expected at least 2"):
            model.get_video_features(torch.zeros(1, 1, 3, 32, 32))

    def test_pixels_of_a_video_as_images(self):
        model, _ = tiny_videollama2("v2.1")
        with pytest.raises(ValueError, match="videos go into pixel_values_videos"):
            model.get_image_features(torch.zeros(1, 4, 3, 32, 32))

    def test_pixels_next_to_embeddings(self):
        model, processor = tiny_videollama2("v2.1")
        batch = tiny_rows_batch(processor, [5])
        embeds = model.get_input_embeddings()(batch["input_ids"])
        with pytest.raises(ValueError, match="expected input_ids"):
            model(inputs_embeds=embeds, pixel_values_videos=batch["pixel_values_videos"])
        with pytest.raises(ValueError, match="exactly one"):
            model(inputs_embeds=embeds, input_ids=batch["input_ids"])

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"projector_type": "spatial_conv"}, "'spatial_conv', expected one of stc_connector_v35, stc_connector"),
            ({"vision_config": {"model_type": "vit"}}, "'vit', expected one of siglip_vision_model"),
            ({"vision_feature_layer": -5}, "vision_feature_layer is -5, but the tower has 4 hidden states"),
            ({"num_frames": 0}, "num_frames is 0"),
            ({"video_token_id": 3, "image_token_id": 3}, "are both 3"),
        ],
    )
    def test_configurations(self, changes, message):
        with pytest.raises(ValueError, match=message):
            tiny_config("v2.1", **changes)


def test_a_rank_whose_rows_are_text_makes_the_calls_of_the_others():
    """Ranks that share out weights, or average gradients, wait for each other in every module."""
    model, processor = tiny_videollama2("v2.1")
    freeze_vision(model)
    row = tiny_rows("llava_onevision", processor, LENGTHS, num_frames=4)[2]
    expected = model(**tiny_collate(processor, [row])).loss.item()
    connector = dict(model.model.multi_modal_projector.named_parameters())
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=1, world_size=2)
    try:
        loss = model(**tiny_collate(processor, [row])).loss
        loss.backward()
    finally:
        torch.distributed.destroy_process_group()
    assert loss.item() == expected
    assert all(p.grad is not None and not p.grad.any() for p in connector.values())
