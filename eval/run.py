"""`python -m eval.run mvbench --checkpoint PATH`: a guarded run of lmms-eval. What `make eval-*` calls.

It finds or makes the data, runs lmms-eval on it as a process of its own (or several), and then looks whether the run
counts. If it does, each benchmark's result goes to `<runs>/eval/<run>/<benchmark>.json` and its scores are printed; if
not, it prints everything that is wrong, writes no result and exits with 1.

A run is named after the checkpoint and all that decides the scores. Called again, a run that was stopped goes on after
the last answer, and one that is complete is only printed.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import tyro

from eval import data as datasource
from eval.benchmarks import BENCHMARKS
from eval.guard import MAX_UNPARSABLE, problems, tasks_of
from eval.machine import environment
from eval.prompts import TABLE_6, check_profile, prompts_hash
from eval.results import Result, ResultError, config_hash, read, write
from eval.scores import rows_of, scores_of
from regate.integrations.checkpoint import fingerprint

SUITES = Path(__file__).resolve().parent / "suites"
ROOT = SUITES.parent.parent
_LOG_TAIL = 15


@dataclass
class Args:
    """Evaluate a checkpoint on benchmarks through lmms-eval, guarded."""

    benchmarks: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Names of benchmarks, or `all`."""
    checkpoint: str
    """Folder or hub name of a checkpoint or a PEFT adapter."""
    base: str | None = None
    """The checkpoint of an adapter, where the adapter does not name it."""
    data: str = "twin"
    """twin (of the embedded world, offline), hub, or a folder with a data set for each benchmark."""
    prompts: str = "paper"
    """paper (Table 6) or stock (lmms-eval's own)."""
    answer: str | None = None
    """generate, or rank (the likeliest option's text, for students too small to bind letters). Left out: rank on twins,
    generate elsewhere."""
    processes: int = 1
    """Processes on this machine; each takes a GPU of its own where there are some."""
    limit: int | None = None
    """Questions per task; all if left out. Such scores are for trying out."""
    count: int = 20
    """Questions per task type of a twin."""
    seed: int = 0
    """Seed of a twin, and of the options that some stock parsers draw where they find no answer."""
    batch_size: int = 16
    num_frames: int = 8
    """Frames of each video."""
    normalize: str = "sum"
    """With rank: sum or mean of an option's log-probabilities."""
    dtype: str = "auto"
    attn_implementation: str | None = None
    max_length: int | None = None
    """Longest prompt in tokens; longer ones are an error."""
    max_unparsable: float = MAX_UNPARSABLE
    """Share of answers in which no option may be found."""
    model: str = "regate"
    """Any model that lmms-eval knows; others than ours get `pretrained` alone."""
    runs: Path = Path("runs")
    """Results go to `<runs>/eval`, twins to `<runs>/cache`."""

    @property
    def protocol(self) -> dict[str, Any]:
        """How questions are put to the model: what decides the answers beside the checkpoint and the data."""
        names = ("model", "answer", "normalize", "num_frames", "max_length", "dtype", "attn_implementation")
        return {name: getattr(self, name) for name in names}


def checked(args: Args) -> Args:
    """The arguments with what was left out filled in; ValueError where they make no sense together."""
    names = tuple(BENCHMARKS) if "all" in args.benchmarks else args.benchmarks
    unknown = [name for name in names if name not in BENCHMARKS]
    if unknown or not names:
        raise ValueError(f"benchmarks: got {unknown or 'none'}, expected all, or some of {', '.join(BENCHMARKS)}")
    check_profile(args.prompts)
    answer = args.answer or ("rank" if args.data == "twin" else "generate")
    if answer not in ("generate", "rank"):
        raise ValueError(f"answer is {answer!r}, expected generate or rank")
    for name in names:
        if args.limit is not None and BENCHMARKS[name].whole:
            raise ValueError(f"{name} has no score without all of its questions: leave --limit out")
        if args.limit is not None and args.limit % 2 and BENCHMARKS[name].even:
            raise ValueError(f"{name} asks in pairs: --limit must be even, got {args.limit}")
    if any(sign in args.checkpoint + (args.base or "") for sign in ",="):
        raise ValueError(f"{args.checkpoint}: lmms-eval cannot take a path with ',' or '='")
    path = Path(args.checkpoint)
    checkpoint = str(path.resolve()) if path.is_dir() else args.checkpoint
    return dataclasses.replace(args, benchmarks=tuple(dict.fromkeys(names)), answer=answer, checkpoint=checkpoint)


@dataclass(frozen=True)
class Run:
    """One call of lmms-eval: its folder, data and checkpoint."""

    args: Args
    data: datasource.Data
    fingerprint: str

    @property
    def folder(self) -> Path:
        label = re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(Path(self.args.checkpoint).parts[-2:])).strip("-.")
        where = [self.data.source, dict(self.data.made)]
        key = config_hash(
            self.fingerprint, self.args.protocol, self.args.prompts, where, self.args.limit, self.args.seed
        )
        return self.args.runs / "eval" / f"{label}-{key[:8]}"

    def result_path(self, benchmark: str) -> Path:
        return self.folder / f"{benchmark}.json"

    def tasks(self, benchmark: str) -> list[str]:
        return tasks_of(benchmark, self.data.shown)

    def data_of(self, benchmark: str) -> dict[str, Any]:
        """What a result says about its data, before any question was asked."""
        folder = self.data.folders.get(benchmark)
        asked = self.tasks(benchmark)
        return {
            "source": self.data.source,
            "fingerprint": datasource.fingerprint(folder) if folder else None,
            **self.data.made,
            "missing": [task for task in BENCHMARKS[benchmark].tasks if task not in asked],
        }


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 if every benchmark has a result, 1 if the run does not count, 2 if it could not be started."""
    try:
        args = checked(tyro.cli(Args, args=argv, prog="python -m eval.run"))
        data = datasource.find(args.data, args.benchmarks, args.runs / "cache" / "twins", args.count, args.seed)
        run = Run(args, data, f"fp-{fingerprint(args.checkpoint, args.base)}")
    except (ValueError, FileNotFoundError) as error:
        print(f"cannot evaluate: {error}", file=sys.stderr)
        return 2
    waiting = [name for name in args.benchmarks if _existing(run, name) is None]
    if waiting and (wrong := _evaluate(run, waiting)):
        print(f"\nThis run does not count ({len(wrong)} problems, no result was written):", file=sys.stderr)
        print("\n".join(f"  - {problem}" for problem in wrong), file=sys.stderr)
        return 1
    for name in args.benchmarks:
        result = _existing(run, name)
        assert result is not None, name
        print(describe(result))
    print(f"\nresults: {run.folder}")
    return 0


def _existing(run: Run, benchmark: str) -> Result | None:
    """The result of an earlier call with the same checkpoint, protocol, prompts and data."""
    path = run.result_path(benchmark)
    if not path.exists():
        return None
    try:
        result = read(path)
    except ResultError as error:
        print(f"made again: {error}", file=sys.stderr)
        return None
    now = run.data_of(benchmark)
    same = {key: result.data.get(key) for key in now} == now and result.max_unparsable <= run.args.max_unparsable
    return result if same else None


def _evaluate(run: Run, names: Sequence[str]) -> list[str]:
    """Runs lmms-eval, judges what came out, writes results; what is wrong, in words."""
    machine = environment(ROOT)
    started, began = datetime.now(UTC), time.perf_counter()
    output = run.folder / "lmms-eval" / started.strftime("%Y%m%dT%H%M%S%f")
    code = _call(run, names, output)
    seconds = time.perf_counter() - began
    found = output_of(output)
    wrong = [f"lmms-eval ended with exit code {code}; its last words:\n{_tail(run.folder / 'run.log')}"] if code else []
    if f"fp-{fingerprint(run.args.checkpoint, run.args.base)}" != run.fingerprint:
        wrong.append(f"{run.args.checkpoint} changed while it was evaluated")
    judged = {
        name: problems(name, found.results, found.samples, run.tasks(name), run.args.max_unparsable) for name in names
    }
    wrong += [problem for name in names for problem in judged[name]]
    if code or found.results is None:
        return wrong
    finished = datetime.now(UTC)
    for name in names:
        if not judged[name]:
            made = {"started": _utc(started), "finished": _utc(finished), **machine}
            write(_result(run, name, found, seconds, made), run.result_path(name))
    return wrong


def _call(run: Run, names: Sequence[str], output: Path) -> int:
    """lmms-eval as a process; its exit code. Answers go to a cache in the run's folder as they come."""
    args, folder = run.args, run.folder.resolve()
    suites = folder / "suites"
    suites.mkdir(parents=True, exist_ok=True)
    for name in names:
        (suites / f"{name}.yaml").write_text(suite(name, run.tasks(name)))
    options: dict[str, Any] = {"pretrained": args.checkpoint}
    if args.model == "regate":
        options |= {"base": args.base, "fingerprint": run.fingerprint, **args.protocol}
        del options["model"]
    model_args = ",".join(f"{name}={value}" for name, value in options.items() if value is not None)
    launch = [sys.executable, "-m"]
    if args.processes > 1:
        launch += ["torch.distributed.run", "--standalone", f"--nproc_per_node={args.processes}", "-m"]
    command = [
        *launch, "lmms_eval", "--model", args.model, "--model_args", model_args,
        "--tasks", ",".join(BENCHMARKS[name].group for name in names), "--include_path", str(suites),
        "--batch_size", str(args.batch_size), "--use_cache", str(folder / "cache"),
        "--output_path", str(output.resolve()), "--log_samples", "--process_docs_parallel", "1",
        "--seed", str(args.seed),
        "--verbosity", "DEBUG",  # otherwise an exception ends in exit code 0
    ]  # fmt: skip
    if args.limit is not None:
        command += ["--limit", str(args.limit)]
    env = datasource.variables(run.data, folder / "home", args.runs / "cache" / "datasets")
    env |= {"REGATE_EVAL_PROMPTS": args.prompts, "LMMS_CACHE_RUN_ID": "run"}
    log = folder / "run.log"
    shown = " ".join(f"{key}={shlex.quote(value)}" for key, value in env.items())
    print(f"evaluating on {', '.join(names)}; follow it in {log}", flush=True)
    with log.open("w") as file:
        file.write(f"{shown} {shlex.join(command)}\n")
        file.flush()
        return subprocess.run(
            command,
            env={**os.environ, **env},
            stdout=file,
            stderr=subprocess.STDOUT,
            check=False,
            preexec_fn=_end_with_parent if sys.platform == "linux" else None,
        ).returncode


_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1


def _end_with_parent() -> None:
    """Without a parent nobody judges the answers; and the next call would write to the same cache beside this one."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def suite(benchmark: str, tasks: Sequence[str]) -> str:
    """The group of a benchmark as YAML, with those of its tasks that the data has."""
    lines = (SUITES / f"{benchmark}.yaml").read_text().splitlines()
    absent = [f"{{task: {task}," for task in BENCHMARKS[benchmark].tasks if task not in tasks]
    return "\n".join(line for line in lines if not any(mark in line for mark in absent)) + "\n"


@dataclass(frozen=True)
class Output:
    """What lmms-eval wrote: `results` is None where it wrote none."""

    results: dict[str, Any] | None
    samples: dict[str, list[dict[str, Any]]]


def output_of(folder: Path) -> Output:
    """Reads an output folder of lmms-eval."""
    written = sorted(folder.rglob("*_results.json"))
    samples: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(folder.rglob("*_samples_*.jsonl")):
        task = path.stem.split("_samples_", 1)[1]
        samples[task] = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return Output(json.loads(written[-1].read_text(encoding="utf-8")) if written else None, samples)


def _result(run: Run, benchmark: str, found: Output, seconds: float, made: Mapping[str, Any]) -> Result:
    args, tasks = run.args, run.tasks(benchmark)
    assert found.results is not None
    samples = {task: sorted(found.samples[task], key=lambda s: s["doc_id"]) for task in tasks}
    rows = rows_of(samples)
    counts = [count for task in tasks for sample in samples[task] for count in sample["token_counts"]]
    asked = [[task, s["doc_id"], s["input"], s["target"]] for task in tasks for s in samples[task]]
    return Result(
        benchmark=benchmark,
        checkpoint={"path": _told(args.checkpoint), "base": args.base, "fingerprint": run.fingerprint},
        protocol=args.protocol,
        prompts={
            "profile": args.prompts,
            "sentence": TABLE_6[benchmark] if args.prompts == "paper" else None,
            "sha": prompts_hash(sample["regate"]["prompt"] for task in tasks for sample in samples[task]),
        },
        data={**run.data_of(benchmark), "questions": config_hash(asked)},
        limit=args.limit,
        seed=args.seed,
        scores={score.name: score for score in scores_of(benchmark, rows)},
        outcomes={task: [row.score for row in rows if row.task == task] for task in tasks},
        stock={task: _numbers(found.results["results"][task]) for task in (*tasks, BENCHMARKS[benchmark].group)},
        cost={
            "seconds": round(seconds, 3),
            "processes": args.processes,
            "batch_size": args.batch_size,
            **{key: sum(c[key] for c in counts if c and key in c) for key in ("input_tokens", "output_tokens")},
            "from_cache": sum(count is None for count in counts),
        },
        made=dict(made),
        max_unparsable=args.max_unparsable,
    )


def _told(path: str) -> str:
    """A path as results tell it: from the working directory, if it lies below: nothing of a machine."""
    folder = Path(path)
    return str(folder.relative_to(Path.cwd())) if folder.is_relative_to(Path.cwd()) else path


def _numbers(values: Mapping[str, Any]) -> dict[str, Any]:
    """lmms-eval's numbers of a task, without its text columns."""
    return {key: value for key, value in values.items() if isinstance(value, int | float | list)}


def describe(result: Result) -> str:
    """A result as lines of text: every score with interval, questions, unparsable answers and what guessing gives."""
    lines = [
        f"\n{BENCHMARKS[result.benchmark].title} ({result.protocol['answer']}, {result.prompts['profile']} prompts)"
    ]
    width = max(len(name) for name in result.scores)
    headline = {score.name for score in result.headline}
    for score in result.scores.values():
        chance = f"  chance {score.chance:.1f}" if score.chance is not None else ""
        unparsable = f"  unparsable {score.unparsable}" if score.unparsable else ""
        of = f" of {score.maximum:.0f}" if score.maximum != 100 else ""
        lines.append(
            f"{'*' if score.name in headline else ' '} {score.name:<{width}} {score.value:7.1f}{of}"
            f"  [{score.low:.1f}, {score.high:.1f}]  n {score.n}{chance}{unparsable}"
        )
    if result.data["missing"]:
        lines.append(f"  not in this data: {', '.join(result.data['missing'])}")
    return "\n".join(lines)


def _tail(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return "\n".join(f"      {line[:200]}" for line in lines[-_LOG_TAIL:])


def _utc(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds")


if __name__ == "__main__":
    sys.exit(main())
