"""Evaluation of a model that is being trained."""

from __future__ import annotations

from collections.abc import Callable

from dtag_fast.acting.policy import Policy
from dtag_fast.acting.token_predictors import own_predictor
from dtag_fast.data.trajectories import Trajectories
from dtag_fast.evaluation.rollout import evaluate
from dtag_fast.models.decision_transformer import SequenceModel
from dtag_fast.training.config import PolicyConfig


def policy_evaluation(
    data: Trajectories, config: PolicyConfig
) -> Callable[[SequenceModel, int], dict[str, float]] | None:
    """What `train_policy` takes as `evaluate`, for the environment that the data names.

    It plays `config.evaluation_episodes` episodes, the same ones each time, and gives "return",
    "length" and "score": the normalised score, x 100, on the first of the data's reference scales,
    or the return where there is none. None where the data names no environment.

    Raises:
        ValueError: a Decision Transformer without a target return to act with.
    """
    info = data.info
    if info.env_spec is None:
        return None
    env_spec = info.env_spec
    predictor = own_predictor(config.model.kind, None, {"target_return": config.target_return})
    if predictor is None:
        raise ValueError(
            "target_return: needed to evaluate a Decision Transformer (evaluation_every=0 "
            "trains without evaluation)"
        )

    def run(model: SequenceModel, step: int) -> dict[str, float]:
        result = evaluate(
            Policy(model, predictor),
            env_spec,
            config.evaluation_episodes,
            config.evaluation_seed,
            num_envs=min(config.evaluation_envs, config.evaluation_episodes),
            references=info.references,
        )
        score = result.mean
        if info.references:
            score = float(result.scores(info.references[0]).mean())
        return {"score": score, "return": result.mean, "length": float(result.lengths.mean())}

    return run
