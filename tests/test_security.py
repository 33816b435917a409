"""What our code must not do with files and text that others wrote, and where the app listens."""

import ast
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted(path for package in ("regate", "eval", "repro", "app") for path in (ROOT / package).rglob("*.py"))
# Calls that run what they read. `torch.load` and `yaml.load` have a safe form.
FORBIDDEN = {
    "pickle.load", "pickle.loads", "pickle.Unpickler", "cPickle.load", "dill.load", "dill.loads", "joblib.load",
    "marshal.load", "marshal.loads", "shelve.open", "eval", "exec", "compile", "os.system", "os.popen",
    "subprocess.getoutput", "subprocess.getstatusoutput", "yaml.unsafe_load", "yaml.full_load", "pandas.read_pickle",
    "pd.read_pickle", "torch.hub.load", "torch.jit.load", "torch.package.PackageImporter",
}  # fmt: skip


def dotted(node: ast.expr) -> str:
    """`a.b.c` of a call's function; "" for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (before := dotted(node.value)):
        return f"{before}.{node.attr}"
    return ""


def full_names(tree: ast.AST) -> dict[str, str]:
    """Names that imports give to things: `from pickle import load as l` makes l pickle.load."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.asname: alias.name for alias in node.names if alias.asname}
    return names


def wrong(source: str) -> list[str]:
    """What a source does that it must not."""
    tree = ast.parse(source)
    names, found = full_names(tree), []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        head, _, rest = dotted(node.func).partition(".")
        name = ".".join(filter(None, (names.get(head, head), rest)))
        given = {k.arg: k.value for k in node.keywords if k.arg}
        value = {arg: v.value if isinstance(v, ast.Constant) else "?" for arg, v in given.items()}
        safe_loader = "Safe" in ast.unparse(given.get("Loader", ast.Constant("")))
        if (
            name in FORBIDDEN
            or (name == "torch.load" and value.get("weights_only") is not True)
            or (name == "yaml.load" and not safe_loader)
            or (name in ("numpy.load", "np.load") and value.get("allow_pickle", False) is not False)
            or value.get("trust_remote_code", False) is not False
            or value.get("shell", False) is not False
            or any(isinstance(v, ast.Constant) and v.value == "trust_remote_code" for v in node.args)
        ):
            found.append(f"line {node.lineno}: {ast.unparse(node)[:80]}")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_that_is_read_is_run(path):
    assert wrong(path.read_text()) == []


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch.load('x')", "import torch\ntorch.load('x', weights_only=False)",
        "from torch import load\nload('x', map_location='cpu')", "import pickle as p\np.load(f)",
        "from pickle import loads as l\nl(b'')", "eval('1')", "import subprocess\nsubprocess.run('ls', shell=True)",
        "import yaml\nyaml.load(f)", "import yaml\nyaml.load(f, Loader=yaml.Loader)",
        "M.from_pretrained('x', trust_remote_code=True)", "M.from_pretrained('x', trust_remote_code=flag)",
        "import numpy as np\nnp.load('x', allow_pickle=True)", "setattr(o, 'trust_remote_code', True)",
    ],
)  # fmt: skip
def test_the_rule_finds_it(source):
    assert wrong(source)


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch.load('x', weights_only=True)", "model.eval()", "import yaml\nyaml.safe_load(f)",
        "import yaml\nyaml.load(f, Loader=yaml.SafeLoader)", "M.from_pretrained('x', trust_remote_code=False)",
        "import re\nre.compile('x')", "import numpy as np\nnp.load('x')",
    ],
)  # fmt: skip
def test_the_rule_lets_pass_what_is_safe(source):
    assert wrong(source) == []


def test_the_app_answers_on_this_machine_and_bounds_what_it_takes():
    server = tomllib.loads((ROOT / "app" / ".streamlit" / "config.toml").read_text())["server"]
    assert server["address"] == "localhost"
    assert 0 < server["maxUploadSize"] <= 200  # MB
    assert server.get("enableXsrfProtection", True)
    assert server.get("enableCORS", True)


def test_the_app_names_the_files_that_it_takes():
    """An upload is read as one of a few kinds of data; no widget takes any file."""
    for path in (ROOT / "app").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and dotted(node.func).endswith("file_uploader"):
                named = len(node.args) > 1 or any(k.arg == "type" for k in node.keywords)
                assert named, f"{path.name}, line {node.lineno}"
