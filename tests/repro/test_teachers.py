"""A teacher of another width: the backbone of the student's own preparation, as a causal language model."""

import dataclasses

import pytest
import torch
from transformers import AutoModelForCausalLM

from regate.reference import TextTeacher
from repro import teachers
from repro.loop import StageConfig
from repro.prepare import CONFIGS, Preparation, PrepareConfig

TINY = PrepareConfig(
    tokenizer_docs=300, corpus_docs=40, scenes=12, validation_scenes=8, turns=3, text_rows=2, text_length=32,
    language=StageConfig(steps=2, batch_size=3, lr=1e-3, warmup=1), eval_every=2,
)  # fmt: skip


def test_a_teacher_says_what_the_prepared_backbone_says(tmp_path):
    # Narrower than the symbols of a script: such a backbone could not become a student, but it can teach.
    size = dataclasses.replace(CONFIGS["internvl"].size, num_layers=1, **teachers.WIDTHS["smaller"])
    config = dataclasses.replace(TINY, size=size)
    folder = tmp_path / "internvl-smaller"
    teachers.rebuild("internvl", config, folder, tmp_path / "work", progress=False)
    record = teachers.check(folder)
    assert record["curves"]["language"][-1]["step"] == 2

    preparation = Preparation("internvl", config, tmp_path / "work" / folder.name, progress=False)
    preparation.language()  # found again, nothing is trained
    with torch.no_grad():
        for parameter in preparation.model.parameters():
            parameter.copy_(parameter.bfloat16())
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    rows = [(torch.arange(20, 60), torch.arange(20, 60))]
    losses = []
    for model in (preparation.model, loaded):
        teacher = TextTeacher.of(model)
        with teacher.frozen():
            losses.append(teacher.losses(rows)[0])
    assert torch.allclose(*losses, atol=1e-5)

    (folder / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"config\.json is not the file of the record"):
        teachers.check(folder)
    with pytest.raises(FileNotFoundError, match="make teachers"):
        teachers.check(tmp_path / "none")


@pytest.mark.parametrize("name", list(teachers.WIDTHS))
def test_widths_are_valid_and_fit_a_commit(name):
    config = teachers.config_of("internvl", name)
    size = config.size
    assert size.hidden_size == size.num_heads * size.head_dim
    parameters = size.vocab_size * size.hidden_size + size.num_layers * (
        4 * size.hidden_size**2 + 3 * size.hidden_size * size.intermediate_size
    )
    assert 2 * parameters < 6_000_000  # bytes in bf16
    assert config.stage_hash("language") != CONFIGS["internvl"].stage_hash("language")
