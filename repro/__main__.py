"""`python -m repro COMMAND`: what the Makefile's targets call. `--help` lists the commands."""

import dataclasses
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from repro import recipes, variants
from repro.recipes import SCALES, STUDENTS


@dataclass
class Table4:
    """Train, follow and score every row of Table 4, then print it. What is there and fresh is not run again."""

    students: tuple[str, ...] = STUDENTS
    """Students, of: internvl, videollama2, videochat2."""
    seeds: int = 1
    """Seeds 0 .. seeds-1."""
    scale: str = "micro"
    """micro: two CPU cores, offline. small: SmolLM2-135M and a real vision tower, on two CPU cores or one GPU, after
    `make models`. paper: the published checkpoints on GPUs, from weights and data of yours."""
    runs: Path = Path("runs")
    """Where runs, records and tables go."""
    weights: str = ""
    """Paper scale: the folder of the student's weights; of several students STUDENT=PATH,STUDENT=PATH."""
    data: str = ""
    """Paper scale: the conversations, likewise."""
    media_root: Path | None = None
    """Paper scale: the folder of images and videos, if not that of the data."""
    gpus: int = 0
    """Paper scale: processes, one a GPU; 0: all there are."""
    engine: str = "fsdp2"
    """Paper scale: fsdp2, zero3, or ddp (LoRA only)."""
    micro_batch: int | None = None
    """Paper scale: samples that a GPU computes at once; left out, the recipe's."""
    jobs: int = 1
    """Micro scale: runs at a time, each on one thread if there are several. Times compare only where runs are alone."""
    rehearse: int = 0
    """Paper scale: only so many steps of each run, without records: does it run, does it fit?"""
    device: str = "cpu"
    """Small scale: cpu or cuda (not run on one yet)."""


@dataclass
class Plan:
    """Parameters, memory, tokens, FLOPs and the saving to expect of a paper-scale run, before any GPU is paid for."""

    recipe: Annotated[str, tyro.conf.Positional] = "all"
    """all, a student (videollama2), or one of its runs (videollama2-regate)."""
    gpus: int = 4
    """How many GPUs."""
    memory: float = 80.0
    """GB (10^9 bytes) of each."""
    engine: str = "fsdp2"
    """fsdp2, zero3 or ddp."""
    micro_batch: int | None = None
    """Samples that a GPU computes at once; left out, the recipe's."""
    prompt_tokens: int | None = None
    """Text of a sample's prompt, in place of the recipe's assumption."""
    answer_tokens: int | None = None
    """Text of a sample's answers, in place of the recipe's assumption."""
    data: Path | None = None
    """Conversations whose number, and with a tokenizer lengths, are used."""
    tokenizer: Path | None = None
    """Folder of the tokenizer that measures them."""
    media_root: Path | None = None
    """The folder of the data's images and videos."""
    json: bool = False
    """Print JSON."""


@dataclass
class Benchmarks:
    """Table 1, 2 or 3: checkpoints of Table 4's runs on its benchmarks. What is missing is trained or asked first."""

    table: Annotated[Literal["1", "2", "3"], tyro.conf.Positional]
    """1: image benchmarks; 2: long video; 3: short video."""
    students: tuple[str, ...] = STUDENTS
    """Students, of: internvl, videollama2, videochat2."""
    seeds: int = 1
    """Seeds 0 .. seeds-1."""
    count: int = 20
    """Questions of each task type of a twin."""
    runs: Path = Path("runs")
    """Where Table 4's runs are, and where results and tables go."""


@dataclass
class All:
    """Every run of some tables at micro scale, in groups of jobs; then tables and figures. Resumable."""

    tables: tuple[str, ...] = ()
    """Of: 5, rivals, budgets, ablations, push. Left out: all that the README shows (push is asked for by name)."""
    seeds: int = 5
    """Seeds of the core tier, and of the best of push; wide and the rest of push take two at most."""
    runs: Path = Path("runs")
    """Where runs, records and tables go."""
    jobs: int = 1
    """Runs at a time, each on one thread if there are several."""
    scale: str = "micro"
    """micro, or small: its tables are 5, rivals and easyvqa."""
    device: str = "cpu"
    """Small scale: cpu or cuda (not run on one yet)."""


@dataclass
class Calibrate:
    """Seconds of a step of each kind, interleaved: on a quiet machine. The time of runs that ran beside others."""

    students: tuple[str, ...] = STUDENTS[:1]
    rounds: int = 5
    runs: Path = Path("runs")


@dataclass
class Run:
    """One run by the name of its record. `table4` starts each as a process of its own, so that memory is its own."""

    name: Annotated[str, tyro.conf.Positional]
    seeds: int = 5
    runs: Path = Path("runs")
    scale: str = "micro"
    device: str = "cpu"


@dataclass
class Bench:
    """Time our trainer's steps against the stock Trainer's, TRL's and rivals, in turn; half an hour on two cores."""

    device: str = "cpu"
    """cpu or cuda."""
    only: tuple[str, ...] = ()
    """Workloads, or sweeps with --scaling; left out, all."""
    scaling: bool = False
    """Sweeps of length, ratio, batch, vocabulary and samples instead: how cost grows."""
    nano: bool = False
    """Tiny sizes: does it run?"""
    rounds: int | None = None
    """So many rounds of each workload, in place of what fits into its time; fewer than 30 decide nothing."""
    runs: Path = Path("runs")
    """The record goes to RUNS/bench."""


@dataclass
class Artefacts:
    """What the app shows of finished runs beyond their records: texts of traces, attention maps, grounding scores."""

    runs: Path = Path("runs")
    """Where the runs and their records are."""


@dataclass
class WorldCheck:
    """Can gates differ in this world? Prints what the design asks for, and exits 1 if it does not hold."""

    student: str = "internvl"
    samples: int = 1000
    runs: Path = Path("runs")


def table4(args: Table4) -> int:
    """Run what is missing, one process after another; then tables and curve."""
    unknown = [s for s in args.students if s not in STUDENTS]
    if unknown or args.scale not in SCALES:
        what = (
            f"student {unknown[0]!r}; known: {', '.join(STUDENTS)}"
            if unknown
            else f"scale {args.scale!r}; known: {', '.join(SCALES)}"
        )
        print(f"unknown {what}", file=sys.stderr)
        return 2
    if args.scale == "paper":
        from repro.launch import table4_paper

        options = dataclasses.asdict(args)
        del options["scale"], options["jobs"], options["device"]
        return table4_paper(**options)
    if args.scale == "small":
        from repro.small.command import small

        return small(("4",), args.seeds, args.runs, args.device)
    return _run_and_show(recipes.table4(args.students, args.seeds), args)


def all_runs(args: All) -> int:
    """The runs of some tables, or of all."""
    if args.scale == "small":
        from repro.small.command import small

        return small(args.tables, args.seeds, args.runs, args.device)
    if args.scale != "micro":
        print(f"scale {args.scale!r} has no such runs; micro and small have", file=sys.stderr)
        return 2
    unknown = set(args.tables) - {variant.table for variant in variants.VARIANTS.values()}
    if unknown:
        print(f"unknown table {', '.join(sorted(unknown))}", file=sys.stderr)
        return 2
    wanted = recipes.table4_and(args.tables, args.seeds) if args.tables else recipes.everything(args.seeds)
    return _run_and_show(wanted, args)


def _run_and_show(wanted: list[recipes.Recipe], args: Table4 | All) -> int:
    from repro import figures, tables
    from repro.grid import run_all

    code = run_all(wanted, args.runs, args.seeds, args.jobs)
    return code or tables.main(["--runs", str(args.runs)]) or figures.main(["--runs", str(args.runs)])


def calibrate(args: Calibrate) -> int:
    """Measure the steps of all recipes of some students."""
    from repro.calibrate import calibrate as measure

    known = recipes.everything(1, tuple(variants.TIERS))
    for path in measure([r for r in known if r.student in args.students], args.runs, args.rounds):
        print(f"Written: {path}")
    return 0


def run_one(args: Run) -> int:
    """The named recipe, here."""
    if args.scale == "small":
        from repro.small.command import run_one as run_small

        return run_small(args.name, args.seeds, args.runs, args.device)
    from repro.material import Material
    from repro.record import read
    from repro.run import run

    try:
        recipe = recipes.named(args.name, args.seeds)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    baseline = None
    if recipe.has_baseline:
        of = recipes.stock(recipe.student, recipe.seed)
        baseline = read(args.runs / "records" / f"{of.name}.json")
    record = run(recipe, Material(recipe.student, recipe.data, args.runs / "cache"), args.runs, baseline)
    print(f"{record.name}: {record.train_seconds:.0f} s of training, record in {args.runs / 'records'}")
    return 0


def plan(args: Plan) -> int:
    """The plan of one recipe, or of all."""
    from repro.plan import main

    options = dataclasses.asdict(args)
    as_json = options.pop("json")
    return main(**options, as_json=as_json)


def bench(args: Bench) -> int:
    """The bench, or its sweeps."""
    if args.scaling:
        from repro.bench.scaling import scaling

        return scaling(args.device, args.only, args.nano, args.runs)
    from repro.bench.run import bench as run_bench

    return run_bench(args.device, args.only, args.rounds, args.nano, args.runs)


def main() -> int:
    """Entry point; returns the exit code."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    commands = Table4 | All | Benchmarks | Calibrate | Plan | Run | Artefacts | Bench | WorldCheck
    command = tyro.cli(commands, prog="python -m repro", description=__doc__)  # type: ignore[arg-type]
    if isinstance(command, Plan):
        return plan(command)
    if isinstance(command, All):
        return all_runs(command)
    if isinstance(command, Calibrate):
        return calibrate(command)
    if isinstance(command, Benchmarks):
        from repro.benchmark_runs import benchmark_table

        return benchmark_table(command.table, command.students, command.seeds, command.runs, command.count)
    if isinstance(command, Bench):
        return bench(command)
    if isinstance(command, Artefacts):
        from repro import artefacts

        return artefacts.main(command.runs)
    if isinstance(command, WorldCheck):
        from repro.world_check import world_check

        return world_check(command.student, command.samples, command.runs)
    return table4(command) if isinstance(command, Table4) else run_one(command)


if __name__ == "__main__":
    sys.exit(main())
