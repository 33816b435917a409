"""Attention maps: standard fine-tuning and ReGATE on the same frames (Figure 4), grounding, and models of your own."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import streamlit as st

from app import attention, data, ui
from app.artefacts import Places, Problem
from app.attention import Both, Live, Pair
from app.views import attention as view
from app.views import frames, saved
from app.views.attention import Chosen, Shown

MEAN = "mean of all"
WHICH = "Students whose visual tokens have a place in a frame. VideoChat2's have none: each has looked at all frames."
RUNS, OWN = "Runs", "Your own model and video"
MEASURES = {"Pointing game": "pointing", "Attention in the box": "mass"}
ENDINGS = ["mp4", "webm", "mkv", "mov", "avi", "gif"]
FRAMES = (4, 8, 16, 32)


def page() -> None:
    """Choose whose attention, then a word."""
    ui.head(
        "Attention maps",
        "Where a model looks when it says a word: attention of the position that predicts it, on each visual token.",
    )
    source = st.segmented_control(
        "Whose attention", [RUNS, OWN], default=RUNS, key="whose", bind="query-params", required=True,
        label_visibility="collapsed",
    )  # fmt: skip
    try:
        own() if source == OWN else runs()
    except Problem as error:
        ui.problem(error)


# --- runs ---


@st.cache_resource(max_entries=4, show_spinner=False)
def _both(label: str, stamps: tuple[int, ...], _pair: Pair) -> Both:
    return attention.read_pair(_pair)


def runs() -> None:
    """Pairs of runs that left artefacts."""
    found, problems = attention.find_pairs(Places.here())
    for problem in problems:
        ui.problem(problem)
    if not found:
        ui.no_records("No run has left attention maps yet.", "make repro-table4 artefacts")
        return
    pairs = {pair.label: pair for pair in found}
    left, right = st.columns([2, 5])
    pair = pairs[left.selectbox("Student", list(pairs), key="pair", bind="query-params", help=WHICH)]
    both = _both(pair.label, pair.stamps(), pair)
    clips = {_title(i, one.clip.answer): i for i, one in enumerate(both.regate.clips)}
    index = clips[right.selectbox("Clip of the test set", list(clips), key="clip", bind="query-params")]
    clip = both.regate.clips[index].clip
    sides = {"Standard FT": both.standard.clips[index], "ReGATE": both.regate.clips[index]}
    token = choose_token(clip.question, clip.tokens, clip.named, key=clip.id)
    chosen = choose_weights(
        token, {name: one.weights for name, one in sides.items()}, {name: one.sinks for name, one in sides.items()}
    )
    owner = clip.named[token]
    shown = Shown(
        attention.frames_of(pair, both, index),
        {name: view.look_at(one.weights, one.sinks, chosen) for name, one in sides.items()},
        both.regate.frames,
        both.regate.extent,
        None if owner is None else clip.box_array()[:, owner],
    )
    about = "" if owner is None else f"The outline is the true box of the {clip.objects[owner]}."
    show(shown, clip.tokens[token], about, f"attention-{pair.student}-s{pair.seed}-{clip.id}-{token + 1}")
    show_grounding(both, chosen)


def _title(index: int, answer: str) -> str:
    """What a menu calls a clip; no two are called the same."""
    return f"{index + 1} · {answer if len(answer) <= 90 else answer[:88].rstrip() + ' …'}"


def show_grounding(both: Both, chosen: Chosen) -> None:
    """The scores over the test set, as numbers with intervals."""
    st.subheader("Grounding over the test set", anchor=False)
    record = both.grounding
    if isinstance(record, Problem):
        ui.problem(record)
        return
    measure = st.segmented_control(
        "Measure", list(MEASURES), default=next(iter(MEASURES)), key="measure", bind="query-params", required=True,
        label_visibility="collapsed",
    )  # fmt: skip
    sinks = "removed" if chosen.without_sinks else "kept"
    found = view.grounding(record, MEASURES[measure], sinks, chosen.layer)
    if found is None:
        st.info("The grounding record has no scores for this choice.")
        return
    where = "All layers and heads" if chosen.layer is None else f"Layer {chosen.layer + 1}, all heads"
    left, right = ui.halves("grounding", (3, 2))
    with left:
        ui.figure(
            view.MEASURES[found.measure],
            f"grounding-{found.measure}",
            lambda look: view.grounding_chart(found, look),
            lambda: found.table,
        )
    with right:
        st.markdown(f"ReGATE against standard fine-tuning: **{found.verdict}**.")
        seeds = {seed: view.grounding(r, found.measure, found.sinks, found.layer) for seed, r in both.seeds.items()}
        if len(seeds) > 1:
            st.markdown(view.over_seeds({seed: one for seed, one in seeds.items() if one}))
        st.caption(
            f"{where}; {record['tokens']} nouns and colours that name one object, in {found.clips} test clips with "
            "true boxes. Lines are 95 % intervals over clips for these two training runs; other seeds may differ by "
            "more. *Even attention*: no preference for any visual token. *Best cell*: all attention on the best one."
        )
        with st.expander("What the numbers were made from"):
            st.json({name: value for name, value in record.items() if name != "scores"}, expanded=1)


# --- what both sources share ---


def choose_token(question: str, tokens: Sequence[str], named: Sequence[int | None], key: str) -> int:
    """The question, and the answer's words to choose from; the choice is in the URL as `token`, counted from 1."""
    labels = view.token_labels(tokens, named)
    asked = st.query_params.get("token", "")
    first = int(asked) - 1 if asked.isdecimal() and 0 < int(asked) <= len(tokens) else view.first_named(named)
    st.markdown(f":gray[Question]  {view.plain(question)}")
    about = "Answer: choose a word" + (" (those in bold name an object)" if any(o is not None for o in named) else "")
    token = st.pills(
        about, range(len(tokens)), default=first, format_func=labels.__getitem__, key=f"token-{key}", required=True
    )
    st.query_params["token"] = str(token + 1)
    return int(token)


def choose_weights(token: int, weights: Mapping[str, np.ndarray], sinks: Mapping[str, np.ndarray | None]) -> Chosen:
    """Layer, head, sinks, and whether heat is smooth."""
    layers, heads = (min(one.shape[axis] for one in weights.values()) for axis in (0, 1))
    known = all(found is not None for found in sinks.values())
    one, two, three = st.columns([1, 1, 3], vertical_alignment="bottom")
    layer = one.selectbox("Layer", [MEAN, *map(str, range(1, layers + 1))], key="layer", bind="query-params")
    head = two.selectbox("Head", [MEAN, *map(str, range(1, heads + 1))], key="head", bind="query-params")
    with three.container(horizontal=True, gap="medium"):
        without = st.toggle(
            "Remove attention sinks", key="sinks", bind="query-params", disabled=not known,
            help="A visual token is a sink of a head if at least 9 in 10 answer tokens give it more than 10 times an "
            "even share of their attention on frames. Told from answers of at least 8 tokens.",
        )  # fmt: skip
        st.toggle("Smooth", True, key="smooth", bind="query-params", help="Off: each visual token fills its cell.")
    if without and known:
        counts = {name: int(found.sum()) for name, found in sinks.items() if found is not None}
        removed = ", ".join(f"{count} of {name}" for name, count in counts.items())
        st.caption(f"Sinks removed, over all heads: {removed}." if any(counts.values()) else
                   "No visual token of this clip is a sink: nothing changes.")  # fmt: skip
    layer_chosen, head_chosen = (None if value == MEAN else int(value) - 1 for value in (layer, head))
    return Chosen(token, layer_chosen, head_chosen, bool(without and known))


def show(shown: Shown, token: str, about: str, name: str) -> None:
    """The picture, what each frame gets, and the buttons that export both."""
    smooth = bool(st.session_state["smooth"])
    ui.export_files(
        "Attention on the frames",
        name,
        lambda look: saved.png(frames.picture(shown, look, smooth)),
        lambda look: saved.svg(frames.picture(shown, look, smooth)),
        lambda: ui.to_csv(view.table(shown)),
    )
    st.html(frames.html(*frames.strips(shown, ui.look(), smooth), f"attention when the model says {token.strip()}"))
    drawn = len(frames.frames_in_row(len(shown.frames)))
    notes = [f"Attention when the model says **{view.plain(token.strip())}**, all models on one scale.", about]
    if drawn < len(shown.frames):
        notes.append(f"{drawn} of {len(shown.frames)} frames are drawn; the bars below show all.")
    st.caption(" ".join(filter(None, notes)))
    bars = view.per_frame(shown)
    ui.figure("Which frames matter", f"{name}-frames", lambda look: view.importance_chart(bars, look), lambda: bars)


# --- a model of your own ---


@st.cache_resource(max_entries=2, show_spinner="Loading the model …")
def _model(path: str, stamp: str) -> tuple[Any, Any]:
    return attention.load_model(path)


def own() -> None:
    """One checkpoint, or two to compare, on a video file."""
    default = str(Places.here().results / "students" / "internvl")
    with st.form("own"):
        left, right = st.columns(2, gap="large")
        paths = [
            left.text_input("Checkpoint", default, key="model", bind="query-params",
                            help="A folder with a multimodal model and its processor, in transformers' format."),
            left.text_input("Checkpoint to compare with (optional)", key="other", bind="query-params",
                            help="The difference that is drawn is this one minus the first."),
        ]  # fmt: skip
        count = left.select_slider("Frames", FRAMES, 8, key="frames", bind="query-params")
        upload = right.file_uploader("Video", ENDINGS, key="video")
        question = right.text_input("Question", "what happens in the video ?", key="ask", bind="query-params")
        answer = right.text_input("Answer", key="say", bind="query-params", placeholder="the answer to look into")
        if st.form_submit_button("Show attention", type="primary"):
            st.session_state["own-result"] = None
            st.session_state["own-result"] = compute([p for p in paths if p.strip()], upload, question, answer, count)
    result = st.session_state.get("own-result")
    if result is not None:
        show_own(*result)
        return
    st.caption(
        "The video stays on this machine. Any multimodal model of transformers with a causal decoder will do whose "
        "visual tokens have known places: InternVL, LLaVA-OneVision, SmolVLM, Qwen2-VL, VideoLLaMA2."
    )


def compute(paths: list[str], upload: Any, question: str, answer: str, count: int) -> tuple[str, str, dict[str, Live]]:
    """A key, the question, and the attention of every checkpoint on the upload; `Problem` for whatever fails."""
    if not paths:
        raise Problem("No checkpoint yet: type the path of a folder.")
    if upload is None:
        raise Problem("No video yet: choose a file that FFmpeg reads, such as an mp4.")
    lives = {}
    with tempfile.NamedTemporaryFile(suffix=Path(upload.name).suffix) as file:
        file.write(upload.getbuffer())
        file.flush()
        for path, name in zip(paths, attention.names_of(paths), strict=True):
            model, processor = _model(path, data.stamp(path))
            with st.spinner(f"{name} watches {upload.name} …", show_time=True):
                lives[name] = attention.attend(model, processor, Path(file.name), upload.name, question, answer, count)
    if len(lives) == 2 and (reason := attention.unlike(*lives.values())):
        raise Problem(f"{' and '.join(lives)} cannot be compared: {reason}.")
    return f"{upload.file_id}-{hash((question, answer, count, *paths))}", question, lives


def show_own(key: str, question: str, lives: Mapping[str, Live]) -> None:
    """The same picture for models of the reader's own."""
    first = next(iter(lives.values()))
    token = choose_token(question, first.tokens, [None] * len(first.tokens), key)
    chosen = choose_weights(
        token, {name: live.weights for name, live in lives.items()}, {name: live.sinks for name, live in lives.items()}
    )
    rows = {name: view.look_at(live.weights, live.sinks, chosen) for name, live in lives.items()}
    show(Shown(first.frames, rows, first.slices, first.extent), first.tokens[token], "", f"attention-own-{token + 1}")


page()
