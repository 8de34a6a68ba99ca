"""What a policy remembers of the episodes under way: the last K steps of each environment."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from dtag_fast.acting.inference import Cache


class Context:
    """The model's windows for B environments, each at a timestep of its own.

    A window holds the steps t - K + 1 ... t of an environment in their order, or 0 ... t followed
    by masked zeros while t < K; so the current step is at index min(t, K - 1). That is Reinformer's
    layout (eval.py). Decision Transformer pads on the left instead; as positions enter its model
    only through the timesteps, and padding is masked, the two are the same to it.

    Steps are stored in rings of K slots, step t in slot t mod K, and gathered into the windows.
    All buffers are allocated once. A step is one `begin_step`, any number of `write_token`, and one
    `write_actions`; `dtag_fast.acting.inference` has the model's predictions in between.

    Args:
        num_envs: B.
        context_length: K.
        observation_dim: S.
        action_dim: A.
        device: where the buffers are and the model runs.

    Attributes:
        observations: [B, K, S] window, raw.
        actions: [B, K, A] window; zero at the current step.
        tokens: [B, K] window of return tokens, raw; zero at the current step until written.
        timesteps: [B, K] int64 window; zero where masked.
        mask: [B, K] bool window, True at real steps.
        received: [B], rewards received in the episode so far, for a token predictor to add up in.
        token: [B], the return token written last: that of the step before until `write_token`.
        position: [B] int64, the index of the current step in its window.
        first: [B] bool, whether the current step is its episode's first.
        steps: [B] int64 on the host, the current timestep t; -1 before an episode's first step.
        prefix: what the model made of all before the current step's return token, kept for
            `dtag_fast.acting.inference` until the next step.
    """

    def __init__(
        self,
        num_envs: int,
        context_length: int,
        observation_dim: int,
        action_dim: int,
        device: torch.device | str = "cpu",
    ) -> None:
        batch, length = num_envs, context_length
        self.num_envs = num_envs
        self.context_length = context_length
        self.device = torch.device(device)
        self.steps: NDArray[np.int64] = np.full(batch, -1, dtype=np.int64)

        def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=self.device)

        self.observations = zeros(batch, length, observation_dim)
        self.actions = zeros(batch, length, action_dim)
        self.tokens = zeros(batch, length)
        self.timesteps = zeros(batch, length, dtype=torch.int64)
        self.mask = zeros(batch, length, dtype=torch.bool)
        self.token = zeros(batch)
        self.received = zeros(batch)
        self.position = zeros(batch, dtype=torch.int64)
        self.first = zeros(batch, dtype=torch.bool)
        self.prefix: tuple[Tensor, Cache] | None = None
        # Slots of row b are b * K ... b * K + K - 1.
        self._observation_slots = zeros(batch * length, observation_dim)
        self._action_slots = zeros(batch * length, action_dim)
        self._token_slots = zeros(batch * length)
        self._now = torch.full((batch,), -1, dtype=torch.int64, device=self.device)
        self._offsets = torch.arange(length, device=self.device)
        self._row_starts = torch.arange(batch, device=self.device) * length
        # Where the current step is stored, and where it stands in the flattened windows.
        self._slot = self._row_starts.clone()
        self._place = self._row_starts.clone()

    def reset(self) -> None:
        """Begin a new episode in every environment."""
        self.reset_rows(np.ones(self.num_envs, dtype=np.bool_))

    def reset_rows(self, rows: NDArray[np.bool_]) -> None:
        """Begin a new episode in the environments where `rows` [B] is True; others go on."""
        self.steps[rows] = -1
        chosen = torch.from_numpy(np.flatnonzero(rows)).to(self.device)
        self._now.index_fill_(0, chosen, -1)
        self.token.index_fill_(0, chosen, 0.0)
        slots = (self._row_starts[chosen].unsqueeze(1) + self._offsets).flatten()
        # Masked is not enough: a NaN would come through a weight of zero.
        self._observation_slots.index_fill_(0, slots, 0.0)
        self._action_slots.index_fill_(0, slots, 0.0)
        self._token_slots.index_fill_(0, slots, 0.0)

    def select(self, rows: NDArray[np.int64]) -> Context:
        """A new context of the environments `rows`, indices in the order wanted."""
        chosen = torch.from_numpy(rows).to(self.device)
        other = self._like(rows)
        slots = (self._row_starts[chosen].unsqueeze(1) + self._offsets).flatten()
        other.steps[:] = self.steps[rows]
        other._now.copy_(self._now[chosen])
        other.token.copy_(self.token[chosen])
        other.received.copy_(self.received[chosen])
        other._observation_slots.copy_(self._observation_slots[slots])
        other._action_slots.copy_(self._action_slots[slots])
        other._token_slots.copy_(self._token_slots[slots])
        return other

    def _like(self, rows: NDArray[np.int64]) -> Context:
        """A new context for the environments `rows`."""
        return Context(
            len(rows),
            self.context_length,
            self._observation_slots.shape[1],
            self._action_slots.shape[1],
            self.device,
        )

    def begin_step(self, observations: Tensor) -> None:
        """Move every environment to its next timestep, at which it observed [B, S]."""
        length = self.context_length
        self.steps += 1
        self._now += 1
        self.prefix = None
        torch.eq(self._now, 0, out=self.first)
        start = (self._now - (length - 1)).clamp_(min=0)
        torch.add(start.unsqueeze(1), self._offsets, out=self.timesteps)
        torch.le(self.timesteps, self._now.unsqueeze(1), out=self.mask)
        order = (self._row_starts.unsqueeze(1) + self.timesteps % length).flatten()
        self.timesteps *= self.mask
        torch.add(self._row_starts, self._now % length, out=self._slot)
        torch.clamp(self._now, max=length - 1, out=self.position)
        torch.add(self._row_starts, self.position, out=self._place)

        # The slot of the current step still holds what was K steps ago.
        self._observation_slots.index_copy_(0, self._slot, observations)
        self._action_slots.index_fill_(0, self._slot, 0.0)
        self._token_slots.index_fill_(0, self._slot, 0.0)
        for slots, window in (
            (self._observation_slots, self.observations),
            (self._action_slots, self.actions),
            (self._token_slots, self.tokens),
        ):
            torch.index_select(slots, 0, order, out=window.view(slots.shape))

    def write_token(self, tokens: Tensor) -> None:
        """Set the current step's return tokens [B], raw."""
        self.token.copy_(tokens)
        self._token_slots.index_copy_(0, self._slot, self.token)
        self.tokens.view(-1).index_copy_(0, self._place, self.token)

    def write_actions(self, actions: Tensor) -> None:
        """Store the current step's actions [B, A], for the steps that follow."""
        self._action_slots.index_copy_(0, self._slot, actions)

    def current(self, values: Tensor) -> Tensor:
        """What `values` [B, K, ...] holds at the current steps, [B, ...]."""
        return values.flatten(0, 1).index_select(0, self._place)


class PredictingContext(Context):
    """A context that makes the model's predictions itself, from memory of its own."""

    @abstractmethod
    def predict_returns(self) -> Tensor:
        """The returns-to-go [B], raw, that a Reinformer predicts for the current step."""

    @abstractmethod
    def predict_actions(self) -> Tensor:
        """The mean actions [B, A] for the current step, given the return token written last."""
