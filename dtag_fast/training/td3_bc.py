"""Training of the critic by TD3+BC (Fujimoto & Gu 2021, arXiv 2106.06860).

Q learns r + gamma min Q'(s', pi'(s') + noise); the actor pi, which is needed for that alone, climbs
Q and stays near the data's actions. Source: sfujim/TD3_BC (TD3_BC.py).
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping

import torch
from torch import Tensor

from dtag_fast.data.trajectories import Trajectories
from dtag_fast.models.actor import Actor
from dtag_fast.training.captured import CapturedUpdate, captures
from dtag_fast.training.config import CriticConfig
from dtag_fast.training.critic import Batch, TransitionLearner, follow, frozen, step


class Td3BcLearner(TransitionLearner):
    """The Q-heads and a deterministic actor, both with target copies."""

    terms = ("q_loss", "actor_loss", "q_mean", "actor_error")

    def __init__(self, data: Trajectories, config: CriticConfig, device: torch.device) -> None:
        super().__init__(data, config, device)
        self.options = config.td3_bc
        self.actor = Actor(
            copy.deepcopy(self.normalizer),
            data.info.action_low,
            data.info.action_high,
            self.options.actor_hidden,
        ).to(device)
        self.actor_target = copy.deepcopy(self.actor).requires_grad_(False)
        self.actor_optimizer = torch.optim.Adam(
            self.actor.parameters(), self.options.actor_learning_rate, fused=True
        )
        self.modules |= {"actor": self.actor, "actor_target": self.actor_target}
        self.optimizers["actor_optimizer"] = self.actor_optimizer
        # The actor's loss and error when it was last updated: a step in between repeats them.
        self.actor_terms = torch.zeros(2, device=device)
        self._targets = self.compiled(self._targets_eager)
        self._q_loss = self.compiled(self._q_loss_eager)
        self._actor_loss = self.compiled(self._actor_loss_eager)
        self.captured_with_actor: CapturedUpdate | None = None
        if captures(config, device):
            self.capture()

    def capture(self) -> None:
        """Update by two CUDA graphs from now on, without the actor and with it."""
        self.captured, self.captured_with_actor = (
            self.of_rows(
                functools.partial(self.update_on, with_actor=with_actor), [self.actor_terms]
            )
            for with_actor in (False, True)
        )

    def update(self, step: int) -> Tensor:
        with_actor = step % self.options.actor_every == 0
        captured = self.captured_with_actor if with_actor else self.captured
        if captured is not None:
            return captured(self.drawn_rows())
        return self.update_on(self.batch(), with_actor)

    def update_on(self, batch: Batch, with_actor: bool) -> Tensor:
        """One update; without the actor, the target networks stay as they are as well."""
        observations, actions, next_observations, rewards, continues = batch
        targets = self._targets(next_observations, rewards, continues)
        q_loss, q_mean = self._q_loss(observations, actions, targets)
        step(self.q_optimizer, q_loss)
        if with_actor:
            with frozen(self.model):
                actor_loss, actor_error = self._actor_loss(observations, actions)
            step(self.actor_optimizer, actor_loss)
            self.actor_terms.copy_(torch.stack((actor_loss, actor_error)).detach())
            follow(self.target, self.model, self.config.polyak)
            follow(self.actor_target, self.actor, self.config.polyak)
        actor_loss, actor_error = self.actor_terms
        return torch.stack((q_loss, actor_loss, q_mean, actor_error)).detach()

    def _targets_eager(
        self, next_observations: Tensor, rewards: Tensor, continues: Tensor
    ) -> Tensor:
        with torch.no_grad(), self.precision():
            proposed = self.actor_target.unit(next_observations)
            noise = torch.randn_like(proposed) * self.options.noise
            limit = self.options.noise_clip
            smoothed = (proposed + noise.clamp(-limit, limit)).clamp(-1.0, 1.0)
            q = self.target(next_observations, self.actor_target.box_actions(smoothed))
        return self.targets(rewards, continues, q.amin(dim=0).float())

    def _q_loss_eager(
        self, observations: Tensor, actions: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        with self.precision():
            q = self.model(observations, actions).float()  # [E, B]
        return self.q_error(q, targets), q.mean()

    def _actor_loss_eager(self, observations: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """-lambda Q_1(s, pi(s)) + (pi(s) - a)^2, lambda = alpha / mean |Q_1| (eq. 5)."""
        with self.precision():
            proposed = self.actor.unit(observations)
            q = self.model(observations, self.actor.box_actions(proposed))[0].float()
        error = (proposed - self.actor.unit_actions(actions)).square().mean()
        # Q may be 0 everywhere, as it is at the start of a problem without rewards.
        size = q.abs().mean().detach().clamp(min=torch.finfo(torch.float32).tiny)
        return -self.options.q_weight * q.mean() / size + error, error

    def training_tensors(self) -> dict[str, Tensor]:
        return super().training_tensors() | {"actor_terms": self.actor_terms}

    def load_training_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        super().load_training_tensors(tensors)
        self.actor_terms.copy_(tensors["actor_terms"])
