"""Fits the cost model by which algorithm="auto" chooses: times of both algorithms over a grid.

    python -m benchmarks.fit_cost_model [--quick] [--out rows.json]
    DTAG_ISA=avx2 python -m benchmarks.fit_cost_model

Both algorithms are forced on the same random critics and batches, one thread, and the kernel alone
is timed. A model is a sum of a few terms that depend on sizes alone, each with a constant in
nanoseconds that is not negative; the constants are those with the least relative error. Walk,
dense, and one row and many are fitted apart, because many rows share what they read of the weights.
Printed are the constants, how far the models are off, and the regret: the time of the algorithm
chosen over the time of the faster one, both of the "auto" in this build and of a choice by the
model just fitted.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable, Mapping, Sequence
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

OBSERVATION_DIM = 17
GRID: dict[str, tuple[Any, ...]] = {
    "batch": (1, 64),
    "heads": (1, 2, 4),
    "hidden": ((256,), (64, 64), (128, 128), (256, 256), (512, 512), (400, 300), (256,) * 3),
    "action_dim": (1, 3, 6, 12, 17, 28),
    "steps": (1, 3, 10, 30),
    "step_size": (0.03, 30.0),  # few flips, and many
}
QUICK: dict[str, tuple[Any, ...]] = {
    **GRID,
    "heads": (1, 2),
    "hidden": ((256,), (64, 64), (256, 256), (256,) * 3),
    "action_dim": (3, 17),
}
SECONDS = 5e-3  # of one measurement
ROUNDS = 3  # of both algorithms in turn
WORST = 12  # lines of the table of regret

# What the time of one row consists of, by algorithm: the coefficients of the model's constants.
TERMS: dict[str, dict[str, Callable[[Case], float]]] = {
    "walk": {
        "fixed": lambda case: 1.0,
        "setup": lambda case: case.heads * _setup(case),
        "step": lambda case: case.steps * case.heads * _step(case),
        "step_fixed": lambda case: case.steps,
    },
    "dense": {
        "fixed": lambda case: 1.0,
        "forward": lambda case: (case.steps + 1) * case.heads * _forward(case),
        "backward": lambda case: case.steps * _forward(case),
        "step_fixed": lambda case: case.steps,
    },
}


def _setup(case: Case) -> float:
    """Multiply-adds of a head's maps, half of the units below the last layer being active."""
    inputs = case.observation_dim + case.action_dim
    return case.hidden[0] * inputs + _between(case) * (1 + case.action_dim)


def _step(case: Case) -> float:
    """Multiply-adds of a head's step inside its region: all layers' moves and a gradient."""
    return (sum(case.hidden) + case.hidden[-1]) * case.action_dim


def _forward(case: Case) -> float:
    """Multiply-adds of one head's candidate, half of the units being active."""
    return case.hidden[0] * case.action_dim + _between(case)


def _between(case: Case) -> float:
    return sum(fan_in / 2 * fan_out for fan_in, fan_out in itertools.pairwise(case.hidden))


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
            seconds[name] += timer(max(1, int(SECONDS / ROUNDS / first)))
    us = {name: float(np.median(each)) * 1e6 / case.batch for name, each in seconds.items()}
    _, chosen = refiner("auto", return_info=True)(observations, actions)
    _, walked = refiner("walk", return_info=True)(observations, actions)
    return Measured(case, us, chosen.algorithm, float(walked.flips.double().mean()))


def measure_all(grid: Mapping[str, tuple[Any, ...]]) -> list[Measured]:
    """Time all points of the grid."""
    found = []
    for values in itertools.product(*grid.values()):
        point = dict(zip(grid, values, strict=True))
        found.append(measure(Case("grid", OBSERVATION_DIM, **point)))
    return found


def fit(algorithm: str, points: Sequence[Measured]) -> dict[str, float]:
    """The constants in nanoseconds, by term: of least squares of the relative error, and >= 0."""
    matrix = _matrix(algorithm, [point.case for point in points])
    matrix /= np.array([[point.us[algorithm]] for point in points])
    kept = list(range(matrix.shape[1]))
    while True:  # leave out the most negative one until none is
        values = np.linalg.lstsq(matrix[:, kept], np.ones(len(points)), rcond=None)[0]
        scaled = values * matrix[:, kept].mean(axis=0)
        if (values >= 0).all():
            break
        kept.pop(int(scaled.argmin()))
    constants = np.zeros(matrix.shape[1])
    constants[kept] = values * 1e3
    return dict(zip(TERMS[algorithm], constants.tolist(), strict=True))


def predict(algorithm: str, constants: Mapping[str, float], cases: Sequence[Case]) -> Floats:
    """Microseconds a row by the model."""
    predicted: Floats = _matrix(algorithm, cases) @ np.array(list(constants.values())) / 1e3
    return predicted


def _matrix(algorithm: str, cases: Sequence[Case]) -> Floats:
    terms = TERMS[algorithm].values()
    return np.array([[term(case) for term in terms] for case in cases])


def regrets(points: Sequence[Measured], choices: Sequence[str]) -> Floats:
    """The time of what was chosen over that of the faster algorithm, at each point."""
    pairs = zip(points, choices, strict=True)
    return np.array([point.us[choice] / min(point.us.values()) for point, choice in pairs])


def report(points: Sequence[Measured]) -> list[str]:
    """Constants, errors and regret as lines of text, for one row and for many."""
    lines = []
    for batch in sorted({point.case.batch for point in points}):
        some = [point for point in points if point.case.batch == batch]
        cases = [point.case for point in some]
        lines += ["", f"B = {batch}: nanoseconds, and measured by model at p5, p50 and p95"]
        predicted = {}
        for algorithm in TERMS:
            # Few flips: how many there will be is not known beforehand.
            calm = [point for point in some if point.case.step_size < 1]
            constants = fit(algorithm, calm)
            predicted[algorithm] = predict(algorithm, constants, cases)
            ratio = [p.us[algorithm] for p in some] / predicted[algorithm]
            quiet = np.array([point.case.step_size < 1 for point in some])
            spread = " ".join(f"{each:.2f}" for each in np.percentile(ratio[quiet], [5, 50, 95]))
            shown = ", ".join(f"{name} {value:.4g}" for name, value in constants.items())
            lines.append(f"  {algorithm:5}  {shown}  |  {spread}")
        model = np.where(predicted["walk"] <= predicted["dense"], "walk", "dense").tolist()
        for name, choices in (("auto", [p.auto for p in some]), ("model", model)):
            found = regrets(some, choices)
            mean, p95, most = found.mean(), np.percentile(found, 95), found.max()
            lines.append(f"  regret of {name:5}  mean {mean:.3f}, p95 {p95:.2f}, most {most:.2f}")
        lines += worst(some, model, predicted)
    return lines


def worst(
    points: Sequence[Measured], model: Sequence[str], predicted: Mapping[str, Floats]
) -> list[str]:
    """The points at which "auto" loses most."""
    found = regrets(points, [point.auto for point in points])
    lines = [
        f"  {'E':>2} {'hidden':>11} {'A':>3} {'n':>3} {'eta':>5} {'flips':>7} {'walk':>8} "
        f"{'model':>8} {'dense':>8} {'model':>8}  auto   model  regret"
    ]
    for i in np.argsort(-found)[:WORST]:
        point, case = points[i], points[i].case
        lines.append(
            f"  {case.heads:2} {'x'.join(map(str, case.hidden)):>11} {case.action_dim:3} "
            f"{case.steps:3} {case.step_size:5g} {point.flips:7.1f} {point.us['walk']:8.1f} "
            f"{predicted['walk'][i]:8.1f} {point.us['dense']:8.1f} {predicted['dense'][i]:8.1f}  "
            f"{point.auto:5}  {model[i]:5}  {found[i]:6.2f}"
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
