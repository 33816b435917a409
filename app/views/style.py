"""The page's own styles: a calm frame, token strips, rows of frames, tables."""

from app.views import table_style, tokens
from app.views.theme import Look


def css(look: Look) -> str:
    """CSS of the whole app in a look."""
    return f"""
.stMainBlockContainer {{ max-width: 1240px; padding-top: 4.6rem; padding-bottom: 4rem; }}
.stMainBlockContainer h2 {{ padding-bottom: .1rem; letter-spacing: -.01em; }}
[data-testid="stMetricLabel"] p {{ color: {look.muted}; font-size: .84rem; }}
[data-testid="stCaptionContainer"], [data-testid="stCaptionContainer"] p {{ color: {look.muted}; opacity: 1; }}
[data-testid^="stBaseButton-primary"] {{ color: {look.paper}; }}
.rg-note {{ color: {look.muted}; font-size: .88rem; line-height: 1.5; margin: .3rem 0 0; }}
@media (max-width: 1000px) {{
  [class*="st-key-halves-"] > [data-testid="stLayoutWrapper"] > [data-testid="stHorizontalBlock"],
  [class*="st-key-halves-"] > [data-testid="stHorizontalBlock"] {{ flex-wrap: wrap; row-gap: 1rem; }}
  [class*="st-key-halves-"] [data-testid="stColumn"] {{ min-width: 100%; }}
  [class*="st-key-halves-"] [data-testid="stColumn"] [data-testid="stColumn"] {{ min-width: 0; }}
}}
{tokens.css(look)}
{rows_css(look)}
{table_style.css(look)}
"""


def rows_css(look: Look) -> str:
    """Styles of rows of frames (`views/frames.py`) and of their colour bars."""
    return f"""
.rg-rows {{ margin: 0; color: {look.ink}; }}
.rg-row-head {{ display: flex; justify-content: space-between; align-items: baseline; gap: 1rem; margin: .8rem 0 .3rem;
  font-size: .95rem; }}
.rg-row-head:first-child {{ margin-top: 0; }}
.rg-row-head b {{ font-weight: 600; }}
.rg-row-head span, .rg-scale {{ color: {look.muted}; font-size: .86rem; }}
.rg-rows img {{ display: block; width: 100%; height: auto; }}
.rg-scales {{ display: flex; flex-wrap: wrap; justify-content: space-between; gap: .9rem 3rem; margin-top: 1rem; }}
.rg-scale {{ flex: 0 1 25rem; display: grid; grid-template-columns: 1fr auto 1fr; font-variant-numeric: tabular-nums; }}
.rg-scale i {{ grid-column: 1 / -1; height: 10px; border-radius: 3px; border: 1px solid {look.line};
  margin-bottom: .25rem; }}
.rg-scale :last-child {{ text-align: right; }}
"""
