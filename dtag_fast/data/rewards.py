"""Reward scaling for critics, as the IQL paper and as CORL do it. Nothing is scaled by default."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, get_args

import numpy as np

from dtag_fast.data.references import task_name
from dtag_fast.data.trajectories import Trajectories

RewardScheme = Literal["none", "iql-mujoco", "antmaze", "corl"]


def scale_rewards(trajectories: Trajectories, scheme: RewardScheme) -> Trajectories:
    """The dataset with its rewards scaled; everything else is shared, not copied.

    Args:
        trajectories: the dataset, with raw rewards.
        scheme:
            "none": unchanged. IQL's and CORL's choice for Maze2d, and CORL's for most of MuJoCo.
            "iql-mujoco": r / (max return - min return) * 1000, over the dataset's episodes
            (ikostrikov/implicit_q_learning: train_offline.py; CORL's `normalize_reward` is the same
            formula).
            "antmaze": r - 1 (both).
            "corl": what CORL's configuration for this dataset says (corl-team/CORL:
            configs/offline/iql): "iql-mujoco" for hopper medium and medium-replay, "antmaze" for
            antmaze, "none" for the other hopper, halfcheetah, walker2d and maze datasets.

    The scheme and its numbers are added to `info.provenance["reward_scaling"]`. The reference
    scores stay those of raw returns.

    Raises:
        ValueError: for an unknown scheme, rewards that are scaled already, "corl" with a dataset
            it has no configuration for, or returns that are all equal.
    """
    if scheme not in get_args(RewardScheme):
        raise ValueError(f"scheme: expected one of {get_args(RewardScheme)}, got {scheme!r}")
    earlier = trajectories.info.provenance.get("reward_scaling", {"applied": "none"})
    if earlier["applied"] != "none":
        raise ValueError(f"trajectories: rewards are scaled already: {earlier}")
    applied = corl_scheme(trajectories.info.id) if scheme == "corl" else scheme
    factor, shift = 1.0, 0.0
    if applied == "antmaze":
        shift = -1.0
    elif applied == "iql-mujoco":
        returns = trajectories.returns()
        spread = float(returns.max() - returns.min())
        if spread <= 0:
            raise ValueError(
                f"scheme {scheme!r}: needs episodes of different return, all "
                f"{trajectories.episodes} of {trajectories.info.id} have {returns[0]:.6g}"
            )
        factor = 1000.0 / spread
    note = {"scheme": scheme, "applied": applied, "factor": factor, "shift": shift}
    info = trajectories.info.with_provenance(reward_scaling=note)
    if applied == "none":
        return replace(trajectories, info=info)
    rewards = trajectories.rewards.astype(np.float64) * factor + shift
    return replace(trajectories, rewards=rewards.astype(np.float32), info=info)


def corl_scheme(dataset_id: str) -> RewardScheme:
    """What "corl" means for a dataset id such as "hopper-medium-v2" or "dtag/hopper/medium-v0"."""
    task = task_name(dataset_id)
    if task == "antmaze":
        return "antmaze"
    if task == "hopper" and "medium" in dataset_id and "expert" not in dataset_id:
        return "iql-mujoco"
    if task in ("hopper", "halfcheetah", "walker2d") or "maze" in (task or ""):
        return "none"
    raise ValueError(
        f"scheme 'corl': CORL has no IQL configuration for {dataset_id!r} "
        "(only hopper, halfcheetah, walker2d, maze2d and antmaze); name a scheme"
    )
