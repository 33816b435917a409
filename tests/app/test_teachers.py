"""Teachers score any text as a literal forward pass does; what cannot be scored is named."""

import json

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from app import teachers
from app.artefacts import Places, Problem
from tests.app.support import ROOT

MICRO = ROOT / "results" / "students" / "internvl"
QUESTION, ANSWER = "what happens?", "a small red ball slides left."


@pytest.fixture(scope="module")
def micro():
    return teachers.load(MICRO)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A causal language model of words, without a chat template."""
    folder = tmp_path_factory.mktemp("plain")
    words = ["<unk>", "<end>", "Question", ":", "Answer", "what", "happens", "?", "a", "red", "ball", ".", "blue"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<end>", pad_token="<end>")
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=16, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                         num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=32)  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def literal(teacher: teachers.Teacher, row: teachers.Encoded) -> np.ndarray:
    """One forward pass over all positions, and the losses of the targets."""
    ids = torch.tensor([row.ids])
    with torch.inference_mode():
        hidden = teacher.model.decoder(input_ids=ids).last_hidden_state
        logits = teacher.model.head(hidden)[0].float()
    losses = torch.nn.functional.cross_entropy(logits[:-1], ids[0, 1:], reduction="none")
    return losses[torch.tensor(row.target)[1:]].numpy()


def test_losses_are_those_of_a_forward_pass(micro):
    row = teachers.encode(micro, QUESTION, ANSWER)
    (answer,) = teachers.score(micro, [row])
    np.testing.assert_allclose(answer.reference, literal(micro, row), rtol=1e-4, atol=1e-4)
    assert "".join(answer.tokens).replace("<|im_end|>", "").strip() == ANSWER
    assert answer.candidate.tolist() == [True] * (len(answer.tokens) - 1) + [False], "the end marker is no candidate"
    assert not answer.observed


def test_any_causal_model_by_its_folder_also_without_a_template(plain):
    teacher = teachers.load(plain)
    row = teachers.encode(teacher, "what happens?", "a red ball.")
    (answer,) = teachers.score(teacher, [row])
    assert [token.strip() for token in answer.tokens] == ["a", "red", "ball", "."]
    np.testing.assert_allclose(answer.reference, literal(teacher, row), rtol=1e-4, atol=1e-5)


def test_a_second_model_stands_in_for_the_student(plain, tmp_path):
    teacher = teachers.load(plain)
    torch.manual_seed(1)
    other = LlamaForCausalLM(teacher.model.model.config)
    other.save_pretrained(tmp_path)
    teacher.processor.save_pretrained(tmp_path)
    row = teachers.encode(teacher, "what happens?", "a red ball.")
    (answer,) = teachers.score(teacher, [row], teachers.load(tmp_path))
    assert answer.observed
    assert not np.allclose(answer.ema, answer.reference)


def test_a_student_of_another_tokenizer_is_refused(micro, plain):
    row = teachers.encode(micro, QUESTION, ANSWER)
    with pytest.raises(Problem, match="cannot stand in for the student"):
        list(teachers.score(micro, [row], teachers.load(plain)))


@pytest.mark.parametrize(
    ("question", "answer", "words"),
    [("q", " ", "answer is empty"), ("q", "a " * 3000, "reads 512 at most"), ("q " * 3000, "a", "reads 512 at most")],
)
def test_texts_that_cannot_be_scored_are_named(micro, question, answer, words):
    with pytest.raises(Problem, match=words):
        teachers.encode(micro, question, answer, "s7")


def test_folders_that_hold_no_teacher_are_named(tmp_path, plain):
    with pytest.raises(Problem, match="no such folder"):
        teachers.load(tmp_path / "gone")
    with pytest.raises(Problem, match=r"no config\.json"):
        teachers.load(tmp_path)
    encoder = tmp_path / "encoder"
    BertModel(BertConfig(vocab_size=16, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                         intermediate_size=16)).save_pretrained(encoder)  # fmt: skip
    teachers.load(plain).processor.save_pretrained(encoder)
    with pytest.raises(Problem, match=rf"{encoder}: \d+ weights are missing"):  # a head of random numbers
        teachers.load(encoder)
    broken = tmp_path / "broken"
    teachers.load(plain).processor.save_pretrained(broken)
    (broken / "config.json").write_text((plain / "config.json").read_text())
    (broken / "model.safetensors").write_bytes((plain / "model.safetensors").read_bytes()[:-64])
    with pytest.raises(Problem, match="cannot be loaded"):
        teachers.load(broken)


def test_the_menu_names_what_is_there(tmp_path):
    (tmp_path / "runs/mine/final").mkdir(parents=True)
    (tmp_path / "runs/mine/final/model.safetensors").touch()
    smollm2 = teachers.smollm2_path(tmp_path / "runs")
    smollm2.mkdir(parents=True)
    (smollm2 / "model.safetensors").touch()
    known = teachers.known_teachers(Places(ROOT / "results", tmp_path / "runs"))
    assert next(iter(known)) == teachers.SMOLLM2, "the real teacher is the default"
    assert "runs/mine/final" in known
    assert MICRO in known.values()


# --- files of samples ---


def test_samples_are_read_from_all_three_forms():
    rows = [
        {"id": "a", "conversations": [{"from": "human", "value": "<video>\nwhat?"}, {"from": "gpt", "value": "this"}]},
        {"messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "why?"}]},
                      {"role": "assistant", "content": "because"}]},
        {"id": 7, "question": "who?", "answer": "me"},
    ]  # fmt: skip
    wanted = [("a", "what?", "this"), ("1", "why?", "because"), ("7", "who?", "me")]
    assert teachers.read_samples_file(json.dumps(rows).encode(), "x.json") == wanted
    lines = "\n".join(map(json.dumps, rows))
    assert teachers.read_samples_file(lines.encode(), "x.jsonl") == wanted


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"\xff\xfe\x00", "is no text"),
        (b"  ", "is empty"),
        (b"[]", "holds no sample"),
        (b'[{"id": 1,', "no valid JSON at line 1"),
        (b"[3]", "sample 0 is no object"),
        (b'[{"id": "k", "caption": "x"}]', r"sample 0 \(k\) has keys"),
        (b'[{"id": "k", "conversations": [{"from": "human", "value": "q"}]}]', "has no answer"),
    ],
)
def test_files_that_cannot_be_read_are_named(raw, words):
    with pytest.raises(Problem, match=words) as error:
        teachers.read_samples_file(raw, "mine.json")
    assert str(error.value).startswith("mine.json")
