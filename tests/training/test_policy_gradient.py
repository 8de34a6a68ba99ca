"""Training-time policy gradient: a critic in the loss of a Decision Transformer or Reinformer."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dtag_fast import checkpoint
from dtag_fast.acting.policy import Policy
from dtag_fast.data.trajectories import Trajectories
from dtag_fast.models.config import ModelConfig
from dtag_fast.models.critic import Critic
from dtag_fast.training.config import CriticConfig, PolicyConfig
from dtag_fast.training.critic import train_critic
from dtag_fast.training.guide import Guide
from dtag_fast.training.sequence import PolicyLearner, train_policy
from tests.training.conftest import critic_config

CPU = torch.device("cpu")
KINDS = pytest.mark.parametrize("kind", ["dt", "reinformer", "mlp"])


def policy_config(kind: Any, **changes: Any) -> PolicyConfig:
    config = PolicyConfig(
        model=ModelConfig(
            kind=kind,
            context_length=1 if kind == "mlp" else 3,
            blocks=1,
            embedding_dim=32,
            attention_heads=2,
            dropout=0.0,
            block_norm="pre" if kind == "dt" else "post",
            max_timestep=20,
            rtg_scale=1.0,
            hidden=(32, 32),
        ),
        steps=20,
        batch_size=32,
        learning_rate=3e-3,
        optimizer="adamw",
        warmup_steps=0,
        target_return=1.0,
        device="cpu",
        progress=False,
        checkpoint_every=1000,
    )
    return dataclasses.replace(config, **changes)


@pytest.fixture
def critic_run(toy_data: Trajectories, tmp_path: Path) -> Path:
    train_critic(toy_data, critic_config(steps=20), tmp_path / "critic")
    return tmp_path / "critic"


@pytest.mark.parametrize("heads", [1, 2, 3])
def test_the_term_is_minus_q_by_the_size_of_the_other_head(heads: int) -> None:
    torch.manual_seed(0)
    critic = Critic(4, 2, (16,), heads)
    observations, actions = torch.randn(3, 2, 4), torch.randn(3, 2, 2, requires_grad=True)
    mask = torch.tensor([[True, True], [True, False], [False, True]])
    found = Guide(critic, None).q_loss(observations, actions, mask)
    with torch.no_grad():
        q = critic(observations[mask], actions[mask])
    expected = [-q[e].mean() / q[(e + 1) % heads].abs().mean() for e in range(heads)]
    torch.testing.assert_close(found.detach(), sum(expected) / heads)
    torch.autograd.backward(found)
    assert actions.grad is not None
    assert not bool(actions.grad[~mask].any())
    # The size is a number: the gradient is that of Q, by a constant.
    again = actions.detach().requires_grad_()
    values = critic(observations[mask], again[mask])
    scaled = sum(
        -values[e].mean() / values[(e + 1) % heads].abs().mean().detach() / heads
        for e in range(heads)
    )
    torch.autograd.backward(torch.as_tensor(scaled))
    torch.testing.assert_close(actions.grad, again.grad)


def test_a_critic_of_zeros_has_a_finite_term() -> None:
    critic = Critic(4, 2, (8,))
    with torch.no_grad():
        for parameter in critic.parameters():
            parameter.zero_()
    mask = torch.ones(2, 1, dtype=torch.bool)
    actions = torch.randn(2, 1, 2, requires_grad=True)
    loss = Guide(critic, None).q_loss(torch.randn(2, 1, 4), actions, mask)
    torch.autograd.backward(loss)
    assert loss.item() == 0.0
    assert actions.grad is not None
    assert bool(actions.grad.isfinite().all())


@KINDS
def test_the_loss_is_the_models_own_and_the_term(
    kind: str, toy_data: Trajectories, critic_run: Path
) -> None:
    learners = {}
    for weight in (0.0, 0.5):
        torch.manual_seed(0)
        critic = str(critic_run) if weight else None
        config = policy_config(kind, critic=critic, q_weight=weight)
        learners[weight] = PolicyLearner(toy_data, config, CPU)
    own, both = learners[0.0], learners[0.5]
    guide: Any = both.guide
    batch = own._batch()
    plain, guided = own._losses(*batch), both._losses(*batch)
    output = both.model(*batch[:5])
    term = guide.q_loss(batch[0], output.actions, batch[5])
    torch.testing.assert_close(guided[0], plain[0] + 0.5 * term)
    torch.testing.assert_close(guided[1:-1], plain[1:])
    torch.testing.assert_close(guided[-1], term)
    assert both.terms == (*own.terms, "critic_loss")
    gradients = []
    for learner, losses in ((own, plain), (both, guided)):
        torch.autograd.backward(losses[0])
        gradients.append([p.grad for p in learner.parameters])
    assert all(p.grad is None for p in guide.parameters())
    different = [not torch.equal(p, q) for p, q in zip(*gradients, strict=True) if p is not None]
    assert any(different)


@KINDS
def test_a_resumed_run_ends_with_the_same_bits(
    kind: str, toy_data: Trajectories, tmp_path: Path, critic_run: Path
) -> None:
    """Although the critic has been trained on meanwhile."""
    config = policy_config(kind, critic=str(critic_run), q_weight=0.5, steps=10)
    train_policy(toy_data, config, tmp_path / "whole")
    train_policy(toy_data, dataclasses.replace(config, steps=4), tmp_path / "parts")
    state = checkpoint.read_state(critic_run)
    longer = dataclasses.replace(CriticConfig.from_dict(state["config"]), steps=30)
    train_critic(toy_data, longer, critic_run, resume=True)
    result = train_policy(toy_data, config, tmp_path / "parts", resume=True)
    assert "critic_loss" in result.losses
    for file in (checkpoint.MODEL_FILE, checkpoint.TRAINING_FILE):
        whole, parts = (
            checkpoint.load_tensors(tmp_path / run, file=file) for run in ("whole", "parts")
        )
        assert whole.keys() == parts.keys()
        assert [name for name in whole if not torch.equal(whole[name], parts[name])] == []
    assert checkpoint.read_state(tmp_path / "parts")["config"]["critic"] == str(critic_run)
    Policy.load(tmp_path / "parts").act(np.zeros(4))  # the critic is no part of the model
    other = dataclasses.replace(config, critic=str(tmp_path / "other"))
    train_critic(toy_data, critic_config(steps=1), tmp_path / "other")
    with pytest.raises(ValueError, match=f"critic: .*has '{critic_run}'"):
        train_policy(toy_data, other, tmp_path / "parts", resume=True)


@pytest.mark.parametrize("kind", ["dt", "reinformer"])
def test_compiled_losses_are_one_graph_and_the_same(
    kind: str, toy_data: Trajectories, critic_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_fast = functools.partial(torch.compile, backend="aot_eager", fullgraph=True)
    monkeypatch.setattr(torch, "compile", compile_fast)
    losses = {}
    for compiled in (False, True):
        torch.manual_seed(0)
        config = policy_config(kind, compile=compiled, critic=str(critic_run), q_weight=0.5)
        learner = PolicyLearner(toy_data, config, CPU)
        losses[compiled] = torch.stack([learner.update(step) for step in range(1, 4)])
    torch.testing.assert_close(losses[True], losses[False])


def test_the_critic_leads_beyond_the_data(tmp_path: Path) -> None:
    """One step each, actions near -0.5, rewards that grow: the clone stays, the other climbs."""
    rng = np.random.default_rng(0)
    actions = rng.uniform(-0.7, -0.3, size=(64, 1)).astype(np.float32)
    ends = np.ones(64, dtype=bool)
    data = Trajectories.from_arrays(
        observations=np.ones((64, 2), dtype=np.float32),
        actions=actions,
        rewards=2.0 + actions[:, 0],
        next_observations=np.ones((64, 2), dtype=np.float32),
        terminations=ends,
        truncations=~ends,
        action_low=[-1.0],
        action_high=[1.0],
    )
    train_critic(data, critic_config(steps=300, learning_rate=3e-3), tmp_path / "critic")
    critic = str(tmp_path / "critic")
    found = {}
    for weight in (0.0, 5.0):
        config = policy_config(
            "dt",
            steps=150,
            target_return=1.5,
            normalize_observations=False,
            critic=critic if weight else None,
            q_weight=weight,
        )
        train_policy(data, config, tmp_path / str(weight))
        found[weight] = float(Policy.load(tmp_path / str(weight)).act(np.ones(2))[0])
    assert abs(found[0.0] + 0.5) < 0.15
    assert found[5.0] > -0.2  # beyond the data, which ends at -0.3


def test_a_critic_is_needed_and_has_to_fit(
    toy_data: Trajectories, tmp_path: Path, critic_run: Path
) -> None:
    with pytest.raises(ValueError, match=r"critic: needed, .* as q_weight=0\.5; got None"):
        train_policy(toy_data, policy_config("dt", q_weight=0.5), tmp_path / "run")
    with pytest.raises(ValueError, match="critic: expected None, as nothing in the loss uses it"):
        train_policy(toy_data, policy_config("dt", critic=str(critic_run)), tmp_path / "run")
    train_policy(toy_data, policy_config("dt", steps=1), tmp_path / "policy")
    config = policy_config("dt", critic=str(tmp_path / "policy"), q_weight=0.5)
    with pytest.raises(checkpoint.CheckpointError, match="expected a critic, it holds a 'policy'"):
        train_policy(toy_data, config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
