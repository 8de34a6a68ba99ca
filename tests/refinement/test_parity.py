"""Every backend equals the reference: activations, shapes, options."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dtag_fast.refinement.backends import BackendName
from dtag_fast.refinement.parity import measure_parity, random_batch, random_critic


@pytest.mark.parametrize(
    "activation", ["relu", "leaky_relu", "tanh", "gelu", "silu", "mish", "elu"]
)
@pytest.mark.parametrize("layer_norm", [False, True])
def test_parity_of_activations(fast: BackendName, activation: str, layer_norm: bool) -> None:
    critic = random_critic(
        observation_dim=11,
        hidden=(40, 31, 17),
        activation=activation,
        layer_norm=layer_norm,
        negative_slope=0.2,
    )
    if layer_norm:
        with torch.no_grad():
            for weight, bias in zip(critic.norm_weights, critic.norm_biases, strict=True):
                weight.uniform_(0.5, 1.5)
                bias.uniform_(-0.5, 0.5)
    parity = measure_parity(critic, *random_batch(critic, 50), backend=fast, step_size=0.2)
    assert parity.holds, parity
    assert parity.kinked <= 15, parity


@pytest.mark.parametrize("hidden", [(), (1,), (7,), (256, 256), (100, 3, 64), (8, 8, 8, 8, 8)])
@pytest.mark.parametrize(("observation_dim", "action_dim"), [(1, 1), (17, 6), (376, 28)])
@pytest.mark.parametrize("batch", [0, 1, 17])
def test_parity_of_shapes(
    fast: BackendName,
    hidden: tuple[int, ...],
    observation_dim: int,
    action_dim: int,
    batch: int,
) -> None:
    critic = random_critic(observation_dim=observation_dim, action_dim=action_dim, hidden=hidden)
    parity = measure_parity(critic, *random_batch(critic, batch), backend=fast, step_size=0.1)
    assert parity.rows == batch
    assert parity.holds, parity


@pytest.mark.parametrize("heads", [1, 2, 10])
@pytest.mark.parametrize("ensemble", ["min", "mean", "lcb"])
@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "rmsprop", "adam"])
def test_parity_of_options(fast: BackendName, heads: int, ensemble: str, optimizer: str) -> None:
    critic = random_critic(heads=heads)
    for extra in (
        {},
        {"max_distance": 0.2, "gradient": "unit"},
        {"bounds": ([-1, -0.5, 0.0], [1, 0.5, 0.25]), "select": "last"},
        {"bounds": None, "steps": 25},
    ):
        arguments: dict[str, Any] = {"ensemble": ensemble, "optimizer": optimizer} | extra
        batch = random_batch(critic, 21)
        parity = measure_parity(critic, *batch, backend=fast, step_size=0.03, **arguments)
        assert parity.holds, (arguments, parity)
        assert parity.kinked < 21, (arguments, parity)
    parity = measure_parity(critic, *random_batch(critic, 5, 3), backend=fast, step_size=0.1)
    assert parity.holds, parity
