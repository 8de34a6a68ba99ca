from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dtag_fast.data.trajectories import Trajectories
from dtag_fast.data.windows import Padding, Sampling, WindowSampler

Build = Callable[..., Trajectories]


def numbered(lengths: list[int]) -> Trajectories:
    """Observation [row], action [row / 1000], reward row: every value tells where it came from."""
    steps = sum(lengths)
    row = np.arange(steps)
    ends = np.zeros(steps, np.bool_)
    ends[np.cumsum(lengths) - 1] = True
    return Trajectories.from_arrays(
        row[:, None], row[:, None] / 1000, row, np.zeros(steps), ends,
        next_observations=row[:, None] + 1,
    )  # fmt: skip


@settings(max_examples=80, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=6),
    context_length=st.integers(1, 9),
    sampling=st.sampled_from(["trajectory", "length"]),
    padding=st.sampled_from(["right", "left"]),
    seed=st.integers(0, 1000),
)
def test_a_window_is_consecutive_steps_of_one_episode_then_zeros(
    lengths: list[int], context_length: int, sampling: Sampling, padding: Padding, seed: int
) -> None:
    data = numbered(lengths)
    sampler = WindowSampler(data, context_length, sampling=sampling, padding=padding, seed=seed)
    batch = sampler.sample(17)
    returns_to_go = data.returns_to_go()
    timesteps = data.timesteps()
    assert batch.observations.shape == (17, context_length, 1)
    assert batch.observations.dtype == batch.actions.dtype == batch.returns_to_go.dtype
    assert batch.timesteps.dtype == np.int64
    for i in range(17):
        mask = batch.mask[i]
        real = int(mask.sum())
        assert real >= 1
        expected = np.arange(context_length) < real
        np.testing.assert_array_equal(mask, expected if padding == "right" else expected[::-1])
        for array in (batch.observations, batch.actions, batch.returns_to_go, batch.timesteps):
            assert not array[i][~mask].any()
        rows = np.round(batch.observations[i, mask, 0]).astype(int)
        np.testing.assert_array_equal(rows, np.arange(rows[0], rows[0] + real))
        episode = np.searchsorted(data.offsets, rows[[0, -1]], side="right") - 1
        assert episode[0] == episode[1]
        np.testing.assert_array_equal(batch.actions[i, mask, 0], data.actions[rows, 0])
        np.testing.assert_array_equal(batch.returns_to_go[i, mask], returns_to_go[rows])
        np.testing.assert_array_equal(batch.timesteps[i, mask], timesteps[rows])
        length = data.lengths()[episode[0]]
        if sampling == "trajectory":
            assert real == min(length, context_length)
        else:
            assert real == min(length - timesteps[rows[0]], context_length)


@pytest.mark.parametrize("sampling", ["trajectory", "length"])
@pytest.mark.parametrize("padding", ["right", "left"])
def test_history_adds_what_came_before_and_changes_nothing_of_what_is_drawn(
    sampling: Sampling, padding: Padding
) -> None:
    data = numbered([2, 6, 30])
    settings_ = {"sampling": sampling, "padding": padding, "seed": 3}
    plain = WindowSampler(data, 4, **settings_).sample(200)  # type: ignore[arg-type]
    longer = WindowSampler(data, 4, **settings_, history=7).sample(200)  # type: ignore[arg-type]
    np.testing.assert_array_equal(plain.drawn, plain.mask)
    assert longer.observations.shape == (200, 11, 1)
    cut = 0
    for i in range(200):
        drawn, mask = longer.drawn[i], longer.mask[i]
        for name in ("observations", "actions", "returns_to_go", "timesteps"):
            ours, theirs = getattr(longer, name)[i], getattr(plain, name)[i]
            np.testing.assert_array_equal(ours[drawn], theirs[plain.mask[i]])
            assert not ours[~mask].any()
        timesteps = longer.timesteps[i, mask]
        begin = max(0, plain.timesteps[i, plain.mask[i]][0] - 7)
        np.testing.assert_array_equal(timesteps, np.arange(begin, begin + len(timesteps)))
        rows = longer.observations[i, mask, 0]
        np.testing.assert_array_equal(rows, np.arange(rows[0], rows[0] + len(rows)))
        assert mask[0 if padding == "right" else -1]
        cut += begin > 0
    assert 20 < cut < 180, "windows that begin within an episode, and windows that begin with it"


def test_trajectory_sampling_is_uniform_over_episodes_and_over_full_starts() -> None:
    sampler = WindowSampler(numbered([2, 6, 30]), 4, sampling="trajectory", padding="right", seed=0)
    starts = sampler.sample(30_000).observations[:, 0, 0].astype(int)
    counts = np.bincount(starts, minlength=38)
    assert abs(counts[0] - 10_000) < 400
    np.testing.assert_allclose(counts[2:5], 10_000 / 3, rtol=0.1)  # 6 - 4 + 1 starts
    np.testing.assert_allclose(counts[8:35], 10_000 / 27, rtol=0.25)
    assert counts[1] == counts[5:8].sum() == counts[35:].sum() == 0


def test_length_sampling_is_uniform_over_steps() -> None:
    sampler = WindowSampler(numbered([2, 6, 30]), 4, sampling="length", padding="left", seed=0)
    batch = sampler.sample(38_000)
    first = batch.observations[np.arange(38_000), batch.mask.argmax(axis=1), 0].astype(int)
    np.testing.assert_allclose(np.bincount(first, minlength=38), 1000, rtol=0.15)


def test_same_seed_same_batches_and_other_seed_other_batches() -> None:
    data = numbered([9, 20])
    batches = [
        WindowSampler(data, 4, sampling="length", padding="left", seed=seed).sample(32)
        for seed in (1, 1, 2)
    ]
    np.testing.assert_array_equal(batches[0].observations, batches[1].observations)
    assert (batches[0].observations != batches[2].observations).any()


def test_state_continues_exactly_and_survives_json() -> None:
    data = numbered([9, 20])
    sampler = WindowSampler(data, 4, sampling="trajectory", padding="right", seed=5)
    sampler.sample(8)
    state = json.loads(json.dumps(sampler.state_dict()))
    expected = [sampler.sample(8) for _ in range(3)]
    resumed = WindowSampler(data, 4, sampling="trajectory", padding="right", seed=99)
    resumed.load_state_dict(state)
    for batch in expected:
        np.testing.assert_array_equal(resumed.sample(8).timesteps, batch.timesteps)


def test_state_of_other_settings_is_refused() -> None:
    data = numbered([9, 20])
    sampler = WindowSampler(data, 4, sampling="trajectory", padding="right", seed=5)
    other = WindowSampler(data, 5, sampling="trajectory", padding="right", seed=5)
    with pytest.raises(ValueError, match="context_length"):
        other.load_state_dict(sampler.state_dict())


def test_batches_do_not_share_memory_with_the_dataset() -> None:
    data = numbered([9])
    batch = WindowSampler(data, 9, sampling="trajectory", padding="right", seed=0).sample(2)
    batch.observations[:] = -1
    assert data.observations.min() == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"context_length": 0}, "context_length"),
        ({"sampling": "uniform"}, "sampling"),
        ({"padding": "both"}, "padding"),
    ],
)
def test_refuses(arguments: dict[str, object], message: str) -> None:
    settings_ = {"context_length": 4, "sampling": "length", "padding": "left", "seed": 0}
    with pytest.raises(ValueError, match=message):
        WindowSampler(numbered([3]), **{**settings_, **arguments})  # type: ignore[arg-type]


def test_refuses_an_empty_batch() -> None:
    sampler = WindowSampler(numbered([3]), 2, sampling="length", padding="left", seed=0)
    with pytest.raises(ValueError, match="batch_size"):
        sampler.sample(0)
