"""Training of an ensemble that knows what it does not know: E critics that share their data alone.

Each head is trained by IQL (see `iql`) on targets of its own: V_e learns an expectile of its target
head's Q_e, and Q_e learns r + gamma V_e(s'). Heads that share a target, as twins do, agree also
where they know nothing; with targets of their own their spread tells how far Q is to be trusted
(Ghasemipour et al. 2022, arXiv 2205.13703), which is what refinement with `ensemble="lcb"` asks.

Optionally the heads' gradients in the action are turned away from each other at the data's actions,
so that fewer heads disagree elsewhere (An et al. 2021, arXiv 2110.01548, EDAC; there with
SAC's actor, which IQL's values make unnecessary). The combination is ours.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from dtag_fast.data.trajectories import Trajectories
from dtag_fast.models.critic import Critic
from dtag_fast.training.captured import captures
from dtag_fast.training.config import CriticConfig
from dtag_fast.training.critic import Batch, TransitionLearner, build_critic, follow, step
from dtag_fast.training.iql import expectile_loss

EPSILON = 1e-10  # of EDAC, in the length that gradients are divided by


class EnsembleLearner(TransitionLearner):
    """The Q-heads and as many Vs."""

    def __init__(self, data: Trajectories, config: CriticConfig, device: torch.device) -> None:
        super().__init__(data, config, device)
        self.terms = ("q_loss", "value_loss", "q_mean", "q_spread")
        if config.ensemble.diversity > 0:
            self.terms = (*self.terms, "alignment")
        # See `values_of_heads`.
        self.value = build_critic(config, data.observation_dim, 1, copy.deepcopy(self.normalizer))
        self.value = self.value.to(device)
        self.value_optimizer = torch.optim.Adam(
            self.value.parameters(), config.learning_rate, fused=True
        )
        self.modules["value"] = self.value
        self.optimizers["value_optimizer"] = self.value_optimizer
        self._value_loss = self.compiled(self._value_loss_eager)
        self._next_values = self.compiled(self._next_values_eager)
        self._q_loss = self.compiled(self._q_loss_eager)
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
        """One update."""
        observations, actions, next_observations, rewards, continues = batch
        joint = self.config.update_order == "joint"
        if joint:
            next_values = self._next_values(next_observations)
        value_loss = self._value_loss(observations, actions)
        step(self.value_optimizer, value_loss)
        if not joint:
            next_values = self._next_values(next_observations)
        targets = self.targets(rewards, continues, next_values)  # [E, B]
        q_loss, q_mean, q_spread = self._q_loss(observations, actions, targets)
        terms = [q_loss, value_loss, q_mean, q_spread]
        loss = q_loss
        if self.config.ensemble.diversity > 0:
            with self.precision():
                alignment = gradient_alignment(self.model, observations, actions)
            loss = q_loss + self.config.ensemble.diversity * alignment
            terms.append(alignment)
        step(self.q_optimizer, loss)
        follow(self.target, self.model, self.config.polyak)
        return torch.stack(terms).detach()

    def _value_loss_eager(self, observations: Tensor, actions: Tensor) -> Tensor:
        with self.precision():
            with torch.no_grad():
                q = self.target(observations, actions).float()
            values = values_of_heads(self.value, observations)
        # Summed over the heads: each learns as it would alone.
        return self.config.heads * expectile_loss(q - values, self.config.expectile)

    def _next_values_eager(self, next_observations: Tensor) -> Tensor:
        with torch.no_grad(), self.precision():
            return values_of_heads(self.value, next_observations)

    def _q_loss_eager(
        self, observations: Tensor, actions: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Squared error, mean Q, and the mean standard deviation of a row's heads."""
        with self.precision():
            q = self.model(observations, actions).float()  # [E, B]
        return self.q_error(q, targets), q.mean(), q.std(dim=0, correction=0).mean()


def values_of_heads(value: Critic, observations: Tensor) -> Tensor:
    """V [E, B] of an ensemble: a critic of one action, always 0, for heads batched as Q's."""
    values: Tensor = value(observations, torch.zeros_like(observations[:, :1]))
    return values.float()


def gradient_alignment(critic: Critic, observations: Tensor, actions: Tensor) -> Tensor:
    """Sum over pairs i != j of cos(grad_a Q_i, grad_a Q_j) / (E - 1), mean over the batch.

    E where all heads' gradients [B, A] point the same way, 0 where they are orthogonal.
    """
    own = actions.expand(critic.heads, *actions.shape).detach().requires_grad_()
    q = critic(observations.expand(critic.heads, *observations.shape), own)
    (gradients,) = torch.autograd.grad(q.sum(), own, create_graph=True)  # [E, B, A]
    directions = gradients.float()
    directions = directions / (directions.norm(dim=2, keepdim=True) + EPSILON)
    pairs = directions.sum(dim=0).square().sum(dim=1) - directions.square().sum(dim=(0, 2))  # [B]
    alignment: Tensor = pairs.mean() / (critic.heads - 1)
    return alignment
