"""Random windows for sequence models, as vectorised gathers.

The sampler owns its generator (PCG64), so a run that saves `state_dict` and loads it again draws
the same batches as one that never stopped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dtag_fast.data.trajectories import Trajectories

Sampling = Literal["trajectory", "length"]
Padding = Literal["right", "left"]


@dataclass(frozen=True)
class Windows:
    """B windows of K steps. Where `mask` is False the step is padding and every array is 0."""

    observations: NDArray[np.float32]  # [B, K, S]
    actions: NDArray[np.float32]  # [B, K, A]
    returns_to_go: NDArray[np.float32]  # [B, K], raw reward units
    timesteps: NDArray[np.int64]  # [B, K], position in the episode
    mask: NDArray[np.bool_]  # [B, K], True for a real step


class WindowSampler:
    """Windows of `context_length` = K consecutive steps of one episode.

    Args:
        trajectories: the dataset; its arrays are used in place, not copied.
        context_length: K >= 1.
        sampling: "trajectory" draws an episode uniformly and then, uniformly, a start such that the
            window is full; an episode shorter than K gives all its steps (Reinformer:
            data/d4rl_trajectory_dataset.py; there every episode comes once per epoch, here draws
            are independent, so that a batch may be larger than the number of episodes).
            "length" draws an episode with probability proportional to its length and a start
            uniform over its steps; a window that runs past the end is shorter (Decision
            Transformer: kzl/decision-transformer, gym/experiment.py).
        padding: the side on which a shorter window is filled up: "right" in Reinformer, "left" in
            Decision Transformer.
        seed: of the generator.
    """

    def __init__(
        self,
        trajectories: Trajectories,
        context_length: int,
        *,
        sampling: Sampling,
        padding: Padding,
        seed: int,
    ) -> None:
        if context_length < 1:
            raise ValueError(f"context_length: expected at least 1, got {context_length}")
        if sampling not in ("trajectory", "length"):
            raise ValueError(f"sampling: expected 'trajectory' or 'length', got {sampling!r}")
        if padding not in ("right", "left"):
            raise ValueError(f"padding: expected 'right' or 'left', got {padding!r}")
        self.trajectories = trajectories
        self.context_length = context_length
        self.sampling = sampling
        self.padding = padding
        self._generator = np.random.Generator(np.random.PCG64(seed))
        self._returns_to_go = trajectories.returns_to_go()
        self._first = trajectories.offsets[:-1]
        self._lengths = trajectories.lengths()
        self._window = np.arange(context_length)

    def sample(self, batch_size: int) -> Windows:
        """`batch_size` independent windows."""
        if batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
        episode, start = self._draw(batch_size)
        real = np.minimum(self._lengths[episode] - start, self.context_length)
        # Position of each slot relative to the first real step; real steps are 0 .. real - 1.
        slot = np.broadcast_to(self._window, (batch_size, self.context_length))
        if self.padding == "left":
            slot = slot - (self.context_length - real)[:, None]
        mask = (slot >= 0) & (slot < real[:, None])
        timesteps = np.where(mask, slot + start[:, None], 0)
        rows = timesteps + self._first[episode][:, None]
        data = self.trajectories
        observations = data.observations.take(rows, axis=0)
        actions = data.actions.take(rows, axis=0)
        returns_to_go = self._returns_to_go.take(rows)
        if not mask.all():
            padded = ~mask
            observations[padded] = 0.0
            actions[padded] = 0.0
            returns_to_go[padded] = 0.0
        return Windows(observations, actions, returns_to_go, timesteps, mask)

    def _draw(self, batch_size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Episodes [B] and, within them, the first steps [B] of the windows."""
        if self.sampling == "trajectory":
            episode = self._generator.integers(self.trajectories.episodes, size=batch_size)
            starts = np.maximum(self._lengths[episode] - self.context_length, 0) + 1
            return episode, self._generator.integers(starts)
        # Length-weighted episode and uniform start together are one uniform draw over all steps.
        step = self._generator.integers(self.trajectories.steps, size=batch_size)
        episode = np.searchsorted(self.trajectories.offsets, step, side="right") - 1
        return episode, step - self._first[episode]

    def state_dict(self) -> dict[str, Any]:
        """The generator's state and what it belongs to; JSON values only."""
        return {**self._settings(), "generator": dict(self._generator.bit_generator.state)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken. ValueError if it belongs to other settings."""
        settings = self._settings()
        found = {name: state.get(name) for name in settings}
        if found != settings:
            raise ValueError(
                f"state: it was taken from a sampler with {found}, this one has {settings}"
            )
        self._generator.bit_generator.state = state["generator"]

    def _settings(self) -> dict[str, Any]:
        return {
            "context_length": self.context_length,
            "sampling": self.sampling,
            "padding": self.padding,
            "episodes": self.trajectories.episodes,
            "steps": self.trajectories.steps,
        }
