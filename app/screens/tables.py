"""Tables: measured beside published, each measured number linked to the records that it comes from."""

import dataclasses
import json
from html import escape

import pandas as pd
import streamlit as st

from app import data, ui
from app.artefacts import Places, Problem
from app.views import tables
from repro import render
from repro.record import Record
from repro.render import NOTE, WORDS, Layout
from repro.tables import TABLES


def page() -> None:
    """One table of the paper."""
    ui.head("Tables", "What the paper prints and what runs here measured. Every measured number opens its records.")
    try:
        paper = data.the_paper()
    except Problem as error:
        ui.problem(error)
        return
    records = data.records()[0]
    titles = tables.titles(paper)
    # links of the table itself carry `table`, so that they come back to it
    first = "4" if "4" in titles else next(iter(titles))
    number = st.segmented_control(
        "Table", list(titles), format_func=titles.__getitem__, default=first, required=True, key="table",
        bind="query-params", label_visibility="collapsed",
    ) or first  # fmt: skip
    if number in TABLES:
        built(number, records, paper)
    else:
        printed(number, records, paper)
    behind = st.query_params.get("behind")
    if behind:
        show_runs(tables.runs_behind(records, behind, number), behind)


def built(number: str, records: list[Record], paper: dict) -> None:
    """A table with a builder: its parts, what it says in words, and its notes."""
    build, layout = TABLES[number]
    table = build(records, paper)
    parts = [part.title or "main table" for part in layout.parts]
    grids = [tables.layout_grid(table, layout, i) for i in range(len(parts))]
    st.html(tables.to_html(grids[0], number))
    exports(f"table{number}", table, layout)
    if not any(grids[0].measured):
        ui.no_records("No run of this table yet.", f"make repro-table{number}")
    words = tables.notes(table, WORDS)
    if words:
        st.subheader("In words", anchor=False)
        st.markdown("\n".join(f"- {text}" for text in words))
    for title, grid in zip(parts[1:], grids[1:], strict=True):
        if grid.rows:
            with st.expander(title[0].upper() + title[1:]):
                st.html(tables.to_html(grid, number))
    with st.expander("Notes"):
        st.markdown("\n".join(f"- {note}" for note in tables.notes(table, NOTE)))


def printed(number: str, records: list[Record], paper: dict) -> None:
    """A table that the paper prints, with the rows of runs that were scored on its benchmarks."""
    others = False
    if number in ("1", "2", "3"):
        others = st.toggle("Show the models that the paper compares with", key="others", bind="query-params")
    grid = tables.paper_grid(paper, number, records, ours_only=not others)
    html = tables.to_html(grid, number)
    st.html(html.replace('class="rg-table"', 'class="rg-table prose"') if number == "6" else html)
    name = f"table{number}" if number.isdigit() else f"table-{number}"
    st.download_button("CSV", lambda: ui.to_csv(grid.frame()), f"{name}.csv", "text/csv", type="tertiary",
                       icon=":material/download:", on_click="ignore")  # fmt: skip
    if number == "6":
        st.caption("Prompts that ask for an answer's format, as printed.")
    elif any(grid.measured):
        st.caption(
            "Measured rows are of a micro student on twins of these benchmarks in the embedded world: compare "
            "methods within them, not with the paper's models. ± is half of the 95 % interval over questions."
        )
    elif number in ("5", "teacher"):
        st.caption("Measured values stand on the Ablations page.")
    else:
        ui.no_records("No run was scored on twins of these benchmarks yet.")


def exports(name: str, table: pd.DataFrame, layout: Layout) -> None:
    """The table as CSV (raw numbers, one line a cell), Markdown and LaTeX."""
    kinds = {
        "CSV": ("csv", lambda: render.to_csv(table)),
        "Markdown": ("md", lambda: render.to_markdown(table, layout)),
        "LaTeX": ("tex", lambda: render.to_latex(table, layout)),
    }
    with st.container(horizontal=True, horizontal_alignment="right", gap="small"):
        for kind, (suffix, make) in kinds.items():
            st.download_button(kind, make, f"{name}.{suffix}", type="tertiary", icon=":material/download:",
                               on_click="ignore", key=f"export-{name}-{suffix}")  # fmt: skip


def _forget() -> None:
    st.query_params.pop("behind", None)


@st.dialog("Runs behind this number", width="large", on_dismiss=_forget)
def show_runs(runs: list[Record], key: str) -> None:
    """The records of a link: one at a time, whole."""
    if not runs:
        st.warning(f"No record fits {key}: the link is of another checkout, or its records were removed.")
        return
    st.caption(f"{len(runs)} seeds of {runs[0].method}; the table shows their mean.")
    names = {record.name: record for record in runs}
    record = names[st.selectbox("Record", list(names), key="record")]
    lines = "".join(f'<tr><th scope="row">{escape(a)}</th><td style="text-align:left">{escape(b)}</td></tr>'
                    for a, b in tables.details(record))  # fmt: skip
    st.html(f'<div class="rg-scroll"><table class="rg-table">{lines}</table></div>')
    places = Places.here()
    folder = places.results / "records" if record.origin == "committed" else places.runs / "records"
    values = {name: value for name, value in dataclasses.asdict(record).items() if name != "origin"}
    st.caption(f"`{places.short(folder / (record.name + '.json'))}`")
    st.download_button("JSON", json.dumps(values, indent=1), f"{record.name}.json", "application/json",
                       icon=":material/download:", on_click="ignore")  # fmt: skip
    with st.expander("Configuration"):
        st.json(record.config)


page()
