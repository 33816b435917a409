"""The page's own styles: a calm frame, and the token strips."""

from app.views import table_style, tokens
from app.views.theme import Look


def css(look: Look) -> str:
    """CSS of the whole app in a look."""
    return f"""
.stMainBlockContainer {{ max-width: 1240px; padding-top: 4.6rem; padding-bottom: 4rem; }}
.stMainBlockContainer h2 {{ padding-bottom: .1rem; letter-spacing: -.01em; }}
[data-testid="stMetricLabel"] p {{ color: {look.muted}; font-size: .84rem; }}
.rg-card {{ background: {look.panel}; border: 1px solid {look.line}; border-radius: 8px; padding: 1rem 1.2rem; }}
.rg-note {{ color: {look.muted}; font-size: .88rem; line-height: 1.5; margin: .3rem 0 0; }}
@media (max-width: 1000px) {{
  [class*="st-key-halves-"] > [data-testid="stLayoutWrapper"] > [data-testid="stHorizontalBlock"],
  [class*="st-key-halves-"] > [data-testid="stHorizontalBlock"] {{ flex-wrap: wrap; }}
  [class*="st-key-halves-"] [data-testid="stColumn"] {{ min-width: 100%; }}
  [class*="st-key-halves-"] [data-testid="stColumn"] [data-testid="stColumn"] {{ min-width: 0; }}
}}
{tokens.css(look)}
{table_style.css(look)}
"""
