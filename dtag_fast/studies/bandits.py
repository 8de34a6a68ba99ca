"""The toy problem in any number of dimensions: reward 1 - |a|^2 / A, best action 0.

One problem whose difficulty does not change with A, where environments of different A differ in
everything else too. With A = 1 it is the paper's (arXiv 2510.05285, Fig. 2; `data/bandit.py`).
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec
from numpy.typing import NDArray

from dtag_fast.data.references import ReferenceScores
from dtag_fast.data.trajectories import Trajectories

ENTRY_POINT = "dtag_fast.studies.bandits:BoxBandit"
# As in the toy problem, so that answering with the mean is not the optimum.
POSITIVE = 0.95


class BoxBandit(gymnasium.Env[NDArray[np.float32], NDArray[np.float32]]):
    """Every episode is one step: observation [1] = 0, action [A] in the box of -1 and 1."""

    metadata = {"render_modes": []}  # noqa: RUF012 (gymnasium's own form)

    def __init__(self, action_dim: int = 1, render_mode: None = None) -> None:
        self.observation_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (action_dim,), np.float32)
        self.render_mode = render_mode

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        super().reset(seed=seed, options=options)
        return np.zeros(1, np.float32), {}

    def step(
        self, action: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        reward = 1.0 - float(np.mean(np.clip(action, -1.0, 1.0).astype(np.float64) ** 2))
        return np.zeros(1, np.float32), reward, True, False, {}


def trajectories(id: str, action_dim: int, count: int, seed: int) -> Trajectories:
    """`count` one-step episodes; every action dimension as in the toy problem, independently.

    0.5 < |a_i| <= 1, and a_i > 0 in `POSITIVE` of the cases.
    """
    if action_dim < 1:
        raise ValueError(f"action_dim: expected at least 1, got {action_dim}")
    generator = np.random.default_rng(seed)
    size = 1.0 - 0.5 * generator.random((count, action_dim))
    sign = np.where(generator.random((count, action_dim)) < POSITIVE, 1.0, -1.0)
    actions = (size * sign).astype(np.float32)
    nothing = np.zeros((count, 1), np.float32)
    spec = EnvSpec("BoxBandit-v0", entry_point=ENTRY_POINT, kwargs={"action_dim": action_dim})
    return Trajectories.from_arrays(
        nothing,
        actions,
        1.0 - (actions.astype(np.float64) ** 2).mean(axis=1),
        np.ones(count, np.bool_),
        np.zeros(count, np.bool_),
        next_observations=nothing,
        id=id,
        env_spec=spec.to_json(),
        # Uniform random actions and the best action.
        references=(ReferenceScores("minari", 2.0 / 3.0, 1.0),),
        horizon=1,
    )
