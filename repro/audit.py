"""`python -m repro.audit`: known vulnerabilities of what is installed, by pip-audit; part of `make check`.

Exit status 1 for a finding that `audit.json` does not know. Where the service cannot be asked, that is said, and the
status is 0: the checks work without a network.
"""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
KNOWN = ROOT / "audit.json"
"""{id of a vulnerability: why it is let pass}."""
SECONDS = 300
_COMMAND = (
    sys.executable, "-m", "pip_audit", "--local", "--skip-editable", "--format", "json", "--progress-spinner", "off",
    "--timeout", "10",
)  # fmt: skip


@dataclass(frozen=True)
class Audit:
    """What pip-audit said: packages asked about, packages it could not ask about, [package, id, fixed in]."""

    asked: int
    skipped: list[str]
    findings: list[tuple[str, str, str]]

    def unknown(self, known: dict[str, str]) -> list[tuple[str, str, str]]:
        """Findings that nobody has let pass."""
        return [finding for finding in self.findings if finding[1] not in known]


def parsed(text: str) -> Audit:
    """pip-audit's JSON; ValueError where it is none."""
    found: dict[str, Any] = json.loads(text)
    packages = [p for p in found["dependencies"] if "skip_reason" not in p]
    findings = [
        (f"{p['name']} {p['version']}", v["id"], ", ".join(v["fix_versions"]) or "nothing yet")
        for p in packages
        for v in p["vulns"]
    ]
    return Audit(len(packages), [p["name"] for p in found["dependencies"] if "skip_reason" in p], findings)


def main() -> int:
    """Ask, tell, judge."""
    known = json.loads(KNOWN.read_text())
    try:
        done = subprocess.run(_COMMAND, capture_output=True, text=True, timeout=SECONDS, check=False)
        audit = parsed(done.stdout)
    except (subprocess.TimeoutExpired, ValueError, KeyError) as error:
        late = isinstance(error, subprocess.TimeoutExpired)
        said = [f"no answer within {SECONDS} s"] if late else done.stderr.strip().splitlines() or [str(error)]
        print(f"the dependency audit was NOT made: {said[-1]}")
        return 0
    if not audit.asked:
        print(f"the dependency audit was NOT made: the service knows none of the {len(audit.skipped)} packages")
        return 0
    print(f"dependency audit: {audit.asked} packages, {len(audit.findings)} findings")
    if audit.skipped:
        print(f"  not asked about: {', '.join(audit.skipped)}")
    for package, name, fixed in audit.findings:
        print(f"  {package}: {name}, mended in {fixed}" + (f"; let pass: {known[name]}" if name in known else ""))
    return 1 if audit.unknown(known) else 0


if __name__ == "__main__":
    sys.exit(main())
