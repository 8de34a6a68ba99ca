"""Training of the critic by Implicit Q-Learning (Kostrikov et al. 2021, arXiv 2110.06169).

V learns an expectile of the target Q-heads' minimum at the data's actions; Q learns
r + gamma V(s'). Neither needs an actor, so there is none. Sources: ikostrikov/implicit_q_learning
and, where an option says so, corl-team/CORL (algorithms/offline/iql.py).
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dtag_fast import checkpoint
from dtag_fast.data.rewards import scale_rewards
from dtag_fast.data.trajectories import Trajectories
from dtag_fast.models.critic import ACTIVATIONS, Critic
from dtag_fast.models.normalizer import Normalizer
from dtag_fast.training.config import CriticConfig
from dtag_fast.training.loop import Evaluate, Learner, TrainingResult, run
from dtag_fast.training.optimizer_state import load_optimizer_tensors, optimizer_tensors

ORTHOGONAL_GAIN = math.sqrt(2.0)


def train_critic(
    data: Trajectories,
    config: CriticConfig,
    directory: str | Path,
    *,
    resume: bool = False,
    evaluate: Evaluate | None = None,
) -> TrainingResult:
    """Train an IQL critic on a dataset.

    Args:
        data: the dataset, with raw rewards: `config.reward_scaling` is applied here.
        config: the settings; `critic_preset` has the published ones.
        directory, resume, evaluate: as in `train_policy`; `evaluate` gets the critic.

    Raises:
        As `train_policy`; ValueError also for a `reward_scaling` that does not suit the data.
    """
    build = functools.partial(CriticLearner, data, config)
    return run(build, data, config, directory, resume=resume, evaluate=evaluate)


def load_critic(
    path: str | Path, which: str = "last", device: str | torch.device = "cpu"
) -> tuple[Critic, dict[str, Any]]:
    """The critic of a critic checkpoint and the checkpoint's state.

    Args:
        path: a run's folder or a checkpoint's.
        which: of a run, its "last" or "best" checkpoint.
        device: where the critic goes.

    Raises:
        CheckpointError: missing, damaged, of another version, or not a critic's.
    """
    source = checkpoint.resolve(path, which)
    state = checkpoint.read_state(source, kind="critic")
    config = CriticConfig.from_dict(state["config"])
    critic = build_critic(config, state["observation_dim"], state["action_dim"])
    checkpoint.load_into(critic, checkpoint.load_tensors(source), source)
    return critic.to(device).eval(), state


def build_critic(
    config: CriticConfig,
    observation_dim: int,
    action_dim: int,
    normalizer: Normalizer | None = None,
) -> Critic:
    """The critic of these settings, with fresh weights."""
    critic = Critic(
        observation_dim,
        action_dim,
        config.hidden,
        config.heads,
        config.activation,
        config.layer_norm,
        normalizer,
    )
    if config.initialization == "orthogonal":
        for weight, bias in zip(critic.weights, critic.biases, strict=True):
            for head in weight:
                nn.init.orthogonal_(head, ORTHOGONAL_GAIN)
            nn.init.zeros_(bias)
    return critic


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
        if config.initialization == "orthogonal":
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


class CriticLearner(Learner):
    """Q-heads, their target copy and V, with the dataset on the device."""

    kind = "critic"
    terms = ("q_loss", "value_loss", "q_mean", "value_mean")
    model: Critic

    def __init__(self, data: Trajectories, config: CriticConfig, device: torch.device) -> None:
        if config.normalize_observations:
            normalizer = Normalizer.fit(data.observations, config.observation_epsilon)
        else:
            normalizer = Normalizer.identity(data.observation_dim)
        self.config = config
        self.device = device
        self.sizes = [data.observation_dim, data.action_dim, data.observation_dim, 1, 1]
        self.rows = _packed(data, config).to(device)
        self.generator = np.random.Generator(np.random.PCG64(config.seed))
        self.model = build_critic(config, data.observation_dim, data.action_dim, normalizer)
        self.model = self.model.to(device)
        self.target = copy.deepcopy(self.model).requires_grad_(False)
        self.value = ValueFunction(config, copy.deepcopy(normalizer)).to(device)
        self.q_parameters: list[Tensor] = list(self.model.parameters())
        self.target_parameters: list[Tensor] = list(self.target.parameters())
        self.q_optimizer = torch.optim.Adam(self.q_parameters, config.learning_rate, fused=True)
        self.value_optimizer = torch.optim.Adam(
            self.value.parameters(), config.learning_rate, fused=True
        )
        compiled = torch.compile if config.compile else lambda function: function
        self._value_loss = compiled(self._value_loss_eager)
        self._q_loss = compiled(self._q_loss_eager)
        self._next_values = compiled(self._next_values_eager)

    def update(self, step: int) -> Tensor:
        rows = self.generator.integers(len(self.rows), size=self.config.batch_size)
        index = torch.from_numpy(rows).to(self.device, non_blocking=True)
        batch = self.rows.index_select(0, index)
        return self.update_on(*torch.split(batch, self.sizes, dim=1))

    def update_on(
        self,
        observations: Tensor,
        actions: Tensor,
        next_observations: Tensor,
        rewards: Tensor,
        continues: Tensor,
    ) -> Tensor:
        """One update on [B, S], [B, A], [B, S], [B, 1] scaled, [B, 1] (0 after a termination)."""
        joint = self.config.update_order == "joint"
        if joint:
            next_values = self._next_values(next_observations)

        value_loss, value_mean = self._value_loss(observations, actions)
        self.value_optimizer.zero_grad(set_to_none=True)
        value_loss.backward()
        self.value_optimizer.step()

        if not joint:
            next_values = self._next_values(next_observations)
        targets = (rewards + self.config.discount * continues * next_values.unsqueeze(1)).squeeze(1)
        q_loss, q_mean = self._q_loss(observations, actions, targets)
        self.q_optimizer.zero_grad(set_to_none=True)
        q_loss.backward()
        self.q_optimizer.step()

        with torch.no_grad():
            torch._foreach_lerp_(self.target_parameters, self.q_parameters, self.config.polyak)
        return torch.stack((q_loss, value_loss, q_mean, value_mean)).detach()

    def _value_loss_eager(self, observations: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        with self._precision():
            with torch.no_grad():
                q = self.target(observations, actions).amin(dim=0).float()
            values = self.value(observations).float()
        return expectile_loss(q - values, self.config.expectile), values.mean()

    def _next_values_eager(self, next_observations: Tensor) -> Tensor:
        with torch.no_grad(), self._precision():
            values: Tensor = self.value(next_observations)
        return values.float()

    def _q_loss_eager(
        self, observations: Tensor, actions: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        with self._precision():
            q = self.model(observations, actions).float()  # [E, B]
        losses = (q - targets).square().mean(dim=1)  # [E]
        loss = losses.sum() if self.config.q_reduction == "sum" else losses.mean()
        return loss, q.mean()

    def _precision(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.config.autocast)

    def training_tensors(self) -> dict[str, Tensor]:
        return {
            **{f"target.{name}": tensor for name, tensor in self.target.state_dict().items()},
            **{f"value.{name}": tensor for name, tensor in self.value.state_dict().items()},
            **optimizer_tensors("q_optimizer", self.q_optimizer),
            **optimizer_tensors("value_optimizer", self.value_optimizer),
        }

    def load_training_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        for prefix, module in (("target", self.target), ("value", self.value)):
            module.load_state_dict(
                {name: tensors[f"{prefix}.{name}"] for name in module.state_dict()}
            )
        load_optimizer_tensors("q_optimizer", self.q_optimizer, tensors)
        load_optimizer_tensors("value_optimizer", self.value_optimizer, tensors)

    def sampler_state(self) -> dict[str, Any]:
        return dict(self.generator.bit_generator.state)

    def load_sampler_state(self, state: Mapping[str, Any]) -> None:
        self.generator.bit_generator.state = state


def _packed(data: Trajectories, config: CriticConfig) -> Tensor:
    """One row a transition, so that a batch is one gather: s, a, s', scaled r, 1 - terminal."""
    scaled = scale_rewards(data, config.reward_scaling)
    low, high = np.asarray(data.info.action_low), np.asarray(data.info.action_high)
    margin = config.action_margin * (high - low) / 2
    rows = np.concatenate(
        (
            data.observations,
            np.clip(data.actions, low + margin, high - margin),
            data.next_observations,
            scaled.rewards[:, None],
            ~data.terminations[:, None],
        ),
        axis=1,
        dtype=np.float32,
        casting="same_kind",
    )
    return torch.from_numpy(rows)
