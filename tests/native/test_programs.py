"""The C++ test programs, on this machine and, emulated, on arm64."""

from __future__ import annotations

import json
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.native.conftest import build, find_tool, run


def test_kernels_are_as_the_scalar_one(native_build: Path) -> None:
    output = run(native_build / "test_kernels")
    assert "scalar: dense" in output


def test_acting_is_as_the_model_written_out(native_build: Path) -> None:
    assert "models, off by" in run(native_build / "test_acting")


def test_training_is_as_plain_loops_in_float64(native_build: Path) -> None:
    assert "checks, off by" in run(native_build / "test_layers")
    assert "checks, off by" in run(native_build / "test_iql")


def test_threads(native_build: Path) -> None:
    run(native_build / "test_threads")


def test_a_later_call_allocates_nothing(native_build: Path) -> None:
    run(native_build / "test_allocations")


def test_unusual_numbers(native_build: Path) -> None:
    run(native_build / "fuzz_refine", "1000")


@pytest.mark.arm64
def test_on_arm64() -> None:
    emulator = find_tool("qemu-aarch64")
    directory = build(
        "arm64",
        "aarch64-linux-gnu-g++",
        "-DCMAKE_SYSTEM_NAME=Linux",
        "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
        "-DCMAKE_EXE_LINKER_FLAGS=-static",
    )
    output = run(emulator, directory / "test_kernels", "40")
    assert "neon: dense" in output
    assert "neon: 12 models" in run(emulator, directory / "test_acting", "12")
    assert "neon: " in run(emulator, directory / "test_layers")
    assert "neon: " in run(emulator, directory / "test_iql")
    run(emulator, directory / "test_threads", "--no-fork")
    run(emulator, directory / "fuzz_refine", "20")


def test_clang_has_no_warnings(native_build: Path) -> None:
    """Of every file but Python's bindings, the kernels once for each instruction set."""
    program = find_tool("clang++")
    commands = json.loads((native_build / "compile_commands.json").read_text())
    commands = [entry for entry in commands if "_native.dir" not in entry["output"]]
    assert len(commands) > 5
    for entry in commands:
        arguments = shlex.split(entry["command"])[1:]
        process = subprocess.run(
            [program, *arguments, "-fsyntax-only", "-Werror"],
            cwd=entry["directory"],
            capture_output=True,
            text=True,
        )
        assert process.returncode == 0, f"{entry['file']}:\n{process.stderr}"
