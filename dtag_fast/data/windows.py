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
    """B windows of W = history + K steps. Where `mask` is False all arrays are 0: it is padding."""

    observations: NDArray[np.float32]  # [B, W, S]
    actions: NDArray[np.float32]  # [B, W, A]
    returns_to_go: NDArray[np.float32]  # [B, W], raw reward units
    timesteps: NDArray[np.int64]  # [B, W], position in the episode
    mask: NDArray[np.bool_]  # [B, W], True for a real step
    drawn: NDArray[np.bool_]  # [B, W], True for one of the K steps that were drawn; not history


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
        history: how many steps of the episode before the K drawn ones a window holds besides, as
            far as there are as many. They change nothing of what is drawn.
    """

    def __init__(
        self,
        trajectories: Trajectories,
        context_length: int,
        *,
        sampling: Sampling,
        padding: Padding,
        seed: int,
        history: int = 0,
    ) -> None:
        for name, value, least in (("context_length", context_length, 1), ("history", history, 0)):
            if value < least:
                raise ValueError(f"{name}: expected at least {least}, got {value}")
        if sampling not in ("trajectory", "length"):
            raise ValueError(f"sampling: expected 'trajectory' or 'length', got {sampling!r}")
        if padding not in ("right", "left"):
            raise ValueError(f"padding: expected 'right' or 'left', got {padding!r}")
        self.trajectories = trajectories
        self.context_length = context_length
        self.sampling = sampling
        self.padding = padding
        self.history = history
        self._generator = np.random.Generator(np.random.PCG64(seed))
        self._returns_to_go = trajectories.returns_to_go()
        self._first = trajectories.offsets[:-1]
        self._lengths = trajectories.lengths()
        self._window = np.arange(history + context_length)

    def sample(self, batch_size: int) -> Windows:
        """`batch_size` independent windows."""
        episode, start = self.draw(batch_size)
        begin = np.maximum(start - self.history, 0)
        real = np.minimum(self._lengths[episode], start + self.context_length) - begin
        # Position of each slot relative to the first real step; real steps are 0 .. real - 1.
        slot = np.broadcast_to(self._window, (batch_size, len(self._window)))
        if self.padding == "left":
            slot = slot - (len(self._window) - real)[:, None]
        mask = (slot >= 0) & (slot < real[:, None])
        drawn = mask & (slot >= (start - begin)[:, None])
        timesteps = np.where(mask, slot + begin[:, None], 0)
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
        return Windows(observations, actions, returns_to_go, timesteps, mask, drawn)

    def draw(self, batch_size: int) -> NDArray[np.int64]:
        """What the next `sample` would have windows of, [2, B]: episodes, and first steps there."""
        if batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
        if self.sampling == "trajectory":
            episode = self._generator.integers(self.trajectories.episodes, size=batch_size)
            starts = np.maximum(self._lengths[episode] - self.context_length, 0) + 1
            return np.stack((episode, self._generator.integers(starts)))
        # Length-weighted episode and uniform start together are one uniform draw over all steps.
        step = self._generator.integers(self.trajectories.steps, size=batch_size)
        episode = np.searchsorted(self.trajectories.offsets, step, side="right") - 1
        return np.stack((episode, step - self._first[episode]))

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
            "history": self.history,
            "episodes": self.trajectories.episodes,
            "steps": self.trajectories.steps,
        }
