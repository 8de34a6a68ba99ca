"""Environments as the policies of this package see them: float32 vectors in, a box of actions."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable, Sequence
from typing import Any, cast

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.spaces import Box, Dict, Space
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Env = gym.Env[Any, Any]
EnvSource = str | EnvSpec | Callable[[], Env] | Env

# Environments of gymnasium-robotics, by the beginning of their ids.
_ROBOTICS = ("PointMaze", "AntMaze", "Fetch", "Hand", "Adroit", "Franka")
_MAZE_KEYS = {"achieved_goal", "desired_goal", "observation"}
_INSTALL = "pip install 'dtag-fast[envs]'"


def make_env(
    source: EnvSource,
    render_mode: str | None = None,
    *,
    observation_keys: Sequence[str] | None = None,
) -> Env:
    """An environment whose observations are float32 vectors [S].

    PointMaze's dict becomes its 4-vector "observation" (x, y, vx, vy), which is what D4RL's maze2d
    has; the goal of an evaluation is fixed and so says nothing. Ids of gymnasium-robotics are
    registered when first asked for.

    Args:
        source: a gymnasium id, an `EnvSpec`, one as JSON text (`EnvSpec.to_json()`, as datasets
            keep their evaluation environment), a function that makes an environment, or one made.
        render_mode: as for `gymnasium.make`; for ids and specifications only.
        observation_keys: of dict observations, the parts to join into the vector, as given when
            the dataset was loaded. PointMaze needs none.

    Raises:
        ImportError: what the environment needs is not installed; the message says how to.
        ValueError: no such environment, or its spaces are not a Box [S] (or a dict with the parts
            named) of observations and a bounded Box [A] of actions.
    """
    if isinstance(source, str | EnvSpec):
        env = _make_registered(source, render_mode)
    elif render_mode is not None:
        raise ValueError(f"render_mode: only for an id or a specification, got {render_mode!r}")
    elif isinstance(source, gym.Env):
        env = source
    elif callable(source):
        env = source()
        if not isinstance(env, gym.Env):
            raise TypeError(f"env: expected the function to make an Env, got {type(env).__name__}")
    else:
        raise TypeError(
            f"env: expected an id, an EnvSpec, its JSON text, a function or an Env, "
            f"got {type(source).__name__}"
        )
    if isinstance(env, StateVector) and observation_keys is None:
        return env
    try:
        check_action_space(env.action_space)
        return StateVector(env, observation_keys)
    except ValueError:
        if env is not source:
            env.close()
        raise


class StateVector(gym.ObservationWrapper[Floats, Any, Any], gym.utils.RecordConstructorArgs):
    """Observations as float32 vectors; see `make_env`."""

    def __init__(self, env: Env, observation_keys: Sequence[str] | None = None) -> None:
        gym.utils.RecordConstructorArgs.__init__(self, observation_keys=observation_keys)
        gym.ObservationWrapper.__init__(self, env)
        self.read = StateReader(env.observation_space, observation_keys)
        self.observation_space = Box(self.read.low, self.read.high, dtype=np.float32)

    def observation(self, observation: Any) -> Floats:
        return self.read(observation)


class StateReader:
    """Turns observations of a space, single ones or batches, into float32 vectors [S] or [B, S].

    Attributes:
        low, high: [S], the bounds of the vector.

    Raises:
        ValueError: neither a Box [S] nor a dict of which the parts wanted are such boxes.
    """

    def __init__(self, space: Space[Any], keys: Sequence[str] | None = None) -> None:
        self._keys = _keys(space, keys)
        parts = [space[key] for key in self._keys] if isinstance(space, Dict) else [space]
        boxes = [_check_state_box(part) for part in parts]
        self.low = np.concatenate([box.low for box in boxes]).astype(np.float32)
        self.high = np.concatenate([box.high for box in boxes]).astype(np.float32)

    @property
    def dim(self) -> int:
        """S."""
        return len(self.low)

    def __call__(self, observation: Any) -> Floats:
        if not self._keys:
            return np.asarray(observation, dtype=np.float32)
        parts = [np.asarray(observation[key], dtype=np.float32) for key in self._keys]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)


def check_action_space(space: Space[Any]) -> Box:
    """The space as a bounded Box [A], or ValueError."""
    if not isinstance(space, Box) or len(space.shape) != 1:
        raise ValueError(f"env: expected a Box [A] of actions, got {space}")
    if not space.is_bounded():
        raise ValueError(f"env: expected bounded actions, got {space}")
    return space


def _keys(space: Space[Any], keys: Sequence[str] | None) -> tuple[str, ...]:
    """The parts of a dict to join; () for a space that is no dict."""
    if not isinstance(space, Dict):
        if keys is not None:
            raise ValueError(f"observation_keys: got {list(keys)}, but observations are no dicts")
        return ()
    sizes = {key: part.shape for key, part in space.items()}
    if keys is None and set(sizes) == _MAZE_KEYS and sizes["observation"] == (4,):
        return ("observation",)
    if not keys or not set(keys) <= set(sizes):
        raise ValueError(
            f"env: observations are dicts with {sizes}; name the parts to join with "
            f"observation_keys, got {keys}"
        )
    return tuple(keys)


def _check_state_box(space: Space[Any]) -> Box:
    if not isinstance(space, Box) or len(space.shape) != 1:
        raise ValueError(f"env: expected observations in a Box [S], got {space}")
    if not np.issubdtype(cast(Any, space.dtype), np.floating):
        raise ValueError(f"env: expected floating point observations, got {space}")
    return space


def _make_registered(source: str | EnvSpec, render_mode: str | None) -> Env:
    spec = _parse(source) if isinstance(source, str) else source
    name = spec if isinstance(spec, str) else spec.id
    if name.split("/")[-1].startswith(_ROBOTICS):
        _register_robotics(name)
    try:
        # The checker warns about harmless habits of third-party environments.
        return gym.make(spec, render_mode=render_mode, disable_env_checker=True)
    except gym.error.DependencyNotInstalled as error:
        raise ImportError(f"env: {name} needs a package: {error}; try {_INSTALL}") from error
    except ImportError as error:
        raise ImportError(f"env: {name} can not be imported: {error}; try {_INSTALL}") from error
    except gym.error.Error as error:
        raise ValueError(f"env: can not make {name!r}: {error}") from error


def _parse(text: str) -> str | EnvSpec:
    """The EnvSpec of JSON text; any other text is an id."""
    if not text.lstrip().startswith("{"):
        return text
    try:
        return EnvSpec.from_json(text)
    except (json.JSONDecodeError, TypeError, ValueError, KeyError) as error:
        raise ValueError(
            f"env: expected a gymnasium EnvSpec as JSON, got {text[:200]!r}: {error}"
        ) from error


def _register_robotics(name: str) -> None:
    try:
        # It prints a notice about its Adroit environments, whatever one came for.
        with contextlib.redirect_stderr(io.StringIO()):
            import gymnasium_robotics
    except ImportError as error:
        raise ImportError(f"env: {name} needs gymnasium-robotics ({error}); {_INSTALL}") from error
    gym.register_envs(gymnasium_robotics)
