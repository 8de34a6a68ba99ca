"""Refinement: every backend beside the reference, one thread, warm.

Parity is checked before anything is timed. Contenders are timed in turn, and so is a large matrix
product, from which the dense floor follows: the multiplications of a dense refinement at the rate
of torch's float32 GEMM in the same minute. A backend that needs fewer multiplications may go below
it; one row at a time can't reach it, being bound by the reading of weights.

    pytest benchmarks/bench_refine.py [--record]
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from dtag_fast.models.critic import Critic
from dtag_fast.refinement import BACKENDS, Refiner, reference
from dtag_fast.refinement.backends import BackendName, reason_against
from dtag_fast.refinement.options import RefineOptions
from dtag_fast.refinement.parity import measure_parity

if TYPE_CHECKING:
    from benchmarks.conftest import Interleaved, Table

# name: (observation_dim, action_dim) of a twin critic 256 x 256, ReLU
CRITICS = {"standing": (17, 6), "hopper": (11, 3), "maze": (4, 2)}
HIDDEN = (256, 256)
BATCHES = (1, 64, 256)
STEPS, STEP_SIZE = 10, 0.03

SECONDS = 4.0  # for a case's rounds
FEWEST_ROUNDS, MOST_ROUNDS = 15, 300
GEMM = 512  # rows and columns
GEMM_NAME = "gemm"

COLUMNS = {
    "critic": "{}",
    "S": "{}",
    "A": "{}",
    "B": "{}",
    "backend": "{}",
    "p5 us": "{:.1f}",
    "p50 us": "{:.1f}",
    "p95 us": "{:.1f}",
    "us a row": "{:.2f}",
    "x reference": "{:.2f}x",
    "floor us": "{:.1f}",
    "x floor": "{:.1f}x",
    "error": "{:.0e}",
}


def make_critic(name: str) -> Critic:
    """A random critic, initialised as torch does."""
    torch.manual_seed(0)
    return Critic(*CRITICS[name], hidden=HIDDEN, heads=2)


def make_batch(critic: Critic, batch: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    observations = torch.randn(batch, critic.observation_dim, generator=generator)
    actions = torch.rand(batch, critic.action_dim, generator=generator) * 2 - 1
    return observations, actions


def dense_flops(critic: Critic) -> int:
    """Of refining one row with every matrix in full, two a multiplication.

    All heads forward for n + 1 candidates, the lowest head backward n times; the observation's
    part of the first layer once.
    """
    widths = [critic.action_dim, *critic.hidden, 1]
    pairs = list(itertools.pairwise(widths))
    forward = sum(fan_in * fan_out for fan_in, fan_out in pairs)
    backward = sum(fan_in * fan_out for fan_in, fan_out in pairs[:-1])
    once = critic.observation_dim * critic.hidden[0] * critic.heads
    return 2 * ((STEPS + 1) * critic.heads * forward + STEPS * backward + once)


def flips_a_step(critic: Critic, observations: Tensor, actions: Tensor) -> float:
    """Mean number of ReLUs of a head whose sign differs from one iterate to the next."""

    def signs(actions: Tensor) -> Tensor:
        x = torch.cat([critic.normalizer(observations), actions], dim=1).expand(
            critic.heads, -1, -1
        )
        found = []
        for weight, bias in list(zip(critic.weights, critic.biases, strict=True))[:-1]:
            z = torch.baddbmm(bias.unsqueeze(1), x, weight.transpose(1, 2))
            found.append(z > 0)
            x = z.relu()
        return torch.cat(found, dim=2)  # [E, B, sum of hidden]

    with torch.no_grad():
        path = [
            signs(
                reference.refine(
                    critic, observations, actions, steps=i, step_size=STEP_SIZE, select="last"
                )
            )
            for i in range(STEPS + 1)
        ]
    changes = [(a ^ b).sum(dim=2).double().mean() for a, b in itertools.pairwise(path)]
    return float(torch.stack(changes).mean())


def available_backends(critic: Critic) -> list[BackendName]:
    """The reference first, then the others that can do this refinement here."""
    options = RefineOptions.check(
        steps=STEPS,
        step_size=STEP_SIZE,
        optimizer="sgd",
        bounds=(-1.0, 1.0),
        ensemble="min",
        lcb_k=1.0,
        select="best",
        max_distance=None,
        gradient="raw",
    )
    others = [name for name in BACKENDS if reason_against(name, critic, options) is None]
    names = ["reference", *(name for name in others if name != "reference")]
    return cast("list[BackendName]", names)


@pytest.fixture(scope="module")
def table(new_table: Callable[..., Table]) -> Table:
    return new_table("refine", COLUMNS)


@pytest.mark.benchmark(group="refine: rounds of all backends; their own times are in the table")
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", list(CRITICS))
@pytest.mark.usefixtures("one_thread")
def test_refine(
    benchmark: BenchmarkFixture,
    interleaved: type[Interleaved],
    table: Table,
    name: str,
    batch: int,
) -> None:
    critic = make_critic(name)
    observations, actions = make_batch(critic, batch)
    backends = available_backends(critic)
    parities = {}
    for backend in backends:
        parity = measure_parity(
            critic, observations, actions, backend=backend, steps=STEPS, step_size=STEP_SIZE
        )
        assert parity.holds, f"{backend} is not the reference's equal, no time is taken: {parity}"
        parities[backend] = parity

    square = torch.randn(GEMM, GEMM)
    product = torch.empty(GEMM, GEMM)
    contenders: dict[str, Callable[[], object]] = {
        GEMM_NAME: lambda: torch.mm(square, square, out=product)
    }
    for backend in backends:
        refiner = Refiner(critic, steps=STEPS, step_size=STEP_SIZE, backend=backend)
        contenders[backend] = lambda refiner=refiner: refiner(observations, actions)  # type: ignore[misc]
    race = interleaved(contenders)
    rounds = race.rounds_within(SECONDS, FEWEST_ROUNDS, MOST_ROUNDS)
    benchmark.pedantic(race.round, rounds=rounds)  # type: ignore[no-untyped-call]
    table.share = min(table.share, race.share)

    times = race.microseconds()
    flops_per_us = 2 * GEMM**3 / times[GEMM_NAME]["p50"]
    floor = batch * dense_flops(critic) / flops_per_us
    flips = flips_a_step(critic, observations, actions)
    for backend in backends:
        p50 = times[backend]["p50"]
        table.rows.append(
            {
                "critic": name,
                "S": critic.observation_dim,
                "A": critic.action_dim,
                "B": batch,
                "backend": backend,
                "p5 us": times[backend]["p5"],
                "p50 us": p50,
                "p95 us": times[backend]["p95"],
                "us a row": p50 / batch,
                "x reference": times["reference"]["p50"] / p50,
                "floor us": floor,
                "x floor": p50 / floor,
                "error": parities[backend].error,
                "calls": times[backend]["calls"],
                "n": STEPS,
                "step_size": STEP_SIZE,
                "hidden": list(HIDDEN),
                "heads": critic.heads,
                "flips a step and head": flips,
                "gemm GFLOP/s": flops_per_us / 1e3,
                "threads": torch.get_num_threads(),
                "share of a processor": race.share,
            }
        )
    table.notes[:] = notes(table)


def notes(table: Table) -> list[str]:
    """What the rows have in common."""
    rates = [row["gemm GFLOP/s"] for row in table.rows]
    flips = [row["flips a step and head"] for row in table.rows]
    return [
        f"Random twin critics {HIDDEN[0]}x{HIDDEN[1]} ReLU, n={STEPS}, step size {STEP_SIZE}, "
        f"float32, one thread, warm, {min(flips):.2f}-{max(flips):.2f} flips a step and head.",
        f"Floor: a dense refinement's multiplications at the rate of torch's {GEMM}x{GEMM} GEMM "
        f"in the same rounds ({min(rates):.0f}-{max(rates):.0f} GFLOP/s).",
        "Error: largest in an action against float64, rows near a kink or tie apart; parity held "
        "in every case.",
    ]
