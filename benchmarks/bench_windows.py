"""Window sampling: 256 windows of 20 steps must cost under 2 ms on one core.

The floor printed beside each time is the batch's bytes, read once and written once, at the memory
bandwidth measured in the same run by copying a large array.
"""

from __future__ import annotations

import time

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from dtag_fast.data.trajectories import Trajectories
from dtag_fast.data.windows import Padding, Sampling, WindowSampler

STEPS, EPISODE, OBSERVATION_DIM, ACTION_DIM = 1_000_000, 1000, 17, 6
BUDGET_SECONDS = 2e-3


@pytest.fixture(scope="module")
def trajectories() -> Trajectories:
    """HalfCheetah-sized: a million steps, far larger than the caches."""
    generator = np.random.default_rng(0)
    observations = generator.standard_normal((STEPS, OBSERVATION_DIM), dtype=np.float32)
    truncations = np.zeros(STEPS, dtype=np.bool_)
    truncations[EPISODE - 1 :: EPISODE] = True
    return Trajectories.from_arrays(
        observations,
        generator.uniform(-1, 1, (STEPS, ACTION_DIM)),
        generator.standard_normal(STEPS, dtype=np.float32),
        np.zeros(STEPS, dtype=np.bool_),
        truncations,
        next_observations=observations,
    )


@pytest.fixture(scope="module")
def bytes_per_second() -> float:
    """Bytes read plus bytes written per second by a copy of 256 MB, the best of five."""
    source = np.ones(64 * 1024**2, dtype=np.float32)
    target = np.empty_like(source)
    best = np.inf
    for _ in range(5):
        start = time.perf_counter()
        np.copyto(target, source)
        best = min(best, time.perf_counter() - start)
    return 2 * source.nbytes / best


def show(benchmark: BenchmarkFixture, batch: object, bytes_per_second: float) -> None:
    """Print the median beside the floor; fail above the budget of 2 ms."""
    floor = 2 * sum(array.nbytes for array in vars(batch).values()) / bytes_per_second
    assert benchmark.stats is not None
    median = benchmark.stats.stats.median
    benchmark.extra_info["floor_us"] = floor * 1e6
    print(
        f"\n{benchmark.name}: median {median * 1e6:.0f} us, floor {floor * 1e6:.1f} us "
        f"({bytes_per_second / 1e9:.1f} GB/s), {median / floor:.0f} times the floor"
    )
    assert median < BUDGET_SECONDS


@pytest.mark.parametrize(
    ("sampling", "padding"), [("trajectory", "right"), ("length", "left")], ids=["reinformer", "dt"]
)
def test_windows(
    benchmark: BenchmarkFixture,
    trajectories: Trajectories,
    bytes_per_second: float,
    sampling: Sampling,
    padding: Padding,
) -> None:
    sampler = WindowSampler(trajectories, 20, sampling=sampling, padding=padding, seed=0)
    batch = benchmark(sampler.sample, 256)
    assert batch.mask.shape == (256, 20)
    show(benchmark, batch, bytes_per_second)
