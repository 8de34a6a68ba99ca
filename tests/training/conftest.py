"""Small datasets for training tests."""

from __future__ import annotations

import numpy as np
import pytest

from dtag_fast.data.trajectories import Trajectories


@pytest.fixture
def toy_data() -> Trajectories:
    return make_toy_data()


def make_toy_data(seed: int = 0) -> Trajectories:
    """Episodes of 3 to 12 steps; the action is a function of the observation."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, 13, size=20)
    steps = int(lengths.sum())
    ends = np.zeros(steps, dtype=bool)
    ends[np.cumsum(lengths) - 1] = True
    terminal = ends & (rng.random(steps) < 0.5)
    observations = rng.normal(size=(steps, 4))
    return Trajectories.from_arrays(
        observations=observations,
        actions=np.tanh(observations[:, :2]),
        rewards=rng.random(steps),
        terminations=terminal,
        truncations=ends & ~terminal,
        next_observations=rng.normal(size=(steps, 4)),
    )
