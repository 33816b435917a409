"""The prompts of both profiles, byte for byte, as a model is given them."""

import pytest

from eval.benchmarks import BENCHMARKS
from eval.prompts import LETTER, SHORT, TABLE_6, check_profile, prompt_text, prompts_hash, specific_kwargs
from eval.suites.questions import CHOICES
from tests.eval.conftest import _leaves

INSUFFICIENT = 'When the provided information is insufficient, respond with "Unanswerable".'
HEADER = (
    "Select the best answer to the following multiple-choice question based on the video and the subtitles. "
    "Respond with only the letter (A, B, C, or D) of the correct option."
)


def lettered(options, form="{}. {}"):
    return "\n".join(form.format(letter, option) for letter, option in zip("ABCDE", options, strict=False))


PAPER = {
    "scienceqa": lambda d: f"Context: {d['hint']}\n{d['question']}\n{lettered(d['choices'])}\n{LETTER}",
    "mme": lambda d: f"{d['question'].removesuffix(' Please answer yes or no.')}\n{SHORT}",
    "vizwiz": lambda d: f"{d['question'].capitalize()}\n{SHORT} {INSUFFICIENT}",
    "pope": lambda d: d["question"],
    "seedbench": lambda d: f"{d['question']}\n{lettered([d[f'choice_{c}'] for c in 'abcd'])}\n{LETTER}",
    "videomme": lambda d: "\n".join([d["question"], *d["options"], "", LETTER]),
    "longvideobench": lambda d: f"{d['question']}\n{lettered([d[f'option{k}'] for k in range(5)])}\n{LETTER}\n",
    "mlvu": lambda d: "\n".join([d["question"].split("\n")[0], lettered(d["candidates"], "({}) {}")]),
    "egoschema": lambda d: "\n".join([d["question"], *d["option"], LETTER]),
    "mvbench": lambda d: (
        f"Question:{d['question']}\nOption:\n{lettered(d['candidates'], '({}) {}')}\nOnly give the best option.\n"
    ),
    "perceptiontest": lambda d: f"{d['question']}\n{lettered(d['options'])}\n{LETTER}",
    "nextqa": lambda d: f"{d['question']}\n{lettered([d[f'a{k}'] for k in range(5)])}",
    "vinoground": lambda d: None,  # its question stands in a file beside the data set: see below
}
STOCK = PAPER | {
    "vizwiz": lambda d: (
        f"{d['question'].capitalize()}\nWhen the provided information is insufficient, respond with 'Unanswerable'.\n"
        f"{SHORT}"
    ),
    "pope": lambda d: f"{d['question']}\n{SHORT}",
    "videomme": lambda d: f"{HEADER}\n{PAPER['videomme'](d)}",
    "mlvu": lambda d: f"{PAPER['mlvu'](d)}\nOnly give the best option.\nBest option: (",
}


def first_questions(tasks):
    """Each task's first row, and the text of the message about it."""
    for task in _leaves(tasks):
        task.build_all_requests(limit=1)
        _, doc_to_messages, _, doc_id, _, split = task.instances[0].args
        doc = task.dataset[split][doc_id]
        content = doc_to_messages(doc)[-1]["content"]
        yield doc, content[-1]["text"], content


@pytest.mark.parametrize("name", BENCHMARKS)
def test_prompts_of_profile_paper_are_table_6(suite, name):
    for doc, text, content in first_questions(suite(name)[0]):
        expected = PAPER[name](doc)
        assert expected is None or text == expected
        assert text.rstrip("\n").endswith(TABLE_6[name])
        assert [item["type"] for item in content[:-1]] != []  # what is asked about stands before the text
        for other in {LETTER, SHORT, INSUFFICIENT, HEADER, "Best option"} - set(TABLE_6[name].split(". ")):
            assert other not in text or other in TABLE_6[name] or name == "vinoground"


@pytest.mark.parametrize("name", ["vizwiz", "pope", "mlvu", "videomme", "mvbench", "scienceqa"])
def test_prompts_of_profile_stock_are_lmms_evals(suite, name):
    for doc, text, _ in first_questions(suite(name, "stock")[0]):
        assert text == STOCK[name](doc)


def test_vinoground_asks_what_stands_beside_the_videos(suite):
    (doc, text, _) = next(first_questions(suite("vinoground")[0]))
    assert text.startswith("Which caption best describes this video?\nA. ")
    assert doc["pos_cap"] in text
    assert doc["neg_cap"] in text
    assert text.endswith("\nPlease only output one English character.")


@pytest.mark.parametrize("name", CHOICES)
def test_a_choice_is_the_question_without_its_options(suite, name):
    from tests.eval.scripted import OPTIONS, TRUTH

    for task in _leaves(suite(name)[0]):
        task.build_all_requests(limit=3)
        for instance in task.instances:
            _, doc_to_messages, _, doc_id, _, split = instance.args
            doc = task.dataset[split][doc_id]
            choice = doc_to_messages(doc)[-1]["multiple_choice"]
            assert len(choice["texts"]) == len(choice["answers"]) == OPTIONS[name](doc)
            assert TRUTH[name](doc) in choice["answers"]
            assert choice["question"]
            assert LETTER not in choice["question"]
            assert not any(text.startswith(("A. ", "(A)", "B. ")) for text in choice["texts"])
            if name not in ("mme", "pope"):
                assert not any(f". {text}" in choice["question"] for text in choice["texts"])


def test_profiles_and_hashes():
    with pytest.raises(ValueError, match="'other', expected one of paper, stock"):
        check_profile("other")
    with pytest.raises(ValueError, match=r"videomme starts 'What.*lmms-eval changed"):
        prompt_text("videomme", "paper", "What is it?")
    assert specific_kwargs("seedbench", "paper", None) is None
    kwargs = specific_kwargs("mvbench", "paper", {"default": {"sub_task": "state_change", "post_prompt": "x"}})
    assert kwargs == {
        "default": {"pre_prompt": "", "sub_task": "state_change", "post_prompt": "Only give the best option.\n"}
    }
    assert prompts_hash(["a", "b"]) != prompts_hash(["ab", ""]) != prompts_hash(["a"])
    assert set(TABLE_6) == set(BENCHMARKS)
