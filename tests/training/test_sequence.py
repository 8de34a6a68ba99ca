"""Losses of the sequence models by hand, and that training learns."""

from __future__ import annotations

import dataclasses
import functools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dtag_fast.data.trajectories import Trajectories
from dtag_fast.models.config import ModelConfig
from dtag_fast.training.config import PolicyConfig
from dtag_fast.training.losses import (
    action_mse,
    action_nll,
    normal_entropy,
    return_expectile_loss,
)
from dtag_fast.training.sequence import PolicyLearner, load_policy_model, train_policy

MASK = torch.tensor([[True, True], [True, False]])


def small_config(kind: Any, **changes: Any) -> PolicyConfig:
    """A tiny model that learns fast: no dropout, no warm-up, a large learning rate."""
    model = ModelConfig(
        kind=kind,
        context_length=4,
        blocks=1,
        embedding_dim=32,
        attention_heads=2,
        dropout=0.0,
        block_norm="pre" if kind == "dt" else "post",
        max_timestep=20,
        rtg_scale=5.0,
    )
    config = PolicyConfig(
        model=model,
        steps=300,
        batch_size=32,
        learning_rate=1e-2 if kind == "reinformer" else 1e-3,
        optimizer="adamw" if kind == "dt" else "lamb",
        sampling="length" if kind == "dt" else "trajectory",
        padding="left" if kind == "dt" else "right",
        warmup_steps=0,
        device="cpu",
        progress=False,
        checkpoint_every=1000,
        expectile=0.5,
    )
    return dataclasses.replace(config, **changes)


def test_action_mse() -> None:
    predicted = torch.tensor([[[1.0, 0.0], [2.0, 2.0]], [[0.0, 0.0], [9.0, 9.0]]])
    actions = torch.tensor([[[0.0, 0.0], [2.0, 0.0]], [[0.0, 3.0], [0.0, 0.0]]])
    # per real step: (1 + 0) / 2, (0 + 4) / 2, (0 + 9) / 2
    assert float(action_mse(predicted, actions, MASK)) == pytest.approx((0.5 + 2.0 + 4.5) / 3)


def test_action_nll_is_that_of_torch_distributions() -> None:
    torch.manual_seed(0)
    predicted, actions = torch.randn(2, 2, 3), torch.randn(2, 2, 3)
    log_std = torch.tensor([-1.0, 0.0, 0.5])
    distributions: Any = torch.distributions
    log_prob = distributions.Normal(predicted, log_std.exp()).log_prob(actions).sum(-1)
    expected = -(log_prob[0, 0] + log_prob[0, 1] + log_prob[1, 0]) / 3
    torch.testing.assert_close(action_nll(predicted, log_std, actions, MASK), expected)
    entropy = distributions.Normal(torch.zeros(3), log_std.exp()).entropy().sum()
    torch.testing.assert_close(normal_entropy(log_std), entropy)


def test_return_expectile_loss() -> None:
    returns = torch.tensor([[2.0, -4.0], [6.0, 1000.0]])  # mean |R| of the real ones: 4
    predicted = torch.tensor([[0.0, 0.0], [6.0, 0.0]])  # u = 0.5, -1, 0
    loss = return_expectile_loss(predicted, returns, MASK, 0.9, 10.0)
    assert float(loss) == pytest.approx((0.9 * 0.25 + 0.1 * 1.0 + 0.0) / 3)


def test_return_expectile_loss_of_a_batch_without_returns_is_finite() -> None:
    predicted = torch.full((2, 2), 5.0)
    loss = return_expectile_loss(predicted, torch.zeros(2, 2), MASK, 0.9, 10.0)
    assert float(loss) == pytest.approx(0.1 * 0.25)  # u = -5 / rtg_scale


def test_decision_transformer_learns_the_actions(toy_data: Trajectories, tmp_path: Path) -> None:
    result = train_policy(toy_data, small_config("dt"), tmp_path)
    assert result.losses["loss"] < 0.01  # variance of the actions: 0.39
    model, state = load_policy_model(tmp_path)
    assert state["step"] == 300
    assert not model.training
    episode = toy_data.episode(0)
    with torch.no_grad():
        output = model(
            torch.from_numpy(episode.observations[:4])[None],
            torch.from_numpy(episode.actions[:4])[None],
            torch.from_numpy(toy_data.returns_to_go()[:4])[None],
            torch.arange(4)[None],
        )
    assert float(np.abs(output.actions[0].numpy() - episode.actions[:4]).max()) < 0.4


def test_reinformer_learns_actions_and_returns(toy_data: Trajectories, tmp_path: Path) -> None:
    result = train_policy(toy_data, small_config("reinformer", steps=400), tmp_path)
    # a Normal with std 1 at the right mean has 2 * 0.919; below that the std has shrunk as well
    assert result.losses["action_nll"] < 1.6
    assert result.losses["return_loss"] < 0.03
    assert result.losses["loss"] == pytest.approx(
        result.losses["return_loss"]
        + result.losses["action_nll"]
        - result.losses["temperature"] * result.losses["entropy"],
        rel=0.02,  # means over an interval of a product
    )
    # the entropy is above its target, minus the action dimensions: the temperature fell
    assert result.losses["temperature"] < 0.1


def test_a_high_expectile_predicts_higher_returns(toy_data: Trajectories, tmp_path: Path) -> None:
    predicted = {}
    for expectile in (0.05, 0.95):
        config = small_config("reinformer", expectile=expectile, steps=150, seed=1)
        model = train_policy(toy_data, config, tmp_path / str(expectile)).model
        # an observation that says nothing: the return head can only tell a quantile
        zeros = torch.zeros(1, 1, 4)
        with torch.no_grad():
            output = model(zeros, torch.zeros(1, 1, 2), torch.zeros(1, 1), torch.zeros(1, 1).long())
        predicted[expectile] = float(output.returns_to_go)
    assert predicted[0.05] < predicted[0.95] - 0.5


def test_temperature_rises_below_the_target_entropy(toy_data: Trajectories) -> None:
    config = small_config("reinformer", target_entropy=100.0)
    learner = PolicyLearner(toy_data, config, torch.device("cpu"))
    temperatures = [float(learner.update(step)[4]) for step in range(1, 4)]
    assert temperatures[0] == pytest.approx(0.1)
    assert temperatures[0] < temperatures[1] < temperatures[2]
    # Adam's first step is the learning rate, in the logarithm
    assert math.log(temperatures[1] / temperatures[0]) == pytest.approx(1e-4, rel=0.01)


def test_warmup_and_gradient_clip(toy_data: Trajectories) -> None:
    config = small_config("dt", warmup_steps=10, gradient_clip=0.01, learning_rate=1e-3)
    learner = PolicyLearner(toy_data, config, torch.device("cpu"))
    for step in (1, 5, 10, 20):
        learner.update(step)
        rate = learner.optimizer.param_groups[0]["lr"]
        assert rate == pytest.approx(1e-3 * min(step / 10, 1.0))
        gradients = [p.grad for p in learner.model.parameters() if p.grad is not None]
        norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
        assert float(norm) <= 0.0101


def test_autocast_is_close_to_plain(toy_data: Trajectories) -> None:
    losses = {}
    for autocast in (False, True):
        torch.manual_seed(0)
        config = small_config("reinformer", autocast=autocast)
        learner = PolicyLearner(toy_data, config, torch.device("cpu"))
        losses[autocast] = torch.stack([learner.update(step) for step in range(1, 6)])
    assert losses[True].dtype == torch.float32
    assert not torch.equal(losses[True], losses[False])
    torch.testing.assert_close(losses[True], losses[False], rtol=0.05, atol=0.05)


def test_episodes_longer_than_the_timestep_embedding_are_refused(
    toy_data: Trajectories, tmp_path: Path
) -> None:
    config = small_config("dt")
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, max_timestep=5))
    longest = int(toy_data.lengths().max())
    with pytest.raises(ValueError, match=rf"model\.max_timestep: .*{longest} steps, got 5"):
        train_policy(toy_data, config, tmp_path)


@pytest.mark.parametrize("kind", ["dt", "reinformer"])
def test_compiled_losses_are_one_graph_and_the_same(
    kind: str, toy_data: Trajectories, monkeypatch: pytest.MonkeyPatch
) -> None:
    # inductor would take a minute; what can break in our code is the capture of the graph
    compile_fast = functools.partial(torch.compile, backend="aot_eager", fullgraph=True)
    monkeypatch.setattr(torch, "compile", compile_fast)
    losses = {}
    for compiled in (False, True):
        torch.manual_seed(0)
        config = small_config(kind, compile=compiled)
        learner = PolicyLearner(toy_data, config, torch.device("cpu"))
        losses[compiled] = torch.stack([learner.update(step) for step in range(1, 4)])
    torch.testing.assert_close(losses[True], losses[False])


# --- streaming models ---


@pytest.mark.parametrize("kind", ["dt", "reinformer"])
def test_a_streaming_model_is_trained_on_what_acting_computes(
    toy_data: Trajectories, kind: Any
) -> None:
    """Each prediction that the loss counts equals that of a pass over the whole episode."""
    config = small_config(kind, batch_size=40)
    model_config = dataclasses.replace(
        config.model, attention="sliding", blocks=2, context_length=3
    )
    learner = PolicyLearner(
        toy_data, dataclasses.replace(config, model=model_config), torch.device("cpu")
    )
    observations, actions, returns_to_go, timesteps, mask, drawn = learner._batch()
    assert observations.shape[1] == 2 * (3 - 1) + 3
    model = learner.model.eval()
    with torch.no_grad():
        output = model(observations, actions, returns_to_go, timesteps, mask).actions
        truncated = 0
        for row in range(40):
            (last,) = observations[row, mask[row]][-1:].numpy()
            (step,) = np.flatnonzero((toy_data.observations == last).all(axis=1))
            first = step - int(timesteps[row].max())  # of the episode
            whole = model(
                torch.from_numpy(toy_data.observations[first : step + 1])[None],
                torch.from_numpy(toy_data.actions[first : step + 1])[None],
                torch.from_numpy(toy_data.returns_to_go()[first : step + 1])[None],
                torch.arange(step + 1 - first)[None],
            ).actions[0]
            counted = timesteps[row, drawn[row]]
            torch.testing.assert_close(
                output[row, drawn[row]], whole[counted], rtol=2e-5, atol=2e-5
            )
            truncated += int(timesteps[row, mask[row]][0]) > 0
    assert truncated > 3, "windows that begin within an episode"


@pytest.mark.parametrize("kind", ["dt", "reinformer"])
def test_a_streaming_model_resumes_bit_for_bit_and_loads(
    toy_data: Trajectories, tmp_path: Path, kind: Any
) -> None:
    config = small_config(kind, steps=12, checkpoint_every=6)
    config = dataclasses.replace(
        config, model=dataclasses.replace(config.model, attention="sliding", dropout=0.1)
    )
    train_policy(toy_data, config, tmp_path / "whole")
    train_policy(toy_data, dataclasses.replace(config, steps=6), tmp_path / "parts")
    train_policy(toy_data, config, tmp_path / "parts", resume=True)
    models = [load_policy_model(tmp_path / name)[0] for name in ("whole", "parts")]
    assert models[0].config == config.model
    for whole, parts in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(whole, parts)
    full = dataclasses.replace(config.model, attention="full")
    changed = dataclasses.replace(config, model=full)
    with pytest.raises(ValueError, match="attention"):
        train_policy(toy_data, changed, tmp_path / "parts", resume=True)
