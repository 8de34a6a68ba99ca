"""The triton backend's kernels compile without a GPU, and what they hold fits into registers."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import dtag_fast

ROOT = Path(__file__).parents[2]
SHAPE = "S=17 A=6 256x256"


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_kernels_compile_and_do_not_spill() -> None:
    # In a process of its own: where the interpreter is on, nothing is compiled.
    package = str(Path(dtag_fast.__file__).parents[1])
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks.triton_resources", "--json", "--shape", SHAPE],
        env=environment | {"PYTHONPATH": package},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stderr
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert {(row["kernel"], row["precision"], row["capability"]) for row in rows} == {
        (kernel, precision, capability)
        for kernel in ("walk", "dense")
        for precision in ("fp32", "tf32", "bf16")
        for capability in (80, 90)
    }
    pinned = re.search(r"^triton==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    for row in rows:
        # Other versions allocate otherwise.
        if importlib.metadata.version("triton") == pinned[1]:
            assert row["spilled"] == 0, row
        assert 0 < row["registers"] <= 255, row
        assert row["programs"] >= 1, row


def test_the_interpreter_is_told_to_be_off() -> None:
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed")
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks.triton_resources"],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 1
    assert result.stderr.startswith("TRITON_INTERPRET: expected it unset")
