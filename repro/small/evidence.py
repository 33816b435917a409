"""What the real language model says by itself, before any fine-tuning, and what the aligned student sees.

- **zero-shot**: easy-VQA and the MVBench twin before fine-tuning, as a record of a run of no steps.
- **reference**: how the reference losses of the training rows lie by tag: quartiles, share above 0.5 nat, AUCs,
  rank correlation with being visual.
- **sentences**: those of the paper's pictures, with each token's loss from text alone.
- **looks**: validation of the fine-tuned students with each row's own clip, and with the clip of another row.

The last three go to ``RUNS/evidence/smollm2.json``, with the identity of the students that they are of.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from regate.reference import load_teacher, score_rows
from regate.scoring import IGNORE
from repro.kept import WORDS, separated
from repro.micro_data import TAGS
from repro.record import Record, environment, is_stale, read, write, write_text
from repro.run import PROTOCOL
from repro.small import recipes
from repro.small.material import SmallMaterial, material_of
from repro.small.stage import follow, score
from repro.small_tables import EVIDENCE, SENTENCES, load

ZERO = "easyvqa-zeroshot"
HARD = 0.5
"""Nats above which a token is called hard to guess, as in `make world-check`."""
SHIFT = 7
"""Rows between a question and the other clip that it is asked about."""


def write_evidence(runs: Path, material: SmallMaterial) -> Path:
    """Reference losses by tag, the paper's sentences and what runs see, as ``runs/evidence/smollm2.json``."""
    path, ended = runs / EVIDENCE, fine_tuned(runs)
    known, problems = load(path)
    for problem in problems:
        print(f"made again: {problem}")
    now = (material.student_hash, {r.name: r.artefacts["model"]["sha256"] for r in ended})
    if known and (known["student_hash"], {one["run"]: one["model"] for one in known["looks"]}) == now:
        return path
    rows, cost = material.scored()
    tags = np.concatenate(rows["tags"][:])
    losses = np.concatenate(rows["reference_losses"][:]).astype(np.float32)
    found = {
        "student_hash": material.student_hash,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        **environment(threads=torch.get_num_threads()),
        "rows": len(rows),
        "teacher": cost,
        "reference": by_tag(losses, tags),
        "sentences": sentences(material),
        "looks": [looks(record, runs, material) for record in ended],
    }
    return write_text(path, json.dumps(found, indent=1) + "\n")


def by_tag(losses: np.ndarray, tags: np.ndarray) -> dict[str, Any]:
    """How reference losses [N] lie by tag [N], and how well they tell visual targets apart."""
    found: dict[str, Any] = {"tags": {}}
    for name in WORDS:
        mine = losses[tags == TAGS[name]]
        if len(mine):
            low, middle, high = np.quantile(mine, (0.25, 0.5, 0.75)).tolist()
            found["tags"][name] = {
                "targets": len(mine), "mean": float(mine.mean()), "quartiles": [low, middle, high],
                "hard": float((mine > HARD).mean()),
            }  # fmt: skip
    words = tags != TAGS["special"]
    visual = tags[words] == TAGS["visual"]
    ranks = losses[words].argsort().argsort()
    correlates = visual.any() and not visual.all()
    found["auc"] = separated(losses, tags)
    # Of ranks: losses are spread over three orders of magnitude.
    found["correlation"] = float(np.corrcoef(ranks, visual)[0, 1]) if correlates else None
    return found


def fine_tuned(runs: Path) -> list[Record]:
    """Records of the dense and the ReGATE run of seed 0 that are there, in full fine-tuning."""
    paths = [runs / "records" / f"{row().name}.json" for row in (recipes.dense, recipes.regate)]
    return [read(path) for path in paths if path.exists()]


def looks(record: Record, runs: Path, material: SmallMaterial) -> dict[str, Any]:
    """Accuracy and NLL on visual targets of validation with each row's own clip, and with another row's."""
    path = runs / record.artefacts["model"]["path"]
    model, found = material.trained(path.parent).to(material.device), {}
    for name, shift in (("own", 0), ("other", SHIFT)):
        metrics = follow(recipes.dense(data=material.data), material, shift)(model)
        found[name] = {"accuracy": metrics["accuracy_visual"], "nll": metrics["nll_visual"]}
    return {"run": record.name, "model": record.artefacts["model"]["sha256"], **found}


def sentences(material: SmallMaterial) -> list[dict[str, Any]]:
    """The loss of each token of the paper's sentences from text alone."""
    teacher = load_teacher(material.model().to(material.device), material.processor, attend_placeholders=False)
    tokenizer, found = material.processor.tokenizer, []
    for question, answer in SENTENCES:
        asked = [{"role": "user", "content": question}]
        prompt = material.processor.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
        before = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        ids = torch.tensor(before + tokenizer(answer, add_special_tokens=False)["input_ids"])
        labels = torch.where(torch.arange(len(ids)) >= len(before), ids, IGNORE)
        (losses,) = score_rows(teacher, [(ids, labels)], 4096)
        tokens = [tokenizer.decode([i]) for i in ids[len(before) :].tolist()]
        rounded = [round(loss, 3) for loss in losses.tolist()]
        found.append({"question": question, "answer": answer, "tokens": tokens, "losses": rounded})
    return found


def zero_shot(runs: Path, material: SmallMaterial) -> Record:
    """The student before fine-tuning on its benchmarks, as a record of no steps; found again where it is fresh."""
    recipe = recipes.easy_vqa("zeroshot", data=material.data, steps=0, gate={}, tuning={})
    config = recipe.config(material.student_hash)
    path = runs / "records" / f"{recipe.name}.json"
    if path.exists():
        record = read(path)
        if not is_stale(record, config):
            return record
    started = datetime.now(UTC).isoformat(timespec="seconds")
    benchmarks = score(material.model().to(material.device), 0, material)
    record = Record(
        **recipe.identity(),
        config=config,
        started=started,
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        protocol=PROTOCOL,
        benchmarks=tuple(benchmarks),
        **environment(threads=torch.get_num_threads()),
    )
    write(record, runs / "records")
    return record


def write_all(runs: Path, device: str = "cpu") -> None:
    """All of it, where it is not there yet."""
    material = material_of(recipes.dense(), runs, device)
    zero_shot(runs, material)
    print(f"Written: {write_evidence(runs, material)}")
