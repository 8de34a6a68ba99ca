"""Small models with large weights, so that every input moves the output."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from dtag_fast.acting.native import Inference, Precision, choose_inference, unavailable_reason
from dtag_fast.models.config import ModelConfig
from dtag_fast.models.critic import Critic
from dtag_fast.models.decision_transformer import SequenceModel, build_model
from dtag_fast.models.normalizer import Normalizer

STATE, ACTION = 5, 3

ModelFactory = Callable[..., SequenceModel]


@pytest.fixture(params=["native", "torch"])
def inference(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What "auto" becomes for a test that asks for this; each such test runs with either."""
    if request.param == "native" and unavailable_reason() is not None:
        pytest.skip(str(unavailable_reason()))

    def choose(word: Inference, model: SequenceModel, precision: Precision) -> str:
        return choose_inference(request.param if word == "auto" else word, model, precision)

    monkeypatch.setattr("dtag_fast.acting.policy.choose_inference", choose)
    return str(request.param)


@pytest.fixture
def make_model() -> ModelFactory:
    def make(kind: str, *, context_length: int = 4, seed: int = 0, **config: Any) -> SequenceModel:
        torch.manual_seed(seed)
        options: dict[str, Any] = {
            "context_length": context_length,
            "blocks": 2,
            "embedding_dim": 12,
            "attention_heads": 3,
            "max_timestep": 64,
            "rtg_scale": 7.0,
            "block_norm": "pre" if kind == "dt" else "post",
            "activation": "relu" if kind == "dt" else "gelu",
        }
        model = build_model(
            ModelConfig(kind=kind, **{**options, **config}),  # type: ignore[arg-type]
            STATE,
            ACTION,
            action_low=[-1.0, -2.0, 0.5],
            action_high=[1.0, 3.0, 0.9],
            normalizer=Normalizer(np.linspace(-1, 1, STATE), np.linspace(0.5, 2, STATE)),
        )
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 2:  # as suits the width, or rounding grows with every block
                    parameter.normal_(std=0.6 * (6 / model.config.embedding_dim) ** 0.5)
            model.predict_action.weight *= 0.3  # off the flat ends of the tanh
        return model.eval()

    return make


@pytest.fixture
def critic() -> Critic:
    torch.manual_seed(1)
    return Critic(STATE, ACTION, hidden=(16, 16))
