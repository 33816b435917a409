"""VideoChat2 as published, on the meta device, and its visual half against a functional twin."""

import pytest
import torch
from transformers import InstructBlipQFormerModel, MistralConfig

from regate.models.videochat2 import VideoChat2Config, VideoChat2ForConditionalGeneration, add_lora
from regate.models.videochat2.vision import sinusoid_positions
from tests.models import videochat2_twin as twin
from tests.models.tiny_videochat2 import tiny_videochat2, videochat2_rows
from tests.tiny import tiny_collate


@pytest.fixture(scope="module")
def published():
    with torch.device("meta"):
        return VideoChat2ForConditionalGeneration(VideoChat2Config())


def count(module) -> int:
    return sum(p.numel() for p in module.parameters())


class TestPublishedSizes:
    def test_numbers_of_the_original(self, published):
        inner = published.model
        assert published.config.num_visual_tokens == 96
        assert len(inner.vision_tower.blocks) == 23
        assert inner.vision_tower.layernorm.eps == 1e-12
        assert {b.norm1.eps for b in inner.vision_tower.blocks} == {1e-6}
        assert isinstance(inner.qformer, InstructBlipQFormerModel)
        assert inner.qformer.get_input_embeddings().weight.shape == (30523, 768)
        assert inner.qformer.embeddings.layernorm.eps == 1e-12
        assert [layer.has_cross_attention for layer in inner.qformer.encoder.layer] == [True, False] * 6
        assert inner.multi_modal_projector.weight.shape == (4096, 768)
        assert published.get_input_embeddings().weight.shape == (32000, 4096)
        text = published.config.text_config
        assert (text.sliding_window, text.rms_norm_eps, text.rope_parameters["rope_theta"]) == (None, 1e-5, 1e6)

    def test_parameters_by_hand(self, published):
        d = 1024
        block = 2 * 2 * d + 3 * d * d + 2 * d + d * d + d + 2 * 4 * d * d + 4 * d + d
        assert count(published.model.vision_tower) == 3 * 16 * 16 * d + d + 23 * block + 2 * d
        e, wide = 768, 3072
        attention = 4 * (e * e + e) + 2 * e
        cross = 2 * (e * e + e) + 2 * (d * e + e) + 2 * e
        feed = e * wide + wide + wide * e + e + 2 * e
        qformer = (30523 + 512) * e + 2 * e + 12 * (attention + 2 * feed) + 6 * cross
        assert count(published.model.qformer) == qformer
        assert count(published.model.queries) == 96 * e
        assert count(published.model.multi_modal_projector) == e * 4096 + 4096
        layer = 2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336 + 2 * 4096
        assert count(published.model.language_model) + count(published.lm_head) == 2 * 32000 * 4096 + 32 * layer + 4096

    def test_lora_tensors(self):
        with torch.device("meta"):
            model = add_lora(VideoChat2ForConditionalGeneration(VideoChat2Config()))
        lora = {n: p for n, p in model.named_parameters() if ".lora_" in n}
        assert len(lora) == 7 * 32 * 2 + 2 == 450
        assert all(p.requires_grad and 16 in p.shape for p in lora.values())
        config = model.peft_config["default"]
        assert (config.r, config.lora_alpha, config.lora_dropout) == (16, 32, 0.1)
        full = {n for n, p in model.named_parameters() if p.requires_grad} - lora.keys()
        inner = model.base_model.model.model
        names = ("vision_tower", "queries", "qformer", "multi_modal_projector")
        assert all(".modules_to_save." in name for name in full)
        assert len(full) == sum(len(list(getattr(inner, n).original_module.parameters())) for n in names)

    def test_units_of_sharding_are_whole_layers(self, published):
        units = {"VideoChat2VisionBlock", "InstructBlipQFormerLayer", "MistralDecoderLayer"}
        assert set(published._no_split_modules) == units
        assert units <= {type(m).__name__ for m in published.modules()}


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 8, 16])
def test_positions(frames):
    ours = sinusoid_positions(frames, grid=3, dim=10, position_frames=4)
    torch.testing.assert_close(ours, twin.positions(frames, 3, 10, 4), rtol=1e-6, atol=1e-6)


class TestTwin:
    @pytest.mark.parametrize("attention", ["eager", "sdpa"])
    @pytest.mark.parametrize("frames", [1, 4, 7])
    def test_vision_tower(self, attention, frames):
        model, _ = tiny_videochat2(attn_implementation=attention)
        tower = model.model.vision_tower
        pixels = torch.randn(2, frames, 3, 32, 32)
        expected = twin.vision(dict(tower.state_dict()), pixels, number=2, patch=8)
        torch.testing.assert_close(tower(pixels).last_hidden_state, expected, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("attention", ["eager", "sdpa"])
    def test_from_pixels_to_visual_tokens(self, attention):
        model, _ = tiny_videochat2(attn_implementation=attention)
        inner = model.model
        ids = torch.tensor([[2, 5, 6, 7, 3], [2, 11, 3, 0, 0], [2, 3, 0, 0, 0]])
        mask = (ids != 0).long()
        pixels = torch.randn(3, 4, 3, 32, 32)
        state = dict(inner.state_dict())
        tower = {k.removeprefix("vision_tower."): v for k, v in state.items() if k.startswith("vision_tower.")}
        expected = twin.connector(state, twin.vision(tower, pixels, 2, 8), ids, mask, number=2)
        ours = inner.get_video_features(pixels, ids, mask).pooler_output
        assert ours.shape == (3, 8, 32)
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)
        # An image is a clip of one frame.
        expected = twin.connector(state, twin.vision(tower, pixels[:, :1], 2, 8), ids, mask, number=2)
        torch.testing.assert_close(
            inner.get_image_features(pixels[:, 0], ids, mask).pooler_output, expected, rtol=1e-4, atol=1e-5
        )

    def test_the_decoder_gets_visual_tokens_between_the_tags_and_ones_for_bos(self):
        model, processor = tiny_videochat2()
        row = videochat2_rows(processor, [5])[0]
        given = {}
        model.get_decoder().register_forward_pre_hook(
            lambda module, args, kwargs: given.update(kwargs), with_kwargs=True
        )
        model(**tiny_collate(processor, [row]))
        embeds, ids = given["inputs_embeds"][0], row["input_ids"]
        tokens = processor.tokenizer.convert_ids_to_tokens(ids)
        assert tokens[0] == "<s>"
        assert torch.equal(embeds[0], torch.ones(32))
        seats = (ids == processor.video_token_id).nonzero().flatten().tolist()
        assert seats == list(range(seats[0], seats[0] + 8))
        text = processor.tokenizer.decode(ids).split("<video>")
        assert text[0].endswith("[INST] <Video>")
        assert text[-1].startswith("</Video> [/INST] [INST] ")
        features = model.get_video_features(
            row["pixel_values_videos"], row["qformer_input_ids"], row["qformer_attention_mask"]
        ).pooler_output[0]
        torch.testing.assert_close(embeds[seats], features)
        others = [i for i in range(1, len(ids)) if i not in seats]
        assert torch.equal(embeds[others], model.get_input_embeddings().weight[ids[others]])


def test_stochastic_depth_grows_to_its_rate_and_rests_in_evaluation():
    model, processor = tiny_videochat2(qformer_drop_path_rate=0.5)
    rates = [
        [m.rate for m in layer.modules() if type(m).__name__ == "DropPath"]
        for layer in model.model.qformer.encoder.layer
    ]
    assert rates == [[], [0.25] * 3, [0.5] * 4]  # with cross-attention in layers 0 and 2
    assert model.state_dict().keys() == tiny_videochat2()[0].state_dict().keys()
    batch = tiny_collate(processor, videochat2_rows(processor, [5]))
    torch.manual_seed(0)
    assert len({model(**batch).loss.item() for _ in range(8)}) > 1
    plain = tiny_videochat2()[0].eval()
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(model.eval()(**batch).loss, plain(**batch).loss)


def test_defaults_of_the_text_configuration_are_those_of_instruct_v02_only_where_none_is_given():
    given = VideoChat2Config(text_config=MistralConfig(sliding_window=7))
    assert given.text_config.sliding_window == 7
    again = VideoChat2Config.from_dict(given.to_dict())
    assert again.text_config.sliding_window == 7
    assert again.to_dict() == given.to_dict()
