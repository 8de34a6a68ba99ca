"""Real critics of Stable-Baselines3 and d3rlpy."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dtag_fast.models.critic import Critic
from dtag_fast.models.from_module import critic_from_module

S, A, H = 5, 3, 17  # no multiples of anything

pytestmark = pytest.mark.third_party
needs_sb3 = pytest.mark.skipif(
    importlib.util.find_spec("stable_baselines3") is None,
    reason="Stable-Baselines3 is not installed (an extra, for data collection)",
)
needs_d3rlpy = pytest.mark.skipif(
    importlib.util.find_spec("d3rlpy") is None,
    reason="d3rlpy is not installed (not a dependency; pip install d3rlpy)",
)


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    return 3 * torch.randn(37, S, generator=generator), torch.rand(37, A, generator=generator)


def assert_same(critic: Critic, expected: Tensor) -> None:
    with torch.no_grad():
        torch.testing.assert_close(critic(*batch()), expected.detach(), rtol=1e-5, atol=1e-5)


@needs_sb3
@pytest.mark.parametrize("algorithm", ["SAC", "TD3"])
@pytest.mark.parametrize("activation", ["ReLU", "Tanh"])
def test_stable_baselines3(algorithm: str, activation: str) -> None:
    import stable_baselines3
    from gymnasium import Env, spaces

    class Box(Env[Any, Any]):
        observation_space = spaces.Box(-np.inf, np.inf, (S,), np.float32)
        action_space = spaces.Box(-2.0, 2.0, (A,), np.float32)

    model = getattr(stable_baselines3, algorithm)(
        "MlpPolicy",
        Box(),
        device="cpu",
        buffer_size=10,
        policy_kwargs={"net_arch": [H, 23], "activation_fn": getattr(nn, activation)},
    )
    critic = critic_from_module(model.critic)
    assert critic.action_dim == A
    assert (critic.hidden, critic.activation) == ((H, 23), activation.lower())
    with torch.no_grad():
        assert_same(critic, torch.stack(model.critic(*batch())).squeeze(-1))
    with pytest.raises(TypeError, match=r"model\.critic"):
        critic_from_module(model)


@needs_sb3
def test_stable_baselines3_images_are_refused() -> None:
    import stable_baselines3
    from gymnasium import Env, spaces

    class Images(Env[Any, Any]):
        observation_space = spaces.Box(0, 255, (3, 36, 36), np.uint8)
        action_space = spaces.Box(-1.0, 1.0, (A,), np.float32)

    model = stable_baselines3.SAC("CnnPolicy", Images(), device="cpu", buffer_size=10)
    with pytest.raises(ValueError, match=r"'features_extractor\.cnn\.0' \(Conv2d\)"):
        critic_from_module(model.critic)


def d3rlpy_algorithm(name: str, **options: Any) -> Any:
    import d3rlpy

    algorithm = getattr(d3rlpy.algos, f"{name}Config")(**options).create(device="cpu:0")
    algorithm.create_impl((S,), A)
    return algorithm


@needs_d3rlpy
@pytest.mark.parametrize("name", ["IQL", "SAC", "TD3"])
@pytest.mark.parametrize("activation", ["relu", "swish"])
def test_d3rlpy(name: str, activation: str) -> None:
    import d3rlpy

    encoder = d3rlpy.models.VectorEncoderFactory([H, 23], activation=activation)
    algorithm = d3rlpy_algorithm(name, critic_encoder_factory=encoder)
    critic = critic_from_module(algorithm.impl.q_function)
    assert critic.action_dim == A
    assert critic.heads == 2
    assert critic.hidden == (H, 23)
    assert critic.activation == {"relu": "relu", "swish": "silu"}[activation]
    with torch.no_grad():
        expected = [q(*batch()).q_value.squeeze(1) for q in algorithm.impl.q_function]
    assert_same(critic, torch.stack(expected))
    one = critic_from_module(algorithm.impl.q_function[1])
    assert_same(one, expected[1].unsqueeze(0))


@needs_d3rlpy
@pytest.mark.parametrize(
    ("encoder_options", "options", "message"),
    [
        ({"use_layer_norm": True}, {}, r"'\[0\]\._encoder\._layers\.2' \(LayerNorm\)"),
        ({"dropout_rate": 0.2}, {}, r"'\[0\]\._encoder\._layers\.2' \(Dropout\)"),
        ({}, {"q_func_factory": "QRQFunctionFactory"}, r"'\[0\]\._fc' \(Linear\) of 32"),
    ],
    ids=["norm_after_activation", "dropout", "quantiles"],
)
def test_d3rlpy_refused(
    encoder_options: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    import d3rlpy

    encoder = d3rlpy.models.VectorEncoderFactory([H, H], **encoder_options)
    factories = {key: getattr(d3rlpy.models, value)() for key, value in options.items()}
    algorithm = d3rlpy_algorithm("SAC", critic_encoder_factory=encoder, **factories)
    with pytest.raises(ValueError, match=message):
        critic_from_module(algorithm.impl.q_function)
