"""State dicts written in the original's layout, stage by stage, and loaded back: every key, or an error by name."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import BertTokenizerFast, MistralForCausalLM, PreTrainedTokenizerFast

from regate.models.videochat2 import VideoChat2ForConditionalGeneration, load_original, load_processor
from tests.models.tiny_videochat2 import tiny_config, tiny_processor, tiny_videochat2, videochat2_rows
from tests.tiny import _bpe, tiny_collate

RANK, ALPHA = 4, 8
State = dict[str, torch.Tensor]


def original(state: State, language: str = "mistral_model.") -> State:
    """Our weights under the original's names, written out here by hand."""
    out: State = {}
    for name, tensor in state.items():
        if name.startswith("model.vision_tower.layernorm."):
            key = name.replace("model.vision_tower.layernorm", "vision_layernorm")
        elif name.startswith("model.vision_tower."):
            key = "vision_encoder.encoder." + name.removeprefix("model.vision_tower.")
        elif name.startswith("model.queries."):
            key = name.removeprefix("model.queries.")
        elif name.startswith("model.qformer.embeddings.layernorm."):
            key = name.replace("model.qformer.embeddings.layernorm", "qformer.bert.embeddings.LayerNorm")
        elif name.startswith("model.qformer."):
            key = "qformer.bert." + name.removeprefix("model.qformer.").replace(
                "attention.attention.", "attention.self."
            )
        elif name.startswith("model.multi_modal_projector."):
            key = name.replace("model.multi_modal_projector", "mistral_proj")
        elif name.startswith("model.language_model."):
            key = f"{language}model." + name.removeprefix("model.language_model.")
        else:
            key = language + name
        out[key] = tensor.clone()
    assert len(out) == len(state)
    return out


def is_text_of_qformer(key: str) -> bool:
    return "word_embeddings" in key or "position_embeddings" in key or any(
        f"encoder.layer.{i}.{part}." in key for i in range(12) for part in ("intermediate", "output")
    )  # fmt: skip


def lora_matrices(language: State, seed: int = 1) -> State:
    """One pair for each of the eight kinds of layers, by the original's names."""
    generator = torch.Generator().manual_seed(seed)
    out: State = {}
    for name, weight in language.items():
        kinds = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head")
        if name.removesuffix(".weight").rsplit(".", 1)[-1] in kinds:
            key = "mistral_model.base_model.model." + name.removesuffix(".weight")
            high, wide = weight.shape
            out[f"{key}.lora_A.default.weight"] = torch.randn(RANK, wide, generator=generator) * 0.1
            out[f"{key}.lora_B.default.weight"] = torch.randn(high, RANK, generator=generator) * 0.1
    return out


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The files of all stages, the model that they make, and its configuration."""
    folder = tmp_path_factory.mktemp("published")
    model, processor = tiny_videochat2()
    config = tiny_config(processor)
    state = model.state_dict()
    language = {
        name.replace("model.language_model.", "model."): tensor
        for name, tensor in state.items()
        if name.startswith(("model.language_model.", "lm_head."))
    }
    mistral = MistralForCausalLM(config.text_config)
    mistral.load_state_dict(language)
    mistral.save_pretrained(folder / "mistral")
    visual = {k: v for k, v in original(state).items() if not k.startswith("mistral_model.")}
    first = {
        k: v if is_text_of_qformer(k) else v + 1  # overridden by the later stages
        for k, v in visual.items()
        if not k.startswith(("mistral_proj", "extra_query"))
    }
    first |= {k.replace("blocks.1.", "blocks.2."): v for k, v in visual.items() if ".blocks.1." in k}
    first |= {
        "qformer.bert.embeddings.position_ids": torch.arange(64)[None],
        "qformer.cls.predictions.bias": torch.zeros(13),
        "temp": torch.tensor(0.07),
        "vision_temp_embed": torch.zeros(1, 4, 1, 32),
        "itm_head.weight": torch.zeros(2, 24),
    }
    torch.save(first, folder / "umt_l16_qformer.pth")
    second = {k: v + 0.5 for k, v in visual.items() if not is_text_of_qformer(k)}
    torch.save({"model": second}, folder / "stage2.pth")
    lora = lora_matrices(language)
    torch.save({"model": visual | lora, "epoch": 3}, folder / "stage3.pth")
    with torch.no_grad():
        for key in [k for k in lora if ".lora_A." in k]:
            name = key.removeprefix("mistral_model.base_model.model.").replace(".lora_A.default", "")
            ours = name.replace("model.", "model.language_model.", 1) if name.startswith("model.") else name
            delta = lora[key.replace("lora_A", "lora_B")] @ lora[key] * ALPHA / RANK
            state[ours] = state[ours] + delta
    model.load_state_dict(state)
    save_file(original(state), folder / "merged.safetensors", {"format": "pt"})
    return folder, model.eval(), config


def stages(folder: Path) -> list[Path]:
    return [folder / name for name in ("umt_l16_qformer.pth", "stage2.pth", "stage3.pth")]


def load(published, files=None, language="mistral", **kwargs):
    folder, _, config = published
    options = {"config": config, "lora_alpha": ALPHA, "dtype": torch.float32} | kwargs
    return load_original(folder / language if language else None, files or stages(folder), **options)


def assert_equal(ours, model):
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], weight, rtol=1e-6, atol=1e-6, msg=name)
    batch = tiny_collate(tiny_processor(), videochat2_rows(tiny_processor(), [5, 4, 3]))
    torch.testing.assert_close(ours.eval()(**batch).logits, model(**batch).logits, rtol=1e-4, atol=1e-5)


class TestLoading:
    def test_all_stages_merged(self, published, tmp_path):
        ours = load(published)
        assert type(ours) is VideoChat2ForConditionalGeneration
        assert_equal(ours, published[1])
        ours.save_pretrained(tmp_path)
        again, info = VideoChat2ForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
        assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        assert_equal(again, published[1])

    def test_adapter_kept_to_train_on(self, published):
        ours = load(published, lora="keep")
        config = ours.peft_config["default"]
        assert (config.r, config.lora_alpha) == (RANK, ALPHA)
        lora = {n: p for n, p in ours.named_parameters() if ".lora_" in n}
        assert len(lora) == 7 * 2 * 2 + 2
        assert all(p.requires_grad for p in lora.values())
        frozen = MistralForCausalLM.from_pretrained(published[0] / "mistral")
        base = ours.base_model.model.model.language_model.layers[0].mlp.up_proj.base_layer.weight
        assert torch.equal(base, frozen.model.layers[0].mlp.up_proj.weight)
        assert_equal(ours.merge_and_unload(), published[1])

    @pytest.mark.parametrize("layout", ["file", "folder", "bin"])
    def test_merged_release(self, published, layout, tmp_path):
        path = published[0] / "merged.safetensors"
        if layout != "file":
            tensors = load_file(path)
            names = sorted(tensors)
            parts = [names[::2], names[1::2]]
            for number, part in enumerate(parts, start=1):
                shard = {name: tensors[name] for name in part}
                if layout == "bin":
                    torch.save(shard, tmp_path / f"pytorch_model-0000{number}-of-00002.bin")
                else:
                    save_file(shard, tmp_path / f"model-0000{number}-of-00002.safetensors", {"format": "pt"})
            path = tmp_path
        assert_equal(load(published, [path], language=None), published[1])

    def test_names_of_a_peft_wrapper(self, published, tmp_path):
        """Where the language model was trained whole, its weights stand beside the LoRA matrices."""
        model = published[1]
        wrapped = original(model.state_dict(), "mistral_model.base_model.model.")
        renamed = {k.replace("q_proj.weight", "q_proj.base_layer.weight"): v for k, v in wrapped.items()}
        torch.save({"module": renamed}, tmp_path / "stage4.pth")
        assert_equal(load(published, [tmp_path / "stage4.pth"], language=None), model)

    def test_precision(self, published):
        assert load(published, dtype=torch.bfloat16).dtype == torch.bfloat16


class TestRefusals:
    def changed(self, published, tmp_path, change):
        content = torch.load(published[0] / "stage3.pth")
        change(content["model"])
        path = tmp_path / "changed.pth"
        torch.save(content, path)
        return [*stages(published[0])[:2], path]

    def test_missing(self, published):
        folder = published[0]
        with pytest.raises(
            ValueError, match=r"3 missing: model\.multi_modal_projector\.bias, .*, model\.queries\.extra_query"
        ):
            load(published, [folder / "umt_l16_qformer.pth"])
        with pytest.raises(ValueError, match=r"\d+ missing: lm_head\.weight, model\.language_model"):
            load(published, language=None)

    def test_unexpected(self, published, tmp_path):
        files = self.changed(
            published, tmp_path, lambda state: state.update({"qformer.bert.pooler.weight": torch.ones(2)})
        )
        with pytest.raises(ValueError, match=r"1 unexpected: .*changed\.pth: qformer\.bert\.pooler\.weight"):
            load(published, files)

    def test_misshaped(self, published, tmp_path):
        files = self.changed(
            published, tmp_path, lambda state: state.update({"mistral_proj.weight": torch.ones(32, 7)})
        )
        with pytest.raises(
            ValueError, match=r"changed\.pth: mistral_proj\.weight: found \[32, 7\], expected \[32, 24\]"
        ):
            load(published, files)

    def test_a_vision_tower_that_does_not_fit(self, published):
        config = tiny_config(tiny_processor())
        config.vision_config.patch_size = 16
        with pytest.raises(
            ValueError, match=r"1 of another shape: .*patch_embed\.proj\.weight: found .*8, 8\], expected"
        ):
            load(published, config=config)

    def test_half_a_pair_of_lora_matrices(self, published, tmp_path):
        name = "mistral_model.base_model.model.lm_head.lora_B.default.weight"
        files = self.changed(published, tmp_path, lambda state: state.pop(name))
        with pytest.raises(ValueError, match=r"1 missing: lm_head\.lora_B\.default\.weight"):
            load(published, files)

    def test_lora_of_two_ranks(self, published, tmp_path):
        name = "mistral_model.base_model.model.lm_head.lora_A.default.weight"
        files = self.changed(published, tmp_path, lambda state: state.update({name: torch.ones(2, 32)}))
        with pytest.raises(ValueError, match=r"found ranks \[2, 4\], expected one rank"):
            load(published, files)

    def test_no_lora_to_keep(self, published):
        with pytest.raises(ValueError, match="found no LoRA weights"):
            load(published, [published[0] / "merged.safetensors"], language=None, lora="keep")
        with pytest.raises(ValueError, match="lora is 'drop'"):
            load(published, lora="drop")

    def test_a_language_model_of_other_weights(self, published, tmp_path):
        config = published[2].text_config
        other = MistralForCausalLM(config)
        state = other.state_dict()
        other.save_pretrained(tmp_path, state_dict={k: v for k, v in state.items() if "up_proj" not in k})
        with pytest.raises(ValueError, match=r"does not hold the weights of MistralForCausalLM: .*up_proj"):
            load_original(tmp_path, stages(published[0]), config=published[2])

    def test_files_that_are_no_checkpoints(self, published, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"nowhere\.pth: no such file"):
            load(published, [tmp_path / "nowhere.pth"])
        with pytest.raises(ValueError, match="found no file"):
            load_original(published[0] / "mistral", [], config=published[2])
        for name in ("cut.pth", "cut.safetensors"):
            (tmp_path / name).write_bytes(b"PK\x03\x04 nothing")
            with pytest.raises(ValueError, match=f"{name}: found data that is no checkpoint"):
                load(published, [tmp_path / name])
        (tmp_path / "empty").mkdir()
        with pytest.raises(ValueError, match=r"found a folder without \.safetensors"):
            load(published, [tmp_path / "empty"])
        torch.save({"weights": 3}, tmp_path / "odd.pth")
        with pytest.raises(ValueError, match=r"odd\.pth: found 'weights' of type int, expected a state dict"):
            load(published, [tmp_path / "odd.pth"])
        torch.save([1], tmp_path / "list.pth")
        with pytest.raises(ValueError, match=r"list\.pth: found list, expected a state dict"):
            load(published, [tmp_path / "list.pth"])
        torch.save({"model": {}, "config": Path("x")}, tmp_path / "pickle.pth")
        with pytest.raises(ValueError, match=r"pickle\.pth: found a pickle of more than tensors"):
            load(published, [tmp_path / "pickle.pth"])


def test_processor_from_the_tokenizers_of_the_parts(tmp_path):
    """Ids follow the text vocabulary, [DEC] BERT's; what Mistral lacks is set as the original sets it."""
    backend = Tokenizer.from_str(_bpe())
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    mistral = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    mistral.save_pretrained(tmp_path / "mistral")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "watch", "it"]
    BertTokenizerFast(vocab={word: i for i, word in enumerate(words)}).save_pretrained(tmp_path / "bert")
    processor = load_processor(tmp_path / "mistral", tmp_path / "bert", image_statistics="clip")
    assert (processor.video_token_id, processor.image_token_id) == (len(mistral), len(mistral) + 1)
    assert processor.tokenizer.pad_token == "</s>"
    assert processor.qformer_tokenizer.bos_token_id == len(words)
    assert processor.qformer_tokenizer.truncation_side == "left"
    assert processor.num_image_tokens == 96
    assert processor.image_processor.size["height"] == 224
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_processor(tmp_path / "nowhere", tmp_path / "bert")
