"""Both versions of weights, the native one and the one in Python, notice the same changes."""

from __future__ import annotations

import gc
import importlib
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import nn

from dtag_fast import Critic, Normalizer, build_info
from dtag_fast.refinement.parity import random_batch, random_critic
from dtag_fast.refinement.weights_version import (
    PythonWeightsVersion,
    WeightsVersion,
    weights_version,
)


@pytest.fixture(params=["native", "python"])
def version_of(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Callable[[nn.Module], WeightsVersion]:
    missing = build_info.native_missing_reason()
    if request.param == "native" and missing is not None:
        pytest.skip(missing)
    if request.param == "python":
        module = importlib.import_module("dtag_fast.refinement.weights_version")
        monkeypatch.setattr(module, "_counting", False)
        monkeypatch.setattr(build_info, "native_missing_reason", lambda: "hidden by this test")
        assert isinstance(weights_version(nn.Linear(1, 1)), PythonWeightsVersion)
    return weights_version


def write_in_place(critic: Critic) -> None:
    with torch.no_grad():
        critic.weights[0].mul_(-1.0)


def load(critic: Critic) -> None:
    critic.load_state_dict(random_critic(7).state_dict())


def step(critic: Critic, fused: bool = False) -> None:
    optimizer = torch.optim.Adam(critic.parameters(), 0.1, fused=fused)
    critic(*random_batch(critic)).sum().backward()
    optimizer.step()


def step_fused(critic: Critic) -> None:
    step(critic, fused=True)


def replace_parameter(critic: Critic) -> None:
    critic.weights[1] = nn.Parameter(critic.weights[1].detach().clone())


def replace_module(critic: Critic) -> None:
    critic.normalizer = Normalizer(torch.ones(5), torch.full((5,), 0.5))


def replace_data(critic: Critic) -> None:
    critic.weights[0].data = critic.weights[0].data * -1.0


def add_buffer(critic: Critic) -> None:
    critic.normalizer.register_buffer("another", torch.ones(1))


@pytest.mark.parametrize(
    "change",
    [
        write_in_place,
        load,
        step,
        step_fused,
        replace_parameter,
        replace_module,
        replace_data,
        add_buffer,
    ],
)
def test_changes_are_noticed(
    version_of: Callable[[nn.Module], WeightsVersion], change: Callable[[Critic], None]
) -> None:
    critic = random_critic()
    version = version_of(critic)
    critic(*random_batch(critic))
    critic.train().eval().requires_grad_(False).requires_grad_(True)
    assert version.is_current()
    change(critic)
    assert not version.is_current()
    assert version_of(critic).is_current()


def test_expiry_and_a_critic_that_is_gone(
    version_of: Callable[[nn.Module], WeightsVersion],
) -> None:
    critic = random_critic()
    expired, version = version_of(critic), version_of(critic)
    expired.expire()
    assert not expired.is_current()
    alive = weakref.ref(critic)
    del critic
    gc.collect()
    assert alive() is None
    assert not version.is_current()


def test_inference_tensors(version_of: Callable[[nn.Module], WeightsVersion]) -> None:
    with torch.inference_mode():
        module = nn.Linear(2, 2)
    version = version_of(module)
    assert version.is_current()
    module.register_parameter("bias", None)
    assert not version.is_current()
