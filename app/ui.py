"""What all pages share on the screen: heads, messages, and the row of buttons that exports a figure and its data."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pandas as pd
import streamlit as st

from app.views import theme
from app.views.theme import LIGHT, Look

EXPORT_WIDTH = 860  # pixels; PNGs have twice as many


def look() -> Look:
    """The look of the reader's theme."""
    return theme.look(st.context.theme.type)


def head(title: str, about: str) -> None:
    """A page's title and what it shows, in one sentence."""
    st.header(title, anchor=False)
    st.markdown(f":gray[{about}]")


def no_records(what: str, command: str = "make repro-table4", makes: str = "makes the first") -> None:
    """Where there is nothing to show yet: which command changes that."""
    st.info(f"{what} This command {makes}:", icon=":material/terminal:")
    st.code(command, language="bash")


def problem(error: Exception) -> None:
    """Something that cannot be shown, in words; the page goes on."""
    text = re.sub(r"([*$<\[])", r"\\\1", str(error))  # it names files and texts of users: no Markdown in it
    st.error(text, icon=":material/error:")


def halves(name: str, widths: tuple[float, float] = (1, 1)) -> list[Any]:
    """Two columns side by side; one over the other on narrow windows (`views/style.py`)."""
    with st.container(key=f"halves-{name}"):
        return list(st.columns(widths, gap="large"))


def figure(title: str, name: str, chart: Callable[[Look], Any], data: Callable[[], pd.DataFrame]) -> None:
    """A chart under its title, in the page's look; beside the title what downloads it (on white, at a fixed width) and
    what it shows."""

    def spec() -> dict[str, Any]:
        return theme.dressed(_fixed(chart(LIGHT)), LIGHT).to_dict()

    def png() -> bytes:
        import vl_convert

        return vl_convert.vegalite_to_png(spec(), scale=2)

    def svg() -> str:
        import vl_convert

        return vl_convert.vegalite_to_svg(spec())

    _title_row(title, name, png, svg, lambda: to_csv(data()))
    st.altair_chart(theme.dressed(chart(look()), look()), width="stretch", theme=None, key=f"chart-{name}")


def export_files(
    title: str,
    name: str,
    png: Callable[[Look], bytes],
    svg: Callable[[Look], str],
    csv: Callable[[], str],
    **texts: Callable[[], str],
) -> None:
    """The same row over a picture that is no chart: on white as well. `texts`: further files, by their suffix."""
    _title_row(title, name, lambda: png(LIGHT), lambda: svg(LIGHT), csv, **texts)


def to_csv(data: pd.DataFrame) -> str:
    """Data as CSV, numbers with ten digits."""
    return data.to_csv(index=False, float_format="%.10g", lineterminator="\n")


def _fixed(chart: Any) -> Any:
    """A chart that fills its container has a width of its own on paper."""
    return chart.properties(width=EXPORT_WIDTH) if getattr(chart, "width", None) == "container" else chart


def _title_row(
    title: str,
    name: str,
    png: Callable[[], bytes],
    svg: Callable[[], str],
    csv: Callable[[], str],
    **texts: Callable[[], str],
) -> None:
    kinds: list[tuple[str, Callable[[], bytes | str], str]] = [
        ("PNG", png, "image/png"), ("SVG", svg, "image/svg+xml"), ("CSV", csv, "text/csv"),
        *((suffix.upper(), make, "text/plain") for suffix, make in texts.items()),
    ]  # fmt: skip
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.markdown(f"**{title}**", width="stretch")
        for kind, make, mime in kinds:
            st.download_button(
                kind, make, f"{name}.{kind.lower()}", mime, key=f"export-{name}-{kind}", type="tertiary",
                icon=":material/download:", on_click="ignore", help=f"Download as {kind}", width="content",
            )  # fmt: skip
