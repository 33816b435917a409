"""Answer tokens as text that is read: filled by a loss, underlined where the gate keeps them. HTML for a page, SVG to
export. Texts come from users' files and models: everything is escaped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from PIL import ImageFont

from app.views.gate import Answer, Gated
from app.views.theme import FONT, Look, blend

TOP = 6.0
"""Losses of so many nats or more have the strongest colour; one scale for all samples, so that they compare."""
QUANTITIES = {"reference": "Teacher's loss", "ema": "Student's running loss", "score": "Combined score"}


def values_of(answer: Answer, gated: Gated, quantity: str) -> np.ndarray:
    """The numbers that a quantity of `QUANTITIES` colours by, float [N]."""
    return {"reference": answer.reference, "ema": answer.ema, "score": gated.score}[quantity]


def fill(value: float, look: Look) -> str:
    """The colour of a loss; one never observed has none."""
    if np.isnan(value):
        return look.paper
    return blend(look.low, look.high, min(value, TOP) / TOP)


def number(value: float) -> str:
    """A loss in nats as it is read: two digits, a dash where it was never observed."""
    if np.isnan(value):
        return "not observed"
    return "first (never observed)" if np.isinf(value) else f"{value:.2f} nat"


def shown(token: str) -> str:
    """A token's text with what cannot be seen made visible."""
    text = token.replace("\n", "↵").replace("\t", "⇥").replace("\r", "")
    return text.strip(" ") or "␣" * max(1, len(text))


def tips(answer: Answer, gated: Gated, ranges: Sequence[str] = ()) -> list[str]:
    """What a hover says about each token, line by line."""
    rank = np.empty(len(answer.tokens), dtype=int)
    rank[np.lexsort((answer.tie, -gated.score, ~answer.candidate))] = np.arange(1, len(rank) + 1)
    n = int(answer.candidate.sum())
    lines = []
    for i, token in enumerate(answer.tokens):
        what = "kept" if gated.kept[i] else "elided"
        what += f" · {answer.tags[i]}" if answer.tags else ""
        parts = [shown(token), what if answer.candidate[i] else f"{what} · a marker, always kept"]
        parts += [f"teacher  {number(answer.reference[i])}", f"student  {number(answer.ema[i])}"]
        if answer.candidate[i]:
            parts.append(f"score    {number(gated.score[i])}, rank {rank[i]} of {n}")
        if ranges:
            parts.append(f"kept at λ: {ranges[i]}")
        lines.append("\n".join(parts))
    return lines


def css(look: Look) -> str:
    """Styles of the token strip and of the small things around it."""
    return f"""
.rg-q {{ color: {look.muted}; font-size: 1rem; margin: 0 0 .35rem; overflow-wrap: anywhere; }}
.rg-answer {{ font-size: 1.12rem; line-height: 2.25; color: {look.ink}; overflow-wrap: anywhere; }}
.rg-t {{ position: relative; padding: .2em 0 .12em; white-space: pre-wrap; border-bottom: 3px solid transparent;
  cursor: default; box-shadow: inset 1px 0 {look.paper}; }}
.rg-t.begin {{ padding-left: .16em; border-top-left-radius: 3px; }}
.rg-t.end {{ padding-right: .16em; border-top-right-radius: 3px; margin-right: .3em; }}
.rg-t.kept {{ border-bottom-color: {look.kept}; font-weight: 600; }}
.rg-t:focus-visible {{ outline: 2px solid {look.kept}; outline-offset: 1px; }}
.rg-t:hover::after, .rg-t:focus-visible::after {{ content: attr(data-tip); position: absolute; left: 0;
  top: calc(100% + 8px); z-index: 1000; width: max-content; max-width: 19rem; white-space: pre-wrap;
  padding: .55rem .7rem;
  border-radius: 6px; background: {look.ink}; color: {look.paper}; font: 400 .82rem/1.5 "Source Code Pro", monospace;
  box-shadow: 0 4px 16px rgb(0 0 0 / .28); pointer-events: none; text-align: left; }}
@supports (position-area: bottom) {{
  .rg-t:hover, .rg-t:focus-visible {{ anchor-name: --rg-token; }}
  .rg-t:hover::after, .rg-t:focus-visible::after {{ position: fixed; inset: auto; position-anchor: --rg-token;
    position-area: bottom span-right; position-try-fallbacks: flip-inline, flip-block, flip-inline flip-block;
    margin: 6px 0; }}
}}
.rg-legend {{ display: flex; flex-wrap: wrap; gap: .35rem 1.4rem; align-items: center; color: {look.muted};
  font-size: .86rem; margin-top: .5rem; }}
.rg-legend > span {{ display: inline-flex; align-items: center; gap: .5rem; }}
.rg-ramp {{ width: 120px; height: 10px; border-radius: 3px; border: 1px solid {look.line};
  background: linear-gradient(to right, {look.low}, {look.high}); }}
.rg-sample {{ padding: .1rem .3rem; }}
"""


def strip_html(
    answer: Answer, gated: Gated, look: Look, quantity: str = "reference", ranges: Sequence[str] = ()
) -> str:
    """The question, and the answer's tokens one by one; each can be reached with the Tab key and says its values."""
    values, said = values_of(answer, gated, quantity), tips(answer, gated, ranges)
    spans = []
    for i, token in enumerate(answer.tokens):
        kinds = ["rg-t", "kept" if gated.kept[i] else "elided"]
        if i == 0 or token[:1].isspace():
            kinds.append("begin")
        if i + 1 == len(answer.tokens) or answer.tokens[i + 1][:1].isspace():
            kinds.append("end")
        tip = escape(said[i], quote=True)
        label = escape(", ".join(" ".join(line.split()) for line in said[i].split("\n")), quote=True)
        spans.append(
            f'<span class="{" ".join(kinds)}" style="background:{fill(values[i], look)}" tabindex="0" role="listitem" '
            f'data-tip="{tip}" aria-label="{label}">{escape(shown(token))}</span>'
        )
    question = f'<p class="rg-q">{escape(answer.question)}</p>' if answer.question else ""
    # zero-width spaces let a line break between tokens that are parts of one word
    return f'{question}<div class="rg-answer" role="list">{"&#8203;".join(spans)}</div>'


def legend_html(quantity: str) -> str:
    """What colour and underline mean."""
    return (
        f'<div class="rg-legend"><span>{escape(QUANTITIES[quantity])} &nbsp;0<span class="rg-ramp"></span>'
        f"{TOP:g} nat or more</span>"
        '<span><b class="rg-t kept begin end">kept</b> underlined: goes through the decoder</span>'
        '<span><span class="rg-t begin end">elided</span> skipped in this step</span></div>'
    )


# --- to export ---


@dataclass(frozen=True)
class _Box:
    text: str
    x: float
    y: float
    width: float


def _boxes(tokens: Sequence[str], width: float, size: int) -> tuple[list[_Box], float]:
    """Tokens in lines of at most `width`, and the height of all; widths by Pillow's own font."""
    font = ImageFont.load_default(size)
    x, y, step, boxes = 0.0, 0.0, size * 2.1, []
    for i, token in enumerate(tokens):
        text = shown(token)
        wide = font.getlength(text) * 1.06 + 6
        gap = size * 0.4 if i and token[:1].isspace() else 0.0
        if x + gap + wide > width and x:
            x, y, gap = 0.0, y + step, 0.0
        boxes.append(_Box(text, x + gap, y, wide))
        x += gap + wide
    return boxes, y + step


def strip_svg(answer: Answer, gated: Gated, look: Look, quantity: str = "reference", width: int = 900) -> str:
    """The strip as a standalone SVG picture: fills, underlines, and what they mean."""
    size, left, top = 18, 16, 52 if answer.question else 20
    values = values_of(answer, gated, quantity)
    boxes, height = _boxes(answer.tokens, width - 2 * left, size)
    parts = []
    for box, value, kept in zip(boxes, values, gated.kept, strict=True):
        x, y = left + box.x, top + box.y
        parts.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{box.width:.1f}" height="26" fill="{fill(value, look)}"/>')
        if kept:
            parts.append(f'<rect x="{x:.1f}" y="{y + 26:.1f}" width="{box.width:.1f}" height="3" fill="{look.kept}"/>')
        weight = 600 if kept else 400
        parts.append(
            f'<text x="{x + 3:.1f}" y="{y + 19:.1f}" textLength="{box.width - 6:.1f}" lengthAdjust="spacingAndGlyphs" '
            f'font-size="{size}" font-weight="{weight}" fill="{look.ink}">{escape(box.text)}</text>'
        )
    if answer.question:
        question = answer.question if len(answer.question) < 105 else answer.question[:103] + " …"
        parts.append(f'<text x="{left}" y="30" font-size="15" fill="{look.muted}">{escape(question)}</text>')
    y = top + height + 12
    stops = f'<stop offset="0" stop-color="{look.low}"/><stop offset="1" stop-color="{look.high}"/>'
    said = f"{QUANTITIES[quantity]}, 0 to {TOP:g} nat; underlined: kept"
    parts.append(
        f'<defs><linearGradient id="ramp">{stops}</linearGradient></defs>'
        f'<rect x="{left}" y="{y - 10:.0f}" width="110" height="10" fill="url(#ramp)" stroke="{look.line}"/>'
        f'<text x="{left + 120}" y="{y:.0f}" font-size="13" fill="{look.muted}">{escape(said)}</text>'
    )
    whole = f'width="{width}" height="{y + 16:.0f}" viewBox="0 0 {width} {y + 16:.0f}"'
    body = "".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {whole} font-family="{FONT}">'
        f'<rect width="100%" height="100%" fill="{look.paper}"/>{body}</svg>'
    )
