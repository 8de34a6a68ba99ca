from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import gymnasium
import minari
import numpy as np
import pytest

from dtag_fast.data import pointmaze
from dtag_fast.data.bandit import bandit_episodes, bandit_spec
from dtag_fast.data.generate import make
from dtag_fast.data.maze import maze_view
from dtag_fast.data.pointmaze import TASKS, MazeTask, WaypointFollower
from dtag_fast.data.references import ReferenceScores
from dtag_fast.data.trajectories import Trajectories

UMAZE = TASKS["pointmaze-umaze"]


def test_toy_dataset(minari_root: Path) -> None:
    made = make("toy", steps=300, progress=False)
    data = Trajectories.from_minari(made.id)
    assert (made.id, data.episodes, data.steps) == ("dtag/toy/bandit-v0", 300, 300)
    assert data.terminations.all()
    assert not data.truncations.any()
    action = data.actions[:, 0].astype(np.float64)
    assert np.abs(action).min() > 0.5
    np.testing.assert_allclose(data.rewards, 1 - action**2, atol=1e-6)
    # One-sided enough that a policy that regresses to the mean misses the optimum.
    assert 0.9 < (action > 0).mean() < 1.0
    assert action.mean() > 0.5
    assert data.info.references == (ReferenceScores("minari", 2 / 3, 1.0),)
    assert data.info.horizon is None


def test_bandit_environment() -> None:
    env = gymnasium.make(bandit_spec())
    observation, _ = env.reset(seed=0)
    assert env.observation_space.contains(observation)
    assert env.step(np.array([0.5], np.float32))[1:4] == (0.75, True, False)
    env.close()


def test_random_actions_score_about_0_in_the_bandit() -> None:
    actions = np.random.default_rng(0).uniform(-1, 1, 20_000)
    assert np.mean(1 - actions**2) == pytest.approx(2 / 3, abs=0.01)


def test_asymmetry() -> None:
    one_sided = bandit_episodes(50, 1.0, 0)
    assert all(episode["actions"][0, 0] > 0.5 for episode in one_sided)


def test_umaze_dataset(minari_root: Path) -> None:
    made = make("pointmaze-umaze", steps=3000, progress=False)
    data = Trajectories.from_minari(made.id)
    assert (made.id, data.steps, data.observation_dim) == ("dtag/pointmaze/umaze-v0", 3000, 4)
    assert 15 < data.episodes < 90  # one goal in about 75 steps
    assert not data.terminations.any()
    # Sparse: 1 where a goal is reached, which ends an episode; the last may be without.
    np.testing.assert_array_equal(data.returns()[:-1], 1.0)
    assert data.info.references == (ReferenceScores("minari", 13.49, 218.70),)
    assert data.info.env_id == "PointMaze_UMaze-v3"
    assert data.info.horizon == 300
    view = maze_view(data)
    assert view.lengths().tolist() == [300] * 10
    assert view.info.provenance["maze_view"]["runs"] == 1
    assert view.info.provenance["maze_view"]["goal"] == [-1.0, 1.0]
    assert 0 < view.rewards.mean() < 0.4

    stored = minari.load_dataset(made.id)
    env = stored.recover_environment(eval_env=True)
    unwrapped: Any = env.unwrapped
    assert (unwrapped.continuing_task, unwrapped.reset_target) == (True, False)
    assert env.spec is not None
    assert env.spec.max_episode_steps == 300
    goals = [env.reset(seed=seed)[0]["desired_goal"] for seed in range(5)]
    assert np.abs(np.array(goals) - [-1, 1]).max() <= 0.25
    for episode in stored.iterate_episodes():
        assert env.observation_space.contains(
            {key: value[0] for key, value in episode.observations.items()}
        )
        # No stale goal: it is the same from the first observation to the last.
        goal = episode.observations["desired_goal"]
        assert (goal == goal[0]).all()
    env.close()


def test_the_rollout_is_what_the_environment_does() -> None:
    """Replaying the actions through the whole environment gives the same data, bit by bit."""
    episodes = pointmaze.maze_episodes(UMAZE, 600, seed=3, planner="shortest", progress=False)
    env = gymnasium.make(pointmaze.collection_spec(UMAZE, 600))
    observation, _ = env.reset(seed=3)
    assert len(episodes) > 3
    for episode in episodes:
        stored = episode["observations"]
        np.testing.assert_array_equal(stored["observation"][0], observation["observation"])
        for t, action in enumerate(episode["actions"]):
            observation, reward, terminated, _, _ = env.step(action)
            assert reward == episode["rewards"][t]
            assert not terminated
            for key in ("observation", "achieved_goal", "desired_goal"):
                np.testing.assert_array_equal(stored[key][t + 1], observation[key])
    env.close()


def test_the_follower_reaches_the_evaluation_goal() -> None:
    random, follower = pointmaze.reference_returns(UMAZE, 4, seed=0, planner="shortest")
    # Published means over 100 episodes: 13.49 and 218.70.
    assert random.mean() < 100 < 150 < follower.mean() <= 300


@pytest.mark.parametrize("task", TASKS.values(), ids=str)
def test_planners_find_a_way_between_all_cells(task: MazeTask) -> None:
    spec = pointmaze.collection_spec(task, 10)
    maze_map = spec.kwargs["maze_map"]
    free = [(i, j) for i, row in enumerate(maze_map) for j, cell in enumerate(row) if cell != 1]
    generator = np.random.default_rng(0)
    shortest = WaypointFollower(maze_map, "shortest", generator)
    published = WaypointFollower(maze_map, "depth-first", generator)
    longer = 0
    for start in free:
        for goal in free:
            ways = [list(follower._plan(start, goal)) for follower in (shortest, published)]
            for way in ways:
                path = [start, *way]
                assert path[-1] == goal
                assert len(set(path)) == len(path)
                for (i, j), (k, m) in itertools.pairwise(path):
                    assert abs(i - k) + abs(j - m) == 1
                    assert maze_map[k][m] != 1
            assert len(ways[0]) <= len(ways[1])
            longer += len(ways[0]) < len(ways[1])
    assert (longer > 0) == (task is not UMAZE)


def test_goal_cells_are_free_and_do_not_leak_into_the_registry() -> None:
    for task in TASKS.values():
        spec = pointmaze.evaluation_spec(task)
        cells = [cell for row in spec.kwargs["maze_map"] for cell in row]
        assert cells.count("g") == 1
        registered = gymnasium.spec(task.env_id)
        assert "g" not in [cell for row in registered.kwargs["maze_map"] for cell in row]
        i, j = task.goal_cell
        assert registered.kwargs["maze_map"][i][j] == 0


def test_same_parameters_are_reused_and_others_need_force(minari_root: Path) -> None:
    first = make("toy", steps=20, progress=False)
    assert not first.reused
    assert "written in" in first.message
    again = make("toy", steps=20, progress=False)
    assert again.reused
    assert "reused" in again.message
    with pytest.raises(FileExistsError, match=r"'steps': 20.*'steps': 30.*force=True"):
        make("toy", steps=30, progress=False)
    assert not make("toy", steps=30, force=True, progress=False).reused
    assert Trajectories.from_minari(first.id).steps == 30


def test_same_seed_same_data_other_seed_other_data(minari_root: Path) -> None:
    prints = []
    for number, seed in enumerate((0, 0, 1)):
        made = make(
            "pointmaze-umaze", steps=300, seed=seed, id=f"dtag/m{number}-v0", progress=False
        )
        prints.append(Trajectories.from_minari(made.id).fingerprint())
    assert prints[0] == prints[1] != prints[2]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("maze", {}, "name: expected one of toy"),
        ("toy", {"steps": 0}, "steps"),
        ("toy", {"planner": "shortest"}, "planner: only for PointMaze"),
        ("toy", {"asymmetry": 1.5}, "asymmetry: expected"),
        ("toy", {"id": "toy"}, "id: expected"),
        ("pointmaze-umaze", {"asymmetry": 0.5}, "asymmetry: only for the toy"),
        ("pointmaze-umaze", {"planner": "A*", "steps": 5}, "planner: expected"),
    ],
)
def test_refuses(minari_root: Path, name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(name, progress=False, **options)
    assert not minari_root.exists() or not list(minari_root.iterdir())
