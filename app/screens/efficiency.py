"""Efficiency: what ReGATE saves and what it reaches, from the records of Table 4."""

import functools

import streamlit as st

from app import data, ui
from app.views import efficiency, tables
from repro.figures import curve_data


def page() -> None:
    """One group of runs: curves, numbers, words."""
    ui.head(
        "Efficiency",
        "Accuracy on validation against supervised tokens and against train time; bands run from the lowest to the "
        "highest seed.",
    )
    groups = efficiency.groups(data.timed())
    if not groups:
        ui.no_records("No run has an efficiency curve yet.")
        return
    group = groups[st.selectbox("Runs", list(groups), key="runs", bind="query-params")]
    st.markdown("**ReGATE against the baseline**")
    for column, (label, value, about) in zip(st.columns(4), efficiency.summary(group), strict=False):
        column.metric(label, value, help=about)
    curves = curve_data(group)
    axes = [axis for axis in efficiency.AXES if axis == "tokens" or efficiency.timed(curves)]
    for column, axis in zip(ui.halves("efficiency"), axes, strict=False):
        with column:
            ui.figure(f"Against {efficiency.AXES[axis]}", f"efficiency-{axis.replace('_', '-')}",
                      functools.partial(efficiency.chart, curves, axis=axis), lambda: curves)  # fmt: skip
    st.subheader("What the runs say", anchor=False)
    st.markdown("\n".join(f"- {text}" for text in efficiency.words(group)))
    keys = {method: tables.key_of(group.student, group.scale, group.origin, method) for method in group.methods}
    links = [f"[{efficiency.label(method)}]({tables.link('4', key)})" for method, key in keys.items()]
    st.caption("Lines are running means of three evaluations, dots single evaluations. The runs behind them: "
               + ", ".join(links) + ".")  # fmt: skip


page()
