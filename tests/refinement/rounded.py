"""The critic as dense tiles compute it (csrc/cuda/dense_tiles.h): rounded in the same places."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from dtag_fast import Critic

EXACT = 2e-5  # sums of float32, which tensor cores cut
LAST_DIGITS = 2.0**-21  # of z_1's sum of the observation's share and products with the action


class Rounded(nn.Module):
    """Two hidden layers of ReLU: the weights between them, h_1 and w relu'(z_2) in bfloat16.

    z_1 is what float32 makes of it, all else float64. The gradient of a head is rounded before the
    ensemble weighs it. Where z_1 lies within its own rounding of where h_1's turns, h_1 is either
    of two numbers, which `doubt` knows.
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
    def doubt(self, observations: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """By how much q [E, B] may differ with z_1's last digits; and whether no unit is so near to
        a kink that a gradient may [B], of sums of float32 besides.
        """
        z_2, z_1 = self.hidden(observations, actions)
        size = self.hidden(observations, torch.zeros_like(actions))[1].abs()  # the observation's
        of_action = self.critic.weights[0][:, :, self.critic.observation_dim :].double()
        error = LAST_DIGITS * (size + actions.double().abs() @ of_action.abs().mT)
        between = _bfloat16(z_1 + error).clamp(min=0) - _bfloat16(z_1 - error).clamp(min=0)
        of_z_2 = between @ _bfloat16(self.critic.weights[1]).abs().mT
        of_q = (of_z_2 @ self.critic.weights[2].double().abs().mT).squeeze(2)
        clear = (z_1.abs() > error).all(2) & (z_2.abs() > EXACT + of_z_2).all(2)
        apart = torch.ones(len(actions), dtype=torch.bool, device=actions.device)
        if self.critic.heads > 1:
            lowest = self.evaluate(observations, actions)[0].sort(0).values
            apart = lowest[1] - lowest[0] > EXACT + of_q.sum(0)
        return of_q, clear.all(0) & apart

    def assert_q(self, found: Tensor, observations: Tensor, actions: Tensor) -> None:
        """That it is the lower head's [B], but for sums of float32 and where h_1 is in doubt."""
        q = self(observations, actions).amin(0)
        of_q, _ = self.doubt(observations, actions)
        error = (found - q).abs() - EXACT * q.abs() - of_q.amax(0)
        assert (error <= EXACT).all(), error.sort().values

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


def of_sizes(critic: Critic, sizes: tuple[float, ...], first: float, rest: float) -> Critic:
    """A critic with the same Q, but for `rest`, of actions times `sizes`, and z_1 times `first`."""
    scaled = copy.deepcopy(critic)
    with torch.no_grad():
        scaled.weights[0][:, :, critic.observation_dim :] /= torch.tensor(sizes)
        for tensor in (scaled.weights[0], scaled.biases[0]):
            tensor *= first
        scaled.weights[1] /= first
        scaled.weights[2] *= rest
    return scaled


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
