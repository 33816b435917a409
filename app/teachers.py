"""Teachers that can score a text: which are there, and what they say about each answer token (Eq. 1, text alone).

torch and transformers are imported on first use only: pages that show records never pay for them. A text that no
teacher can score, or a teacher that cannot be loaded, is a `Problem` in words.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from app.artefacts import Places, Problem
from app.views.gate import Answer, ties

SMOLLM2 = "SmolLM2-135M-Instruct"
MAKE_TEACHER = "make teacher"
BATCH_TOKENS = 4096


def smollm2_path(runs: Path) -> Path:
    """Where `make teacher` puts SmolLM2."""
    return runs / "cache" / "teachers" / "smollm2-135m-instruct"


def known_teachers(places: Places) -> dict[str, Path]:
    """Teachers that are there, by the name that a menu shows; the best first."""
    found = {}
    if (smollm2_path(places.runs) / "model.safetensors").is_file():
        found[SMOLLM2] = smollm2_path(places.runs)
    for path in sorted(places.results.glob("students/*/model.safetensors")):
        found[f"micro {path.parent.name} (the embedded world's words only)"] = path.parent
    for path in sorted(places.runs.glob("*/final/*model.safetensors")):
        found[f"runs/{path.parent.parent.name}/final"] = path.parent
    return found


@dataclass(frozen=True)
class Teacher:
    """A loaded teacher: its processor or tokenizer, and `regate.reference.TextTeacher`."""

    path: Path
    processor: Any
    model: Any
    window: int | None  # tokens it can read at once
    markers: frozenset[int] = field(default_factory=frozenset)


def load(path: str | Path) -> Teacher:
    """A causal LM, or the language backbone of a multimodal model, from a local folder, float32 on the CPU.

    Raises:
        Problem: no such folder, no model or tokenizer in it, a model that is no decoder, weights of another shape.
    """
    path = Path(path).expanduser()
    if not path.is_dir():
        raise Problem(f"{path}: no such folder, expected one with config.json, weights and a tokenizer")
    if not any((path / name).is_file() for name in ("config.json", "adapter_config.json")):
        raise Problem(f"{path}: holds no config.json, expected a checkpoint in transformers' format")

    from safetensors import SafetensorError

    from regate.reference import load_teacher
    from regate.tokens import placeholder_token_ids, special_token_ids

    try:
        model, processor = _load(path)
        teacher = load_teacher(model, processor, attend_placeholders=False)
        markers = special_token_ids(processor, model.config) - placeholder_token_ids(processor, model.config)
        window = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    except Problem:
        raise
    except (OSError, ValueError, RuntimeError, KeyError, AttributeError, TypeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:400]
        raise Problem(f"{path}: cannot be loaded as a language model ({type(error).__name__}: {reason})") from error
    return Teacher(path, processor, teacher, window, frozenset(markers))


def _load(path: Path) -> tuple[Any, Any]:
    """Model and processor of a multimodal checkpoint, or of a text-only one, float32; Problem for missing weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    import regate.models  # noqa: F401 - the Auto classes know our students
    from regate.integrations.loading import load_checkpoint

    adapter = (path / "adapter_config.json").is_file()
    if adapter or hasattr(AutoConfig.from_pretrained(path, local_files_only=True), "text_config"):
        return load_checkpoint(str(path), dtype="float32")
    model, info = AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, output_loading_info=True, local_files_only=True
    )
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise Problem(f"{path}: {len(missing)} weights are missing ({missing[0]}, ...), expected a whole model")
    return model, AutoTokenizer.from_pretrained(path, local_files_only=True)


@dataclass(frozen=True)
class Encoded:
    """A question and an answer as a teacher's tokens: ids int64 [L], and which of them are targets."""

    question: str
    answer: str
    ids: list[int]
    target: list[bool]
    name: str = ""


def encode(teacher: Teacher, question: str, answer: str, name: str = "") -> Encoded:
    """Question and answer in the teacher's chat template (or `Question: ... Answer: ...` where it has none).

    Targets are the answer's tokens and the marker that ends it, as in training (`regate.targets`).

    Raises:
        Problem: an empty answer; more tokens than the teacher's window; a template that tells no answer.
    """
    import torch

    from regate.targets import answer_spans, mask_from_offsets, render
    from regate.tokens import tokenizer_of

    called = f"sample {name}: " if name else ""
    if not answer.strip():
        raise Problem(f"{called}the answer is empty, expected at least one word to score")
    tokenizer = tokenizer_of(teacher.processor)
    if getattr(teacher.processor, "chat_template", None) or getattr(tokenizer, "chat_template", None):
        plain = teacher.processor is tokenizer
        turns = [("user", question.strip()), ("assistant", answer.strip())]
        content: Callable[[str], Any] = (lambda t: t) if plain else (lambda t: [{"type": "text", "text": t}])
        messages = [{"role": role, "content": content(text)} for role, text in turns]
        try:
            text = render(teacher.processor, messages)
            spans = answer_spans(teacher.processor, messages, text)
        except (ValueError, TypeError) as error:
            raise Problem(f"{called}{error}") from error
    else:
        prompt = f"Question: {question.strip()}\nAnswer:"
        text = f"{prompt} {answer.strip()}"
        spans = [(len(prompt), len(text))]
    begins = bool(tokenizer.bos_token) and text.startswith(tokenizer.bos_token)
    out = tokenizer(text, return_offsets_mapping=True, return_tensors="pt", add_special_tokens=not begins)
    ids = out["input_ids"][0]
    mask = mask_from_offsets(teacher.processor, spans, out["offset_mapping"][0], [], ids, set(teacher.markers))
    if teacher.window is not None and len(ids) > teacher.window:
        raise Problem(
            f"{called}question and answer are {len(ids)} tokens, {teacher.path.name} reads {teacher.window} at most: "
            "shorten the text, or choose a teacher with a longer window"
        )
    mask[0] = False  # nothing predicts the first token
    assert isinstance(mask, torch.Tensor)
    return Encoded(question.strip(), answer.strip(), ids.tolist(), mask.tolist(), name)


def score(teacher: Teacher, rows: Sequence[Encoded], student: Teacher | None = None) -> Iterator[Answer]:
    """Each row's reference losses, and the losses of a second model in the student's place where one is given.

    The second model reads the same tokens, without pictures: its losses stand in for a student's running loss.
    """
    from regate.fingerprint import tokenizer_difference

    if student is not None:
        difference = tokenizer_difference(teacher.processor, student.processor)
        if difference:
            raise Problem(f"{student.path.name} cannot stand in for the student of {teacher.path.name}: {difference}")
    for number, row in enumerate(rows):
        reference = losses(teacher, row)
        ema = losses(student, row) if student else np.full(len(reference), np.nan, dtype=np.float32)
        targets = [token for token, is_target in zip(row.ids, row.target, strict=True) if is_target]
        yield Answer(
            question=row.question,
            tokens=tuple(_texts(teacher, targets)),
            reference=reference,
            ema=ema,
            candidate=np.array([token not in teacher.markers for token in targets], dtype=bool),
            tie=ties(0, number, len(targets)),
            name=row.name or str(number),
        )


def losses(teacher: Teacher, row: Encoded) -> np.ndarray:
    """The teacher's loss of each target of a row, float32 [N], nats."""
    import torch

    from regate.reference import score_rows
    from regate.scoring import IGNORE

    ids = torch.tensor(row.ids)
    labels = torch.where(torch.tensor(row.target), ids, IGNORE)
    try:
        (found,) = score_rows(teacher.model, [(ids, labels)], BATCH_TOKENS)
    except (RuntimeError, ValueError) as error:
        raise Problem(f"{teacher.path.name} cannot score this text: {error}") from error
    if not torch.isfinite(found).all():
        raise Problem(f"{teacher.path}: gives losses that are not finite; are its weights damaged?")
    return found.numpy()


def _texts(teacher: Teacher, ids: Sequence[int]) -> Iterator[str]:
    """The text of each token, with the space that it begins with: differences of decoded prefixes would be slower."""
    from regate.tokens import tokenizer_of

    tokenizer = tokenizer_of(teacher.processor)
    for token in ids:
        piece = tokenizer.convert_ids_to_tokens(token)
        text = tokenizer.decode([token])
        starts = piece[:1] in ("Ġ", "▁", " ") if isinstance(piece, str) else False
        yield f" {text.lstrip()}" if starts and not text.startswith(" ") else text


# --- a file of samples ---


def read_samples_file(raw: bytes, name: str) -> list[tuple[str, str, str]]:
    """(id, question, answer) of each sample of a JSON or JSONL file: LLaVA's `conversations`, `messages`, or plain
    `question` and `answer`. Pictures are not read: a text-only teacher never sees them.

    Raises:
        Problem: not UTF-8, not JSON, not a list, or a sample without question or answer; names the line or sample.
    """
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Problem(f"{name}: is no text (byte {error.start} is not UTF-8), expected JSON or JSONL") from None
    if not text.strip():
        raise Problem(f"{name}: is empty, expected a JSON list of samples, or one sample a line")
    try:
        rows = json.loads(text) if text.lstrip().startswith("[") else [json.loads(x) for x in text.splitlines() if x]
    except json.JSONDecodeError as error:
        raise Problem(f"{name}: no valid JSON at line {error.lineno}, column {error.colno} ({error.msg})") from None
    if not rows:
        raise Problem(f"{name}: holds no sample, expected at least one")
    return [_sample(row, i, name) for i, row in enumerate(rows)]


def _sample(row: Any, number: int, file: str) -> tuple[str, str, str]:
    where = f"{file}: sample {number}"
    if not isinstance(row, dict):
        raise Problem(f"{where} is no object, expected one with 'conversations', 'messages' or 'question' and 'answer'")
    called = str(row.get("id", number))
    if "answer" in row:
        return called, str(row.get("question", "")), str(row["answer"])
    turns = row.get("conversations") or row.get("messages")
    if not isinstance(turns, list):
        raise Problem(f"{where} ({called}) has keys {sorted(row)[:6]}, expected 'conversations' or 'question'/'answer'")
    texts: dict[str, str] = {}
    for turn in turns:
        role = str(turn.get("from") or turn.get("role")) if isinstance(turn, dict) else ""
        kind = {"human": "question", "user": "question", "gpt": "answer", "assistant": "answer"}.get(role)
        if kind and kind not in texts:
            texts[kind] = _text_of(turn.get("value", turn.get("content")))
    if "answer" not in texts:
        raise Problem(f"{where} ({called}) has no answer, expected a turn of 'gpt' or 'assistant'")
    return called, texts.get("question", ""), texts["answer"]


def _text_of(content: Any) -> str:
    if isinstance(content, list):
        content = " ".join(str(item.get("text", "")) for item in content if isinstance(item, dict))
    text = str(content or "")
    for tag in ("<image>", "<video>"):
        text = text.replace(tag, " ")
    return " ".join(text.split(" ")).strip()
