"""`make keep`: runs that are worth committing go from ``runs/`` to ``results/``: records, traces, artefacts, results.

Only what a clean tree at a known commit made is taken (`record.write` refuses others), and only traces that still have
the hash that their record names.
"""

import argparse
import hashlib
import json
import shutil
import sys
from pathlib import Path

from eval import results as evaluations
from repro.bench import record as bench_record
from repro.benchmark_tables import run_name
from repro.record import Record, RecordError, load, write
from repro.small_tables import EVIDENCE

MANIFEST = "artefacts.json"


def keep(runs: Path, results: Path) -> list[Path]:
    """Copy records and traces; the files written. RecordError for a damaged or unclean record or a changed trace."""
    records, problems = load([runs])
    if problems:
        raise problems[0]
    written = []
    for record in records:
        written.append(write(record, results / "records"))
        trace = record.artefacts.get("trace")
        files = {trace["path"]: trace["sha256"]} if trace else {}
        files |= _listed(record, runs)
        for path, expected in files.items():
            written.append(_copy(runs / path, results / "artefacts" / path, expected))
    return [
        *written,
        *keep_calibrations(runs / "calibration", results / "calibration"),
        *keep_results(runs / "eval", results / "evaluations"),
        *keep_bench(runs / "bench", results / "bench"),
        *keep_evidence(runs / EVIDENCE, results / EVIDENCE),
    ]


def keep_evidence(source: Path, target: Path) -> list[Path]:
    """Copy what the small scale's teacher says; RecordError where it was made on an unclean tree."""
    if not source.exists():
        return []
    made = json.loads(source.read_text())
    if made["commit"] is None or made["dirty"] is not False:
        raise RecordError("dirty", made["dirty"], "False", "delete it and run the small scale on a clean tree", source)
    target.parent.mkdir(parents=True, exist_ok=True)
    return [Path(shutil.copyfile(source, target))]


def keep_bench(runs: Path, kept: Path) -> list[Path]:
    """Copy records of the bench; RecordError for a damaged or unclean one."""
    records, problems = bench_record.load(runs)
    if problems:
        raise problems[0]
    return [bench_record.write(record, kept) for record in records]


def keep_calibrations(runs: Path, kept: Path) -> list[Path]:
    """Copy what steps cost; RecordError for a calibration on an unclean tree, or beside other work."""
    written = []
    for source in sorted(runs.glob("*.json")):
        made = json.loads(source.read_text())
        for name, wanted in (("dirty", False), ("alone", True)):
            if made[name] is not wanted:
                raise RecordError(name, made[name], str(wanted), "calibrate again: clean tree, quiet machine", source)
        kept.mkdir(parents=True, exist_ok=True)
        written.append(Path(shutil.copyfile(source, kept / source.name)))
    return written


def keep_results(runs: Path, kept: Path) -> list[Path]:
    """Copy results of benchmarks, one file a run and benchmark; ResultError for a damaged or unclean one."""
    found, problems = evaluations.load(runs)
    if problems:
        raise problems[0]
    written = []
    for result in found:
        path = kept / run_name(result) / f"{result.benchmark}.json"
        if result.made["commit"] is None or result.made["dirty"] is not False:
            raise evaluations.ResultError(f"{path}: made on files that no commit holds; evaluate on a clean tree")
        evaluations.write(result, path)
        written.append(path)
    return written


def _listed(record: Record, runs: Path) -> dict[str, str]:
    """Path below ``runs`` -> sha256 of the files that the run's `artefacts.json` lists, itself included."""
    path = runs / record.name / MANIFEST
    if not path.is_file():
        return {}
    todo = "run `make artefacts` again, from a clean tree"
    try:
        about = json.loads(path.read_bytes())
        made, files, of = about["made"], dict(about["files"]), about["record"]
        clean = made["commit"] is not None and made["dirty"] is False
    except (ValueError, KeyError, TypeError) as error:
        raise RecordError("artefacts.json", f"{type(error).__name__}: {error}", "a list of files", todo, path) from None
    expected = {"config_hash": record.config_hash, "artefacts": record.artefacts}
    if of != expected:
        raise RecordError("record", of, f"{expected}: they were made of another run", todo, path)
    if not clean:
        raise RecordError("made", made, "a clean tree of a known commit", todo, path)
    itself = hashlib.sha256(path.read_bytes()).hexdigest()
    return {f"{record.name}/{name}": digest for name, digest in [*files.items(), (MANIFEST, itself)]}


def _copy(source: Path, target: Path, expected: str) -> Path:
    """Copies a file that has the expected sha256."""
    found = hashlib.sha256(source.read_bytes()).hexdigest() if source.is_file() else "no file"
    if found != expected:
        raise RecordError(f"artefacts.{source.stem}", found, expected, "run the recipe again", source)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    return target


def main() -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m repro.keep", description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--results", type=Path, default=Path("results"))
    options = parser.parse_args()
    try:
        print("\n".join(map(str, keep(options.runs, options.results))))
    except (RecordError, evaluations.ResultError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
