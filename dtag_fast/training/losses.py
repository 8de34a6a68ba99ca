"""Losses of the sequence models, as means over a batch's real steps."""

from __future__ import annotations

import math

import torch
from torch import Tensor

HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of values [B, W] where the mask is True."""
    return torch.where(mask, values, 0.0).sum() / mask.sum()


def action_mse(
    predicted: Tensor, actions: Tensor, mask: Tensor, weights: Tensor | None = None
) -> Tensor:
    """Decision Transformer's loss: squared error of actions [B, K, A], mean over A and steps.

    With weights [B, K], the mean of the errors times these.
    """
    error = (predicted - actions).square().mean(dim=-1)
    return masked_mean(error if weights is None else weights * error, mask)


def action_nll(
    predicted: Tensor,
    log_std: Tensor,
    actions: Tensor,
    mask: Tensor,
    weights: Tensor | None = None,
) -> Tensor:
    """Negative log-likelihood under Normal(predicted [B, K, A], exp(log_std [A])).

    Summed over A, mean over real steps, each times its weight where there are weights [B, K].
    """
    standardized = (actions - predicted) * torch.exp(-log_std)
    nll = (0.5 * standardized.square() + log_std + HALF_LOG_2PI).sum(dim=-1)
    return masked_mean(nll if weights is None else weights * nll, mask)


def normal_entropy(log_std: Tensor) -> Tensor:
    """Entropy of a Normal with independent components of log_std [A]."""
    return (0.5 + HALF_LOG_2PI + log_std).sum()


def return_expectile_loss(
    predicted: Tensor,
    returns_to_go: Tensor,
    mask: Tensor,
    expectile: float,
    rtg_scale: float,
    norm: Tensor | None = None,
) -> Tensor:
    """Reinformer's return loss: mean of |tau - 1[u < 0]| u^2, u = (R - R_hat) / mean |R|.

    All [B, K]. Where every return of the batch is 0, u is in units of `rtg_scale`. `norm` is mean
    |R| of a batch of which this is a part.
    """
    if norm is None:
        norm = masked_mean(returns_to_go.abs(), mask)
    u = (returns_to_go - predicted) / torch.where(norm > 0, norm, rtg_scale)
    weight = torch.where(u < 0, 1.0 - expectile, expectile)
    return masked_mean(weight * u.square(), mask)
