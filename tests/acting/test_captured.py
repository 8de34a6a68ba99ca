"""Whole actions at fixed places: on a GPU captured in a graph, here operation by operation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from dtag_fast.acting.captured import CapturedContext
from dtag_fast.acting.policy import Policy
from dtag_fast.acting.token_predictors import FixedTarget, ReturnHead, TokenPredictor
from dtag_fast.models.critic import Critic
from dtag_fast.models.decision_transformer import SequenceModel

STATE, ACTION = 5, 3
ModelFactory = Callable[..., SequenceModel]
PREDICTORS: dict[str, TokenPredictor] = {"dt": FixedTarget(11.0), "reinformer": ReturnHead()}

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.parametrize("attention", ["full", "sliding"])
@pytest.mark.parametrize("kind", ["dt", "reinformer"])
@pytest.mark.parametrize("keep_refined", [True, False])
@torch.inference_mode()
def test_equals_the_policy(
    make_model: ModelFactory, critic: Critic, kind: str, attention: str, keep_refined: bool
) -> None:
    """Ragged episodes; some of the environments go on in another order."""
    model, predictor = make_model(kind, attention=attention), PREDICTORS[kind]
    policy = Policy(model, predictor, inference="torch").with_refinement(
        critic, step_size=0.05, context_action="refined" if keep_refined else "raw"
    )
    policy.reset(3)
    context = CapturedContext(model, predictor, policy.refiner, keep_refined, 3)
    generator = np.random.default_rng(0)
    for t in range(14):
        if t == 9:
            policy.keep_rows([2, 0])
            context = context.select(np.array([2, 0]))
        if t % 4 == 3:
            policy.reset_rows([1])
            context.reset_rows(np.arange(policy.num_envs) == 1)
        rows = generator.standard_normal((policy.num_envs, STATE)).astype(np.float32)
        rewards = generator.uniform(0, 3, policy.num_envs).astype(np.float32)
        actions, info = context.act(rows, rewards)
        np.testing.assert_allclose(actions, policy.act(rows, rewards), rtol=3e-4, atol=3e-4)
        assert info is not None
        assert policy.last_info is not None
        torch.testing.assert_close(info.q, policy.last_info.q, rtol=1e-3, atol=1e-3)
        assert (context.steps == policy._context.steps).all()


def test_what_cannot_be_captured(make_model: ModelFactory) -> None:
    class Other(FixedTarget):
        """Another token predictor."""

    model = make_model("dt")
    with pytest.raises(ValueError, match="only FixedTarget and ReturnHead can be captured"):
        CapturedContext(model, Other(1.0), None, True, 1)
    with pytest.raises(RuntimeError, match="graph needs a model on CUDA, got one on cpu"):
        Policy(model, PREDICTORS["dt"], inference="graph")


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("attention", ["full", "sliding"])
@pytest.mark.parametrize("kind", ["dt", "reinformer"])
@pytest.mark.parametrize("refined", [False, True])
def test_on_a_gpu(
    make_model: ModelFactory, critic: Critic, kind: str, attention: str, refined: bool
) -> None:
    """The graph against the same policy without one; weights written in place are seen."""
    model = make_model(kind, attention=attention).cuda()
    policies: Any = [
        Policy(model, PREDICTORS[kind], inference="graph"),
        Policy(model, PREDICTORS[kind], inference="torch"),
    ]
    if refined:
        policies = [each.with_refinement(critic.cuda(), step_size=0.05) for each in policies]
    for policy in policies:
        policy.reset(3)
    generator = np.random.default_rng(0)
    for t in range(12):
        if t == 7:
            with torch.no_grad():
                model.predict_action.weight.mul_(1.2)
        if t % 4 == 3:
            for policy in policies:
                policy.reset_rows([1])
        rows = generator.standard_normal((3, STATE)).astype(np.float32)
        rewards = generator.uniform(0, 3, 3).astype(np.float32)
        captured, expected = (policy.act(rows, rewards) for policy in policies)
        np.testing.assert_allclose(captured, expected, rtol=1e-3, atol=1e-3)
        assert (policies[0].last_info is not None) == refined
