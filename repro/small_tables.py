"""What the small scale shows beside the paper's tables: easy-VQA, and what its real teacher finds hard. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from repro import compare, render
from repro.compare import Reading, Readings
from repro.record import Record, RecordError
from repro.render import NOTE, Cell, Column, Layout, Part, shown
from repro.rows import Place, provenance
from repro.stats import with_half_width

EVIDENCE = "evidence/smollm2.json"
"""Below ``runs`` or ``results``."""
SENTENCES = (
    (
        "What is the bartender doing in the video?",
        "The bartender is mixing a drink behind the counter in a bar setting.",
    ),
    ("What is the athlete wearing in the video?", "A white tank top with a red stripe"),
)
"""Of the paper's pictures of token losses (second version, Figures 1 and 2)."""
EASY = "easyvqa"
ROWS = {
    ("easyvqa", "easyvqa-zeroshot"): "before fine-tuning",
    ("4", "dense"): "fine-tuned on the world, dense",
    ("4", "regate"): "fine-tuned on the world, ReGATE",
    ("easyvqa", "easyvqa-dense"): "fine-tuned on easy-VQA, dense",
    ("easyvqa", "easyvqa-regate"): "fine-tuned on easy-VQA, ReGATE",
}
"""(table of its records, method) -> row."""
AGAINST = {("4", "regate"): ("4", "dense"), ("easyvqa", "easyvqa-regate"): ("easyvqa", "easyvqa-dense")}
KINDS = ("yes/no", "shape", "colour")

Evidence = Mapping[str, Any]


def load(path: Path) -> tuple[Evidence | None, list[RecordError]]:
    """The evidence file, or None where there is none; the problem of one that cannot be read."""
    if not path.exists():
        return None, []
    try:
        value = json.loads(path.read_text())
        value["reference"]["tags"], value["sentences"], value["student_hash"], value["looks"]
    except (ValueError, KeyError, TypeError) as error:
        todo = "delete it and run `make repro-table4 SCALE=small` again"
        return None, [RecordError("evidence", str(error), "what the small scale writes", todo, path)]
    return value, []


def files(records: Sequence[Record], evidence: Evidence | None) -> dict[str, str]:
    """File name -> contents, of what there is."""
    found = {}
    small = [r for r in records if r.scale == "small"]
    if any(compare.in_table(r, EASY) for r in small):
        table = render.frame(easy_cells(small))
        for suffix, form in (("md", render.to_markdown), ("tex", render.to_latex)):
            found[f"easy_vqa.{suffix}"] = form(table, LAYOUT)
        found["easy_vqa.csv"] = render.to_csv(table)
    if evidence:
        found["teacher_small.md"] = teacher_page(evidence)
    return found


# --- easy-VQA ---


def easy_cells(records: Sequence[Record]) -> list[Cell]:
    """One row a model, mean over its seeds; differences in pairs, over seeds or over questions."""
    cells: list[Cell] = []
    for group in compare.groups(records):
        found: dict[tuple[str, str], Readings] = {}
        for (table, method), label in ROWS.items():
            runs = {s: r for s, r in group.methods.get(method, {}).items() if compare.in_table(r, table)}
            readings = {s: Reading(r, r.steps) for s, r in sorted(runs.items())}
            score = compare.accuracy(readings, EASY, group.student, group.origin, method)
            if score is None:
                continue
            found[table, method] = readings
            place = Place(group, method, EASY, label)
            over = {"low": score.questions.low, "high": score.questions.high} if score.questions else {}
            cells.append(place.cell("accuracy", score.percent, unit="%", seeds=len(readings), over="questions", **over))
            cells.append(place.cell("questions", score.n, unit="questions"))
            if score.chance is not None:
                cells.append(place.cell("chance", score.chance, unit="%"))
            for kind in KINDS:
                known = [r.benchmark(EASY) for r in readings.values()]
                shares = [b.tasks[kind]["correct"] / b.tasks[kind]["n"] for b in known if b and kind in b.tasks]
                if shares:
                    cells.append(place.cell(f"kind.{kind}", 100 * float(np.mean(shares)), unit="%"))
            tokens = compare.mean(readings, "tokens.paper")
            if tokens is not None:
                cells.append(place.cell("tokens.paper", tokens))
            other = found.get(AGAINST.get((table, method), ("", "")))
            gap = compare.difference(
                score, compare.accuracy(other, EASY, group.student, group.origin, "base") if other else None, label
            )
            if gap:
                cells.append(place.cell("difference", gap.points, unit="points", text=gap.words, over=gap.over))
        if found:
            cells.append(Place(group, "", EASY).cell(NOTE, text=provenance(group)))
    return [*cells, *(Cell("", "", "", NOTE, text=note) for note in _NOTES)]


_NOTES = (
    "easy-VQA (Victor Zhou, MIT) is not our data: 64-pixel pictures of one shape. A kind's answers are the options, "
    "put into a sentence and ranked by likelihood; accuracy is the mean of the three kinds, ± half of the 95 % "
    "interval over questions",
    "fine-tuned on the world: these models never saw a question of easy-VQA; fine-tuned on easy-VQA: on its own "
    "training split, answers in a sentence, because a one-word answer leaves a gate nothing to choose",
)


def _accuracy(cells: render.Cells) -> str:
    cell = cells.get("accuracy")
    if cell is None or cell.value is None:
        return render.MISSING
    known = cell.low is not None and cell.high is not None
    return with_half_width(cell.value, (cell.high - cell.low) / 2 if known else None)  # type: ignore[operator]


def _gap(cells: render.Cells) -> str:
    return cells["difference"].text if "difference" in cells else render.MISSING


def _whole(value: float) -> str:
    return f"{value:.1f}"


LAYOUT = Layout(
    "easy-VQA: a data set that is not ours",
    "Generated by `python -m repro.tables` from records: edit those, not this file.",
    (
        Part("", (
            render.ROW,
            render.ORIGIN,
            Column("seeds", lambda cells: str(cells["accuracy"].seeds)),
            Column("accuracy %", _accuracy),
            Column("chance %", shown("chance", _whole)),
            *(Column(f"{kind} %", shown(f"kind.{kind}", _whole)) for kind in KINDS),
            Column("supervised tokens", shown("tokens.paper", render.tokens)),
            Column("against dense", _gap),
        )),
    ),
)  # fmt: skip


# --- the teacher ---


def teacher_page(evidence: Evidence) -> str:
    """Markdown: reference losses by tag, what tells visual tokens apart, and the paper's sentences token by token."""
    found = evidence["reference"]
    rows = [
        [tag, f"{one['targets']}", f"{one['mean']:.2f}", " / ".join(f"{q:.2f}" for q in one["quartiles"]),
         f"{100 * one['hard']:.0f}"]
        for tag, one in found["tags"].items()
    ]  # fmt: skip
    aucs = ", ".join(f"against {name} {value:.2f}" for name, value in found["auc"].items() if value is not None)
    correlation = found["correlation"]
    blocks = [
        "# What a real teacher finds hard: SmolLM2-135M on text alone",
        f"Generated by `python -m repro.tables` from `{EVIDENCE}`: edit that, not this file.",
        f"Reference losses (nats) of the {evidence['rows']} training rows of the small scale, before any fine-tuning.",
        render.markdown_table(["targets", "number", "mean", "quartiles", "above 0.5 nat %"], rows),
        f"How well the reference loss puts visual targets above others (AUC): {aucs}."
        + (f" Rank correlation with being visual: {correlation:.2f}." if correlation is not None else ""),
        "## The sentences of the paper's pictures",
        *(_sentence(one) for one in evidence["sentences"]),
        *_looks(evidence["looks"]),
        f"Made at commit {(evidence['commit'] or 'no commit')[:10]}{' (dirty)' if evidence['dirty'] else ''}.",
    ]
    return "\n\n".join(blocks) + "\n"


def _looks(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """What fine-tuned students make of the right clip and of another one; nothing where none has been trained."""
    if not found:
        return []
    rows = [
        [one["run"], *(f"{100 * one[clip]['accuracy']:.1f} ({one[clip]['nll']:.2f})" for clip in ("own", "other"))]
        for one in found
    ]
    return [
        "## Do the fine-tuned students look?",
        "Accuracy % (and loss in nats) on visual targets of validation, with the clip that a question is about, and "
        "with the clip of another row:",
        render.markdown_table(["run", "its own clip", "another clip"], rows),
    ]


def _sentence(one: Mapping[str, Any]) -> str:
    """Each token with its loss, bold where a ratio of 0.5 by the reference loss alone keeps it."""
    losses = np.array(one["losses"])
    kept = set(np.argsort(-losses, kind="stable")[: int(np.ceil(len(losses) / 2))].tolist())
    told = [
        f"**{token.strip()}** {loss:.1f}" if i in kept else f"{token.strip()} {loss:.1f}"
        for i, (token, loss) in enumerate(zip(one["tokens"], losses, strict=True))
    ]
    return f"*{one['question']}*\n\n" + ", ".join(told)
