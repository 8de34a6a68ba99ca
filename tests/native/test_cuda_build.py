"""The CUDA extension, built whole by nvcc for every architecture it is for: a few minutes.

`make nvcc` runs this; `make test` leaves it out.
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.native.conftest import BUILDS, ROOT, find_tool, run

pytestmark = pytest.mark.nvcc

ARCHITECTURES = {"sm_80", "sm_90"}
# Action dimensions of the kernels of the standing shapes: maze, hopper, halfcheetah, humanoid.
STANDING = (2, 4, 6, 17)
# What a row added to a map may take of a thread's instructions, and its multiply-adds: of four
# units and 1 + A columns, A = 6.
INSTRUCTIONS_OF_A_ROW, MULTIPLY_ADDS_OF_A_ROW = 40, 4 * (1 + 6)
ROWS_UNDER_WAY = 12  # in one turn of the loop
WIDE = 768  # threads of a kernel that has to spill


@dataclass(frozen=True)
class Kernel:
    """What ptxas says of a kernel."""

    architecture: str
    actions: int
    units: int
    blocks: int
    most_threads: int
    queued: bool
    precision: str
    spill_stores: int
    spill_loads: int
    registers: int


def kernels(log: str) -> list[Kernel]:
    """Those of a build's output with -Xptxas=-v."""
    pattern = (
        r"walk_kernelILi(?P<actions>\d+)ELi(?P<units>\d+)ELi(?P<blocks>\d+)ELi(?P<most_threads>\d+)E"
        r"Li\d+ELb(?P<queued>[01])E"
        r"NS0_\d(?P<precision>Fp32|Bf16)\S* for '(?P<architecture>\w+)'\n.*\n"
        r"\s*\d+ bytes stack frame, "
        r"(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads\n.*"
        r"Used (?P<registers>\d+) registers"
    )
    return [
        Kernel(
            architecture=found["architecture"],
            actions=int(found["actions"]),
            units=int(found["units"]),
            blocks=int(found["blocks"]),
            most_threads=int(found["most_threads"]),
            queued=found["queued"] == "1",
            precision=found["precision"],
            spill_stores=int(found["stores"]),
            spill_loads=int(found["loads"]),
            registers=int(found["registers"]),
        )
        for found in re.finditer(pattern, log)
    ]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Where the extension was built, and what the compilers said."""
    nvcc = find_tool("nvcc")
    pybind11 = pytest.importorskip("pybind11")
    cmake, ninja = find_tool("cmake"), find_tool("ninja")
    directory = BUILDS / "nvcc"
    run(
        cmake,
        "-S",
        str(ROOT),
        "-B",
        str(directory),
        "-G",
        "Ninja",
        f"-DCMAKE_MAKE_PROGRAM={ninja}",
        f"-DCMAKE_CUDA_COMPILER={nvcc}",
        "-DDTAG_CUDA=ON",
        "-UCMAKE_CUDA_ARCHITECTURES",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        f"-DPython_EXECUTABLE={sys.executable}",
    )
    for path in (directory / "csrc" / "cuda").glob("CMakeFiles/cuda_*.dir/*.o"):
        path.unlink()  # what is not compiled anew says nothing
    log = run(cmake, "--build", directory, "--target", "_cuda", f"-j{os.cpu_count()}")
    return directory, log


def test_no_kernel_of_a_standing_shape_spills(built: tuple[Path, str]) -> None:
    found = kernels(built[1])
    for actions in STANDING:
        of = [k for k in found if k.actions == actions and k.most_threads < WIDE]
        units = 4 if actions <= 8 else 2
        assert {(k.architecture, k.units, k.blocks, k.queued, k.precision) for k in of} == {
            (architecture, *kind, precision)
            for architecture in ARCHITECTURES
            for kind, precisions in (
                ((units, 1, False), ("Fp32", "Bf16")),
                ((2 * units, 1, False), ("Fp32", "Bf16")),  # lean
                ((2 * units, 1, True), ("Fp32",)),  # with maps, from a queue
                ((units, 2 * units, False), ("Fp32", "Bf16")),  # a cluster's
            )
            for precision in precisions
        }
        # Of a cluster's kernel, and of the queue's, there is code where there are clusters, and
        # nothing elsewhere.
        assert all(
            (k.registers < 10) == ((k.blocks > 1 or k.queued) and k.architecture < "sm_90")
            for k in of
        )
        assert [k for k in of if k.spill_stores > 0] == []


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("dense_kernel", {"Li1E", "Li2E"}),
        ("maps_kernel", {"Li128ELi8E", "Li64ELi8E", "Li64ELi16E"}),
    ],
)
def test_no_kernel_of_warpgroups_spills(
    built: tuple[Path, str], name: str, shapes: set[str]
) -> None:
    pattern = (
        name + r"I((?:Li\d+E)+)E\S* for '(\w+)'\n.*\n"
        r"\s*\d+ bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
    )
    found = re.findall(pattern, built[1])
    assert {(shape, "sm_90a", "0", "0") for shape in shapes} == set(found)
    # Else they wait for each multiplication before the next.
    assert "wgmma.mma_async instructions are serialized" not in built[1]


def test_adding_a_row_takes_little_but_multiply_adds(
    built: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backends = pytest.importorskip("triton.backends")
    (tools,) = Path(backends.__path__[0]).glob("nvidia/bin")
    (walk,) = (built[0] / "csrc" / "cuda").glob("CMakeFiles/cuda_walk_6.dir/*.o")
    monkeypatch.chdir(tmp_path)  # where it writes what it extracts
    run(tools / "cuobjdump", "-xelf", "sm_90", walk)
    (cubin,) = tmp_path.iterdir()
    listing = run(tools / "nvdisasm", "-c", cubin)
    kernel = re.search(
        r"^\.text\.\S*walk_kernelILi6ELi4ELi1ELi256ELi0ELb0ENS0_4Fp32\S*:\n(.*?)^\.?//-",
        listing,
        re.M | re.S,
    )
    assert kernel is not None
    lines = kernel[1].splitlines()
    labels = {line.strip(" :"): at for at, line in enumerate(lines) if re.match(r"\.L_\w+:", line)}
    multiply_adds = ROWS_UNDER_WAY * MULTIPLY_ADDS_OF_A_ROW
    found = []
    for end, line in enumerate(lines):
        branch = re.search(r"BRA.*`\((\.L_\w+)\)", line)
        start = labels.get(branch[1], end) if branch else end
        loop = [x for x in lines[start : end + 1] if "/*" in x]
        if sum("FFMA" in x for x in loop) == multiply_adds and sum("LDG" in x for x in loop) < 30:
            found.append(len(loop) / ROWS_UNDER_WAY)
    assert found
    assert min(found) <= INSTRUCTIONS_OF_A_ROW


def test_it_links_and_loads(built: tuple[Path, str]) -> None:
    (path,) = (built[0] / "csrc" / "cuda").glob("_cuda.*.so")
    spec = importlib.util.spec_from_file_location("_cuda", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.architectures == "80, 90"
    assert module.layout(6, 2, [256, 256]) == (6, 256, 64)
    needed = run(find_tool("readelf"), "-d", path)
    assert "libcudart" not in needed
