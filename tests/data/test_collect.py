from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dtag_fast.data import behaviour
from dtag_fast.data.collect import collect
from dtag_fast.data.minari import from_minari
from dtag_fast.data.references import ReferenceScores

TINY = {"training_steps": 4096, "evaluation_episodes": 1, "steps": 300, "progress": False}


def test_needs_the_extra(minari_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "stable_baselines3", None)
    with pytest.raises(ImportError, match=r"dtag-fast\[collect\]"):
        collect("Hopper-v5", "medium", **TINY)  # type: ignore[arg-type]
    assert not minari_root.exists()


@pytest.mark.parametrize(
    ("env_id", "tier", "options", "message"),
    [
        ("Hopper-v5", "random", {}, "tier: expected one of"),
        ("Hoper-v5", "medium", {}, "env_id: .*Hoper"),
        ("CartPole-v1", "medium", {}, "actions: expected a Box"),
        ("Hopper-v5", "medium", {"steps": 0}, "steps: expected at least 1"),
        ("Hopper-v5", "medium", {"training_steps": 0}, "training_steps: expected at least 1"),
        ("Hopper-v5", "medium", {"id": "mujoco/hopper/medium-v0"}, "published"),
    ],
)
def test_refuses(
    minari_root: Path, env_id: str, tier: str, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        collect(env_id, tier, **{**TINY, **options})  # type: ignore[arg-type]
    assert not minari_root.exists()


@pytest.mark.third_party
def test_the_numpy_policy_is_the_trained_one() -> None:
    pytest.importorskip("stable_baselines3")
    import gymnasium
    from stable_baselines3 import PPO
    from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

    environments = VecNormalize(DummyVecEnv([lambda: gymnasium.make("Hopper-v5")]))
    agent = PPO("MlpPolicy", environments, n_steps=64, batch_size=64, seed=0, device="cpu")
    agent.learn(total_timesteps=64)
    policy = behaviour._extract(agent, environments)
    quiet = {**policy.arrays, "log_std": np.full(3, -30.0)}
    generator = np.random.default_rng(0)
    for observation in generator.normal(size=(20, 11)):
        expected, _ = agent.predict(environments.normalize_obs(observation), deterministic=True)
        action = behaviour.NumpyPolicy(quiet, 64).act(observation, "sampled", generator)
        np.testing.assert_allclose(action, expected, atol=1e-5)
    environments.close()


def test_noise_leaves_a_saturated_mean_at_the_edge_of_the_box() -> None:
    shapes = {"weight_0": (4, 3), "weight_1": (4, 4), "weight_2": (2, 4)}
    arrays: dict[str, Any] = {name: np.zeros(shape) for name, shape in shapes.items()}
    arrays.update({f"bias_{i}": np.zeros(4) for i in (0, 1)}, bias_2=np.array([3.0, 0.0]))
    arrays.update(log_std=np.zeros(2), mean=np.zeros(3), std=np.ones(3))
    arrays.update(low=np.full(2, -1, np.float32), high=np.ones(2, np.float32))
    policy, generator = behaviour.NumpyPolicy(arrays, 0), np.random.default_rng(0)
    actions = np.array([policy.act(np.zeros(3), "noisy mean", generator) for _ in range(500)])
    assert (actions[:, 0] == 1.0).all()
    assert actions[:, 1].std() == pytest.approx(0.1, rel=0.15)
    sampled = np.array([policy.act(np.zeros(3), "sampled", generator) for _ in range(500)])
    assert sampled[:, 1].std() > 0.5


@pytest.mark.third_party
@pytest.mark.filterwarnings("ignore:.*medium policy has.*:UserWarning")
def test_three_tiers_from_one_training(minari_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("stable_baselines3")
    medium = collect("Hopper-v5", "medium", **TINY)  # type: ignore[arg-type]
    data = from_minari(medium.id)
    assert (medium.id, data.steps) == ("dtag/hopper/medium-v0", 300)
    assert data.truncations[-1]
    assert data.info.references == (ReferenceScores("d4rl", -20.272305, 3234.3),)
    assert (data.info.env_id, data.info.horizon) == ("Hopper-v5", 1000)
    run = data.info.provenance["behaviour"]
    assert run["parameters"]["training_steps"] == 4096
    assert run["medium_step"] <= run["expert_step"] <= 4096
    assert len(run["checkpoints"]) == 2

    def no_training(*_: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(behaviour, "_train", no_training)
    expert = from_minari(collect("Hopper-v5", "expert", **TINY).id)  # type: ignore[arg-type]
    assert expert.steps == 300
    # medium has the spread of the policy, expert that of the noise on its mean.
    assert expert.actions.std() < data.actions.std()

    with pytest.warns(UserWarning, match="fewer than the 100000 asked for"):
        replay = from_minari(
            collect("Hopper-v5", "medium-replay", **{**TINY, "steps": 100_000}).id  # type: ignore[arg-type]
        )
    assert replay.episodes == run["training_episodes_before_medium"]
    few = from_minari(
        collect("Hopper-v5", "medium-replay", id="dtag/few-v0", **TINY).id  # type: ignore[arg-type]
    )
    assert 200 < few.steps <= 300
    returns = set(np.round(replay.returns(), 3).tolist())
    assert set(np.round(few.returns(), 3).tolist()) <= returns

    assert collect("Hopper-v5", "medium", **TINY).reused  # type: ignore[arg-type]


@pytest.mark.third_party
@pytest.mark.filterwarnings("ignore:.*medium policy has.*:UserWarning")
def test_references_are_measured_where_there_are_none(minari_root: Path) -> None:
    pytest.importorskip("stable_baselines3")
    made = collect(
        "InvertedPendulum-v5", "medium", steps=100, training_steps=12_000,
        evaluation_episodes=1, progress=False,
    )  # fmt: skip
    (reference,) = from_minari(made.id).info.references
    assert reference.source == "minari"
    assert reference.minimum < reference.maximum
