"""Standardisation of observations. A policy and a critic each carry their own."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn


class Normalizer(nn.Module):
    """(observation - mean) / std, as buffers, so that it is saved and moved with its model.

    Args:
        mean: [S].
        std: [S], positive. An epsilon, where a paper adds one, is already in it (see `fit`).
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, mean: Tensor | NDArray[np.floating], std: Tensor | NDArray[np.floating]
    ) -> None:
        super().__init__()
        mean = torch.as_tensor(mean, dtype=torch.float32).detach().clone()
        std = torch.as_tensor(std, dtype=torch.float32).detach().clone()
        if mean.ndim != 1 or mean.shape != std.shape:
            raise ValueError(
                f"mean and std: expected two vectors of one length, "
                f"got {tuple(mean.shape)} and {tuple(std.shape)}"
            )
        if not bool(torch.isfinite(mean).all()):
            raise ValueError(f"mean: expected finite numbers, got {mean.tolist()}")
        if not bool((torch.isfinite(std) & (std > 0)).all()):
            raise ValueError(f"std: expected finite positive numbers, got {std.tolist()}")
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    @classmethod
    def identity(cls, observation_dim: int) -> Normalizer:
        """The normaliser that changes nothing, for observations [..., observation_dim]."""
        return cls(torch.zeros(observation_dim), torch.ones(observation_dim))

    @classmethod
    def fit(cls, observations: NDArray[np.floating], epsilon: float) -> Normalizer:
        """Mean and std + epsilon of observations [N, S], accumulated in float64.

        Epsilon is 1e-6 in Decision Transformer and Reinformer, 1e-3 in CORL. A feature that does
        not vary at all gets std 1 rather than epsilon: otherwise a later deviation of one unit
        would reach the network as a million.
        """
        mean = observations.mean(axis=0, dtype=np.float64)
        spread = observations.std(axis=0, dtype=np.float64)
        std = np.where(spread > 0, spread + epsilon, 1.0)
        return cls(mean, std)

    def forward(self, observations: Tensor) -> Tensor:
        """Observations [..., S], raw, to standardised ones of the same shape."""
        return (observations - self.mean) / self.std
