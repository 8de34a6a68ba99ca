"""The toy problem of Action Gradient: one step, reward 1 - a^2, best action 0 (paper, Fig. 2)."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec
from numpy.typing import NDArray

ENTRY_POINT = "dtag_fast.data.bandit:QuadraticBandit"


class QuadraticBandit(gymnasium.Env[NDArray[np.float32], NDArray[np.float32]]):
    """Every episode is one step: observation [1] = 0, action [1] in [-1, 1], reward 1 - a^2."""

    metadata = {"render_modes": []}  # noqa: RUF012 (gymnasium's own form)

    def __init__(self, render_mode: None = None) -> None:
        self.observation_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.render_mode = render_mode

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        super().reset(seed=seed, options=options)
        return np.zeros(1, np.float32), {}

    def step(
        self, action: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        reward = 1.0 - float(np.clip(action[0], -1.0, 1.0)) ** 2
        return np.zeros(1, np.float32), reward, True, False, {}


def bandit_spec() -> EnvSpec:
    """Enough for `gymnasium.make`, without registering anything."""
    return EnvSpec("QuadraticBandit-v0", entry_point=ENTRY_POINT)


def bandit_episodes(count: int, asymmetry: float, seed: int) -> list[dict[str, Any]]:
    """`count` one-step episodes with 0.5 < |a| <= 1, a > 0 with probability `asymmetry`.

    With equal sides (0.5) a policy that regresses to the mean answers 0, the optimum, by accident,
    and with four to one (0.8) it is half-way there; such data show nothing. With one side alone (1)
    a critic knows nothing of a turn.
    """
    generator = np.random.default_rng(seed)
    size = 1.0 - 0.5 * generator.random(count)
    sign = np.where(generator.random(count) < asymmetry, 1.0, -1.0)
    actions = (size * sign).astype(np.float32)
    rewards = 1.0 - actions.astype(np.float64) ** 2
    nothing, everything = np.zeros((2, 1), np.float32), np.ones(1, np.bool_)
    return [
        {
            "observations": nothing,
            "actions": actions[i : i + 1, None],
            "rewards": rewards[i : i + 1],
            "terminations": everything,
            "truncations": ~everything,
        }
        for i in range(count)
    ]
