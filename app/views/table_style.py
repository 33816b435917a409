"""Styles of the tables, apart from what builds them: the first page must not wait for scipy."""

from app.views.theme import Look


def css(look: Look) -> str:
    """Styles of the tables."""
    return f"""
.rg-scroll {{ overflow-x: auto; border: 1px solid {look.line}; border-radius: 8px; }}
.rg-table {{ border-collapse: collapse; width: 100%; font-size: .86rem; font-variant-numeric: tabular-nums;
  color: {look.ink}; }}
.rg-table th, .rg-table td {{ padding: .42rem .55rem; text-align: right; white-space: nowrap; border: 0;
  border-bottom: 1px solid {look.line}; }}
.rg-table tr > :first-child {{ position: sticky; left: 0; background: {look.paper}; }}
.rg-table thead tr > :first-child {{ background: {look.panel}; }}
.rg-table.prose th, .rg-table.prose td {{ text-align: left; }}
.rg-table.prose td:nth-child(n+3), .rg-table.facts td {{ white-space: normal; }}
.rg-table tr > :first-child, .rg-table th:nth-child(2), .rg-table td:nth-child(2) {{ text-align: left; }}
.rg-table thead th {{ color: {look.muted}; font-weight: 500; background: {look.panel}; }}
.rg-table tbody th {{ font-weight: 400; }}
.rg-table td:nth-child(2) {{ color: {look.muted}; }}
.rg-table tr.group th {{ font-weight: 600; padding-top: .8rem; background: {look.paper}; }}
.rg-table tr.measured > :first-child {{ box-shadow: inset 3px 0 {look.kept}; font-weight: 600; }}
.rg-table tbody tr:last-child > * {{ border-bottom: 0; }}
.rg-table a {{ color: {look.kept}; text-decoration: underline; text-decoration-thickness: 1px;
  text-underline-offset: 3px; }}
.rg-table a:focus-visible {{ outline: 2px solid {look.kept}; outline-offset: 2px; border-radius: 2px; }}
"""
