"""The arguments of `Policy`, checked and made plain."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dtag_fast.acting.token_predictors import TokenPredictor

Floats = NDArray[np.float32]
Rows = NDArray[np.bool_] | NDArray[np.integer] | Sequence[int]


def check_observations(
    observations: ArrayLike, num_envs: int, observation_dim: int
) -> tuple[Floats, bool]:
    """[B, S] of anything that is [B, S] or, for one environment, [S]; and whether it was [S]."""
    values = np.asarray(observations, dtype=np.float32)
    single = values.ndim == 1
    if single:
        values = values[np.newaxis]
    if values.shape != (num_envs, observation_dim):
        expected = f"[{num_envs}, {observation_dim}]"
        if num_envs == 1:
            expected = f"[{observation_dim}] or {expected}"
        raise ValueError(
            f"observations: expected {expected}, got {list(np.shape(observations))}; "
            f"the number of environments is set by reset(num_envs)"
        )
    if not np.isfinite(values).all():
        row = int(np.flatnonzero(~np.isfinite(values).all(axis=1))[0])
        raise ValueError(f"observations: not finite in environment {row}: {values[row].tolist()}")
    return np.ascontiguousarray(values), single


def check_rewards(
    rewards: ArrayLike | None, predictor: TokenPredictor, steps: NDArray[np.int64], single: bool
) -> Floats | None:
    """The rewards [B] for a predictor that needs them, else None.

    Args:
        rewards: [B], or a number if `single`.
        predictor: the policy's.
        steps: [B], the timesteps of the last actions; -1 before an episode's first.
        single: whether the observations came as [S].
    """
    if not predictor.needs_rewards:
        return None
    going_on = steps >= 0
    if rewards is None:
        if going_on.any():
            raise ValueError(
                f"rewards: needed by {type(predictor).__name__} after the first "
                f"step of an episode: act(observations, rewards received since the last call)"
            )
        return None
    values = np.asarray(rewards, dtype=np.float32)
    if single and values.ndim == 0:
        values = values[np.newaxis]
    if values.shape != steps.shape:
        raise ValueError(f"rewards: expected [{len(steps)}], got {list(values.shape)}")
    bad = going_on & ~np.isfinite(values)
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise ValueError(f"rewards: not finite in environment {row}: {values[row]}")
    return np.ascontiguousarray(values)


def check_timesteps(steps: NDArray[np.int64], limit: int) -> None:
    """That the steps after `steps` are among the `limit` that the model knows."""
    if int(steps.max()) + 1 >= limit:
        raise ValueError(
            f"the episode is longer than the {limit} timesteps (max_timestep) that the model "
            f"knows; call reset() or reset_rows() where an episode ends"
        )


def row_indices(rows: Rows, num_envs: int) -> NDArray[np.int64]:
    """Indices of environments, from indices or a mask [B]."""
    array = np.asarray(rows)
    if array.size == 0:
        return np.zeros(0, dtype=np.int64)
    if array.dtype == np.bool_ and array.shape == (num_envs,):
        return np.flatnonzero(array).astype(np.int64, copy=False)
    if not np.issubdtype(array.dtype, np.integer) or array.ndim != 1:
        raise ValueError(
            f"rows: expected a mask [{num_envs}] or a list of indices, "
            f"got {array.dtype} {list(array.shape)}"
        )
    if array.min() < 0 or array.max() >= num_envs:
        raise ValueError(f"rows: expected 0 to {num_envs - 1}, got {array.tolist()}")
    return array.astype(np.int64)
