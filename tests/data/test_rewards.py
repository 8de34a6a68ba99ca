from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from dtag_fast.data.rewards import RewardScheme, scale_rewards
from dtag_fast.data.trajectories import Trajectories

Build = Callable[..., Trajectories]


def test_iql_mujoco_gives_returns_a_range_of_1000(build: Build) -> None:
    data = build([4, 7, 5])
    scaled = scale_rewards(data, "iql-mujoco")
    returns = scaled.returns()
    assert returns.max() - returns.min() == pytest.approx(1000.0, rel=1e-5)
    factor = 1000.0 / np.ptp(data.returns())
    np.testing.assert_allclose(scaled.rewards, data.rewards * factor, rtol=1e-5)
    note = scaled.info.provenance["reward_scaling"]
    assert note["factor"] == pytest.approx(factor)
    assert (note["scheme"], note["applied"], note["shift"]) == ("iql-mujoco", "iql-mujoco", 0.0)
    assert scaled.observations is data.observations


def test_none_and_antmaze(build: Build) -> None:
    data = build([4, 7])
    np.testing.assert_array_equal(scale_rewards(data, "none").rewards, data.rewards)
    np.testing.assert_allclose(scale_rewards(data, "antmaze").rewards, data.rewards - 1, atol=1e-6)


@pytest.mark.parametrize(
    ("id", "applied"),
    [
        ("hopper-medium-v2", "iql-mujoco"),
        ("dtag/hopper/medium-replay-v0", "iql-mujoco"),
        ("hopper-medium-expert-v2", "none"),
        ("dtag/hopper/expert-v0", "none"),
        ("halfcheetah-medium-v2", "none"),
        ("walker2d-medium-replay-v2", "none"),
        ("dtag/pointmaze/umaze-v0", "none"),
        ("maze2d-large-v1", "none"),
        ("antmaze-large-play-v2", "antmaze"),
    ],
)
def test_corl_follows_its_configurations(build: Build, id: str, applied: RewardScheme) -> None:
    data = build([4, 7, 5], id=id)
    scaled = scale_rewards(data, "corl")
    assert scaled.info.provenance["reward_scaling"]["applied"] == applied
    np.testing.assert_array_equal(scaled.rewards, scale_rewards(data, applied).rewards)


def test_refuses(build: Build) -> None:
    data = build([4, 7])
    with pytest.raises(ValueError, match="scheme: expected one of"):
        scale_rewards(data, "iql")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="CORL has no IQL configuration for 'test'"):
        scale_rewards(data, "corl")
    with pytest.raises(ValueError, match="scaled already"):
        scale_rewards(scale_rewards(data, "antmaze"), "antmaze")
    with pytest.raises(ValueError, match="episodes of different return"):
        scale_rewards(build([5]), "iql-mujoco")


def test_unscaled_data_can_still_be_scaled(build: Build) -> None:
    data = scale_rewards(build([4, 7]), "none")
    assert scale_rewards(data, "antmaze").info.provenance["reward_scaling"]["applied"] == "antmaze"
