"""A token predictor that also chooses how much of the past the model sees."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dtag_fast.acting.context import Context
from dtag_fast.models.decision_transformer import Reinformer, SequenceModel, SequenceOutput


@dataclass(frozen=True)
class HistorySearch:
    """The history, of several lengths, from which the return head promises most.

    Elastic Decision Transformer, Wu et al. 2023 (kristery/Elastic-DT,
    decision_transformer/utils.py): histories of K, K - stride, ... steps, of which the one with the
    highest expectile return gives the action. There a second, categorical return head proposes the
    token; Reinformer has the expectile head alone, and its prediction is the token, as without
    search. A forward pass for each length and one more for its action.

    Args:
        stride: steps by which the lengths differ; 2 there.
    """

    stride: int = 2

    def __post_init__(self) -> None:
        if not isinstance(self.stride, int) or isinstance(self.stride, bool) or self.stride < 1:
            raise ValueError(f"stride: expected an integer of at least 1, got {self.stride!r}")

    @property
    def needs_rewards(self) -> bool:
        return False

    def check_model(self, model: SequenceModel) -> None:
        if not isinstance(model, Reinformer) or model.config.attention != "full":
            raise ValueError(
                f"token_predictor: HistorySearch needs a model that predicts returns (kind "
                f"'reinformer') from windows (attention 'full'), got kind {model.config.kind!r}, "
                f"attention {model.config.attention!r}"
            )

    def choose(self, model: SequenceModel, context: Context, rewards: Tensor | None) -> Tensor:
        best_returns = best_actions = None
        for length in range(context.context_length, 0, -self.stride):
            window = _Window(context, length)
            returns = window.current(_returns(window.run(model, context.tokens)))
            # The current step's token is zero until it is written.
            tokens = context.tokens.index_put((window.rows, context.position), returns)
            actions = window.current(window.run(model, tokens).actions)
            if best_returns is None or best_actions is None:
                best_returns, best_actions = returns, actions
                continue
            # A history that is no shorter predicts the same, so the longest one keeps its place.
            better = returns > best_returns
            best_returns = torch.where(better, returns, best_returns)
            best_actions = torch.where(better.unsqueeze(1), actions, best_actions)
        assert best_returns is not None
        assert best_actions is not None
        context.write_token(best_returns)
        return best_actions


class _Window:
    """The last `length` steps of each environment, or all where there are fewer, padded right."""

    def __init__(self, context: Context, length: int) -> None:
        self.context = context
        self.rows = torch.arange(context.num_envs, device=context.device)
        start = (context.position - (length - 1)).clamp(min=0)
        self.steps = start.unsqueeze(1) + torch.arange(length, device=context.device)
        self.mask = self.steps <= context.position.unsqueeze(1)
        self.steps = self.steps.clamp(max=context.context_length - 1)
        self.position = context.position - start

    def run(self, model: SequenceModel, tokens: Tensor) -> SequenceOutput:
        """The model's predictions with these return tokens [B, K]."""
        context = self.context
        output: SequenceOutput = model(
            *(
                self._take(values)
                for values in (context.observations, context.actions, tokens, context.timesteps)
            ),
            self.mask,
        )
        return output

    def current(self, values: Tensor) -> Tensor:
        """What values [B, length, ...] hold at the current steps, [B, ...]."""
        return values[self.rows, self.position]

    def _take(self, values: Tensor) -> Tensor:
        """[B, K, ...] to [B, length, ...], zeros at padding."""
        taken = values[self.rows.unsqueeze(1), self.steps]
        mask = self.mask.view(*self.mask.shape, *(1,) * (taken.ndim - 2))
        return torch.where(mask, taken, torch.zeros_like(taken))


def _returns(output: SequenceOutput) -> Tensor:
    assert output.returns_to_go is not None, "check_model has let another model through"
    return output.returns_to_go
