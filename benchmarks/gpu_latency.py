"""Times of refinement on a GPU: device time by CUDA-graph replay, beside floors of the same device.

Cases, floors and goals are plain arithmetic and need no GPU; what times is at the end.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.cases import HOPPER, STANDING, Case
from benchmarks.checks import LARGEST_Q_LOSS, rounded
from dtag_fast.models.critic import Critic
from dtag_fast.refinement import BACKENDS, Refiner, cuda
from dtag_fast.refinement.backends import reason_against
from dtag_fast.refinement.cuda_graph import capture
from dtag_fast.refinement.execution import Algorithm, Execution, Precision
from dtag_fast.refinement.parity import Standard

BACKENDS_TIMED = ("graph", "triton", "cuda")
CHECKED_ROWS = 64
REPLAYS = 20  # between two events, so that these cost nothing
SAMPLES = 30
CALLS = 15
ACTIVE = 0.5  # of a fresh critic's units
WIDEST = Case("humanoid", 348, 17)

COLUMNS = {
    "case": "{}",
    "B": "{}",
    "n": "{}",
    "backend": "{}",
    "precision": "{}",
    "algorithm": "{}",
    "kernel": "{}",
    "p5 us": "{:.1f}",
    "p50 us": "{:.1f}",
    "p95 us": "{:.1f}",
    "call us": "{:.0f}",
    "floor us": "{:.2f}",
    "x floor": "{:.1f}x",
    "x eager": "{:.0f}x",
    "error": "{:.0e}",
    "note": "{}",
}
NOTES = [
    "kernel: of the cuda backend, forced: a row a block, a row a block of half as many threads "
    "(lean), or a row a cluster; without one it is chosen by the batch's size. Forced ones count "
    "for no goal. algorithm: dense where it was asked for, with bf16 on tensor cores.",
    "p5, p50, p95: device time of a refinement, a CUDA graph of it replayed.",
    "call: the median wall time of a call from Python until the result is there, without a graph.",
    "floor: an empty kernel in a graph, or the walk's multiply-adds at the device's float32 rate "
    "if that is more; one row cannot use more than one multiprocessor.",
    "x eager: against plain autograd on the same GPU, wall time against wall time of the graph.",
    "error: largest in an action against float64, rows near a kink or tie apart. Parity held for "
    "every row with a time; 348 observations, whose sum rounds most, are shaken for it too. With "
    "bf16 by the dense algorithm, which rounds more than weights, what is chosen is worth as much "
    f"in place of it, but for {LARGEST_Q_LOSS:g} of Q.",
]


@dataclass(frozen=True)
class Timed:
    """What one refinement is timed on."""

    case: Case
    precision: Precision = "fp32"
    algorithm: Algorithm = "auto"


def cases(quick: bool = False) -> list[Timed]:
    """All of them, the ones with a goal first."""

    def at(case: Case, batch: int, steps: int = 10) -> Case:
        return Case(case.name, case.observation_dim, case.action_dim, batch, steps)

    chosen = [at(STANDING, 1), at(STANDING, 256), at(STANDING, 4096), at(STANDING, 1, 50)]
    if quick:
        return [Timed(case) for case in chosen[:1]]
    more = [at(STANDING, 64), at(STANDING, 1024), at(HOPPER, 1), at(HOPPER, 256), at(WIDEST, 1)]
    bf16 = [Timed(at(STANDING, batch), "bf16") for batch in (1, 4096)]
    bf16 += [Timed(at(STANDING, batch), "bf16", "dense") for batch in (64, 1024, 4096)]
    tf32x3 = [Timed(at(STANDING, batch), "tf32x3") for batch in (1, 256, 1024, 4096)]
    tf32x3 += [Timed(at(WIDEST, batch), "tf32x3") for batch in (1, 256)]
    return [*map(Timed, chosen), *bf16, *tf32x3, *map(Timed, more), Timed(at(WIDEST, 256))]


@dataclass(frozen=True)
class Limits:
    """What the device can do.

    Attributes:
        launch: seconds of an empty kernel in a CUDA graph.
        multiply_adds: float32, a second, of the whole device.
        multiprocessors: their number.
        copied: bytes a second of a copy that stays in the second-level cache, read and written.
    """

    launch: float
    multiply_adds: float
    multiprocessors: int
    copied: float


def walk_work(case: Case) -> float:
    """The multiply-adds of one row's walk without a flip."""
    widths = case.hidden
    inner = ACTIVE * sum(a * b for a, b in itertools.pairwise(widths))
    build = inner * (1 + case.action_dim) + case.observation_dim * widths[0]
    step = case.action_dim * (widths[0] + 2 * widths[-1])
    return case.heads * (build + (case.steps + 1) * step)


def floor(case: Case, limits: Limits) -> float:
    """Seconds below which no walk of the batch can get on the device."""
    share = min(case.batch, limits.multiprocessors) / limits.multiprocessors
    return max(limits.launch, case.batch * walk_work(case) / (limits.multiply_adds * share))


# As exact as float32 by the standard of every test.
EXACT: tuple[Precision, ...] = ("fp32", "tf32x3")
# name, B, n, one of the precisions, backend or None for the best of them, most microseconds
GOALS: tuple[tuple[str, int, int, tuple[Precision, ...], str | None, float], ...] = (
    ("B=1, best backend", 1, 10, EXACT, None, 12.0),
    ("B=256, best backend", 256, 10, EXACT, None, 20.0),
    ("B=4096, best backend", 4096, 10, EXACT, None, 150.0),
    ("B=4096, bf16, best backend", 4096, 10, ("bf16",), None, 60.0),
    ("B=1, graph", 1, 10, ("fp32",), "graph", 300.0),
    ("B=1, triton", 1, 10, ("fp32",), "triton", 40.0),
)
LEAST_OVER_EAGER = 300.0
MOST_OF_50_STEPS = 3.5


def goals(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each goal, what was reached, and whether that is enough; None where it was not measured."""

    def best(
        batch: int, steps: int, precisions: Sequence[str], backend: str | None = None
    ) -> float | None:
        times = [
            row["p50 us"]
            for row in rows
            if (row["case"], row["B"], row["n"]) == (STANDING.name, batch, steps)
            and row["precision"] in precisions
            and (backend is None or row["backend"] == backend)
            and row.get("p50 us") is not None
            and "kernel" not in row
        ]
        return min(times, default=None)

    found = []
    for name, batch, steps, precisions, backend, most in GOALS:
        reached = best(batch, steps, precisions, backend)
        found.append(
            _goal(name, f"<= {most:g} us", reached, reached is not None and reached <= most)
        )
    eager = [
        row["x eager"]
        for row in rows
        if (row["case"], row["B"], row["n"]) == (STANDING.name, 1, 10)
        and row["precision"] == "fp32"
        and row.get("x eager") is not None
        and "kernel" not in row
    ]
    over = max(eager, default=None)
    name = "B=1, best backend over eager autograd"
    found.append(
        _goal(
            name, f">= {LEAST_OVER_EAGER:g}x", over, over is not None and over >= LEAST_OVER_EAGER
        )
    )
    short, long = best(1, 10, ("fp32",)), best(1, 50, ("fp32",))
    ratio = None if short is None or long is None else long / short
    enough = ratio is not None and ratio <= MOST_OF_50_STEPS
    found.append(_goal("B=1, n=50 over n=10", f"<= {MOST_OF_50_STEPS:g}x", ratio, enough))
    return found


def _goal(name: str, goal: str, reached: float | None, met: bool) -> dict[str, Any]:
    verdict = "not measured" if reached is None else "yes" if met else "no"
    return {"goal": name, "asked": goal, "reached": reached, "met": verdict}


GOAL_COLUMNS = {"goal": "{}", "asked": "{}", "reached": "{:.1f}", "met": "{}"}


CROSSOVER_BATCHES = (1, 4, 16, 64, 256, 1024, 4096)
CROSSOVER_COLUMNS = {
    "case": "{}",
    "B": "{}",
    "cpu us": "{:.0f}",
    "gpu us": "{:.0f}",
    "cpu / gpu": "{:.2f}x",
    "auto": "{}",
}
CROSSOVER_NOTES = [
    "wall time of a call from Python, n=10, whose critic and arrays are on the CPU: by backend "
    "cpu, on all cores, and by cuda, to the GPU and back. auto: which of them is taken unnamed.",
]


# What needs a GPU


def crossovers() -> list[dict[str, Any]]:
    """Where a batch that is on the CPU is better taken to the GPU and back."""
    rows = []
    for case in (HOPPER, STANDING, WIDEST):
        critic = case.critic()
        words: dict[str, Any] = {"steps": 10, "step_size": case.step_size}
        here = Refiner(critic, backend="cpu", **words)
        there = Refiner(critic, backend="cuda", **words)
        automatic = Refiner(critic, **words)
        for batch in CROSSOVER_BATCHES:
            arrays = replace(case, batch=batch).inputs()

            def seconds(refine: Refiner, arrays: tuple[Tensor, Tensor] = arrays) -> float:
                return _median(called(lambda: refine(*arrays), CALLS))

            cpu, gpu = seconds(here), seconds(there)
            found = {"cpu us": cpu * 1e6, "gpu us": gpu * 1e6, "cpu / gpu": cpu / gpu}
            chosen = {"auto": automatic.backend_for(batch)}
            rows.append({"case": case.name, "B": batch} | found | chosen)
    return rows


def measure_limits() -> Limits:
    """Of the current CUDA device, in a second or two."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    size = 4096
    left = torch.randn(size, size, device="cuda")
    product = torch.empty_like(left)
    seconds = _median(replayed(lambda: torch.mm(left, left, out=product), replays=2))
    torch.backends.cuda.matmul.allow_tf32 = before
    one = torch.zeros(1, device="cuda")
    source = torch.randn(2 << 20, device="cuda")  # 8 MB
    target = torch.empty_like(source)
    copied = 2 * source.nbytes / _median(replayed(lambda: target.copy_(source)))
    return Limits(
        launch=_median(replayed(lambda: one.add_(1))),
        multiply_adds=size**3 / seconds,
        multiprocessors=torch.cuda.get_device_properties(0).multi_processor_count,
        copied=copied,
    )


def replayed(call: Callable[[], object], replays: int = REPLAYS) -> list[float]:
    """Seconds of the device for one call, sampled: a CUDA graph of it, replayed."""
    replay, _outputs = capture(call, torch.device("cuda", torch.cuda.current_device()))
    found = []
    for sample in range(SAMPLES + 3):
        first = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        last = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        replay()  # the one before keeps the device busy while events are queued
        first.record()
        for _ in range(replays):
            replay()
        last.record()
        last.synchronize()
        if sample >= 3:
            found.append(first.elapsed_time(last) * 1e-3 / replays)
    return found


def called(call: Callable[[], object], calls: int) -> list[float]:
    """Wall seconds of calls, each until the device has done."""
    call()
    found = []
    for _ in range(calls):
        torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        torch.cuda.synchronize()
        found.append(time.perf_counter() - start)
    return found


def _median(seconds: list[float]) -> float:
    return statistics.median(seconds)


def measure(timed: Timed, limits: Limits) -> list[dict[str, Any]]:
    """A row for eager autograd, and one for each backend: with times, or why there are none."""
    case = timed.case
    critic = case.critic().cuda()
    observations, actions = (array.cuda() for array in case.inputs())
    words: dict[str, Any] = {"steps": case.steps, "step_size": case.step_size}
    plain = Refiner(critic, backend="reference", **words)
    eager = _median(called(lambda: plain(observations, actions), 3))
    common: dict[str, Any] = {"case": case.name, "B": case.batch, "n": case.steps}
    rows: list[dict[str, Any]] = []
    if timed.precision == "fp32":
        rows.append(common | {"backend": "reference", "precision": "fp32", "call us": eager * 1e6})
    exact = rounded(critic) if timed.precision == "bf16" else critic
    checked = observations[:CHECKED_ROWS], actions[:CHECKED_ROWS]
    wide = case.observation_dim == WIDEST.observation_dim
    standard = Standard(exact, *checked, plain.options, shake_observations=wide)
    ways: list[tuple[str, cuda.Kernel | None]] = [(name, None) for name in BACKENDS_TIMED]
    walks = timed.algorithm == "auto"
    if walks and reason_against("cuda", critic, plain.options, _execution(timed)) is None:
        ways += [("cuda", kernel) for kernel in cuda.kernels(cuda.pack(critic, timed.precision))]
    for name, kernel in ways:
        row: dict[str, Any] = common | {"backend": name, "precision": timed.precision}
        row |= {} if kernel is None else {"kernel": kernel}
        row |= {} if walks else {"algorithm": timed.algorithm}
        try:
            row |= _times(name, kernel, timed, critic, observations, actions, standard, words)
        except Exception as error:  # one backend's failure is a row, not the end of the others'
            row["note"] = str(error).partition("\n")[0][:100]
        if "p50 us" in row:
            # Of tensor cores' products none is known here.
            least = (floor(case, limits) if walks else limits.launch) * 1e6
            row |= {"floor us": least, "x floor": row["p50 us"] / least}
            row["x eager"] = eager * 1e6 / row["p50 us"]
        rows.append(row)
    return rows


def _execution(timed: Timed) -> Execution:
    return Execution.check(algorithm=timed.algorithm, precision=timed.precision, threads=None)


def _times(
    name: str,
    kernel: cuda.Kernel | None,
    timed: Timed,
    critic: Critic,
    observations: Tensor,
    actions: Tensor,
    standard: Standard,
    words: dict[str, Any],
) -> dict[str, Any]:
    if name not in BACKENDS:
        return {"note": "not in this version"}
    execution = _execution(timed)
    reason = reason_against(name, critic, standard.options, execution)
    if reason is not None:
        return {"note": reason[:100]}
    how: dict[str, Any] = {"precision": timed.precision, "algorithm": timed.algorithm}
    refiner = Refiner(critic, backend=name, **how, **words)  # type: ignore[arg-type]
    packed = None if kernel is None else cuda.pack(critic, execution.precision)

    def refine() -> Tensor:
        if packed is None or kernel is None:
            refined: Tensor = refiner(observations, actions)
            return refined
        points = actions.unsqueeze(1)
        return cuda.run(packed, observations, points, refiner.options, kernel=kernel)[0]

    parity = standard.measure(refine()[:CHECKED_ROWS])
    rounds = timed.precision == "bf16" and timed.algorithm == "dense"
    if not (parity.q_loss <= LARGEST_Q_LOSS if rounds else parity.holds):
        return {"note": f"is not the reference's equal: {parity}", "failed": True}
    seconds = sorted(replayed(refine))
    wall = _median(called(refine, SAMPLES))
    return {
        "p5 us": seconds[len(seconds) // 20] * 1e6,
        "p50 us": _median(seconds) * 1e6,
        "p95 us": seconds[-1 - len(seconds) // 20] * 1e6,
        "call us": wall * 1e6,
        "error": parity.error,
    }
