"""Environments whose every number tells which seed, step and action it came from."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Box
from numpy.typing import NDArray


class CountingEnv(gym.Env[NDArray[np.float64], NDArray[np.float32]]):
    """Observes (seed, step); an episode of seed s has 2 + 5 * (s mod 4) steps of reward 1 + a_0.

    Long episodes are eight times as long as short ones: a count that favours those which end
    first shows. Without a seed the next one follows the last. After the end it raises.
    """

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012
    observation_space = Box(-np.inf, np.inf, (2,), np.float64)
    action_space = Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self.seed = -1
        self.steps = 0
        self.over = True
        self.closed = False

    @staticmethod
    def length(seed: int) -> int:
        return 2 + 5 * (seed % 4)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float64], dict[str, Any]]:
        super().reset(seed=seed)
        self.seed = self.seed + 1 if seed is None else seed
        self.steps = 0
        self.over = False
        return self.observation(), {}

    def step(
        self, action: NDArray[np.float32]
    ) -> tuple[NDArray[np.float64], float, bool, bool, dict[str, Any]]:
        if self.over:
            raise RuntimeError("stepped after the end")
        if not self.action_space.contains(action):
            raise ValueError(f"not in the box: {action}")
        self.steps += 1
        self.over = self.steps == self.length(self.seed)
        terminated = self.over and self.seed % 2 == 0
        return (
            self.observation(),
            1.0 + float(action[0]),
            terminated,
            self.over and not terminated,
            {},
        )

    def observation(self) -> NDArray[np.float64]:
        return np.array([self.seed, self.steps], dtype=np.float64)

    def render(self) -> Any:
        return np.full((32, 32, 3), min(255, 20 * self.steps), dtype=np.uint8)

    def close(self) -> None:
        self.closed = True


class RecordingActor:
    """Acts 0 and remembers, for each episode it was told of, what it saw."""

    observation_dim = 2

    def __init__(self, action: float = 0.0) -> None:
        self.action = action
        self.batches: list[int] = []
        self.episodes: list[list[tuple[float, ...]]] = []

    def reset(self, num_envs: int) -> None:
        self.current: list[list[tuple[float, ...]]] = [[] for _ in range(num_envs)]

    def reset_rows(self, rows: NDArray[np.bool_]) -> None:
        for row in np.flatnonzero(rows):
            self.episodes.append(self.current[row])
            self.current[row] = []

    def act(
        self, observations: NDArray[np.float32], rewards: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        assert observations.dtype == np.float32
        self.batches.append(len(observations))
        for row, (observation, reward) in enumerate(zip(observations, rewards, strict=True)):
            self.current[row].append((*observation.tolist(), float(reward)))
        return np.full((len(observations), 1), self.action, dtype=np.float32)


class ShrinkingActor(RecordingActor):
    """Drops the environments that are finished, as a `Policy` does."""

    def keep_rows(self, rows: NDArray[np.bool_]) -> None:
        self.episodes += [self.current[row] for row in np.flatnonzero(~rows)]
        self.current = [self.current[row] for row in np.flatnonzero(rows)]


@pytest.fixture
def counting_env() -> type[CountingEnv]:
    return CountingEnv


@pytest.fixture
def recording_actor() -> type[RecordingActor]:
    return RecordingActor


@pytest.fixture
def shrinking_actor() -> type[ShrinkingActor]:
    return ShrinkingActor
