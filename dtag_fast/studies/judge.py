"""What can be said of a critic without the environment."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dtag_fast.acting.policy import Policy
from dtag_fast.data.rewards import scale_rewards
from dtag_fast.data.trajectories import Trajectories
from dtag_fast.models.critic import Critic
from dtag_fast.refinement import Refiner
from dtag_fast.training.config import CriticConfig

EPISODES, ALONG = 20, 200  # recorded episodes, and at most so many steps from the start of each
STEPS = 5000  # of the data, for a critic's quality


def confirmed_gain(
    policy: Policy, refiner: Refiner, critic: Critic, second: Critic, data: Trajectories
) -> dict[str, float]:
    """How much of the gain in Q that a critic claims another one confirms.

    The policy acts, unrefined, along recorded episodes: the observations are the data's, the tokens
    and the actions in its context its own. There its actions are refined by the first critic; both
    say what they think of the change. The second, of another seed, does not share the first one's
    errors, except those that the data make.

    Returns:
        claimed, confirmed: mean gain in Q; confirmed_share: their ratio; relative_gain: the claimed
        one over the mean of |Q|; moved: mean L2 distance. All by the ensembles' minimum.
    """
    observations, actions = _along_the_data(policy.without_refinement(), data)
    refined, _ = refiner(observations, actions)
    claimed = _lowest(critic, observations, refined) - _lowest(critic, observations, actions)
    confirmed = _lowest(second, observations, refined) - _lowest(second, observations, actions)
    scale = _lowest(critic, observations, actions).abs().mean()
    gain = float(claimed.mean())
    return {
        "claimed": gain,
        "confirmed": float(confirmed.mean()),
        "confirmed_share": float(confirmed.mean()) / gain if gain > 0 else 0.0,
        "relative_gain": gain / float(scale) if float(scale) > 0 else 0.0,
        "moved": float(torch.linalg.vector_norm(refined - actions, dim=-1).mean()),
    }


def critic_quality(critic: Critic, config: CriticConfig, data: Trajectories) -> dict[str, float]:
    """A critic's Q at the data's own actions against the discounted return that followed.

    Both in the scaled rewards that the critic was trained on.

    Where an episode was cut off the rest of its return is not known; steps with less than a good
    part of the discounting horizon before such an end are left out.

    Returns:
        critic_bias: mean of Q - G in units of the standard deviation of G. IQL with an expectile
        above 0.5 aims above what the data did, so some of it is wanted. critic_rank: Spearman's
        rank correlation of Q and G.
    """
    scaled = scale_rewards(data, config.reward_scaling)
    ends = np.repeat(data.offsets[1:], data.lengths())
    left = ends - np.arange(data.steps)
    terminated = data.terminations[ends - 1]
    needed = min(200, int(data.lengths().max()) // 2)
    known = np.flatnonzero(terminated | (left >= needed))
    rng = np.random.default_rng(0)
    rows = rng.choice(known, size=min(STEPS, len(known)), replace=False)
    returns = scaled.returns_to_go(config.discount)[rows].astype(np.float64)
    observations, actions = (torch.from_numpy(a[rows]) for a in (data.observations, data.actions))
    values = _lowest(critic, observations, actions).double().numpy()
    spread = float(returns.std())
    return {
        "critic_bias": float((values - returns).mean()) / spread if spread > 0 else 0.0,
        "critic_rank": spearman(values, returns),
    }


def spearman(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """The rank correlation of two vectors [N], 0 if one is constant; ties share their mean rank."""
    ranks = [_ranks(values) - (len(values) - 1) / 2 for values in (x, y)]
    norm = float(np.linalg.norm(ranks[0]) * np.linalg.norm(ranks[1]))
    return float(ranks[0] @ ranks[1]) / norm if norm > 0 else 0.0


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    middle: NDArray[np.float64] = (last - counts + last - 1) / 2
    return middle[inverse]


def _lowest(critic: Critic, observations: Tensor, actions: Tensor) -> Tensor:
    with torch.inference_mode():
        q: Tensor = critic(observations, actions)
    return q.min(dim=0).values


def _along_the_data(policy: Policy, data: Trajectories) -> tuple[Tensor, Tensor]:
    """Observations [N, S] of recorded episodes and the policy's actions [N, A] there."""
    episodes = np.random.default_rng(0).permutation(data.episodes)[:EPISODES]
    rows = data.offsets[episodes]
    ends = np.minimum(rows + ALONG, data.offsets[episodes + 1])
    observations, actions = [], []
    policy.reset(len(episodes))
    while True:
        observations.append(data.observations[rows])
        # The first rewards belong to no step, and are ignored.
        actions.append(policy.act(observations[-1], data.rewards[np.maximum(rows - 1, 0)]))
        going = rows + 1 < ends
        if not going.any():
            break
        policy.keep_rows(going)
        rows, ends = rows[going] + 1, ends[going]
    return torch.from_numpy(np.concatenate(observations)), torch.from_numpy(np.concatenate(actions))
