"""Artefacts of runs: texts of traces, attention, grounding; read back, repeated by hand, kept, and refused."""

import dataclasses
import hashlib
import json
import shutil
from itertools import pairwise

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForImageTextToText

from eval import world
from regate.attention import attention_over_frames, predictors
from repro import attention_file, recipes
from repro.artefacts import main, targets_of
from repro.attention_file import ArtefactError, Clip, ClipAttention, StoredAttention, names_objects, read_strip
from repro.grounding import clip_scores, compare
from repro.keep import keep
from repro.micro_data import MicroCollator, frames_of
from repro.record import RecordError, read, write
from repro.run import run
from tests.repro.test_run import SMALL, material, regate  # noqa: F401 a fixture

CLIPS = 3


@pytest.fixture(scope="module")
def runs(material, tmp_path_factory):  # noqa: F811
    """A baseline and a traced ReGATE run of a nano student, with their artefacts."""
    folder = tmp_path_factory.mktemp("artefacts") / "runs"
    mine = dataclasses.replace(material, cache=folder / "cache")
    stock = run(recipes.stock(seed=0, **SMALL), mine, folder)
    run(dataclasses.replace(regate(seed=0), trace_samples=4), mine, folder, baseline=stock)
    assert main(folder, CLIPS, material.prepared) == 0
    return folder


NAMES = ("table4-internvl-stock-s0", "table4-internvl-regate-s0")


def test_texts_of_a_trace(runs, material):  # noqa: F811
    folder = runs / NAMES[1]
    samples = {s["sample_id"]: s for s in json.loads((folder / "samples.json").read_text())}
    trace = pq.read_table(folder / "trace.parquet").to_pylist()
    assert {row["sample_id"] for row in trace} <= set(samples)
    assert len(samples) == 4
    rows = material.encoded("train")
    for sample_id, sample in samples.items():
        row = rows[sample_id]
        assert "".join(sample["tokens"]) == row["answer"] + material.processor.tokenizer.eos_token
        assert sample["question"] == row["question"]
        assert sample["tags"][-1] == "special"
        assert len(sample["tags"]) == len(sample["tokens"])
        np.testing.assert_array_equal(read_strip(folder / sample["frames"], 8), frames_of(row))
    for row in trace:
        assert len(row["kept"]) == len(samples[row["sample_id"]]["tokens"])


@pytest.mark.parametrize("name", NAMES)
def test_stored_attention_is_that_of_the_final_model(runs, material, name):  # noqa: F811
    stored = attention_file.read(runs / name)
    rows = {row["id"]: row for row in material.encoded("test")}
    model = AutoModelForImageTextToText.from_pretrained(runs / name / "final")
    assert len(stored.clips) == CLIPS
    assert stored.source["model_sha256"] == read(runs / "records" / f"{name}.json").artefacts["model"]["sha256"]
    for one in stored.clips:
        row = rows[one.clip.id]
        batch = MicroCollator(material.processor)([row])
        [maps] = attention_over_frames(model, batch, predictors(batch["labels"]))
        top = maps.weights.max((-3, -2, -1), keepdims=True)
        assert (np.abs(one.weights - maps.weights) <= top / 510 + 1e-6).all()
        np.testing.assert_allclose(one.rest, maps.rest, atol=1e-6)
        assert (stored.frames, stored.extent) == (maps.grid.frames, maps.grid.extent)
        found = targets_of(material.targets(row), row["tags"], material.processor.tokenizer)
        assert found == (one.clip.tokens, one.clip.tags)
        _, scene, _ = world.example("test", int(one.clip.id.rsplit("-", 1)[1]), material.data.seed)
        np.testing.assert_array_equal(one.clip.box_array(), world.boxes(scene))
        np.testing.assert_array_equal(read_strip(runs / name / one.clip.frames, 8), world.render(scene))
    assert any(owner is not None for one in stored.clips for owner in one.clip.named)


def test_the_grounding_record_repeats_by_hand(runs, material):  # noqa: F811
    record = json.loads((runs / NAMES[1] / "grounding.json").read_text())
    entry = next(e for e in record["scores"] if (e["measure"], e["sinks"], e["layer"]) == ("mass", "kept", None))
    values = {"standard": [], "regate": []}
    even = []
    for side, name in zip(values, NAMES, strict=True):
        model = AutoModelForImageTextToText.from_pretrained(runs / name / "final")
        for index, row in enumerate(material.encoded("test")):
            _, scene, _ = world.example("test", index, 0)
            tokens, tags = targets_of(material.targets(row), row["tags"], material.processor.tokenizer)
            owners = names_objects(tokens, tags, [(t.colour, t.noun) for t in scene.objects])
            if len(tokens) < 8 or not any(o is not None for o in owners):
                continue
            batch = MicroCollator(material.processor)([row])
            [maps] = attention_over_frames(model, batch, predictors(batch["labels"]))
            weights = maps.weights.mean((0, 1))  # [Q, 8, 2, 2]
            inside, area = [], []
            for q, owner in enumerate(owners):
                if owner is None:
                    continue
                total, boxed = 0.0, 0.0
                for f, box in enumerate(world.boxes(scene)[:, owner]):
                    if np.isnan(box[0]):
                        continue
                    paint = np.zeros((64, 64))
                    x0, y0, x1, y1 = box.astype(int)
                    paint[y0:y1, x0:x1] = 1
                    boxed += paint.sum()
                    for r in range(2):
                        for c in range(2):
                            share = paint[r * 32 : r * 32 + 32, c * 32 : c * 32 + 32].mean()
                            total += weights[q, f, r, c] * share
                inside.append(total / weights[q].sum())
                area.append(boxed / (8 * 64 * 64))
            values[side].append(np.mean(inside))
            even.append(np.mean(area))
    for side, found in values.items():
        assert entry[side]["estimate"] == pytest.approx(np.mean(found), rel=1e-4)
        assert entry[side]["low"] <= entry[side]["estimate"] <= entry[side]["high"]
    assert entry["difference"]["estimate"] == pytest.approx(np.mean(values["regate"]) - np.mean(values["standard"]))
    assert entry["even"] == pytest.approx(np.mean(even))
    assert entry["clips"] == record["clips"] == len(values["regate"])
    assert record["standard"]["run"] == NAMES[0]
    assert {e["layer"] for e in record["scores"]} == {None, 0}


def test_artefacts_are_kept_with_their_record(runs, tmp_path):
    own = tmp_path / "runs"
    shutil.copytree(runs, own, ignore=shutil.ignore_patterns("cache", "final", "snapshots"))
    dirty(own, True)
    with pytest.raises(RecordError, match="clean tree"):
        keep(own, tmp_path / "results")
    dirty(own, False)
    written = {str(path.relative_to(tmp_path / "results" / "artefacts")) for path in keep(own, tmp_path / "results")[1:]
               if "artefacts" in path.parts}  # fmt: skip
    for name in NAMES:
        assert {f"{name}/{file}" for file in ("attention.json", "attention.npz", "artefacts.json")} <= written
    assert {f"{NAMES[1]}/{file}" for file in ("samples.json", "grounding.json", "trace.parquet")} <= written
    assert attention_file.read(tmp_path / "results" / "artefacts" / NAMES[0]).clips
    changed = own / NAMES[0] / "attention.npz"
    changed.write_bytes(changed.read_bytes()[:-1])
    with pytest.raises(RecordError, match=r"artefacts\.attention"):
        keep(own, tmp_path / "results")
    manifest = own / NAMES[0] / "artefacts.json"
    about = json.loads(manifest.read_text())
    about["record"]["config_hash"] = "0" * 64
    manifest.write_text(json.dumps(about))
    with pytest.raises(RecordError, match="made of another run"):
        keep(own, tmp_path / "results")
    manifest.write_text("{")
    with pytest.raises(RecordError, match="a list of files"):
        keep(own, tmp_path / "results")


def dirty(runs, value):
    """Records and manifests as a tree that is dirty, or clean, would have made them."""
    for name in NAMES:
        record = read(runs / "records" / f"{name}.json")
        write(dataclasses.replace(record, commit="0" * 40, dirty=value), runs / "records")
        path = runs / name / "artefacts.json"
        about = json.loads(path.read_text())
        about["made"] |= {"commit": "0" * 40, "dirty": value}
        path.write_text(json.dumps(about))


def test_what_does_not_fit_is_named(runs, material, tmp_path, capsys):  # noqa: F811
    assert main(tmp_path, CLIPS, material.prepared) == 1
    assert "make repro-table4" in capsys.readouterr().out
    own = tmp_path / "runs"
    shutil.copytree(runs, own)
    weights = own / NAMES[0] / "final" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\0")
    assert main(own, CLIPS, material.prepared) == 1
    assert "run the recipe again" in capsys.readouterr().out
    weights.unlink()
    assert main(own, CLIPS, material.prepared) == 1
    assert "no file" in capsys.readouterr().out
    other = tmp_path / "students"
    shutil.copytree(material.prepared, other)
    path = other / "internvl" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\0")
    assert main(own, CLIPS, other) == 1
    assert "the prepared student is" in capsys.readouterr().out


# --- which object a word names ---


def test_words_that_name_one_object():
    tokens = ["a", " red", " st", "ar", " and", " a", " blue", " ball", ".", " red", " things", " redd", "ish"]
    tags = ["template"] + ["visual"] * 3 + ["template"] * 2 + ["visual"] * 2 + ["template"] + ["visual"] * 4
    things = [("red", "star"), ("blue", "ball")]
    assert names_objects(tokens, tags, things) == [
        None, 0, 0, None, None, None, 1, 1, None, 0, None, None, None,
    ]  # fmt: skip
    assert names_objects(["red"], ["template"], things) == [None]
    assert names_objects(["red"], ["visual"], [("red", "star"), ("red", "ball")]) == [None]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 5000), st.data())
def test_named_words_do_not_depend_on_how_they_are_cut(index, data):
    _, scene, turn = world.example("test", index, 0)
    things = [(t.colour, t.noun) for t in scene.objects]
    cuts = sorted(set(data.draw(st.lists(st.integers(1, max(1, len(turn.answer) - 1)), max_size=20))))
    spaces = [i for i, c in enumerate(turn.answer) if c == " " and i]
    marks = [i for i, c in enumerate(turn.answer) if c in ".,?;:\n()" for i in (i, i + 1)]
    tag_of = {i: tag for a, b, tag in turn.spans for i in range(a, b)}

    def found(places):
        edges = sorted({0, *places, len(turn.answer)})
        pieces = [turn.answer[a:b] for a, b in pairwise(edges)]
        firsts = [next((i for i in range(a, b) if not turn.answer[i].isspace()), a)
                  for a, b in pairwise(edges)]  # fmt: skip
        named = names_objects(pieces, [tag_of.get(i, "template") for i in firsts], things)
        return [(first, owner) for first, owner in zip(firsts, named, strict=True) if owner is not None]

    whole = found([p for p in spaces + marks if 0 < p < len(turn.answer)])
    assert found([p for p in spaces + marks + cuts if 0 < p < len(turn.answer)]) == whole
    for first, owner in whole:
        assert turn.answer[first:].startswith(things[owner])


# --- files ---


def stored(rng, layers=2, heads=3, tokens=(9, 4), frames=((0, 1), (2, 3))):
    clips = []
    for i, count in enumerate(tokens):
        shape = (layers, heads, count, len(frames), 2, 3)
        weights = rng.random(shape).astype(np.float32) ** 4 * 0.01
        weights[0, 0, 0] = 0
        clip = Clip(f"c{i}", "what ?", "an answer", ["t"] * count, ["visual"] * count, ["red star"], [0] * count,
                    [[[0, 1, 2, 3]], [None], [[4, 4, 8, 8]], [None]], f"c{i}.webp")  # fmt: skip
        sinks = rng.random((layers, heads, len(frames), 2, 3)) < 0.2 if i == 0 else None
        clips.append(ClipAttention(clip, weights, 1 - weights.sum((-3, -2, -1)), sinks))
    return StoredAttention(clips, frames, (-0.25, -0.25, 1.25, 1.25), {"run": "r", "seed": 0})


def test_what_is_written_is_read(tmp_path):
    before = stored(np.random.default_rng(0))
    paths = attention_file.write(tmp_path, before)
    assert [path.name for path in paths] == ["attention.json", "attention.npz"]
    after = attention_file.read(tmp_path)
    assert (after.frames, after.extent, after.source) == (before.frames, before.extent, before.source)
    for a, b in zip(after.clips, before.clips, strict=True):
        assert a.clip == b.clip
        top = b.weights.max((-3, -2, -1), keepdims=True)
        assert (np.abs(a.weights - b.weights) <= top / 510 + 1e-9).all()
        np.testing.assert_array_equal(a.rest, b.rest)
        assert (a.sinks is None) == (b.sinks is None)
        assert a.sinks is None or (a.sinks == b.sinks).all()


def test_damaged_files_are_named(tmp_path):
    with pytest.raises(ArtefactError, match=r"attention\.json: found no such file"):
        attention_file.read(tmp_path)
    js, npz = attention_file.write(tmp_path, stored(np.random.default_rng(0)))
    text, raw = js.read_text(), npz.read_bytes()
    for bad in ("{", "[]", "{}", text.replace('"schema": 1', '"schema": 2'), text.replace('"question"', '"asked"')):
        js.write_text(bad)
        with pytest.raises(ArtefactError, match=r"attention\.json.*make artefacts"):
            attention_file.read(tmp_path)
    js.write_text(text)
    middle = len(raw) // 2
    for bad in (b"", raw[:100], raw[:middle] + b"\0" * 50 + raw[middle + 50 :]):
        npz.write_bytes(bad)
        with pytest.raises(ArtefactError, match=r"attention\.npz"):
            attention_file.read(tmp_path)
    attention_file.write(tmp_path, stored(np.random.default_rng(0), tokens=(9, 5)))
    js.write_text(text)
    with pytest.raises(ArtefactError, match="found 14 rows, expected 13"):
        attention_file.read(tmp_path)
    npz.unlink()
    with pytest.raises(ArtefactError, match="no such file"):
        attention_file.read(tmp_path)
    (tmp_path / "x.webp").write_bytes(b"RIFF")
    for name in ("x.webp", "gone.webp"):
        with pytest.raises(ArtefactError, match=name):
            read_strip(tmp_path / name, 8)


# --- grounding ---


def test_scores_tell_where_attention_is():
    boxes = np.full((4, 1, 4), [0.0, 0, 32, 32])  # the upper left cell of 2 x 2, in each of 4 frames
    named = [None] * 8 + [0, 0]
    on = np.full((1, 1, 10, 4, 2, 2), 0.01)
    on[:, :, :, :, 0, 0] = 0.1
    off = np.full((1, 1, 10, 4, 2, 2), 0.01)
    off[:, :, :, :, 1, 1] = 0.1
    frames = ((0,), (1,), (2,), (3,))
    good, bad = (clip_scores(w, named, boxes, frames, (0, 0, 1, 1), (64, 64)) for w in (on, off))
    assert good["mass", "kept", None] == pytest.approx(10 / 13)
    assert good["mass", "even", None] == 0.25
    assert good["mass", "best", None] == good["pointing", "best", None] == 1
    assert good["pointing", "kept", 0] == 1
    assert bad["pointing", "kept", 0] == 0
    assert bad["mass", "kept", None] == pytest.approx(1 / 13)
    with pytest.raises(ValueError, match="names an object"):
        clip_scores(on, [None] * 10, boxes, frames, (0, 0, 1, 1), (64, 64))


def test_intervals_are_those_of_a_mean_over_clips():
    rng = np.random.default_rng(0)
    weights = rng.dirichlet(np.ones(16), size=(120, 2, 1, 9)).reshape(120, 2, 1, 9, 4, 2, 2)
    boxes = np.full((4, 1, 4), [0.0, 0, 32, 32])
    scores = [clip_scores(w, [0] * 9, boxes, ((0,), (1,), (2,), (3,)), (0, 0, 1, 1), (64, 64)) for w in weights]
    same = compare(scores, scores)
    assert [(e["measure"], e["sinks"], e["layer"]) for e in same[:3]] == [
        ("mass", "kept", None), ("pointing", "kept", None), ("mass", "kept", 0),
    ]  # fmt: skip
    for entry in same:
        assert entry["difference"] == {"estimate": 0, "low": 0, "high": 0}
        values = np.array([s[entry["measure"], entry["sinks"], entry["layer"]] for s in scores])
        half = 1.96 * values.std() / np.sqrt(len(values))
        assert entry["standard"]["estimate"] == pytest.approx(values.mean())
        assert entry["standard"]["high"] - values.mean() == pytest.approx(half, rel=0.1)
        assert values.mean() - entry["standard"]["low"] == pytest.approx(half, rel=0.1)
    holes = [dict(s) for s in scores]
    holes[3]["mass", "kept", 1] = float("nan")
    counts = {(e["measure"], e["sinks"], e["layer"]): e["clips"] for e in compare(scores, holes)}
    assert counts["mass", "kept", 1] == 119
    assert counts["mass", "kept", 0] == 120


def test_hashes_of_the_manifest(runs):
    for name in NAMES:
        about = json.loads((runs / name / "artefacts.json").read_text())
        for file, digest in about["files"].items():
            assert hashlib.sha256((runs / name / file).read_bytes()).hexdigest() == digest
