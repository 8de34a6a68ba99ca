"""The native tests, built without Python. A test that lacks a tool is skipped and says which."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BUILDS = ROOT / "build"


def find_tool(name: str) -> str:
    """The path of a program, that of this Python's environment first; skips where there is none."""
    beside = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    found = shutil.which(name, path=beside)
    if found is None:
        pytest.skip(f"needs {name}")
    return found


def run(*command: str | Path) -> str:
    """What the command prints; it has to succeed."""
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode == 0, f"{process.args}:\n{process.stdout}{process.stderr}"
    return process.stdout


def build(name: str, compiler: str, *options: str, source: str = "tests/native") -> Path:
    """Build the native tests, or another CMake project of the tree, with `compiler` and CMake's
    `options`; returns build/`name`.
    """
    cmake, ninja, compiler = find_tool("cmake"), find_tool("ninja"), find_tool(compiler)
    directory = BUILDS / name
    with _alone(directory):
        configure = [cmake, "-S", str(ROOT / source), "-B", str(directory), "-G", "Ninja"]
        configure += [f"-DCMAKE_MAKE_PROGRAM={ninja}", f"-DCMAKE_CXX_COMPILER={compiler}"]
        run(*configure, *options)
        run(cmake, "--build", directory)
    return directory


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """One process at a time: pytest-xdist has several that want the same build."""
    if sys.platform == "win32":
        pytest.skip("the native tests are not built on Windows")
    import fcntl

    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session")
def native_build() -> Path:
    """The native tests for this machine, compiled as the package is.

    Where `make` built the package they are of the same objects; elsewhere they have a build of
    their own.
    """
    if not (BUILDS / "package" / "CMakeCache.txt").exists():
        return build("native", os.environ.get("CXX", "c++"))
    directory, cmake = BUILDS / "package", find_tool("cmake")
    with _alone(directory):
        run(cmake, "--build", directory, "--target", "native_tests")
    return directory
