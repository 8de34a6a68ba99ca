"""Decision Transformer and Reinformer: a causal transformer over returns, observations, actions.

Both turn K environment steps into 3K tokens and differ in what the paper's code differs in:

|                    | DecisionTransformer                  | Reinformer                         |
|--------------------|--------------------------------------|------------------------------------|
| tokens of a step   | return, observation, action          | observation, return, action        |
| action read at     | the observation token                | the return token                   |
| return predicted   | no                                   | at the observation token           |
| padding            | a mask hides it (left, in training)  | right; causality hides it          |
| attention dropout  | on the weights                       | on the weighted sum of the values  |
| embedding dropout  | yes                                  | no                                 |
| initial weights    | blocks normal(0, 0.02), zero biases  | torch's default                    |

Sources: kzl/decision-transformer (gym/decision_transformer/models) for Chen et al. 2021,
arXiv 2106.01345; Dragon-Zhuang/Reinformer (model) for Zhuang et al. 2024, arXiv 2405.08740.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from dtag_fast.models.action_box import ActionBox
from dtag_fast.models.config import ModelConfig, ModelKind
from dtag_fast.models.normalizer import Normalizer

TOKENS_PER_STEP = 3
LOG_STD_RANGE = (-20.0, 2.0)  # Reinformer, model/net.py
GPT2_INITIAL_STD = 0.02


@dataclass
class SequenceOutput:
    """What a sequence model predicts for each of K steps."""

    actions: Tensor
    """[B, K, A], inside the action box (its open interior; tanh)."""
    log_std: Tensor | None = None
    """[A], of the action distribution in units where the box is [-1, 1]; Reinformer only."""
    returns_to_go: Tensor | None = None
    """[B, K], raw units; Reinformer only."""


class Attention(nn.Module):
    """Multi-head self-attention, causal.

    `drop_weights` says where dropout goes: on the attention weights, as in GPT-2, or on their
    product with the values, as in Reinformer's code. The output projection has its own dropout.
    """

    def __init__(self, config: ModelConfig, drop_weights: bool) -> None:
        super().__init__()
        width = config.embedding_dim
        self.heads = config.attention_heads
        self.dropout = config.dropout
        self.drop_weights = drop_weights
        # Three matrices rather than one: LAMB scales the step of each tensor by its own norm.
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.projection = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None, read: Tensor | None = None) -> Tensor:
        """x [B, T, D] -> [B, T, D]; mask [B or 1, 1, T, T], True where a row may look.

        None is the causal mask. `read` leaves out what is not asked for: see `Block`.
        """
        batch, length, width = x.shape
        query, key, value = (
            layer(x).view(batch, length, self.heads, width // self.heads).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        dropout = self.dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            dropout_p=dropout if self.drop_weights else 0.0,
            is_causal=mask is None,
        )
        if not self.drop_weights:
            attended = F.dropout(attended, dropout, self.training)
        attended = attended.transpose(1, 2).reshape(batch, length, width)
        out = self.projection(attended if read is None else attended.index_select(1, read))
        return F.dropout(out, dropout, self.training)


class Block(nn.Module):
    """Attention and MLP (4 D wide), each with a residual and a LayerNorm before or after."""

    def __init__(self, config: ModelConfig, drop_weights: bool) -> None:
        super().__init__()
        width = config.embedding_dim
        self.pre_norm = config.block_norm == "pre"
        self.dropout = config.dropout
        self.relu = config.activation == "relu"
        self.attention = Attention(config, drop_weights)
        self.attention_norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 4 * width)
        self.contract = nn.Linear(4 * width, width)
        self.mlp_norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, mask: Tensor | None, read: Tensor | None = None) -> Tensor:
        """x [B, T, D] -> [B, T, D], or [B, R, D] where only the positions `read` [R] are wanted."""
        attended = self.attention(self.attention_norm(x) if self.pre_norm else x, mask, read)
        x = x if read is None else x.index_select(1, read)
        x = x + attended
        if self.pre_norm:
            return x + self._mlp(self.mlp_norm(x))
        x = self.attention_norm(x)
        normed: Tensor = self.mlp_norm(x + self._mlp(x))
        return normed

    def _mlp(self, x: Tensor) -> Tensor:
        hidden = self.expand(x)
        hidden = F.relu(hidden) if self.relu else F.gelu(hidden)
        return F.dropout(self.contract(hidden), self.dropout, self.training)


class SequenceModel(ActionBox, nn.Module, ABC):
    """What Decision Transformer and Reinformer share: embeddings, blocks, the action box.

    Args:
        config: the architecture; `config.kind` has to be that of the class.
        observation_dim: S.
        action_dim: A.
        action_low: [A] or a scalar, the action box's lower bounds.
        action_high: [A] or a scalar, the upper bounds.
        normalizer: of the observations; None leaves them raw.

    Actions enter the embedding in units where the box is [-1, 1], and come out of a tanh.
    """

    kind: ClassVar[ModelKind]

    def __init__(
        self,
        config: ModelConfig,
        observation_dim: int,
        action_dim: int,
        action_low: float | Sequence[float] | NDArray[np.floating] | Tensor = -1.0,
        action_high: float | Sequence[float] | NDArray[np.floating] | Tensor = 1.0,
        normalizer: Normalizer | None = None,
    ) -> None:
        super().__init__()
        if config.kind != self.kind:
            raise ValueError(
                f"config: expected kind={self.kind!r}, which a {type(self).__name__} is, got "
                f"kind={config.kind!r}"
            )
        normalizer = normalizer or Normalizer.identity(observation_dim)
        if normalizer.mean.shape != (observation_dim,):
            raise ValueError(
                f"normalizer: expected one of {observation_dim} features, "
                f"got {normalizer.mean.shape[0]}"
            )
        low, high = _action_box(action_low, action_high, action_dim)
        self.config = config
        self.observation_dim = observation_dim
        self.action_dim = action_dim
        self.normalizer = normalizer
        self.register_buffer("action_low", low)
        self.register_buffer("action_high", high)
        self._build(config, observation_dim, action_dim)

    def _build(self, config: ModelConfig, observation_dim: int, action_dim: int) -> None:
        """The layers."""
        width = config.embedding_dim
        self.embed_timestep = nn.Embedding(config.max_timestep, width)
        self.embed_observation = nn.Linear(observation_dim, width)
        self.embed_return = nn.Linear(1, width)
        self.embed_action = nn.Linear(action_dim, width)
        self.embed_norm = nn.LayerNorm(width)
        is_dt = config.kind == "dt"
        self.blocks = nn.ModuleList(Block(config, drop_weights=is_dt) for _ in range(config.blocks))
        self.final_norm = nn.LayerNorm(width) if config.block_norm == "pre" else nn.Identity()
        self.predict_action = nn.Linear(width, action_dim)

    @abstractmethod
    def forward(
        self,
        observations: Tensor,
        actions: Tensor,
        returns_to_go: Tensor,
        timesteps: Tensor,
        mask: Tensor | None = None,
    ) -> SequenceOutput:
        """Predictions for every step of a window.

        Args:
            observations: [B, K, S], raw.
            actions: [B, K, A]; the action of a step has no influence on what is predicted there.
            returns_to_go: [B, K], raw.
            timesteps: [B, K], integers from 0 to config.max_timestep - 1.
            mask: [B, K], True at real steps; None means that all are. Predictions at the others
                are finite and mean nothing.

        K may be anything up to max_timestep; training uses config.context_length, and with sliding
        attention config.history steps more, real ones in front. Sliding attention sees, in each
        block, config.context_length steps: its own and those before it. The range of timesteps is
        checked on the CPU only, where it costs nothing; on a GPU the caller checks.
        """

    def _embed(
        self, observations: Tensor, actions: Tensor, returns_to_go: Tensor, timesteps: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Observation, action and return tokens, each [B, K, D], before the LayerNorm."""
        if timesteps.device.type == "cpu" and not torch.compiler.is_compiling():
            self._check_timesteps(timesteps)
        time = self.embed_timestep(timesteps)
        return_inputs = returns_to_go.unsqueeze(-1) / self.config.rtg_scale
        return (
            self.embed_observation(self.normalizer(observations)) + time,
            self.embed_action(self.unit_actions(actions)) + time,
            self.embed_return(return_inputs) + time,
        )

    def _check_timesteps(self, timesteps: Tensor) -> None:
        if timesteps.numel() == 0:
            return
        low, high = (int(bound) for bound in timesteps.aminmax())
        if low < 0 or high >= self.config.max_timestep:
            raise ValueError(
                f"timesteps: expected 0 to {self.config.max_timestep - 1} "
                f"(max_timestep - 1), got {low} to {high}"
            )

    def _transform(
        self, tokens: Sequence[Tensor], mask: Tensor | None, read: Sequence[int] = (0, 1, 2)
    ) -> Tensor:
        """Tokens of a step in their order, 3 x [B, K, D] -> hidden states [B, K, R, D].

        `read` says which R of a step's tokens are wanted. What follows the last of them is seen by
        none of them, and the last block has nothing to do for the others: both are left out.
        """
        batch, steps, width = tokens[0].shape
        x = torch.stack(tuple(tokens), dim=2).reshape(batch, TOKENS_PER_STEP * steps, width)
        x = self._drop_embedding(self.embed_norm(x))
        span = self.config.context_length if self.config.attention == "sliding" else steps
        visible = _visible(steps, span, mask, x.device)
        length = TOKENS_PER_STEP * (steps - 1) + max(read) + 1
        x = x[:, :length]
        if visible is not None:
            visible = visible[..., :length, :length]
        for block in self.blocks[:-1]:
            x = block(x, visible)
        first = TOKENS_PER_STEP * torch.arange(steps, device=x.device)
        # Nothing is copied from the host: this may be part of a CUDA graph.
        positions = torch.stack([first + token for token in read], dim=1).flatten()
        x = self.blocks[-1](x, visible, positions if len(read) < TOKENS_PER_STEP else None)
        hidden: Tensor = self.final_norm(x).reshape(batch, steps, len(read), width)
        return hidden

    def _drop_embedding(self, x: Tensor) -> Tensor:
        return x


class DecisionTransformer(SequenceModel):
    """Chen et al. 2021. Predicts the action from the return, the observation and what was before.

    A padded step (mask False) is invisible to every real one, so what it holds has no influence;
    kzl's code fills its action with -10.
    """

    kind = "dt"

    def __init__(
        self,
        config: ModelConfig,
        observation_dim: int,
        action_dim: int,
        action_low: float | Sequence[float] | NDArray[np.floating] | Tensor = -1.0,
        action_high: float | Sequence[float] | NDArray[np.floating] | Tensor = 1.0,
        normalizer: Normalizer | None = None,
    ) -> None:
        super().__init__(config, observation_dim, action_dim, action_low, action_high, normalizer)
        # As in kzl's code, which inherits it from GPT-2, for the blocks alone.
        for module in self.blocks.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=GPT2_INITIAL_STD)
                nn.init.zeros_(module.bias)

    def forward(
        self,
        observations: Tensor,
        actions: Tensor,
        returns_to_go: Tensor,
        timesteps: Tensor,
        mask: Tensor | None = None,
    ) -> SequenceOutput:
        observation, action, target = self._embed(observations, actions, returns_to_go, timesteps)
        hidden = self._transform((target, observation, action), mask, read=(1,))
        mean = torch.tanh(self.predict_action(hidden[:, :, 0]).float())
        return SequenceOutput(self.box_actions(mean))

    def _drop_embedding(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.config.dropout, self.training)


class Reinformer(SequenceModel):
    """Zhuang et al. 2024. Predicts the return first, then the action given that return.

    The action is a Normal around a tanh, with a standard deviation that does not depend on the
    state. The paper's code also has a head for the next state, which its loss does not use; it is
    left out here. `mask` is accepted and unused: padding comes after the real steps, where
    causality already hides it, and the loss leaves it out.
    """

    kind = "reinformer"

    def __init__(
        self,
        config: ModelConfig,
        observation_dim: int,
        action_dim: int,
        action_low: float | Sequence[float] | NDArray[np.floating] | Tensor = -1.0,
        action_high: float | Sequence[float] | NDArray[np.floating] | Tensor = 1.0,
        normalizer: Normalizer | None = None,
    ) -> None:
        super().__init__(config, observation_dim, action_dim, action_low, action_high, normalizer)
        self.predict_return = nn.Linear(config.embedding_dim, 1)
        self.log_std = nn.Parameter(torch.zeros(action_dim))

    def forward(
        self,
        observations: Tensor,
        actions: Tensor,
        returns_to_go: Tensor,
        timesteps: Tensor,
        mask: Tensor | None = None,
    ) -> SequenceOutput:
        observation, action, target = self._embed(observations, actions, returns_to_go, timesteps)
        hidden = self._transform((observation, target, action), mask=None, read=(0, 1))
        mean = torch.tanh(self.predict_action(hidden[:, :, 1]).float())
        returns = self.predict_return(hidden[:, :, 0]).float().squeeze(-1) * self.config.rtg_scale
        return SequenceOutput(self.box_actions(mean), self.log_std.clamp(*LOG_STD_RANGE), returns)


# And "mlp", which dtag_fast.models.mlp adds.
MODELS: dict[str, type[SequenceModel]] = {"dt": DecisionTransformer, "reinformer": Reinformer}


def build_model(
    config: ModelConfig,
    observation_dim: int,
    action_dim: int,
    action_low: float | Sequence[float] | NDArray[np.floating] | Tensor = -1.0,
    action_high: float | Sequence[float] | NDArray[np.floating] | Tensor = 1.0,
    normalizer: Normalizer | None = None,
) -> SequenceModel:
    """The sequence model of `config.kind`, with fresh weights. Arguments: see `SequenceModel`."""
    if config.kind == "mlp":
        importlib.import_module("dtag_fast.models.mlp")
    return MODELS[config.kind](
        config, observation_dim, action_dim, action_low, action_high, normalizer
    )


def _visible(steps: int, span: int, mask: Tensor | None, device: torch.device) -> Tensor | None:
    """Which tokens each token may look at, [B or 1, 1, 3K, 3K]; None is the causal mask.

    Earlier tokens of the last `span` steps, its own among them, that are real by `mask` [B, K]; and
    always itself: a row of a softmax with nothing in it is NaN.
    """
    if mask is None and span >= steps:
        return None
    length = TOKENS_PER_STEP * steps
    visible = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    if span < steps:
        step = torch.arange(length, device=device) // TOKENS_PER_STEP
        visible &= step.unsqueeze(1) - step < span
    if mask is None:
        return visible[None, None]
    real = mask.bool().repeat_interleave(TOKENS_PER_STEP, dim=1)  # [B, T]
    itself = torch.eye(length, dtype=torch.bool, device=device)
    return ((visible & real.unsqueeze(1)) | itself).unsqueeze(1)


def _action_box(low: object, high: object, action_dim: int) -> tuple[Tensor, Tensor]:
    bounds = []
    for name, value in (("action_low", low), ("action_high", high)):
        bound = torch.as_tensor(value, dtype=torch.float32).detach().cpu()
        if bound.ndim == 0:
            bound = bound.expand(action_dim)
        if bound.shape != (action_dim,):
            raise ValueError(
                f"{name}: expected a number or a vector of {action_dim}, got {list(bound.shape)}"
            )
        if not bool(bound.isfinite().all()):
            raise ValueError(f"{name}: expected finite numbers, got {bound.tolist()}")
        bounds.append(bound.clone())
    if not bool((bounds[0] < bounds[1]).all()):
        raise ValueError(
            f"action_low: expected less than action_high={bounds[1].tolist()}, "
            f"got {bounds[0].tolist()}"
        )
    return bounds[0], bounds[1]
