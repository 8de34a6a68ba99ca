"""Refinement: the package's algorithms beside the reference and other ways to compute it.

Parity is asserted before anything is timed. Contenders are timed in turn, and so are the loops of
limits.cpp, from which the floors follow: the least work of each contender's own algorithm at the
rates of multiply-adds and reads in the same rounds. Warm, one thread unless a row says otherwise.

    pytest benchmarks/bench_refine.py [--record] [--critic PATH] [--quick] [-k "standing and B1"]

For the rows of a trained critic:

    dtag data collect --env Hopper-v5 --tier medium-replay
    dtag train critic --data dtag/hopper/medium-replay-v0 --preset iql-hopper --out runs/critic
    pytest benchmarks/bench_refine.py --critic runs/critic
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks import contenders, goals, limits
from benchmarks.cases import CASES, EVERYTHING, STANDING, Case
from benchmarks.conftest import LEAST_SHARE
from benchmarks.contenders import Contender
from benchmarks.entries import calls, enter, row
from dtag_fast.data.minari import from_minari
from dtag_fast.models.critic import Critic
from dtag_fast.training.critic import load_critic

if TYPE_CHECKING:
    from benchmarks.conftest import Interleaved, Table

SECONDS = 4.0  # for a case's rounds
FEWEST_ROUNDS, MOST_ROUNDS, ATTEMPTS = 7, 300, 3
STARTS, SPREAD = 8, 0.1
MANY_ROWS, TWO = 1024, ("", " two threads")
TRAINED = [(1, 0.001), (1, 0.01), (1, 0.03), (1, 0.1), (64, 0.03), (256, 0.03)]  # B, eta

COLUMNS = {
    "case": "{}",
    "S": "{}",
    "A": "{}",
    "B": "{}",
    "n": "{}",
    "eta": "{:g}",
    "contender": "{}",
    "algorithm": "{}",
    "p5 us": "{:.1f}",
    "p50 us": "{:.1f}",
    "p95 us": "{:.1f}",
    "us a row": "{:.2f}",
    "x reference": "{:.2f}x",
    "kernel us": "{:.1f}",
    "floor us": "{:.1f}",
    "x floor": "{:.1f}x",
    "active": "{:.2f}",
    "flips": "{:.2f}",
    "error": "{:.0e}",
}
NOTES = [
    "p5, p50, p95: of a call, checks of its arguments included, and the clock's 0.1 us.",
    "kernel: the median of the native kernel alone, where there is one row.",
    "floor: the least multiply-adds or reads of the contender's algorithm (autograd: dense) at the "
    "rates of this machine in the same rounds.",
    "active: share of the hidden units that ReLU leaves on. flips: hidden units of a head that "
    "change sign in a step. Both along the reference's path.",
    "error: largest in an action against float64, rows near a kink or tie apart; of bf16 against "
    "the refinement of the rounded critic. Parity held for every row.",
]


@pytest.fixture(scope="module")
def table(new_table: Callable[..., Table]) -> Iterator[Table]:
    table = new_table("refine", COLUMNS)
    reached = new_table("refine-goals", goals.COLUMNS)
    yield table
    table.notes[:0] = NOTES + list(filter(None, [limits.missing_reason()]))
    reached.rows += goals.reached(table.rows)
    reached.share = table.share


Measure = Callable[[Case, Critic, list[Contender]], None]


@pytest.fixture
def measure(
    interleaved: type[Interleaved],
    table: Table,
    one_thread: None,
    pytestconfig: pytest.Config,
) -> Measure:
    """`measure(case, critic, everyone)`: check the contenders, time them, add rows to the table.

    Where other processes took the processor meanwhile, the case is timed again.
    """
    quick = pytestconfig.getoption("--quick")
    seconds, fewest, attempts = (0.3, 1, 1) if quick else (SECONDS, FEWEST_ROUNDS, ATTEMPTS)

    def measure(case: Case, critic: Critic, everyone: list[Contender]) -> None:
        entries = enter(case, critic, everyone)
        race = interleaved(calls(entries))
        for _ in range(attempts):
            race.forget()
            for _ in range(race.rounds_within(seconds, fewest, MOST_ROUNDS)):
                race.round()
            if race.share >= LEAST_SHARE:
                break
        table.share = min(table.share, race.share)
        times = race.microseconds()
        for entry in entries:
            made = row(case, critic, entry, times)
            table.rows.append({**made, "share of a processor": race.share})

    return measure


def make_all(
    table: Table, case: Case, critic: Critic, observations: Tensor, actions: Tensor
) -> list[Contender]:
    """The case's contenders; for one that is missing a note says why."""
    found = []
    for name in case.contenders:
        try:
            found.append(contenders.make(name, case, critic, observations, actions))
        except contenders.Missing as reason:
            table.notes.append(f"No {name} in {case}: {reason}")
    return found


@pytest.mark.parametrize("case", CASES, ids=str)
def test_refine(case: Case, table: Table, measure: Measure) -> None:
    critic = case.critic()
    measure(case, critic, make_all(table, case, critic, *case.inputs()))


def test_starting_points(table: Table, measure: Measure) -> None:
    """Eight starting points of one row, near each other, against eight rows."""
    case = dataclasses.replace(STANDING, name="starting points")
    critic = case.critic()
    observations, centre = case.inputs()
    generator = torch.Generator().manual_seed(2)
    spread = torch.rand(1, STARTS, case.action_dim, generator=generator) - 0.5
    points = centre.unsqueeze(1) + SPREAD * spread  # no two differ by more in a coordinate
    together = make_all(table, case, critic, observations, points)
    rows = observations.repeat(STARTS, 1)
    apart = dataclasses.replace(case, contenders=("auto as rows",))
    measure(case, critic, together + make_all(table, apart, critic, rows, points[0]))


def test_two_threads(table: Table, measure: Measure) -> None:
    names = ("reference", *(f"{word}{two}" for word in ("dense", "walk", "auto") for two in TWO))
    case = dataclasses.replace(STANDING, batch=MANY_ROWS, contenders=names)
    critic = case.critic()
    measure(case, critic, make_all(table, case, critic, *case.inputs()))


@pytest.mark.parametrize(("batch", "step_size"), TRAINED)
def test_trained_critic(
    batch: int, step_size: float, pytestconfig: pytest.Config, table: Table, measure: Measure
) -> None:
    path = pytestconfig.getoption("--critic")
    if path is None:
        pytest.skip("no --critic PATH")
    try:
        critic, observations, actions = trained(path)
    except FileNotFoundError as missing:
        pytest.skip(str(missing))
    chosen = np.random.default_rng(0).choice(len(actions), batch, replace=False)
    case = Case(
        "trained",
        critic.observation_dim,
        critic.action_dim,
        batch,
        step_size=step_size,
        contenders=EVERYTHING,
    )
    measure(case, critic, make_all(table, case, critic, observations[chosen], actions[chosen]))


@functools.cache
def trained(path: Path) -> tuple[Critic, Tensor, Tensor]:
    """The critic, and all observations [T, S] and actions [T, A] of the dataset it learnt from.

    Raises:
        FileNotFoundError: that dataset is not on this machine.
    """
    critic, state = load_critic(path)
    data = from_minari(state["dataset"]["id"])
    return critic, torch.from_numpy(data.observations), torch.from_numpy(data.actions)
