"""The small scale with tiny random parts: aligned, trained dense, gated and with adapters, scored, shown in tables."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders
from tokenizers import models as bpe
from transformers import (
    AutoModelForImageTextToText,
    Dinov2Model,
    GemmaConfig,
    GemmaForCausalLM,
    LlavaOnevisionForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from eval import world
from regate.accounting import read_steps
from regate.reference import load_teacher
from repro import recipes as all_recipes
from repro import small_tables, tables
from repro.loop import StageConfig
from repro.micro_data import TAGS
from repro.recipes import Data
from repro.record import read
from repro.run import existing, run
from repro.small import easy_vqa, evidence, recipes
from repro.small.align import AlignConfig, Alignment, align, words_at
from repro.small.material import SmallMaterial, material_of
from repro.small.models import easy_vqa_path, language_path, vision_path
from repro.small.seeing import Seeing
from repro.small.stage import SMALL, adapted, follow, trainer_of
from repro.small.student import Shape, assemble, build, projector, projector_path
from repro.small.vision import for_size
from tests.repro import small_parts

DATA = Data(train=12, validation=6, tasks=("moving_attribute", "scene_transition"), questions_per_task=2)
EASY = Data(train=8, validation=4, tasks=(), questions_per_task=0)
ALIGN = AlignConfig(
    clips=8, frames=2, validation=4,
    words=StageConfig(steps=12, batch_size=8, lr=1e-2, warmup=2),
    captions=StageConfig(steps=2, batch_size=2, lr=1e-3, warmup=1),
)  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """What `make models` and the alignment leave, tiny."""
    folder = tmp_path_factory.mktemp("small")
    small_parts.parts(folder)
    patch = pytest.MonkeyPatch()
    patch.setattr("repro.small.student.COMMITTED", folder / "no committed projector")
    patch.setattr("repro.small.material.QUESTIONS_OF_EASY_VQA", 6)
    align(language_path(folder), vision_path(folder), projector_path(folder).parent, ALIGN)
    yield folder
    patch.undo()


@pytest.fixture(scope="module")
def material(runs) -> SmallMaterial:
    return SmallMaterial(DATA, runs)


def shortened(recipe, **changes):
    return dataclasses.replace(recipes.shortened(recipe, 4, EASY if recipe.table == "easyvqa" else DATA), **changes)


# --- the student ---


def test_the_student_is_a_stock_class_that_gives_a_frame_four_tokens(material):
    model = AutoModelForImageTextToText.from_pretrained(material.student_path)
    assert type(model) is LlavaOnevisionForConditionalGeneration
    assert type(model.model.vision_tower) is Dinov2Model
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    rows, vision = material.encoded("validation"), Seeing(material)
    inputs = vision.rows.encode(rows[0])
    assert int((inputs["input_ids"] == model.config.video_token_id).sum()) == world.FRAMES * 4 + 1
    assert inputs["pixel_values_videos"].shape == (1, world.FRAMES, 3, 56, 56)
    assert torch.isfinite(model(**{k: v if "pixel" in k else v[None] for k, v in inputs.items()}).loss)


def test_every_target_of_every_row_has_its_tag(material):
    vision, tokenizer = Seeing(material), material.processor.tokenizer
    for row in material.encoded("train"):
        inputs = vision.rows.encode(row)
        targets = inputs["labels"][inputs["labels"] != -100]
        assert len(targets) == len(row["tags"])
        assert [int(t) == tokenizer.eos_token_id for t in targets] == [t == TAGS["special"] for t in row["tags"]]


def test_a_resized_tower_equals_one_that_resizes_its_table_in_each_call():
    tower = small_parts.dinov2(image_size=84)
    pixels = torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = tower(pixel_values=pixels).last_hidden_state
        found = for_size(tower, 56)(pixel_values=pixels).last_hidden_state
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="expected a multiple of the patch size 14"):
        for_size(tower, 60)


def test_stored_features_give_what_pixels_give(material):
    """Evaluation twice: the first stores features, the second reads them; and a plain forward pass."""
    model, evaluate = material.model(), follow(shortened(recipes.dense()), material)
    first, second = evaluate(model), evaluate(model)
    assert first == second
    vision, total, count = Seeing(material), 0.0, 0
    with torch.no_grad():
        for row in material.encoded("validation"):
            inputs = {k: v if "pixel" in k else v[None] for k, v in vision.rows.encode(row).items()}
            total += float(model.eval()(**inputs).loss) * len(row["tags"])
            count += len(row["tags"])
    assert first["nll_all"] == pytest.approx(total / count, rel=1e-4)


def test_no_run_computes_features_of_the_training_rows(runs, tmp_path):
    """The first run would pay for all, and be compared with the second."""
    material = SmallMaterial(DATA, runs)
    material.prepare()
    seeing = Seeing(material)
    seeing.cache(material.model())
    found = [seeing.rows(row)[1] for row in material.scored()[0]]
    assert len(found) == DATA.train
    assert all(visual["features"] and visual["inputs"] is None for visual in found)


def test_a_teacher_with_another_tokenizer_is_refused(material, tmp_path):
    """Gemma: another vocabulary, another way to write a space."""
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<eos>", "<bos>", "<unk>", *"▁abcdefgh"])}
    backend = Tokenizer(bpe.BPE(vocabulary, [], unk_token="<unk>"))
    backend.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>")
    tokenizer.save_pretrained(tmp_path)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    GemmaForCausalLM(GemmaConfig(vocab_size=16, head_dim=16, num_key_value_heads=1, **sizes)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has another tokenizer than the student"):
        load_teacher(tmp_path, material.processor, attend_placeholders=False)


# --- alignment ---


def test_alignment_moves_the_projector_alone_and_goes_on_where_it_stopped(runs, tmp_path):
    plain, _ = assemble(language_path(runs), vision_path(runs))
    one = Alignment(language_path(runs), vision_path(runs), tmp_path / "work", ALIGN)
    one.align_words()
    one.align_captions()
    moved = {name for name, value in plain.state_dict().items() if not torch.equal(value, one.model.state_dict()[name])}
    assert moved == set(projector(plain))
    assert one.curves["words"][-1]["step"] == 12
    again = Alignment(language_path(runs), vision_path(runs), tmp_path / "work", ALIGN)
    again.align_words()
    again.align_captions()
    for name, value in projector(again.model).items():
        assert torch.equal(value, projector(one.model)[name]), name


def test_words_lie_where_their_things_are():
    scene = world.sample_scene(3, "train", "solo")
    weights = words_at(scene, 2)  # [F, Q, K]
    seen = ~np.isnan(world.boxes(scene)[:, 0, 0])
    things = weights[..., : len(world.vocabulary.NOUNS)].sum((1, 2))
    assert things[seen] == pytest.approx(np.ones(int(seen.sum())), abs=1e-5)
    assert not things[~seen].any()
    assert (weights[..., -len(world.vocabulary.BACKGROUNDS) :].sum(-1) == 1).all()


def test_a_projector_of_another_student_is_refused(runs, tmp_path):
    model, _ = assemble(language_path(runs), vision_path(runs), Shape(layer=1))
    from safetensors.torch import save_file

    from repro.small.student import load_projector

    save_file({"model.image_newline": torch.zeros(3)}, tmp_path / "p.safetensors")
    with pytest.raises(ValueError, match="align the projector anew"):
        load_projector(model, tmp_path / "p.safetensors")


# --- runs ---


@pytest.fixture(scope="module")
def records(runs):
    made = [
        recipes.dense(), recipes.regate(), recipes.dense(recipes.LORA), recipes.regate(recipes.LORA),
        recipes.weighted(0), recipes.weighted(1), recipes.random_half(), recipes.easy_vqa("dense"),
        recipes.easy_vqa("regate"),
    ]  # fmt: skip
    found = {}
    for recipe in map(shortened, made):
        found[recipe.name] = run(recipe, material_of(recipe, runs), runs, parts=SMALL)
    evidence.zero_shot(runs, SmallMaterial(DATA, runs))
    return found


def test_runs_make_records_of_the_small_scale(records, runs):
    for name, record in records.items():
        assert read(runs / "records" / f"{name}.json") == record
        assert record.scale == "small"
        assert [p.step for p in record.curve] == [0, 2, 4]
        assert "easyvqa" in [b.name for b in record.benchmarks]
        assert record.by_tag
    dense, ours = (records[f"table4-smollm2-{m}-s0"] for m in ("dense", "regate"))
    assert ours.tokens["paper"] < dense.tokens["paper"]
    assert ours.flops["total"] < dense.flops["total"]
    assert ours.teacher["tokens"] > 0
    assert dense.curve[0].metrics == ours.curve[0].metrics
    adapters = records["table4-smollm2-lora-dense-s0"]
    assert "adapter" in adapters.artefacts
    assert "mvbench" not in [b.name for b in records["easyvqa-smollm2-easyvqa-dense-s0"].benchmarks]


def test_the_tower_stays_and_the_language_model_moves(records, runs, material):
    before = material.model().state_dict()
    after = material.trained(runs / "table4-smollm2-dense-s0" / "final").state_dict()
    towers = [name for name in before if "vision_tower" in name]
    assert towers
    assert all(torch.equal(before[name], after[name]) for name in towers)
    assert not torch.equal(before["model.language_model.layers.0.mlp.up_proj.weight"],
                           after["model.language_model.layers.0.mlp.up_proj.weight"])  # fmt: skip


def test_a_fresh_record_is_reused_and_a_stopped_run_goes_on(records, runs, tmp_path, material):
    recipe = shortened(recipes.regate())
    assert existing(recipe, material, runs / "records") is not None
    assert existing(dataclasses.replace(recipe, learning_rate=1.0), material, runs / "records") is None
    trainer, _ = trainer_of(recipe, material, tmp_path / recipe.name)
    trainer.args.max_steps = 2
    trainer.train()  # stopped after its first checkpoint
    trainer, clock = trainer_of(recipe, material, tmp_path / recipe.name)
    trainer.train(resume_from_checkpoint=trainer.last_complete_checkpoint() is not None)
    assert len(clock.seconds) == 2
    whole = [e["tokens"] for e in read_steps(runs / recipe.name / "steps.jsonl")]
    assert [e["tokens"] for e in read_steps(tmp_path / recipe.name / "steps.jsonl")] == whole


def test_adapters_lie_on_the_language_model_and_the_projector_trains(material):
    model = adapted(material.model(), {"lora": {"r": 2, "alpha": 4}}, 0)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert all("lora_" in name or "multi_modal_projector" in name for name in trained)
    assert not any("vision_tower" in name for name in trained)
    assert any("multi_modal_projector" in name for name in trained)
    with pytest.raises(ValueError, match="the small scale knows 'lora'"):
        adapted(material.model(), {"freeze": []}, 0)


def test_recipes_have_names_of_their_own_and_leave_micros_alone():
    wanted = recipes.of_tables(recipes.TABLES, 3)
    names = [recipe.name for recipe in wanted]
    assert len(set(names)) == len(names) == 3 * 5 + 2 + 2
    assert all(recipes.named(name, 3) == recipe for name, recipe in zip(names, wanted, strict=True))
    with pytest.raises(ValueError, match="unknown run"):
        recipes.named("table4-internvl-dense-s0", 3)
    with pytest.raises(ValueError, match="no table budgets"):
        recipes.of_tables(("budgets",), 1)
    micro = {recipe.name for recipe in all_recipes.everything(5)}
    assert not micro & set(names)


# --- tables ---


def test_tables_show_what_was_run(records, runs, tmp_path, capsys):
    evidence.write_evidence(runs, SmallMaterial(DATA, runs))
    published = tables.read_published()
    said, problems = small_tables.load(runs / small_tables.EVIDENCE)
    assert not problems
    everything = [read(path) for path in sorted((runs / "records").glob("*.json"))]
    found = tables.files(everything, published, evidence=said)
    assert {"table4.md", "table5.md", "rivals.md", "tokens_by_kind.md", "easy_vqa.md", "teacher_small.md"} <= set(found)
    assert "no run of the" not in found["table4.md"]
    assert "ReGATE against baseline (own, small, one seed)" in found["table4.md"]
    for row in small_tables.ROWS.values():
        assert row in found["easy_vqa.md"]
    page = found["teacher_small.md"]
    assert "template" in page
    assert "visual" in page
    assert page.count("**") >= 2 * 4
    assert [one["run"] for one in said["looks"]] == [f"table4-smollm2-{m}-s0" for m in ("dense", "regate")]
    for one in said["looks"]:
        metrics = records[one["run"]].curve[-1].metrics
        assert one["own"] == {name: pytest.approx(metrics[f"{name}_visual"], rel=1e-4) for name in ("accuracy", "nll")}
        assert one["own"]["nll"] != one["other"]["nll"]
        assert f"| {one['run']} " in page
    for one in said["sentences"]:
        assert "".join(one["tokens"]) == one["answer"]
        assert len(one["tokens"]) == len(one["losses"])


def test_evidence_that_cannot_be_read_is_told(tmp_path):
    path = tmp_path / "e.json"
    path.write_text("{}")
    found, (problem,) = small_tables.load(path)
    assert found is None
    assert "evidence" in str(problem)


def test_losses_by_tag_say_what_a_teacher_can_tell():
    tags = np.array([TAGS["visual"]] * 50 + [TAGS["template"]] * 50 + [TAGS["special"]] * 3)
    losses = np.concatenate([np.linspace(2, 3, 50), np.linspace(0, 1, 50), np.full(3, 9.0)])
    found = evidence.by_tag(losses, tags)
    assert found["auc"]["others"] == 1
    assert found["tags"]["visual"]["hard"] == 1
    assert found["tags"]["template"]["hard"] == pytest.approx(0.5, abs=0.02)
    assert found["correlation"] == pytest.approx(0.87, abs=0.01)


# --- easy-VQA ---


def test_easy_vqa_is_balanced_over_kinds_and_refused_where_it_is_not_itself(runs, tmp_path):
    folder = easy_vqa_path(runs)
    asked = easy_vqa.questions(folder, "test", 9)
    assert [one.kind for one in asked].count("shape") == 3
    assert asked == easy_vqa.questions(folder, "test", 9)
    one = asked[0]
    (first, last, tag), text = one.spans[0], easy_vqa.FRAME.format(one.answer)
    assert (text[first:last], tag) == (one.answer, "visual")
    with pytest.raises(easy_vqa.ModelsError, match="run `make models`"):
        easy_vqa.questions(tmp_path, "test", 1)
    broken = tmp_path / "data" / "test"
    broken.mkdir(parents=True)
    (broken / "questions.json").write_text(json.dumps([["what?", "nothing", 0]]))
    with pytest.raises(easy_vqa.ModelsError, match="'nothing'"):
        easy_vqa.questions(tmp_path, "test", 1)


def test_without_a_projector_the_command_that_makes_one_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("repro.small.student.COMMITTED", tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"python -m repro\.small\.align"):
        build(tmp_path)
