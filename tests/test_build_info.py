"""What is told about the native build, and how an installation does without it."""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
import subprocess
import sys
import types
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from dtag_fast import build_info

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    build_info.native_missing_reason.cache_clear()
    yield
    build_info.native_missing_reason.cache_clear()


def hide_native(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dtag_fast._native", None)


def test_of_this_installation() -> None:
    info = build_info.describe()
    assert set(info) == build_info.BuildInfo.__required_keys__
    if info["native"]:
        assert info["reason"] is None
        assert info["path"] is not None
        assert Path(info["path"]).is_file()
        assert info["compiler"]
        assert "O3" in info["flags"]
        assert "fast-math" not in info["flags"]
    else:
        assert info["reason"]
        assert info["path"] is None


def test_without_a_record(monkeypatch: pytest.MonkeyPatch) -> None:
    hide_native(monkeypatch)
    monkeypatch.setitem(sys.modules, build_info.FAILURE_RECORD, None)
    info = build_info.describe()
    assert not info["native"]
    assert "no record of why" in str(info["reason"])
    assert info["log"] == info["compiler"] == ""


def test_with_a_record(monkeypatch: pytest.MonkeyPatch) -> None:
    hide_native(monkeypatch)
    record = types.ModuleType(build_info.FAILURE_RECORD)
    record.REASON, record.LOG = "no compiler", "line 1\nline 2\n"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, build_info.FAILURE_RECORD, record)
    info = build_info.describe()
    assert not info["native"]
    assert info["reason"] == "no compiler"
    assert info["log"] == "line 1\nline 2\n"


def test_of_a_module_that_does_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    def import_module(name: str) -> types.ModuleType:
        raise ImportError("libstdc++.so.6: version not found", name=name)

    monkeypatch.setattr(importlib, "import_module", import_module)
    assert (
        build_info.native_missing_reason()
        == "the native module does not load: libstdc++.so.6: version not found"
    )


# The build backend. These run it as pip does, on a copy of the tree, without a network.

needs_skbuild = pytest.mark.skipif(
    importlib.util.find_spec("scikit_build_core") is None, reason="scikit-build-core is missing"
)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    copy = tmp_path / "tree"
    for folder in ("csrc", "dtag_fast", "tools"):
        ignored = shutil.ignore_patterns("*.so", "*.pyd", "__pycache__")
        shutil.copytree(ROOT / folder, copy / folder, ignore=ignored)
    for name in ("pyproject.toml", "CMakeLists.txt", "LICENSE", ".gitignore"):
        shutil.copy(ROOT / name, copy / name)
    (copy / "README.md").write_text("# dtag-fast\n")
    return copy


def build(tree: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Build the tree's wheel into tree/dist."""
    (tree / "dist").mkdir(exist_ok=True)
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("DTAG_")}
    return subprocess.run(
        [sys.executable, "-c", "import build_backend; build_backend.build_wheel('dist')"],
        cwd=tree,
        env=inherited | {"PYTHONPATH": str(tree / "tools")} | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def record_in(tree: Path) -> dict[str, str]:
    """Check that tree/dist holds one pure Python wheel, and return its record."""
    (wheel,) = (tree / "dist").iterdir()
    assert wheel.name.endswith("-py3-none-any.whl")
    record: dict[str, str] = {}
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        assert "dtag_fast/py.typed" in names
        assert "dtag_fast/refinement/cpu.py" in names
        assert not [name for name in names if name.endswith((".so", ".pyd", ".h", ".cpp"))]
        exec(archive.read("dtag_fast/_build_failure.py").decode(), record)
    return record


@needs_skbuild
def test_without_a_compiler_the_wheel_is_pure_python_and_says_why(tree: Path) -> None:
    result = build(tree, CXX="/does/not/exist/c++")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "going on without the native module" in result.stdout
    record = record_in(tree)
    assert record["REASON"].startswith("the native build failed: ")
    assert "/does/not/exist/c++" in record["REASON"]
    assert "/does/not/exist/c++" in record["LOG"]


@needs_skbuild
@pytest.mark.skipif(shutil.which("c++") is None, reason="there is no compiler")
def test_after_a_compile_error_the_wheel_is_pure_python_and_says_why(tree: Path) -> None:
    # A line with a dollar sign, which the record's template must not take for a variable.
    for source in (tree / "csrc").glob("*.cpp"):
        source.write_text("#error costs $5 ${more}\n")
    result = build(tree)
    assert result.returncode == 0, result.stdout + result.stderr
    record = record_in(tree)
    assert "error" in record["REASON"]
    assert "costs $5 ${more}" in record["REASON"]
    assert "costs $5 ${more}" in record["LOG"]


@needs_skbuild
def test_a_failed_native_build_can_be_made_an_error(tree: Path) -> None:
    result = build(tree, CXX="/does/not/exist/c++", DTAG_REQUIRE_NATIVE="1")
    assert result.returncode != 0
    assert "DTAG_REQUIRE_NATIVE is set" in result.stderr
    assert not list((tree / "dist").iterdir())
