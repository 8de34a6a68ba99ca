"""An MLP that acts by the current observation alone: behaviour cloning, and policies after it."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from dtag_fast.models.config import ModelConfig
from dtag_fast.models.decision_transformer import (
    LOG_STD_RANGE,
    MODELS,
    SequenceModel,
    SequenceOutput,
)


class MlpModel(SequenceModel):
    """A sequence model of one step that no return token guides.

    Hidden layers of `config.hidden`, and a tanh stretched to the action box. `log_std` belongs to a
    Normal around it, for training by likelihood; acting takes its mean, as the others do.
    """

    kind = "mlp"

    def _build(self, config: ModelConfig, observation_dim: int, action_dim: int) -> None:
        layers: list[nn.Module] = []
        for sizes in pairwise([observation_dim, *config.hidden]):
            activation = nn.ReLU() if config.activation == "relu" else nn.GELU()
            layers += [nn.Linear(*sizes), activation, nn.Dropout(config.dropout)]
        self.layers = nn.Sequential(*layers)
        self.predict_action = nn.Linear([observation_dim, *config.hidden][-1], action_dim)
        self.log_std = nn.Parameter(torch.zeros(action_dim))

    def forward(
        self,
        observations: Tensor,
        actions: Tensor,
        returns_to_go: Tensor,
        timesteps: Tensor,
        mask: Tensor | None = None,
    ) -> SequenceOutput:
        return SequenceOutput(self.act(observations), self.log_std.clamp(*LOG_STD_RANGE))

    def act(self, observations: Tensor) -> Tensor:
        """The mean actions [..., A] for observations [..., S], raw."""
        hidden = self.layers(self.normalizer(observations))
        return self.box_actions(torch.tanh(self.predict_action(hidden).float()))


MODELS["mlp"] = MlpModel
