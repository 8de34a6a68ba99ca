"""The maze view: continuing PointMaze data as episodes of the evaluation task.

The published data are one long run in which a new goal appears whenever one is reached; a Minari
episode is the way to one goal, its return always 1. The evaluation asks for something else: stay at
one fixed goal for 300, 600 or 800 steps. So the run is glued together again, its rewards are
computed anew for the fixed goal, and it is cut to the evaluation horizon. D4RL did the same with
maze2d (scripts/generation/relabel_maze2d_rewards.py).
"""

from __future__ import annotations

import itertools
import json
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dtag_fast.data.trajectories import DatasetInfo, Trajectories

GOAL_RADIUS = 0.45  # gymnasium_robotics: maze_v4.py, compute_reward
REINFORMER_LENGTH = 1000
Cell = tuple[int, int]
MazeMap = list[list[int | str]]


def maze_view(
    trajectories: Trajectories,
    *,
    goal: tuple[float, float] | Literal["evaluation", "stored"] = "evaluation",
    length: int | None = None,
    chunking: Literal["horizon", "reinformer-v1"] = "horizon",
    partial: Literal["keep", "drop"] = "drop",
) -> Trajectories:
    """Glue, relabel for one goal, cut.

    Args:
        trajectories: continuing PointMaze data with observations (x, y, vx, vy); or D4RL's maze2d,
            whose rewards are for the fixed goal already (goal="stored").
        goal: "evaluation" is the centre of the one goal cell in the evaluation environment's map
            (the environment moves it by up to 0.25 at every reset); "stored" keeps the rewards as
            they are; or coordinates (x, y). The reward of a step is 1 if the position after it is
            within 0.45 of the goal, else 0; in a dense environment exp(-distance).
        length: steps of a piece; by default the horizon of the evaluation environment.
        chunking: "horizon" cuts every `length` steps. "reinformer-v1" is what Reinformer's code did
            until 2024-10-16: the steps that reached a goal are left out (as
            `d4rl.qlearning_dataset` does with timeouts) and the rest is cut every 1000 steps.
        partial: what becomes of a last piece that is shorter than the others. Its steps near the
            end would have too low a return-to-go, so it is dropped unless told otherwise.

    Pieces end by truncation. Two episodes are glued where the last observation of one is the first
    of the next; where it is not (a reset), a new run starts. `info.provenance["maze_view"]` has the
    number of runs, the goal, and what was dropped.

    Raises:
        ValueError: if the data are no maze data, have no evaluation goal, contain terminations, or
            cannot be glued at all.
    """
    info = trajectories.info
    if trajectories.observation_dim != 4:
        raise ValueError(
            f"{info.id}: observations: expected (x, y, vx, vy), got {trajectories.observation_dim} "
            "features"
        )
    if trajectories.terminations.any():
        episode = int(
            np.searchsorted(
                trajectories.offsets, np.flatnonzero(trajectories.terminations)[0], side="right"
            )
        )
        raise ValueError(
            f"{info.id}: episode {episode - 1}: terminations: continuing data have none"
        )
    if chunking not in ("horizon", "reinformer-v1"):
        raise ValueError(f"chunking: expected 'horizon' or 'reinformer-v1', got {chunking!r}")
    if partial not in ("keep", "drop"):
        raise ValueError(f"partial: expected 'keep' or 'drop', got {partial!r}")
    if chunking == "reinformer-v1":
        if length is not None:
            raise ValueError(f"length: 'reinformer-v1' has its own, got {length}")
        length = REINFORMER_LENGTH
    elif length is None:
        length = info.horizon
    if length is None or length < 1:
        raise ValueError(f"length: expected a positive number of steps, got {length}")

    rewards, goal_xy = _rewards(trajectories, goal)
    runs = _glue(trajectories)
    keep = np.ones(trajectories.steps, dtype=np.bool_)
    if chunking == "reinformer-v1":
        keep[trajectories.offsets[1:] - 1] = False
    rows, ends = _cut(runs, keep, length, partial, info.id)
    note = {
        "goal": goal_xy,
        "length": length,
        "chunking": chunking,
        "episodes_before": trajectories.episodes,
        "runs": len(runs) - 1,
        "steps_dropped": trajectories.steps - len(rows),
    }
    return Trajectories(
        observations=trajectories.observations[rows],
        actions=trajectories.actions[rows],
        rewards=rewards[rows],
        next_observations=trajectories.next_observations[rows],
        terminations=np.zeros(len(rows), dtype=np.bool_),
        truncations=ends,
        offsets=np.concatenate([[0], np.flatnonzero(ends) + 1]).astype(np.int64),
        info=info.with_provenance(maze_view=note),
    )


def is_continuing_maze(info: DatasetInfo) -> bool:
    """Whether `maze_view` is made for this dataset: a PointMaze task that it was not applied to."""
    return (info.env_id or "").startswith("PointMaze_") and "maze_view" not in info.provenance


def evaluation_goal(info: DatasetInfo) -> tuple[float, float]:
    """Centre (x, y) of the single goal cell in the map of the evaluation environment."""
    maze_map = _environment_arguments(info).get("maze_map")
    if maze_map is None:
        raise ValueError(f"{info.id}: the evaluation environment has no maze map")
    goals = [
        (row, column)
        for row, cells in enumerate(maze_map)
        for column, cell in enumerate(cells)
        if cell in ("g", "c")
    ]
    if len(goals) != 1:
        raise ValueError(
            f"{info.id}: goal: expected one goal cell in the evaluation environment's map, got "
            f"{goals}; give the coordinates"
        )
    return cell_center(maze_map, goals[0])


def cell_center(maze_map: MazeMap, cell: Cell) -> tuple[float, float]:
    """Coordinates (x, y) of a cell (row, column): the origin is the maze's centre, a cell 1 m."""
    row, column = cell
    return column + 0.5 - len(maze_map[0]) / 2, len(maze_map) / 2 - (row + 0.5)


def _environment_arguments(info: DatasetInfo) -> dict[str, Any]:
    return {} if info.env_spec is None else dict(json.loads(info.env_spec).get("kwargs", {}))


def _rewards(
    data: Trajectories, goal: tuple[float, float] | Literal["evaluation", "stored"]
) -> tuple[NDArray[np.float32], list[float] | str]:
    if goal == "stored":
        return data.rewards, "stored"
    if isinstance(goal, str):
        if goal != "evaluation":
            raise ValueError(f"goal: expected 'evaluation', 'stored' or (x, y), got {goal!r}")
        goal = evaluation_goal(data.info)
    position = np.asarray(goal, dtype=np.float64)
    if position.shape != (2,) or not np.isfinite(position).all():
        raise ValueError(f"goal: expected 'evaluation', 'stored' or (x, y), got {goal!r}")
    distance = np.linalg.norm(data.next_observations[:, :2] - position, axis=1)
    dense = _environment_arguments(data.info).get("reward_type") == "dense"
    rewards = np.exp(-distance) if dense else distance <= GOAL_RADIUS
    return rewards.astype(np.float32), position.tolist()


def _glue(data: Trajectories) -> NDArray[np.int64]:
    """First steps of the runs, and N at the end: the episode starts that continue nothing."""
    starts = data.offsets[1:-1]
    continues = (data.next_observations[starts - 1] == data.observations[starts]).all(axis=1)
    if data.episodes > 1 and not continues.any():
        raise ValueError(
            f"{data.info.id}: observations: no episode starts where the one before it ended, so "
            f"this is not continuing data (episode 0 ends at "
            f"{data.next_observations[starts[0] - 1]}, episode 1 starts at "
            f"{data.observations[starts[0]]})"
        )
    return np.concatenate([[0], starts[~continues], [data.steps]]).astype(np.int64)


def _cut(
    runs: NDArray[np.int64], keep: NDArray[np.bool_], length: int, partial: str, id: str
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Rows that stay, and which of them end a piece."""
    rows, ends = [], []
    for start, stop in itertools.pairwise(runs.tolist()):
        run = start + np.flatnonzero(keep[start:stop])
        if partial == "drop":
            run = run[: len(run) // length * length]
        if run.size:
            end = np.zeros(len(run), dtype=np.bool_)
            end[length - 1 :: length] = True
            end[-1] = True
            rows.append(run)
            ends.append(end)
    if not rows:
        raise ValueError(
            f"{id}: length: no run is {length} steps long (the longest has "
            f"{int(np.diff(runs).max())}); give a smaller length or partial='keep'"
        )
    return np.concatenate(rows), np.concatenate(ends)
