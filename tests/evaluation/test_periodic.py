"""Evaluation of a model in training."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from dtag_fast.acting import token_predictors
from dtag_fast.acting.policy import Policy
from dtag_fast.acting.token_predictors import FixedTarget, ReturnHead
from dtag_fast.data.bandit import bandit_episodes, bandit_spec
from dtag_fast.data.references import ReferenceScores
from dtag_fast.data.trajectories import Trajectories
from dtag_fast.evaluation import periodic
from dtag_fast.evaluation.periodic import policy_evaluation
from dtag_fast.evaluation.rollout import evaluate
from dtag_fast.models.config import ModelConfig
from dtag_fast.models.decision_transformer import SequenceModel, build_model
from dtag_fast.models.normalizer import Normalizer
from dtag_fast.training.config import PolicyConfig

REFERENCE = ReferenceScores("minari", 0.5, 1.0)


def bandit_data(*references: ReferenceScores, env: bool = True) -> Trajectories:
    """Ten one-step episodes of the toy problem."""
    episodes = bandit_episodes(10, 0.8, seed=0)
    data = Trajectories.from_arrays(
        np.zeros((10, 1)),
        np.concatenate([episode["actions"] for episode in episodes]),
        np.concatenate([episode["rewards"] for episode in episodes]),
        np.ones(10, dtype=bool),
        np.zeros(10, dtype=bool),
        next_observations=np.zeros((10, 1)),
    )
    spec = bandit_spec().to_json() if env else None
    info = dataclasses.replace(data.info, env_spec=spec, references=references)
    return dataclasses.replace(data, info=info)


def config_of(kind: Any, **settings: Any) -> PolicyConfig:
    model = ModelConfig(kind=kind, context_length=2, blocks=1, embedding_dim=8, attention_heads=2)
    return PolicyConfig(model=model, evaluation_episodes=5, **settings)


def model_of(config: PolicyConfig) -> SequenceModel:
    torch.manual_seed(0)
    return build_model(config.model, 1, 1, (-1.0,), (1.0,), Normalizer.identity(1))


def test_it_evaluates_as_evaluate_does() -> None:
    config = config_of("reinformer", evaluation_seed=3, evaluation_envs=2)
    model = model_of(config)
    run = policy_evaluation(bandit_data(REFERENCE), config)
    assert run is not None
    found = run(model, 100)
    direct = evaluate(Policy(model, ReturnHead()), bandit_spec(), episodes=5, seed=3)
    assert found == {
        "score": pytest.approx(100 * (direct.mean - 0.5) / 0.5),
        "return": pytest.approx(direct.mean),
        "length": 1.0,
    }
    assert run(model, 200) == found  # the same episodes each time


def test_the_first_reference_gives_the_score() -> None:
    config = config_of("reinformer")
    other = ReferenceScores("d4rl", 0.0, 10.0)
    model = model_of(config)
    scores = []
    for references in ((REFERENCE, other), (other, REFERENCE)):
        run = policy_evaluation(bandit_data(*references), config)
        assert run is not None
        found = run(model, 1)
        low, high = references[0].minimum, references[0].maximum
        assert found["score"] == pytest.approx(100 * (found["return"] - low) / (high - low))
        scores.append(found["score"])
    assert scores[0] != scores[1]


def test_without_references_the_score_is_the_return() -> None:
    config = config_of("reinformer")
    run = policy_evaluation(bandit_data(), config)
    assert run is not None
    found = run(model_of(config), 1)
    assert found["score"] == found["return"]


def test_without_an_environment_there_is_nothing_to_evaluate_in() -> None:
    assert policy_evaluation(bandit_data(env=False), config_of("reinformer")) is None
    assert policy_evaluation(bandit_data(env=False), config_of("dt")) is None


def test_a_decision_transformer_asks_for_its_target(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    class Recorded(FixedTarget):
        def __init__(self, target_return: float) -> None:
            asked.append(target_return)
            super().__init__(target_return)

    monkeypatch.setattr(token_predictors, "FixedTarget", Recorded)
    config = config_of("dt", target_return=0.75)
    run = policy_evaluation(bandit_data(REFERENCE), config)
    assert run is not None
    model = model_of(config)
    found = run(model, 1)
    assert asked == [0.75]
    direct = evaluate(Policy(model, FixedTarget(0.75)), bandit_spec(), episodes=5)
    assert found["return"] == pytest.approx(direct.mean)


def test_a_decision_transformer_without_a_target_is_refused_before_training() -> None:
    with pytest.raises(ValueError, match="target_return: needed to evaluate"):
        policy_evaluation(bandit_data(REFERENCE), config_of("dt"))


@pytest.mark.parametrize("envs", [1, 2, 50])
def test_no_more_environments_than_episodes(monkeypatch: pytest.MonkeyPatch, envs: int) -> None:
    used: list[int] = []

    def counted(*arguments: Any, **options: Any) -> Any:
        result = evaluate(*arguments, **options)
        used.append(result.num_envs)
        return result

    monkeypatch.setattr(periodic, "evaluate", counted)
    config = config_of("reinformer", evaluation_envs=envs)
    run = policy_evaluation(bandit_data(REFERENCE), config)
    assert run is not None
    run(model_of(config), 1)
    assert used == [min(envs, 5)]
