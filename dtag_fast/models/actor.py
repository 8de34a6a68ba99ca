"""Actors: MLPs from an observation to an action. Some critics need one to be trained against."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from dtag_fast.models.normalizer import Normalizer


class Actor(nn.Module):
    """A deterministic actor: ReLU layers, and a tanh stretched to the action box.

    Args:
        normalizer: of the observations, S of them; the actor takes them raw.
        action_low: [A], the action box's lower bounds.
        action_high: [A], the upper bounds.
        hidden: widths of the hidden layers.

    Unit actions are those in units where the box is [-1, 1].
    """

    action_low: Tensor
    action_high: Tensor

    outputs_per_action = 1

    def __init__(
        self,
        normalizer: Normalizer,
        action_low: Sequence[float],
        action_high: Sequence[float],
        hidden: Sequence[int] = (256, 256),
    ) -> None:
        super().__init__()
        self.normalizer = normalizer
        self.action_dim = len(action_low)
        self.register_buffer("action_low", torch.tensor(action_low, dtype=torch.float32))
        self.register_buffer("action_high", torch.tensor(action_high, dtype=torch.float32))
        outputs = self.outputs_per_action * self.action_dim
        layers: list[nn.Module] = []
        for fan_in, fan_out in pairwise([normalizer.mean.shape[0], *hidden, outputs]):
            layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, observations: Tensor) -> Tensor:
        """Actions [..., A] for observations [..., S], raw."""
        return self.box_actions(self.unit(observations))

    def unit(self, observations: Tensor) -> Tensor:
        """Unit actions [..., A] for observations [..., S], raw."""
        return torch.tanh(self._outputs(observations))

    def _outputs(self, observations: Tensor) -> Tensor:
        outputs: Tensor = self.layers(self.normalizer(observations)).float()
        return outputs

    def unit_actions(self, actions: Tensor) -> Tensor:
        """Actions [..., A] in units where the box is [-1, 1]."""
        center, half = self._center_and_half_width()
        return (actions - center) / half

    def box_actions(self, actions: Tensor) -> Tensor:
        """The inverse of `unit_actions`."""
        center, half = self._center_and_half_width()
        return center + half * actions

    def _center_and_half_width(self) -> tuple[Tensor, Tensor]:
        return (self.action_high + self.action_low) / 2, (self.action_high - self.action_low) / 2
