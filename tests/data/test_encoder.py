"""One conversation -> tokens, targets and pixels: on four classes, on processors that tell less, and on bad input."""

import json
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Idefics3ImageProcessor, Idefics3Processor

from regate.conversations import load_conversations
from regate.data import ConversationEncoder
from regate.targets import answer_spans, mask_from_offsets
from regate.tokens import placeholder_token_ids
from regate.turns import BadSample
from tests.media_files import turns, write_conversations, write_image
from tests.tiny import END_OF_TURN, KINDS, tiny_model, tiny_processor, tiny_tokenizer

TEXT_KEYS = {"input_ids", "attention_mask", "labels", "mm_token_type_ids"}
ANSWERS = {
    "video": ["The ball moves up."],
    "short": ["A box falls down behind it."],
    "image": ["There are three objects."],
    "two": ["One is red.", "It is a blue box, I think."],
    "text": ["Yes, it is."],
    "5": ["The green cube."],
}


ENCODERS = {kind: ConversationEncoder(tiny_processor(kind)) for kind in KINDS}
texts = st.text(min_size=1, max_size=30).filter(lambda text: text.strip() and "<" not in text)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    folder = tmp_path_factory.mktemp("conversations")
    return load_conversations(write_conversations(folder), folder / "media")


def answers(processor, encoded):
    """The text of each run of targets."""
    runs, previous = [], -100
    for token in encoded["labels"].tolist():
        if token != -100:
            runs.append([token]) if previous == -100 else runs[-1].append(token)
        previous = token
    return [processor.tokenizer.decode(run).strip() for run in runs]


def sample(*texts, **fields):
    messages = [
        {"role": ("user", "assistant")[i % 2], "content": [{"type": "text", "text": text}]}
        for i, text in enumerate(texts)
    ]
    return {"id": "x", "messages": json.dumps(messages), "images": [], "videos": []} | fields


def test_targets_are_the_answers_and_the_ends_of_their_turns(kind, table):
    model, processor = tiny_model(kind)
    encode = ConversationEncoder(processor, num_frames=4)
    for row in table:
        encoded = encode(row)
        assert answers(processor, encoded) == [text + END_OF_TURN[kind] for text in ANSWERS[row["id"]]]
        assert {encoded[k].shape for k in TEXT_KEYS & encoded.keys()} == {encoded["input_ids"].shape}
        assert encoded["labels"].dtype == torch.int64
        target = encoded["labels"] != -100
        assert torch.equal(encoded["labels"][target], encoded["input_ids"][target])
        # the model takes it: its own check compares placeholders with features
        batch = {k: v[None] if k in TEXT_KEYS else v for k, v in encoded.items()}
        assert model(**batch).loss.isfinite()


def test_the_tokens_are_those_of_the_processor_alone(kind, table):
    """As `apply_chat_template(tokenize=True)` makes them from the files."""
    processor = tiny_processor(kind)
    for name in ("image", "two", "text"):
        row = next(r for r in table if r["id"] == name)
        messages, images = json.loads(row["messages"]), iter(row["images"])
        for message in messages:
            for item in message["content"]:
                if item["type"] == "image":
                    item["path"] = next(images)
        expected = processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt")
        encoded = ConversationEncoder(processor)(row)
        assert torch.equal(encoded["input_ids"], expected["input_ids"][0])
        for key in encoded.keys() - TEXT_KEYS:
            assert torch.equal(encoded[key], expected[key]), key


def test_both_ways_to_find_targets_agree(kind, table, monkeypatch):
    """With characters, and with the tokens of prefixes only."""
    processor = tiny_processor(kind)
    encode = ConversationEncoder(processor, num_frames=2)
    expected = [encode(row)["labels"] for row in table]
    process = encode.process
    monkeypatch.setattr(encode, "process", lambda *args, **kw: (process(*args, told=False)[0], None, None))
    if kind == "llava_onevision":  # its published template asks for answers with another space than it writes them
        with pytest.raises(ValueError, match=r"no prefix of the tokens of the whole.*\{% generation %\}"):
            encode(table[0])
        return
    for row, labels in zip(table, expected, strict=True):
        assert torch.equal(encode(row)["labels"], labels)


def test_a_processor_that_tells_no_characters(table):
    """Idefics3's own `__call__` returns no offsets of its placeholders."""
    images = Idefics3ImageProcessor(
        size={"longest_edge": 32}, max_image_size={"longest_edge": 32}, do_image_splitting=False
    )
    tokenizer = tiny_tokenizer("smolvlm")
    processor = Idefics3Processor(
        images, tokenizer, image_seq_len=4, chat_template=tiny_processor("smolvlm").chat_template
    )
    encode = ConversationEncoder(processor)
    for row in table:
        if not row["videos"]:
            assert answers(processor, encode(row)) == [text + "<end_of_utterance>" for text in ANSWERS[row["id"]]]


def test_a_template_with_generation_marks_equals_one_without(table):
    processor = tiny_processor("internvl")
    expected = [ConversationEncoder(processor)(row)["labels"] for row in table]
    whole = "{{ content['text'] }}{% endif %}{% endfor %}{{ '<|im_end|>\n' }}"
    assert whole in processor.chat_template
    marked = (
        "{% if message['role'] == 'assistant' %}{% generation %}{{ content['text'] }}{% endgeneration %}"
        "{% else %}{{ content['text'] }}{% endif %}{% endif %}{% endfor %}{{ '<|im_end|>\n' }}"
    )
    processor.chat_template = processor.chat_template.replace(whole, marked)
    for row, labels in zip(table, expected, strict=True):
        assert torch.equal(ConversationEncoder(processor)(row)["labels"], labels)


def test_a_template_without_a_prompt_for_answers():
    processor = tiny_processor("internvl")
    processor.chat_template = processor.chat_template.partition("{% if add_generation_prompt %}")[0]
    encoded = ConversationEncoder(processor)(sample("Is it?", "Yes.", "No?", "No."))
    assert answers(processor, encoded) == ["Yes.<|im_end|>", "No.<|im_end|>"]


def test_a_conversation_that_the_template_refuses():
    processor = tiny_processor("internvl")
    processor.chat_template = "{% if messages[0]['role'] != 'system' %}{{ raise_exception('no system') }}{% endif %}"
    with pytest.raises(BadSample, match=r"sample 'x': .*the chat template of InternVLProcessor refuses it: no system"):
        ConversationEncoder(processor)(sample("Is it?", "Yes."))


def test_a_template_that_rewrites_the_past_is_refused():
    processor = tiny_processor("internvl")
    # earlier answers are rendered in another way than the last one, as "thinking" templates do
    processor.chat_template = processor.chat_template.replace(
        "{{ content['text'] }}", "{{ content['text'] if loop.last and message == messages[-1] else '...' }}"
    )
    with pytest.raises(ValueError, match=r"no prefix of the text of the whole.*Mark the answers") as error:
        ConversationEncoder(processor)(sample("Is it?", "Yes.", "No?", "No."))
    assert not isinstance(error.value, BadSample)  # no sample's fault: never skipped


def test_a_token_across_the_border_is_refused():
    processor = SimpleNamespace(tokenizer=SimpleNamespace(decode=lambda ids: "t: Y", all_special_ids=[]))
    processor.tokenizer.convert_tokens_to_ids = None
    offsets, ids = torch.tensor([[0, 5], [5, 9], [9, 11]]), torch.tensor([1, 2, 3])
    with pytest.raises(ValueError, match="'t: Y' holds the end of a prompt and the start of an answer"):
        mask_from_offsets(processor, [(8, 11)], offsets, [], ids, set())
    assert mask_from_offsets(processor, [(9, 11)], offsets, [], ids, set()).tolist() == [False, False, True]
    processor.tokenizer.decode = lambda ids: "  Y "  # white space may be shared
    assert mask_from_offsets(processor, [(7, 11)], offsets, [], ids, set()).tolist() == [False, True, True]


def test_spans_move_with_the_placeholders_before_them():
    ids, offsets = torch.arange(5), torch.tensor([[0, 2], [2, 12], [12, 14], [14, 16], [16, 18]])
    replaced = [{"span": (2, 5), "new_span": (2, 12)}]
    processor = SimpleNamespace()
    mask = mask_from_offsets(processor, [(5, 7)], offsets, replaced, ids, {3, 4})
    assert mask.tolist() == [False, False, True, True, False]  # the answer, and one marker after it


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(KINDS), st.lists(st.tuples(texts, texts), min_size=1, max_size=3))
def test_any_text_comes_back_from_its_targets(kind, pairs):
    encode = ENCODERS[kind]
    encoded = encode(sample(*(text for pair in pairs for text in pair)))
    assert all(text.endswith(END_OF_TURN[kind]) for text in answers(encode.processor, encoded))
    found = [text.removesuffix(END_OF_TURN[kind]).strip() for text in answers(encode.processor, encoded)]
    assert found == [answer.strip() for _, answer in pairs]


def test_no_chat_template_is_refused():
    processor = tiny_processor("internvl")
    processor.chat_template = None
    with pytest.raises(ValueError, match="InternVLProcessor has no chat template"):
        ConversationEncoder(processor)
    for wrong in ({"max_length": 0}, {"num_frames": 0}):
        with pytest.raises(ValueError, match="is 0, expected at least 1"):
            ConversationEncoder(tiny_processor("internvl"), **wrong)


def test_truncation_cuts_the_tail(kind, table):
    processor = tiny_processor(kind)
    row = next(r for r in table if r["id"] == "two")
    whole = ConversationEncoder(processor)(row)
    first = (whole["labels"] != -100).nonzero()[0].item()
    for length in (first + 1, first + 3, len(whole["labels"]), len(whole["labels"]) + 5):
        cut = ConversationEncoder(processor, max_length=length)(row)
        for key, value in whole.items():
            assert torch.equal(cut[key], value[:length] if key in TEXT_KEYS else value)
    with pytest.raises(BadSample, match=r"'two': found no target among its \d+ tokens \(cut from \d+\).*max-length"):
        ConversationEncoder(processor, max_length=first)(row)
    places = torch.isin(whole["input_ids"], torch.tensor(sorted(placeholder_token_ids(processor)))).nonzero()
    with pytest.raises(BadSample, match=r"'two': found \d+ tokens with placeholders .*beyond the first") as error:
        ConversationEncoder(processor, max_length=places[-1].item())(row)
    assert error.value.sample_id == "two"


def test_files_that_do_not_decode_are_named(kind, table, tmp_path):
    encode = ConversationEncoder(tiny_processor(kind))
    broken = tmp_path / "broken.mp4"
    broken.write_text("no video")
    with pytest.raises(BadSample, match=r"sample 'video': .*broken.mp4: found data that does not decode") as error:
        encode(table[0] | {"videos": [str(broken)]})
    assert error.value.sample_id == "video"
    assert error.value.file == str(broken)
    with pytest.raises(BadSample, match=r"sample 'image': .*gone.jpg: found no such file"):
        encode(table[2] | {"images": [str(tmp_path / "gone.jpg")]})


def test_placeholders_must_match_the_pictures(kind, table, tmp_path):
    processor = tiny_processor(kind)
    encode = ConversationEncoder(processor)
    marker = processor.tokenizer.convert_ids_to_tokens(sorted(placeholder_token_ids(processor))[0])
    for texts in ((f"What is {marker}?", "Yes."), ("What?", f"It is {marker}.")):
        with pytest.raises(BadSample, match=r"sample 'x': (found 1 placeholders|\w+Processor refuses it)"):
            encode(sample(*texts))
    image = str(write_image(tmp_path / "i.jpg", (32, 32)))
    with pytest.raises(BadSample, match=r"sample 'x': "):  # a picture that no message refers to
        encode(sample("What?", "Yes.", images=[image]))
    with pytest.raises(BadSample, match=r"sample 'image': "):  # a message that refers to no picture
        encode(table[2] | {"images": []})


@pytest.mark.parametrize("kind", ["internvl", "smolvlm"])
def test_settings_of_another_model_are_noticed(kind, table, monkeypatch):
    """Fewer placeholders than the settings say, for instance because text was replaced in another way."""
    processor = tiny_processor(kind)
    processor.replace_image_token = lambda *args, **kwargs: processor.image_token * 3
    with pytest.raises(
        BadSample, match=r"'image': found 3 placeholders among the tokens, expected 4 for 1 images and 0"
    ):
        ConversationEncoder(processor)(table[2])


def test_spans_of_a_conversation_in_characters():
    processor = tiny_processor("qwen2_vl")
    messages = json.loads(sample("Is it?", "Yes.", "No?", "No. ")["messages"])
    text = processor.apply_chat_template(messages)
    assert [text[a:b] for a, b in answer_spans(processor, messages, text)] == ["Yes.<|im_end|>", "No. <|im_end|>"]


def test_turns_helper():
    assert turns("a", "b") == [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
