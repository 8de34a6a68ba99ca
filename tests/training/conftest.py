"""Small datasets for training tests, and networks as one would write them plainly."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dtag_fast.data.trajectories import Trajectories
from dtag_fast.models.critic import Critic
from dtag_fast.training import native_layers
from dtag_fast.training.config import CriticConfig


@pytest.fixture
def toy_data() -> Trajectories:
    return make_toy_data()


@pytest.fixture
def any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors however small go to the native kernels."""
    monkeypatch.setattr(native_layers, "LEAST_WORK", 0)
    monkeypatch.setattr(native_layers, "LEAST_ELEMENTS", 0)


def make_toy_data(seed: int = 0) -> Trajectories:
    """Episodes of 3 to 12 steps; the action is a function of the observation."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, 13, size=20)
    steps = int(lengths.sum())
    ends = np.zeros(steps, dtype=bool)
    ends[np.cumsum(lengths) - 1] = True
    terminal = ends & (rng.random(steps) < 0.5)
    observations = rng.normal(size=(steps, 4))
    return Trajectories.from_arrays(
        observations=observations,
        actions=np.tanh(observations[:, :2]),
        rewards=rng.random(steps),
        terminations=terminal,
        truncations=ends & ~terminal,
        next_observations=rng.normal(size=(steps, 4)),
    )


def critic_config(**changes: Any) -> CriticConfig:
    settings: dict[str, Any] = {
        "hidden": (16, 16),
        "batch_size": 32,
        "reward_scaling": "none",
        "action_margin": 0.0,
        "device": "cpu",
        "progress": False,
    }
    return CriticConfig(**{**settings, **changes})


def plain_mlp(layers: list[tuple[Tensor, Tensor]]) -> nn.Sequential:
    """ReLU layers with a copy of these weights and biases."""
    modules: list[nn.Module] = []
    for weight, bias in layers:
        linear = nn.Linear(weight.shape[1], weight.shape[0])
        with torch.no_grad():
            linear.weight.copy_(weight)
            linear.bias.copy_(bias)
        modules += [linear, nn.ReLU()]
    return nn.Sequential(*modules[:-1])


def plain_head(critic: Critic, index: int) -> nn.Sequential:
    """One head of a critic, by itself."""
    layers = zip(critic.weights, critic.biases, strict=True)
    return plain_mlp([(weight[index], bias[index]) for weight, bias in layers])
