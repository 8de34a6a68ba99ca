"""Actors: MLPs from an observation to an action. Some critics need one to be trained against."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dtag_fast.models.action_box import ActionBox
from dtag_fast.models.normalizer import Normalizer

LOG_STD_RANGE = (-20.0, 2.0)
INITIAL_LOG_STD = -1.0
INITIAL_OUTPUT_GAIN = 1e-2


class Actor(ActionBox, nn.Module):
    """A deterministic actor: ReLU layers, and a tanh stretched to the action box.

    Args:
        normalizer: of the observations, S of them; the actor takes them raw.
        action_low: [A], the action box's lower bounds.
        action_high: [A], the upper bounds.
        hidden: widths of the hidden layers.

    Unit actions are those in units where the box is [-1, 1].
    """

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


class TanhGaussianActor(Actor):
    """An actor whose unit actions are the tanh of a Gaussian, as SAC's.

    Haarnoja et al. 2018 (arXiv 1812.05905), initialised as in corl-team/CORL
    (algorithms/offline/cql.py): around the box's centre, with log_std near -1.
    """

    outputs_per_action = 2

    def __init__(
        self,
        normalizer: Normalizer,
        action_low: Sequence[float],
        action_high: Sequence[float],
        hidden: Sequence[int] = (256, 256),
    ) -> None:
        super().__init__(normalizer, action_low, action_high, hidden)
        last = self.layers[-1]
        assert isinstance(last, nn.Linear)
        nn.init.xavier_uniform_(last.weight, INITIAL_OUTPUT_GAIN)
        with torch.no_grad():
            mean, log_std = torch.chunk(last.bias, 2)
            mean.zero_()
            log_std.fill_(INITIAL_LOG_STD)

    def unit(self, observations: Tensor) -> Tensor:
        """The tanh of the Gaussian's mean [..., A] for observations [..., S], raw."""
        return torch.tanh(torch.chunk(self._outputs(observations), 2, dim=-1)[0])

    def sample(self, observations: Tensor, count: int | None = None) -> tuple[Tensor, Tensor]:
        """Random unit actions for observations [B, S], and the log of their density.

        Args:
            observations: raw.
            count: n, or None for one.

        Returns:
            [B, A] and [B], or [n, B, A] and [n, B]. Gradients flow through both.
        """
        mean, log_std = torch.chunk(self._outputs(observations), 2, dim=-1)
        log_std = log_std.clamp(*LOG_STD_RANGE)
        shape = mean.shape if count is None else (count, *mean.shape)
        noise = torch.randn(shape, device=mean.device)
        before = mean + log_std.exp() * noise
        log_density = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)
        # log(1 - tanh(u)^2), which rounds to log 0 where it is written so
        log_slope = 2.0 * (math.log(2.0) - before - F.softplus(-2.0 * before))
        return torch.tanh(before), (log_density - log_slope).sum(dim=-1)
