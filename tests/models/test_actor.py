"""Actors: the box, and the density of their samples."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from dtag_fast.models.actor import Actor, TanhGaussianActor
from dtag_fast.models.normalizer import Normalizer

LOW, HIGH = [-1.0, 0.0, 3.0], [1.0, 4.0, 3.5]


@pytest.mark.parametrize("kind", [Actor, TanhGaussianActor])
def test_actions_fill_the_box_and_stay_in_it(kind: Any) -> None:
    torch.manual_seed(0)
    actor = kind(Normalizer(np.full(4, 2.0), np.full(4, 3.0)), LOW, HIGH, (16, 16))
    with torch.no_grad():
        for parameter in actor.parameters():
            if parameter.ndim == 2:
                parameter.mul_(30.0)
        actions = actor(2 + 30 * torch.randn(500, 4))
        unit = actor.unit(torch.randn(2, 7, 4))
    low, high = torch.tensor(LOW), torch.tensor(HIGH)
    torch.testing.assert_close(actions.amin(0), low, rtol=0, atol=1e-2)
    torch.testing.assert_close(actions.amax(0), high, rtol=0, atol=1e-2)
    assert bool(((actions >= low) & (actions <= high)).all())
    assert unit.shape == (2, 7, 3)
    torch.testing.assert_close(actor.unit_actions(actor.box_actions(unit)), unit)


def test_observations_come_in_raw() -> None:
    torch.manual_seed(0)
    mean, std = np.array([1.0, -2.0]), np.array([3.0, 0.5])
    actor = Actor(Normalizer(mean, std), [-1.0], [1.0], (8,))
    plain = Actor(Normalizer.identity(2), [-1.0], [1.0], (8,))
    plain.layers.load_state_dict(actor.layers.state_dict())
    observations = torch.randn(5, 2)
    standardised = (observations - torch.tensor(mean)) / torch.tensor(std)
    torch.testing.assert_close(actor(observations), plain(standardised.float()))


def test_a_fresh_gaussian_is_around_the_centre() -> None:
    torch.manual_seed(0)
    actor = TanhGaussianActor(Normalizer.identity(4), LOW, HIGH, (64, 64))
    observations = torch.randn(400, 4)
    with torch.no_grad():
        assert float(actor.unit(observations).abs().max()) < 0.05
        before = torch.atanh(actor.sample(observations, 20)[0])
    assert float(before.std()) == pytest.approx(np.exp(-1), rel=0.03)


def test_the_density_is_that_of_torch_distributions() -> None:
    torch.manual_seed(0)
    actor = TanhGaussianActor(Normalizer.identity(4), LOW, HIGH, (16,))
    with torch.no_grad():
        for parameter in actor.parameters():
            parameter.mul_(3.0)
        observations = torch.randn(6, 4)
        mean, log_std = torch.chunk(actor.layers(observations), 2, dim=-1)
        actions, log_density = actor.sample(observations, 5)
    distributions: Any = torch.distributions
    normal = distributions.Normal(mean, log_std.clamp(-20, 2).exp())
    transformed = distributions.TransformedDistribution(normal, distributions.TanhTransform())
    torch.testing.assert_close(
        log_density,
        transformed.log_prob(actions.clamp(-1 + 1e-6, 1 - 1e-6)).sum(-1),
        rtol=1e-3,
        atol=1e-3,
    )
    assert actions.shape == (5, 6, 3)
    single, single_density = actor.sample(observations)
    assert (single.shape, single_density.shape) == ((6, 3), (6,))


def test_the_density_is_finite_where_tanh_is_flat() -> None:
    actor = TanhGaussianActor(Normalizer.identity(1), [-1.0], [1.0], ())
    last: Any = actor.layers[-1]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(torch.tensor([100.0, -1.0]))
    actions, log_density = actor.sample(torch.zeros(4, 1))
    assert bool((actions == 1).all())
    assert bool(log_density.isfinite().all())
    torch.autograd.backward(log_density.sum())
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in actor.parameters())
