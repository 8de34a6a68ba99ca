"""Training of the critic by Conservative Q-Learning (Kumar et al. 2020, arXiv 2006.04779).

Q learns r + gamma min Q'(s', a'), a' of an actor trained by SAC, and besides to be low at actions
in general and high at the data's: the gap between a soft maximum over actions and Q(s, a) is a term
of its loss. The actor is needed in training alone. Source: corl-team/CORL
(algorithms/offline/cql.py), which is after young-geng/CQL. Left out, as no configuration there uses
them: entropy in the target, the maximum over several next actions, clipped gaps; and the learned
multiplier of log_std, whose output layer has weights of its own.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping

import torch
from torch import Tensor

from dtag_fast.data.trajectories import Trajectories
from dtag_fast.models.actor import TanhGaussianActor
from dtag_fast.training.captured import captures
from dtag_fast.training.config import CriticConfig
from dtag_fast.training.critic import Batch, TransitionLearner, follow, frozen, step

INITIAL_LOG_MULTIPLIER = 1.0
LARGEST_MULTIPLIER = 1e6


class CqlLearner(TransitionLearner):
    """The Q-heads, a stochastic actor, its temperature and, with Lagrange, the gap's multiplier."""

    def __init__(self, data: Trajectories, config: CriticConfig, device: torch.device) -> None:
        super().__init__(data, config, device)
        self.options = options = config.cql
        self.terms = ("q_loss", "gap", "actor_loss", "q_mean", "entropy", "temperature")
        if options.lagrange:
            self.terms = (*self.terms, "multiplier")
        self.actor = TanhGaussianActor(
            copy.deepcopy(self.normalizer),
            data.info.action_low,
            data.info.action_high,
            options.actor_hidden,
        ).to(device)
        self.log_temperature = torch.zeros((), device=device, requires_grad=True)
        self.log_multiplier = torch.full(
            (), INITIAL_LOG_MULTIPLIER, device=device, requires_grad=True
        )
        self.target_entropy = -float(data.action_dim)
        rate = options.actor_learning_rate
        self.actor_optimizer = torch.optim.Adam(self.actor.parameters(), rate, fused=True)
        self.temperature_optimizer = torch.optim.Adam([self.log_temperature], rate, fused=True)
        self.multiplier_optimizer = torch.optim.Adam(
            [self.log_multiplier], config.learning_rate, fused=True
        )
        self.modules["actor"] = self.actor
        self.optimizers |= {
            "actor_optimizer": self.actor_optimizer,
            "temperature_optimizer": self.temperature_optimizer,
            "multiplier_optimizer": self.multiplier_optimizer,
        }
        self._actor_loss = self.compiled(self._actor_loss_eager)
        self._targets = self.compiled(self._targets_eager)
        self._q_losses = self.compiled(self._q_losses_eager)
        if captures(config, device):
            self.capture()

    def capture(self) -> None:
        """Update by a CUDA graph from now on."""
        self.captured = self.of_rows(self.update_on)

    def update(self, step: int) -> Tensor:
        if self.captured is not None:
            return self.captured(self.drawn_rows())
        return self.update_on(self.batch())

    def update_on(self, batch: Batch) -> Tensor:
        """One update. Each loss is of the networks as they were before it."""
        observations, actions, next_observations, rewards, continues = batch
        temperature = self.log_temperature.detach().exp()
        with frozen(self.model):
            actor_loss, log_density = self._actor_loss(observations, temperature)
        targets = self._targets(next_observations, rewards, continues)
        error, gap, q_mean = self._q_losses(observations, actions, next_observations, targets)

        # The temperature rises while the entropy is below its target, the multiplier while the gap
        # is above its own.
        step(
            self.temperature_optimizer,
            -self.log_temperature * (log_density + self.target_entropy),
        )
        penalty = self.options.weight * gap
        terms = [error, gap, actor_loss, q_mean, -log_density, temperature]
        if self.options.lagrange:
            multiplier = self.log_multiplier.exp().clamp(max=LARGEST_MULTIPLIER)
            excess = gap.detach() - self.options.target_gap
            step(self.multiplier_optimizer, -multiplier * self.options.weight * excess)
            penalty = multiplier.detach() * penalty
            terms.append(multiplier)
        step(self.actor_optimizer, actor_loss)
        if self.config.q_reduction == "sum":  # of the gap, too
            penalty = self.config.heads * penalty
        step(self.q_optimizer, error + penalty)
        follow(self.target, self.model, self.config.polyak)
        return torch.stack(terms).detach()

    def _actor_loss_eager(self, observations: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor]:
        """SAC's: temperature * log pi(a | s) - min Q(s, a), a of pi; and the mean log density."""
        with self.precision():
            proposed, log_density = self.actor.sample(observations)
            q = self.model(observations, self.actor.box_actions(proposed)).amin(dim=0).float()
        return (temperature * log_density - q).mean(), log_density.detach().mean()

    def _targets_eager(
        self, next_observations: Tensor, rewards: Tensor, continues: Tensor
    ) -> Tensor:
        with torch.no_grad(), self.precision():
            proposed, _ = self.actor.sample(next_observations)
            q = self.target(next_observations, self.actor.box_actions(proposed))
        return self.targets(rewards, continues, q.amin(dim=0).float())

    def _q_losses_eager(
        self, observations: Tensor, actions: Tensor, next_observations: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Squared error to the targets, mean gap over heads and batch, mean Q of the data."""
        proposed, log_densities = self._proposals(observations, next_observations)
        count, batch = log_densities.shape
        with self.precision():
            q = self.model(observations, actions).float()  # [E, B]
            q_proposed = self.model(
                observations.repeat(count, 1), self.actor.box_actions(proposed).flatten(0, 1)
            ).float()
        q_proposed = q_proposed.view(-1, count, batch)
        soft_maximum = soft_maximum_over_actions(
            q_proposed, log_densities, self.options.temperature
        )
        return self.q_error(q, targets), (soft_maximum - q).mean(), q.mean()

    def _proposals(self, observations: Tensor, next_observations: Tensor) -> tuple[Tensor, Tensor]:
        """Unit actions [3 n, B, A] that the soft maximum is estimated from, and log densities.

        n uniform ones, n of the actor at s' and n of the actor at s; nothing gets a gradient
        through them.
        """
        count = self.options.samples
        shape = (count, len(observations), self.actor.action_dim)
        with torch.no_grad(), self.precision():
            uniform = 2.0 * torch.rand(shape, device=self.device) - 1.0
            next_proposed, next_log_densities = self.actor.sample(next_observations, count)
            proposed, log_densities = self.actor.sample(observations, count)
        uniform_log_densities = torch.full_like(log_densities, -self.actor.action_dim * math.log(2))
        return (
            torch.cat((uniform, next_proposed, proposed)),
            torch.cat((uniform_log_densities, next_log_densities, log_densities)),
        )

    def training_tensors(self) -> dict[str, Tensor]:
        return super().training_tensors() | {
            "log_temperature": self.log_temperature.detach(),
            "log_multiplier": self.log_multiplier.detach(),
        }

    def load_training_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        super().load_training_tensors(tensors)
        with torch.no_grad():
            self.log_temperature.copy_(tensors["log_temperature"])
            self.log_multiplier.copy_(tensors["log_multiplier"])


def soft_maximum_over_actions(q: Tensor, log_densities: Tensor, temperature: float) -> Tensor:
    """t log sum exp((Q - log density) / t) [E, B] of samples' Q [E, N, B], log densities [N, B].

    At t = 1 the importance-sampled log of the integral of exp Q over unit actions, plus log N.
    """
    return temperature * torch.logsumexp((q - log_densities) / temperature, dim=1)
