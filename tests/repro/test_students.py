"""The micro student: factory, tokenizer, processor, batch path, evaluation helpers (stand-in text, no training)."""

import dataclasses
import random

import numpy as np
import pytest
import torch
from transformers import AutoProcessor

from eval.machine import environment
from eval.world import Act, Scene, Thing, caption
from eval.world.mvbench import encode as encode_video
from regate.answering import Question
from regate.answering import option_scores as scores_of_any_model
from regate.data import ConversationEncoder
from repro.evaluate import Choice, choice_accuracy, content_metrics, option_scores, rank_options, target_logprobs
from repro.families import FAMILIES, StudentSize, count_parameters
from repro.families.family import single_token_share
from repro.loop import StageConfig
from repro.micro_data import IGNORE, TAGS, Encoder, Example, MicroCollator, encode_examples
from repro.pools import pack_turns
from repro.prepare import CONFIGS, PrepareConfig, fold, prepare_student
from repro.rehearsal import script
from repro.students import PREPARED, check, export

NANO = {
    "vocab_size": 512, "hidden_size": 32, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1, "head_dim": 16,
    "intermediate_size": 64, "vision_hidden_size": 32, "vision_layers": 1, "vision_heads": 2,
    "vision_intermediate_size": 64,
}  # fmt: skip


def sized(family, **sizes) -> StudentSize:
    return dataclasses.replace(family.size, **sizes)


def stand_in_texts(n: int = 400) -> list[str]:
    rng = random.Random(0)
    nouns, colours, verbs = ("car", "dog", "tree", "ball"), ("red", "blue", "green"), ("slides", "hops", "spins")
    return [
        f"user\nWhat does it do?\nassistant\nThe {rng.choice(colours)} {rng.choice(nouns)} {rng.choice(verbs)} left, "
        f"behind the {rng.choice(nouns)}, then it stops. " for _ in range(n)
    ]  # fmt: skip


@pytest.fixture(scope="module", params=list(FAMILIES))
def family(request):
    return FAMILIES[request.param]


@pytest.fixture(scope="module")
def tokenizer(family):
    return family.tokenizer(stand_in_texts(), 512)


@pytest.fixture(scope="module")
def processor(family, tokenizer):
    return family.processor(tokenizer, family.size)


@pytest.fixture(scope="module")
def model(family, tokenizer):
    return family.build(tokenizer, sized(family, **NANO)).eval()


def clip(seed: int, frames: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, 64, 64, 3), dtype=np.uint8)


def examples(n: int = 4) -> list[Example]:
    answer = "The red car slides left, then it stops."
    spans = [(0, 3, "template"), (4, 11, "visual"), (12, 18, "wording"), (19, 23, "visual"), (23, 39, "template")]
    return [
        Example(f"clip-{i}", clip(i), "What does it do?", answer + " It spins." * i, "describe", spans)
        for i in range(n)
    ]


# --- factory ---


def test_default_student_has_the_promised_size(family, tokenizer):
    counts = count_parameters(family, family.build(tokenizer))
    assert 1_000_000 <= counts["all"] <= 2_500_000  # bf16: at most 5 MB
    assert counts["language"] + counts["vision"] + counts["connector"] == counts["all"]


def test_factory_depends_on_its_seed_only(family, tokenizer):
    before = torch.random.get_rng_state()
    a, b, c = (family.build(tokenizer, sized(family, **NANO), seed=s).state_dict() for s in (1, 1, 2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not all(torch.equal(a[k], c[k]) for k in a)


def test_factory_refuses_a_vocabulary_that_is_too_small(family, tokenizer):
    with pytest.raises(ValueError, match="vocab_size"):
        family.build(tokenizer, sized(family, vocab_size=16))


# --- tokenizer and processor ---


def test_words_are_single_tokens(tokenizer):
    texts = stand_in_texts()
    assert single_token_share(tokenizer, texts) > 0.99
    assert tokenizer.decode(tokenizer(texts[0])["input_ids"]) == texts[0]


def test_tokenizer_training_is_deterministic(family, tokenizer):
    again = family.tokenizer(stand_in_texts(), 512)
    assert again.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()


MARKERS = {"internvl": 8 * 3, "videollama2": 0, "videochat2": 4}
SEATS = {"internvl": 8 * 4, "videollama2": 4 * 4, "videochat2": 8 * 4}


def test_a_clip_costs_its_visual_tokens_and_few_markers(family, processor, model):
    ids = Encoder(processor).encode("", "x", 8)["input_ids"]
    without = Encoder(processor).encode("", "x", 0)["input_ids"]
    assert ids.count(family.placeholder_id(model)) == SEATS[family.name]
    assert len(ids) - len(without) == MARKERS[family.name] + SEATS[family.name]


def test_saved_processor_loads_offline_and_stays_the_same(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path, local_files_only=True)
    assert type(loaded) is type(processor)
    row = examples(1)[0]
    want, got = Encoder(processor).row(row), Encoder(loaded).row(row)
    assert want == got
    assert torch.equal(MicroCollator(processor).pixels(row.frames), MicroCollator(loaded).pixels(row.frames))


def stock(processor, example: Example) -> dict[str, torch.Tensor]:
    messages = [
        {
            "role": "user",
            "content": [{"type": "video", "video": example.frames}, {"type": "text", "text": example.question}],
        },
        {"role": "assistant", "content": [{"type": "text", "text": example.answer}]},
    ]
    return processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt")


def test_fast_path_equals_the_stock_processor(family, processor):
    rows = encode_examples(examples(), processor)
    batch = MicroCollator(processor)(list(rows))
    for i, example in enumerate(examples()):
        want = stock(processor, example)
        length = want["input_ids"].shape[1]
        assert torch.equal(batch["input_ids"][i, :length], want["input_ids"][0])
        assert not batch["attention_mask"][i, length:].any()
        for name, value in want.items():
            if name.startswith(("pixel_values", "qformer")):
                shown = batch[name].unflatten(0, (len(examples()), -1))[i]
                torch.testing.assert_close(shown, value, rtol=0, atol=1e-6)


def test_prompt_equals_the_stock_generation_prompt(processor):
    example = examples(1)[0]
    content = [{"type": "video", "video": example.frames}, {"type": "text", "text": example.question}]
    want = processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=True, return_dict=True, add_generation_prompt=True
    )["input_ids"][0]
    row = Encoder(processor).row(example)
    assert row["input_ids"][: len(want)] == list(want)
    assert row["labels"][: len(want)] == [IGNORE] * len(want)
    assert row["labels"][len(want)] != IGNORE


def test_the_library_encodes_a_conversation_as_the_fast_path_does(processor, tmp_path):
    example = examples(1)[0]
    encode_video(example.frames, tmp_path / "clip.mp4")
    messages = [
        {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": example.question}]},
        {"role": "assistant", "content": [{"type": "text", "text": example.answer}]},
    ]
    sample = {"id": "x", "messages": messages, "images": [], "videos": [str(tmp_path / "clip.mp4")]}
    got, want = ConversationEncoder(processor)(sample), Encoder(processor).row(example)
    assert got["input_ids"].tolist() == want["input_ids"]
    assert got["labels"].tolist() == want["labels"]


# --- tags and batches ---


def test_tags_follow_the_tokens(processor):
    row = Encoder(processor).row(examples(2)[1])
    targets = [t for t in row["labels"] if t != IGNORE]
    assert len(targets) == len(row["tags"])
    by_tag = dict.fromkeys(TAGS, "")
    names = {code: name for name, code in TAGS.items()}
    for token, tag in zip(targets, row["tags"], strict=True):
        by_tag[names[tag]] += processor.tokenizer.decode([token])
    assert by_tag["visual"].split() == ["red", "car", "left"]
    assert by_tag["wording"].split() == ["slides"]
    assert by_tag["special"] == processor.tokenizer.eos_token
    assert by_tag["template"] == "The, then it stops. It spins."


def test_collator_pads_right_and_keeps_extra_columns(processor):
    rows = encode_examples(examples(), processor)
    batch = MicroCollator(processor, extra=("sample_id", "tags"))(list(rows))
    assert batch["input_ids"].shape == batch["labels"].shape == batch["attention_mask"].shape
    assert batch["attention_mask"][-1].all()
    assert (batch["labels"][batch["attention_mask"] == 0] == IGNORE).all()
    assert batch["sample_id"] == rows["sample_id"]
    assert len(set(rows["sample_id"])) == len(rows)
    assert min(rows["sample_id"]) >= 0


def test_ids_must_be_unique(processor):
    with pytest.raises(ValueError, match="unique"):
        encode_examples([examples(1)[0]] * 2, processor)


# --- evaluation ---


def test_content_metrics_equal_the_stock_loss(processor, model):
    rows = encode_examples(examples(), processor)
    batch = MicroCollator(processor, extra=("tags",))(list(rows))
    metrics = content_metrics(model, [batch])
    with torch.no_grad():
        loss = model(**{k: v for k, v in batch.items() if k != "tags"}).loss
    assert metrics["nll_all"] == pytest.approx(loss.item(), rel=1e-5)
    parts = sum(metrics[f"nll_{t}"] * metrics[f"tokens_{t}"] for t in TAGS if metrics[f"tokens_{t}"])
    assert parts / metrics["tokens_all"] == pytest.approx(loss.item(), rel=1e-5)
    assert metrics["tokens_visual"] == 3 * len(rows)
    assert metrics["content_accuracy"] == metrics["accuracy_visual"]


OPTIONS = ("The red car slides left.", "The blue dog spins.", "A green tree, then it stops.")


def choices() -> list[Choice]:
    return [Choice("What does it do?", OPTIONS[: 2 + i % 2], i % 2, f"task{i % 2}", clip(i)) for i in range(5)]


@pytest.mark.parametrize("normalize", ["sum", "mean"])
def test_option_scores_equal_one_forward_pass_each(processor, model, normalize):
    scores = option_scores(model, processor, choices(), normalize=normalize, batch_size=3)
    for choice, got in zip(choices(), scores, strict=True):
        for option, score in zip(choice.options, got, strict=True):
            rows = encode_examples([Example("x", choice.frames, choice.question, option)], processor)
            batch = MicroCollator(processor)(list(rows))
            with torch.no_grad():
                mean = -model(**batch).loss.item()
            count = int((batch["labels"] != IGNORE).sum())
            assert score == pytest.approx(mean if normalize == "mean" else mean * count, abs=1e-3)


def test_the_fast_path_ranks_as_the_scorer_of_the_benchmarks_does(processor, model):
    asked = [
        Question(
            [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": choice.question}]}],
            options=tuple(choice.options),
            videos=[choice.frames],
        )
        for choice in choices()
    ]
    for fast, general in zip(
        option_scores(model, processor, choices()), scores_of_any_model(model, processor, asked), strict=True
    ):
        np.testing.assert_allclose(fast, general, rtol=0, atol=1e-3)


class Oracle(torch.nn.Module):
    """The student with a head that adds `strength` to the tokens of one sentence."""

    def __init__(self, model, ids: set[int], strength: float = 30.0):
        super().__init__()
        self.model, self.config, self.base = model.model, model.config, model
        self.bonus = torch.zeros(model.config.text_config.vocab_size)
        self.bonus[list(ids)] = strength

    def get_image_features(self, *args, **kwargs):
        return self.base.get_image_features(*args, **kwargs)

    def get_video_features(self, *args, **kwargs):
        return self.base.get_video_features(*args, **kwargs)

    def lm_head(self, hidden):
        return self.base.lm_head(hidden) + self.bonus


@pytest.mark.parametrize("preferred", [0, 1])
def test_rank_options_picks_what_the_model_prefers(processor, model, preferred):
    other = set(processor.tokenizer(OPTIONS[1 - preferred])["input_ids"])
    ids = set(processor.tokenizer(OPTIONS[preferred])["input_ids"]) - other
    chosen = rank_options(Oracle(model, ids), processor, choices()[::2], normalize="mean")
    assert chosen == [preferred] * len(chosen)


def test_choice_accuracy_counts_by_task():
    result = choice_accuracy(choices(), [0, 0, 0, 1, 1])
    assert result["bits"] == [1, 0, 1, 1, 0]
    assert result["accuracy"] == pytest.approx(0.6)
    assert result["accuracy_by_task"] == {"task0": pytest.approx(2 / 3), "task1": pytest.approx(0.5)}
    assert result["chance"] == pytest.approx((3 / 2 + 2 / 3) / 5)


# --- preparation ---

TINY_SIZE = {
    "vocab_size": 960, "hidden_size": 96, "num_layers": 1, "num_heads": 3, "num_kv_heads": 3, "intermediate_size": 96,
    "vision_hidden_size": 32, "vision_layers": 1, "vision_heads": 2, "vision_intermediate_size": 64,
}  # fmt: skip
TINY = PrepareConfig(
    tokenizer_docs=300, corpus_docs=40, scenes=12, validation_scenes=8, turns=3, text_rows=2, text_length=32,
    language=StageConfig(steps=4, batch_size=3, lr=1e-3, warmup=1),
    sight=StageConfig(steps=4, batch_size=8, lr=1e-3, warmup=1),
    align=StageConfig(steps=4, batch_size=2, lr=1e-3, warmup=1),
    eval_every=2,
)  # fmt: skip


def tiny(family) -> PrepareConfig:
    return dataclasses.replace(TINY, size=sized(family, **TINY_SIZE))


@pytest.fixture(scope="module")
def prepared(family, tmp_path_factory):
    return prepare_student(family.name, tiny(family), tmp_path_factory.mktemp("whole"), progress=False)


def test_preparation_trains_what_each_stage_says(family, prepared):
    fresh = family.build(prepared.processor.tokenizer, prepared.config.size, TINY.seed).state_dict()
    changed = {k.split(".")[1] for k, v in prepared.model.state_dict().items() if not torch.equal(v, fresh[k])}
    assert changed >= {"language_model", "vision_tower", "multi_modal_projector"}
    assert not torch.equal(prepared.model.lm_head.weight, fresh["lm_head.weight"])
    for stage in ("language", "sight", "align"):
        assert [p["step"] for p in prepared.curves[stage]] == [2, 4]
    assert set(prepared.scores(scripts=False)) == {"caption", "attribute", "blind_caption", "blind_attribute"}


@pytest.mark.parametrize("stage", ["language", "sight", "align"])
def test_a_killed_preparation_goes_on_bit_for_bit(family, prepared, tmp_path, stage):
    config = tiny(family)
    first = prepare_student(family.name, config, tmp_path, progress=False, stop_at={stage: 3})
    assert not first.done(stage)  # its last state is that of step 2
    again = prepare_student(family.name, config, tmp_path, progress=False)
    want, got = prepared.model.state_dict(), again.model.state_dict()
    assert all(torch.equal(want[name], got[name]) for name in want)
    assert again.curves == prepared.curves


def test_alignment_leaves_the_backbone_alone(prepared):
    state = torch.load(prepared.state_file("language"), weights_only=True)["modules"]["0"]
    now = prepared.model.model.language_model.state_dict()
    assert all(torch.equal(state[name], now[name]) for name in now)


def test_turns_that_share_frames_are_computed_as_if_alone(prepared):
    scene = prepared.pool().scenes[0]
    rng = random.Random(0)
    turns = [caption(scene, rng) for _ in range(3)]

    def logprobs(some):
        batch = prepared.batch([pack_turns(prepared.encoder, some)])
        inputs = prepared.inputs(batch, clips=prepared.pool().frames()[:1])
        with torch.no_grad():
            return target_logprobs(prepared.model.eval(), inputs, batch.labels)[0]

    alone = torch.cat([logprobs([spoken]) for spoken in turns])
    torch.testing.assert_close(logprobs(turns), alone, rtol=0, atol=1e-5)


def test_blind_rows_do_not_depend_on_their_seats(prepared):
    rows, scripts = prepared.pool().rows[:2], prepared.pool().scripts[:2]
    batch = prepared.batch(rows, np.array([True, False]))

    def loss(shown):
        with torch.no_grad():
            return target_logprobs(prepared.model, prepared.inputs(batch, shown), batch.labels)[0]

    some, other = loss(scripts), loss(scripts[::-1])
    split = int((batch.labels[0, 1:] != IGNORE).sum())
    assert torch.equal(some[:split], other[:split])
    assert not torch.allclose(some[split:], other[split:])


def test_scripts_tell_what_is_seen(prepared):
    table = prepared.symbols
    still = Act("stay")
    things = (
        Thing("ball", "red", "large", "upright", 16, 16, (still,)),
        Thing("box", "blue", "small", "flat", 48, 48, (Act("vanish", 4, 5),)),
    )
    seats = script(Scene("duo", "grass", things), table)
    assert seats.shape == (8, 4, len(table))
    words = prepared.processor.tokenizer.convert_ids_to_tokens(list(table.token_ids))

    def spoken(frame, seat):
        named = np.flatnonzero(seats[frame, seat][: table.start["x"]])
        return {words[i].removeprefix("\u0120") for i in named}

    assert spoken(0, 0) == spoken(7, 0) == {"ball", "red", "grass"}
    assert spoken(0, 3) == {"box", "blue", "grass"}
    assert spoken(7, 3) == spoken(0, 1) == {"grass"}
    assert len(set(table.token_ids)) == len(table)


def test_sight_is_folded_into_the_embeddings():
    linear = torch.nn.Linear(5, 6)
    matrix, x = torch.randn(6, 6), torch.randn(3, 5)
    want = linear(x) @ matrix
    fold(linear, matrix)
    torch.testing.assert_close(linear(x), want)


# --- the prepared student ---


def test_exported_student_loads_and_matches_its_record(prepared, tmp_path):
    export(prepared, tmp_path / "student", environment())
    record = check(tmp_path / "student")
    assert record["config_hash"] == prepared.config.stage_hash("align")
    assert set(record["stage_commits"]) == {"language", "sight", "align"}
    (tmp_path / "student" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="not the file of the record"):
        check(tmp_path / "student")


@pytest.mark.parametrize("student", list(FAMILIES))
def test_committed_student_matches_its_record(student):
    record = check(PREPARED / student)
    assert sum(path.stat().st_size for path in (PREPARED / student).iterdir()) <= 5_000_000
    assert record["dirty"] is False
    assert record["config_hash"] == CONFIGS[student].stage_hash("align")  # the command would make this one
    assert not any(commit.endswith("+") for part in record.get("stage_commits", {}).values() for commit in part)


def test_missing_student_names_the_command(tmp_path):
    with pytest.raises(FileNotFoundError, match="REBUILD=1"):
        check(tmp_path)
