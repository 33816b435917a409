"""Who may import whom, and that every file of the packages is on the README's map."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ALLOWED = {
    "regate": {"regate"},
    "eval": {"eval", "regate"},
    "repro": {"repro", "eval", "regate"},
    "app": {"app", "repro", "regate"},
}
TORCH_FREE = (
    "record", "stats", "tables", "figures", "curve", "measured", "compare", "rows", "render", "attention_file",
    "benchmark_tables", "variants", "timing", "variant_tables", "budgets", "by_tag", "readme", "drawing",
    "variant_figures", "small_tables",
)  # fmt: skip


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


def imported_modules(tree: ast.AST) -> set[str]:
    """Dotted names that a module imports anywhere in it; names imported from a package count as its modules."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_the_app_reads_only_what_is_free_of_torch():
    for path in (ROOT / "app").rglob("*.py"):
        modules = {name.split(".")[1] for name in imported_modules(ast.parse(path.read_text())) if name[:6] == "repro."}
        files = {name for name in modules if (ROOT / "repro" / f"{name}.py").exists()}
        for name in files:
            top = imported(ROOT / "repro" / f"{name}.py")
            assert not top & {"torch", "transformers", "regate"}, f"{path.relative_to(ROOT)} imports repro.{name}"


def test_the_apps_pages_start_without_torch():
    """torch costs seconds: modules of the app import it in the functions that need it, never when they are loaded."""
    heavy = {"torch", "transformers", "regate", "datasets", "av"}
    for path in (ROOT / "app").rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            names = {name.split(".")[0] for name in imported_modules(node)} if _imports(node) else set()
            assert not names & heavy, f"{path.relative_to(ROOT)} imports {names & heavy} when it is loaded"


def _imports(node: ast.stmt) -> bool:
    return isinstance(node, ast.Import | ast.ImportFrom)


def test_the_readme_maps_every_file():
    readme = (ROOT / "README.md").read_text()
    for package in ALLOWED:
        for path in (ROOT / package).rglob("*.py"):
            if path.name != "__init__.py":
                assert f"`{path.relative_to(ROOT)}`" in readme, f"README.md does not map {path.relative_to(ROOT)}"
