"""The critic as dense tiles compute it (csrc/cuda/dense_tiles.h): rounded in the same places."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dtag_fast import Critic


class Rounded(nn.Module):
    """Two hidden layers of ReLU: the weights between them, h_1 and w relu'(z_2) in bfloat16.

    z_1 is what float32 makes of it bit for bit, since h_1's rounding may turn on its last digit;
    all else is float64. The gradient of a head is rounded before the ensemble weighs it.
    """

    def __init__(self, critic: Critic) -> None:
        super().__init__()
        self.critic = critic

    def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Q [E, B]."""
        q, gradient = self.evaluate(observations, actions)
        value: Tensor = _WithGradient.apply(actions, q, gradient)  # type: ignore[no-untyped-call]
        return value

    @torch.no_grad()
    def evaluate(self, observations: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """q [E, B] and its gradient [E, B, A], of each head."""
        z_2, first = self.hidden(observations, actions)
        top, bias = self.critic.weights[2].double(), self.critic.biases[2].double()
        q = (z_2.clamp(min=0) @ top.mT).squeeze(2) + bias
        slopes = _bfloat16(torch.where(z_2 > 0, top, 0.0))
        back = torch.where(first > 0, slopes @ _bfloat16(self.critic.weights[1]), 0.0)
        of_action = self.critic.weights[0][:, :, self.critic.observation_dim :].double()
        return q.to(actions), (back @ of_action).to(actions)

    @torch.no_grad()
    def hidden(self, observations: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """z_2 and z_1, [E, B, H]."""
        normalizer = self.critic.normalizer
        standardised = (observations.float() - normalizer.mean) * (1 / normalizer.std)
        z_1 = self.critic.biases[0][:, None, :].expand(-1, len(actions), -1).double()
        inputs = torch.cat([standardised, actions.float()], dim=1).double()
        for x, weight in zip(inputs.T, self.critic.weights[0].double().unbind(2), strict=True):
            # A product of two floats is exact in float64: this is a fused multiply-add of float32.
            z_1 = (z_1 + x[:, None] * weight[:, None, :]).float().double()
        h_1 = _bfloat16(z_1.clamp(min=0))
        z_2 = (
            h_1 @ _bfloat16(self.critic.weights[1]).mT + self.critic.biases[1][:, None, :].double()
        )
        return z_2, z_1


class _WithGradient(torch.autograd.Function):
    """Numbers whose gradient by the actions is known."""

    @staticmethod
    def forward(ctx: Any, actions: Tensor, q: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return q.clone()

    @staticmethod
    def backward(ctx: Any, *given: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return (given[0][:, :, None] * gradient).sum(0), None, None


def _bfloat16(x: Tensor) -> Tensor:
    return x.float().to(torch.bfloat16).double()
