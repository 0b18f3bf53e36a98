"""The house's rules, read off the source: imports only go down, and the core needs little."""

import ast
import os
import re
import tempfile
import tomllib
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = {
    "__version__": 0, "types": 0, "errors": 0, "files": 0, "terminal": 0, "networks": 0, "metrics": 0, "report": 0,
    "spectra": 0, "provenance": 0, "card": 0, "comparison": 0, "interpolation": 0, "herald": 0, "meeting": 0,
    "handover": 1,
    "keys": 1, "ranges": 1, "cli": 2,
    "step": 1, "privacy": 1, "distributions": 1, "emissions": 1, "data": 1, "parallel": 1, "processes": 1,
    "checkpoint": 1,
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


def test_tests_see_nothing_of_the_user():
    """No home with data sets, no working directory with runs, no network."""
    assert Path(tempfile.gettempdir()).resolve() in Path.home().resolve().parents
    assert not (Path.home() / "tensorflow_datasets").exists()
    assert list(Path.cwd().iterdir()) == []
    assert [name for name in os.environ if re.match("TFDS|SLURM|OMPI", name)] == []
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen("https://www.python.org", timeout=1)


def test_advice_to_install_names_packages_that_the_project_declares():
    """Pip finds these packages from a checkout and from a wheel; the project itself lies on no index."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [declared["dependencies"], *declared["optional-dependencies"].values()]
    names = {re.match(r"[\w-]+", one)[0] for group in groups for one in group}
    advised = set()
    for path in [*FILES, *(ROOT / "experiments").rglob("*.py")]:
        text = path.read_text()
        assert "pip install" not in text or path.name == "errors.py", path
        advised |= {
            name for call in re.findall(r"\binstall\((.*?)\)", text) for name in re.findall(r"'([\w-]+)'", call)
        }
    assert len(advised) > 8
    assert advised <= names


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


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_one_file_prints(path):
    """Text from data must not steer a terminal: `jaxgen.terminal.say` escapes what could."""
    names = [node.id for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Name)]
    assert "print" not in names or path.name == "terminal.py"
