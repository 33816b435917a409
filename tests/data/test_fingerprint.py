"""Special tokens, and the hashes that say whether reference losses still belong to what is trained."""

import pytest
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoProcessor, Qwen2Config

from regate.fingerprint import fingerprint_of, tokenizer_difference, tokenizer_fingerprint
from regate.tokens import placeholder_token_ids, special_token_ids, tokenizer_of
from tests.tiny import END_OF_TURN, KINDS, tiny_model, tiny_processor, tiny_tokenizer

PLACEHOLDERS = {
    "internvl": {"<IMG_CONTEXT>"},
    "llava_onevision": {"<image>", "<video>"},
    "smolvlm": {"<image>"},
    "qwen2_vl": {"<|image_pad|>", "<|video_pad|>"},
}


def other_tokenizer():
    """Another vocabulary."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(["aaa bbb ccc"] * 9, trainers.BpeTrainer(initial_alphabet=alphabet, vocab_size=300))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>")


def test_placeholders_and_markers(kind):
    model, processor = tiny_model(kind)
    names = processor.tokenizer.convert_ids_to_tokens
    for source in (processor, None):
        assert set(names(list(placeholder_token_ids(source, model.config)))) == PLACEHOLDERS[kind]
    special = special_token_ids(processor, model.config)
    assert special == set(range(384, len(processor.tokenizer)))  # what the tiny tokenizers add to the BPE
    assert processor.tokenizer.convert_tokens_to_ids(END_OF_TURN[kind]) in special
    assert special_token_ids(processor.tokenizer, model.config) == special


def test_defaults_of_configurations_do_not_make_words_special():
    tokenizer = tiny_tokenizer("internvl")
    config = Qwen2Config(bos_token_id=1, eos_token_id=[2, 386], pad_token_id=390)
    assert special_token_ids(tokenizer, config) == set(range(384, 391))
    assert placeholder_token_ids(tokenizer, config) == set()
    assert placeholder_token_ids(None, None) == set()


def test_a_processor_of_another_model_is_refused():
    model, processor = tiny_model("internvl")
    model.config.image_token_id = 7
    with pytest.raises(ValueError, match=r"image_token_id is \[7\] in the model's configuration but \[389\]"):
        special_token_ids(processor, model.config)
    with pytest.raises(ValueError, match="found int, expected a processor"):
        tokenizer_of(3)


def test_saving_keeps_all_fingerprints(kind, tmp_path):
    processor = tiny_processor(kind)
    processor.save_pretrained(tmp_path)
    again = AutoProcessor.from_pretrained(tmp_path)
    assert fingerprint_of(again, 64, 8) == fingerprint_of(processor, 64, 8)
    assert all(len(value) == 16 for value in fingerprint_of(again, 64, 8).values())
    again(text=["Is it?"], padding="max_length", max_length=9, truncation=True)  # leaves its marks in the backend
    assert fingerprint_of(again, 64, 8) == fingerprint_of(processor, 64, 8)


def changed(processor, max_length, num_frames):
    before, after = fingerprint_of(tiny_processor("internvl"), 64, 8), fingerprint_of(processor, max_length, num_frames)
    return {name for name in before if before[name] != after[name]}


def test_each_change_shows_where_it_belongs():
    assert changed(tiny_processor("internvl"), 64, 8) == set()
    assert changed(tiny_processor("internvl"), 65, 8) == {"truncation"}
    assert changed(tiny_processor("internvl"), None, 8) == {"truncation"}
    assert changed(tiny_processor("internvl"), 64, 4) == {"truncation"}
    processor = tiny_processor("internvl")
    processor.chat_template += " "
    assert changed(processor, 64, 8) == {"template"}
    processor = tiny_processor("internvl")
    processor.image_seq_length = 16
    assert changed(processor, 64, 8) == {"truncation"}
    processor = tiny_processor("internvl")
    processor.image_processor.size = {"height": 64, "width": 64}
    assert changed(processor, 64, 8) == {"truncation"}
    processor = tiny_processor("internvl")
    processor.tokenizer.add_special_tokens({"extra_special_tokens": ["<new>"]}, replace_extra_special_tokens=False)
    assert changed(processor, 64, 8) == {"tokenizer"}


def test_rules_for_targets_are_part_of_the_template(monkeypatch):
    monkeypatch.setattr("regate.fingerprint.ENCODER_VERSION", -1)
    before = fingerprint_of(tiny_processor("internvl"), 64, 8)
    monkeypatch.undo()
    after = fingerprint_of(tiny_processor("internvl"), 64, 8)
    assert {name for name in before if before[name] != after[name]} == {"template"}


def test_a_teacher_with_another_tokenizer_is_told_apart():
    student = tiny_processor("internvl")
    other = other_tokenizer()
    assert tokenizer_fingerprint(student) != tokenizer_fingerprint(other)
    assert "vocabularies or merges differ (391 and" in tokenizer_difference(student, other)
    # a language model's tokenizer, without the student's image markers
    plain = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(tiny_tokenizer("internvl").backend_tokenizer.to_str())
    )
    for name in KINDS:
        assert tokenizer_fingerprint(tiny_processor(name)) == tokenizer_fingerprint(plain)
    assert tokenizer_difference(student, plain) is None
    assert tokenizer_difference(student, student) is None
    found = tokenizer_difference(tiny_processor("smolvlm"), plain)
    assert found == "id 386 is '<end_of_utterance>' for the student and '<|im_end|>' for the teacher"
    # markers that the teacher never sees may clash
    assert tokenizer_difference(tiny_processor("llava_onevision"), plain, {387, 388}) is None
