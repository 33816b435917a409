"""Gating over training: what the gate kept of a sample, visit by visit, with play; the teacher against the student."""

from typing import Any

import streamlit as st

from app import data, ui
from app.artefacts import Problem, Traced, gated
from app.views import gating, losses, tokens
from app.views.gate import gate

SECONDS = 1.2  # how long a visit stays while playing


def page() -> None:
    """Choose a run and a sample, then walk through its visits."""
    ui.head(
        "Gating over training",
        "What the gate kept of one answer each time it was in the batch, and why: the teacher's loss against the "
        "student's.",
    )
    runs = {trace.name: trace for trace in data.traces() if gated(trace)}
    if not runs:
        ui.no_records("No gated run has left a trace yet.")
        return
    left, right = st.columns([1, 2])
    try:
        traced = data.traced(runs[left.selectbox("Run", list(runs), key="run", bind="query-params")])
    except Problem as error:
        ui.problem(error)
        return
    labels = {traced.label(sample_id): sample_id for sample_id in traced.visits}
    chosen = labels[right.selectbox("Sample", list(labels), key="sample", bind="query-params")]
    every = SECONDS if st.session_state.get("playing") else None
    st.fragment(walk, run_every=every)(traced, chosen, every)


def walk(traced: Traced, sample_id: int, every: float | None) -> None:
    """The strip with its cursor, the sentence as it stood there, and the scatter. Playing reruns this alone."""
    look, visits = ui.look(), traced.visits[sample_id]
    steps = [visit.step for visit in visits]
    index = steps.index(transport(steps, every))
    visit, answer = visits[index], traced.answer(sample_id, visits[index])
    history = gating.history(traced, sample_id)
    sample = traced.samples.get(sample_id)
    settings = traced.trace.gate
    combine = settings.get("combine", "convex")
    recorded = gate(answer, settings.get("lambda_", 0.5), visit.ratio, combine)
    with st.container(border=True):
        ui.clip(sample.frames if sample else None)
        kind = "a dense step: everything kept" if visit.dense else f"ratio {visit.ratio:g}"
        st.html(
            tokens.strip_html(answer, recorded, look, "reference") + tokens.legend_html("reference")
            + f'<p class="rg-note">Step {visit.step} of {traced.steps}, visit {index + 1} of {len(visits)}; {kind}.</p>'
        )  # fmt: skip

    left, right = ui.halves("gating", (1.15, 1))
    with left:
        by = st.selectbox("Show", list(gating.SHOWN), format_func=gating.SHOWN.__getitem__, key="show",
                          bind="query-params")  # fmt: skip
        ui.figure("Over training", "gating", lambda theme: gating.strip(history, theme, visit.step, by),
                  lambda: history)  # fmt: skip
        st.caption("A block lasts from one visit of the sample to the next; before the first visit there is none.")
    with right:
        columns = st.columns(2)
        lambda_ = columns[0].slider("λ", 0.0, 1.0, float(settings.get("lambda_", 0.5)), 0.05, key="gate_lambda",
                                    bind="query-params", help="Weight of the teacher's loss (Eq. 3).")  # fmt: skip
        ratio = columns[1].slider("Ratio kept", 0.05, 1.0, float(settings.get("keep_ratio", 0.5)), 0.05,
                                  key="gate_ratio", bind="query-params", help="p of Eq. 4.")  # fmt: skip
        decided = gate(answer, lambda_, ratio, combine)
        points = gating.points(answer, decided, ratio, combine)
        ui.figure("Teacher against student", "teacher-student",
                  lambda theme: gating.scatter(points, theme, lambda_, combine),
                  lambda: losses.table(answer, decided, ratio, combine))  # fmt: skip
        st.caption(gating.agreement(answer, visit, lambda_, ratio, combine))
        shares = gating.kept_by_tag(traced)
        if not shares.empty:
            ui.figure("Share kept, all samples", "kept-by-kind",
                      lambda theme: gating.tag_chart(shares, theme, traced.steps), lambda: shares)  # fmt: skip
            st.caption("Sparse steps only. A gate that works keeps visual tokens and lets go of template.")
    if every is not None and visit.step == steps[-1]:  # the last visit is drawn: playing ends
        st.session_state["playing"] = False
        st.rerun(scope="app")


def transport(steps: list[int], every: float | None) -> int:
    """Play and the step slider; returns the step that is shown. `every` is how this fragment reruns by itself."""
    playing = st.session_state.get("playing", False)
    if playing != (every is not None):  # the pace of a fragment is set where the whole page runs
        st.rerun(scope="app")
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        label, icon = ("Pause", ":material/pause:") if playing else ("Play", ":material/play_arrow:")
        st.button(label, icon=icon, key="play", disabled=len(steps) < 2, type="primary", width=110,
                  on_click=toggle, args=(steps,))  # fmt: skip
        if len(steps) == 1:
            return steps[0]
        start: dict[str, Any] = {"value": steps[-1]}
        if playing and st.session_state.get("ticked"):
            st.session_state["step"] = steps[min(steps.index(st.session_state["step"]) + 1, len(steps) - 1)]
            start = {}  # the state says it
        step = st.select_slider("Training step, visit by visit", steps, key="step", bind="query-params", **start)
    st.session_state["ticked"] = playing
    return step


def toggle(steps: list[int]) -> None:
    """Play or pause; playing at the end begins anew."""
    st.session_state["playing"] = not st.session_state.get("playing", False)
    st.session_state["ticked"] = False
    if st.session_state["playing"] and st.session_state.get("step") == steps[-1]:
        st.session_state["step"] = steps[0]


page()
