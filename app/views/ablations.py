"""Ablations: the paper's lambda and teacher capacity, the ratio, and our own, each from the records that there are."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import pandas as pd

from app.views.theme import Layers, Look
from repro import compare
from repro.record import Record
from repro.rows import LABELS

OWN_BACKBONE = "its own backbone"
DODGE = 0.02  # between lines at one value of an axis from 0 to 1
NOT_TRAINING = ("seed", "table", "method", "trace_samples", "evaluate_every", "save_every")
"""Parts of a configuration that name a run, or say how it is watched: they part no settings."""
COLUMNS = ["value", "accuracy", "low", "high", "seeds", "tokens", "setting", "records", "student"]


@dataclass(frozen=True)
class Axis:
    """What is varied: its title, what it says of a record's configuration (None: not part of it), what makes runs."""

    title: str
    about: str
    of: Callable[[Record], Any]
    keys: tuple[str, ...]  # of the configuration, dotted: what the axis varies
    published: str = ""  # table in published.json
    column: str = ""  # the column of that table with the value
    command: str = "make repro-table5"


def _gate(record: Record) -> dict[str, Any]:
    return dict(record.config.get("gate") or {})


def _of_regate(key: str, default: Any = None) -> Callable[[Record], Any]:
    return lambda record: _gate(record).get(key, default) if _gate(record).get("policy") == "regate" else None


def _method(record: Record) -> str | None:
    among = any(compare.in_table(record, table) for table in ("4", "rivals"))
    return LABELS.get(record.method, record.method) if among else None


def _teacher(record: Record) -> str | None:
    return str(record.config.get("teacher") or OWN_BACKBONE) if _gate(record).get("policy") == "regate" else None


AXES = {
    "lambda": Axis(
        "λ, the weight of the teacher", "0: the student's running loss alone; 1: the teacher's loss alone (Table 5).",
        _of_regate("lambda_"), ("gate.lambda_",), "5", "lambda",
    ),
    "teacher": Axis(
        "The teacher's capacity", "The paper's teachers below, above and at the student's own size.",
        _teacher, ("teacher",), "teacher", "teacher",
    ),
    "ratio": Axis(
        "The ratio kept", "p of Eq. 4, in sparse steps. The paper prints no such table.",
        _of_regate("keep_ratio"), ("gate.keep_ratio",), command="make repro-ablations",
    ),
    "active": Axis(
        "Which positions", "The answer positions that a sparse step computes. The paper prints no such table.",
        _of_regate("active_set", "predictors"), ("gate.active_set",), command="make repro-ablations",
    ),
    "method": Axis(
        "Which method", "ReGATE beside other ways to train on less. The paper prints no such table.",
        _method, ("gate", "random_ltd"), command="make repro-rivals",
    ),
}  # fmt: skip


def benchmarks(records: Iterable[Record]) -> list[str]:
    """Names of the benchmarks that any run was scored on at its end."""
    return sorted({b.name for record in records for b in record.benchmarks if b.step == record.steps})


def measured(records: Sequence[Record], axis: Axis, benchmark: str) -> pd.DataFrame:
    """One line a value of the axis: accuracy in percent with its interval over questions, seeds, tokens, records.

    Runs stand on one line only where everything but the axis and the seed is equal (`setting` tells lines apart).
    Settings with a single value are left out where the student has others; else the one with most seeds stays.
    """
    found: dict[tuple[str, str, str, str, Any], dict[int, Record]] = {}
    for record in sorted(records, key=lambda record: record.finished):
        value = axis.of(record)
        if value is not None:
            place = (compare.student_name(record.student), record.scale, record.origin)
            found.setdefault((*place, _rest(record, axis), value), {})[record.seed] = record
    settings = list(dict.fromkeys(key[3] for key in found))
    lines = []
    for (student, scale, origin, rest, value), runs in found.items():
        readings = compare.at_end(runs)
        score = compare.accuracy(readings, benchmark, student, scale, origin, value)
        if score is None:
            continue
        around = score.questions
        lines.append({
            "value": value, "accuracy": score.percent, "low": around.low if around else None,
            "high": around.high if around else None, "seeds": len(runs),
            "tokens": compare.mean(readings, "tokens.paper"), "setting": settings.index(rest) + 1,
            "records": ", ".join(sorted(record.name for record in runs.values())),
            "student": f"{student} · {scale} · {origin}",
        })  # fmt: skip
    frame = _varied(pd.DataFrame(lines, columns=COLUMNS))
    known = list(LABELS.values())
    frame["order"] = frame.value if _numbers(frame) else frame.value.map(lambda v: known.index(v) if v in known else 99)
    return frame.sort_values(["student", "setting", "order"], kind="stable", ignore_index=True).drop(columns="order")


def _varied(frame: pd.DataFrame) -> pd.DataFrame:
    """For each student the settings that vary the axis, or one of the others."""
    chosen = []
    for _, mine in frame.groupby("student", sort=False):
        counts = mine.groupby("setting", sort=False).value.nunique()
        most = mine.setting.iloc[int(mine.seeds.to_numpy().argmax())]
        settings = counts.index[counts > 1] if (counts > 1).any() else [most]
        chosen.append(mine[mine.setting.isin(settings)])
    return pd.concat(chosen, ignore_index=True) if chosen else frame


def _rest(record: Record, axis: Axis) -> str:
    """The configuration without what the axis varies, and without what names a run."""
    config = json.loads(json.dumps(record.config))
    for key in (*NOT_TRAINING, *axis.keys):
        place, *last = key.split(".")
        if last and isinstance(config.get(place), dict):
            config[place].pop(last[0], None)
        elif not last:
            config.pop(place, None)
    return json.dumps(config, sort_keys=True)


def published(paper: dict[str, Any], axis: Axis) -> pd.DataFrame:
    """What the paper prints of an axis: value, accuracy in percent, and what the accuracy is of."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for cell in paper["cells"] if axis.published else []:
        if cell["table"] == axis.published:
            row = rows.setdefault((cell["version"], cell["row"]), {"version": cell["version"]})
            if cell["column"] == axis.column:
                row["value"] = cell["raw"] if cell["value"] is None else cell["value"]
            elif cell["unit"] == "%":
                row["accuracy"], row["column"] = cell["value"], cell["column"]
    frame = pd.DataFrame([row for row in rows.values() if {"value", "accuracy"} <= set(row)],
                         columns=["value", "accuracy", "version", "column"])  # fmt: skip
    named = {"MVBench": "MVBench (first version)", "accuracy_average": "average of benchmarks (second version)"}
    frame["of"] = frame.column.map(lambda column: named.get(column, column))
    frame["order"] = frame.value.map(_size)
    return frame.sort_values(["of", "order"], ignore_index=True).drop(columns="order")


def _size(value: Any) -> float:
    """Numbers by themselves, names by the last number in them: Qwen2-7B before Qwen2-57B."""
    found = re.findall(r"\d+(?:\.\d+)?", str(value))
    return float(found[-1]) if found else 0.0


def several_settings(data: pd.DataFrame) -> pd.Series:
    """For each line of `measured` whether its student has runs that differ in more than the axis."""
    return data.groupby("student").setting.transform("nunique") > 1


def measured_chart(data: pd.DataFrame, axis: Axis, look: Look) -> Layers:
    """Accuracy against the axis, with intervals over questions."""
    several = several_settings(data)
    data = data.assign(line=data.student + (" · setting " + data.setting.astype(str)).where(several, ""))
    data = _dodged(data)
    x = _x(data, axis)
    y = alt.Y("accuracy:Q", title="accuracy (%)", scale=alt.Scale(zero=False, padding=14), axis=alt.Axis(tickCount=5))
    colours = [look.kept, look.methods["random"], look.methods["loss_only"], look.methods["stock"]]
    lines = list(dict.fromkeys(data.line))
    scale = alt.Scale(domain=lines, range=[colours[i % 4] for i in range(len(lines))])
    colour = alt.Color("line:N", scale=scale, legend=alt.Legend(columns=1, symbolOpacity=1))
    base = alt.Chart(data)
    if not _numbers(data):
        base = base.encode(xOffset=alt.XOffset("line:N", scale=alt.Scale(domain=lines)))
    layers = [
        base.mark_rule(strokeWidth=1.6).encode(x=x, y=alt.Y("low:Q", title="accuracy (%)"), y2="high:Q", color=colour),
        base.mark_point(filled=True, size=110, opacity=1).encode(
            x=x, y=y, color=colour, shape=alt.Shape("line:N", scale=alt.Scale(domain=lines)),
            tooltip=[alt.Tooltip("value", title=axis.title), alt.Tooltip("accuracy:Q", format=".1f"),
                     alt.Tooltip("low:Q", format=".1f"), alt.Tooltip("high:Q", format=".1f"), "seeds:Q",
                     alt.Tooltip("tokens:Q", format=",.0f"), alt.Tooltip("records:N")],
        ),
    ]  # fmt: skip
    if _numbers(data) and len(data) > 1:
        layers.insert(0, base.mark_line(strokeWidth=1.5, strokeDash=[4, 3]).encode(x=x, y=y, color=colour))
    return alt.layer(*layers).properties(height=280, width="container")


def published_chart(data: pd.DataFrame, axis: Axis, look: Look) -> Layers:
    """What the paper prints, one line a version."""
    names = list(dict.fromkeys(data.of))
    colour = alt.Color("of:N", scale=alt.Scale(domain=names, range=[look.methods["stock"], look.ink]))
    data = data.assign(at=data.value)
    base = alt.Chart(data).encode(
        x=_x(data, axis),
        y=alt.Y("accuracy:Q", title="accuracy (%)", scale=alt.Scale(zero=False, padding=14),
                axis=alt.Axis(tickCount=5)),
        color=colour,
        tooltip=[alt.Tooltip("value", title=axis.title), alt.Tooltip("accuracy:Q", format=".1f"), "of:N"],
    )  # fmt: skip
    points = base.mark_point(filled=True, size=110, opacity=1).encode(
        shape=alt.Shape("of:N", scale=alt.Scale(domain=names))
    )
    lines = base.mark_line(strokeWidth=1.5, strokeDash=[4, 3])
    return alt.layer(lines, points).properties(height=280, width="container")


def _numbers(data: pd.DataFrame) -> bool:
    return bool(data.value.map(lambda value: isinstance(value, int | float)).all())


def _dodged(data: pd.DataFrame) -> pd.DataFrame:
    """Lines beside each other where they stand at the same number: column `at`."""
    if not _numbers(data):
        return data.assign(at=data.value)
    order = {line: i for i, line in enumerate(dict.fromkeys(data.line))}
    return data.assign(at=data.value + (data.line.map(order) - (len(order) - 1) / 2) * DODGE)


def _x(data: pd.DataFrame, axis: Axis) -> alt.X:
    if _numbers(data):
        scale = alt.Scale(domain=[0, 1], padding=16)
        return alt.X("at:Q", title=axis.title, scale=scale, axis=alt.Axis(tickCount=5, grid=False))
    # a label's part in brackets goes below it
    at = "indexof(datum.label, ' (')"
    lines = f"{at} < 0 ? datum.label : [slice(datum.label, 0, {at}), slice(datum.label, {at} + 1)]"
    shown = alt.Axis(labelAngle=0, labelLimit=180, grid=False, labelExpr=lines)
    return alt.X("at:N", title=None, sort=list(dict.fromkeys(data["at"])), axis=shown, scale=alt.Scale(padding=0.5))
