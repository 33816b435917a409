"""`regate` inside lmms-eval, on the prepared micro student."""

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from eval.scores import rows_of
from regate.answering import Question, option_scores
from regate.integrations.lmms_eval import RegateModel, _batches, _generation, _until
from regate.media import MediaError
from tests.eval.conftest import _leaves

STUDENT = Path(__file__).resolve().parents[2] / "results" / "students" / "internvl"


@pytest.fixture(scope="module")
def model():
    return RegateModel(str(STUDENT), answer="rank", batch_size="8")


def requests(task, model, limit=12):
    model.task_dict[task.config.task] = task.dataset
    task.build_all_requests(limit=limit)
    return task.instances


def test_ranks_option_texts_and_answers_with_their_letters(suite, model):
    (task,) = _leaves(suite("videomme")[0])
    asked = requests(task, model)
    results = list(model.generate_until(asked))
    docs = [task.dataset["test"][request.args[3]] for request in asked]
    by_hand = [
        Question(
            [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": doc["question"]}]}],
            [option[3:] for option in doc["options"]],
            videos=task.doc_to_visual(doc),
        )
        for doc in docs
    ]
    scores = option_scores(model.model, model.processor, by_hand)
    assert [result.text for result in results] == ["ABCD"[s.argmax()] for s in scores]
    assert all(r.token_counts.input_tokens > 20 and r.token_counts.output_tokens >= 4 for r in results)


def test_knows_more_than_chance_of_what_the_student_was_prepared_for(evaluate, model):
    _, samples, tasks = evaluate("mvbench", model)
    seen = [f"mvbench_{task}" for task in ("action_antonym", "scene_transition", "moving_direction", "state_change")]
    rows = [row for row in rows_of({task: samples[task] for task in tasks}) if row.task in seen]
    assert sum(row.score for row in rows) > 1.4 * sum(1 / row.options for row in rows)


def test_open_questions_are_answered_in_words(suite, model):
    (task,) = _leaves(suite("vizwiz")[0])
    results = list(model.generate_until(requests(task, model, 4)))
    assert [r.token_counts.output_tokens > 0 for r in results] == [True] * 4


def test_generates_in_the_order_of_the_requests(suite, model):
    (task,) = _leaves(suite("videomme")[0])
    asked = requests(task, model, 5)
    generating = RegateModel(str(STUDENT), batch_size=2)
    generating.task_dict = model.task_dict
    answers = [result.text for result in generating.generate_until(asked)]
    generating.batch_size = 1
    assert answers == [result.text for result in generating.generate_until(asked)]
    assert answers[::-1] == [result.text for result in generating.generate_until(asked[::-1])]
    first = next(generating.generate_until(asked))  # a generator: one batch at a time
    assert first.text == answers[0]
    model.clean()
    assert model.model is not None


def test_a_missing_video_is_an_error_that_names_it(suite, model, home):
    task = next(_leaves(suite("mvbench")[0]))
    asked = requests(task, model, 1)
    video = Path(task.doc_to_visual(task.dataset["train"][0])[0])
    hidden = video.with_suffix(".hidden")
    video.rename(hidden)
    try:
        with pytest.raises(MediaError, match=rf"{video.name}: found no such file"):
            list(model.generate_until(asked))
    finally:
        hidden.rename(video)


def test_another_checkpoint_at_the_same_path_is_never_answered_from_the_cache(manager, tmp_path, monkeypatch):
    from lmms_eval import evaluator

    path = tmp_path / "checkpoint"
    shutil.copytree(STUDENT, path)
    monkeypatch.setenv("LMMS_CACHE_RUN_ID", "run")

    def run():
        """As `lmms-eval --model regate --model_args pretrained=... --use_cache ...`, without a fingerprint."""
        found = evaluator.simple_evaluate(
            model="regate",
            model_args=f"pretrained={path},answer=rank",
            batch_size="8",
            tasks=["regate_seedbench"],
            task_manager=manager,
            use_cache=str(tmp_path / "cache"),
            limit=12,
            bootstrap_iters=0,
            process_docs_parallel=1,
        )
        samples = found["samples"]["seedbench"]
        return [s["regate"]["answer"] for s in samples], [s["token_counts"][0] is None for s in samples]

    first, cached = run()
    assert not any(cached)
    assert run() == (first, [True] * 12)
    weights = load_file(path / "model.safetensors")
    save_file({k: v.flip(0) for k, v in weights.items()}, path / "model.safetensors", {"format": "pt"})
    second, cached = run()
    assert not any(cached)
    assert second != first


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="answer is 'letter', expected one of generate, rank"):
        RegateModel(str(STUDENT), answer="letter")
    with pytest.raises(ValueError, match="batch_size is 'auto'"):
        RegateModel(str(STUDENT), batch_size="auto")


def test_batches_settings_and_stops():
    class Request:
        def __init__(self, kwargs):
            self.args = ("", None, kwargs)

    a, b = {"max_new_tokens": 4}, {"max_new_tokens": 5}
    sizes = [len(batch) for batch in _batches([Request(k) for k in (a, a, a, b, a)], 2)]
    assert sizes == [2, 1, 1, 1]
    assert _generation({"temperature": 0, "until": "\n\n"}) == (
        {"max_new_tokens": 64, "do_sample": False},
        ["\n\n"],
    )
    settings, _ = _generation({"temperature": 0.7, "top_p": 0.9, "max_new_tokens": 3, "num_beams": 1})
    assert settings == {"max_new_tokens": 3, "do_sample": True, "temperature": 0.7, "top_p": 0.9, "num_beams": 1}
    assert _until("\n\nB. yes\n\nand so on", ["\n\n", "ASSISTANT:"]) == "B. yes"
