"""`make`: datasets that a program can write by itself, kept as local Minari datasets."""

from __future__ import annotations

import time
from typing import Any

from dtag_fast.data import references
from dtag_fast.data.references import ReferenceScores
from dtag_fast.data.storage import MadeDataset, find_same, versions, write_dataset

# name: (id, default number of steps)
DATASETS = {
    "toy": ("dtag/toy/bandit-v0", 1_000),
    "pointmaze-umaze": ("dtag/pointmaze/umaze-v0", 300_000),
    "pointmaze-medium": ("dtag/pointmaze/medium-v0", 500_000),
    "pointmaze-large": ("dtag/pointmaze/large-v0", 1_000_000),
}
# Raise when a change here or in pointmaze.py or bandit.py changes what is generated.
GENERATOR_VERSION = 1


def make(
    name: str,
    *,
    steps: int | None = None,
    seed: int = 0,
    id: str | None = None,
    force: bool = False,
    progress: bool = True,
    planner: str | None = None,
    asymmetry: float | None = None,
) -> MadeDataset:
    """Generate a dataset, unless it is there already with the same parameters.

    Args:
        name: "toy", "pointmaze-umaze", "pointmaze-medium" or "pointmaze-large".
        steps: number of steps; by default 1000, 300 000, 500 000, 1 000 000. A toy episode is one
            step, and 14 kB on disk.
        seed: of everything random.
        id: Minari id; by default dtag/toy/bandit-v0 or dtag/pointmaze/umaze-v0 and so on.
        force: generate even if the id exists, and replace what has it.
        progress: show a bar.
        planner: PointMaze only: "depth-first" (default) is what the published data and their
            reference scores were made with; "shortest" is D4RL's original maze2d. The same in
            umaze, which has one way only.
        asymmetry: toy only: share of positive actions, 0.95 by default; see
            `dtag_fast.data.bandit.bandit_episodes`.

    Raises:
        ValueError: for an unknown name or wrong parameters.
        FileExistsError: if the id exists with other parameters and `force` is not set.
    """
    if name not in DATASETS:
        raise ValueError(f"name: expected one of {', '.join(DATASETS)}, got {name!r}")
    started = time.perf_counter()
    default_id, default_steps = DATASETS[name]
    id = default_id if id is None else id
    steps = default_steps if steps is None else steps
    if steps < 1:
        raise ValueError(f"steps: expected at least 1, got {steps}")
    parameters: dict[str, Any] = {
        "task": name,
        "steps": steps,
        "seed": seed,
        "generator_version": GENERATOR_VERSION,
    }
    if name == "toy":
        if planner is not None:
            raise ValueError(f"planner: only for PointMaze, got {planner!r} for {name}")
        parameters["asymmetry"] = 0.95 if asymmetry is None else asymmetry
        if not 0.0 <= parameters["asymmetry"] <= 1.0:
            raise ValueError(f"asymmetry: expected a number in [0, 1], got {asymmetry}")
    else:
        if asymmetry is not None:
            raise ValueError(f"asymmetry: only for the toy problem, got {asymmetry} for {name}")
        parameters["planner"] = planner or "depth-first"
    same = find_same(id, parameters, force=force)
    if same is not None:
        return MadeDataset(id, same, True, time.perf_counter() - started)
    write = _write_toy if name == "toy" else _write_maze
    folder = write(id, parameters, progress)
    return MadeDataset(id, folder, False, time.perf_counter() - started)


def _write_toy(id: str, parameters: dict[str, Any], progress: bool) -> Any:
    from dtag_fast.data.bandit import QuadraticBandit, bandit_episodes, bandit_spec

    env = QuadraticBandit()
    asymmetry = parameters["asymmetry"]
    return write_dataset(
        id,
        bandit_episodes(parameters["steps"], asymmetry, parameters["seed"]),
        env_spec=bandit_spec(),
        eval_env_spec=bandit_spec(),
        observation_space=env.observation_space,
        action_space=env.action_space,
        # Uniform random actions and the best action.
        reference=ReferenceScores("minari", 2.0 / 3.0, 1.0),
        algorithm=f"uniform on 0.5 < |a| <= 1, {100 * asymmetry:.0f} % positive",
        description="One-step episodes of reward 1 - a^2; no action near the optimum, 0.",
        provenance={"parameters": parameters, "versions": versions("minari", "numpy")},
    )


def _write_maze(id: str, parameters: dict[str, Any], progress: bool) -> Any:
    import gymnasium

    from dtag_fast.data import pointmaze

    task = pointmaze.TASKS[parameters["task"]]
    spec = pointmaze.collection_spec(task, parameters["steps"])
    episodes = pointmaze.maze_episodes(
        task,
        parameters["steps"],
        seed=parameters["seed"],
        planner=parameters["planner"],
        progress=progress,
    )
    env = gymnasium.make(spec)
    found = versions("minari", "gymnasium", "gymnasium-robotics", "mujoco", "numpy")
    folder = write_dataset(
        id,
        episodes,
        env_spec=spec,
        eval_env_spec=pointmaze.evaluation_spec(task),
        observation_space=env.observation_space,
        action_space=env.action_space,
        reference=references.minari_reference(task.env_id),
        algorithm=f"waypoint PD controller, {parameters['planner']} paths, action noise 0.5",
        description=(
            f"{task.env_id}, one run of {parameters['steps']} steps, an episode for every goal "
            "reached. Made locally by the procedure of D4RL/pointmaze; the reference scores are "
            "the published ones."
        ),
        provenance={"parameters": parameters, "versions": found},
        requirements=[f"{name}=={found[name]}" for name in ("mujoco", "gymnasium-robotics")],
    )
    env.close()
    return folder
