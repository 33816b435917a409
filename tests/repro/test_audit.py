"""What pip-audit says is judged: unknown findings fail, known ones are told, no answer is no failure."""

import json
import subprocess

import pytest

from repro import audit


def answer(*packages):
    return json.dumps({"dependencies": list(packages), "fixes": []})


BAD = {"name": "x", "version": "1", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2"], "description": ""}]}
GOOD = {"name": "y", "version": "1", "vulns": []}
UNKNOWN = {"name": "z", "skip_reason": "Dependency not found on PyPI"}


@pytest.mark.parametrize(
    ("said", "known", "status", "told"),
    [
        (answer(BAD, GOOD, UNKNOWN), {}, 1, "x 1: PYSEC-1, mended in 2"),
        (answer(BAD, GOOD), {"PYSEC-1": "we never call it"}, 0, "let pass: we never call it"),
        (answer(GOOD, UNKNOWN), {}, 0, "not asked about: z"),
        (answer(UNKNOWN, UNKNOWN), {}, 0, "NOT made"),
        ("", {}, 0, "NOT made: no route to host"),
    ],
)
def test_the_judgement(monkeypatch, tmp_path, capsys, said, known, status, told):
    monkeypatch.setattr(audit, "KNOWN", tmp_path / "known.json")
    audit.KNOWN.write_text(json.dumps(known))
    script = "import sys; sys.stderr.write('no route to host'); print(sys.argv[1])"
    monkeypatch.setattr(audit, "_COMMAND", (audit.sys.executable, "-c", script, said))
    assert audit.main() == status
    assert told in capsys.readouterr().out


def test_known_findings_have_reasons():
    known = json.loads(audit.KNOWN.read_text())
    assert all(isinstance(reason, str) and len(reason) > 10 for reason in known.values())


def test_the_command_is_pip_audits():
    options = subprocess.run([*audit._COMMAND[:3], "--help"], capture_output=True, text=True, check=False)
    if options.returncode:
        pytest.skip("pip-audit is not installed")
    for option in (o for o in audit._COMMAND if o.startswith("--")):
        assert option in options.stdout
