"""Environments in a batch, whoever made it, with the one way of beginning their next episodes."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from numpy.typing import NDArray

from dtag_fast.evaluation.environments import (
    Env,
    EnvSource,
    StateReader,
    check_action_space,
    make_env,
)

Vectorization = Literal["sync", "async"]
AnyVectorEnv = VectorEnv[Any, Any, Any]


@dataclass(frozen=True)
class Batch:
    """A vector environment and how to use it.

    Attributes:
        envs: N environments.
        autoreset: what it does with an environment whose episode has ended.
        read: its observations to float32 [N, S].
        action_low, action_high: [A].
    """

    envs: AnyVectorEnv
    autoreset: AutoresetMode
    read: StateReader
    action_low: NDArray[Any]
    action_high: NDArray[Any]

    @property
    def num_envs(self) -> int:
        """N."""
        return int(self.envs.num_envs)


class Parking(gym.Wrapper[Any, Any, Any, Any]):
    """Lets an environment rest: after a reset without a seed, steps cost and change nothing.

    In a vector environment without autoreset all environments take part in every step, those with
    no episode left too, and one whose episode has ended must not.
    """

    def __init__(self, env: Env) -> None:
        super().__init__(env)
        self._parked = False
        self._last: Any = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        self._parked = seed is None
        if self._parked:
            return self._last, {}
        self._last, info = self.env.reset(seed=seed, options=options)
        return self._last, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        if self._parked:
            return self._last, 0.0, False, False, {}
        self._last, reward, terminated, truncated, info = self.env.step(action)
        return self._last, reward, terminated, truncated, info


@contextlib.contextmanager
def open_batch(
    source: EnvSource | AnyVectorEnv,
    episodes: int,
    num_envs: int | None,
    vectorization: Vectorization,
    observation_keys: Sequence[str] | None,
) -> Iterator[Batch]:
    """The environments for `episodes`, closed in the end unless the caller made them.

    Raises:
        ValueError: arguments that do not fit the kind of `source`.
    """
    if vectorization not in get_args(Vectorization):
        raise ValueError(f"vectorization: expected sync or async, got {vectorization!r}")
    if isinstance(source, VectorEnv):
        if num_envs not in (None, source.num_envs):
            raise ValueError(f"num_envs: the vector environment has {source.num_envs}")
        yield _batch(source, observation_keys)
        return
    made = isinstance(source, gym.Env)
    if num_envs is None:
        num_envs = 1 if made else min(16, episodes)
    if isinstance(num_envs, bool) or not isinstance(num_envs, int) or num_envs < 1:
        raise ValueError(f"num_envs: expected an integer of at least 1, got {num_envs!r}")
    if made and (num_envs > 1 or vectorization == "async"):
        raise ValueError(
            "env: one environment that is already made can't run several at once, or in another "
            "process; give its id, its specification or a function that makes it"
        )
    factories: list[Callable[[], Env]] = [
        partial(_make_parking, source, observation_keys) for _ in range(min(num_envs, episodes))
    ]
    envs: AnyVectorEnv
    if vectorization == "sync":
        envs = SyncVectorEnv(factories, copy=False, autoreset_mode=AutoresetMode.DISABLED)
    else:
        envs = AsyncVectorEnv(
            factories,
            shared_memory=True,
            copy=False,
            daemon=True,
            autoreset_mode=AutoresetMode.DISABLED,
        )
    try:
        yield _batch(envs, None)
    except BaseException:
        if not made:
            # A worker may be in the middle of a step: don't wait for it.
            with warnings.catch_warnings(), contextlib.suppress(Exception):
                warnings.simplefilter("ignore")
                envs.close(**({"terminate": True} if vectorization == "async" else {}))
        raise
    if not made:
        envs.close()


def _make_parking(source: EnvSource, observation_keys: Sequence[str] | None) -> Env:
    return Parking(make_env(source, observation_keys=observation_keys))


def _batch(envs: AnyVectorEnv, observation_keys: Sequence[str] | None) -> Batch:
    mode = envs.metadata.get("autoreset_mode")
    try:
        autoreset = AutoresetMode(mode)
    except ValueError:
        raise ValueError(
            f"env: expected a vector environment whose metadata['autoreset_mode'] says what it "
            f"does after an episode ({', '.join(m.name for m in AutoresetMode)}), got {mode!r}"
        ) from None
    box = check_action_space(envs.single_action_space)
    return Batch(
        envs=envs,
        autoreset=autoreset,
        read=StateReader(envs.single_observation_space, observation_keys),
        action_low=box.low,
        action_high=box.high,
    )


def describe(source: EnvSource | AnyVectorEnv) -> str:
    """The environment's id where it has one, for messages and progress bars."""
    if isinstance(source, EnvSpec):
        return source.id
    spec = getattr(source, "spec", None)
    if spec is not None:
        return str(spec.id)
    return source if isinstance(source, str) and not source.startswith("{") else "env"
