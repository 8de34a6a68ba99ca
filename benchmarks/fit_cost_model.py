"""Fits the constants of csrc/cost_model.h, by which algorithm="auto" chooses.

    python -m benchmarks.fit_cost_model [--quick] [--out rows.json]
    DTAG_ISA=avx2 python -m benchmarks.fit_cost_model

Both algorithms are forced on the same random critics and batches over a grid of sizes, one thread,
and the kernel alone is timed. The model is a sum of terms that depend on sizes alone; its constants
are those of least relative error that are not negative, in nanoseconds.

Printed are the constants as kernels.cpp has them, how far the model is off, and the regret: the
time of the algorithm chosen over the time of the faster one, both of the "auto" in this build and
of a choice by the constants just fitted.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.cases import Case
from benchmarks.contenders import kernel_timer
from dtag_fast import build_info
from dtag_fast.refinement import Refiner
from dtag_fast.refinement.execution import Algorithm

Floats = NDArray[np.float64]

GRID: dict[str, tuple[Any, ...]] = {
    "batch": (1, 64),
    "heads": (1, 2, 4),
    "hidden": ((256,), (64, 64), (128, 128), (256, 256), (512, 512), (400, 300), (256,) * 3),
    "dims": ((4, 1), (11, 3), (17, 6), (27, 12), (348, 17), (45, 28)),  # S, A
    "steps": (1, 3, 10, 30),
    "step_size": (0.03, 30.0),  # few flips, and many
}
QUICK: dict[str, tuple[Any, ...]] = {
    **GRID,
    "heads": (1, 2),
    "hidden": ((256,), (64, 64), (256, 256), (256,) * 3),
    "dims": ((11, 3), (348, 17)),
}
CALM = 1.0  # a step size below which there are few flips
SECONDS = 5e-3  # of one measurement
ROUNDS = 3  # of both algorithms in turn
WORST = 12  # lines of the table of regret

# As in csrc/cost_model.h and .cpp.
CONSTANTS = (
    "build_weight",
    "step_weight",
    "step",
    "share_weight",
    "single_weight",
    "block_weight",
    "candidate",
    "unit",
)
PASSING = 0.5
BLOCK = 16
LARGEST_BUILD = 0.45  # of the time of dense


def terms(algorithm: str, case: Case, points: float) -> dict[str, float]:
    """How often a row meets each constant, where `points` points are refined together."""
    heads, steps, actions = case.heads, case.steps, case.action_dim
    first, last, units = case.hidden[0], case.hidden[-1], sum(case.hidden)
    weights = sum(fan_in * fan_out for fan_in, fan_out in itertools.pairwise(case.hidden))
    share = {"share_weight": heads * case.observation_dim * first}
    if algorithm == "walk":
        return {
            **share,
            "build_weight": heads * PASSING * weights * (1 + actions),
            "step_weight": (steps + 1) * heads * (units + last) * actions,
            "step": (steps + 1) * heads,
        }
    lone = min(1.0, max(0.0, (BLOCK - points) / (BLOCK - 1)))
    passes = ((steps + 1) * heads + steps) * (weights + actions * first)
    return {
        **share,
        "single_weight": lone * PASSING * passes,
        "block_weight": (1 - lone) * passes,
        "candidate": steps + 1,
        "unit": (steps + 1) * heads * units,
    }


@dataclass(frozen=True)
class Measured:
    """Times of one point of the grid.

    Attributes:
        case: the point.
        us: microseconds a row, by algorithm.
        auto: the algorithm that "auto" chooses.
        flips: hidden units of all heads that change sign, a row.
    """

    case: Case
    us: Mapping[str, float]
    auto: str
    flips: float


def measure(case: Case) -> Measured:
    """Time both algorithms on one case."""
    critic, (observations, actions) = case.critic(), case.inputs()

    def refiner(algorithm: Algorithm, return_info: bool = False) -> Refiner:
        return Refiner(
            critic,
            steps=case.steps,
            step_size=case.step_size,
            backend="cpu",
            algorithm=algorithm,
            threads=1,
            return_info=return_info,
        )

    timers = {
        name: kernel_timer(refiner(name), observations, actions) for name in ("walk", "dense")
    }
    seconds: dict[str, list[float]] = {name: [] for name in timers}
    for _ in range(ROUNDS):
        for name, timer in timers.items():
            first = timer(1)[0]
            seconds[name] += timer(max(2, int(SECONDS / ROUNDS / first)))
    # The lower quartile: what disturbs a run of this program only adds to its times.
    us = {name: float(np.percentile(t, 25)) * 1e6 / case.batch for name, t in seconds.items()}
    _, chosen = refiner("auto", return_info=True)(observations, actions)
    _, walked = refiner("walk", return_info=True)(observations, actions)
    return Measured(case, us, chosen.algorithm, float(walked.flips.double().mean()))


def measure_all(grid: Mapping[str, tuple[Any, ...]]) -> list[Measured]:
    """Time all points of the grid."""
    found = []
    for values in itertools.product(*grid.values()):
        point = dict(zip(grid, values, strict=True))
        found.append(measure(Case("grid", *point.pop("dims"), **point)))
    return found


def fit(points: Sequence[Measured]) -> Floats:
    """The constants in nanoseconds, of least squares of the relative error, and none below 0."""
    rows = [
        _row(algorithm, point.case, point.case.batch) / us
        for point in points
        for algorithm, us in point.us.items()
    ]
    matrix = np.array(rows) * 1e-3
    kept = list(range(len(CONSTANTS)))
    while True:  # leave out the most negative one until none is
        values = np.linalg.lstsq(matrix[:, kept], np.ones(len(rows)), rcond=None)[0]
        if (values >= 0).all():
            break
        kept.pop(int((values * matrix[:, kept].mean(axis=0)).argmin()))
    constants = np.zeros(len(CONSTANTS))
    constants[kept] = values
    return constants


def predict(algorithm: str, constants: Floats, case: Case, points: float) -> float:
    """Microseconds a row by the model."""
    return float(_row(algorithm, case, points) @ constants) * 1e-3


def _row(algorithm: str, case: Case, points: float) -> Floats:
    found = terms(algorithm, case, points)
    return np.array([found.get(name, 0.0) for name in CONSTANTS])


def quicker(constants: Floats, case: Case) -> str:
    """What the model chooses: the walk, unless building its regions may be in vain."""
    walk, dense = (
        predict(algorithm, constants, case, 0.5 * BLOCK) for algorithm in ("walk", "dense")
    )
    build = constants[0] * terms("walk", case, 1)["build_weight"] * 1e-3
    return "walk" if walk < dense and build < LARGEST_BUILD * dense else "dense"


def regrets(points: Sequence[Measured], choices: Sequence[str]) -> Floats:
    """The time of what was chosen over that of the faster algorithm, at each point."""
    pairs = zip(points, choices, strict=True)
    return np.array([point.us[choice] / min(point.us.values()) for point, choice in pairs])


def report(points: Sequence[Measured]) -> list[str]:
    """Constants, errors and regret as lines of text."""
    calm = [point for point in points if point.case.step_size < CALM]
    constants = fit(calm)
    lines = [
        f"  {name:14} {value:9.4g} ns" for name, value in zip(CONSTANTS, constants, strict=True)
    ]
    lines += [f"constexpr CostRates rates{{{', '.join(f'{value:.3g}' for value in constants)}}};"]
    for batch in sorted({point.case.batch for point in points}):
        lines += ["", f"B = {batch}"]
        for algorithm in ("walk", "dense"):
            ratios = [
                point.us[algorithm] / predict(algorithm, constants, point.case, batch)
                for point in calm
                if point.case.batch == batch
            ]
            spread = ", ".join(f"{each:.2f}" for each in np.percentile(ratios, [5, 50, 95]))
            lines.append(f"  {algorithm:5} measured by model, few flips: p5, p50, p95 {spread}")
        some = [point for point in points if point.case.batch == batch]
        model = [quicker(constants, point.case) for point in some]
        for name, choices in (("auto", [point.auto for point in some]), ("model", model)):
            found = regrets(some, choices)
            mean, p95, most = found.mean(), np.percentile(found, 95), found.max()
            lines.append(f"  regret of {name:5}  mean {mean:.3f}, p95 {p95:.2f}, most {most:.2f}")
        lines += worst(some, constants)
    return lines


def worst(points: Sequence[Measured], constants: Floats) -> list[str]:
    """The points at which "auto" loses most."""
    found = regrets(points, [point.auto for point in points])
    lines = [
        f"  {'E':>2} {'hidden':>11} {'A':>3} {'n':>3} {'eta':>5} {'flips':>7} {'walk us':>8} "
        f"{'model':>8} {'dense us':>8} {'model':>8}  auto   model  regret"
    ]
    for i in np.argsort(-found)[:WORST]:
        point, case = points[i], points[i].case
        times = " ".join(
            f"{us:8.1f} {predict(algorithm, constants, case, case.batch):8.1f}"
            for algorithm, us in point.us.items()
        )
        lines.append(
            f"  {case.heads:2} {'x'.join(map(str, case.hidden)):>11} {case.action_dim:3} "
            f"{case.steps:3} {case.step_size:5g} {point.flips:7.1f} {times}  "
            f"{point.auto:5}  {quicker(constants, case):5}  {found[i]:6.2f}"
        )
    return lines


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a small grid")
    parser.add_argument("--out", type=Path, help="write what was measured to this JSON file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    start = time.perf_counter()
    points = measure_all(QUICK if arguments.quick else GRID)
    built = build_info.describe()
    print(f"kernels {built['isa']}, {len(points)} points, {time.perf_counter() - start:.0f} s")
    print("\n".join(report(points)))
    if arguments.out:
        rows = [
            {**vars(point.case), "us": dict(point.us), "auto": point.auto, "flips": point.flips}
            for point in points
        ]
        arguments.out.write_text(json.dumps({"isa": built["isa"], "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
