"""Every way to refine equals the reference: activations, shapes, options."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from dtag_fast import Critic, Refiner
from dtag_fast.refinement.parity import Parity, Standard, random_batch, random_critic

How = Callable[[Critic], dict[str, Any]]
Ways = Callable[[], Iterator[How]]


def parities(
    ways: Ways, critic: Critic, rows: int, *starts: int, **options: Any
) -> Iterator[tuple[How, Parity]]:
    """Of every way, on one batch."""
    batch = random_batch(critic, rows, *starts)
    standard = Standard(critic, *batch, Refiner(critic, **options).options)
    for way in ways():
        yield way, standard.measure(Refiner(critic, **way(critic), **options)(*batch))


@pytest.mark.parametrize(
    "activation", ["relu", "leaky_relu", "tanh", "gelu", "silu", "mish", "elu"]
)
@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("hidden", [(40, 31), (40, 31, 17)])
def test_parity_of_activations(
    each_fast: Ways, activation: str, layer_norm: bool, hidden: tuple[int, ...]
) -> None:
    critic = random_critic(
        observation_dim=11,
        hidden=hidden,
        activation=activation,
        layer_norm=layer_norm,
        negative_slope=0.2,
    )
    if layer_norm:
        with torch.no_grad():
            for weight, bias in zip(critic.norm_weights, critic.norm_biases, strict=True):
                weight.uniform_(0.5, 1.5)
                bias.uniform_(-0.5, 0.5)
    for way, parity in parities(each_fast, critic, 50, step_size=0.2):
        assert parity.holds, (way, parity)
        assert parity.kinked <= 15, parity


@pytest.mark.parametrize(
    "hidden", [(), (1,), (7,), (70,), (256, 256), (100, 3, 64), (8, 8, 8, 8, 8)]
)
@pytest.mark.parametrize(("observation_dim", "action_dim"), [(1, 1), (17, 6), (376, 28)])
@pytest.mark.parametrize("batch", [0, 1, 17])
def test_parity_of_shapes(
    each_fast: Ways,
    hidden: tuple[int, ...],
    observation_dim: int,
    action_dim: int,
    batch: int,
) -> None:
    critic = random_critic(observation_dim=observation_dim, action_dim=action_dim, hidden=hidden)
    for way, parity in parities(each_fast, critic, batch, step_size=0.1):
        assert parity.rows == batch
        assert parity.holds, (way, parity)


@pytest.mark.parametrize("heads", [1, 2, 10])
@pytest.mark.parametrize("ensemble", ["min", "mean", "lcb"])
@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "rmsprop", "adam"])
def test_parity_of_options(each_fast: Ways, heads: int, ensemble: str, optimizer: str) -> None:
    critic = random_critic(heads=heads)
    for extra in (
        {},
        {"max_distance": 0.2, "gradient": "unit"},
        {"bounds": ([-1, -0.5, 0.0], [1, 0.5, 0.25]), "select": "last"},
        {"bounds": None, "steps": 25},
    ):
        arguments: dict[str, Any] = {"ensemble": ensemble, "optimizer": optimizer} | extra
        for way, parity in parities(each_fast, critic, 21, step_size=0.03, **arguments):
            assert parity.holds, (way, arguments, parity)
            assert parity.kinked < 21, (way, arguments, parity)
    for way, parity in parities(each_fast, critic, 5, 3, step_size=0.1):
        assert parity.holds, (way, parity)
