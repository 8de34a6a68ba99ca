"""Training of the critic by Implicit Q-Learning (Kostrikov et al. 2021, arXiv 2110.06169).

V learns an expectile of the target Q-heads' minimum at the data's actions; Q learns
r + gamma V(s'). Neither needs an actor, so there is none. Sources: ikostrikov/implicit_q_learning
and, where an option says so, corl-team/CORL (algorithms/offline/iql.py).
"""

from __future__ import annotations

import copy
from itertools import pairwise

import torch
from torch import Tensor, nn

from dtag_fast.data.trajectories import Trajectories
from dtag_fast.models.critic import ACTIVATIONS
from dtag_fast.models.normalizer import Normalizer
from dtag_fast.training.captured import captures
from dtag_fast.training.config import CriticConfig
from dtag_fast.training.critic import ORTHOGONAL_GAIN, TransitionLearner
from dtag_fast.training.distributed import Group
from dtag_fast.training.native_iql import NativeIql, Trained, unsupported_reason


class ValueFunction(nn.Module):
    """V(s), an MLP with the critic's hidden layers. Needed in training alone."""

    def __init__(self, config: CriticConfig, normalizer: Normalizer) -> None:
        super().__init__()
        self.normalizer = normalizer
        widths = [normalizer.mean.shape[0], *config.hidden, 1]
        layers = [nn.Linear(fan_in, fan_out) for fan_in, fan_out in pairwise(widths)]
        self.layers = nn.ModuleList(layers)
        self.norms = nn.ModuleList(
            nn.LayerNorm(width) if config.layer_norm else nn.Identity() for width in config.hidden
        )
        self.activation = ACTIVATIONS[config.activation]
        if config.initialization != "default":
            for layer in layers:
                nn.init.orthogonal_(layer.weight, ORTHOGONAL_GAIN)
                nn.init.zeros_(layer.bias)

    def forward(self, observations: Tensor) -> Tensor:
        """V [B] of observations [B, S], raw."""
        x = self.normalizer(observations)
        for layer, norm in zip(self.layers[:-1], self.norms, strict=True):
            x = self.activation(norm(layer(x)))
        value: Tensor = self.layers[-1](x).squeeze(-1)
        return value


def expectile_loss(difference: Tensor, expectile: float) -> Tensor:
    """Mean of |tau - 1[u < 0]| u^2 over differences u [B] (eq. 5 of the paper)."""
    weight = torch.where(difference < 0, 1.0 - expectile, expectile)
    return (weight * difference.square()).mean()


class CriticLearner(TransitionLearner):
    """The Q-heads and V.

    `update_on` is the update in torch; `update` takes the native one where `config.backend` lets
    it.
    """

    terms = ("q_loss", "value_loss", "q_mean", "value_mean")

    def __init__(self, data: Trajectories, config: CriticConfig, device: torch.device) -> None:
        native = _takes_native(config, device)
        super().__init__(data, config, device)
        self.value = ValueFunction(config, copy.deepcopy(self.normalizer)).to(device)
        self.value_optimizer = torch.optim.Adam(
            self.value.parameters(), config.learning_rate, fused=True
        )
        self.modules["value"] = self.value
        self.optimizers["value_optimizer"] = self.value_optimizer
        self._value_loss = self.compiled(self._value_loss_eager)
        self._q_loss = self.compiled(self._q_loss_eager)
        self._next_values = self.compiled(self._next_values_eager)
        self.native = self._make_native() if native else None
        if captures(config, device):
            self.capture()

    def capture(self) -> None:
        """Update by a CUDA graph from now on."""
        self.captured = self.of_rows(lambda batch: self.update_on(*batch))

    def _make_native(self) -> NativeIql:
        layers = zip(self.model.weights, self.model.biases, strict=True)
        targets = zip(self.target.weights, self.target.biases, strict=True)
        q = Trained(
            [tensor for layer in layers for tensor in layer],
            self.q_optimizer,
            [tensor for layer in targets for tensor in layer],
        )
        value = Trained(
            [p for layer in self.value.layers for p in layer.parameters()], self.value_optimizer
        )
        normalizer = self.model.normalizer
        return NativeIql(self.config, self.rows, normalizer.mean, normalizer.std, q, value)

    def use_rows(self, rows: Tensor) -> None:
        """Read another learner's equal rows instead of own ones."""
        self.rows = rows
        if self.native is not None:
            self.native = self._make_native()

    def update(self, step: int) -> Tensor:
        if self.native is not None:
            return self.native.step(self.drawn_rows())
        if self.captured is not None:
            return self.captured(self.drawn_rows())
        rows = self.group.part(self.config.batch_size)
        return self.update_on(*(column[rows] for column in self.batch()))

    def join(self, group: Group) -> None:
        if self.config.backend == "native":
            raise ValueError(
                f"backend: 'native' computes whole batches in one process, not in {group.world}"
            )
        self.group, self.native, self.captured = group, None, None

    def update_on(
        self,
        observations: Tensor,
        actions: Tensor,
        next_observations: Tensor,
        rewards: Tensor,
        continues: Tensor,
    ) -> Tensor:
        """One update on [B, S], [B, A], [B, S], [B, 1] scaled, [B, 1] (0 after a termination).

        With several processes these are this one's part of the batch.
        """
        share = 1.0 if self.group.alone else len(observations) / self.config.batch_size
        joint = self.config.update_order == "joint"
        if joint:
            next_values = self._next_values(next_observations)

        value_loss, value_mean = self._value_loss(observations, actions)
        self.value_optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(value_loss * share)
        self.group.sum_gradients(list(self.value.parameters()))
        self.value_optimizer.step()

        if not joint:
            next_values = self._next_values(next_observations)
        targets = self.targets(rewards, continues, next_values)
        q_loss, q_mean = self._q_loss(observations, actions, targets)
        self.q_optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(q_loss * share)
        self.group.sum_gradients(self.q_parameters)
        self.q_optimizer.step()

        with torch.no_grad():
            torch._foreach_lerp_(self.target_parameters, self.q_parameters, self.config.polyak)
        return torch.stack((q_loss, value_loss, q_mean, value_mean)).detach() * share

    def _value_loss_eager(self, observations: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        with self.precision():
            with torch.no_grad():
                q = self.target(observations, actions).amin(dim=0).float()
            values = self.value(observations).float()
        return expectile_loss(q - values, self.config.expectile), values.mean()

    def _next_values_eager(self, next_observations: Tensor) -> Tensor:
        with torch.no_grad(), self.precision():
            values: Tensor = self.value(next_observations)
        return values.float()

    def _q_loss_eager(
        self, observations: Tensor, actions: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        with self.precision():
            q = self.model(observations, actions).float()  # [E, B]
        return self.q_error(q, targets), q.mean()


def _takes_native(config: CriticConfig, device: torch.device) -> bool:
    if config.backend == "torch":
        return False
    reason = unsupported_reason(config, device)
    if config.backend == "native" and reason is not None:
        raise ValueError(f"backend: 'native' cannot train this critic: {reason}")
    return reason is None
