"""Everything that needs a GPU, in one command of less than eight minutes and without a network:

    make gpu-check      or      python -m benchmarks.gpu_check [--quick] [--seconds 420]

Builds the native modules for this device in the tree, runs the tests marked `gpu` and, at the same
time, small cases under compute-sanitizer where there is one, and then, alone, times of every GPU
backend; writes them to one JSON file in benchmarks/results/ and prints the tables last. Needs
torch, triton, numpy, pytest, cmake, pybind11 and nvcc; without tqdm and safetensors the tests of
training and acting are left out.
Returns 0 if all that ran passed, 1 if not, 2 where there is no GPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import importlib
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
LINES = 30  # of a failed stage's output that are kept
BUILD_SECONDS, CHECK_SECONDS = 150.0, 150.0
TIMES_SECONDS = 90.0  # that the times take
LEAST_SECONDS = 5.0  # with less left, a tool is not begun
TRAINING_NEEDS = ("tqdm", "safetensors")
TOOLS = ("memcheck", "racecheck", "synccheck")


@dataclass(frozen=True)
class Stage:
    """One part of the check and how it went.

    Attributes:
        name: of the part.
        outcome: "passed", "failed" or "skipped".
        seconds: it took.
        detail: why it was skipped, or the end of what it printed.
    """

    name: str
    outcome: str
    seconds: float
    detail: str = ""


@dataclass(frozen=True)
class Device:
    """What the numbers depend on besides the code."""

    name: str
    capability: str
    multiprocessors: int
    memory_gib: float
    driver: str
    cuda: str
    torch: str
    triton: str
    python: str
    system: str
    commit: str
    date: str

    @property
    def slug(self) -> str:
        """The device's name for use in a file's."""
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-") or "unknown"


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check")
    parser.add_argument("--quick", action="store_true", help="one case, to see whether all runs")
    parser.add_argument(
        "--seconds", type=float, default=420.0, help="after which nothing new is begun"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the JSON file")
    parser.add_argument("--sanitized", action="store_true", help=argparse.SUPPRESS)
    parsed = parser.parse_args(given)
    if not parsed.seconds > 0:
        parser.error(f"argument --seconds: expected more than 0, got {parsed.seconds:g}")
    return parsed


def write(
    folder: Path,
    device: Device,
    stages: Sequence[Stage],
    limits: dict[str, Any] | None,
    rows: Sequence[dict[str, Any]],
    goals: Sequence[dict[str, Any]],
    notes: Sequence[str],
    crossovers: Sequence[dict[str, Any]] = (),
) -> Path:
    """One JSON file, named after the day and the device; that day's earlier one is replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{device.date}-{device.slug}-gpu.json"
    document = {
        "machine": dataclasses.asdict(device),
        "stages": [dataclasses.asdict(stage) for stage in stages],
        "limits": limits,
        "notes": list(notes),
        "goals": list(goals),
        "rows": list(rows),
        "crossovers": list(crossovers),
    }
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return path


def exit_code(stages: Sequence[Stage], rows: Sequence[dict[str, Any]]) -> int:
    """1 if a stage failed or a backend is not the reference's equal, 0 otherwise."""
    failed = any(stage.outcome == "failed" for stage in stages)
    return 1 if failed or any(row.get("failed") for row in rows) else 0


def run_stage(name: str, command: Sequence[str], limit: float) -> Stage:
    """A command in the tree, stopped after so many seconds."""
    print(f"== {name}: {' '.join(command)}", flush=True)
    start = time.perf_counter()
    try:
        process = subprocess.run(
            command, cwd=ROOT, timeout=limit, capture_output=True, text=True, check=False
        )
        code, output = process.returncode, process.stdout + process.stderr
    except FileNotFoundError as error:
        return Stage(name, "failed", 0.0, str(error))
    except subprocess.TimeoutExpired as expired:
        parts = [expired.stdout, expired.stderr]
        told = "".join(
            p.decode(errors="replace") if isinstance(p, bytes) else p or "" for p in parts
        )
        code, output = -1, f"{told}\nstopped after {limit:.0f} s"
    # Where the tree and Python lie is this machine's own.
    output = output.replace(sys.prefix, "python").replace(str(ROOT), ".")
    tail = "\n".join(output.strip().splitlines()[-(LINES if code else 3) :])
    stage = Stage(name, "failed" if code else "passed", time.perf_counter() - start, tail)
    print(f"   {name}: {stage.outcome} in {stage.seconds:.0f} s\n{tail}", flush=True)
    return stage


def build(capability: tuple[int, int]) -> list[Stage]:
    """Both native modules, into the tree."""
    for tool in ("cmake", "nvcc"):
        if find(tool) is None:
            return [Stage("build", "failed", 0.0, f"needs {tool}, and there is none on the PATH")]
    import pybind11

    directory = ROOT / "build" / "gpu-check"
    configure = [
        str(find("cmake")),
        "-S",
        str(ROOT),
        "-B",
        str(directory),
        "-DDTAG_IN_TREE=ON",
        "-DDTAG_CUDA=ON",
        f"-DCMAKE_CUDA_COMPILER={find('nvcc')}",
        f"-DCMAKE_CUDA_ARCHITECTURES={capability[0]}{capability[1]}",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        f"-DPython_EXECUTABLE={sys.executable}",
    ]
    stages = [run_stage("configure", configure, 60.0)]
    if stages[0].outcome == "passed":
        cores = str(os.cpu_count() or 1)
        compile_all = [str(find("cmake")), "--build", str(directory), "--parallel", cores]
        stages.append(run_stage("build", compile_all, BUILD_SECONDS))
    return stages


def gpu_tests(*folders: str) -> list[str]:
    """The files in these folders of tests/ with tests that need a GPU."""
    files = [file for folder in folders for file in (ROOT / "tests" / folder).glob("test_*.py")]
    return sorted(str(file.relative_to(ROOT)) for file in files if "mark.gpu" in file.read_text())


def run_tests(name: str, folders: Sequence[str], needs: Sequence[str], limit: float) -> Stage:
    """The tests that need a GPU, where there is what they import."""
    missing = [each for each in needs if importlib.util.find_spec(each) is None]
    if missing:
        return Stage(name, "skipped", 0.0, f"needs {', '.join(missing)}")
    test = [sys.executable, "-m", "pytest", "-q", "-m", "gpu"]
    return run_stage(name, [*test, *gpu_tests(*folders)], limit)


def run_checks(limit: float) -> list[Stage]:
    """All that says whether the code is right, for at most so many seconds: at the same time, since
    each of it leaves the device idle for the most part, and nothing is timed yet.
    """
    with ThreadPoolExecutor(max_workers=2 + len(TOOLS)) as pool:
        stages = [
            pool.submit(run_tests, "tests", ("refinement",), (), limit),
            pool.submit(
                run_tests,
                "tests of training and acting",
                ("training", "acting"),
                TRAINING_NEEDS,
                limit,
            ),
            *(pool.submit(sanitize, tool, limit) for tool in TOOLS),
        ]
        return [stage.result() for stage in stages]


def find(tool: str) -> str | None:
    """A program's path, also beside this Python and where CUDA is put."""
    places = [str(Path(sys.executable).parent), os.environ.get("PATH", ""), "/usr/local/cuda/bin"]
    return shutil.which(tool, path=os.pathsep.join(places))


def sanitize(tool: str, limit: float) -> Stage:
    """Small refinements under one of compute-sanitizer's tools, for at most so many seconds."""
    sanitizer = find("compute-sanitizer")
    if sanitizer is None:
        return Stage(f"sanitizer {tool}", "skipped", 0.0, "there is no compute-sanitizer here")
    if limit < LEAST_SECONDS:
        return Stage(f"sanitizer {tool}", "skipped", 0.0, "no time was left")
    command = [sanitizer, "--tool", tool, "--error-exitcode", "9", "--kernel-regex"]
    command += ["kns=4dtag4cuda", sys.executable, "-m", "benchmarks.gpu_check", "--sanitized"]
    return run_stage(f"sanitizer {tool}", command, limit)


def sanitized_cases() -> int:
    """What runs under the sanitizer: the cuda backend, small, by every path of its kernel."""
    from dtag_fast.refinement import Refiner, cuda
    from dtag_fast.refinement.execution import Execution
    from dtag_fast.refinement.parity import random_batch, random_critic

    for hidden, action_dim in (((40, 20), 3), ((150, 60), 6), ((30,), 2), ((100, 10), 32)):
        critic = random_critic(hidden=hidden, action_dim=action_dim).cuda()
        packings = [cuda.pack(critic, precision) for precision in ("fp32", "tf32x3", "bf16")]
        observations, actions = (array.cuda() for array in random_batch(critic, 9, 2))
        observations[4, 0] = float("nan")
        for step_size in (0.3, 4.0):
            options = Refiner(critic, backend="reference", step_size=step_size).options
            for packed in packings:
                for kernel in cuda.kernels(packed):
                    cuda.run(packed, observations, actions, options, kernel=kernel)
            dense = Execution(algorithm="dense", precision="bf16")
            cuda.run(packings[-1], observations, actions, options, dense)
    # More rows with maps than wait in no queue.
    critic = random_critic(hidden=(150, 60)).cuda()
    options = Refiner(critic, backend="reference", steps=2).options
    observations, actions = (array.cuda() for array in random_batch(critic, 2000))
    cuda.run(cuda.pack(critic, "tf32x3"), observations, actions.unsqueeze(1), options)
    torch.cuda.synchronize()
    return 0


def here() -> Device:
    """The current CUDA device."""
    properties = torch.cuda.get_device_properties(0)
    return Device(
        name=properties.name,
        capability=f"{properties.major}.{properties.minor}",
        multiprocessors=properties.multi_processor_count,
        memory_gib=round(properties.total_memory / 2**30, 1),
        driver=_output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        cuda=str(torch.version.cuda),
        torch=torch.__version__,
        triton=_version("triton"),
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
        commit=_output("git", "rev-parse", "--short=12", "HEAD"),
        date=datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    )


def _output(*command: str) -> str:
    """The first line a command prints, or "unknown"."""
    try:
        process = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return (process.stdout.strip().splitlines() or ["unknown"])[0]


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"


def main(given: Sequence[str] | None = None) -> int:
    """The whole check."""
    options = arguments(given)
    if not torch.cuda.is_available():
        print(
            f"gpu_check: torch {torch.__version__} sees no CUDA device; this check needs one",
            file=sys.stderr,
        )
        return 2
    if options.sanitized:
        return sanitized_cases()
    end = time.monotonic() + options.seconds
    device = here()
    print(f"{device.name}, compute capability {device.capability}", flush=True)
    stages = build(torch.cuda.get_device_capability())
    importlib.invalidate_caches()
    left = end - time.monotonic()
    stages += run_checks(min(CHECK_SECONDS, max(left - TIMES_SECONDS, left / 2)))

    from benchmarks import gpu_latency
    from benchmarks.conftest import Table

    limits = gpu_latency.measure_limits()
    print(f"== latency: {limits}", flush=True)
    rows: list[dict[str, Any]] = []
    notes = list(gpu_latency.NOTES)
    for timed in gpu_latency.cases(options.quick):
        if time.monotonic() > end:
            notes.append(f"Not measured for want of time: {timed.case}, {timed.precision}")
            continue
        rows += gpu_latency.measure(timed, limits)
    goals = gpu_latency.goals(rows)
    crossovers = [] if options.quick or time.monotonic() > end else gpu_latency.crossovers()
    known = dataclasses.asdict(limits)
    path = write(options.out, device, stages, known, rows, goals, notes, crossovers)

    summary = [{"stage": s.name, "outcome": s.outcome, "seconds": s.seconds} for s in stages]
    for table in (
        Table("stages", {"stage": "{}", "outcome": "{}", "seconds": "{:.0f}"}, summary),
        Table("crossovers", gpu_latency.CROSSOVER_COLUMNS, crossovers, gpu_latency.CROSSOVER_NOTES),
        Table("latency", gpu_latency.COLUMNS, rows, notes),
        Table("goals", gpu_latency.GOAL_COLUMNS, goals),
    ):
        print("", f"-- {table.name}: {device.name}", *table.lines(), *table.notes, sep="\n")
    print(f"\nRows written to {path}")
    return exit_code(stages, rows)


if __name__ == "__main__":
    sys.exit(main())
