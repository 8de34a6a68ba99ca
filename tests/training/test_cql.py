"""CQL: the update against a plain one, who gets a gradient, and unseen actions held low."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dtag_fast.data.trajectories import Trajectories
from dtag_fast.training.config import CriticConfig
from dtag_fast.training.cql import CqlLearner, soft_maximum_over_actions
from dtag_fast.training.critic import build_critic
from dtag_fast.training.method_config import CqlConfig
from tests.training.conftest import critic_config, plain_head, plain_mlp

CPU = torch.device("cpu")
distributions: Any = torch.distributions


class PlainCql:
    """The algorithm with a network for each part, torch's distributions, and the box [-1, 1]."""

    def __init__(self, learner: CqlLearner) -> None:
        self.config, self.options = learner.config, learner.config.cql
        self.q = [plain_head(learner.model, e) for e in range(2)]
        self.target = [plain_head(learner.target, e) for e in range(2)]
        layers = [x for x in learner.actor.layers if isinstance(x, nn.Linear)]
        self.actor = plain_mlp([(x.weight, x.bias) for x in layers])
        self.log_alpha = torch.zeros(1, requires_grad=True)
        self.log_alpha_prime = torch.ones(1, requires_grad=True)
        self.q_optimizer = torch.optim.Adam(
            itertools.chain(*(q.parameters() for q in self.q)), self.config.learning_rate
        )
        rate = self.options.actor_learning_rate
        self.actor_optimizer = torch.optim.Adam(self.actor.parameters(), rate)
        self.alpha_optimizer = torch.optim.Adam([self.log_alpha], rate)
        self.alpha_prime_optimizer = torch.optim.Adam(
            [self.log_alpha_prime], self.config.learning_rate
        )

    def sample(self, s: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = torch.chunk(self.actor(s), 2, dim=-1)
        noise = torch.randn_like(mean)
        before = mean + log_std.exp() * noise
        density = distributions.Normal(mean, log_std.exp()).log_prob(before).sum(-1)
        a = torch.tanh(before)
        return a, density - torch.log(1 - a**2).sum(-1)

    def values(self, heads: list[nn.Sequential], s: Tensor, a: Tensor) -> list[Tensor]:
        return [head(torch.cat([s, a], dim=-1)).squeeze(-1) for head in heads]

    def update(self, s: Tensor, a: Tensor, s_next: Tensor, r: Tensor, mask: Tensor) -> None:
        options, n, batch = self.options, self.options.samples, len(s)
        a_new, log_pi = self.sample(s)
        alpha_loss = -(self.log_alpha * (log_pi - a.shape[1]).detach()).mean()
        q_new = torch.min(*self.values(self.q, s, a_new))
        policy_loss = (self.log_alpha.exp().detach() * log_pi - q_new).mean()

        a_next, _ = self.sample(s_next)
        q_next = torch.min(*self.values(self.target, s_next, a_next)).detach()
        y = r.squeeze(1) + self.config.discount * mask.squeeze(1) * q_next
        many, many_next = s.expand(n, *s.shape), s_next.expand(n, *s.shape)
        a_random = 2 * torch.rand(n, batch, a.shape[1]) - 1
        a_later, log_later = (x.detach() for x in self.sample(many_next))
        a_now, log_now = (x.detach() for x in self.sample(many))
        losses, gaps = [], []
        for head in self.q:
            (q,) = self.values([head], s, a)
            (q_random,) = self.values([head], many, a_random)
            (q_later,) = self.values([head], many, a_later)
            (q_now,) = self.values([head], many, a_now)
            random_density = math.log(0.5 ** a.shape[1])
            cat = torch.cat([q_random - random_density, q_later - log_later, q_now - log_now])
            t = options.temperature
            gaps.append((torch.logsumexp(cat / t, dim=0) * t - q).mean())
            losses.append(F.mse_loss(q, y))
        if options.lagrange:
            alpha_prime = self.log_alpha_prime.exp()
            terms = [alpha_prime * options.weight * (gap - options.target_gap) for gap in gaps]
            self.alpha_prime_optimizer.zero_grad()
            torch.autograd.backward(-0.5 * (terms[0] + terms[1]), retain_graph=True)
            self.alpha_prime_optimizer.step()
            terms = [alpha_prime.detach() * options.weight * gap for gap in gaps]
        else:
            terms = [options.weight * gap for gap in gaps]
        for optimizer, loss in (
            (self.alpha_optimizer, alpha_loss),
            (self.actor_optimizer, policy_loss),
            (self.q_optimizer, losses[0] + losses[1] + terms[0] + terms[1]),
        ):
            gradients = torch.autograd.grad(loss, optimizer.param_groups[0]["params"])
            for p, gradient in zip(optimizer.param_groups[0]["params"], gradients, strict=True):
                p.grad = gradient
        for optimizer in (self.alpha_optimizer, self.actor_optimizer, self.q_optimizer):
            optimizer.step()
        for target, source in zip(self.target, self.q, strict=True):
            for x, p in zip(target.parameters(), source.parameters(), strict=True):
                x.data.copy_((1 - self.config.polyak) * x.data + self.config.polyak * p.data)


@pytest.mark.parametrize("lagrange", [False, True])
def test_updates_equal_plain_ones(toy_data: Trajectories, lagrange: bool) -> None:
    torch.manual_seed(0)
    options = CqlConfig(
        lagrange=lagrange,
        weight=2.0,
        samples=3,
        target_gap=0.5,
        temperature=0.7,
        actor_hidden=(16,),
        actor_learning_rate=0.01,
    )
    config = critic_config(method="cql", learning_rate=0.01, polyak=0.1, cql=options)
    learner = CqlLearner(toy_data, config, CPU)
    plain = PlainCql(learner)
    batches = learner.rows[torch.randint(len(learner.rows), (4, 32))]
    for number, batch in enumerate(batches):
        parts: Any = torch.split(batch, learner.sizes, dim=1)
        torch.manual_seed(number)
        learner.update_on(parts)
        torch.manual_seed(number)
        plain.update(*parts)
    actor = [x for x in learner.actor.layers if isinstance(x, nn.Linear)]
    pairs: list[Any] = [(plain_mlp([(x.weight, x.bias) for x in actor]), plain.actor)]
    for e in range(2):
        pairs += [(plain_head(learner.model, e), plain.q[e])]
        pairs += [(plain_head(learner.target, e), plain.target[e])]
    for ours, theirs in pairs:
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            # Adam's steps of 0.01 enlarge the rounding of a gradient that is nearly zero.
            torch.testing.assert_close(p, q, rtol=1e-4, atol=2e-4)
    assert learner.log_temperature.item() == pytest.approx(plain.log_alpha.item(), abs=1e-5)
    assert learner.log_multiplier.item() == pytest.approx(plain.log_alpha_prime.item(), abs=1e-5)
    assert (learner.log_multiplier.item() != 1.0) == lagrange


def test_gradients_stay_where_they_belong(toy_data: Trajectories) -> None:
    torch.manual_seed(0)
    config = critic_config(method="cql", cql=CqlConfig(samples=3, actor_hidden=(16,)))
    learner = CqlLearner(toy_data, config, CPU)
    batch = learner.batch()
    torch.manual_seed(1)
    learner.actor.sample(batch[0])  # the actor's own loss draws first
    targets = learner._targets_eager(*batch[2:])
    assert not targets.requires_grad
    error, gap, _ = learner._q_losses_eager(batch[0], batch[1], batch[2], targets)
    expected = torch.autograd.grad(error + 2 * 10.0 * gap, learner.q_parameters, retain_graph=True)
    actor = list(learner.actor.parameters())
    for gradient in torch.autograd.grad(error + gap, actor, allow_unused=True):
        assert gradient is None
    torch.manual_seed(1)
    learner.update_on(batch)
    for p, gradient in zip(learner.q_parameters, expected, strict=True):
        torch.testing.assert_close(p.grad, gradient, rtol=1e-4, atol=1e-6)
    assert all(p.grad is None for p in learner.target.parameters())
    assert all(p.grad is not None and bool(p.grad.any()) for p in actor)


def test_the_soft_maximum_is_an_integral() -> None:
    """Of exp Q = exp(w a) over [-1, 1]: 2 sinh(w) / w, whatever the samples are drawn from."""
    torch.manual_seed(0)
    w, n = 2.0, 200_000
    expected = math.log(2 * math.sinh(w) / w)
    uniform = 2 * torch.rand(1, n, 1) - 1
    found = soft_maximum_over_actions(w * uniform, torch.full((n, 1), -math.log(2)), 1.0)
    assert float(found) - math.log(n) == pytest.approx(expected, abs=0.02)
    # density (1 + a) / 2, by its quantile function
    skewed = 2 * torch.rand(1, n, 1).sqrt() - 1
    found = soft_maximum_over_actions(w * skewed, torch.log((1 + skewed[0]) / 2), 1.0)
    assert float(found) - math.log(n) == pytest.approx(expected, abs=0.05)


def narrow_data() -> Trajectories:
    """One step each; rewards grow with the action, of which the data has those below 0."""
    actions = np.linspace(-1, 0, 64, dtype=np.float32)[:, None]
    ends = np.ones(64, dtype=bool)
    return Trajectories.from_arrays(
        observations=np.ones((64, 2), dtype=np.float32),
        actions=actions,
        rewards=actions[:, 0],
        next_observations=np.ones((64, 2), dtype=np.float32),
        terminations=ends,
        truncations=~ends,
        action_low=[-1.0],
        action_high=[1.0],
    )


def trained(options: CqlConfig, steps: int = 400) -> CqlLearner:
    torch.manual_seed(0)
    config = critic_config(method="cql", learning_rate=3e-3, cql=options)
    learner = CqlLearner(narrow_data(), config, CPU)
    for step in range(1, steps + 1):
        learner.update(step)
    return learner


def values_at(learner: CqlLearner, actions: list[float]) -> list[float]:
    with torch.no_grad():
        column = torch.tensor(actions)[:, None]
        q = learner.model(torch.ones(len(actions), 2), column)
    found: list[float] = q.amin(0).tolist()
    return found


def test_q_is_low_where_there_is_no_data() -> None:
    """Plain Q-learning extrapolates the slope; CQL bends it down."""
    rise = {}
    for weight in (0.0, 0.5, 5.0):
        options = CqlConfig(weight=weight, samples=4, actor_hidden=(16,))
        inside, outside = values_at(trained(options), [-0.5, 0.9])
        rise[weight] = outside - inside
    assert rise[0.0] > 0.2
    assert rise[0.5] < -1.0
    assert rise[5.0] < -1.0


def test_lagrange_holds_the_gap() -> None:
    """The multiplier rises where the gap is above what is asked for, and falls below it."""
    multipliers, gaps = {}, {}
    for target in (2.5, 6.0):
        options = CqlConfig(
            weight=1.0, lagrange=True, target_gap=target, samples=4, actor_hidden=(16,)
        )
        learner = trained(options, 600)
        assert learner.terms[1::5] == ("gap", "multiplier")
        means = torch.stack([learner.update(step) for step in range(50)]).mean(dim=0)
        gaps[target], multipliers[target] = means[1].item(), means[6].item()
    assert gaps[2.5] < 2.8
    assert multipliers[6.0] < 1.0 < multipliers[2.5]


def test_the_last_layer_starts_small() -> None:
    critic = build_critic(CriticConfig(hidden=(24, 12), initialization="orthogonal-small"), 5, 3)
    for weight, gain in zip(critic.weights, (math.sqrt(2), math.sqrt(2), 0.01), strict=True):
        for head in weight.detach():
            square = head @ head.T if head.shape[0] <= head.shape[1] else head.T @ head
            expected = gain**2 * torch.eye(len(square))
            torch.testing.assert_close(square, expected, rtol=1e-4, atol=1e-6)
