"""IQL: the update against a plain one, and the values of a problem solved by hand."""

from __future__ import annotations

import functools
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dtag_fast.data.trajectories import Trajectories
from dtag_fast.models.critic import Critic
from dtag_fast.training.config import CriticConfig
from dtag_fast.training.critic import build_critic, load_critic, train_critic
from dtag_fast.training.iql import CriticLearner, expectile_loss
from tests.training.conftest import critic_config, plain_head, plain_mlp

CPU = torch.device("cpu")


def test_expectile_loss() -> None:
    difference = torch.tensor([2.0, -1.0, 0.0])
    assert float(expectile_loss(difference, 0.7)) == pytest.approx((0.7 * 4 + 0.3 * 1) / 3)


class PlainIql:
    """The update with one Sequential per head, one optimiser per network, no tricks."""

    def __init__(self, learner: CriticLearner) -> None:
        self.config = learner.config
        self.q = [plain_head(learner.model, e) for e in range(learner.config.heads)]
        self.target = [plain_head(learner.target, e) for e in range(learner.config.heads)]
        layers: Any = learner.value.layers
        self.v = plain_mlp([(x.weight, x.bias) for x in layers])
        rate = learner.config.learning_rate
        q_parameters = [p for head in self.q for p in head.parameters()]
        self.q_optimizer = torch.optim.Adam(q_parameters, lr=rate)
        self.v_optimizer = torch.optim.Adam(self.v.parameters(), lr=rate)

    def update(self, s: Tensor, a: Tensor, s_next: Tensor, r: Tensor, mask: Tensor) -> None:
        config, x = self.config, torch.cat([s, a], dim=1)
        v_before = self.v(s_next).detach()

        q_target = torch.minimum(*[head(x) for head in self.target]).detach()
        u = q_target - self.v(s)
        v_loss = (torch.abs(config.expectile - (u < 0).float()) * u**2).mean()
        self.v_optimizer.zero_grad()
        v_loss.backward()
        self.v_optimizer.step()

        v_next = self.v(s_next).detach() if config.update_order == "value_first" else v_before
        y = r + config.discount * mask * v_next
        losses = [((head(x) - y) ** 2).mean() for head in self.q]
        q_loss = sum(losses) if config.q_reduction == "sum" else sum(losses) / len(losses)
        self.q_optimizer.zero_grad()
        q_loss.backward()
        self.q_optimizer.step()

        with torch.no_grad():
            for head, target in zip(self.q, self.target, strict=True):
                for p, t in zip(head.parameters(), target.parameters(), strict=True):
                    t.copy_((1 - config.polyak) * t + config.polyak * p)


@pytest.mark.parametrize("order", ["value_first", "joint"])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_updates_equal_plain_ones(toy_data: Trajectories, order: str, reduction: str) -> None:
    torch.manual_seed(0)
    config = critic_config(
        update_order=order, q_reduction=reduction, learning_rate=0.01, polyak=0.1
    )
    learner = CriticLearner(toy_data, config, CPU)
    plain = PlainIql(learner)
    batches = learner.rows[torch.randint(len(learner.rows), (4, 32))]
    for batch in batches:
        learner.update_on(*torch.split(batch, learner.sizes, dim=1))
        plain.update(*torch.split(batch, learner.sizes, dim=1))
    for head in range(2):
        for ours, theirs in (
            (plain_head(learner.model, head), plain.q[head]),
            (plain_head(learner.target, head), plain.target[head]),
        ):
            for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
                torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)
    layers: Any = learner.value.layers
    linears: Any = plain.v[::2]
    for layer, linear in zip(layers, linears, strict=True):
        torch.testing.assert_close(layer.weight, linear.weight, rtol=1e-4, atol=1e-5)


def chain_data() -> Trajectories:
    """Three states, actions -1 and 1, by hand: see `test_values_of_a_small_problem`."""
    s0, s1, s2 = (-1.0, 0.0), (1.0, 0.0), (0.0, 1.0)
    steps = [  # s, a, r, s', terminal, truncated
        (s0, 1.0, 0.0, s1, False, False),
        (s1, 1.0, 1.0, s1, True, False),
        (s0, -1.0, 0.3, s0, True, False),
        (s2, -1.0, 0.0, s0, False, True),
        (s2, 1.0, 0.5, s1, False, True),
    ]
    columns = [np.array(column, dtype=np.float32) for column in zip(*steps, strict=True)]
    return Trajectories.from_arrays(
        observations=columns[0],
        actions=columns[1][:, None],
        rewards=columns[2],
        next_observations=columns[3],
        terminations=columns[4].astype(bool),
        truncations=columns[5].astype(bool),
    )


def test_values_of_a_small_problem(tmp_path: Path) -> None:
    """Q* of the expectile operator: terminations end the value, truncations do not."""
    config = critic_config(
        hidden=(32, 32),
        steps=1500,
        batch_size=256,
        learning_rate=1e-3,
        polyak=0.1,
        discount=0.9,
        expectile=0.9,
        checkpoint_every=1500,
    )
    data = chain_data()
    train_critic(data, config, tmp_path)
    critic, state = load_critic(tmp_path)
    assert state["step"] == 1500
    with torch.no_grad():
        q = critic(torch.from_numpy(data.observations), torch.from_numpy(data.actions))
    v_s1 = 1.0
    # of Q(s0, 1) = 0.9 and Q(s0, -1) = 0.3, equally often: tau (0.9 - v) = (1 - tau)(v - 0.3)
    v_s0 = 0.9 * 0.9 + 0.1 * 0.3
    expected = torch.tensor([0.9 * v_s1, 1.0, 0.3, 0.9 * v_s0, 0.5 + 0.9 * v_s1])
    assert q.shape == (2, 5)
    torch.testing.assert_close(q, expected.expand(2, 5), rtol=0.0, atol=0.04)


def test_rewards_are_scaled_and_actions_kept_off_the_bounds(toy_data: Trajectories) -> None:
    config = critic_config(reward_scaling="iql-mujoco", action_margin=0.1)
    learner = CriticLearner(toy_data, config, CPU)
    s, a, s_next, r, continues = torch.split(learner.rows, learner.sizes, dim=1)
    returns = toy_data.returns()
    factor = 1000 / (returns.max() - returns.min())
    np.testing.assert_allclose(r[:, 0], toy_data.rewards * factor, rtol=1e-5)
    np.testing.assert_allclose(a, np.clip(toy_data.actions, -0.9, 0.9), rtol=1e-6)
    np.testing.assert_array_equal(s, toy_data.observations)
    np.testing.assert_array_equal(s_next, toy_data.next_observations)
    np.testing.assert_array_equal(continues[:, 0] == 0, toy_data.terminations)


@pytest.mark.parametrize("normalize", [True, False])
def test_the_critic_takes_raw_observations(toy_data: Trajectories, normalize: bool) -> None:
    config = critic_config(normalize_observations=normalize)
    critic = CriticLearner(toy_data, config, CPU).model
    if normalize:
        normalized = critic.normalizer(torch.from_numpy(toy_data.observations))
        torch.testing.assert_close(normalized.mean(0), torch.zeros(4), rtol=0.0, atol=1e-5)
        expected = 1 / (1 + 1e-3 / toy_data.observations.std(0))
        np.testing.assert_allclose(normalized.std(0, correction=0), expected, rtol=1e-4)
    else:
        assert torch.equal(critic.normalizer.mean, torch.zeros(4))
        assert torch.equal(critic.normalizer.std, torch.ones(4))


def test_orthogonal_initial_weights() -> None:
    torch.manual_seed(0)
    critic = build_critic(CriticConfig(hidden=(24, 12), heads=3), 5, 3)
    for weight in critic.weights:
        for head in weight.detach():
            square = head @ head.T if head.shape[0] <= head.shape[1] else head.T @ head
            torch.testing.assert_close(square, 2.0 * torch.eye(len(square)), rtol=0, atol=1e-5)
        for one, other in pairwise(weight):
            assert not torch.equal(one, other)
    assert not any(bias.any() for bias in critic.biases)
    default = build_critic(CriticConfig(hidden=(24, 12), initialization="default"), 5, 3)
    assert 0 < float(default.weights[0].detach().abs().max()) <= 1 / math.sqrt(8)


@pytest.mark.parametrize("changes", [{"heads": 5}, {"layer_norm": True}, {"activation": "mish"}])
def test_other_architectures_train(toy_data: Trajectories, changes: dict[str, Any]) -> None:
    torch.manual_seed(0)
    config = critic_config(initialization="default", learning_rate=3e-3, discount=0.5, **changes)
    learner = CriticLearner(toy_data, config, CPU)
    before = [p.detach().clone() for p in learner.model.parameters()]
    losses = torch.stack([learner.update(step) for step in range(1, 101)])
    assert losses.isfinite().all()
    assert losses[-10:, 0].mean() < 0.5 * losses[:5, 0].mean()
    after = learner.model.parameters()
    assert all(not torch.equal(p, q) for p, q in zip(before, after, strict=True))


def test_autocast_is_close_to_plain(toy_data: Trajectories) -> None:
    losses = {}
    for autocast in (False, True):
        torch.manual_seed(0)
        learner = CriticLearner(toy_data, critic_config(autocast=autocast), CPU)
        losses[autocast] = torch.stack([learner.update(step) for step in range(1, 6)])
    assert losses[True].dtype == torch.float32
    assert not torch.equal(losses[True], losses[False])
    torch.testing.assert_close(losses[True], losses[False], rtol=0.05, atol=0.05)


def test_critic_load(toy_data: Trajectories, tmp_path: Path) -> None:
    config = critic_config(steps=3, heads=3, layer_norm=True, normalize_observations=True)
    trained = train_critic(toy_data, config, tmp_path).model
    loaded = Critic.load(tmp_path)
    observations, actions = torch.randn(6, 4), torch.rand(6, 2)
    assert torch.equal(trained(observations, actions), loaded(observations, actions))


def test_compiled_losses_are_one_graph_and_the_same(
    toy_data: Trajectories, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_fast = functools.partial(torch.compile, backend="aot_eager", fullgraph=True)
    monkeypatch.setattr(torch, "compile", compile_fast)
    losses = {}
    for compiled in (False, True):
        torch.manual_seed(0)
        learner = CriticLearner(toy_data, critic_config(compile=compiled), CPU)
        losses[compiled] = torch.stack([learner.update(step) for step in range(1, 4)])
    torch.testing.assert_close(losses[True], losses[False])
