"""The one scorer: what it computes with shared keys and values equals a plain forward pass over each full answer."""

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from regate.answering import Question, generate, option_scores, rank_options
from regate.data import ConversationEncoder, join
from tests.tiny import END_OF_TURN, tiny_model

LEAD = {"smolvlm": " "}  # between prompt and answer, where a template puts something there
OPTIONS = [("red", "the blue box", "It moves up and then to the right."), ("yes", "no"), ("left", "two words")]


def questions(rng: np.random.Generator) -> list[Question]:
    """A video, an image, text only, and a second video; prompts of several lengths."""
    frames = lambda n: rng.integers(0, 256, size=(n, 32, 32, 3), dtype=np.uint8)  # noqa: E731
    kinds = [("video", "What happens?"), ("image", "How many objects are there in the image?"), (None, "Is it red?")]
    kinds.append(("video", "What happens in the video, at the end?"))
    found = []
    for i, (kind, text) in enumerate(kinds):
        content = [{"type": kind}] if kind else []
        images, videos = ([], [frames(2 + i)]) if kind == "video" else ([], [])
        if kind == "image":
            from PIL import Image

            images = [Image.fromarray(frames(1)[0])]
        messages = [{"role": "user", "content": [*content, {"type": "text", "text": text}]}]
        found.append(Question(messages, OPTIONS[i % 3], images, videos, name=str(i)))
    return found


def plain(model, processor, question: Question, option: str, kind: str) -> torch.Tensor:
    """Log-probabilities of an option's tokens by one full forward pass over prompt, option and end marker."""
    encoder = ConversationEncoder(processor)
    from regate.answering import _video

    text = processor.apply_chat_template(list(question.messages), tokenize=False, add_generation_prompt=True)
    videos = [_video(v, 8) for v in question.videos]
    prompt, _, _ = encoder.process(text, list(question.images), videos, told=False)
    answer = LEAD.get(kind, "") + option + END_OF_TURN[kind]
    whole, _, _ = encoder.process(text + answer, list(question.images), videos, told=False)
    n, ids = len(prompt["input_ids"]), whole["input_ids"]
    logits = model(**join([whole], 0, "right")).logits[0].float()
    return torch.log_softmax(logits[n - 1 : -1], -1).gather(1, ids[n:, None])[:, 0]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_equals_a_plain_forward_pass(kind, attention):
    model, processor = tiny_model(kind, attn_implementation=attention)
    asked = questions(np.random.default_rng(0))
    asked += asked[:1]  # two prompts of one length share a batch
    with torch.no_grad():
        expected = [[plain(model.eval(), processor, q, o, kind) for o in q.options] for q in asked]
    for normalize in ("sum", "mean"):
        found = option_scores(model, processor, asked, normalize=normalize, batch_size=2)
        for scores, wanted in zip(found, expected, strict=True):
            np.testing.assert_allclose(scores, [getattr(w, normalize)().item() for w in wanted], rtol=2e-5)


def test_batches_do_not_matter_and_the_model_stays_as_it_was(kind):
    model, processor = tiny_model(kind)
    asked = questions(np.random.default_rng(1)) * 3
    alone = option_scores(model, processor, asked, batch_size=1)
    for together in (option_scores(model, processor, asked, batch_size=4), option_scores(model, processor, asked)):
        for a, b in zip(alone, together, strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-5)
    assert model.training
    ranking = rank_options(model, processor, asked[:1])[0]
    assert ranking.best == int(np.argmax(alone[0]))
    assert len(ranking.option_tokens) == len(asked[0].options)


def test_adapters_count(kind):
    model, processor = tiny_model(kind)
    asked = questions(np.random.default_rng(2))
    plain_scores = option_scores(model, processor, asked)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        wrapped = get_peft_model(model, config)
    adapted = option_scores(wrapped, processor, asked)
    assert not np.allclose(plain_scores[0], adapted[0])
    with wrapped.disable_adapter():
        for a, b in zip(plain_scores, option_scores(wrapped, processor, asked), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5)


def test_generation_in_batches_equals_one_by_one(kind):
    model, processor = tiny_model(kind)
    asked = questions(np.random.default_rng(3))
    alone = generate(model, processor, asked, batch_size=1, max_new_tokens=5)
    together = generate(model, processor, asked, batch_size=3, max_new_tokens=5)
    assert [g.text for g in alone] == [g.text for g in together]
    assert [g.prompt_tokens for g in alone] == [g.prompt_tokens for g in together]
    assert all(0 < g.new_tokens <= 5 for g in alone)


@pytest.mark.parametrize("kind", ["internvl", "smolvlm", "qwen2_vl"])
def test_an_option_is_scored_on_the_tokens_that_training_targets(kind):
    """LLaVA-OneVision is left out: its template starts an answer in another way than its prompt for one ends."""
    model, processor = tiny_model(kind)
    question = questions(np.random.default_rng(4))[2]
    (ranking,) = rank_options(model, processor, [question])
    for option, tokens in zip(question.options, ranking.option_tokens, strict=True):
        answer = {"role": "assistant", "content": [{"type": "text", "text": option}]}
        row = ConversationEncoder(processor)({"messages": [*question.messages, answer]})
        assert int((row["labels"] != -100).sum()) == tokens


def test_errors_name_the_question():
    model, processor = tiny_model("internvl")
    question = questions(np.random.default_rng(5))[0]
    with pytest.raises(ValueError, match="normalize is 'max'"):
        option_scores(model, processor, [question], normalize="max")
    with pytest.raises(ValueError, match=r"question '0'.*at most 3"):
        option_scores(model, processor, [question], max_length=3)
    with pytest.raises(ValueError, match="question 'x': found no options"):
        option_scores(model, processor, [Question(question.messages, name="x")])
    with pytest.raises(ValueError, match=r"no such file"):
        option_scores(model, processor, [Question(question.messages, ["a"], videos=["missing.mp4"])])
