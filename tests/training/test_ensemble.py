"""The ensemble: heads that learn as each would alone, and disagree where there is no data."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from dtag_fast.data.trajectories import Trajectories
from dtag_fast.models.critic import Critic
from dtag_fast.refinement import refine
from dtag_fast.training.ensemble import EnsembleLearner, gradient_alignment, values_of_heads
from dtag_fast.training.iql import CriticLearner
from dtag_fast.training.method_config import EnsembleConfig
from tests.training.conftest import critic_config, plain_head

CPU = torch.device("cpu")


def head_tensors(critic: Critic, head: int) -> list[Tensor]:
    tensors = [*critic.weights, *critic.biases, *critic.norm_weights, *critic.norm_biases]
    return [tensor.detach()[head] for tensor in tensors]


@pytest.mark.parametrize("order", ["value_first", "joint"])
@pytest.mark.parametrize("layer_norm", [False, True])
def test_each_head_learns_as_it_would_alone(
    toy_data: Trajectories, order: str, layer_norm: bool
) -> None:
    torch.manual_seed(0)
    settings = {
        "update_order": order,
        "layer_norm": layer_norm,
        "learning_rate": 0.01,
        "polyak": 0.1,
        "expectile": 0.8,
    }
    ensemble = EnsembleLearner(toy_data, critic_config(method="ensemble", heads=3, **settings), CPU)
    alone = []
    for head in range(3):
        learner = CriticLearner(toy_data, critic_config(heads=1, **settings), CPU)
        with torch.no_grad():
            for name in ("model", "target"):
                own = getattr(learner, name).parameters()
                for p, q in zip(own, getattr(ensemble, name).parameters(), strict=True):
                    p.copy_(q[head : head + 1])
            for index, layer in enumerate(learner.value.layers):
                assert isinstance(layer, torch.nn.Linear)
                weight = ensemble.value.weights[index][head]
                layer.weight.copy_(weight[:, :4] if index == 0 else weight)
                layer.bias.copy_(ensemble.value.biases[index][head])
        alone.append(learner)
    for _ in range(4):
        batch = ensemble.batch()
        ensemble.update_on(batch)
        for learner in alone:
            learner.update_on(*batch)
    for head, learner in enumerate(alone):
        for pair in ((ensemble.model, learner.model), (ensemble.target, learner.target)):
            ours, theirs = head_tensors(pair[0], head), head_tensors(pair[1], 0)
            for p, q in zip(ours, theirs, strict=True):
                torch.testing.assert_close(p, q, rtol=1e-4, atol=2e-4)
    observations = torch.randn(5, 4)
    values = values_of_heads(ensemble.value, observations)
    assert values.shape == (3, 5)
    for head, learner in enumerate(alone):
        torch.testing.assert_close(values[head], learner.value(observations), rtol=1e-3, atol=1e-3)


def test_alignment_is_the_cosine_of_the_heads_gradients() -> None:
    torch.manual_seed(0)
    critic = Critic(3, 2, (16, 16), heads=4)
    observations, actions = torch.randn(6, 3), torch.randn(6, 2, requires_grad=True)
    directions = []
    for head in range(4):
        q = plain_head(critic, head)(torch.cat([observations, actions], dim=1))
        (gradient,) = torch.autograd.grad(q.sum(), actions)
        directions.append(gradient / gradient.norm(dim=1, keepdim=True))
    expected = sum(
        (directions[i] * directions[j]).sum(dim=1).mean() / 3
        for i in range(4)
        for j in range(4)
        if i != j
    )
    alignment = gradient_alignment(critic, observations, actions)
    torch.testing.assert_close(alignment, torch.as_tensor(expected))
    torch.autograd.backward(alignment)
    assert all(weight.grad is not None for weight in critic.weights)
    assert actions.grad is None


def test_heads_of_one_direction_are_aligned() -> None:
    torch.manual_seed(0)
    critic = Critic(3, 2, (16, 16), heads=4)
    with torch.no_grad():
        for parameter in critic.parameters():
            parameter.copy_(parameter[:1].expand_as(parameter))
    alignment = gradient_alignment(critic, torch.randn(6, 3), torch.randn(6, 2))
    assert alignment.item() == pytest.approx(4.0, rel=1e-4)


def trained(data: Trajectories, diversity: float, steps: int = 300) -> EnsembleLearner:
    torch.manual_seed(0)
    config = critic_config(
        method="ensemble",
        heads=5,
        learning_rate=3e-3,
        ensemble=EnsembleConfig(diversity=diversity),
    )
    learner = EnsembleLearner(data, config, CPU)
    for step in range(1, steps + 1):
        learner.update(step)
    return learner


def test_diversity_turns_the_gradients_apart(toy_data: Trajectories) -> None:
    alignment = {}
    for diversity in (0.0, 0.1):
        learner = trained(toy_data, diversity)
        observations, actions, *_ = learner.batch()
        alignment[diversity] = gradient_alignment(learner.model, observations, actions).item()
        assert ("alignment" in learner.terms) == (diversity > 0)
    assert alignment[0.1] < alignment[0.0] - 0.5


def test_the_spread_is_wide_where_there_is_no_data() -> None:
    """And refinement by the lower confidence bound stays nearer to the data than by the mean."""
    actions = np.linspace(-1, 0, 64, dtype=np.float32)[:, None]
    ends = np.ones(64, dtype=bool)
    data = Trajectories.from_arrays(
        observations=np.ones((64, 2), dtype=np.float32),
        actions=actions,
        rewards=actions[:, 0],
        next_observations=np.ones((64, 2), dtype=np.float32),
        terminations=ends,
        truncations=~ends,
        action_low=[-1.0],
        action_high=[1.0],
    )
    critic = trained(data, 0.0).model
    observations = torch.ones(3, 2)
    with torch.no_grad():
        spread = critic(observations, torch.tensor([[-0.5], [0.4], [0.9]])).std(dim=0)
    assert spread[2] > spread[1] > 2 * spread[0]
    start = torch.full((1, 1), -0.5)
    found = {
        ensemble: refine(
            critic, observations[:1], start, steps=80, step_size=0.05, ensemble=ensemble, lcb_k=5.0
        ).item()
        for ensemble in ("mean", "lcb")
    }
    assert found["mean"] > 0.95
    assert -0.2 < found["lcb"] < 0.6
