"""The windows of a `WindowSampler`, picked on a device by tensor operations alone."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dtag_fast.data.windows import WindowSampler

Batch = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]  # fields of Windows, in their order


class DeviceWindows:
    """The dataset on a device, one row a step, and windows of it.

    Args:
        sampler: says what a window is, and draws which ones.
        device: where the dataset goes.
    """

    def __init__(self, sampler: WindowSampler, device: torch.device) -> None:
        data = sampler.trajectories
        self.context_length, self.history = sampler.context_length, sampler.history
        self.left = sampler.padding == "left"
        self.sizes = [data.observation_dim, data.action_dim, 1]
        rows = np.concatenate(
            (data.observations, data.actions, data.returns_to_go()[:, None]),
            axis=1,
            dtype=np.float32,
            casting="same_kind",
        )
        self.rows = torch.from_numpy(rows).to(device)
        self.first = torch.from_numpy(data.offsets[:-1].copy()).to(device)
        self.lengths = torch.from_numpy(data.lengths().copy()).to(device)
        self.slots = torch.arange(self.history + self.context_length, device=device)

    def __call__(self, drawn: Tensor) -> Batch:
        """The windows that `WindowSampler.draw` names, [2, B]; they are those of `sample`."""
        episode, start = drawn.unbind()
        begin = (start - self.history).clamp(min=0)
        length = self.lengths.index_select(0, episode)
        real = torch.minimum(length, start + self.context_length) - begin
        # Position of each slot relative to the first real step, as in `sample`.
        slot = self.slots.expand(len(episode), -1)
        if self.left:
            slot = slot - (len(self.slots) - real).unsqueeze(1)
        mask = (slot >= 0) & (slot < real.unsqueeze(1))
        of_drawn = mask & (slot >= (start - begin).unsqueeze(1))
        timesteps = torch.where(mask, slot + begin.unsqueeze(1), 0)
        place = timesteps + self.first.index_select(0, episode).unsqueeze(1)
        rows = self.rows.index_select(0, place.flatten()).view(*place.shape, -1)
        rows = torch.where(mask.unsqueeze(-1), rows, 0.0)
        observations, actions, returns_to_go = torch.split(rows, self.sizes, dim=-1)
        return observations, actions, returns_to_go.squeeze(-1), timesteps, mask, of_drawn
