"""What all pages share on the screen: heads, messages, and the row of buttons that exports a figure and its data."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import streamlit as st
from PIL import Image

from app.artefacts import Problem
from app.views import theme
from app.views.theme import LIGHT, Look

if TYPE_CHECKING:
    import pandas as pd

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
    st.info(f"{what} `{command}` {makes}.", icon=":material/terminal:")


def problem(error: Exception) -> None:
    """Something that cannot be shown, in words; the page goes on."""
    text = re.sub(r"([*$<\[])", r"\\\1", str(error))  # it names files and texts of users: no Markdown in it
    st.error(text, icon=":material/error:")


def halves(name: str, widths: tuple[float, float] = (1, 1)) -> list[Any]:
    """Two columns side by side; one over the other on narrow windows (`views/style.py`)."""
    with st.container(key=f"halves-{name}"):
        return list(st.columns(widths, gap="large"))


def clip(path: Path | None) -> None:
    """The frames of a sample (`repro.attention_file.write_strip`), gaps between them; nothing where there are none."""
    if path is None or not path.is_file():
        return
    try:
        st.image(_apart(str(path), path.stat().st_mtime_ns, look().panel), width=760)
    except OSError as error:
        problem(Problem(f"{path}: no frames can be read from it ({error}); `make artefacts` writes it again"))


@st.cache_data(max_entries=64, show_spinner=False)
def _apart(path: str, stamp: int, colour: str) -> bytes:
    with Image.open(path) as image:
        side, count = image.height, max(1, image.width // image.height)
        gap = max(1, side // 24)
        wide = Image.new("RGB", (count * (side + gap) - gap, side), colour)
        for i in range(count):
            wide.paste(image.crop((i * side, 0, (i + 1) * side, side)), (i * (side + gap), 0))
    out = io.BytesIO()
    wide.resize((2 * wide.width, 2 * side), Image.Resampling.NEAREST).save(out, "WEBP", lossless=True)
    return out.getvalue()


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
