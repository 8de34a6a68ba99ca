from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dtag_fast.data.references import ReferenceScores
from dtag_fast.data.trajectories import DatasetInfo, Trajectories

Build = Callable[..., Trajectories]


def flat_arrays(steps: int = 10) -> dict[str, Any]:
    """One truncated episode of `steps` steps, all zeros."""
    ends = np.zeros(steps, np.bool_)
    ends[-1] = True
    return {
        "observations": np.zeros((steps, 3)),
        "actions": np.zeros((steps, 2)),
        "rewards": np.zeros(steps),
        "terminations": np.zeros(steps, np.bool_),
        "truncations": ends,
        "next_observations": np.zeros((steps, 3)),
    }


def test_sizes_and_episodes(build: Build) -> None:
    data = build([4, 1, 6])
    assert (data.episodes, data.steps, data.observation_dim, data.action_dim) == (3, 11, 3, 2)
    assert len(data) == 3
    assert data.lengths().tolist() == [4, 1, 6]
    assert data.timesteps().tolist() == [0, 1, 2, 3, 0, 0, 1, 2, 3, 4, 5]
    assert data.timesteps().dtype == np.int64
    last = data.episode(-1)
    np.testing.assert_array_equal(last.observations[:, 0], 2000 + np.arange(6))
    assert np.shares_memory(last.observations, data.observations)
    assert (last.terminated, last.truncated) == (False, True)
    assert (data.episode(1).terminated, data.episode(1).truncated) == (True, False)
    with pytest.raises(IndexError, match="episode 3: there are 3"):
        data.episode(3)
    assert "3 episodes, 11 steps" in repr(data)


@settings(max_examples=50, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    discount=st.sampled_from([0.0, 0.9, 1.0]),
)
def test_returns_to_go_against_the_definition(lengths: list[int], discount: float) -> None:
    steps = sum(lengths)
    rewards = np.random.default_rng(steps).standard_normal(steps)
    ends = np.zeros(steps, np.bool_)
    ends[np.cumsum(lengths) - 1] = True
    zeros = np.zeros((steps, 1))
    data = Trajectories.from_arrays(zeros, zeros, rewards, ends, np.zeros(steps, np.bool_))
    expected = []
    for i in range(data.episodes):
        r = data.episode(i).rewards.astype(np.float64)
        expected += [sum(discount**k * r[t + k] for k in range(len(r) - t)) for t in range(len(r))]
    np.testing.assert_allclose(data.returns_to_go(discount), expected, rtol=1e-6, atol=1e-6)
    if discount == 1.0:
        np.testing.assert_allclose(data.returns(), data.returns_to_go()[data.offsets[:-1]], 1e-5)


def test_discount_out_of_range(build: Build) -> None:
    with pytest.raises(ValueError, match="discount"):
        build([3]).returns_to_go(1.1)


def test_select_by_index_and_by_mask(build: Build) -> None:
    data = build([4, 1, 6])
    chosen = data.select([2, 0])
    assert chosen.lengths().tolist() == [6, 4]
    np.testing.assert_array_equal(chosen.episode(0).actions, data.episode(2).actions)
    assert chosen.info.provenance["selected_episodes"] == "2 of 3"
    masked = data.select(np.array([True, False, True]))
    np.testing.assert_array_equal(masked.rewards, data.select([0, 2]).rewards)
    with pytest.raises(ValueError, match="at least one index"):
        data.select([])
    with pytest.raises(IndexError, match="below 3"):
        data.select([3])
    with pytest.raises(ValueError, match="mask"):
        data.select(np.array([True]))


def test_fingerprint_sees_every_array_and_nothing_else(build: Build) -> None:
    data = build([4, 3])
    assert data.fingerprint() == build([4, 3]).fingerprint()
    assert replace(data, info=data.info.with_provenance(x=1)).fingerprint() == data.fingerprint()
    for name in ("observations", "actions", "rewards", "next_observations"):
        array = getattr(data, name).copy()
        array.flat[0] += 0.5
        assert replace(data, **{name: array}).fingerprint() != data.fingerprint()
    swapped = replace(data, terminations=data.truncations, truncations=data.terminations)
    assert swapped.fingerprint() != data.fingerprint()


def test_info_round_trips_through_json() -> None:
    info = DatasetInfo(
        "a/b-v0", '{"id": "Hopper-v5"}', (-1.0, -2.0), (1.0, 2.0),
        (ReferenceScores("d4rl", 0.0, 1.0),), 1000, {"source": "test"},
    )  # fmt: skip
    assert DatasetInfo.from_dict(json.loads(json.dumps(info.to_dict()))) == info
    assert info.env_id == "Hopper-v5"


@pytest.mark.parametrize(
    ("low", "high"), [((), ()), ((-1.0,), (1.0, 1.0)), ((1.0,), (1.0,)), ((-np.inf,), (1.0,))]
)
def test_info_refuses_a_box(low: tuple[float, ...], high: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="action_low and action_high"):
        DatasetInfo("x", None, low, high)


def test_from_arrays_keeps_terminations_and_truncations_apart() -> None:
    given_arrays = flat_arrays(4)
    given_arrays["terminations"] = np.array([0, 1, 0, 0])
    given_arrays["truncations"] = np.array([0, 1, 0, 1])
    data = Trajectories.from_arrays(**given_arrays)
    assert data.offsets.tolist() == [0, 2, 4]
    assert data.terminations.tolist() == [False, True, False, False]
    assert data.truncations.tolist() == [False, True, False, True]
    assert data.observations.dtype == data.rewards.dtype == np.float32


def test_without_next_observations_the_unknown_successor_is_taken_off_and_told() -> None:
    given_arrays = flat_arrays(7)
    del given_arrays["next_observations"]
    given_arrays["observations"] = np.arange(7.0)[:, None] * np.ones(3)
    given_arrays["terminations"] = np.array([0, 0, 1, 0, 0, 0, 0])
    given_arrays["truncations"] = np.array([0, 0, 0, 0, 0, 1, 1])
    with pytest.warns(UserWarning, match=r"last step off 2 .* \(1 episodes of one step are gone\)"):
        data = Trajectories.from_arrays(**given_arrays)
    assert data.offsets.tolist() == [0, 3, 5]
    assert data.observations[:, 0].tolist() == [0, 1, 2, 3, 4]
    # After the termination the successor does not matter; otherwise it is the next observation.
    assert data.next_observations[:, 0].tolist() == [1, 2, 2, 4, 5]
    assert data.truncations.tolist() == [False, False, False, False, True]
    assert data.info.provenance["steps_without_successor"] == {"dropped": 2, "episodes_gone": 1}


def test_without_next_observations_terminated_episodes_stay_whole() -> None:
    given_arrays = flat_arrays(3)
    del given_arrays["next_observations"]
    given_arrays["terminations"], given_arrays["truncations"] = (
        given_arrays["truncations"],
        given_arrays["terminations"],
    )
    assert Trajectories.from_arrays(**given_arrays).steps == 3


def test_unfinished_last_episode_is_kept_and_told() -> None:
    given_arrays = flat_arrays(5)
    given_arrays["truncations"] = np.array([0, 1, 0, 0, 0])
    with pytest.warns(UserWarning, match="3 steps kept as a truncated episode"):
        data = Trajectories.from_arrays(**given_arrays)
    assert data.lengths().tolist() == [2, 3]
    assert data.truncations[-1]


def test_unfinished_last_episode_is_dropped_on_request_and_told() -> None:
    given_arrays = flat_arrays(5)
    given_arrays["truncations"] = np.array([0, 1, 0, 0, 0])
    with pytest.warns(UserWarning, match="3 steps dropped"):
        data = Trajectories.from_arrays(**given_arrays, unfinished="drop")
    assert data.lengths().tolist() == [2]
    assert data.info.provenance["unfinished_last_episode"] == {"steps": 3, "fate": "dropped"}


def test_actions_outside_the_box_are_clipped_and_told() -> None:
    given_arrays = flat_arrays(5)
    given_arrays["actions"][3, 1] = -1.25
    with pytest.warns(UserWarning, match=r"1 of 5 steps .*largest excess 0.25, first in episode 0"):
        data = Trajectories.from_arrays(**given_arrays)
    assert data.actions[3, 1] == -1.0
    assert data.info.provenance["clipped_steps"] == 1


def test_rounding_at_the_edge_of_the_box_is_no_event() -> None:
    given_arrays = flat_arrays(5)
    given_arrays["actions"][3, 1] = 1.0000001
    data = Trajectories.from_arrays(**given_arrays)
    assert data.actions[3, 1] == 1.0
    assert "clipped_steps" not in data.info.provenance


def test_box_per_dimension() -> None:
    given_arrays = flat_arrays(5)
    given_arrays["actions"][:, 1] = 3.0
    data = Trajectories.from_arrays(**given_arrays, action_low=[-1, 2], action_high=[1, 4])
    assert data.info.action_low == (-1.0, 2.0)
    with pytest.raises(ValueError, match=r"action_high: expected a number or \[2\]"):
        Trajectories.from_arrays(**given_arrays, action_high=[1, 2, 3])


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("observations", np.zeros((10, 3, 4, 4)), r"observations: expected shape .*image"),
        ("observations", np.zeros(10), "observations: expected shape"),
        ("observations", np.zeros((9, 3)), r"observations: expected shape \[10, \*\]"),
        ("actions", np.zeros(10), "actions: expected shape"),
        ("rewards", np.zeros((10, 1)), "rewards: expected shape"),
        ("next_observations", np.zeros((10, 2)), "next_observations"),
        ("terminations", np.full(10, 0.5), "terminations: expected booleans"),
    ],
)
def test_wrong_shapes_name_the_field(name: str, value: NDArray[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Trajectories.from_arrays(**{**flat_arrays(), name: value})


def test_wrong_dtype_names_the_field() -> None:
    with pytest.raises(TypeError, match="observations: expected numbers"):
        Trajectories.from_arrays(**{**flat_arrays(), "observations": np.full((10, 3), "x")})


def test_empty_set() -> None:
    with pytest.raises(ValueError, match="empty set"):
        Trajectories.from_arrays(**{name: array[:0] for name, array in flat_arrays().items()})


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
@pytest.mark.parametrize("name", ["observations", "actions", "rewards", "next_observations"])
def test_not_finite_names_the_episode_and_the_field(name: str, bad: float) -> None:
    given_arrays = flat_arrays(10)
    given_arrays["truncations"][3] = True
    given_arrays[name][5] = bad
    with pytest.raises(ValueError, match=f"episode 1: {name}: expected finite.* at step 1"):
        Trajectories.from_arrays(**given_arrays)


def test_the_constructor_checks_by_itself(build: Build) -> None:
    data = build([4, 3])
    with pytest.raises(TypeError, match="rewards: expected a numpy array of float32"):
        replace(data, rewards=data.rewards.astype(np.float64))
    with pytest.raises(ValueError, match="episode 1: actions: expected values in the box"):
        replace(data, actions=data.actions + np.where(data.timesteps() == 2, 9, 0)[:, None].astype(
            np.float32) * (data.observations[:, :1] >= 1000))  # fmt: skip
    with pytest.raises(ValueError, match="episode 0: terminations/truncations: an end inside"):
        replace(data, truncations=np.ones(7, np.bool_))
    with pytest.raises(ValueError, match=r"episode 1: .* last step does not end it"):
        replace(data, terminations=np.zeros(7, np.bool_))
    with pytest.raises(ValueError, match="episode 1: rewards: expected at least one step"):
        replace(data, offsets=np.array([0, 4, 4, 7]))


def test_concatenate_keeps_every_episode(build: Build) -> None:
    one, two = build([3, 4]), build([2, 5, 1], id="two")
    whole = Trajectories.concatenate([one, two], id="whole")
    assert whole.info.id == "whole"
    assert [part["id"] for part in whole.info.provenance["parts"]] == ["test", "two"]
    assert whole.lengths().tolist() == [3, 4, 2, 5, 1]
    for index in range(whole.episodes):
        source = one.episode(index) if index < 2 else two.episode(index - 2)
        for got, expected in zip(whole.episode(index), source, strict=True):
            np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"action_dim": 1}, "action_dim of other: expected that of test, 2, got 1"),
        ({"observation_dim": 4}, "observation_dim of other: expected that of test, 3, got 4"),
    ],
)
def test_concatenate_refuses_what_differs(build: Build, other: dict[str, int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Trajectories.concatenate([build([3]), build([3], id="other", **other)], id="whole")


def test_concatenate_refuses_other_environments(build: Build) -> None:
    one = build([3])
    other = replace(one, info=replace(one.info, id="other", horizon=10))
    with pytest.raises(ValueError, match="horizon of other: expected that of test, None, got 10"):
        Trajectories.concatenate([one, other], id="whole")
    with pytest.raises(ValueError, match="parts: expected at least two datasets, got 1"):
        Trajectories.concatenate([one], id="whole")
