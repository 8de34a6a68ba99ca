"""TD3+BC: the update against a plain one, who gets a gradient, and what the actor learns."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dtag_fast.data.trajectories import Trajectories
from dtag_fast.models.actor import Actor
from dtag_fast.training.method_config import Td3BcConfig
from dtag_fast.training.td3_bc import Td3BcLearner
from tests.training.conftest import critic_config, plain_head, plain_mlp

CPU = torch.device("cpu")


def plain_actor(actor: Actor) -> nn.Sequential:
    layers = [x for x in actor.layers if isinstance(x, nn.Linear)]
    return nn.Sequential(plain_mlp([(x.weight, x.bias) for x in layers]), nn.Tanh())


class PlainTd3Bc:
    """The algorithm with a network for each part, and the box [-1, 1]."""

    def __init__(self, learner: Td3BcLearner) -> None:
        self.config = learner.config
        self.options = learner.config.td3_bc
        self.q1, self.q2 = (plain_head(learner.model, e) for e in range(2))
        self.q1_target, self.q2_target = (plain_head(learner.target, e) for e in range(2))
        self.actor, self.actor_target = map(plain_actor, (learner.actor, learner.actor_target))
        q_parameters = [*self.q1.parameters(), *self.q2.parameters()]
        self.q_optimizer = torch.optim.Adam(q_parameters, self.config.learning_rate)
        self.actor_optimizer = torch.optim.Adam(
            self.actor.parameters(), self.options.actor_learning_rate
        )
        self.updates = 0

    def update(self, s: Tensor, a: Tensor, s_next: Tensor, r: Tensor, mask: Tensor) -> None:
        self.updates += 1
        noise = torch.randn_like(a) * self.options.noise
        noise = noise.clamp(-self.options.noise_clip, self.options.noise_clip)
        a_next = (self.actor_target(s_next) + noise).clamp(-1, 1)
        x_next = torch.cat([s_next, a_next], 1)
        q_next = torch.min(self.q1_target(x_next), self.q2_target(x_next))
        y = (r + mask * self.config.discount * q_next).detach()
        x = torch.cat([s, a], 1)
        q_loss = F.mse_loss(self.q1(x), y) + F.mse_loss(self.q2(x), y)
        self.q_optimizer.zero_grad()
        torch.autograd.backward(q_loss)
        self.q_optimizer.step()
        if self.updates % self.options.actor_every:
            return
        proposed = self.actor(s)
        q = self.q1(torch.cat([s, proposed], 1))
        weight = self.options.q_weight / q.abs().mean().detach()
        actor_loss = -weight * q.mean() + F.mse_loss(proposed, a)
        self.actor_optimizer.zero_grad()
        torch.autograd.backward(actor_loss)
        self.actor_optimizer.step()
        for target, source in (
            (self.q1_target, self.q1),
            (self.q2_target, self.q2),
            (self.actor_target, self.actor),
        ):
            for t, p in zip(target.parameters(), source.parameters(), strict=True):
                t.data.copy_(self.config.polyak * p.data + (1 - self.config.polyak) * t.data)


@pytest.mark.parametrize("every", [1, 2])
def test_updates_equal_plain_ones(toy_data: Trajectories, every: int) -> None:
    torch.manual_seed(0)
    options = Td3BcConfig(
        actor_hidden=(16, 8), actor_learning_rate=0.01, actor_every=every, noise=0.4
    )
    config = critic_config(method="td3-bc", learning_rate=0.01, polyak=0.1, td3_bc=options)
    learner = Td3BcLearner(toy_data, config, CPU)
    plain = PlainTd3Bc(learner)
    batches = learner.rows[torch.randint(len(learner.rows), (5, 32))]
    for number, batch in enumerate(batches):
        parts: Any = torch.split(batch, learner.sizes, dim=1)
        torch.manual_seed(number)
        learner.update_on(parts, with_actor=(number + 1) % every == 0)
        torch.manual_seed(number)
        plain.update(*parts)
    pairs = [
        (plain_head(learner.model, 0), plain.q1),
        (plain_head(learner.model, 1), plain.q2),
        (plain_head(learner.target, 0), plain.q1_target),
        (plain_head(learner.target, 1), plain.q2_target),
        (plain_actor(learner.actor), plain.actor),
        (plain_actor(learner.actor_target), plain.actor_target),
    ]
    for ours, theirs in pairs:
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)


def test_gradients_stay_where_they_belong(toy_data: Trajectories) -> None:
    torch.manual_seed(0)
    config = critic_config(method="td3-bc", td3_bc=Td3BcConfig(actor_hidden=(16,)))
    learner = Td3BcLearner(toy_data, config, CPU)
    observations, actions, *_ = batch = learner.batch()
    # The Q-heads' gradient is that of their own error, whatever the actor does afterwards.
    targets = learner._targets_eager(*batch[2:])
    loss, _ = learner._q_loss_eager(observations, actions, targets)
    expected = torch.autograd.grad(loss, learner.q_parameters)
    torch.manual_seed(1)
    targets = learner._targets_eager(*batch[2:])
    assert not targets.requires_grad
    loss, _ = learner._q_loss_eager(observations, actions, targets)
    expected = torch.autograd.grad(loss, learner.q_parameters)
    before = [p.detach().clone() for p in learner.q_parameters]
    torch.manual_seed(1)
    learner.update_on(batch, with_actor=True)
    for p, gradient in zip(learner.q_parameters, expected, strict=True):
        torch.testing.assert_close(p.grad, gradient)
    assert all(p.grad is None for p in learner.target.parameters())
    assert all(p.grad is None for p in learner.actor_target.parameters())
    assert all(p.grad is not None and bool(p.grad.any()) for p in learner.actor.parameters())
    # Between two updates of the actor the targets rest as well.
    assert not all(torch.equal(p, q) for p, q in zip(before, learner.q_parameters, strict=True))
    rest = [learner.actor, learner.actor_target, learner.target]
    kept = [[p.detach().clone() for p in module.parameters()] for module in rest]
    learner.update_on(batch, with_actor=False)
    for module, values in zip(rest, kept, strict=True):
        assert all(torch.equal(p, q) for p, q in zip(module.parameters(), values, strict=True))


def hill_data() -> Trajectories:
    """One state and one step; actions all over the box, the best one is 0.6."""
    actions = np.linspace(-1, 1, 64, dtype=np.float32)[:, None]
    ends = np.ones(64, dtype=bool)
    return Trajectories.from_arrays(
        observations=np.ones((64, 2), dtype=np.float32),
        actions=actions,
        rewards=1 - (actions[:, 0] - 0.6) ** 2,
        next_observations=np.ones((64, 2), dtype=np.float32),
        terminations=ends,
        truncations=~ends,
    )


def test_the_actor_weighs_q_against_the_data() -> None:
    """Without Q it clones the data, whose mean is 0; with much of it, it finds the best action."""
    found = {}
    for weight in (0.0, 30.0):
        torch.manual_seed(0)
        options = Td3BcConfig(actor_hidden=(16,), actor_learning_rate=3e-3, q_weight=weight)
        config = critic_config(method="td3-bc", learning_rate=3e-3, td3_bc=options)
        learner = Td3BcLearner(hill_data(), config, CPU)
        for step in range(1, 1001):
            learner.update(step)
        with torch.no_grad():
            found[weight] = float(learner.actor(torch.ones(1, 2)))
    assert abs(found[0.0]) < 0.15
    assert abs(found[30.0] - 0.6) < 0.15


def test_a_problem_without_rewards_stays_finite(toy_data: Trajectories) -> None:
    config = critic_config(method="td3-bc")
    learner = Td3BcLearner(toy_data, config, CPU)
    with torch.no_grad():
        for parameter in learner.q_parameters:
            parameter.zero_()
    loss, _ = learner._actor_loss_eager(*learner.batch()[:2])
    assert torch.isfinite(loss)
