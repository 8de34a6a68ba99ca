"""Behaviour cloning, the best share of the data, and IQL's policy extraction."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dtag_fast import checkpoint
from dtag_fast.acting.policy import Policy
from dtag_fast.acting.token_predictors import NoToken
from dtag_fast.data.trajectories import Trajectories, best_episodes
from dtag_fast.models.config import ModelConfig
from dtag_fast.training.config import CriticConfig, PolicyConfig
from dtag_fast.training.critic import train_critic
from dtag_fast.training.guide import Guide, advantage_weights, load_guide
from dtag_fast.training.losses import action_mse, action_nll
from dtag_fast.training.method_config import Td3BcConfig
from dtag_fast.training.sequence import PolicyLearner, train_policy
from tests.training.conftest import critic_config

CPU = torch.device("cpu")


def clone_config(**changes: Any) -> PolicyConfig:
    config = PolicyConfig(
        model=ModelConfig(
            kind="mlp",
            context_length=1,
            hidden=(32, 32),
            dropout=0.0,
            activation="relu",
            max_timestep=20,
        ),
        steps=300,
        batch_size=32,
        learning_rate=3e-3,
        optimizer="adamw",
        weight_decay=0.0,
        warmup_steps=0,
        gradient_clip=0.0,
        sampling="length",
        device="cpu",
        progress=False,
        checkpoint_every=1000,
    )
    return dataclasses.replace(config, **changes)


# --- losses ---


def test_weighted_losses() -> None:
    predicted = torch.tensor([[[1.0, 0.0]], [[2.0, 2.0]], [[7.0, 7.0]]])
    actions = torch.tensor([[[0.0, 0.0]], [[2.0, 0.0]], [[0.0, 0.0]]])
    mask = torch.tensor([[True], [True], [False]])
    weights = torch.tensor([[3.0], [0.5], [9.0]])
    expected = (3.0 * 0.5 + 0.5 * 2.0) / 2
    assert float(action_mse(predicted, actions, mask, weights)) == pytest.approx(expected)
    distributions: Any = torch.distributions
    log_std = torch.tensor([-0.5, 0.3])
    log_prob = distributions.Normal(predicted, log_std.exp()).log_prob(actions).sum(-1)
    expected = float(-(3.0 * log_prob[0] + 0.5 * log_prob[1]) / 2)
    found = action_nll(predicted, log_std, actions, mask, weights)
    assert float(found) == pytest.approx(expected)


def test_advantage_weights() -> None:
    found = advantage_weights(torch.tensor([0.0, 1.0, -2.0, 50.0]), 3.0)
    torch.testing.assert_close(found, torch.tensor([1.0, np.exp(3.0), np.exp(-6.0), 100.0]).float())


# --- cloning ---


@pytest.mark.parametrize("loss", ["error", "likelihood"])
def test_cloning_learns_the_actions(loss: Any, toy_data: Trajectories, tmp_path: Path) -> None:
    train_policy(toy_data, clone_config(action_loss=loss), tmp_path)
    policy = Policy.load(tmp_path)
    policy.reset(10)
    actions = policy.act(toy_data.observations[:10])
    assert np.abs(actions - toy_data.actions[:10]).mean() < 0.1


def test_only_likelihood_learns_a_standard_deviation(toy_data: Trajectories) -> None:
    for loss, learned in (("error", False), ("likelihood", True)):
        learner = PolicyLearner(toy_data, clone_config(action_loss=loss), CPU)
        learner.update(1)
        log_std: Any = learner.model.log_std
        assert bool(log_std.any()) == learned


def test_an_update_is_that_of_a_plain_clone(toy_data: Trajectories) -> None:
    torch.manual_seed(0)
    learner = PolicyLearner(toy_data, clone_config(), CPU)
    expected = {name: p.detach().clone() for name, p in learner.model.named_parameters()}
    state = learner.sampler_state()
    observations, actions, *_ = learner._batch()
    learner.load_sampler_state(state)
    model: Any = learner.model
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    loss = (model.act(observations[:, 0]) - actions[:, 0]).square().mean()
    optimizer.zero_grad()
    torch.autograd.backward(loss)
    optimizer.step()
    plain = {name: p.detach().clone() for name, p in model.named_parameters()}
    model.load_state_dict({**model.state_dict(), **expected})
    (found,) = learner.update(1)
    assert float(found) == pytest.approx(loss.item())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), plain[name])


def test_best_episodes() -> None:
    lengths, per_step = [2, 4, 3, 1], [1.0, 0.1, 2.0, 5.0]  # returns 2, 0.4, 6, 5
    ends = np.zeros(10, dtype=bool)
    ends[np.cumsum(lengths) - 1] = True
    data = Trajectories.from_arrays(
        observations=np.arange(10, dtype=np.float32)[:, None],
        actions=np.zeros((10, 1), dtype=np.float32),
        rewards=np.repeat(np.array(per_step, dtype=np.float32), lengths),
        next_observations=np.zeros((10, 1), dtype=np.float32),
        terminations=ends,
        truncations=np.zeros(10, dtype=bool),
    )
    kept = {
        share: best_episodes(data, share).observations[:, 0].tolist()
        for share in (0.01, 0.39, 0.4, 0.6, 0.99, 1.0)
    }
    assert kept[0.01] == kept[0.39] == [6, 7, 8]  # the best one, whatever its length
    assert kept[0.4] == [6, 7, 8, 9]
    assert kept[0.6] == kept[0.99] == [0, 1, 6, 7, 8, 9]
    assert kept[1.0] == list(range(10))


def test_the_best_share_is_what_is_trained_on(toy_data: Trajectories) -> None:
    learner = PolicyLearner(toy_data, clone_config(best_share=0.3), CPU)
    best = best_episodes(toy_data, 0.3)
    seen = learner.sampler.sample(500).observations[:, 0]
    assert {tuple(row) for row in seen.tolist()} == {tuple(x) for x in best.observations.tolist()}
    whole = PolicyLearner(toy_data, clone_config(), CPU)
    assert torch.equal(learner.model.normalizer.mean, whole.model.normalizer.mean)


# --- policy extraction ---


@pytest.fixture
def trained_critic(toy_data: Trajectories, tmp_path: Path) -> Path:
    train_critic(toy_data, critic_config(steps=20, discount=0.5), tmp_path / "critic")
    return tmp_path / "critic"


def test_advantages_are_those_of_the_training(toy_data: Trajectories, tmp_path: Path) -> None:
    observations = torch.from_numpy(toy_data.observations[:7])
    actions = torch.from_numpy(toy_data.actions[:7])
    for method in ("iql", "ensemble"):
        config = critic_config(steps=5, heads=3, method=method, normalize_observations=True)
        train_critic(toy_data, config, tmp_path / method)
        tensors = checkpoint.load_tensors(tmp_path / method, file=checkpoint.TRAINING_FILE)
        guide = make_guide(toy_data, clone_config(critic=str(tmp_path / method)))
        with torch.no_grad():
            q = guide.critic(observations, actions)
            value: Any = guide.value
            if method == "iql":
                assert torch.equal(value.layers[0].weight, tensors["value.layers.0.weight"])
                expected = q.min(dim=0).values - value(observations)
            else:
                assert torch.equal(value.weights[0], tensors["value.weights.0"])
                expected = (q - value(observations, torch.zeros(7, 1))).mean(dim=0)
        torch.testing.assert_close(guide.advantages(observations, actions), expected)
        assert not any(p.requires_grad for p in guide.parameters())


def make_guide(data: Trajectories, config: PolicyConfig) -> Guide:
    learner = PolicyLearner(data, clone_config(), CPU)
    guide = load_guide(dataclasses.replace(config, advantage_weight=3.0), learner.model, CPU)
    assert guide is not None
    return guide


def test_the_loss_weighs_by_advantage(toy_data: Trajectories, trained_critic: Path) -> None:
    config = clone_config(critic=str(trained_critic), advantage_weight=2.0)
    learner = PolicyLearner(toy_data, config, CPU)
    batch = learner._batch()
    observations, actions = batch[0][:, 0], batch[1][:, 0]
    guide: Any = learner.guide
    weights = torch.exp(2.0 * guide.advantages(observations, actions)).clamp(max=100)
    model: Any = learner.model
    error = (model.act(observations) - actions).square().mean(dim=1)
    loss, weight = learner._mlp_losses(*batch)
    torch.testing.assert_close(loss, (weights * error).mean())
    torch.testing.assert_close(weight, weights.mean())
    torch.autograd.backward(loss)
    assert all(p.grad is None for p in guide.parameters())
    assert learner.terms == ("loss", "weight")


def bimodal_data() -> Trajectories:
    """One step each, half at -0.8 and half at 0.5, which is better."""
    actions = np.repeat(np.array([-0.8, 0.5], dtype=np.float32), 32)[:, None]
    ends = np.ones(64, dtype=bool)
    return Trajectories.from_arrays(
        observations=np.ones((64, 2), dtype=np.float32),
        actions=actions,
        rewards=(actions[:, 0] > 0).astype(np.float32),
        next_observations=np.ones((64, 2), dtype=np.float32),
        terminations=ends,
        truncations=~ends,
        action_low=[-1.0],
        action_high=[1.0],
    )


def test_extraction_prefers_what_cloning_averages(tmp_path: Path) -> None:
    data = bimodal_data()
    critic = critic_config(steps=300, learning_rate=3e-3)
    train_critic(data, critic, tmp_path / "critic")
    base = clone_config(normalize_observations=False, steps=200, action_loss="error")
    weighed = dataclasses.replace(base, critic=str(tmp_path / "critic"), advantage_weight=5.0)
    found = {}
    for name, config in (("clone", base), ("iql", weighed)):
        train_policy(data, config, tmp_path / name)
        found[name] = Policy.load(tmp_path / name).act(np.ones(2))[0]
    assert abs(found["clone"] + 0.15) < 0.1
    assert abs(found["iql"] - 0.5) < 0.1


def test_a_resumed_run_keeps_the_critic_that_it_began_with(
    toy_data: Trajectories, tmp_path: Path, trained_critic: Path
) -> None:
    config = clone_config(
        critic=str(trained_critic), advantage_weight=2.0, steps=12, checkpoint_every=6
    )
    train_policy(toy_data, config, tmp_path / "whole")
    train_policy(toy_data, dataclasses.replace(config, steps=6), tmp_path / "parts")
    # Meanwhile the critic is trained on.
    state = checkpoint.read_state(trained_critic)
    longer = dataclasses.replace(CriticConfig.from_dict(state["config"]), steps=40)
    train_critic(toy_data, longer, trained_critic, resume=True)
    train_policy(toy_data, config, tmp_path / "parts", resume=True)
    for file in (checkpoint.MODEL_FILE, checkpoint.TRAINING_FILE):
        whole, parts = (
            checkpoint.load_tensors(tmp_path / n, file=file) for n in ("whole", "parts")
        )
        assert whole.keys() == parts.keys()
        assert [name for name in whole if not torch.equal(whole[name], parts[name])] == []
    assert checkpoint.read_state(tmp_path / "parts")["config"]["critic"] == str(trained_critic)


def test_critics_that_do_not_fit(
    toy_data: Trajectories, tmp_path: Path, trained_critic: Path
) -> None:
    def start(config: PolicyConfig, data: Trajectories = toy_data) -> None:
        train_policy(data, config, tmp_path / "run")

    weighed = clone_config(advantage_weight=1.0)
    with pytest.raises(ValueError, match=r"critic: needed, .*advantage_weight=1\.0; got None"):
        start(weighed)
    with pytest.raises(ValueError, match="critic: expected None, as nothing in the loss uses it"):
        start(clone_config(critic=str(trained_critic)))
    with pytest.raises(checkpoint.CheckpointError, match="no such folder"):
        start(dataclasses.replace(weighed, critic=str(tmp_path / "nowhere")))
    with pytest.raises(ValueError, match=r"advantage_weight: expected 0 .*kind reinformer"):
        start(PolicyConfig(critic=str(trained_critic), advantage_weight=1.0, progress=False))
    with pytest.raises(ValueError, match=r"critic: .* has observation_dim=4, the data has 2"):
        start(dataclasses.replace(weighed, critic=str(trained_critic)), bimodal_data())
    config = critic_config(method="td3-bc", steps=1, td3_bc=Td3BcConfig(actor_hidden=(8,)))
    train_critic(toy_data, config, tmp_path / "td3-bc")
    with pytest.raises(ValueError, match=r"needs a critic with V, .*is of method td3-bc"):
        start(dataclasses.replace(weighed, critic=str(tmp_path / "td3-bc")))
    assert not (tmp_path / "run").exists()


# --- acting ---


def test_a_clone_acts_as_any_policy(
    toy_data: Trajectories, tmp_path: Path, trained_critic: Path
) -> None:
    from dtag_fast.models.critic import Critic

    model: Any = train_policy(toy_data, clone_config(steps=5), tmp_path / "clone").model
    policy = Policy.load(tmp_path / "clone")
    assert isinstance(policy.token_predictor, NoToken)
    policy.reset(3)
    rng = np.random.default_rng(0)
    for step in range(4):
        observations = rng.normal(size=(policy.num_envs, 4)).astype(np.float32)
        with torch.no_grad():
            expected = model.act(torch.from_numpy(observations)).numpy()
        np.testing.assert_allclose(policy.act(observations), expected, rtol=1e-5, atol=1e-6)
        if step == 1:
            policy.reset_rows([0])
            policy.keep_rows([0, 2])
    refined = policy.with_refinement(Critic.load(trained_critic), steps=5, step_size=0.1)
    refined.reset(2)
    assert not np.array_equal(refined.act(observations), expected)
    assert refined.last_info is not None
    assert bool((refined.last_info.q >= refined.last_info.q_initial).all())
    assert policy.describe()["model"] == "mlp"
    with pytest.raises(ValueError, match="expected a model of kind dt or reinformer to export"):
        policy.export(tmp_path / "clone.onnx")


def test_a_model_with_tokens_needs_a_predictor() -> None:
    from dtag_fast.models.decision_transformer import build_model

    settings = {"context_length": 2, "blocks": 1, "embedding_dim": 8, "attention_heads": 2}
    model = build_model(ModelConfig(kind="dt", **settings), 4, 2)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"NoToken needs a model without return tokens .*'dt'"):
        Policy(model, NoToken())
