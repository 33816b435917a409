"""Ablations: what the paper prints, beside what runs here measured."""

import streamlit as st

from app import data, ui
from app.artefacts import Problem
from app.views import ablations
from app.views.ablations import AXES


def page() -> None:
    """One axis: published on the left, measured on the right."""
    ui.head("Ablations", "What changes when one part of the method does: published numbers beside measured ones.")
    records = data.records()[0]
    name = st.segmented_control(
        "What is varied", list(AXES), format_func=lambda key: AXES[key].title, default="lambda", required=True,
        key="axis", bind="query-params", label_visibility="collapsed",
    ) or "lambda"  # fmt: skip
    scored = ablations.benchmarks(records)
    benchmark = scored[0] if scored else "mvbench"
    if len(scored) > 1:
        benchmark = st.selectbox("Benchmark", scored, key="benchmark", bind="query-params", width=280)
    axis = AXES[name]
    st.caption(axis.about)
    if not axis.published:
        show_measured(name, records, benchmark)
        return
    left, right = ui.halves("ablations")
    with left:
        show_published(name)
    with right:
        show_measured(name, records, benchmark)


def show_published(name: str) -> None:
    """The paper's numbers for VideoLLaMA2."""
    axis = AXES[name]
    try:
        frame = ablations.published(data.the_paper(), axis)
    except Problem as error:
        ui.problem(error)
        return
    ui.figure("Published", f"published-{name}", lambda look: ablations.published_chart(frame, axis, look),
              lambda: frame)  # fmt: skip
    st.caption("VideoLLaMA2 with ReGATE, as the paper prints it.")


def show_measured(name: str, records: list, benchmark: str) -> None:
    """What runs here say; where there is one value only, how to make more."""
    axis = AXES[name]
    frame = ablations.measured(records, axis, benchmark)
    if frame.empty:
        st.markdown("**Measured**")
        ui.no_records("No run varies this yet.", axis.command)
        return
    ui.figure("Measured", f"measured-{name}", lambda look: ablations.measured_chart(frame, axis, look), lambda: frame)
    st.caption(f"Accuracy on {benchmark} (micro students: on its twin), macro average over subtasks, mean over seeds; "
               "bars are 95 % intervals over questions.")  # fmt: skip
    if ablations.several_settings(frame).any():
        st.caption("Settings differ in more than this axis: compare within one only.")
    if frame.value.nunique() < 2:
        ui.no_records("Records hold one value of this so far.", axis.command, "makes more")
    with st.expander("Runs behind the points"):
        st.dataframe(frame, hide_index=True, width="stretch")


page()
