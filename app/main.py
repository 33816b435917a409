"""The app: `streamlit run app/main.py`. Six pages over records, committed ones and your own.

Nothing is asked of any other machine. State lives in the URL: copy it, and another window shows the same.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # `streamlit run` puts this folder first, not the repository's root
    sys.path.insert(0, str(ROOT))

import streamlit as st  # noqa: E402

from app import data, ui  # noqa: E402
from app.views import style  # noqa: E402

PAGES = {
    "losses": ("Token losses", ":material/format_ink_highlighter:"),
    "gating": ("Gating over training", ":material/timeline:"),
    "attention": ("Attention maps", ":material/visibility:"),
    "efficiency": ("Efficiency", ":material/speed:"),
    "ablations": ("Ablations", ":material/tune:"),
    "tables": ("Tables", ":material/table:"),
}


def main() -> None:
    """The frame around every page: look, navigation, and what could not be read."""
    st.set_page_config(page_title="ReGATE", page_icon=str(ROOT / "app" / "icon.png"), layout="wide")
    st.html(f"<style>{style.css(ui.look())}</style>")
    st.logo(str(ROOT / "app" / "icon.png"), size="large")
    pages = [
        st.Page(ROOT / "app" / "screens" / f"{name}.py", title=title, icon=icon, url_path=name, default=not i)
        for i, (name, (title, icon)) in enumerate(PAGES.items())
    ]
    page = st.navigation(pages, position="top")
    _, problems = data.records()
    if problems:
        files = "One record cannot be read" if len(problems) == 1 else f"{len(problems)} records cannot be read"
        with st.expander(f"{files}; the others are shown", icon=":material/warning:"):
            for problem in problems:
                ui.problem(problem)
    page.run()


main()
