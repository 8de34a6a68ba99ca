"""The data of a study: made if need be, loaded as it is trained on, and shares of it taken."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from dtag_fast.data.catalog import list_datasets
from dtag_fast.data.generate import DATASETS, make
from dtag_fast.data.maze import is_continuing_maze, maze_view
from dtag_fast.data.trajectories import Trajectories, best_episodes
from dtag_fast.studies import bandits
from dtag_fast.studies.declare import Data

# How to come by what the studies name; the rest of an id's end.
_RECIPES = {
    "medium-v0": "dtag data collect --env {env} --tier medium",
    "medium-replay-v0": "dtag data collect --env {env} --tier medium-replay",
    "expert-v0": "dtag data collect --env {env} --tier expert",
    "medium-expert-v0": "dtag data mix {space}/medium-v0 {space}/expert-v0 --id {id}",
}
_ENVS = {"hopper": "Hopper-v5", "halfcheetah": "HalfCheetah-v5", "walker2d": "Walker2d-v5"}


def prepare(data: Data) -> str | None:
    """Make a dataset that can be made; how to get one that is not there, else None."""
    if data.made_by == "bandit":
        return None
    if data.made_by is not None:
        make(data.made_by, steps=data.steps, seed=data.seed, id=data.id, progress=False)
        return None
    there = {row["id"] for row in list_datasets() if row["problem"] is None}
    return None if data.id in there else f"{data.id}: {recipe(data.id)}"


def recipe(id: str) -> str:
    """The command that brings a dataset of this id."""
    parts = id.split("/")
    if parts[:2] == ["dtag", "d4rl"]:
        return f"dtag data import-d4rl {parts[-1].replace('-', '_', 1)}.hdf5"
    if parts[0] == "dtag" and parts[1] in _ENVS and parts[-1] in _RECIPES:
        env, space = _ENVS[parts[1]], id.rpartition("/")[0]
        return _RECIPES[parts[-1]].format(env=env, space=space, id=id)
    for name, (default, _) in DATASETS.items():
        if id == default:
            return f"dtag data make {name}"
    return "dtag data info --download ID, if it is a published one"


@lru_cache(maxsize=4)
def load(data: Data) -> Trajectories:
    """The dataset as it is trained on: PointMaze data in the maze view; its shares.

    A process keeps the last few: its runs are mostly of the same data.
    """
    found = _load_whole(data)
    if data.share < 1.0:
        count = max(1, round(data.share * found.episodes))
        order = np.random.default_rng(data.seed).permutation(found.episodes)
        found = found.select(np.sort(order[:count]))
    return best_episodes(found, data.best_share)


@lru_cache(maxsize=64)
def fingerprint(data: Data) -> str:
    """Of what `load` gives."""
    return load(data).fingerprint()


def _load_whole(data: Data) -> Trajectories:
    if data.made_by == "bandit":
        assert data.steps is not None
        return bandits.trajectories(data.id, data.action_dim, data.steps, data.seed)
    found = Trajectories.from_minari(data.id)
    return maze_view(found) if is_continuing_maze(found.info) else found
