"""`dtag doctor`."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement

import dtag_fast
from dtag_fast import build_info
from dtag_fast.acting import native
from dtag_fast.cli import main
from dtag_fast.commands.doctor import PACKAGES
from dtag_fast.refinement import BACKENDS, reference

ROOT = Path(__file__).parents[2]


def test_it_shows_what_there_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "400")  # a line a row
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert f"dtag-fast {dtag_fast.__version__}" in out
    assert f"torch {torch.__version__}" in out
    for name, entry in BACKENDS.items():
        reason = entry.load().unavailable_reason()
        row = next(line for line in out.splitlines() if re.match(rf"\W*{name}\s", line))
        assert ("yes" if reason is None else "no: ") in row
        assert entry.limits in row
    assert re.search(rf"native\s*│ {build_info.describe()['native']}", out)
    reason = native.unavailable_reason()
    acting = "native code" if reason is None else f"torch; native code cannot run: {reason}"
    assert f"Acting on the CPU: {acting}" in out
    for package, extra in PACKAGES.items():
        row = next(line for line in out.splitlines() if re.match(rf"\W*{package}\s", line))
        assert ("required" if extra is None else f"pip install 'dtag-fast[{extra}]'") in row


def test_it_says_why_a_backend_does_not_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Compilers quote options in brackets, which are markup to rich.
    monkeypatch.setattr(reference, "unavailable_reason", lambda: "failed [cpp-flag] at 3")
    assert main(["doctor"]) == 0
    assert "no: failed [cpp-flag] at 3" in capsys.readouterr().out


def test_it_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def version(package: str) -> str:
        if package in absent:
            raise importlib.metadata.PackageNotFoundError(package)
        return "1.2.3"

    monkeypatch.setattr(importlib.metadata, "version", version)
    for absent, status in (({"moviepy"}, 0), ({"minari", "moviepy"}, 1)):
        assert main(["doctor"]) == status
        lines = capsys.readouterr().out.splitlines()
        shown = {line.split()[1] for line in lines if "missing" in line}
        assert shown == absent


def test_it_looks_for_all_that_the_package_requires() -> None:
    """Every requirement is in the table, save torch, whose version stands at the top."""
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 cannot read TOML")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = {Requirement(line).name for line in project["dependencies"]}
    assert needed - {"torch"} <= {name for name, extra in PACKAGES.items() if extra is None}
    for package, extra in PACKAGES.items():
        if extra is not None:
            assert project["optional-dependencies"][extra], f"{package}: no extra {extra}"
