"""Who may import whom, and that every file of the packages is on the README's map."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ALLOWED = {"regate": {"regate"}, "eval": {"eval", "regate"}, "repro": {"repro", "eval", "regate"}}
TORCH_FREE = (
    "record",
    "stats",
    "tables",
    "figures",
    "curve",
    "measured",
    "compare",
    "rows",
    "render",
    "variants",
    "timing",
    "variant_tables",
    "budgets",
    "by_tag",
    "readme",
    "drawing",
    "variant_figures",
)


def imported(path: Path) -> set[str]:
    """Top-level names that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("package", ALLOWED)
def test_packages_import_only_what_they_may(package):
    ours = {"regate", "eval", "repro", "app", "tests"}
    for path in (ROOT / package).rglob("*.py"):
        foreign = imported(path) & ours - ALLOWED[package]
        assert not foreign, f"{path.relative_to(ROOT)} imports {foreign}"


def test_the_world_is_free_of_torch():
    for path in (ROOT / "eval" / "world").rglob("*.py"):
        assert "torch" not in imported(path), path.name


@pytest.mark.parametrize("name", TORCH_FREE)
def test_results_are_free_of_torch(name):
    assert not imported(ROOT / "repro" / f"{name}.py") & {"torch", "transformers", "regate"}


def test_the_readme_maps_every_file():
    readme = (ROOT / "README.md").read_text()
    for package in ALLOWED:
        for path in (ROOT / package).rglob("*.py"):
            if path.name != "__init__.py":
                assert f"`{path.relative_to(ROOT)}`" in readme, f"README.md does not map {path.relative_to(ROOT)}"
