"""What the triton backend's kernels take of a GPU, compiled without one: registers, spills, shared
memory, and how many programs a multiprocessor then holds.

    python -m benchmarks.triton_resources [--json]
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dtag_fast import Refiner
from dtag_fast.refinement.execution import Precision
from dtag_fast.refinement.parity import random_critic
from dtag_fast.refinement.triton_kernels.launch import interpreted, kernels
from dtag_fast.refinement.triton_kernels.packed import (
    dense_constants,
    dense_options,
    pack,
    walk_constants,
    walk_options,
)

STANDING: dict[str, Any] = {"observation_dim": 17, "action_dim": 6, "hidden": (256, 256)}
SHAPES: dict[str, dict[str, Any]] = {
    "S=17 A=6 256x256": STANDING,
    "S=11 A=3 256x256": STANDING | {"observation_dim": 11, "action_dim": 3},
    "S=17 A=6 256x256 GELU": STANDING | {"activation": "gelu"},
    "S=45 A=24 256x256": STANDING | {"observation_dim": 45, "action_dim": 24},
    "S=17 A=6 512x512x512": STANDING | {"hidden": (512, 512, 512)},
}
PRECISIONS: tuple[Precision, ...] = ("fp32", "tf32", "bf16")
CAPABILITIES = (80, 90)
# Of a multiprocessor, by compute capability: bytes of shared memory, of which a program has 1 KiB
# more than it asks for. All have 65536 registers.
SHARED = {80: 164 * 1024, 90: 228 * 1024}


@dataclass(frozen=True)
class Resources:
    """One kernel compiled for one shape.

    Attributes:
        kernel: "dense" or "walk".
        shape: of the critic.
        precision: of its inner products.
        capability: 80 or 90.
        warps: of a program.
        registers: of a thread.
        spilled: bytes of a thread's stack, where registers that are too many go.
        shared: bytes of a program.
        programs: that fit on a multiprocessor at a time.
    """

    kernel: str
    shape: str
    precision: str
    capability: int
    warps: int
    registers: int
    spilled: int
    shared: int
    programs: int


def resources(
    kernel: str, shape: str, precision: Precision, capability: int, **options: Any
) -> Resources | None:
    """Of the kernel for that shape and options of `Refiner`; None where the walk cannot be had."""
    packed = pack(random_critic(**SHAPES[shape]), precision)
    checked = Refiner(random_critic(), backend="reference", **options).options
    if kernel == "walk":
        if packed.why_no_walk is not None:
            return None
        constants = walk_constants(packed, checked)
        compiler = walk_options(constants)
    else:
        constants = dense_constants(packed, checked)
        compiler = dense_options(constants)
    cubin, shared = _compiled(kernel, constants, precision, capability, compiler)
    warps = compiler["num_warps"]
    registers, spilled = _used(cubin)
    programs = min(65536 // (registers * 32 * warps), SHARED[capability] // (shared + 1024))
    return Resources(
        kernel, shape, precision, capability, warps, registers, spilled, shared, programs
    )


def _compiled(
    name: str,
    constants: dict[str, Any],
    precision: Precision,
    capability: int,
    options: dict[str, Any],
) -> tuple[bytes, int]:
    """The binary, and the bytes of shared memory of a program."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    module = kernels(name)
    function = getattr(module, name)
    types = dict.fromkeys(module.VARYING, "i32")
    types |= dict.fromkeys(("lcb_k", "max_distance", "negative_slope"), "fp32")
    types |= {"indices": "*i64", "widths": "*i32"}
    if precision == "bf16":
        types |= {"forward": "*bf16", "backward": "*bf16"}
    types |= dict.fromkeys(constants, "constexpr")
    signature = {argument: types.get(argument, "*fp32") for argument in function.arg_names}
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, (argument, kind) in enumerate(signature.items())
        if kind.startswith("*") and argument not in ("observations", "actions")
    }
    source = ASTSource(fn=function, signature=signature, constexprs=constants, attrs=aligned)
    kernel = triton.compile(
        source,
        target=GPUTarget("cuda", capability, 32),
        options=options,
    )
    return kernel.asm["cubin"], kernel.metadata.shared


def _used(cubin: bytes) -> tuple[int, int]:
    """Registers of a thread and bytes of its stack, by the tool that comes with triton."""
    import triton

    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "kernel.cubin")
        file.write_bytes(cubin)
        said = subprocess.run(
            [tool, "--dump-resource-usage", file], check=True, capture_output=True, text=True
        ).stdout
    ((registers, stack),) = re.findall(r"REG:(\d+) STACK:(\d+)", said)
    return int(registers), int(stack)


def rows(shapes: list[str]) -> Iterator[Resources]:
    """Every kernel, precision and capability for these shapes."""
    for shape in shapes:
        for kernel in ("walk", "dense"):
            for precision in PRECISIONS:
                for capability in CAPABILITIES:
                    row = resources(kernel, shape, precision, capability)
                    if row is not None:
                        yield row


def main() -> None:
    """Print the table, or with --json a row a line; --shape restricts it to shapes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="a row a line")
    parser.add_argument("--shape", action="append", choices=SHAPES, help="only this shape")
    arguments = parser.parse_args()
    if interpreted():
        sys.exit("TRITON_INTERPRET: expected it unset, for kernels to be compiled")
    found = rows(arguments.shape or list(SHAPES))
    if arguments.json:
        for row in found:
            print(json.dumps(asdict(row)), flush=True)
        return
    print("| kernel | critic | precision | sm | warps | registers | spilled | shared | programs |")
    print("|---|---|---|---|---|---|---|---|---|")
    for row in found:
        print(
            f"| {row.kernel} | {row.shape} | {row.precision} | {row.capability} | {row.warps} | "
            f"{row.registers} | {row.spilled} B | {row.shared / 1024:.0f} KiB | {row.programs} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
