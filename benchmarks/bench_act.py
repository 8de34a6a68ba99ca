"""A whole action: `Policy.act` beside the loop that the papers' code runs.

The plain loop is `acting_loops.Plain`: windows, whole forward passes, the reference refinement.
Parity along an episode, the window's filling and sliding included, is asserted before anything is
timed. Contenders are timed in turn in steady state, the window full; one thread, so that the time
for which it had a processor is what a call takes, whoever else is running. The parts of an action
stand apart: forward, refinement and the copies around them, and the step of an environment of the
same sizes, which counts for none of them.

    pytest benchmarks/bench_act.py [--record] [--quick] [-k "defaults"]
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from benchmarks import limits
from benchmarks.acting_loops import CASES, Case, Loop, forward_floor, make_loops, measure_parity
from dtag_fast.evaluation.environments import make_env

if TYPE_CHECKING:
    from benchmarks.conftest import Interleaved, Table

SECONDS = 6.0  # for a case's rounds
FEWEST_ROUNDS, MOST_ROUNDS = 7, 300
ENV, ARITHMETIC = "env", "multiply-adds"

COLUMNS = {
    "case": "{}",
    "B": "{}",
    "contender": "{}",
    "p5 us": "{:.0f}",
    "p50 us": "{:.0f}",
    "p95 us": "{:.0f}",
    "us an action": "{:.1f}",
    "forward": "{:.1f}",
    "refine": "{:.1f}",
    "copies": "{:.1f}",
    "env": "{:.1f}",
    "sum": "{:.1f}",
    "x plain": "{:.1f}x",
    "goal": "{}",
    "floor": "{:.1f}",
    "x floor": "{:.1f}x",
    "error": "{:.0e}",
}
NOTES = [
    "Reinformer or Decision Transformer with S=17, A=6, twin critic 256x256 ReLU, n=10, eta=0.03.",
    "p5, p50, p95: of a call of act for all B environments, processor time. us an action: p50 / B.",
    "forward, refine, copies: parts of it, medians, us for all B; copies is the rest of the call: "
    "windows, conversions, checks. sum: those and env, B steps of HalfCheetah-v5 in turn.",
    "floor: the forward pass of the exact algorithm with windows that are full: its "
    "multiply-adds or the reading of the weights, whichever takes longer, at the rates of this "
    "machine in the same rounds. x floor: forward by floor.",
    "error: largest difference of an unrefined action from the plain loop's along an episode.",
]


@pytest.fixture(scope="module")
def table(new_table: Callable[..., Table]) -> Iterator[Table]:
    table = new_table("act", COLUMNS)
    yield table
    table.notes[:0] = NOTES + list(filter(None, [limits.missing_reason()]))


@pytest.fixture(scope="module")
def env_step() -> Iterator[Callable[[], object] | None]:
    """A step of HalfCheetah-v5, or None without the extra `envs`."""
    if importlib.util.find_spec("mujoco") is None:
        yield None
        return
    env = make_env("HalfCheetah-v5")
    env.reset(seed=0)
    action = np.zeros(6, dtype=np.float32)

    def step() -> None:
        _, _, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            env.reset(seed=0)

    yield step
    env.close()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_act(
    case: Case,
    table: Table,
    interleaved: type[Interleaved],
    one_thread: None,
    env_step: Callable[[], object] | None,
    pytestconfig: pytest.Config,
) -> None:
    loops, missing = make_loops(case)
    table.notes += missing
    errors = measure_parity(case, loops)
    quick = pytestconfig.getoption("--quick")
    seconds, fewest = (0.5, 1) if quick else (SECONDS, FEWEST_ROUNDS)
    calls: dict[str, Callable[[], object]] = {
        name: Steady(case, loop) for name, loop in loops.items()
    }
    if env_step is not None:
        calls[ENV] = env_step
    level = limits.level_of(case.weight_bytes)
    if limits.missing_reason() is None:
        calls |= {ARITHMETIC: limits.multiply_adds, level: lambda: limits.read(level)}
    race = interleaved(calls)
    race.forget()
    for loop in loops.values():
        loop.parts.clear()
    for _ in range(race.rounds_within(seconds, fewest, MOST_ROUNDS)):
        race.round()
    times = race.microseconds()
    for name, loop in loops.items():
        if name not in race.long:  # of each turn the first call brings the weights into the caches
            turn = race.bursts[name] + 1
            loop.parts[:] = [part for i, part in enumerate(loop.parts) if i % turn]
    floor = None
    if ARITHMETIC in times:
        floor = forward_floor(
            case,
            limits.multiply_adds() / times[ARITHMETIC]["p50"],
            limits.read(level) / times[level]["p50"],
        )
    env = None if env_step is None else case.batch * times[ENV]["p50"]
    for name, loop in loops.items():
        table.rows.append(
            row(case, name, loop, loops["plain"], errors.get(name), floor=floor, env=env)
            | {"share of a processor": race.share}
        )


class Steady:
    """Calls of act in which every window is full, but for the first ones of an episode.

    Episodes are as long as the model knows timesteps for; so the calls that are not steady are few
    and move no median.
    """

    def __init__(self, case: Case, loop: Loop) -> None:
        self.loop, self.limit = loop, case.config.max_timestep
        generator = np.random.default_rng(0)
        self.observations = generator.standard_normal((64, case.batch, case.observation_dim))
        self.observations = self.observations.astype(np.float32)
        self.rewards = np.ones(case.batch, dtype=np.float32)
        self.begin(case.config.context_length + case.config.history)

    def begin(self, steps: int) -> None:
        self.loop.begin()
        self.t = 0
        for _ in range(steps):
            self()

    def __call__(self) -> None:
        if self.t == self.limit:
            self.begin(0)
        self.loop.act(self.observations[self.t % len(self.observations)], self.rewards)
        self.t += 1


def microseconds(loop: Loop) -> NDArray[np.float64]:
    """[calls, 3]: forward, refinement and the whole, processor time.

    What the clock says of a part is taken as its share of the whole.
    """
    parts = 1e6 * np.array(loop.parts)
    scale = parts[:, 3] / parts[:, 2]
    return np.stack([parts[:, 0] * scale, parts[:, 1] * scale, parts[:, 3]], axis=1)


def row(
    case: Case,
    name: str,
    loop: Loop,
    plain: Loop,
    error: float | None,
    *,
    floor: float | None,
    env: float | None,
) -> dict[str, Any]:
    """Of the table."""
    parts = microseconds(loop)
    p5, p50, p95 = np.percentile(parts[:, 2], [5, 50, 95]).tolist()
    forward, refine = np.median(parts[:, :2], axis=0).tolist()
    copies = float(np.median(parts[:, 2] - parts[:, 0] - parts[:, 1]))
    ratio = float(np.median(microseconds(plain)[:, 2])) / p50
    wanted = case.goals.get(name)
    return {
        **case.describe(),
        "contender": name,
        "p5 us": p5,
        "p50 us": p50,
        "p95 us": p95,
        "calls": len(parts),
        "us an action": p50 / case.batch,
        "forward": forward,
        "refine": refine,
        "copies": copies,
        "env": env,
        "sum": forward + refine + copies + (env or 0.0),
        "x plain": ratio,
        "goal": None if wanted is None else f">={wanted:g} {'yes' if ratio >= wanted else 'no'}",
        "floor": floor,
        "x floor": None if floor is None else forward / floor,
        "error": error,
        "torch threads": torch.get_num_threads(),
    }
