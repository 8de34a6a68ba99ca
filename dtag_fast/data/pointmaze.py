"""PointMaze data by the published procedure: a noisy waypoint follower, a new goal at every goal.

Farama-Foundation/minari-dataset-generation-scripts: scripts/pointmaze (the Minari form of D4RL's
maze2d). Constants are theirs: PD controller with gains 10 on the position and -1 on the velocity,
action noise 0.5, next waypoint within 0.1 m, inner waypoints shifted by up to -0.2 m, a goal
reached within 0.45 m. Two things differ, neither of which changes what the data look like: the
follower sees a new goal one step earlier, and the first `desired_goal` of an episode is its own
goal, not the one before.
"""

from __future__ import annotations

import copy
import math
from collections import deque
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from gymnasium import Env
from gymnasium.envs.registration import EnvSpec
from numpy.typing import NDArray

from dtag_fast.data.maze import GOAL_RADIUS, Cell, MazeMap, cell_center

Planner = Literal["shortest", "depth-first"]

GAIN, DAMPING, NOISE = 10.0, -1.0, 0.5
WAYPOINT_RADIUS, WAYPOINT_SHIFT = 0.1, 0.2


@dataclass(frozen=True)
class MazeTask:
    """One of the published mazes, its evaluation goal and its horizon."""

    env_id: str
    goal_cell: Cell
    horizon: int


TASKS = {
    "pointmaze-umaze": MazeTask("PointMaze_UMaze-v3", (1, 1), 300),
    "pointmaze-medium": MazeTask("PointMaze_Medium-v3", (6, 6), 600),
    "pointmaze-large": MazeTask("PointMaze_Large-v3", (7, 9), 800),
}


def collection_spec(task: MazeTask, steps: int) -> EnvSpec:
    """The environment the data are recorded in: continuing, a new goal when one is reached."""
    spec = copy.deepcopy(_registered(task.env_id))
    spec.max_episode_steps = steps
    spec.kwargs.update(continuing_task=True, reset_target=True)
    return spec


def evaluation_spec(task: MazeTask) -> EnvSpec:
    """The environment policies are scored in: one goal cell, the episode goes on at the goal."""
    spec = copy.deepcopy(_registered(task.env_id))
    spec.max_episode_steps = task.horizon
    row, column = task.goal_cell
    spec.kwargs["maze_map"][row][column] = "g"
    spec.kwargs.update(continuing_task=True, reset_target=False)
    return spec


class WaypointFollower:
    """Plans a way through the cells and steers along it.

    Args:
        maze_map: rows of cells, 1 is a wall.
        planner: "depth-first", as the published script has it, takes detours in the larger mazes;
            "shortest" (breadth first) finds what D4RL's Q-iteration finds.
        generator: draws the shifts of the waypoints.
    """

    def __init__(self, maze_map: MazeMap, planner: Planner, generator: np.random.Generator) -> None:
        if planner not in ("shortest", "depth-first"):
            raise ValueError(f"planner: expected 'shortest' or 'depth-first', got {planner!r}")
        self._map = maze_map
        self._planner = planner
        self._generator = generator
        self._way: deque[Cell] = deque()
        self._goal = self._target = (0.0, 0.0)

    def head_for(self, goal: tuple[float, float], position: tuple[float, float]) -> None:
        """Plan the way from `position` to `goal`, both (x, y)."""
        self._goal = goal
        self._way = self._plan(self._cell(*position), self._cell(*goal))
        self._target = cell_center(self._map, self._way[0]) if self._way else goal

    def action(self, x: float, y: float, vx: float, vy: float) -> tuple[float, float]:
        """The controller's force, not limited to the action box."""
        target_x, target_y = self._target
        if len(self._way) > 1 and math.hypot(target_x - x, target_y - y) <= WAYPOINT_RADIUS:
            self._way.popleft()
            if len(self._way) == 1:
                self._target = self._goal
            else:
                center_x, center_y = cell_center(self._map, self._way[0])
                shift_x, shift_y = self._generator.random(2) * WAYPOINT_SHIFT
                self._target = (center_x - shift_x, center_y - shift_y)
            target_x, target_y = self._target
        return GAIN * (target_x - x) + DAMPING * vx, GAIN * (target_y - y) + DAMPING * vy

    def _cell(self, x: float, y: float) -> Cell:
        return math.floor(len(self._map) / 2 - y), math.floor(x + len(self._map[0]) / 2)

    def _plan(self, start: Cell, goal: Cell) -> deque[Cell]:
        """The cells after `start` up to `goal`; empty if they are the same."""
        frontier, origin = deque([start]), {start: start}
        take = frontier.popleft if self._planner == "shortest" else frontier.pop
        while frontier and goal not in origin:
            row, column = take()
            for cell in (
                (row, column + 1),
                (row, column - 1),
                (row - 1, column),
                (row + 1, column),
            ):
                if cell not in origin and self._map[cell[0]][cell[1]] != 1:
                    origin[cell] = (row, column)
                    frontier.append(cell)
        way: deque[Cell] = deque()
        while goal != start:
            way.appendleft(goal)
            goal = origin[goal]
        return way


def maze_episodes(
    task: MazeTask, steps: int, *, seed: int, planner: Planner, progress: bool
) -> list[dict[str, Any]]:
    """`steps` steps of the noisy follower in one run, an episode for every goal reached.

    The last episode ends where the steps do, as truncated, goal or not. Observations are
    PointMaze's dicts, float64; the actions are those executed, in [-1, 1], float32.
    """
    import gymnasium
    from tqdm import tqdm

    env: Any = gymnasium.make(collection_spec(task, steps)).unwrapped
    generator = np.random.default_rng(seed)
    noise = generator.normal(0.0, NOISE, (steps, 2))
    follower = WaypointFollower(env.maze.maze_map, planner, generator)
    observations = np.empty((steps + 1, 4))
    actions = np.empty((steps, 2), np.float32)
    goals: list[tuple[float, float]] = []
    ends: list[int] = []

    first, _ = env.reset(seed=seed)
    observations[0] = first["observation"]
    x, y, vx, vy = observations[0].tolist()
    goals.append(tuple(env.goal.tolist()))
    follower.head_for(goals[-1], (x, y))
    # The point's own step and the goal's update are the maze's step without its dicts and norms.
    move, point = env.point_env.step, env.point_env
    with tqdm(total=steps, unit=" steps", desc=task.env_id, disable=not progress) as bar:
        for step in range(steps):
            force_x, force_y = follower.action(x, y, vx, vy)
            action = actions[step]
            action[0] = min(max(force_x + noise[step, 0], -1.0), 1.0)
            action[1] = min(max(force_y + noise[step, 1], -1.0), 1.0)
            observation = move(action)[0]
            observations[step + 1] = observation
            x, y, vx, vy = observation.tolist()
            if math.hypot(x - goals[-1][0], y - goals[-1][1]) <= GOAL_RADIUS:
                ends.append(step + 1)
                env.update_goal(point.data.qpos)
                goals.append(tuple(env.goal.tolist()))
                follower.head_for(goals[-1], (x, y))
            if (step + 1) % 1000 == 0:
                bar.update(1000)
        bar.update(steps % 1000)
    env.close()
    return _episodes(observations, actions, goals, ends)


def reference_returns(
    task: MazeTask, episodes: int, *, seed: int, planner: Planner
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns [episodes] of uniform random actions and of the follower without noise.

    In the evaluation environment; the published reference scores are the means over 100 episodes.
    """
    import gymnasium

    env: Env[Any, Any] = gymnasium.make(evaluation_spec(task))
    generator = np.random.default_rng(seed)
    maze: Any = env.unwrapped
    follower = WaypointFollower(maze.maze.maze_map, planner, generator)
    returns = np.zeros((2, episodes))
    for informed in (0, 1):
        for episode in range(episodes):
            observation, _ = env.reset(seed=seed + episode)
            x, y, vx, vy = observation["observation"].tolist()
            follower.head_for(tuple(maze.goal.tolist()), (x, y))
            ended = False
            while not ended:
                force = follower.action(x, y, vx, vy) if informed else generator.uniform(-1, 1, 2)
                action = np.clip(force, -1.0, 1.0).astype(np.float32)
                observation, reward, terminated, truncated, _ = env.step(action)
                x, y, vx, vy = observation["observation"].tolist()
                returns[informed, episode] += float(reward)
                ended = terminated or truncated
    env.close()
    return returns[0], returns[1]


def _registered(env_id: str) -> EnvSpec:
    import gymnasium

    try:
        import gymnasium_robotics
    except ImportError as error:
        raise ImportError(f"{env_id} needs: pip install 'dtag-fast[envs]' ({error})") from error
    gymnasium.register_envs(gymnasium_robotics)
    return gymnasium.spec(env_id)


def _episodes(
    observations: NDArray[np.float64],
    actions: NDArray[np.float32],
    goals: list[tuple[float, float]],
    ends: list[int],
) -> list[dict[str, Any]]:
    steps = len(actions)
    reached = len(ends)
    if not ends or ends[-1] != steps:
        ends = [*ends, steps]
    found: list[dict[str, Any]] = []
    start = 0
    for index, stop in enumerate(ends):
        length = stop - start
        part = observations[start : stop + 1]
        rewards = np.zeros(length)
        rewards[-1] = float(index < reached)
        truncations = np.zeros(length, np.bool_)
        truncations[-1] = True
        found.append(
            {
                "observations": {
                    "observation": part,
                    "achieved_goal": part[:, :2],
                    "desired_goal": np.tile(goals[index], (length + 1, 1)),
                },
                "actions": actions[start:stop],
                "rewards": rewards,
                "terminations": np.zeros(length, np.bool_),
                "truncations": truncations,
            }
        )
        start = stop
    return found
