"""Exported policies beside `Policy.act`, and the example that runs one."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dtag_fast.acting.policy import Policy
from dtag_fast.acting.token_predictors import FixedTarget, ReturnHead
from dtag_fast.models.critic import Critic
from dtag_fast.models.decision_transformer import SequenceModel

STATE, ACTION = 5, 3
EXAMPLE = Path(__file__).parents[2] / "examples" / "act_with_onnxruntime.py"
NUMBERS = {"tensor(float)": np.float32, "tensor(int64)": np.int64}

ModelFactory = Callable[..., SequenceModel]

needs_onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(each) is None for each in ("onnx", "onnxscript", "onnxruntime")),
    reason="the extra export is not installed",
)


class Pendulum(gym.Env[NDArray[np.float32], NDArray[np.float32]]):
    """Something that the action moves and the reward tells of; 12 steps an episode."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (STATE,), np.float32)
    action_space = gym.spaces.Box(
        np.array([-1.0, -2.0, 0.5], np.float32), np.array([1.0, 3.0, 0.9], np.float32)
    )

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.state = self.np_random.normal(size=STATE).astype(np.float32)
        self.steps = 0
        return self.state.copy(), {}

    def step(self, action: NDArray[np.float32]) -> Any:
        self.steps += 1
        self.state = np.roll(self.state, 1) + np.float32(0.3) * np.resize(action, STATE)
        reward = float(np.sin(self.state).sum())
        return self.state.copy(), reward, False, self.steps == 12, {}


def make_policy(
    make_model: ModelFactory, kind: str, critic: Critic | None, **config: Any
) -> Policy:
    model = make_model(kind, blocks=1, context_length=3, **config)
    policy = Policy(model, ReturnHead() if kind == "reinformer" else FixedTarget(11.0))
    if critic is None:
        return policy
    return policy.with_refinement(
        critic, steps=3, step_size=0.3, gradient="raw", optimizer="momentum"
    )


@needs_onnx
@pytest.mark.parametrize(
    ("kind", "attention", "refined"),
    [
        ("dt", "full", False),
        ("dt", "sliding", True),
        ("reinformer", "full", True),
        ("reinformer", "sliding", False),
    ],
)
def test_onnx_runtime_plays_an_episode_as_act_does(
    make_model: ModelFactory,
    critic: Critic,
    tmp_path: Path,
    kind: str,
    attention: str,
    refined: bool,
) -> None:
    """Two environments of which one begins again half-way; its rows of the state become zeros."""
    import onnxruntime

    policy = make_policy(make_model, kind, critic if refined else None, attention=attention)
    path = tmp_path / "policy.onnx"
    policy.export(path, num_envs=2)
    assert [file.name for file in tmp_path.iterdir()] == ["policy.onnx"], "weights are inside"
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    inputs = {each.name: np.zeros(each.shape, NUMBERS[each.type]) for each in session.get_inputs()}
    names = [each.name for each in session.get_outputs()]
    assert list(inputs)[:2] == ["observations", "rewards"]
    assert names == ["action", *(f"next_{name}" for name in list(inputs)[2:])]

    policy.reset(2)
    envs = [Pendulum(), Pendulum()]
    observations = np.stack([env.reset(seed=seed)[0] for seed, env in enumerate(envs)])
    rewards = np.zeros(2, np.float32)
    actions = []
    for t in range(12):
        if t == 5:
            policy.reset_rows([1])
            observations[1] = envs[1].reset(seed=9)[0]
            for name in list(inputs)[2:]:
                inputs[name][1] = 0
        expected = policy.act(observations, rewards)
        action, *state = session.run(None, {**inputs, "observations": observations,
                                            "rewards": rewards})  # fmt: skip
        np.testing.assert_allclose(action, expected, rtol=1e-4, atol=1e-4)
        inputs.update({name[5:]: each.copy() for name, each in zip(names[1:], state, strict=True)})
        stepped = [env.step(row) for env, row in zip(envs, expected, strict=True)]
        observations = np.stack([each[0] for each in stepped])
        rewards = np.array([each[1] for each in stepped], np.float32)
        actions.append(expected)
    assert np.ptp(actions, axis=0).min() > 0.01, "a test in which nothing moves shows nothing"


@pytest.mark.parametrize(("kind", "context_action"), [("dt", "raw"), ("reinformer", "refined")])
def test_the_torch_format_acts_alike(
    make_model: ModelFactory, tmp_path: Path, kind: str, context_action: Any
) -> None:
    """With a critic in which no gradient is simple: GELU, LayerNorm, a lower confidence bound."""
    torch.manual_seed(1)
    critic = Critic(STATE, ACTION, (8,), heads=3, activation="gelu", layer_norm=True)
    policy = make_policy(make_model, kind, None).with_refinement(
        critic,
        steps=2,
        step_size=0.3,
        ensemble="lcb",
        gradient="unit",
        max_distance=0.4,
        context_action=context_action,
    )
    policy.export(tmp_path / "policy.pt2", "torch")
    program = torch.export.load(tmp_path / "policy.pt2").module()
    length = policy.model.config.context_length
    state = [torch.zeros(1, length, STATE), torch.zeros(1, length, ACTION), torch.zeros(1, length)]
    state.append(torch.zeros(1, dtype=torch.int64))
    rng = np.random.default_rng(0)
    for _ in range(7):
        observation, reward = rng.normal(size=(1, STATE)), rng.normal(size=1)
        arrays = [torch.from_numpy(each.astype(np.float32)) for each in (observation, reward)]
        action, *state = program(*arrays, *state)
        expected = policy.act(observation, reward)
        np.testing.assert_allclose(action.detach(), expected, rtol=1e-4, atol=1e-4)


@needs_onnx
def test_the_example(make_model: ModelFactory, critic: Critic, tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("act_with_onnxruntime", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    policy = make_policy(make_model, "dt", None)
    policy.export(str(tmp_path / "policy.onnx"))
    env = Pendulum()
    observation, _ = env.reset(seed=3)
    total, over, reward = 0.0, False, 0.0
    while not over:
        observation, reward, _, over, _ = env.step(policy.act(observation, reward))
        total += reward
    session = example.load(str(tmp_path / "policy.onnx"))
    assert example.play(session, Pendulum(), seed=3) == pytest.approx(total, rel=1e-4)
    assert len(EXAMPLE.read_text().splitlines()) <= 45


def test_what_cannot_be_exported_is_told(make_model: ModelFactory, tmp_path: Path) -> None:
    policy = make_policy(make_model, "dt", None)
    with pytest.raises(ValueError, match="format: expected one of onnx, torch, got 'tflite'"):
        policy.export(tmp_path / "policy", "tflite")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="num_envs: expected an integer of at least 1, got 0"):
        policy.export(tmp_path / "policy", "torch", num_envs=0)
    with pytest.raises(ValueError, match=r"path: .* is no folder"):
        policy.export(tmp_path / "nowhere" / "policy.pt2", "torch")

    class Doubled(FixedTarget):
        """One of the user's own."""

    class Other:
        needs_rewards = False

        def check_model(self, model: SequenceModel) -> None:
            """Any."""

        def choose(self, model: Any, context: Any, rewards: Any) -> Any:
            raise NotImplementedError

    for predictor in (Doubled(1.0), Other()):
        with pytest.raises(ValueError, match=r"only FixedTarget and ReturnHead .* got (Dou|Oth)"):
            Policy(policy.model, predictor).export(tmp_path / "policy.pt2", "torch")
