"""Native training on several threads takes those that torch has, not more of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import dtag_fast
from dtag_fast.training import native_layers

pytestmark = [
    pytest.mark.skipif(not native_layers.available(), reason="the native module is not built"),
    pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="no /proc to count threads in"),
]

START = """
import os, sys, torch
from dtag_fast.training.native_layers import multiply

def threads():
    return len(os.listdir("/proc/self/task"))

torch.set_num_threads(3)
a, b = torch.ones(700, 300), torch.ones(300, 500)
"""


def run(code: str) -> str:
    """What the code prints; multiply() and threads() are at hand."""
    done = subprocess.run(
        [sys.executable, "-c", START + code],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd="/",  # the tests' own folder may have a package that is not built
        env={
            **os.environ,
            "OMP_NUM_THREADS": "3",
            "PYTHONPATH": str(Path(dtag_fast.__file__).parents[1]),
        },
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def shares_torchs_threads() -> bool:
    """Whether torch's OpenMP is one that others can call."""
    code = """
import ctypes
print(torch.backends.openmp.is_available() and hasattr(ctypes.CDLL(None), "GOMP_parallel"))
"""
    return run(code).strip() == "True"


def test_no_thread_is_added_to_torchs() -> None:
    if not shares_torchs_threads():
        pytest.skip("torch is built without an OpenMP runtime that others can call")
    code = """
torch.ones(1 << 22).exp()
before = threads()
for _ in range(5):
    out = multiply(a, b)
assert torch.equal(out, torch.full((700, 500), 300.0))
print(before, threads())
"""
    before, after = map(int, run(code).split())
    assert before >= 3
    assert after == before


def test_a_forked_process_has_threads_of_its_own() -> None:
    """OpenMP's are gone after a fork; torch waits for them for ever, so it has no part here."""
    code = """
expected = multiply(a, b).numpy()
child = os.fork()
if child == 0:
    right = (multiply(a, b).numpy() == expected).all()
    os._exit(0 if right and threads() >= 2 else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert run(code).strip() == "0"
