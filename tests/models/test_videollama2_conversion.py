"""Checkpoints in the layouts of the original releases, written here and loaded back; what does not fit is named."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPConfig,
    CLIPModel,
    MistralForCausalLM,
    Qwen2ForCausalLM,
    SiglipConfig,
    SiglipModel,
)

from regate.models.videollama2 import (
    VideoLlama2Config,
    VideoLlama2ForConditionalGeneration,
    VideoLlama2Model,
    VideoLlama2Processor,
    load_base,
)
from tests.models.tiny_videollama2 import (
    RELEASES,
    tiny_config,
    tiny_rows_batch,
    tiny_text_tokenizer,
    tiny_videollama2,
    tiny_vision_config,
    widen,
)

LENGTHS = [5, 9, 3]
LANGUAGE_MODELS = {"v2.1": Qwen2ForCausalLM, "v2.0": MistralForCausalLM}


@pytest.fixture(params=RELEASES)
def release(request) -> str:
    return request.param


@pytest.fixture(autouse=True)
def _seed():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def original_config(release: str, tower: Path, **changes) -> dict:
    """`config.json` of a release: the language model's fields at the top, `mm_*` next to them."""
    config = tiny_config(release)
    text = config.text_config.to_dict()
    text.pop("rope_parameters", None)
    for field in ("transformers_version", "_name_or_path", "architectures", "dtype"):
        text.pop(field, None)
    return (
        text
        | {
            "model_type": "videollama2_mistral" if release == "v2.0" else "videollama2_qwen2",
            "architectures": ["Videollama2MistralForCausalLM" if release == "v2.0" else "Videollama2Qwen2ForCausalLM"],
            "_name_or_path": "somewhere/else",
            "rope_theta": 10000.0,
            "torch_dtype": "float32",
            "transformers_version": "4.40.0",
            "mm_vision_tower": str(tower),
            "mm_projector_type": config.projector_type,
            "mm_hidden_size": config.vision_config.hidden_size,
            "mm_vision_select_layer": -2,
            "mm_vision_select_feature": "patch",
            "mm_projector_lr": None,
            "use_mm_proj": True,
            "tune_mm_mlp_adapter": False,
            "freeze_mm_mlp_adapter": False,
            "image_aspect_ratio": "pad",
            "num_frames": 4,
            "tokenizer_model_max_length": 2048,
            "tokenizer_padding_side": "right",
            "image_token_id": config.image_token_id,
            "video_token_id": config.video_token_id,
        }
        | changes
    )


def original_keys(model: VideoLlama2ForConditionalGeneration) -> dict[str, torch.Tensor]:
    """Weights under the names of the original code."""
    renamed = {}
    for key, value in model.state_dict().items():
        key = key.replace("model.vision_tower.", "model.vision_tower.vision_tower.vision_model.")
        key = key.replace("model.multi_modal_projector.", "model.mm_projector.")
        renamed[key.replace("model.language_model.", "model.")] = value.clone()
    return renamed


def write_tower(folder: Path, release: str, vision: dict | None = None) -> Path:
    """A whole CLIP or SigLIP checkpoint, text half included, with nested names."""
    vision = vision or tiny_vision_config(release)
    text = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 3}
    classes = {"siglip_vision_model": (SiglipModel, SiglipConfig), "clip_vision_model": (CLIPModel, CLIPConfig)}
    model_class, config_class = classes[vision["model_type"]]
    model = model_class(config_class(vision_config=vision, text_config=text | {"vocab_size": 50}))
    widen(model)
    model.config.save_pretrained(folder)
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    assert any(key.startswith("vision_model.") for key in weights)
    assert any(key.startswith("text_model.") for key in weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def write_chat(folder: Path, release: str, weights: dict | None = None, **changes):
    """A chat release of a tiny model. Returns the model."""
    model, _ = tiny_videollama2(release)
    tower = write_tower(folder / "tower", release)
    (folder / "config.json").write_text(json.dumps(original_config(release, tower, **changes)))
    tiny_text_tokenizer(release).save_pretrained(folder)
    save_file(weights if weights is not None else original_keys(model), folder / "model.safetensors", {"format": "pt"})
    return model.eval()


def write_base(folder: Path, release: str, **changes) -> tuple[Path, Path, Path, dict, dict]:
    """A Base release, a language model and a tower: their folders, weights of the connector and the language model."""
    model, _ = tiny_videollama2(release)
    tower = write_tower(folder / "tower", release)
    connector = {k: v for k, v in original_keys(model).items() if ".mm_projector." in k}
    base = folder / "base"
    base.mkdir()
    (base / "config.json").write_text(json.dumps(original_config(release, Path("siglip-of-somebody"), **changes)))
    torch.save(connector, base / "mm_projector.bin")
    language = LANGUAGE_MODELS[release](tiny_config(release).text_config)
    widen(language)
    language.save_pretrained(folder / "language")
    return base, folder / "language", tower, connector, language.state_dict()


class TestChat:
    def test_loads_as_it_is(self, release, tmp_path):
        model = write_chat(tmp_path, release)
        again, info = AutoModelForImageTextToText.from_pretrained(tmp_path, output_loading_info=True)
        assert type(again) is VideoLlama2ForConditionalGeneration
        assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
        processor = AutoProcessor.from_pretrained(tmp_path)
        assert type(processor) is VideoLlama2Processor
        assert processor.video_processor.do_pad_to_square
        assert processor.tokenizer.pad_token is not None
        batch = tiny_rows_batch(processor, LENGTHS)
        torch.testing.assert_close(again(**batch).logits, model(**batch).logits)

    def test_is_saved_under_our_names(self, release, tmp_path):
        write_chat(tmp_path, release)
        model = VideoLlama2ForConditionalGeneration.from_pretrained(tmp_path)
        model.save_pretrained(tmp_path / "ours")
        assert set(load_file(tmp_path / "ours" / "model.safetensors")) == set(model.state_dict())
        assert json.loads((tmp_path / "ours" / "config.json").read_text())["model_type"] == "videollama2"
        again = AutoModelForImageTextToText.from_pretrained(tmp_path / "ours")
        assert again.config.to_dict() | {"_name_or_path": ""} == model.config.to_dict() | {"_name_or_path": ""}
        assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())

    def test_configuration(self, release, tmp_path):
        write_chat(tmp_path, release)
        for config in (AutoConfig.from_pretrained(tmp_path), VideoLlama2Config.from_pretrained(tmp_path)):
            assert type(config) is VideoLlama2Config
            assert config.num_frames == 4
            assert config.projector_type == {"v2.1": "stc_connector_v35", "v2.0": "stc_connector"}[release]
            assert config.vision_feature_layer == -2
            assert config.vision_config.model_type == tiny_vision_config(release)["model_type"]
            assert config.text_config.model_type == {"v2.1": "qwen2", "v2.0": "mistral"}[release]
            assert config.text_config.rope_parameters["rope_theta"] == 10000.0
            assert config.text_config.hidden_size == 32

    def test_the_model_without_a_head(self, tmp_path):
        model = write_chat(tmp_path, "v2.1")
        headless = VideoLlama2Model.from_pretrained(tmp_path)
        assert all(torch.equal(value, headless.state_dict()[name]) for name, value in model.model.state_dict().items())

    @pytest.mark.parametrize(
        ("spoil", "message"),
        [
            (
                lambda w: w.pop("model.mm_projector.s2.b3.se.fc1.bias"),
                "missing: .*multi_modal_projector.s2.b3.se.fc1.bias",
            ),
            (lambda w: w.update({"model.extra.weight": torch.ones(1)}), "unexpected: model.extra.weight"),
            (
                lambda w: w.update({"model.mm_projector.sampler.0.bias": torch.ones(5)}),
                r"another shape: model.multi_modal_projector.sampler.0.bias \(5,\), expected \(32,\)",
            ),
        ],
        ids=["missing", "unexpected", "misshaped"],
    )
    def test_keys_that_do_not_fit_are_named(self, spoil, message, tmp_path):
        weights = original_keys(tiny_videollama2("v2.1")[0])
        spoil(weights)
        write_chat(tmp_path, "v2.1", weights)
        with pytest.raises(ValueError, match=message):
            AutoModelForImageTextToText.from_pretrained(tmp_path)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"mm_projector_type": "mlp2x_gelu"}, "projector_type is 'mlp2x_gelu', expected one of stc_connector_v35"),
            ({"mm_projector_type": None}, "found no mm_projector_type"),
            ({"mm_vision_tower": "eva-clip"}, "mm_vision_tower is 'eva-clip', expected siglip-so400m-patch14-384 or"),
            ({"mm_hidden_size": 1024}, "mm_hidden_size is 1024, but the vision tower .* has 24: it does not fit"),
            ({"mm_vision_select_feature": "cls_patch"}, "mm_vision_select_feature is 'cls_patch', expected 'patch'"),
        ],
    )
    def test_configurations_that_are_not_ours_are_named(self, changes, message, tmp_path):
        write_chat(tmp_path, "v2.1", **changes)
        with pytest.raises(ValueError, match=message):
            AutoModelForImageTextToText.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("model_type", "tower", "kind", "side", "ids"),
    [
        ("videollama2_qwen2", "google/siglip-so400m-patch14-384", "siglip_vision_model", 27, (151646, 151647)),
        ("videollama2_mistral", "./openai/clip-vit-large-patch14-336", "clip_vision_model", 24, (32000, 32001)),
    ],
)
def test_towers_of_the_releases_are_known_by_name(model_type, tower, kind, side, ids):
    """No file of them is needed to know their shapes."""
    release = {"model_type": model_type, "mm_vision_tower": tower, "mm_projector_type": "stc_connector"}
    config = VideoLlama2Config.from_dict(release | {"hidden_size": 64})
    assert config.vision_config.model_type == kind
    assert config.patches_per_side == side
    assert (config.image_token_id, config.video_token_id) == ids


class TestBase:
    def test_parts_are_put_together(self, release, tmp_path):
        base, language, tower, connector, text = write_base(tmp_path, release)
        model = load_base(base, str(language), str(tower))
        state = model.state_dict()
        assert not any(value.is_meta for value in [*state.values(), *model.buffers()])
        for key, value in connector.items():
            assert torch.equal(state[key.replace("mm_projector", "multi_modal_projector")], value)
        for key, value in text.items():
            ours = key if key.startswith("lm_head") else key.replace("model.", "model.language_model.")
            assert torch.equal(state[ours], value)
        expected = VideoLlama2ForConditionalGeneration(model.config).eval()
        expected.load_state_dict(state)
        processor = tiny_videollama2(release)[1]
        batch = tiny_rows_batch(processor, LENGTHS)
        torch.testing.assert_close(model(**batch).logits, expected(**batch).logits)
        model.save_pretrained(tmp_path / "ours")
        again = AutoModelForImageTextToText.from_pretrained(tmp_path / "ours")
        assert all(torch.equal(value, again.state_dict()[name]) for name, value in state.items())

    def test_vision_tower_is_the_vision_half(self, release, tmp_path):
        base, language, tower, _, _ = write_base(tmp_path, release)
        model = load_base(base, str(language), str(tower))
        file = {k: v for k, v in load_file(tower / "model.safetensors").items() if k.startswith("vision_model.")}
        state = model.model.vision_tower.state_dict()
        assert {k.removeprefix("vision_model.") for k in file} == set(state)
        assert all(torch.equal(value, state[key.removeprefix("vision_model.")]) for key, value in file.items())

    def test_dtype_and_attention_of_all_parts(self, tmp_path):
        base, language, tower, _, _ = write_base(tmp_path, "v2.1")
        model = load_base(base, str(language), str(tower), dtype=torch.bfloat16, attn_implementation="eager")
        assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
        assert model.get_decoder().config._attn_implementation == "eager"
        assert model.model.vision_tower.config._attn_implementation == "eager"
        model.activation_checkpointing_enable()

    def test_projectors_that_do_not_fit_are_named(self, tmp_path):
        base, language, tower, connector, _ = write_base(tmp_path, "v2.1")

        def loads(weights: dict, message: str, error: type = ValueError):
            torch.save(weights, base / "mm_projector.bin")
            with pytest.raises(error, match=message):
                load_base(base, str(language), str(tower))

        loads({"model.mm_projector.0.weight": torch.ones(2)}, "113 keys are missing|unexpected: 0.weight")
        loads({k: v for k, v in connector.items() if "s1.b2.conv1.bn" not in k}, "missing: s1.b2.conv1.bn.bias, s1.b2")
        loads(connector | {"model.mm_projector.sampler.0.bias": torch.ones(5)}, r"sampler.0.bias \(5,\), expected")
        loads({"model.layers.0.weight": torch.ones(2)}, r"mm_projector.bin: found no key with mm_projector\.")
        (base / "mm_projector.bin").unlink()
        with pytest.raises(FileNotFoundError, match=r"mm_projector\.bin: no such file"):
            load_base(base, str(language), str(tower))

    def test_a_language_model_that_does_not_fit(self, tmp_path):
        base, language, tower, _, _ = write_base(tmp_path, "v2.1", hidden_size=64)
        with pytest.raises(ValueError, match=r"hidden_size is 32, but the connector in .* was made for 64"):
            load_base(base, str(language), str(tower))

    def test_a_vision_tower_that_does_not_fit(self, tmp_path):
        base, language, _, _, _ = write_base(tmp_path, "v2.1")
        other = write_tower(tmp_path / "other", "v2.1", tiny_vision_config("v2.1") | {"hidden_size": 48})
        with pytest.raises(ValueError, match=r"mm_hidden_size is 24, but the vision tower .*other has 48"):
            load_base(base, str(language), str(other))

    def test_a_tower_with_keys_missing(self, tmp_path):
        base, language, tower, _, _ = write_base(tmp_path, "v2.1")
        weights = load_file(tower / "model.safetensors")
        del weights["vision_model.post_layernorm.bias"]
        save_file(weights, tower / "model.safetensors", {"format": "pt"})
        with pytest.raises(ValueError, match=r"missing: post_layernorm.bias"):
            load_base(base, str(language), str(tower))

    def test_a_folder_of_something_else(self, tmp_path):
        base, language, tower, _, _ = write_base(tmp_path, "v2.1", model_type="llava")
        with pytest.raises(ValueError, match="model_type is 'llava', expected videollama2_qwen2"):
            load_base(base, str(language), str(tower))
