"""The shortcuts of acting against the model's whole forward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from dtag_fast.acting.context import Context
from dtag_fast.acting.inference import predict_actions, predict_returns
from dtag_fast.models.decision_transformer import Reinformer, SequenceModel

STATE, ACTION = 5, 3


@pytest.mark.parametrize("kind", ["dt", "reinformer"])
@pytest.mark.parametrize("block_norm", ["pre", "post"])
@pytest.mark.parametrize(("activation", "blocks"), [("relu", 1), ("gelu", 3)])
@torch.inference_mode()
def test_predictions_equal_the_whole_forward_pass(
    make_model: Callable[..., SequenceModel],
    kind: str,
    block_norm: Any,
    activation: Any,
    blocks: int,
) -> None:
    """Rows at different timesteps, before and after the window slides, several tokens tried."""
    model = make_model(kind, block_norm=block_norm, activation=activation, blocks=blocks)
    context = Context(3, model.config.context_length, STATE, ACTION)
    generator = torch.Generator().manual_seed(0)
    for t in range(9):
        if t in (2, 5):
            context.reset_rows(np.array([t == 2, True, False]))
        context.begin_step(torch.randn(3, STATE, generator=generator))

        def forward() -> Any:
            return model(
                context.observations,
                context.actions,
                context.tokens,
                context.timesteps,
                context.mask,
            )

        if isinstance(model, Reinformer):
            expected = context.current(forward().returns_to_go)
            torch.testing.assert_close(
                predict_returns(model, context), expected, rtol=2e-5, atol=2e-5
            )
        for _ in range(2):
            context.write_token(10 * torch.randn(3, generator=generator))
            expected = context.current(forward().actions)
            torch.testing.assert_close(
                predict_actions(model, context), expected, rtol=2e-5, atol=2e-5
            )
        context.write_actions(torch.randn(3, ACTION, generator=generator))


def test_what_comes_after_the_current_step_is_not_looked_at(
    make_model: Callable[..., SequenceModel],
) -> None:
    """Padding in the windows may hold anything finite."""
    for kind in ("dt", "reinformer"):
        model = make_model(kind)
        context = Context(1, model.config.context_length, STATE, ACTION)
        with torch.inference_mode():
            context.begin_step(torch.ones(1, STATE))
            context.write_token(torch.ones(1))
            expected = predict_actions(model, context)
            context.prefix = None
            context.observations[:, 1:] = 1e3
            context.actions.fill_(1e3)
            context.tokens[:, 1:] = 1e3
            torch.testing.assert_close(predict_actions(model, context), expected)
