"""`make keep`: runs that are worth committing go from ``runs/`` to ``results/``: their records, and the traces of them.

Only records of a clean tree and a known commit are taken (`record.write` refuses others), and only traces that still
have the hash that their record names.
"""

import argparse
import hashlib
import shutil
import sys
from pathlib import Path

from repro.record import RecordError, load, write


def keep(runs: Path, results: Path) -> list[Path]:
    """Copy records and traces; the files written. RecordError for a damaged or unclean record or a changed trace."""
    records, problems = load([runs])
    if problems:
        raise problems[0]
    written = []
    for record in records:
        written.append(write(record, results / "records"))
        trace = record.artefacts.get("trace")
        if trace:
            source, target = runs / trace["path"], results / "artefacts" / trace["path"]
            found = hashlib.sha256(source.read_bytes()).hexdigest() if source.is_file() else "no file"
            if found != trace["sha256"]:
                raise RecordError("artefacts.trace", found, trace["sha256"], "run the recipe again", source)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
            written.append(target)
    return written


def main() -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m repro.keep", description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--results", type=Path, default=Path("results"))
    options = parser.parse_args()
    try:
        print("\n".join(map(str, keep(options.runs, options.results))))
    except RecordError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
