"""What this machine can do at most, measured now: no kernel can be faster than its floor.

    python -m benchmarks.limits

The loops are those of limits.cpp, compiled for this processor when they are first needed. That
takes a C++ compiler and Python's headers, as the package's own extension does.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

SOURCE = Path(__file__).with_name("limits.cpp")
LEVELS = ("L1", "L2", "L3", "memory")

# Of a processor that does not tell its own.
COMMON_CACHES = {"L1": 32 * 1024, "L2": 512 * 1024, "L3": 16 * 1024**2}
LARGEST_ARRAY = 512 * 1024**2

TRIALS = 21
TRIAL_SECONDS = 5e-3
ROUNDS = 2000  # of multiply-adds; some ten microseconds
LEAST_READ = 512 * 1024  # bytes; with fewer the call would show
CALLS = 10_000


@functools.cache
def native() -> ModuleType:
    """limits.cpp, compiled and loaded.

    Raises:
        RuntimeError: it cannot be compiled; the message says why.
    """
    compiler = shlex.split(os.environ.get("CXX", "")) or [
        next(filter(shutil.which, ("c++", "g++", "clang++")), "c++")
    ]
    arm = platform.machine().lower() in ("arm64", "aarch64")
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / f"_limits{sysconfig.get_config_var('EXT_SUFFIX')}"
        command = [
            *compiler,
            *("-std=c++17", "-O3", "-mcpu=native" if arm else "-march=native"),
            *("-shared", "-fPIC", "-DDTAG_TARGET=native"),
            *(("-undefined", "dynamic_lookup") if platform.system() == "Darwin" else ()),
            f"-I{sysconfig.get_path('include')}",
            *(str(SOURCE), "-o", str(library)),
        ]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except OSError as error:
            raise RuntimeError(f"no floors: {compiler[0]} cannot be run: {error}") from error
        except subprocess.CalledProcessError as error:
            raise RuntimeError(
                f"no floors: {compiler[0]} cannot compile {SOURCE.name}: {error.stderr[:2000]}"
            ) from error
        spec = importlib.util.spec_from_file_location("_limits", library)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return module


def missing_reason() -> str | None:
    """Why there are no floors here, or None."""
    try:
        native()
    except RuntimeError as error:
        return str(error)
    return None


def caches() -> dict[str, int]:
    """Bytes of the data caches that one core sees, by level."""
    found = dict(COMMON_CACHES)
    for index in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        level, kind, size = ((index / name).read_text().strip() for name in _CACHE_FILES)
        kilobytes = re.fullmatch(r"(\d+)K", size)
        if kind != "Instruction" and kilobytes and f"L{level}" in found:
            found[f"L{level}"] = int(kilobytes[1]) * 1024
    return found


_CACHE_FILES = ("level", "type", "size")


@functools.cache
def array_in(level: str) -> NDArray[np.float32]:
    """An array that fits into a cache and is too large for the level above; 64-byte aligned."""
    sizes = caches()
    size = sizes[level] // 2 if level in sizes else min(LARGEST_ARRAY, 8 * sizes["L3"])
    return torch.ones(size // 4).numpy()


def level_of(size: int) -> str:
    """The smallest cache that holds so many bytes, or "memory"."""
    return next((level for level, room in caches().items() if size <= room), "memory")


def multiply_adds(repeats: int = 1) -> int:
    """Some ten microseconds of float32 multiply-adds at the peak, so many times; their number."""
    count: int = native().multiply_adds(ROUNDS * repeats)
    return count


def read(level: str, repeats: int = 1) -> int:
    """Read at least 512 KB from a cache, or from memory, so many times; the number of bytes."""
    array = array_in(level)
    times = -(-LEAST_READ // array.nbytes) * repeats
    native().read(array, times)
    return array.nbytes * times


@dataclass(frozen=True)
class Limit:
    """One line of the table: of one thread, and of two at once together."""

    name: str
    unit: str
    one: float
    two: float | None = None


def rate(work: Callable[[int], int], threads: int) -> float:
    """Units of work a second of so many threads together; the best of a few trials."""
    work(1)
    start = time.perf_counter()
    work(1)
    repeats = max(1, int(TRIAL_SECONDS / (time.perf_counter() - start)))
    rates = []
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(TRIALS):
            start = time.perf_counter()
            done = sum(pool.map(work, [repeats] * threads)) if threads > 1 else work(repeats)
            rates.append(done / (time.perf_counter() - start))
    return max(rates)


def seconds(call: Callable[[], Any]) -> float:
    """Of one call, with the loop around it; the best of a few trials."""
    found = []
    for _ in range(TRIALS):
        start = time.perf_counter()
        for _ in range(CALLS):
            call()
        found.append((time.perf_counter() - start) / CALLS)
    return min(found)


def measure() -> list[Limit]:
    """All limits of this machine.

    Raises:
        RuntimeError: limits.cpp cannot be compiled.
    """
    module = native()

    def both(name: str, unit: str, work: Callable[[int], int], scale: float) -> Limit:
        return Limit(name, unit, rate(work, 1) * scale, rate(work, 2) * scale)

    calls: dict[str, Callable[[], Any]] = {
        "an empty C function": module.empty,
        "the interpreter's lock given up and taken back": module.release,
        "torch.empty(6)": functools.partial(torch.empty, 6),
        "numpy.empty(6)": functools.partial(np.empty, 6, np.float32),
        "the clock, read twice": lambda: time.perf_counter() - time.perf_counter(),
    }
    return [
        both("float32 multiply-adds", "GFLOP/s", multiply_adds, 2e-9),
        *(both(f"reads from {lv}", "GB/s", functools.partial(read, lv), 1e-9) for lv in LEVELS),
        *(Limit(f"call: {name}", "ns", seconds(call) * 1e9) for name, call in calls.items()),
    ]


def lines(limits: list[Limit]) -> list[str]:
    """The table as text."""
    width = max(len(limit.name) for limit in limits)
    found = [f"{'':{width}}  {'one thread':>12}  {'two threads':>12}"]
    for limit in limits:
        two = "" if limit.two is None else f"{limit.two:.1f}"
        found.append(f"{limit.name:{width}}  {limit.one:12.1f}  {two:>12}  {limit.unit}")
    return found


if __name__ == "__main__":
    reason = missing_reason()
    print(reason or "\n".join(lines(measure())))
