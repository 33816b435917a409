"""What the real language model says by itself, before any fine-tuning, and what the aligned student sees.

- **zero-shot**: easy-VQA and the MVBench twin before fine-tuning, as a record of a run of no steps.
- **reference**: how the reference losses of the training rows lie by tag: quartiles, share above 0.5 nat, AUCs,
  rank correlation with being visual.
- **sentences**: those of the paper's pictures, with each token's loss from text alone.

The last two go to ``RUNS/evidence/smollm2.json``, with the identity of the student that they are of.
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
from repro.small.stage import score
from repro.small_tables import EVIDENCE, SENTENCES, load

ZERO = "easyvqa-zeroshot"
HARD = 0.5
"""Nats above which a token is called hard to guess, as in `make world-check`."""


def write_evidence(runs: Path, material: SmallMaterial) -> Path:
    """Reference losses by tag and the paper's sentences, as ``runs/evidence/smollm2.json``."""
    path = runs / EVIDENCE
    known, problems = load(path)
    for problem in problems:
        print(f"made again: {problem}")
    if known and known["student_hash"] == material.student_hash:
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
