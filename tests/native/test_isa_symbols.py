"""No function compiled for a newer processor may end up where an older one runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.native.conftest import find_tool, run

WEAK = set("WwVvu")  # what the linker merges with its like in other files


def shared_symbols(nm_output: str, isa: str) -> list[str]:
    """The weak definitions in `nm -C` output that are not in the instruction set's namespace."""
    shared = []
    for line in nm_output.splitlines():
        address, kind, name = line[:16], line[17:18], line[19:]
        if address.strip() and kind in WEAK and f"dtag::{isa}::" not in name:
            shared.append(name)
    return shared


def test_of_each_instruction_set(native_build: Path) -> None:
    nm = find_tool("nm")
    objects = list(native_build.glob("csrc/CMakeFiles/kernels_*.dir/**/*.cpp.o"))
    if not objects:
        pytest.skip("this build has no SIMD kernels")
    for path in objects:
        isa = path.relative_to(native_build).parts[2].removeprefix("kernels_").removesuffix(".dir")
        symbols = run(nm, "-C", path)
        assert f"dtag::{path.name.removesuffix('.cpp.o')}_{isa}" in symbols
        assert shared_symbols(symbols, isa) == []


def test_what_counts_as_shared() -> None:
    output = (
        "                 U memset\n"
        "                 w __gmon_start__\n"
        "0000000000000010 t float* std::copy_n<int>(int) [clone .part.0]\n"
        "0000000000000020 W dtag::avx2::Walk::value(float const*)\n"
        "0000000000000030 W float* std::copy_n<int>(int)\n"
        "0000000000000040 D dtag::kernels_avx2\n"
    )
    assert shared_symbols(output, "avx2") == ["float* std::copy_n<int>(int)"]
