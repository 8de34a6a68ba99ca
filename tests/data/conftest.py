"""Small datasets and a Minari folder of their own for the tests of dtag_fast.data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dtag_fast.data.trajectories import Trajectories

BuildTrajectories = Callable[..., Trajectories]


@pytest.fixture
def minari_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that Minari takes for its own."""
    root = tmp_path / "minari"
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(root))
    return root


@pytest.fixture
def build() -> BuildTrajectories:
    """Trajectories with the given episode lengths and distinguishable numbers in them.

    Feature 0 of an observation is 1000 * episode + step (exact in float32), its successor's one
    more; action 0 is step / 10000. Odd episodes terminate, even ones are truncated.
    """

    def build_trajectories(
        lengths: list[int], observation_dim: int = 3, action_dim: int = 2, id: str = "test"
    ) -> Trajectories:
        generator = np.random.default_rng(0)
        steps = sum(lengths)
        step = np.concatenate([np.arange(length) for length in lengths])
        episode = np.repeat(np.arange(len(lengths)), lengths)
        observations = generator.standard_normal((steps, observation_dim)).astype(np.float32)
        observations[:, 0] = 1000 * episode + step
        following = observations.copy()
        following[:-1] = observations[1:]
        following[:, 0] = observations[:, 0] + 1
        actions = generator.uniform(-1, 1, (steps, action_dim)).astype(np.float32)
        actions[:, 0] = step / 10000
        ends = np.zeros(steps, np.bool_)
        ends[np.cumsum(lengths) - 1] = True
        return Trajectories.from_arrays(
            observations,
            actions,
            generator.standard_normal(steps),
            ends & (episode % 2 == 1),
            ends & (episode % 2 == 0),
            next_observations=following,
            id=id,
        )

    return build_trajectories
