from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from dtag_fast.data.maze import MazeMap, cell_center, evaluation_goal, is_continuing_maze, maze_view
from dtag_fast.data.trajectories import Trajectories

UMAZE: MazeMap = [
    [1, 1, 1, 1, 1],
    [1, "g", 0, 0, 1],
    [1, 1, 1, 0, 1],
    [1, 0, 0, 0, 1],
    [1, 1, 1, 1, 1],
]


def continuing(lengths: list[int], horizon: int = 6, reward_type: str = "sparse") -> Trajectories:
    """One straight line along y = 1 from x = 1 to x = -1 in episodes of the given lengths."""
    steps = sum(lengths)
    x = np.linspace(1, -1, steps + 1)
    states = np.stack([x, np.ones(steps + 1), np.zeros(steps + 1), np.zeros(steps + 1)], axis=1)
    ends = np.zeros(steps, np.bool_)
    ends[np.cumsum(lengths) - 1] = True
    spec = {
        "id": "PointMaze_UMaze-v3",
        "entry_point": "gymnasium_robotics.envs.maze.point_maze:PointMazeEnv",
        "max_episode_steps": horizon,
        "kwargs": {"maze_map": UMAZE, "reward_type": reward_type},
    }
    return Trajectories.from_arrays(
        states[:-1], np.zeros((steps, 2)), ends, np.zeros(steps), ends,
        next_observations=states[1:], env_spec=json.dumps(spec), horizon=horizon,
    )  # fmt: skip


def test_cell_centers() -> None:
    assert cell_center(UMAZE, (1, 1)) == (-1.0, 1.0)
    assert cell_center(UMAZE, (3, 3)) == (1.0, -1.0)
    assert evaluation_goal(continuing([3]).info) == (-1.0, 1.0)


def test_glued_relabelled_and_cut() -> None:
    data = continuing([5, 2, 9, 4])
    view = maze_view(data)
    assert view.lengths().tolist() == [6, 6, 6]
    assert not view.terminations.any()
    np.testing.assert_array_equal(view.observations, data.observations[:18])
    # The reward of a step belongs to the position after it: x <= -0.55.
    expected = data.next_observations[:18, 0] + 1 <= 0.45
    np.testing.assert_array_equal(view.rewards, expected.astype(np.float32))
    assert 0 < expected.sum() < 18
    assert view.info.provenance["maze_view"] == {
        "goal": [-1.0, 1.0], "length": 6, "chunking": "horizon",
        "episodes_before": 4, "runs": 1, "steps_dropped": 2,
    }  # fmt: skip
    assert is_continuing_maze(data.info)
    assert not is_continuing_maze(view.info)


def test_partial_piece_kept_on_request() -> None:
    view = maze_view(continuing([5, 2, 9, 4]), partial="keep")
    assert view.lengths().tolist() == [6, 6, 6, 2]


def test_dense_reward() -> None:
    view = maze_view(continuing([12], reward_type="dense"))
    distance = np.abs(view.next_observations[:, 0] + 1)
    np.testing.assert_allclose(view.rewards, np.exp(-distance), rtol=1e-6)


def test_goal_by_coordinates_and_stored_rewards() -> None:
    data = continuing([5, 7])
    at_start = maze_view(data, goal=(1.0, 1.0))
    np.testing.assert_array_equal(at_start.rewards, data.next_observations[:, 0] >= 0.55)
    stored = maze_view(data, goal="stored")
    np.testing.assert_array_equal(stored.rewards, data.rewards)
    assert stored.info.provenance["maze_view"]["goal"] == "stored"


def test_a_reset_starts_a_new_run() -> None:
    data = continuing([6, 6, 6])
    observations = data.observations.copy()
    observations[12:, 0] += 0.001
    view = maze_view(replace(data, observations=observations), length=5, partial="keep")
    assert view.info.provenance["maze_view"]["runs"] == 2
    assert view.lengths().tolist() == [5, 5, 2, 5, 1]


def test_reinformers_old_chunking() -> None:
    data = continuing([700, 600, 900])
    view = maze_view(data, chunking="reinformer-v1")
    assert view.lengths().tolist() == [1000, 1000]
    # The steps that reached a goal are gone: rows 699, 1299 and 2199.
    kept = np.delete(np.arange(2200), [699, 1299, 2199])[:2000]
    np.testing.assert_array_equal(view.observations, data.observations[kept])
    np.testing.assert_array_equal(view.next_observations, data.next_observations[kept])
    with pytest.raises(ValueError, match="'reinformer-v1' has its own"):
        maze_view(data, chunking="reinformer-v1", length=500)


def test_data_that_are_not_continuing() -> None:
    data = continuing([6, 6])
    observations = data.observations.copy()
    observations[6:] += 1
    with pytest.raises(ValueError, match=r"not continuing data \(episode 0 ends at"):
        maze_view(replace(data, observations=observations))


def test_terminations_are_refused() -> None:
    data = continuing([6, 6])
    with pytest.raises(ValueError, match="episode 0: terminations"):
        maze_view(replace(data, terminations=data.truncations))


def test_other_refusals() -> None:
    data = continuing([6, 6])
    with pytest.raises(ValueError, match="no run is 50 steps long"):
        maze_view(data, length=50)
    with pytest.raises(ValueError, match="length: expected a positive"):
        maze_view(data, length=0)
    with pytest.raises(ValueError, match="length: expected a positive"):
        maze_view(replace(data, info=replace(data.info, horizon=None)))
    with pytest.raises(ValueError, match="goal: expected"):
        maze_view(data, goal="nearest")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="chunking: expected"):
        maze_view(data, chunking="goal")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="partial: expected"):
        maze_view(data, partial="fill")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="has no maze map"):
        maze_view(replace(data, info=replace(data.info, env_spec=None)))
    free = json.loads(data.info.env_spec or "")
    free["kwargs"]["maze_map"][1][1] = 0
    with pytest.raises(ValueError, match="expected one goal cell"):
        maze_view(replace(data, info=replace(data.info, env_spec=json.dumps(free))))
    vector = np.zeros((6, 3))
    ends = np.eye(1, 6, 5)[0]
    with pytest.raises(ValueError, match=r"expected \(x, y, vx, vy\), got 3"):
        maze_view(
            Trajectories.from_arrays(vector, vector, ends, 0 * ends, ends, next_observations=vector)
        )
