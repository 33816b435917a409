"""Tables: measured beside published, each measured number linked to the records that it comes from."""

import dataclasses
import functools
import json
from html import escape

import streamlit as st

from app import data, ui
from app.artefacts import Places, Problem
from app.views import tables
from app.views.tables import Grid
from app.views.theme import Look
from repro import benchmark_tables, render
from repro.benchmark_tables import Evaluated
from repro.record import Record
from repro.render import NOTE, WORDS
from repro.tables import TABLES


def page() -> None:
    """One table of the paper."""
    ui.head("Tables", "What the paper prints and what runs here measured. Every measured number opens its records.")
    try:
        paper = data.the_paper()
    except Problem as error:
        ui.problem(error)
        return
    records, (scored, problems) = data.records()[0], data.evaluated()
    for problem in problems:
        ui.problem(problem)
    titles = tables.titles(paper, records, TABLES)
    # links of the table itself carry `table`, so that they come back to it
    first = "4" if "4" in titles else next(iter(titles))
    number = st.segmented_control(
        "Table", list(titles), format_func=titles.__getitem__, default=first, required=True, key="table",
        bind="query-params", label_visibility="collapsed",
    ) or first  # fmt: skip
    if number in TABLES or number in benchmark_tables.COLUMNS:
        built(number, records, scored, paper)
    if number in benchmark_tables.COLUMNS:
        with st.expander("As the paper prints it, with the models that it compares with"):
            printed(number, paper)
    elif number not in TABLES:
        printed(number, paper)
    behind = st.query_params.get("behind")
    if behind:
        show_runs(number, tables.runs_behind(records, behind, number),
                  tables.evaluations_behind(scored, behind, number), behind)  # fmt: skip


def built(number: str, records: list[Record], scored: list[Evaluated], paper: dict) -> None:
    """A table with a builder: its parts, what it says in words, and its notes."""
    if number in TABLES:
        build, layout = TABLES[number]
        table = build(data.timed(alike=number != "4"), paper)
    else:
        table, layout = benchmark_tables.table(number, scored, records, paper), benchmark_tables.layout(number)
    grids = [tables.layout_grid(table, layout, i) for i in range(len(layout.parts))]
    name = f"table{number}" if number.isdigit() else number
    draw(layout.title, name, grids[0], number, csv=lambda: render.to_csv(table),
         md=lambda: render.to_markdown(table, layout), tex=lambda: render.to_latex(table, layout))  # fmt: skip
    if not any(grids[0].measured):
        ui.no_records("No run of this table yet.", f"make repro-{name}")
    words = tables.sentences(table, WORDS)
    if words:
        st.subheader("In words", anchor=False)
    for student, texts in words.items():
        st.markdown(f"**{student}**\n" + "\n".join(f"- {text}" for text in texts))
    for part, grid in list(zip(layout.parts, grids, strict=True))[1:]:
        if grid.rows:
            with st.expander(part.title[0].upper() + part.title[1:]):
                st.html(tables.to_html(grid, number))
    with st.expander("Notes"):
        for texts in tables.sentences(table, NOTE).values():
            st.markdown("\n".join(f"- {text}" for text in texts))


def printed(number: str, paper: dict) -> None:
    """A table as the paper prints it."""
    grid = tables.paper_grid(paper, number)
    name = f"table{number}" if number.isdigit() else f"table-{number}"
    draw("Published", f"{name}-published", grid, number, csv=lambda: ui.to_csv(grid.frame()))
    if number in ("5", "teacher"):
        st.caption("What runs here measured stands on the Ablations page.")


def draw(title: str, name: str, grid: Grid, number: str, **texts) -> None:  # type: ignore[no-untyped-def]
    """A table under what downloads it."""

    def picture(look: Look):  # type: ignore[no-untyped-def]
        from app.views.table_picture import picture  # matplotlib: for who downloads

        return picture(grid, look, title)

    def png(look: Look) -> bytes:
        from app.views import saved

        return saved.png(picture(look))

    def svg(look: Look) -> str:
        from app.views import saved

        return saved.svg(picture(look))

    ui.export_files(title, name, png, svg, **texts)
    html = tables.to_html(grid, number)
    st.html(html.replace('class="rg-table"', 'class="rg-table prose"') if number == "6" else html)


def _forget() -> None:
    st.query_params.pop("behind", None)


@st.dialog("Runs behind this number", width="large", on_dismiss=_forget)
def show_runs(number: str, runs: list[Record], scored: list[Evaluated], key: str) -> None:
    """What a link names: records of training runs and, in Tables 1-3, results on benchmarks. One at a time, whole."""
    if not runs and not scored:
        st.warning(f"No record fits {key}: the link is of another checkout, or its records were removed.")
        return
    if scored:
        show_results(scored)
    if runs:
        show_records(runs)


def show_results(scored: list[Evaluated]) -> None:
    """Results of lmms-eval behind a row of Tables 1-3."""
    found = {f"{run.name}: {name}": result for run in scored for name, result in run.results.items()}
    result = found[st.selectbox("Result on a benchmark", list(found), key="result")]
    facts(tables.result_details(result))
    as_json(f"{result.benchmark}.json", dataclasses.asdict(result))


def show_records(runs: list[Record]) -> None:
    """Records of training runs, one a seed."""
    names = {record.name: record for record in runs}
    record = names[st.selectbox("Record of a training run", list(names), key="record",
                                help=f"The table shows the mean over {len(runs)} seeds.")]  # fmt: skip
    facts(tables.details(record))
    places = Places.here()
    folder = places.results / "records" if record.origin == "committed" else places.runs / "records"
    st.caption(f"`{places.short(folder / (record.name + '.json'))}`")
    as_json(f"{record.name}.json", {k: v for k, v in dataclasses.asdict(record).items() if k != "origin"})
    with st.expander("Configuration"):
        st.json(record.config)


def facts(lines: list[tuple[str, str]]) -> None:
    """What to know at a glance, as a table of two columns."""
    rows = "".join(f'<tr><th scope="row">{escape(a)}</th><td>{escape(b)}</td></tr>'
                   for a, b in lines)  # fmt: skip
    st.html(f'<div class="rg-scroll"><table class="rg-table prose facts">{rows}</table></div>')


def as_json(name: str, values: dict) -> None:
    """The whole file."""
    st.download_button("JSON", functools.partial(json.dumps, values, indent=1), name, "application/json",
                       icon=":material/download:", on_click="ignore")  # fmt: skip


page()
