"""Training with stored vision features is training with the tower: the same losses, cold, warm, after any mishap."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import transformers
from torch import nn

from regate import ReGateTrainer, UnsupportedModel, add_reference_losses
from regate.accounting import read_steps
from regate.conversations import load_conversations
from regate.vision_cache import TowerOutput, VisionCache, frozen_tower, stand_ins
from tests.core.experiment import arguments, with_lora
from tests.core.test_disk_full import Disk
from tests.media_files import turns, write_conversations, write_image, write_video
from tests.models.tiny_videochat2 import tiny_videochat2
from tests.models.tiny_videollama2 import tiny_videollama2
from tests.tiny import KINDS, tiny_model, tiny_processor

ROOT = Path(__file__).resolve().parents[2]
MODELS = (*KINDS, "videollama2", "videollama2-clip", "videochat2")


def model_of(name: str):
    """A tiny model with a frozen tower, and its processor."""
    if name.startswith("videollama2"):
        model, processor = tiny_videollama2("v2.0" if name.endswith("clip") else "v2.1")
    else:
        model, processor = tiny_videochat2() if name == "videochat2" else tiny_model(name)
    model.get_encoder(modality="image").requires_grad_(False)
    return model, processor


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Videos, images, several of them and none; wide pictures for those that cut tiles; two questions on one video."""
    folder = tmp_path_factory.mktemp("conversations")
    write_image(folder / "media" / "wide.png", (64, 32), 2)
    both = [
        {"type": "image", "path": "wide.png"},
        {"type": "video", "path": "a.mp4"},
        {"type": "text", "text": "Both?"},
    ]
    extra = [
        {"id": "wide", "image": "wide.png", "conversations": turns("What is it?", "A wide picture.")},
        {"id": "both", "messages": [{"role": "user", "content": both}, {"role": "assistant", "content": "Yes."}]},
    ]
    return load_conversations(write_conversations(folder, extra), folder / "media")


def trainer_of(name: str, output, rows, cache=None, *, lora: bool = False, change=None, **kwargs):
    """A dense trainer, not yet run, on ``rows``; ``trainer.calls`` counts runs of its tower."""
    model, processor = model_of(name)
    if name == "smolvlm" and "both" in rows["id"]:  # its processor takes images or videos
        rows = rows.filter(lambda row: row["id"] != "both")
    if change is not None:
        change(model)
    if lora:
        model = with_lora(model)
    options = {"policy": "dense", "num_frames": 4, "max_steps": 5, "max_length": None} | kwargs
    args = arguments(output, cache_vision=None if cache is None else str(cache), **options)
    trainer = ReGateTrainer(model, args, train_dataset=rows, processing_class=processor)
    trainer.calls = 0
    tower = model.get_base_model() if lora else model
    first = next(m for m in tower.get_encoder(modality="image").modules() if isinstance(m, (nn.Conv2d, nn.Conv3d)))

    def count(*a):
        trainer.calls += 1

    first.register_forward_hook(count)
    return trainer


def losses_of(trainer) -> list[float]:
    trainer.train()
    return [step["loss_kept"] for step in read_steps(Path(trainer.args.output_dir) / "steps.jsonl")]


@pytest.mark.parametrize("name", MODELS)
def test_losses_are_the_same_without_cold_and_warm(name, rows, tmp_path):
    plain = losses_of(trainer_of(name, tmp_path / "plain", rows))
    cold = trainer_of(name, tmp_path / "cold", rows, tmp_path / "cache")
    cold_losses = losses_of(cold)
    warm = trainer_of(name, tmp_path / "warm", rows, tmp_path / "cache")
    assert losses_of(warm) == cold_losses
    assert cold.calls > 0
    assert warm.calls == 0
    # Batches of two: a product of another height may round differently.
    assert cold_losses == pytest.approx(plain, rel=1e-5)


@pytest.mark.parametrize("name", ["llava_onevision", "qwen2_vl", "videollama2"])
def test_batches_of_one_are_equal_bit_for_bit(name, rows, tmp_path):
    options = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "bf16": name == "llava_onevision"}
    plain = losses_of(trainer_of(name, tmp_path / "plain", rows, **options))
    assert losses_of(trainer_of(name, tmp_path / "cold", rows, tmp_path / "cache", **options)) == plain
    assert losses_of(trainer_of(name, tmp_path / "warm", rows, tmp_path / "cache", **options)) == plain


def test_gated_with_lora_and_evaluation(rows, tmp_path):
    model, processor = model_of("smolvlm")
    rows = rows.filter(lambda row: row["id"] != "both")
    scored = add_reference_losses(rows, model, processor, num_frames=4)
    found = {}
    for name, cache in (("plain", None), ("cold", tmp_path / "cache"), ("warm", tmp_path / "cache")):
        trainer = trainer_of("smolvlm", tmp_path / name, scored, cache, lora=True, policy="regate", max_steps=6)
        found[name] = [*losses_of(trainer), trainer.evaluate(rows.select(range(4)))["eval_loss"]]
        assert {step["ratio"] for step in read_steps(tmp_path / name / "steps.jsonl")} == {1.0, 0.5}
    assert trainer.calls == 0
    assert found["warm"] == found["cold"]
    assert found["cold"] == pytest.approx(found["plain"], rel=1e-5)


def test_workers_ship_features_too(rows, tmp_path):
    alone = losses_of(trainer_of("internvl", tmp_path / "0", rows, tmp_path / "cache"))
    for options in ({}, {"dataloader_persistent_workers": True, "dataloader_prefetch_factor": 4}):
        trainer = trainer_of("internvl", tmp_path / "2", rows, tmp_path / "cache", dataloader_num_workers=2, **options)
        assert losses_of(trainer) == alone
        assert trainer.calls == 0


def test_a_changed_file_other_weights_and_another_processor_are_misses(tmp_path):
    path = write_video(tmp_path / "media" / "v.mp4", 12, noise=True)
    samples = [{"id": "v", "video": "v.mp4", "conversations": turns("What happens?", "The ball moves up.")}]
    (tmp_path / "train.json").write_text(json.dumps(samples))
    rows = load_conversations(tmp_path / "train.json", tmp_path / "media")
    runs = iter(range(100))

    def run(change=None, cache=tmp_path / "cache", **options):
        trainer = trainer_of("internvl", tmp_path / f"{next(runs)}", rows, cache, change=change, **options)
        return losses_of(trainer), trainer.calls

    def other_tower(model):
        with torch.no_grad():
            next(model.get_encoder(modality="image").parameters()).add_(0.01)

    first, calls = run(max_steps=2)
    assert calls > 0
    assert run(max_steps=2) == (first, 0)
    other, calls = run(other_tower, max_steps=2)
    assert calls > 0
    assert other != first
    assert other == run(other_tower, None, max_steps=2)[0]
    assert run(max_steps=2, num_frames=2)[1] > 0
    assert run(max_steps=2, bf16=True)[1] > 0
    before = path.stat()
    path.write_bytes(write_video(tmp_path / "other.mp4", 12).read_bytes())
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    changed, calls = run(max_steps=2)
    assert calls > 0
    assert changed != first
    assert changed == run(None, None, max_steps=2)[0]


@pytest.mark.parametrize("harm", ["cut", "altered", "gone"])
def test_damaged_entries_are_made_again(harm, rows, tmp_path):
    expected = losses_of(trainer_of("qwen2_vl", tmp_path / "cold", rows, tmp_path / "cache"))
    entries = sorted((tmp_path / "cache").rglob("*.safetensors"))
    for entry in entries[::2]:
        content = bytearray(entry.read_bytes())
        content[-9] ^= 1
        entry.write_bytes(content[: len(content) // 2] if harm == "cut" else content)
        if harm == "gone":
            entry.unlink()
    assert losses_of(trainer_of("qwen2_vl", tmp_path / "again", rows, tmp_path / "cache")) == expected
    warm = trainer_of("qwen2_vl", tmp_path / "warm", rows, tmp_path / "cache")
    assert losses_of(warm) == expected
    assert warm.calls == 0


def test_a_full_disk_and_a_full_cache_change_nothing(rows, tmp_path, caplog):
    options = {"max_steps": 4, "logging_steps": 100}
    expected = losses_of(trainer_of("internvl", tmp_path / "cold", rows, tmp_path / "whole", **options))
    small = trainer_of("internvl", tmp_path / "small", rows, tmp_path / "part", cache_gb=8e-6, **options)
    assert losses_of(small) == expected
    assert "has reached its limit" in caplog.text
    trainer = trainer_of("internvl", tmp_path / "full", rows, tmp_path / "full-cache", **options)
    trainer.step_log.flush = lambda: None  # the log would need room, too
    trainer.step_log.add = lambda entry=trainer.step_log, **kw: entry._pending.append(kw)
    trainer.remove_callback(transformers.PrinterCallback)
    with Disk() as disk:
        disk.fill(after_bytes=100)
        trainer.train()
    assert [step["loss_kept"] for step in trainer.step_log._pending] == expected
    assert "cannot be written (File too large)" in caplog.text


_RUN = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
from pathlib import Path
from regate.conversations import load_conversations
from tests.core.test_vision_cache import losses_of, trainer_of
media, out, cache = map(Path, sys.argv[2:5])
rows = load_conversations(media / "train.json", media / "media")
print("RESULT", losses_of(trainer_of("llava_onevision", out, rows, cache)))
"""


def process(*paths) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", _RUN, str(ROOT), *map(str, paths)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment)


def test_killed_while_filling_and_filled_by_two_at_once(tmp_path):
    rows = load_conversations(write_conversations(tmp_path), tmp_path / "media")
    expected = losses_of(trainer_of("llava_onevision", tmp_path / "expected", rows, tmp_path / "other"))
    cache = tmp_path / "cache"
    with process(tmp_path, tmp_path / "killed", cache) as killed:
        deadline = time.monotonic() + 120
        while len(list(cache.rglob("*.safetensors"))) < 3 and killed.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        killed.send_signal(signal.SIGKILL)
    assert list(cache.rglob("*.safetensors"))
    with process(tmp_path, tmp_path / "one", cache) as one, process(tmp_path, tmp_path / "two", cache) as two:
        results = [p.communicate(timeout=280)[0].split("RESULT ")[1].strip() for p in (one, two)]
    assert results == [str(expected)] * 2
    warm = trainer_of("llava_onevision", tmp_path / "warm", rows, cache)
    assert losses_of(warm) == expected
    assert warm.calls == 0


# ---- what is refused ---------------------------------------------------------------------------------------------


def test_a_tower_that_trains_or_is_random_is_refused(rows, tmp_path):
    def thaw(model):
        list(model.get_encoder(modality="image").parameters())[2].requires_grad_(True)

    def drop(model):
        next(m for m in model.get_encoder(modality="image").modules() if hasattr(m, "dropout")).dropout = 0.25

    with pytest.raises(ValueError, match=r"needs a frozen vision tower; 1 tensors of SiglipVisionModel .*--freeze-vis"):
        trainer_of("llava_onevision", tmp_path, rows, tmp_path / "cache", change=thaw)
    with pytest.raises(ValueError, match=r"the same features in each call; .* has dropout = 0.25"):
        trainer_of("llava_onevision", tmp_path, rows, tmp_path / "cache", change=drop)
    model, _ = model_of("internvl")
    model.get_encoder(modality="image").extra = nn.Dropout(0.5)
    with pytest.raises(ValueError, match=r"extra \(Dropout\) has p = 0.5"):
        frozen_tower(model)
    model.get_encoder(modality="image").extra = nn.BatchNorm1d(3).requires_grad_(False)
    with pytest.raises(ValueError, match="batch statistics"):
        frozen_tower(model)
    with pytest.raises(UnsupportedModel, match="does not say which one of its modules sees"):
        frozen_tower(transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=8, hidden_size=8,
            intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)))  # fmt: skip


def test_rows_without_conversations_and_compiled_models_are_refused(rows, tmp_path):
    model, processor = model_of("internvl")
    args = arguments(tmp_path, policy="dense", cache_vision=str(tmp_path / "cache"))
    with pytest.raises(ValueError, match="needs conversations as rows"):
        ReGateTrainer(model, args, lambda rows: {}, rows, processing_class=processor)
    with pytest.raises(ValueError, match="compiled"):
        trainer_of("internvl", tmp_path, rows, tmp_path / "cache", torch_compile=True)
    with pytest.raises(ValueError, match=r"cache_gb must be > 0; got 0"):
        arguments(tmp_path, cache_gb=0)


def test_features_of_several_levels_are_refused_by_name(rows, tmp_path):
    processor = tiny_processor("qwen2_vl")
    ids = processor.tokenizer.convert_tokens_to_ids
    config = transformers.Qwen3VLConfig(
        vision_config={"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "patch_size": 8,
            "temporal_patch_size": 2, "spatial_merge_size": 2, "out_hidden_size": 32, "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0]},
        text_config={"vocab_size": len(processor.tokenizer), "hidden_size": 32, "intermediate_size": 64,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}},
        image_token_id=ids("<|image_pad|>"), video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"), vision_end_token_id=ids("<|vision_end|>"),
    )  # fmt: skip
    model = transformers.Qwen3VLForConditionalGeneration(config)
    model.get_encoder(modality="image").requires_grad_(False)
    args = arguments(tmp_path / "run", policy="dense", cache_vision=str(tmp_path / "cache"), max_steps=1)
    images = rows.filter(lambda row: row["images"] and not row["videos"])
    trainer = ReGateTrainer(model, args, train_dataset=images, processing_class=processor)
    with pytest.raises(UnsupportedModel, match=r"Qwen3VL.* reads `deepstack_features` of its vision tower's output"):
        trainer.train()


class Peeking(transformers.InternVLForConditionalGeneration):
    """Makes something of the pixels beside its tower: their mean goes into the embeddings."""

    def __init__(self, config):
        super().__init__(config)
        forward = self.model.multi_modal_projector.forward
        seen = []
        self.model.register_forward_pre_hook(lambda m, a, k: seen.append(k["pixel_values"].mean()), with_kwargs=True)
        self.model.multi_modal_projector.forward = lambda x: forward(x) + seen[-1]


class Twice(transformers.InternVLForConditionalGeneration):
    """Calls its tower twice."""

    def __init__(self, config):
        super().__init__(config)
        see = self.model.get_image_features

        def both(*args, **kwargs):
            see(*args, **kwargs)
            return see(*args, **kwargs)

        self.model.get_image_features = both


class Joined(transformers.InternVLForConditionalGeneration):
    """Its tower returns the pictures of all samples as one sequence."""

    def __init__(self, config):
        super().__init__(config)
        tower, see = self.model.vision_tower, self.model.vision_tower.forward

        def one(*args, **kwargs):
            output = see(*args, **kwargs)
            output.last_hidden_state = output.last_hidden_state.flatten(0, 1)[None]
            return output

        tower.forward = one
        project = self.model.get_image_features

        def split(pixel_values, **kwargs):
            before = tower.forward

            def again(*args, **inner):
                output = before(*args, **inner)
                output.last_hidden_state = output.last_hidden_state[0].unflatten(0, (len(pixel_values), -1))
                return output

            tower.forward = again
            try:
                return project(pixel_values, **kwargs)
            finally:
                tower.forward = before

        self.model.get_image_features = split


@pytest.mark.parametrize(
    ("cls", "words"),
    [(Peeking, "makes something of the pixels"), (Twice, "calls its vision tower twice"), (Joined, "cache_vision")],
)
def test_models_that_would_come_out_wrong_are_refused_by_name(cls, words, rows, tmp_path):
    model, processor = model_of("internvl")
    strange = cls(model.config)
    strange.load_state_dict(model.state_dict())
    strange.get_encoder(modality="image").requires_grad_(False)
    args = arguments(tmp_path / "run", policy="dense", cache_vision=str(tmp_path / "cache"), max_steps=1, num_frames=2)
    trainer = ReGateTrainer(strange, args, train_dataset=rows.select([0, 1]), processing_class=processor)
    with pytest.raises(UnsupportedModel, match=rf"cache_vision: {cls.__name__} .*{words}|cache_vision: .*{words}"):
        trainer.train()
    assert not any(entry.stat().st_size > 20_000 for entry in (tmp_path / "cache").rglob("*.safetensors"))


def test_stand_ins_hold_their_numbers_in_every_precision():
    shapes = {"pixel_values": (300, 2, 3, 8, 8)}
    real = torch.rand(300, 2) < 0.9
    visual = {"shapes": shapes, "real": {"pixel_values": real}, "features": None, "inputs": None, "key": ""}
    model, _ = model_of("internvl")
    cache = object.__new__(VisionCache)
    cache.name = type(model).__name__
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        pixels = stand_ins([visual, visual], torch.device("cpu"))["pixel_values"].to(dtype)
        assert pixels.shape == (600, 2, 3, 8, 8)
        there = torch.cat([real, real])
        assert torch.equal((pixels != 0).flatten(2).any(-1), there)
        numbers = cache._numbers((pixels[there],), {}).flatten()
        assert torch.equal(numbers, (torch.arange(1200).reshape(600, 2) + 1)[there])


def test_a_read_that_is_not_stored_is_named():
    output = TowerOutput("Model", {"last_hidden_state": torch.zeros(1), "hidden_states.1": torch.ones(1)}, 3)
    assert output.hidden_states[-2] is output.hidden_states[1]
    assert output[0] is output.last_hidden_state
    assert output.read == {"last_hidden_state", "hidden_states.1"}
    for read in (lambda: output.pooler_output, lambda: output.hidden_states[0], lambda: output[1]):
        with pytest.raises(UnsupportedModel, match=r"Model reads .* where there is last_hidden_state, hidden_states.1"):
            read()
    with pytest.raises(IndexError):
        output.hidden_states[3]
