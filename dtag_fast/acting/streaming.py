"""Acting with a streaming model: keys and values of the past are kept, a step is three tokens.

With sliding attention (`ModelConfig.attention`) a token's hidden states do not change once they are
computed: in each block it sees its own step and the K - 1 steps before, whatever comes later, and
its position is its episode's timestep. So each block's keys and values of the last steps are kept,
and a step of acting adds the tokens that are new: the action executed last, the return and the
observation. Equal to the model's forward pass over the whole episode so far, but for rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from dtag_fast.acting.context import PredictingContext
from dtag_fast.models.decision_transformer import (
    TOKENS_PER_STEP,
    Block,
    Reinformer,
    SequenceModel,
)

TokenKind = Literal["observation", "return", "action"]
ORDER: dict[str, tuple[TokenKind, ...]] = {
    "dt": ("return", "observation", "action"),
    "reinformer": ("observation", "return", "action"),
}
EMPTY = -1  # of a slot in which no token is; every token's index is 0 or more


class StreamingContext(PredictingContext):
    """The kept keys and values for B environments, each at a timestep of its own.

    To a token predictor it is a `Context` whose windows have one step, the current one. What was
    before is in the keys and values: rings of 3 (K + 1) tokens a row and block, token o of step t
    being token tau = 3 t + o and in slot tau mod 3 (K + 1). (Of the step K steps ago the action
    executed last, which enters only now, still sees what the current step's tokens do not.)

    The weights must stay as they are during an episode: what is kept was made with them.

    Args:
        model: with sliding attention, in evaluation mode when it is asked for a prediction.
        num_envs: B.
    """

    def __init__(self, model: SequenceModel, num_envs: int) -> None:
        config = model.config
        if config.attention != "sliding":
            raise ValueError(
                f"model: expected one with sliding attention, got attention={config.attention!r}"
            )
        device = model.action_low.device
        super().__init__(num_envs, 1, model.observation_dim, model.action_dim, device)
        self.mask.fill_(True)
        self.span = config.context_length
        self.slots = TOKENS_PER_STEP * (self.span + 1)
        self._model = model
        self._blocks = [block for block in model.blocks if isinstance(block, Block)]
        self._order = {kind: place for place, kind in enumerate(ORDER[config.kind])}
        self._previous_action = torch.zeros(num_envs, model.action_dim, device=device)
        self._tokens = torch.full((num_envs * self.slots,), EMPTY, device=device)
        shape = (num_envs * self.slots, config.embedding_dim)
        self._keys = [torch.zeros(shape, device=device) for _ in self._blocks]
        self._values = [torch.zeros(shape, device=device) for _ in self._blocks]
        self._slot_starts = torch.arange(num_envs, device=device).unsqueeze(1) * self.slots
        # Whether the current step's tokens are in the rings: those that no return token precedes,
        # and the return token as it was last written.
        self._has_prefix = self._has_token = True

    def reset_rows(self, rows: NDArray[np.bool_]) -> None:
        """Begin a new episode in the environments where `rows` [B] is True; others go on."""
        self._finish_step()
        self.steps[rows] = -1
        chosen = torch.from_numpy(np.flatnonzero(rows)).to(self.device)
        self._now.index_fill_(0, chosen, -1)
        self.token.index_fill_(0, chosen, 0.0)
        self.actions.index_fill_(0, chosen, 0.0)
        slots = self._slots_of(chosen)
        self._tokens.index_fill_(0, slots, EMPTY)
        for kept in (*self._keys, *self._values):
            # Unseen is not enough: a NaN would come through a weight of zero.
            kept.index_fill_(0, slots, 0.0)

    def select(self, rows: NDArray[np.int64]) -> StreamingContext:
        """A new context of the environments `rows`, indices in the order wanted."""
        self._finish_step()
        chosen = torch.from_numpy(rows).to(self.device)
        other = StreamingContext(self._model, len(rows))
        other.steps[:] = self.steps[rows]
        other._now.copy_(self._now[chosen])
        other.token.copy_(self.token[chosen])
        other.received.copy_(self.received[chosen])
        other.actions.copy_(self.actions[chosen])
        slots = self._slots_of(chosen)
        other._tokens.copy_(self._tokens[slots])
        for theirs, own in zip(
            (*other._keys, *other._values), (*self._keys, *self._values), strict=True
        ):
            theirs.copy_(own[slots])
        return other

    def begin_step(self, observations: Tensor) -> None:
        """Move every environment to its next timestep, at which it observed [B, S]."""
        self._finish_step()
        self.steps += 1
        self._now += 1
        torch.eq(self._now, 0, out=self.first)
        self._previous_action.copy_(self.actions[:, 0])
        self.observations[:, 0] = observations
        self.timesteps[:, 0] = self._now
        self.actions.zero_()
        self.tokens.zero_()
        self._has_prefix = self._has_token = False

    def write_token(self, tokens: Tensor) -> None:
        """Set the current step's return tokens [B], raw."""
        self.token.copy_(tokens)
        self.tokens[:, 0] = self.token
        self._has_token = False

    def write_actions(self, actions: Tensor) -> None:
        """Store the current step's actions [B, A], for the steps that follow."""
        self.actions[:, 0] = actions

    def current(self, values: Tensor) -> Tensor:
        """What `values` [B, 1, ...] holds at the current steps, [B, ...]."""
        return values[:, 0]

    def predict_returns(self) -> Tensor:
        """The returns-to-go [B], raw, that a Reinformer predicts for the current step.

        Raises:
            RuntimeError: asked for twice in a step, or after the actions.
        """
        assert isinstance(self._model, Reinformer), "a Decision Transformer predicts no returns"
        if self._has_prefix:
            raise RuntimeError("predict_returns: once a step, before predict_actions")
        hidden = self._run("action", "observation")
        self._has_prefix = True
        returns: Tensor = self._model.predict_return(hidden).squeeze(-1)
        return returns * self._model.config.rtg_scale

    def predict_actions(self) -> Tensor:
        """The mean actions [B, A] for the current step, given the return token written last."""
        model = self._model
        hidden = self._run_token()
        return model.box_actions(torch.tanh(model.predict_action(hidden)))

    def _run_token(self) -> Tensor:
        """All of the step's tokens but the action, as far as they are not in the rings already.

        Returns:
            The hidden state [B, D] at which the action is read.
        """
        before: tuple[TokenKind, ...] = ("action",)
        after: tuple[TokenKind, ...] = ("return", "observation")
        if isinstance(self._model, Reinformer):
            before, after = ("action", "observation"), ("return",)
        hidden = self._run(*(() if self._has_prefix else before), *after)
        self._has_prefix = self._has_token = True
        return hidden

    def _finish_step(self) -> None:
        """Take in a token that was written and that no prediction has asked for."""
        if not self._has_token:
            self._run_token()

    def _run(self, *kinds: TokenKind) -> Tensor:
        """Add tokens, in their order, to the rings; the hidden state [B, D] of the last one.

        "action" is the one executed last, the others are of the current step.
        """
        model, span, batch, count = self._model, self.span, self.num_envs, len(kinds)
        offsets = [
            self._order[kind] - (TOKENS_PER_STEP if kind == "action" else 0) for kind in kinds
        ]
        now = TOKENS_PER_STEP * self._now
        index = torch.stack([now + offset for offset in offsets], dim=1)  # [B, Q]: tau
        slots = (self._slot_starts + index % self.slots).flatten()
        # At an episode's first step there is no action yet. What stands for it is marked EMPTY, so
        # that no other token sees it.
        self._tokens.index_copy_(0, slots, index.flatten().clamp(min=EMPTY))
        step = torch.div(index, TOKENS_PER_STEP, rounding_mode="floor")
        oldest = torch.minimum((TOKENS_PER_STEP * (step - span + 1)).clamp_(min=0), index)
        kept = self._tokens.view(batch, 1, self.slots)
        seen = (kept >= oldest.unsqueeze(2)) & (kept <= index.unsqueeze(2))
        seen = seen.unsqueeze(1)  # [B, 1, Q, slots]

        x = model.embed_norm(self._embed(kinds))  # [B, Q, D]
        for number, block in enumerate(self._blocks):
            normed = block.attention_norm(x) if block.pre_norm else x
            attention = block.attention
            for ring, layer in ((self._keys, attention.key), (self._values, attention.value)):
                ring[number].index_copy_(0, slots, layer(normed).view(batch * count, -1))
            if number == len(self._blocks) - 1:
                x, normed, seen = x[:, -1:], normed[:, -1:], seen[:, :, -1:]
            query, keys, values = (
                each.view(batch, -1, attention.heads, each.shape[-1] // attention.heads).transpose(
                    1, 2
                )
                for each in (attention.query(normed), self._keys[number], self._values[number])
            )
            attended = F.scaled_dot_product_attention(query, keys, values, attn_mask=seen)
            x = x + attention.projection(attended.transpose(1, 2).flatten(2))
            if not block.pre_norm:
                x = block.attention_norm(x)
            hidden = block.expand(block.mlp_norm(x) if block.pre_norm else x)
            x = x + block.contract(F.relu(hidden) if block.relu else F.gelu(hidden))
            x = x if block.pre_norm else block.mlp_norm(x)
        final: Tensor = model.final_norm(x[:, -1])
        return final

    def _embed(self, kinds: Sequence[TokenKind]) -> Tensor:
        """The tokens [B, Q, D] before the LayerNorm."""
        model = self._model
        now = model.embed_timestep(self._now)
        embedded = []
        for kind in kinds:
            if kind == "observation":
                normalized = model.normalizer(self.observations[:, 0])
                embedded.append(model.embed_observation(normalized) + now)
            elif kind == "return":
                scaled = self.token.unsqueeze(1) / model.config.rtg_scale
                embedded.append(model.embed_return(scaled) + now)
            else:
                before = model.embed_timestep((self._now - 1).clamp(min=0))
                embedded.append(
                    model.embed_action(model.unit_actions(self._previous_action)) + before
                )
        return torch.stack(embedded, dim=1)

    def _slots_of(self, rows: Tensor) -> Tensor:
        """All slots of the rows, [rows * slots]."""
        places = torch.arange(self.slots, device=self.device)
        return (self._slot_starts[rows] + places).flatten()
