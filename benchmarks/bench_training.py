"""Training: an update of ours beside a plain eager one, from equal weights on equal batches.

The curves of the losses have to agree, on one thread, before anything is timed. The two are then
timed in turn; an update is a whole one: draw the batch, forward, backward, optimisers, target. The
floor is its multiply-adds, those that no training could leave out, at the rate of this machine in
the same rounds.

    pytest benchmarks/bench_training.py [--record] [--quick] [-k iql]
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from benchmarks import limits
from benchmarks.conftest import LEAST_SHARE
from benchmarks.plain_training import PlainIql, PlainReinformer
from dtag_fast.checkpoint import load_tensors
from dtag_fast.data.trajectories import Trajectories
from dtag_fast.models.config import ModelConfig
from dtag_fast.training.config import Backend, CriticConfig, PolicyConfig, critic_preset
from dtag_fast.training.critic import TransitionLearner, learner_class, train_critic
from dtag_fast.training.iql import CriticLearner
from dtag_fast.training.method_config import CriticMethod
from dtag_fast.training.sequence import PolicyLearner
from dtag_fast.training.together import train_critics

if TYPE_CHECKING:
    from benchmarks.conftest import Interleaved, Table

STEPS, EPISODE, OBSERVATION_DIM, ACTION_DIM = 100_000, 500, 17, 6
SECONDS, FEWEST_ROUNDS, MOST_ROUNDS, ATTEMPTS = 12.0, 9, 400, 3
CURVE = {"iql": 300, "reinformer": 12, "td3-bc": 30, "cql": 6, "ensemble": 30}
BACKENDS: tuple[Backend, ...] = ("native", "torch")
SEEDS, SEED_STEPS, SEED_ROUNDS = 4, 500, 3
CPU = torch.device("cpu")
FLOOR = "multiply-adds"

COLUMNS = {
    "update": "{}",
    "precision": "{}",
    "threads": "{}",
    "contender": "{}",
    "p5 ms": "{:.2f}",
    "p50 ms": "{:.2f}",
    "p95 ms": "{:.2f}",
    "x plain": "{:.2f}x",
    "x apart": "{:.2f}x",
    "floor ms": "{:.2f}",
    "x floor": "{:.1f}x",
    "curve": "{:.0e}",
}
NOTES = [
    "x plain: times as fast as the plain update of the same number of threads, by medians.",
    f"x apart: {SEEDS} critics of {SEED_STEPS} updates each, start and checkpoint included, times "
    "as fast as one after another with as many threads; the times are an update's.",
    "One thread: by the processor's clock. More: by the wall's, where nothing else was busy, in "
    "bursts of updates as in a training.",
    "floor: multiply-adds of the update in float32 at this machine's rate in the same rounds.",
    "td3-bc, cql, ensemble: plain is the same learner with torch's layers.",
    "curve: largest difference between the losses of ours and of the plain one over "
    f"{CURVE['iql']} updates (iql), {CURVE['reinformer']} (reinformer, without dropout), "
    f"{CURVE['cql']} (cql) or {CURVE['ensemble']} (td3-bc, ensemble), relative to the loss.",
]


@pytest.fixture(scope="module")
def table(new_table: Callable[..., Table]) -> Iterator[Table]:
    table = new_table("training", COLUMNS)
    yield table
    table.notes[:0] = NOTES + list(filter(None, [limits.missing_reason()]))


@pytest.fixture(scope="module")
def data() -> Trajectories:
    """HalfCheetah's sizes."""
    generator = np.random.default_rng(0)
    observations = generator.standard_normal((STEPS, OBSERVATION_DIM), dtype=np.float32)
    truncations = np.zeros(STEPS, dtype=np.bool_)
    truncations[EPISODE - 1 :: EPISODE] = True
    return Trajectories.from_arrays(
        observations,
        generator.uniform(-1, 1, (STEPS, ACTION_DIM)),
        1 + generator.standard_normal(STEPS, dtype=np.float32),
        np.zeros(STEPS, dtype=np.bool_),
        truncations,
        next_observations=np.roll(observations, -1, axis=0),
    )


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


class Ours:
    """A learner's updates, counted."""

    def __init__(self, learner: TransitionLearner | PolicyLearner, losses: Sequence[str]) -> None:
        self.learner = learner
        learner.model.train()
        self.columns = [learner.terms.index(name) for name in losses]
        self.steps = 0

    def update(self) -> list[float]:
        """One update; the losses."""
        self.steps += 1
        values = self.learner.update(self.steps).tolist()
        return [values[column] for column in self.columns]


Update = Callable[[], list[float]]


def distance(ours: Update, plain: Update, updates: int) -> float:
    """The largest difference of the losses, relative to their size."""
    curves = np.array([[ours(), plain()] for _ in range(updates)])  # [updates, 2, losses]
    return float((abs(curves[:, 0] - curves[:, 1]) / abs(curves[:, 1])).max())


def iql(data: Trajectories, **changes: Any) -> tuple[Update, Update]:
    """Ours and the plain one."""
    torch.manual_seed(0)
    config = CriticConfig(device="cpu", reward_scaling="none", **changes)
    learner = CriticLearner(data, config, CPU)
    plain = PlainIql(learner)
    return Ours(learner, ("q_loss", "value_loss")).update, plain.update


def reinformer(data: Trajectories, dropout: float, **changes: Any) -> tuple[Update, Update]:
    """Ours and the plain one."""
    torch.manual_seed(0)
    config = PolicyConfig(
        model=dataclasses.replace(ModelConfig(), dropout=dropout), device="cpu", **changes
    )
    learner = PolicyLearner(data, config, CPU)
    plain = PlainReinformer(data, learner)
    return Ours(learner, ("loss",)).update, plain.update


def by_method(data: Trajectories, method: CriticMethod) -> tuple[Update, Update, float]:
    """Ours, the same learner with torch's layers, and how far apart their losses are."""
    learners, curves = [], []
    for backend in BACKENDS:
        torch.manual_seed(0)
        config = dataclasses.replace(
            critic_preset(method, "halfcheetah-medium"),
            device="cpu",
            reward_scaling="none",
            backend=backend,
        )
        learner = learner_class(config)(data, config, CPU)
        update = Ours(learner, learner.terms[:1]).update
        curves.append(np.array([update() for _ in range(CURVE[method])]))
        learners.append(update)
    ours, plain = curves
    return learners[0], learners[1], float((abs(ours - plain) / abs(plain)).max())


def iql_work() -> float:
    """Multiply-adds of an update: three networks trained, two targets and V(s') besides."""
    config = CriticConfig()

    def network(inputs: int) -> tuple[int, int]:
        sizes = [i * o for i, o in itertools.pairwise([inputs, *config.hidden, 1])]
        return sum(sizes), 2 * sum(sizes) - sizes[0]  # forward, backward

    q, v = network(OBSERVATION_DIM + ACTION_DIM), network(OBSERVATION_DIM)
    return config.batch_size * (2 * (2 * q[0] + q[1]) + 2 * v[0] + v[1])


def reinformer_work() -> float:
    """Multiply-adds of an update's weights; attention and what is a vector's work are left out.

    The last action is seen by nobody, and in the last block no action is asked for anything.
    """
    config = PolicyConfig()
    model = config.model
    tokens, square = 3 * model.context_length - 1, model.embedding_dim**2
    asked = 2 * model.context_length
    blocks = (model.blocks - 1) * tokens * 12 * square + asked * 10 * square + tokens * 2 * square
    return 3.0 * config.batch_size * blocks


@dataclasses.dataclass(frozen=True)
class Race:
    """What is timed: an update's name, its precision, how close the curves were, its work."""

    name: str
    precision: str
    curve: float
    work: float | None = None  # multiply-adds, where there is a floor


@pytest.fixture
def measure(
    interleaved: type[Interleaved], table: Table, pytestconfig: pytest.Config
) -> Callable[[Race, int, Update, Update], None]:
    """`measure(race, threads, ours, plain)`: time both, add their rows to the table."""
    quick = pytestconfig.getoption("--quick")
    seconds, fewest, attempts = (1.0, 1, 1) if quick else (SECONDS, FEWEST_ROUNDS, ATTEMPTS)

    def measure(race: Race, threads: int, ours: Update, plain: Update) -> None:
        calls: dict[str, Callable[[], object]] = {"ours": ours, "plain": plain}
        if limits.missing_reason() is None:
            calls[FLOOR] = limits.multiply_adds
        clock = time.thread_time if threads == 1 else time.perf_counter
        timed = interleaved(calls, clock, threads)
        for _ in range(attempts):
            timed.forget()
            for _ in range(timed.rounds_within(seconds, fewest, MOST_ROUNDS)):
                timed.round()
            if threads == 1 or timed.share >= LEAST_SHARE:
                break
        else:
            if not quick:
                table.notes.append(
                    f"{race.name} {race.precision} on {threads} threads: not measured, as other "
                    "processes were busy."
                )
                return
        times = timed.microseconds()
        for name in ("plain", "ours"):
            own = times[name]
            row: dict[str, Any] = {
                "update": race.name,
                "precision": race.precision if name == "ours" else "fp32",
                "threads": threads,
                "contender": name,
                **{f"{p} ms": own[p] / 1e3 for p in ("p5", "p50", "p95")},
                "calls": own["calls"],
                "x plain": times["plain"]["p50"] / own["p50"],
                "curve": race.curve if name == "ours" else None,
            }
            if FLOOR in times and race.work is not None:
                rate = threads * limits.multiply_adds() / times[FLOOR]["p50"]
                row["floor ms"] = race.work / rate / 1e3
                row["x floor"] = own["p50"] / 1e3 / row["floor ms"]
            table.rows.append(row)

    return measure


Measure = Callable[[Race, int, Update, Update], None]


def test_iql(data: Trajectories, threads: int, measure: Measure) -> None:
    curve = distance(*iql(data), CURVE["iql"])
    assert curve < 1e-2, f"the losses differ by {curve:.1e} of their size"
    measure(Race("iql", "fp32", curve, iql_work()), threads, *iql(data))


@pytest.mark.parametrize(("precision", "allowed"), [("fp32", 1e-3), ("bf16", 2e-2)])
def test_reinformer(
    data: Trajectories, threads: int, measure: Measure, precision: str, allowed: float
) -> None:
    autocast = precision == "bf16"
    curves = reinformer(data, 0.0, autocast=autocast, warmup_steps=0, learning_rate=1e-3)
    curve = distance(*curves, CURVE["reinformer"])
    assert curve < allowed, f"the losses differ by {curve:.1e} of their size"
    race = Race("reinformer", precision, curve, reinformer_work())
    measure(race, threads, *reinformer(data, ModelConfig().dropout, autocast=autocast))


@pytest.mark.parametrize("method", ["td3-bc", "cql", "ensemble"])
def test_other_critics(
    data: Trajectories, threads: int, measure: Measure, method: CriticMethod
) -> None:
    ours, plain, curve = by_method(data, method)
    assert curve < 1e-2, f"the losses differ by {curve:.1e} of their size"
    measure(Race(method, "fp32", curve), threads, ours, plain)


def test_seeds_together(
    data: Trajectories, threads: int, table: Table, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    """Wall time, as threads other than the calling one do the work."""
    quick = pytestconfig.getoption("--quick")
    if os.getloadavg()[0] > threads + 1 and not quick:
        table.notes.append(f"Seeds on {threads} threads: not measured, as others were busy.")
        return
    config = CriticConfig(
        device="cpu",
        reward_scaling="none",
        steps=20 if quick else SEED_STEPS,
        threads=threads,
        progress=False,
    )
    seconds: dict[str, list[float]] = {"together": [], "apart": []}
    for number in range(1 if quick else SEED_ROUNDS):
        folder = tmp_path / str(number)
        start = time.perf_counter()
        train_critics(data, config, range(SEEDS), folder)
        seconds["together"].append(time.perf_counter() - start)
        start = time.perf_counter()
        for seed in range(SEEDS):
            train_critic(data, dataclasses.replace(config, seed=seed), folder / f"alone-{seed}")
        seconds["apart"].append(time.perf_counter() - start)
        for seed in range(SEEDS):
            together, apart = (
                load_tensors(folder / name) for name in (f"seed-{seed}", f"alone-{seed}")
            )
            assert all(torch.equal(together[name], apart[name]) for name in apart)
    for name, times in seconds.items():
        p5, p50, p95 = np.percentile(times, [5, 50, 95]) / (SEEDS * config.steps) * 1e3
        table.rows.append(
            {
                "update": f"iql, {SEEDS} seeds",
                "precision": "fp32",
                "threads": threads,
                "contender": name,
                "p5 ms": p5,
                "p50 ms": p50,
                "p95 ms": p95,
                "x apart": float(np.median(seconds["apart"]) / np.median(times)),
            }
        )
