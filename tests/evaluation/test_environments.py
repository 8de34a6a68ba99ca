"""Whatever names an environment becomes one with float32 vectors and a box of actions."""

from __future__ import annotations

import importlib.util
import json
import sys
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.spaces import Box, Dict, Discrete

from dtag_fast.evaluation.environments import StateVector, make_env


def env_with(observation_space: Any, action_space: Any | None = None) -> gym.Env[Any, Any]:
    class Fixed(gym.Env[Any, Any]):
        def __init__(self) -> None:
            self.observation_space = observation_space
            self.action_space = Box(-1.0, 1.0, (2,)) if action_space is None else action_space

        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            super().reset(seed=seed)
            return self.observation_space.sample(), {}

    return Fixed()


def box(*shape: int, dtype: Any = np.float64) -> Box:
    return Box(-3, 3, shape, dtype)


def maze_space(size: int = 4) -> Dict:
    parts = {"achieved_goal": box(2), "desired_goal": box(2), "observation": box(size)}
    return Dict(parts)  # type: ignore[arg-type]


def test_a_function_and_an_environment(counting_env: Any) -> None:
    env = make_env(counting_env)
    observation, _ = env.reset(seed=3)
    assert observation.dtype == np.float32
    assert observation.tolist() == [3.0, 0.0]
    assert env.observation_space == Box(-np.inf, np.inf, (2,), np.float32)
    assert env.observation_space.contains(observation)
    assert make_env(env) is env
    inner = counting_env()
    assert make_env(inner).unwrapped is inner


def test_a_specification_and_its_json() -> None:
    spec = gym.spec("Pendulum-v1")
    for source in (spec, spec.to_json(), "Pendulum-v1"):
        env = make_env(source)
        observation, _ = env.reset(seed=0)
        assert (observation.shape, observation.dtype) == ((3,), np.float32)
        assert env.spec is not None
        assert env.spec.max_episode_steps == spec.max_episode_steps
        env.close()


def test_the_render_mode_reaches_the_environment(counting_env: Any) -> None:
    env = make_env(EnvSpec("Counting-v0", entry_point=counting_env), render_mode="rgb_array")
    assert env.render_mode == "rgb_array"
    with pytest.raises(ValueError, match="render_mode: only for an id or a specification"):
        make_env(counting_env, render_mode="rgb_array")


def test_the_dict_of_a_maze() -> None:
    env = make_env(env_with(maze_space()))
    observation, _ = env.reset(seed=0)
    assert (observation.shape, observation.dtype) == ((4,), np.float32)
    with pytest.raises(ValueError, match="name the parts to join with observation_keys"):
        make_env(env_with(maze_space(27)))
    joined = make_env(env_with(maze_space(27)), observation_keys=("observation", "desired_goal"))
    assert joined.observation_space.shape == (29,)
    raw = {"observation": np.arange(27.0), "desired_goal": np.array([50.0, 60.0])}
    assert isinstance(joined, StateVector)
    assert joined.observation(raw).tolist() == [*range(27), 50, 60]
    with pytest.raises(ValueError, match="observation_keys"):
        make_env(env_with(maze_space()), observation_keys=("goal",))
    with pytest.raises(ValueError, match="observations are no dicts"):
        make_env(env_with(box(3)), observation_keys=("goal",))


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (env_with(Discrete(4)), r"expected observations in a Box \[S\], got Discrete"),
        (env_with(box(8, 8, 3)), r"expected observations in a Box \[S\]"),
        (env_with(box(8, dtype=np.int16)), "expected floating point observations"),
        (env_with(box(3), Discrete(2)), r"expected a Box \[A\] of actions, got Discrete"),
        (env_with(box(3), box(2, 2)), r"expected a Box \[A\] of actions"),
        (env_with(box(3), Box(-np.inf, np.inf, (2,))), "expected bounded actions"),
    ],
    ids=str,
)
def test_spaces_that_are_refused(env: gym.Env[Any, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_env(env)


def test_what_is_no_environment() -> None:
    with pytest.raises(TypeError, match="expected an id, an EnvSpec"):
        make_env(7)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="expected the function to make an Env, got int"):
        make_env(lambda: 7)  # type: ignore[arg-type, return-value]
    with pytest.raises(ValueError, match=r"can not make 'Nothing-v0'.*doesn't exist"):
        make_env("Nothing-v0")
    for text in ("{", json.dumps({"id": "Hopper-v5"})):
        with pytest.raises(ValueError, match="expected a gymnasium EnvSpec as JSON"):
            make_env(text)


def test_missing_packages_name_the_extra(monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "gymnasium_robotics", None)
    with pytest.raises(ImportError, match=r"PointMaze_UMaze-v3 needs gymnasium-robotics.*\[envs\]"):
        make_env("PointMaze_UMaze-v3")
    spec = EnvSpec("Needy-v0", entry_point="package_that_is_not_there:Env")
    with pytest.raises(ImportError, match=r"Needy-v0 can not be imported.*\[envs\]"):
        make_env(spec)

    def needs_mujoco(**_: Any) -> Any:
        raise gym.error.DependencyNotInstalled("MuJoCo is not installed")

    with pytest.raises(ImportError, match=r"MuJoCo is not installed.*\[envs\]"):
        make_env(EnvSpec("Needy-v0", entry_point=needs_mujoco))


@pytest.mark.skipif(
    importlib.util.find_spec("gymnasium_robotics") is None, reason="the extra envs is not installed"
)
def test_point_maze(capfd: Any) -> None:
    env = make_env("PointMaze_UMaze-v3")
    observation, _ = env.reset(seed=0)
    again, _ = env.reset(seed=0)
    assert (observation.shape, observation.dtype) == ((4,), np.float32)
    np.testing.assert_array_equal(observation, again)
    assert env.spec is not None
    text = env.spec.to_json()
    env.close()
    assert capfd.readouterr().err == "", "gymnasium-robotics speaks of another environment"
    rebuilt = make_env(text)  # from JSON, which says that it is already wrapped
    assert rebuilt.observation_space.shape == (4,)
    rebuilt.close()
