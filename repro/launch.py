"""`python -m repro table4 --scale paper`: checks everything that can be checked, then scores, trains and records.

Each run is `accelerate launch` with a configuration of this repository. Nothing is downloaded: weights and data are
paths. Whatever is wrong with them is told before a GPU is touched. Never run on a GPU by us.
"""

from __future__ import annotations

import importlib.util
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from repro.paper import METHODS, STUDENTS, PaperRecipe, recipe_of

CONFIGS = Path(__file__).resolve().parent.parent / "configs" / "accelerate"
ENGINES = ("fsdp2", "zero3", "ddp")
_WEIGHTS = ("*.safetensors", "*.bin", "*.pth")


class LaunchError(ValueError):
    """Something that a launch needs and did not find; the message names it and says what to do."""


@dataclass(frozen=True)
class Launch:
    """One student's launch, checked. ``weights`` and ``data`` are folders or files on this machine."""

    student: str
    weights: Path
    data: Path
    runs: Path
    gpus: int
    engine: str
    media_root: Path | None = None
    micro_batch: int | None = None
    rehearse: int = 0
    cpu: bool = False

    @property
    def scored(self) -> Path:
        """Where the conversations with their reference losses go: all methods train on the same rows."""
        return self.runs / "paper" / self.student / "scored"

    @property
    def inputs(self) -> dict[str, str]:
        """What the launch is made from, to be compared with what an earlier one was."""
        return {"weights": str(self.weights.absolute()), "data": str(self.data.absolute())}

    @property
    def origin(self) -> Path:
        """Where ``inputs`` are noted."""
        return self.scored.parent / "launch.json"

    def reference_command(self) -> list[str]:
        """Scores the data with the student's own backbone, each GPU a share; goes on where it was stopped."""
        recipe = recipe_of(f"{self.student}-regate")
        options = {
            "--model": self.weights,
            "--data": self.data,
            "--output": self.scored,
            "--num-frames": recipe.frames,
            "--max-length": recipe.max_length,
            **({"--media-root": self.media_root} if self.media_root else {}),
        }
        return [*self._accelerate("ddp"), "-m", "regate.cli", "reference", *_flat(options)]

    def train_command(self, recipe: PaperRecipe) -> list[str]:
        """Trains one recipe."""
        options = {
            "--weights": self.weights,
            "--data": self.scored,
            "--runs": self.runs,
            "--seed": recipe.seed,
            **({"--micro-batch": self.micro_batch} if self.micro_batch else {}),
            **({"--rehearse": self.rehearse} if self.rehearse else {}),
        }
        command = [*self._accelerate(self.engine), "-m", "repro.paper_run", f"{recipe.student}-{recipe.method}"]
        return [*command, *_flat(options), *(["--cpu", "--workers", "0"] if self.cpu else [])]

    def _accelerate(self, engine: str) -> list[str]:
        command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / f"{engine}.yaml")]
        command += ["--num_processes", str(self.gpus), "--main_process_port", "0"]
        if engine == "fsdp2":
            architecture = recipe_of(f"{self.student}-regate").architecture
            command += ["--fsdp_transformer_layer_cls_to_wrap", ",".join(architecture.units)]
            # FSDP's own checkpointing draws dropout anew when it computes a layer again: wrong gradients, silently.
            command += ["--fsdp_activation_checkpointing", "false" if architecture.dropout else "true"]
        return command


def table4_paper(
    students: Sequence[str],
    seeds: int,
    weights: str,
    data: str,
    runs: Path = Path("runs"),
    gpus: int = 0,
    engine: str = "fsdp2",
    *,
    media_root: Path | None = None,
    micro_batch: int | None = None,
    rehearse: int = 0,
    cpu: bool = False,
    methods: Sequence[str] = METHODS,
    run: Callable[[list[str]], int] | None = None,
) -> int:
    """Score, then train every method and seed of every student; returns the exit code.

    Args:
        students: of videollama2, videochat2, internvl.
        seeds: seeds 0 .. seeds-1.
        weights, data: a path; with several students ``STUDENT=PATH,STUDENT=PATH``.
        runs: where everything goes; called again, what is there and fresh is not run again.
        gpus: processes, one a GPU; 0 is all GPUs there are.
        engine: fsdp2, zero3, or ddp (LoRA only: nothing is sharded).
        media_root: the folder of images and videos, if not that of the data.
        micro_batch: samples a GPU computes at once; left out, the recipe's.
        rehearse: only so many steps of each, without records: does it run, does it fit?
        cpu: gloo and no GPU, for tests.
        run: what runs a command and returns its exit code.
    """
    run = run or _run
    try:
        settings: dict[str, Any] = {
            "runs": runs,
            "engine": engine,
            "media_root": media_root,
            "micro_batch": micro_batch,
        }
        launches = prepared(students, seeds, weights, data, gpus, **settings, rehearse=rehearse, cpu=cpu)
    except (ValueError, OSError) as error:
        print(f"table4 --scale paper: {error}", file=sys.stderr)
        return 2
    for launch in launches:
        code = _score(launch, run)
        for seed in range(seeds):
            for method in methods:
                code = code or _train(launch, recipe_of(f"{launch.student}-{method}", seed), run)
        if code:
            print(
                f"{launch.student}: ended with exit code {code}; call again to go on where it stopped", file=sys.stderr
            )
            return code
    return 0


def prepared(
    students: Sequence[str], seeds: int, weights: str, data: str, gpus: int, *, engine: str, cpu: bool, **settings: Any
) -> list[Launch]:
    """One launch a student, after every check that needs no GPU; raises what is wrong, named."""
    unknown = [student for student in students if student not in STUDENTS]
    if unknown or not students:
        raise LaunchError(f"students are {', '.join(students) or 'none'}, expected some of {', '.join(STUDENTS)}")
    if seeds < 1:
        raise LaunchError(f"seeds is {seeds}, expected at least 1")
    if engine not in ENGINES:
        raise LaunchError(f"engine is {engine!r}, expected one of {', '.join(ENGINES)}")
    recipes = {student: recipe_of(f"{student}-regate") for student in students}
    _require_package("accelerate", "it launches the ranks")
    if engine == "zero3":
        _require_package("deepspeed", "engine zero3 is DeepSpeed's; engine fsdp2 needs nothing else")
    if any("lora" in recipe.architecture.tuning for recipe in recipes.values()):
        _require_package("peft", "VideoChat2 is tuned by LoRA")
    found = gpus if cpu else _visible_gpus()
    gpus = gpus or found
    if gpus < 1 or found < gpus:
        raise LaunchError(f"found {found} GPUs, expected {max(gpus, 1)}: see CUDA_VISIBLE_DEVICES, or ask for fewer")
    weight_paths, data_paths = paths_of("weights", weights, students), paths_of("data", data, students)
    launches = []
    for student, recipe in recipes.items():
        launch = Launch(
            student, weight_paths[student], data_paths[student], gpus=gpus, engine=engine, cpu=cpu, **settings
        )
        recipe.accumulation(gpus, launch.micro_batch or recipe.micro_batch)
        check_weights(student, launch.weights)
        check_data(launch.data, launch.media_root)
        check_scored(launch)
        launches.append(launch)
    return launches


def paths_of(what: str, given: str, students: Sequence[str]) -> dict[str, Path]:
    """``PATH`` for one student, or ``STUDENT=PATH,...``, as a path for each; LaunchError where one is missing."""
    if not given:
        raise LaunchError(f"no {what} given: name a path on this machine (nothing is downloaded)")
    named = dict(part.split("=", 1) for part in given.split(",") if part.split("=", 1)[0] in STUDENTS and "=" in part)
    if not named and len(students) == 1:
        named = {students[0]: given}
    missing = [student for student in students if student not in named]
    if missing:
        raise LaunchError(
            f"{what} is {given!r}, and says nothing of {', '.join(missing)}: with several students write "
            f"{','.join(f'{student}=PATH' for student in students)}"
        )
    paths = {student: Path(path).expanduser() for student, path in named.items() if student in students}
    for student, path in paths.items():
        if not path.exists():
            raise LaunchError(f"{what} of {student}: {path}: no such file or folder")
    return paths


def check_weights(student: str, path: Path) -> None:
    """LaunchError unless ``path`` is a folder with the configuration and weights of this student and a processor."""
    from transformers import AutoConfig

    from regate.commands import load_processor  # makes the Auto classes know our students

    if not (path / "config.json").is_file():
        raise LaunchError(
            f"weights of {student}: {path} has no config.json, expected a folder as save_pretrained writes it"
        )
    if not any(found for pattern in _WEIGHTS for found in path.glob(pattern)):
        raise LaunchError(f"weights of {student}: {path} holds none of {', '.join(_WEIGHTS)}")
    for index in path.glob("*.index.json"):
        parts = set(json.loads(index.read_text())["weight_map"].values())
        if missing := sorted(part for part in parts if not (path / part).is_file()):
            raise LaunchError(f"weights of {student}: {index} names {', '.join(missing)}, which are not there")
    expected = type(recipe_of(f"{student}-regate").architecture.config()).model_type
    try:
        kind = AutoConfig.from_pretrained(path).model_type
    except (ValueError, OSError, KeyError) as error:
        raise LaunchError(f"weights of {student}: {path}/config.json cannot be read: {error}") from error
    if kind != expected:
        raise LaunchError(f"weights of {student}: {path} is a {kind} model, expected {expected}")
    load_processor(str(path))


def check_scored(launch: Launch) -> None:
    """LaunchError where the scored rows of an earlier launch are of other weights or data."""
    if not launch.origin.exists():
        return
    before, now = json.loads(launch.origin.read_text()), launch.inputs
    if changed := [
        f"{what} were {before.get(what)}, are {path}" for what, path in now.items() if before.get(what) != path
    ]:
        raise LaunchError(
            f"{launch.scored.parent} holds another launch ({'; '.join(changed)}): move it away, or choose another runs"
        )


def check_data(path: Path, media_root: Path | None) -> int:
    """Reads all conversations, checks that their files exist and returns how many there are."""
    from regate.conversations import load_conversations

    rows = load_conversations(path, media_root)
    if "reference_losses" in rows.column_names:
        raise LaunchError(
            f"data: {path} holds reference losses already, expected the conversations they were made from"
        )
    return len(rows)


def _score(launch: Launch, run: Callable[[list[str]], int]) -> int:
    if (launch.scored / "state.json").exists():
        print(f"{launch.student}: scored data are there, {launch.scored}")
        return 0
    launch.origin.parent.mkdir(parents=True, exist_ok=True)
    launch.origin.write_text(json.dumps(launch.inputs, indent=1))
    began = time.monotonic()
    code = run(launch.reference_command())
    note = launch.scored.parent / "reference-seconds.json"
    before = json.loads(note.read_text()) if note.exists() else []
    note.write_text(json.dumps([*before, round(time.monotonic() - began, 1)]))
    return code


def _train(launch: Launch, recipe: PaperRecipe, run: Callable[[list[str]], int]) -> int:
    from repro.paper_run import config_of, existing, scored_rows

    if not launch.rehearse and existing(recipe, config_of(recipe, scored_rows(launch.scored)), launch.runs):
        print(f"{recipe.name}: there and fresh")
        return 0
    return run(launch.train_command(recipe))


def _run(command: list[str]) -> int:
    print(f"$ {shlex.join(command)}", flush=True)
    try:
        return subprocess.run(command, check=False).returncode
    except KeyboardInterrupt:
        return 130


def _visible_gpus() -> int:
    """GPUs that CUDA would show; asks the driver and starts no context."""
    import torch

    return torch.cuda.device_count()


def _require_package(name: str, why: str) -> None:
    if importlib.util.find_spec(name) is None:
        raise LaunchError(f"package {name} is not installed ({why}): pip install {name}")


def _flat(options: dict[str, object]) -> list[str]:
    return [str(part) for pair in options.items() for part in pair]
