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
        torch.manual_seed(0)
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


@pytest.mark.parametrize(
    ("hidden", "batch", "steps"),
    [
        ((64, 100), 300, 10),
        ((300, 300), 17, 50),
        ((512, 512), 2, 10),
        ((300, 7), 17, 200),
        ((64, 64), 17, 200),
        ((512,), 17, 200),
        ((100, 1), 2, 0),
        ((64, 100), 300, 1),
    ],
)
def test_parity_of_large_batches_and_long_loops(
    each_fast: Ways, hidden: tuple[int, ...], batch: int, steps: int
) -> None:
    critic = random_critic(observation_dim=11, action_dim=2, hidden=hidden)
    for way, parity in parities(each_fast, critic, batch, steps=steps, step_size=0.02):
        assert parity.holds, (way, parity)


def test_parity_of_a_trained_critic(each_fast: Ways) -> None:
    critic = fitted_critic()
    for options in ({"step_size": 0.05}, {"step_size": 0.02, "steps": 50, "optimizer": "adam"}):
        for way, parity in parities(each_fast, critic, 64, **options):
            assert parity.holds, (way, options, parity)
            assert parity.kinked < 32, (way, options, parity)


def fitted_critic() -> Critic:
    """Its Q fits a hill over the actions whose top moves with the observation."""
    torch.manual_seed(0)
    critic = Critic(observation_dim=3, action_dim=3, hidden=(64, 48))
    optimizer = torch.optim.Adam(critic.parameters(), lr=3e-3)
    for _ in range(300):
        observations, actions = torch.randn(256, 3), torch.rand(256, 3) * 2 - 1
        hill = -(actions - observations.tanh()).square().sum(dim=1)
        optimizer.zero_grad()
        (critic(observations, actions) - hill).square().mean().backward()
        optimizer.step()
    return critic


def dead(critic: Critic) -> None:
    """No unit of the first head is ever active: its Q is its last bias."""
    critic.biases[0][0].fill_(-1e6)


def constant(critic: Critic) -> None:
    """No head depends on anything."""
    for weight in critic.weights:
        weight.zero_()


def dead_in_the_second_layer(critic: Critic) -> None:
    critic.biases[1].fill_(-1e6)


def equal_heads(critic: Critic) -> None:
    """A tie at every candidate."""
    for parameter in (*critic.weights, *critic.biases):
        parameter[1] = parameter[0]


def equal_units(critic: Critic) -> None:
    """All units of a layer turn at once."""
    critic.weights[0][:] = critic.weights[0][:, :1]
    critic.biases[0][:] = critic.biases[0][:, :1]


def denormal(critic: Critic) -> None:
    """Products of weights that float32 holds with few digits, or as 0."""
    critic.weights[1].mul_(1e-38)
    critic.biases[1].mul_(1e-38)
    critic.weights[2].mul_(1e3)


def tiny_inputs(critic: Critic) -> None:
    critic.weights[0].mul_(1e-41)
    critic.biases[0].zero_()


@pytest.mark.parametrize(
    "change",
    [dead, constant, dead_in_the_second_layer, equal_heads, equal_units, denormal, tiny_inputs],
)
@pytest.mark.parametrize("ensemble", ["min", "mean"])
def test_parity_of_degenerate_critics(
    each_fast: Ways, change: Callable[[Critic], None], ensemble: str
) -> None:
    critic = random_critic()
    with torch.no_grad():
        change(critic)
    for options in ({}, {"steps": 60}):
        for way, parity in parities(
            each_fast, critic, 17, step_size=0.1, ensemble=ensemble, **options
        ):
            assert parity.holds, (way, options, parity)


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


def test_what_an_observation_rounds_may_turn_a_path() -> None:
    """Of a unit whose sign hangs on the last digits of a long sum, and hardly on the action."""
    critic = random_critic(observation_dim=300, action_dim=2, hidden=(5,), heads=1)
    observations, actions = random_batch(critic, 3)
    with torch.no_grad():
        critic.weights[0][0, 0, 300:] = 1e-3
        critic.weights[1][0, 0, 0] = 1e3
        z = critic.weights[0][0, 0].double() @ torch.cat([observations, actions], 1)[1].double()
        critic.biases[0][0, 0] = 5e-7 - z
    options = Refiner(critic, step_size=0.1).options
    shifts = [
        Standard(critic, observations, actions, options, shake_observations=too).shift
        for too in (False, True)
    ]
    assert shifts[0].max() < 0.01
    assert shifts[1][1] > 0.05
    assert shifts[1][[0, 2]].max() < 0.01
