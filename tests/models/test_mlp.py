"""The MLP among the sequence models: the current observation alone decides."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dtag_fast.models.config import ModelConfig
from dtag_fast.models.decision_transformer import Reinformer, build_model
from dtag_fast.models.mlp import MlpModel
from dtag_fast.models.normalizer import Normalizer

SETTINGS: dict[str, Any] = {"kind": "mlp", "context_length": 1, "dropout": 0.0}


def make(**changes: Any) -> MlpModel:
    torch.manual_seed(0)
    model = build_model(
        ModelConfig(**{**SETTINGS, "hidden": (16, 8), "activation": "relu", **changes}),
        4,
        2,
        [-1.0, 0.0],
        [1.0, 6.0],
        Normalizer(np.full(4, 1.0), np.full(4, 2.0)),
    )
    assert isinstance(model, MlpModel)
    return model


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_it_is_a_plain_mlp(activation: str) -> None:
    model = make(activation=activation)
    layers: list[nn.Module] = []
    for layer in model.layers:
        if isinstance(layer, nn.Linear):
            layers += [layer, nn.ReLU() if activation == "relu" else nn.GELU()]
    assert len(layers) == 4
    plain = nn.Sequential(*layers, model.predict_action, nn.Tanh())
    observations = torch.randn(3, 5, 4)
    half, center = torch.tensor([1.0, 3.0]), torch.tensor([0.0, 3.0])
    expected = center + half * plain((observations - 1) / 2)
    torch.testing.assert_close(model.act(observations), expected)


def test_nothing_but_the_observation_matters() -> None:
    model = make()
    observations = torch.randn(3, 2, 4)
    outputs = [
        model(
            observations,
            torch.randn(3, 2, 2),
            torch.randn(3, 2),
            torch.randint(0, 9, (3, 2)),
            torch.rand(3, 2) < 0.5,
        )
        for _ in range(2)
    ]
    assert torch.equal(outputs[0].actions, outputs[1].actions)
    assert torch.equal(outputs[0].actions[:, 1], model.act(observations[:, 1]))
    assert outputs[0].returns_to_go is None
    assert outputs[0].log_std is not None
    assert torch.equal(outputs[0].log_std, torch.zeros(2))


def test_dropout_is_for_training() -> None:
    model = make(dropout=0.5)
    observations = torch.randn(3, 4)
    assert not torch.equal(model.train().act(observations), model.act(observations))
    assert torch.equal(model.eval().act(observations), model.act(observations))


def test_settings_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"context_length: expected 1, .*got 5 and full"):
        ModelConfig(kind="mlp")
    with pytest.raises(ValueError, match="got 1 and sliding"):
        ModelConfig(kind="mlp", context_length=1, attention="sliding")
    with pytest.raises(ValueError, match=r"hidden: expected integers of at least 1, got \(0,\)"):
        ModelConfig(hidden=(0,))
    with pytest.raises(ValueError, match=r"expected kind='reinformer', .*got kind='mlp'"):
        Reinformer(ModelConfig(**SETTINGS), 4, 2)
