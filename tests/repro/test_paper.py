"""Recipes, checks and launches at the paper's scale, on tiny models of the same classes. FSDP2 runs on two gloo ranks
by a trick (hf-traps: accelerate ignores FSDP on the CPU); no GPU was involved anywhere."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from accelerate import FullyShardedDataParallelPlugin
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env
from safetensors.torch import load_file
from transformers import AutoConfig

from regate.accounting import read_steps
from regate.cli import Reference
from regate.commands import load_model, reference
from repro import launch, paper_run
from repro.example_data import write
from repro.launch import Launch, table4_paper
from repro.paper import METHODS, PUBLISHED_NAMES, RECIPES, STUDENTS, published, recipe_of
from repro.record import read
from tests.models.tiny_videochat2 import tiny_videochat2
from tests.models.tiny_videollama2 import tiny_videollama2
from tests.tiny import tiny_model

ROOT = Path(__file__).resolve().parents[2]
MODELS = {
    "videollama2": lambda: tiny_videollama2("v2.1"),
    "videochat2": tiny_videochat2,
    "internvl": lambda: tiny_model("internvl"),
}
# What a rank runs in place of repro.paper_run: the same, but accelerate is kept from forgetting FSDP on the CPU.
SHARDED = """
import shutil, sys
from pathlib import Path
import torch
from accelerate import DistributedType, PartialState
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback
from repro import paper_run

torch.set_num_threads(1)
arguments, trainer = paper_run.training_arguments, paper_run.trainer_of

class Check(TrainerCallback):
    def on_train_end(self, args, state, control, model=None, **kwargs):
        assert all(isinstance(p, DTensor) for p in model.parameters()), "not sharded"
        print("SHARDED", flush=True)

def training_arguments(*args):
    made = arguments(*args)
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    return made

def trainer_of(*args):
    made = trainer(*args)
    made.add_callback(Check())
    return made

paper_run.training_arguments, paper_run.trainer_of = training_arguments, trainer_of
paper_run._engine = lambda cpu: "fsdp2"
folder = Path(sys.argv.pop(1))
assert paper_run.main() == 0
state = PartialState()
state.wait_for_everyone()
if state.is_main_process:  # as after a kill between two checkpoints
    shutil.move(folder / "final", folder / "first")
    shutil.rmtree(folder / "checkpoint-4")
state.wait_for_everyone()
sys.exit(paper_run.main())
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with four videos and the tiny students."""
    folder = tmp_path_factory.mktemp("paper")
    write(folder / "data", samples=4)
    for student, build in MODELS.items():
        model, processor = build()
        model.save_pretrained(folder / student)
        processor.save_pretrained(folder / student)
    return folder


def scored(place: Path, student: str) -> Path:
    """The videos, scored by a tiny student as a launch would."""
    recipe, output = recipe_of(f"{student}-regate"), place / "scored" / student
    if not output.exists():
        reference(
            Reference(
                model=str(place / student),
                data=place / "data" / "train.json",
                output=output,
                num_frames=recipe.frames,
                max_length=recipe.max_length,
            )
        )
    return output


def run_of(place: Path, recipe: str, runs: Path, **options) -> paper_run.PaperRun:
    student = recipe.split("-")[0]
    defaults = {"weights": place / student, "data": scored(place, student), "runs": runs, "cpu": True, "workers": 0}
    return paper_run.PaperRun(recipe=recipe, **defaults | {"micro_batch": 2} | options)


class TestRecipes:
    def test_names_are_those_of_the_functions(self):
        assert set(RECIPES) == {f"{student}-{method}" for student in STUDENTS for method in METHODS}
        assert {recipe_of(name).name for name in RECIPES} == {f"table4-{name}-paper-s0" for name in RECIPES}
        assert set(PUBLISHED_NAMES) == set(STUDENTS)
        with pytest.raises(ValueError, match=r"unknown recipe 'llava-regate'; known: videollama2-stock"):
            recipe_of("llava-regate")

    @pytest.mark.parametrize("name", RECIPES)
    def test_docstrings_quote_what_was_published(self, name):
        """No number in them is typed from memory."""
        student, method = name.split("-")
        text, found = RECIPES[name].__doc__ or "", published(student, method)
        if method == "dense":
            assert not found
        for column in ("train_gpu_hours", "gpu_memory_gb", "accuracy_average", "teacher_gpu_hours"):
            if column in found:
                assert f"{found[column]:.1f}" in text, column

    def test_students_differ_only_in_method(self):
        for student in STUDENTS:
            stock, dense, regate = (recipe_of(f"{student}-{method}").config() for method in METHODS)
            for config in (stock, dense, regate):
                del config["gate"], config["method"]
            assert stock == dense == regate

    @pytest.mark.parametrize(("gpus", "micro", "expected"), [(4, 4, 8), (8, 16, 1), (2, 1, 64)])
    def test_accumulation_makes_the_global_batch(self, gpus, micro, expected):
        assert recipe_of("videollama2-stock").accumulation(gpus, micro) == expected

    @pytest.mark.parametrize(("gpus", "micro"), [(3, 4), (4, 64), (4, 5)])
    def test_batches_that_do_not_divide_are_refused(self, gpus, micro):
        with pytest.raises(ValueError, match=f"{gpus} GPUs with micro-batches of {micro}"):
            recipe_of("videollama2-stock").accumulation(gpus, micro)

    def test_steps_round_up_in_every_epoch(self):
        assert recipe_of("videochat2-stock").steps(129) == 6
        assert recipe_of("videollama2-stock").steps(300_000) == 2344


class TestCommands:
    def command(self, student: str, engine: str = "fsdp2", **options) -> list[str]:
        made = Launch(student, Path("w"), Path("d"), Path("runs"), 4, engine, **options)
        return made.train_command(recipe_of(f"{student}-regate", seed=2))

    @pytest.mark.parametrize("student", STUDENTS)
    def test_accelerate_reads_fsdp2_as_meant(self, student, monkeypatch):
        command = self.command(student)
        arguments = launch_command_parser().parse_args(command[command.index("--config_file") :])
        arguments, _, _ = _validate_launch_command(arguments)
        environment = prepare_multi_gpu_env(arguments)
        assert environment["ACCELERATE_USE_FSDP"] == "true"
        assert environment["ACCELERATE_MIXED_PRECISION"] == "bf16"
        for name, value in environment.items():
            if name.startswith("FSDP_"):
                monkeypatch.setenv(name, value)
        plugin = FullyShardedDataParallelPlugin()
        architecture = recipe_of(f"{student}-regate").architecture
        assert (plugin.fsdp_version, plugin.reshard_after_forward, plugin.cpu_ram_efficient_loading) == (2, True, False)
        assert tuple(plugin.transformer_cls_names_to_wrap) == architecture.units
        assert plugin.activation_checkpointing is not architecture.dropout
        assert "SHARDED" in str(plugin.state_dict_type)
        assert arguments.nproc_per_node == "4"

    def test_accelerate_reads_zero3_and_ddp_as_meant(self):
        found = {}
        for engine in ("zero3", "ddp"):
            command = self.command("internvl", engine)
            arguments = launch_command_parser().parse_args(command[command.index("--config_file") :])
            found[engine], _, _ = _validate_launch_command(arguments)
        assert (found["zero3"].use_deepspeed, found["zero3"].zero_stage) == (True, 3)
        assert str(found["zero3"].zero3_init_flag) == "False"
        assert (found["ddp"].multi_gpu, found["ddp"].use_fsdp, found["ddp"].num_processes) == (True, False, 4)

    def test_a_run_is_named_with_all_that_decides_it(self):
        command = self.command("videochat2", micro_batch=8, rehearse=3)
        own = command[command.index("repro.paper_run") :]
        assert own == [
            "repro.paper_run", "videochat2-regate", "--weights", "w", "--data", "runs/paper/videochat2/scored",
            "--runs", "runs", "--seed", "2", "--micro-batch", "8", "--rehearse", "3",
        ]  # fmt: skip


class TestRefusals:
    """Each is told before any command runs."""

    def refused(self, capsys, **changes) -> str:
        def run(command):
            raise AssertionError(f"ran {command}")

        defaults = {"students": ["internvl"], "seeds": 1, "weights": "", "data": "", "gpus": 2, "cpu": True, "run": run}
        assert table4_paper(**defaults | changes) == 2
        return capsys.readouterr().err

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"students": ["llava"]}, "students are llava, expected some of videollama2, videochat2, internvl"),
            ({"students": []}, "students are none"),
            ({"seeds": 0}, "seeds is 0"),
            ({"engine": "fsdp"}, "engine is 'fsdp', expected one of fsdp2, zero3, ddp"),
            ({}, "no weights given: name a path on this machine"),
            ({"weights": "nowhere", "data": "nowhere"}, "weights of internvl: nowhere: no such file or folder"),
            ({"gpus": 3, "weights": "PLACE/internvl", "data": "PLACE/data"}, "global batch of 128 cannot be made of 3"),
            ({"weights": "PLACE/internvl"}, "no data given"),
            ({"weights": "PLACE/videochat2", "data": "PLACE/data"}, "is a videochat2 model, expected internvl"),
            ({"weights": "PLACE/data", "data": "PLACE/data"}, "has no config.json"),
            ({"weights": "PLACE/bare", "data": "PLACE/data"}, "holds none of .*safetensors"),
            ({"weights": "PLACE/internvl", "data": "PLACE/broken.json"}, "no valid JSON"),
            ({"weights": "PLACE/internvl", "data": "PLACE/missing.json"}, "nowhere.mp4"),
            ({"students": ["internvl", "videollama2"], "weights": "PLACE/internvl"}, "internvl=PATH,videollama2=PATH"),
        ],
    )
    def test_what_is_wrong_is_named(self, place, capsys, changes, said):
        (place / "bare").mkdir(exist_ok=True)
        shutil.copy(place / "internvl" / "config.json", place / "bare")
        (place / "broken.json").write_text("[{")
        turns = [{"from": "human", "value": "<video>\nWhat?"}, {"from": "gpt", "value": "A cat."}]
        (place / "missing.json").write_text(json.dumps([{"id": 1, "video": "nowhere.mp4", "conversations": turns}]))
        changes = {k: v.replace("PLACE", str(place)) if isinstance(v, str) else v for k, v in changes.items()}
        assert re.search(said, self.refused(capsys, **changes))

    @pytest.mark.skipif(torch.cuda.device_count() >= 64, reason="this machine has that many")
    def test_too_few_gpus(self, capsys):
        assert re.search(r"found \d+ GPUs, expected 64", self.refused(capsys, gpus=64, cpu=False))

    def test_missing_packages(self, capsys, monkeypatch):
        monkeypatch.setattr(launch.importlib.util, "find_spec", lambda name: None if name == "deepspeed" else name)
        assert "package deepspeed is not installed" in self.refused(capsys, engine="zero3")
        monkeypatch.setattr(launch.importlib.util, "find_spec", lambda name: None if name == "peft" else name)
        assert "package peft is not installed" in self.refused(capsys, students=["videochat2"])

    def test_a_part_of_the_weights_is_missing(self, place, capsys, tmp_path):
        shutil.copytree(place / "internvl", tmp_path / "internvl")
        index = {"weight_map": {"lm_head.weight": "model-00002-of-00002.safetensors"}}
        (tmp_path / "internvl" / "model.safetensors.index.json").write_text(json.dumps(index))
        paths = {"weights": str(tmp_path / "internvl"), "data": str(place / "data" / "train.json")}
        assert "names model-00002-of-00002.safetensors" in self.refused(capsys, **paths)
        (tmp_path / "internvl" / "model.safetensors.index.json").unlink()
        (tmp_path / "internvl" / "tokenizer.json").unlink()
        assert "cannot be loaded as a multimodal model" in self.refused(capsys, **paths)

    def test_an_earlier_launch_of_other_weights(self, place, capsys, tmp_path):
        """Scored rows are reused by all methods: they must be of these weights. Its first command fails here."""
        paths = {"weights": str(place / "internvl"), "data": str(place / "data" / "train.json"), "runs": tmp_path}
        assert table4_paper(["internvl"], 1, gpus=2, cpu=True, run=lambda command: 7, **paths) == 7
        assert "ended with exit code 7; call again" in capsys.readouterr().err
        shutil.copytree(place / "internvl", tmp_path / "others")
        assert "weights were" in self.refused(capsys, **paths | {"weights": str(tmp_path / "others")})

    def test_data_without_reference_losses(self, place, tmp_path, capsys):
        code = paper_run.main(["internvl-stock", "--weights", "w", "--data", str(place / "data" / "train.json")])
        assert code == 2
        assert "has no reference losses" in capsys.readouterr().err


class TestOneProcess:
    def test_a_whole_run_is_recorded_reused_and_protected(self, place, tmp_path, capsys):
        """One epoch of four samples is one step: the record, then a second launch, then another configuration."""
        args = run_of(place, "videollama2-stock", tmp_path)
        record = paper_run.run(args)
        assert record is not None
        assert record == read(tmp_path / "records" / "table4-videollama2-stock-paper-s0.json")
        assert (record.scale, record.steps, record.benchmarks) == ("paper", 1, ())
        assert record.hardware["accumulation"] == 64
        assert record.hardware["engine"] == "ddp"
        assert record.tokens["supervised"] == record.tokens["target"] == record.tokens["paper"]
        assert record.tokens["visual"] == 4 * AutoConfig.from_pretrained(place / "videollama2").visual_tokens(16)
        assert record.flops["total"] == record.flops["decoder"] + record.flops["head"]
        assert "lmms-eval" in capsys.readouterr().out
        config = paper_run.config_of(args.resolved(), paper_run.scored_rows(args.data))
        assert paper_run.existing(args.resolved(), config, tmp_path) == record
        (tmp_path / record.name / "config.json").write_text(json.dumps(config | {"learning_rate": 1.0}))
        with pytest.raises(ValueError, match=r"learning_rate was 1.0, is 2e-05.*Move it away"):
            paper_run.run(args)

    def test_frozen_towers_keep_their_bits(self, place, tmp_path):
        args = run_of(place, "videollama2-regate", tmp_path, rehearse=2)
        assert paper_run.run(args) is None
        before = load_model(str(place / "videollama2")).state_dict()
        after = load_model(str(args.folder(args.resolved()) / "final")).state_dict()
        same = {name: torch.equal(before[name].bfloat16(), after[name].bfloat16()) for name in before}
        assert all(same[name] for name in same if "vision_tower" in name)
        assert not all(torch.equal(before[name], after[name]) for name in before if "language_model" in name)
        assert not (tmp_path / "records").exists()

    def test_lora_saves_adapters_and_what_trains_in_full(self, place, tmp_path):
        args = run_of(place, "videochat2-regate", tmp_path, rehearse=3)
        paper_run.run(args)
        saved = load_file(args.folder(args.resolved()) / "final" / "adapter_model.safetensors")
        assert all(any(key in name for name in saved) for key in ("lora_A", "vision_tower", "qformer", "queries"))
        steps = read_steps(args.folder(args.resolved()) / "steps.jsonl")
        assert [step["ratio"] for step in steps] == [1.0, 1.0, 0.5]
        assert steps[2]["tokens"]["active"] < steps[1]["tokens"]["active"]

    def test_weights_that_train_are_fp32(self):
        model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)).bfloat16()
        model[0].requires_grad_(False)
        paper_run.keep_trained_in_fp32(model, everything=False)
        assert (model[0].weight.dtype, model[1].weight.dtype) == (torch.bfloat16, torch.float32)
        paper_run.keep_trained_in_fp32(model, everything=True)
        assert model[0].weight.dtype == torch.float32


def launched(command: list[str]) -> str:
    """Runs a launch's command on this machine; what it printed."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment = {k: v for k, v in environment.items() if not k.startswith(("ACCELERATE_", "FSDP_"))}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


class TestTwoRanks:
    def launch(self, place: Path, student: str, runs: Path, engine: str) -> tuple[list[str], Path]:
        """The launch's command for a rehearsal of four steps, and the folder of its run."""
        paths = (place / student, place / "data" / "train.json", runs)
        made = Launch(student, *paths, gpus=2, engine=engine, micro_batch=2, rehearse=4, cpu=True)
        shutil.copytree(scored(place, student), made.scored)
        return made.train_command(recipe_of(f"{student}-regate")), runs / f"table4-{student}-regate-paper-s0-rehearsal"

    def test_ddp_by_the_launchs_own_command(self, place, tmp_path):
        """configs/accelerate/ddp.yaml, two gloo ranks, dense and sparse steps, an adapter at the end."""
        command, folder = self.launch(place, "videochat2", tmp_path, "ddp")
        launched(command)
        assert [step["ratio"] for step in read_steps(folder / "steps.jsonl")] == [1.0, 1.0, 0.5, 1.0]
        assert (folder / "checkpoint-4" / "complete.json").exists()
        assert (folder / "final" / "adapter_model.safetensors").exists()

    def test_fsdp2_shards_resumes_and_saves_the_whole_model(self, place, tmp_path):
        """The launch's own fsdp2 command but for the script: two runs, the second from the first's checkpoint-2."""
        command, folder = self.launch(place, "videollama2", tmp_path, "fsdp2")
        (script := tmp_path / "sharded.py").write_text(SHARDED)
        at = command.index("repro.paper_run")
        printed = launched([*command[: at - 1], str(script), str(folder), *command[at + 1 :]])
        assert printed.count("SHARDED") == 4
        assert list((folder / "checkpoint-4").rglob("*.distcp"))
        assert len(read_steps(folder / "steps.jsonl")) == 4
        first, second = (load_file(folder / name / "model.safetensors") for name in ("first", "final"))
        assert all(torch.equal(first[name], second[name]) for name in first)
        before = load_model(str(place / "videollama2")).state_dict()
        after = load_model(str(folder / "final")).state_dict()
        assert not torch.equal(before["lm_head.weight"], after["lm_head.weight"])
