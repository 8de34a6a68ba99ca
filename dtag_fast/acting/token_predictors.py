"""Token predictors: what supplies the return token when a sequence model acts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from dtag_fast.acting.context import Context
from dtag_fast.acting.inference import predict_actions, predict_returns
from dtag_fast.models.config import ModelKind
from dtag_fast.models.decision_transformer import Reinformer, SequenceModel
from dtag_fast.models.mlp import MlpModel


class TokenPredictor(Protocol):
    """Chooses the current step's return token and, with it, the action.

    It may query the model (`dtag_fast.acting.inference`) as often as it likes, which is how one
    that compares several tokens works. It has no state of its own: what an episode has seen so far
    is in the context.
    """

    @property
    def needs_rewards(self) -> bool:
        """Whether `choose` wants the rewards received since the step before."""
        ...

    def check_model(self, model: SequenceModel) -> None:
        """Raise ValueError if this predictor cannot work with the model."""
        ...

    def choose(self, model: SequenceModel, context: Context, rewards: Tensor | None) -> Tensor:
        """The actions [B, A] for the step the context has just begun.

        Has to leave the token that belongs to them in the context (`Context.write_token`).

        Args:
            model: in evaluation mode.
            context: with the current observations in place, token and action still zero.
            rewards: [B], received for the actions of the step before; to be ignored where
                `context.first`. None if `needs_rewards` is False or all environments begin.
        """
        ...


@dataclass(frozen=True)
class FixedTarget:
    """A return to aim for, less the rewards received so far.

    Chen et al. 2021 (arXiv 2106.01345), kzl/decision-transformer gym/evaluate_episodes.py:
    R_{t+1} = R_t - r_t.

    Args:
        target_return: R_0, in raw units of return.
    """

    target_return: float

    def __post_init__(self) -> None:
        check_finite("target_return", self.target_return)

    @property
    def needs_rewards(self) -> bool:
        return True

    def check_model(self, model: SequenceModel) -> None:
        check_tokens(self, model)

    def choose(self, model: SequenceModel, context: Context, rewards: Tensor | None) -> Tensor:
        tokens = torch.full_like(context.token, self.target_return)
        if rewards is not None:
            tokens = torch.where(context.first, tokens, context.token - rewards)
        context.write_token(tokens)
        return predict_actions(model, context)


@dataclass(frozen=True)
class DiscountedCountdown:
    """A discounted return to aim for: R_{t+1} = (R_t - r_t) / gamma.

    VDT (ruthless-man/VDT, src/util.py). The countdown of a discounted return-to-go, which grows
    without limit where the rewards stay behind the target.

    Args:
        target_return: R_0, in raw units of discounted return.
        discount: gamma, in (0, 1].
    """

    target_return: float
    discount: float = 0.99

    def __post_init__(self) -> None:
        check_finite("target_return", self.target_return)
        if not 0.0 < self.discount <= 1.0:
            raise ValueError(f"discount: expected a number in (0, 1], got {self.discount}")

    @property
    def needs_rewards(self) -> bool:
        return True

    def check_model(self, model: SequenceModel) -> None:
        check_tokens(self, model)

    def choose(self, model: SequenceModel, context: Context, rewards: Tensor | None) -> Tensor:
        tokens = torch.full_like(context.token, self.target_return)
        if rewards is not None:
            following = (context.token - rewards) / self.discount
            tokens = torch.where(context.first, tokens, following)
        context.write_token(tokens)
        return predict_actions(model, context)


@dataclass(frozen=True)
class ReturnHead:
    """Reinformer's own prediction: the return it holds for likely and high, at every step anew.

    Zhuang et al. 2024 (arXiv 2405.08740), Dragon-Zhuang/Reinformer eval.py: one pass with the token
    at zero predicts the return, a second one, with that return in place, the action. Rewards play
    no part, and the tokens of earlier steps stay the predictions they were.
    """

    @property
    def needs_rewards(self) -> bool:
        return False

    def check_model(self, model: SequenceModel) -> None:
        if not isinstance(model, Reinformer):
            raise ValueError(
                f"token_predictor: ReturnHead needs a model that predicts returns "
                f"(kind 'reinformer'), got kind {model.config.kind!r}; use FixedTarget"
            )

    def choose(self, model: SequenceModel, context: Context, rewards: Tensor | None) -> Tensor:
        assert isinstance(model, Reinformer), "check_model has let another model through"
        context.write_token(predict_returns(model, context))
        return predict_actions(model, context)


@dataclass(frozen=True)
class NoToken:
    """None: for a model that looks at the observation alone."""

    @property
    def needs_rewards(self) -> bool:
        return False

    def check_model(self, model: SequenceModel) -> None:
        if not isinstance(model, MlpModel):
            raise ValueError(
                f"token_predictor: NoToken needs a model without return tokens (kind 'mlp'), got "
                f"kind {model.config.kind!r}"
            )

    def choose(self, model: SequenceModel, context: Context, rewards: Tensor | None) -> Tensor:
        return predict_actions(model, context)


def check_finite(name: str, value: float) -> None:
    """ValueError for what is no finite number."""
    if not math.isfinite(value):
        raise ValueError(f"{name}: expected a finite number, got {value}")


def check_tokens(predictor: TokenPredictor, model: SequenceModel) -> None:
    """ValueError for a model that no return token reaches."""
    if isinstance(model, MlpModel):
        raise ValueError(
            f"token_predictor: {type(predictor).__name__} needs a model with return tokens (kind "
            f"'dt' or 'reinformer'), got kind {model.config.kind!r}; use NoToken"
        )


def own_predictor(
    kind: ModelKind, target_return: float | None, config: Mapping[str, Any]
) -> TokenPredictor | None:
    """What a model acts with where nothing else is said: its own way.

    Args:
        kind: of the model.
        target_return: a return to ask for, in place of Reinformer's own; raw.
        config: the training's settings, with the `target_return` that they name, or None.

    Returns:
        None for a Decision Transformer without a target from anywhere.
    """
    if kind == "mlp":
        return NoToken()
    if target_return is None and kind == "reinformer":
        return ReturnHead()
    if target_return is None:
        target_return = config.get("target_return")
    return None if target_return is None else FixedTarget(target_return)
