"""What may import what: refinement needs torch and numpy alone, and imports run downwards."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import dtag_fast

PACKAGE = Path(dtag_fast.__file__).parent
ROOT = Path(__file__).parents[1]

# torch, numpy, and what torch itself requires.
ALLOWED = (
    "torch torchgen functorch triton nvidia numpy typing_extensions sympy mpmath networkx jinja2 "
    "markupsafe filelock fsspec setuptools dtag_fast"
)
BLOCK = """
import importlib.abc, sys

class Block(importlib.abc.MetaPathFinder):
    # Not installed, as far as this process can tell.
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in allowed:
            raise ModuleNotFoundError(f"No module named {name!r} (blocked)", name=name)
        return None

allowed = {*sys.stdlib_module_names, *sys.argv[1].split()}
sys.meta_path.insert(0, Block())
"""


def run_blocked(code: str) -> subprocess.CompletedProcess[str]:
    """Code in a fresh interpreter in which only the allowed packages can be imported."""
    return subprocess.run(
        [sys.executable, "-c", BLOCK + code, ALLOWED],
        env={**os.environ, "PYTHONPATH": str(PACKAGE.parent)},
        text=True,
        capture_output=True,
        timeout=300,
        check=False,
    )


def test_refinement_needs_torch_and_numpy_alone() -> None:
    code = """
import numpy as np
import dtag_fast
assert dtag_fast.__version__
critic = dtag_fast.Critic(4, 2, hidden=(16, 16), normalizer=dtag_fast.Normalizer.identity(4))
observations = np.zeros((3, 4), np.float32)
actions = np.full((3, 2), 0.5, np.float32)
result = dtag_fast.refine(critic, observations, actions, steps=3)
specified = dtag_fast.reference.refine(critic, observations, actions, steps=3)
assert np.abs(result - specified).max() < 1e-5
assert (result != actions).any()
refined, info = dtag_fast.Refiner(critic, return_info=True)(observations, actions)
assert (info.q >= info.q_initial).all() and refined.shape == (3, 2)

import torch
from torch import nn
head = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1))
read = dtag_fast.Critic.from_module([head], action_dim=2)
assert read(torch.zeros(3, 4), torch.zeros(3, 2)).shape == (1, 3)

from dtag_fast.refinement.parity import measure_parity
assert measure_parity(critic, *map(torch.from_numpy, (observations, actions)),
                      backend="reference").holds
from dtag_fast import build_info
build_info.describe()
try:
    import gymnasium
except ModuleNotFoundError:
    print("done, without gymnasium")
"""
    result = run_blocked(code)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "done, without gymnasium\n"


def test_what_needs_more_says_what_it_needs() -> None:
    code = """
import dtag_fast
try:
    dtag_fast.evaluate
except ModuleNotFoundError as error:
    print(error.name)
"""
    result = run_blocked(code)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "gymnasium\n"


def test_importing_the_package_imports_nothing_else() -> None:
    code = "import sys, dtag_fast; print('torch' in sys.modules, 'numpy' in sys.modules)"
    assert run_blocked(code).stdout == "False False\n"


# --- the public names ---


@pytest.mark.parametrize("name", dtag_fast.__all__)
def test_every_public_name_resolves(name: str) -> None:
    value = getattr(dtag_fast, name)
    assert getattr(dtag_fast, name) is value
    assert name in dir(dtag_fast)
    if name != "__version__":
        assert value.__doc__
        assert value.__name__.rpartition(".")[2] == name


def test_all_lists_what_type_checkers_see() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    froms = [node for node in ast.walk(block) if isinstance(node, ast.ImportFrom)]
    seen = {alias.asname for node in froms for alias in node.names}
    assert seen == set(dtag_fast.__all__) - {"__version__"}


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = dtag_fast.nothing


# --- layers ---

# From the top; a module may import its own layer's folder and those below it. models and data do
# not know of each other.
LAYERS = (
    {"cli"},
    {"commands"},
    {"studies"},
    {"evaluation"},
    {"acting"},
    {"training"},
    {"refinement"},
    {"models", "data"},
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
# Files that belong to no layer: any may import them, and they import none.
SHARED = {
    "checkpoint",
    "build_info",
    "threads",
    "_cuda",
    "_native",
    "_build_failure",
    "__version__",
}
# Critic.load reads a checkpoint with the code of the training that wrote it. It is a convenience
# that the call itself imports.
EXCEPTIONS = {("models/critic.py", "load", "dtag_fast.training.critic")}


def imports(file: Path) -> Iterator[tuple[str, str]]:
    """(function around it or "", imported module) of every import in a file, wherever it is."""

    def visit(node: ast.AST, function: str) -> Iterator[tuple[str, str]]:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            function = node.name
        if isinstance(node, ast.Import):
            yield from ((function, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: a relative import"
            if node.module == "dtag_fast":
                yield from ((function, f"dtag_fast.{alias.name}") for alias in node.names)
            else:
                yield function, str(node.module)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, function)

    yield from visit(ast.parse(file.read_text()), "")


def layer_of(module: str) -> str:
    """The folder, or top-level file, of a module of the package."""
    name = module.split(".")[1]
    if name not in LEVEL and name not in SHARED:
        home = {**dtag_fast._HOME, "reference": "dtag_fast.refinement.reference"}
        name = home[name].split(".")[1]
    return name


def violations() -> Iterator[tuple[str, str, str]]:
    """(file, function, module) of every import that does not run downwards."""
    for file in sorted(PACKAGE.rglob("*.py")):
        path = file.relative_to(PACKAGE)
        own = path.parts[0].removesuffix(".py")
        if own == "__init__":
            continue  # re-exports from every layer
        for function, module in imports(file):
            if not module.startswith("dtag_fast."):
                continue
            other = layer_of(module)
            if other in SHARED or other == own:
                continue
            if own in SHARED or LEVEL[own] >= LEVEL[other]:
                yield path.as_posix(), function, module


def test_imports_run_downwards() -> None:
    assert set(violations()) == EXCEPTIONS


def test_every_folder_has_its_layer() -> None:
    known = set(LEVEL) | SHARED | {"__init__"}
    found = {path.relative_to(PACKAGE).parts[0] for path in PACKAGE.rglob("*.py")}
    assert {name.removesuffix(".py") for name in found} <= known


def test_subpackages_export_nothing_of_their_own() -> None:
    """Names are imported from where they are defined; only refinement has a front door."""
    for file in PACKAGE.rglob("__init__.py"):
        if file.parent.name not in (PACKAGE.name, "refinement"):
            assert file.read_text() == "", file


@pytest.mark.parametrize("module", ["dtag_fast.training.config", "dtag_fast.data.references"])
def test_settings_import_no_torch(module: str) -> None:
    code = f"import sys, {module}; print('torch' in sys.modules, 'numpy' in sys.modules)"
    result = run_blocked(code)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("False")


# --- sizes ---


def test_no_file_is_longer_than_a_reader_can_follow() -> None:
    files = [*PACKAGE.rglob("*.py"), *PACKAGE.rglob("*.pyi")]
    for folder in ("csrc", "benchmarks"):
        files += [
            p for s in (".py", ".h", ".cpp", ".cu", ".cuh") for p in (ROOT / folder).rglob("*" + s)
        ]
    assert any(file.suffix == ".cpp" for file in files)
    lengths = {str(file): len(file.read_text().splitlines()) for file in files}
    assert {file: n for file, n in lengths.items() if n > 450} == {}
