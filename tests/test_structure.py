"""The house's rules, read off the source: imports only go down, and the core needs little."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = {
    "__version__": 0, "types": 0, "errors": 0, "files": 0, "networks": 0, "metrics": 0, "report": 0, "spectra": 0,
    "provenance": 0, "card": 0, "comparison": 0, "interpolation": 0, "handover": 1,
    "ranges": 1, "cli": 2,
    "step": 1, "privacy": 1, "distributions": 1, "emissions": 1, "data": 1, "parallel": 1, "processes": 1, "checkpoint": 1,
    "models": 2, "evaluate": 2,
    "train": 3, "log": 3, "config": 3, "guard": 3, "signals": 3, "audit": 3,
    "folder": 4, "experiment": 4, "run": 4, "classifier": 4,
    "commands": 5, "__main__": 5, "__init__": 5,
}  # fmt: skip
CORE = ["types", "step", "models", "networks", "distributions"]
LIGHT = {"jax", "flax", "optax", "jaxgen"}
FILES = sorted((ROOT / "jaxgen").rglob("*.py"))


def place(path: Path) -> str:
    return path.relative_to(ROOT / "jaxgen").with_suffix("").parts[0]


def imports(path: Path) -> list[tuple[str, bool]]:
    """(module, at the top of the file) of every import."""
    tree = ast.parse(path.read_text())
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, node in tree.body) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = (
                [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "jaxgen" else [node.module]
            )
            found += [(name, node in tree.body) for name in names]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_only_go_down(path):
    for name, _ in imports(path):
        if name.startswith("jaxgen."):
            other = name.split(".")[1]
            assert FLOORS[other] <= FLOORS[place(path)], f"{path.name} imports {name}, which lives above it"
            assert {place(path), other} != {"models", "train"}, "experiments join models and training"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_is_heavy_is_imported_where_it_is_used(path):
    import sys

    for name, at_the_top in imports(path):
        package = name.split(".")[0]
        if at_the_top and package not in sys.stdlib_module_names:
            allowed = LIGHT if place(path) in CORE else LIGHT | {"numpy", "msgspec", "tyro"}
            assert package in allowed, f"{path.name} imports {name} at its top"
        if name == "torch" and not at_the_top and path == ROOT / "jaxgen" / "metrics" / "inception.py":
            continue  # reads a checkpoint of PyTorch's, for whoever has one
        assert package not in {"tensorflow", "clu", "distrax", "chex", "torch", "pickle"}, name
        assert "jax._src" not in name
