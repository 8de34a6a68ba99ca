"""What holds for every method of training a critic."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch

from dtag_fast import checkpoint
from dtag_fast.data.trajectories import Trajectories
from dtag_fast.models.critic import Critic
from dtag_fast.refinement import refine
from dtag_fast.training.config import CriticConfig
from dtag_fast.training.cql import CqlLearner
from dtag_fast.training.critic import LEARNERS, TransitionLearner, train_critic
from dtag_fast.training.ensemble import EnsembleLearner
from dtag_fast.training.method_config import (
    CqlConfig,
    CriticMethod,
    EnsembleConfig,
    Td3BcConfig,
)
from dtag_fast.training.td3_bc import Td3BcLearner
from tests.training.conftest import critic_config

CPU = torch.device("cpu")

METHODS: dict[str, CriticConfig] = {
    "iql": critic_config(),
    "td3-bc": critic_config(method="td3-bc", td3_bc=Td3BcConfig(actor_hidden=(16,))),
    "cql": critic_config(
        method="cql", cql=CqlConfig(lagrange=True, samples=3, weight=0.1, actor_hidden=(16,))
    ),
    "ensemble": critic_config(method="ensemble", heads=4, ensemble=EnsembleConfig(diversity=0.01)),
}
OTHERS = [method for method in METHODS if method != "iql"]


def make_learner(data: Trajectories, config: CriticConfig) -> Any:
    learners: dict[str, Any] = {
        "td3-bc": Td3BcLearner,
        "cql": CqlLearner,
        "ensemble": EnsembleLearner,
    }
    torch.manual_seed(0)
    return learners[config.method](data, config, CPU)


def test_every_method_is_here() -> None:
    assert set(METHODS) == set(LEARNERS) == set(get_args(CriticMethod))


@pytest.mark.parametrize("method", OTHERS)
def test_a_stopped_and_resumed_run_ends_with_the_same_bits(
    method: str, toy_data: Trajectories, tmp_path: Path
) -> None:
    config = dataclasses.replace(METHODS[method], steps=24, log_every=3, checkpoint_every=100)
    train_critic(toy_data, config, tmp_path / "whole")
    train_critic(toy_data, dataclasses.replace(config, steps=11), tmp_path / "parts")
    torch.manual_seed(123)
    train_critic(toy_data, config, tmp_path / "parts", resume=True)
    for file in (checkpoint.MODEL_FILE, checkpoint.TRAINING_FILE):
        whole, parts = (
            checkpoint.load_tensors(tmp_path / run, file=file) for run in ("whole", "parts")
        )
        assert whole.keys() == parts.keys()
        assert [name for name in whole if not torch.equal(whole[name], parts[name])] == []
    states = [checkpoint.read_state(tmp_path / run) for run in ("whole", "parts")]
    assert states[0]["metrics"] == states[1]["metrics"]


@pytest.mark.parametrize("method", OTHERS)
def test_another_method_or_option_is_not_resumed(
    method: str, toy_data: Trajectories, tmp_path: Path
) -> None:
    config = dataclasses.replace(METHODS[method], steps=2)
    train_critic(toy_data, config, tmp_path)
    with pytest.raises(ValueError, match=f"method: .*has '{method}'"):
        train_critic(toy_data, dataclasses.replace(config, method="iql"), tmp_path, resume=True)


@pytest.mark.parametrize("method", METHODS)
def test_what_is_loaded_is_a_critic_that_refines(
    method: str, toy_data: Trajectories, tmp_path: Path
) -> None:
    config = dataclasses.replace(METHODS[method], steps=3, normalize_observations=True)
    trained = train_critic(toy_data, config, tmp_path).model
    loaded = Critic.load(tmp_path)
    observations, actions = torch.randn(6, 4), torch.rand(6, 2)
    assert torch.equal(trained(observations, actions), loaded(observations, actions))
    refined = refine(loaded, observations, actions, steps=3, step_size=0.1, ensemble="lcb")
    assert refined.shape == actions.shape
    assert not torch.equal(refined, actions)


@pytest.mark.parametrize("method", OTHERS)
def test_the_heads_learn(method: str, toy_data: Trajectories) -> None:
    config = dataclasses.replace(METHODS[method], learning_rate=3e-3, discount=0.5)
    learner: TransitionLearner = make_learner(toy_data, config)
    before = [p.detach().clone() for p in learner.model.parameters()]
    error = learner.terms.index("q_loss")
    losses = torch.stack([learner.update(step) for step in range(1, 121)])
    assert losses.isfinite().all()
    assert losses[-10:, error].mean() < 0.5 * losses[:5, error].mean()
    after = learner.model.parameters()
    assert all(not torch.equal(p, q) for p, q in zip(before, after, strict=True))


@pytest.mark.parametrize("method", ["td3-bc", "cql"])
def test_an_actors_loss_has_no_gradients_by_the_critic(
    method: str, toy_data: Trajectories, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody reads them, and each costs a product."""
    learner: Any = make_learner(toy_data, METHODS[method])
    actor_loss = learner._actor_loss
    seen: list[bool] = []

    def watch(*arguments: Any) -> Any:
        seen.extend(p.requires_grad for p in learner.model.parameters())
        return actor_loss(*arguments)

    monkeypatch.setattr(learner, "_actor_loss", watch)
    learner.update(2)
    assert seen
    assert not any(seen)
    assert all(p.requires_grad for p in learner.model.parameters())


@pytest.mark.parametrize("method", OTHERS)
def test_autocast_is_close_to_plain(method: str, toy_data: Trajectories) -> None:
    losses = {}
    for autocast in (False, True):
        config = dataclasses.replace(METHODS[method], autocast=autocast)
        learner: TransitionLearner = make_learner(toy_data, config)
        losses[autocast] = torch.stack([learner.update(step) for step in range(1, 6)])
    assert losses[True].dtype == torch.float32
    assert not torch.equal(losses[True], losses[False])
    torch.testing.assert_close(losses[True], losses[False], rtol=0.05, atol=0.05)


@pytest.mark.parametrize("method", OTHERS)
def test_compiled_losses_are_one_graph_and_the_same(
    method: str, toy_data: Trajectories, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_fast = functools.partial(torch.compile, backend="aot_eager", fullgraph=True)
    monkeypatch.setattr(torch, "compile", compile_fast)
    losses = {}
    for compiled in (False, True):
        learner: TransitionLearner = make_learner(
            toy_data, dataclasses.replace(METHODS[method], compile=compiled)
        )
        losses[compiled] = torch.stack([learner.update(step) for step in range(1, 4)])
    torch.testing.assert_close(losses[True], losses[False])


@pytest.mark.parametrize("method", OTHERS)
def test_boxes_of_any_size_are_the_same_problem(method: str, toy_data: Trajectories) -> None:
    """Ten times the actions in ten times the box, with first layers that take a tenth of them."""
    wide = Trajectories.from_arrays(
        observations=toy_data.observations,
        actions=10 * toy_data.actions,
        rewards=toy_data.rewards,
        terminations=toy_data.terminations,
        truncations=toy_data.truncations,
        next_observations=toy_data.next_observations,
        action_low=[-10.0, -10.0],
        action_high=[10.0, 10.0],
    )
    losses = []
    for data, scale in ((toy_data, 1.0), (wide, 0.1)):
        # Adam's steps would not be the same ones: none, then.
        learner = make_learner(data, dataclasses.replace(METHODS[method], learning_rate=1e-12))
        with torch.no_grad():
            for critic in (learner.model, learner.target):
                critic.weights[0][:, :, 4:] *= scale
        losses.append(learner.update(2))
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4, atol=1e-5)
