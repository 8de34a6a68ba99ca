"""Minari datasets, by id or by folder, as `Trajectories`."""

from __future__ import annotations

import difflib
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dtag_fast.data import references
from dtag_fast.data.storage import dataset_path, datasets_root, read_metadata, write_dataset
from dtag_fast.data.trajectories import Trajectories

if TYPE_CHECKING:
    from gymnasium import Space


class _StoredEpisode(NamedTuple):
    observations: list[NDArray[Any]]  # one array [T + 1, *] for each key
    actions: NDArray[Any]
    rewards: NDArray[Any]
    terminations: NDArray[Any]
    truncations: NDArray[Any]


def from_minari(
    dataset: str | Path,
    *,
    download: bool = False,
    observation_keys: Sequence[str] | None = None,
) -> Trajectories:
    """Read a whole Minari dataset into memory.

    Args:
        dataset: id ("dtag/hopper/medium-v0", looked up in $MINARI_DATASETS_PATH) or the dataset's
            folder.
        download: fetch a published dataset that is not there (extra `download`).
        observation_keys: for dict observations, the parts to join into one vector. PointMaze needs
            no choice: its "observation" (x, y, vx, vy) is taken, as in D4RL's maze2d.

    The evaluation environment is the dataset's own (`eval_env_spec`, else `env_spec`). References
    are D4RL's constants where the environment has some, and the dataset's own if it has some.

    In continuing PointMaze data the first `desired_goal` of an episode is still the goal before;
    if "desired_goal" is among the keys it is replaced by the goal that the episode pursues.

    Raises:
        FileNotFoundError: if there is no such dataset; names similar ones.
        ImportError, ConnectionError: see `dtag_fast.data.download.download`.
        ValueError: for a broken folder, a discrete or unbounded action space, image observations,
            and whatever `Trajectories` refuses; names the episode and the field.
    """
    folder = _find(dataset, download)
    metadata = read_metadata(folder)
    id = str(metadata["dataset_id"])
    from minari import MinariDataset

    stored = MinariDataset(folder / "data")
    action_low, action_high = _action_box(id, stored.action_space)
    spec = evaluation_spec(metadata)
    env_id = None if spec is None else str(spec["id"])
    horizon = None if spec is None else spec.get("max_episode_steps")
    keys = _observation_keys(id, stored.observation_space, observation_keys, env_id)

    if metadata["data_format"] == "hdf5":
        episodes = _hdf5_episodes(folder / "data" / "main_data.hdf5", stored.total_episodes, keys)
    else:
        episodes = _minari_episodes(stored, keys)
    notes: dict[str, Any] = {"source": "minari", **_provenance(metadata)}
    arrays = _flat(id, list(episodes), keys, notes)

    low, high = metadata.get("ref_min_score"), metadata.get("ref_max_score")
    scores = None if low is None or high is None else (float(low), float(high))
    return Trajectories.from_arrays(
        arrays["observations"],
        arrays["actions"],
        arrays["rewards"],
        arrays["terminations"],
        arrays["truncations"],
        next_observations=arrays["next_observations"],
        action_low=action_low,
        action_high=action_high,
        id=id,
        env_spec=None if spec is None else json.dumps(spec),
        references=references.references_for(env_id or id, scores),
        horizon=None if horizon is None else int(horizon),
        provenance=notes,
    )


def to_minari(data: Trajectories, id: str, *, parameters: Mapping[str, Any] | None = None) -> Path:
    """Write a dataset that is in memory as a Minari dataset of float32 vectors.

    Args:
        data: the dataset. Of its references Minari can hold one, the last.
        id: of the new dataset; one that exists is replaced.
        parameters: what `find_same` is to recognise it by.

    Raises:
        ValueError: if, inside an episode, `next_observations` are not the next `observations`:
            Minari stores each observation once and could not keep both.
    """
    from gymnasium.envs.registration import EnvSpec
    from gymnasium.spaces import Box

    inside = ~(data.terminations | data.truncations)[:-1]
    differs = (data.next_observations[:-1] != data.observations[1:]).any(axis=1) & inside
    if differs.any():
        row = int(np.flatnonzero(differs)[0])
        episode = int(np.searchsorted(data.offsets, row, side="right")) - 1
        raise ValueError(
            f"{data.info.id}: episode {episode}: next_observations: step "
            f"{row - int(data.offsets[episode])} differs from the observation after it "
            f"({int(differs.sum())} such steps); Minari cannot store that"
        )
    env_spec = None if data.info.env_spec is None else EnvSpec.from_json(data.info.env_spec)
    own = data.info.references[-1] if data.info.references else None
    return write_dataset(
        id,
        [_buffer(data, index) for index in range(data.episodes)],
        env_spec=None,
        eval_env_spec=env_spec,
        observation_space=Box(-np.inf, np.inf, (data.observation_dim,), np.float32),
        action_space=Box(
            np.asarray(data.info.action_low, np.float32),
            np.asarray(data.info.action_high, np.float32),
            dtype=np.float32,
        ),
        reference=own,
        algorithm="unknown",
        description=f"{data.info.id}: {json.dumps(data.info.provenance)}",
        provenance={**data.info.provenance, "parameters": dict(parameters or {})},
    )


def _buffer(data: Trajectories, index: int) -> dict[str, Any]:
    episode = data.episode(index)
    ends = np.zeros((2, len(episode.rewards)), dtype=np.bool_)
    ends[:, -1] = episode.terminated, episode.truncated
    return {
        "observations": np.concatenate([episode.observations, episode.next_observations[-1:]]),
        "actions": episode.actions,
        "rewards": episode.rewards,
        "terminations": ends[0],
        "truncations": ends[1],
    }


def _find(dataset: str | Path, download: bool) -> Path:
    """The dataset's folder, fetched if asked for."""
    folder = Path(dataset) if isinstance(dataset, Path) else dataset_path(dataset)
    if folder.name == "data" and (folder / "metadata.json").exists():
        return folder.parent
    if folder.exists():
        return folder
    if isinstance(dataset, str):
        if Path(dataset).is_dir():
            return _find(Path(dataset), False)
        if download:
            from dtag_fast.data.download import download as fetch

            return fetch(dataset)
    root = datasets_root()
    local = [path.parent.parent for path in root.glob("**/data/metadata.json")]
    similar = difflib.get_close_matches(
        str(dataset), [path.relative_to(root).as_posix() for path in local], n=3
    )
    hint = f"; similar: {', '.join(similar)}" if similar else ""
    raise FileNotFoundError(
        f"no Minari dataset {str(dataset)!r}: it is neither in {root} nor a folder{hint}. "
        "Pass download=True for a published dataset; `dtag data make` and `dtag data collect` make "
        "datasets."
    )


def _action_box(id: str, space: Space[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    from gymnasium.spaces import Box

    if not isinstance(space, Box) or len(space.shape) != 1:
        raise ValueError(f"{id}: actions: expected a Box with one dimension, got {space}")
    if not space.is_bounded():
        raise ValueError(f"{id}: actions: expected a bounded Box, got {space}")
    return space.low, space.high


def _observation_keys(
    id: str, space: Space[Any], keys: Sequence[str] | None, env_id: str | None
) -> list[str]:
    """The parts to read; [] for a plain vector."""
    from gymnasium.spaces import Box, Dict

    if isinstance(space, Dict):
        names = list(space.spaces)
        if keys is None and env_id is not None and env_id.startswith("PointMaze_"):
            keys = ["observation"]
        if not keys or not set(keys) <= set(names):
            raise ValueError(
                f"{id}: observations: they are dicts with {names}; name the parts to join with "
                f"observation_keys, got {keys}"
            )
        parts = [(f"observations[{name!r}]", space.spaces[name]) for name in keys]
    else:
        if keys is not None:
            raise ValueError(f"{id}: observation_keys: got {keys}, but observations are no dicts")
        parts = [("observations", space)]
    for name, part in parts:
        if not isinstance(part, Box) or len(part.shape) != 1:
            raise ValueError(
                f"{id}: {name}: expected a Box with one dimension (images, discrete and nested "
                f"observations are not supported), got {part}"
            )
    return list(keys or [])


def _hdf5_episodes(path: Path, count: int, keys: list[str]) -> Iterator[_StoredEpisode]:
    """Minari's HDF5 layout read directly: no infos, no space decoding, less than half the time."""
    import h5py

    with h5py.File(path, "r") as file:
        for index in range(count):
            episode = f"episode_{index}/"
            try:
                observations = [_read(file, f"{episode}observations/{key}") for key in keys or [""]]
                yield _StoredEpisode(
                    observations,
                    *(
                        _read(file, episode + name)
                        for name in ("actions", "rewards", "terminations", "truncations")
                    ),
                )
            except KeyError as error:
                raise ValueError(f"{path}: episode {index}: {error.args[0]}") from None


def _read(file: Any, name: str) -> NDArray[Any]:
    from h5py import h5d, h5s

    dataset = h5d.open(file.id, name.rstrip("/").encode())
    array = np.empty(dataset.shape, dataset.dtype)
    if array.size:
        dataset.read(h5s.ALL, h5s.ALL, array)
    return array


def _minari_episodes(stored: Any, keys: list[str]) -> Iterator[_StoredEpisode]:
    for episode in stored.iterate_episodes():
        observations = episode.observations
        yield _StoredEpisode(
            [observations[key] for key in keys] if keys else [observations],
            episode.actions,
            episode.rewards,
            episode.terminations,
            episode.truncations,
        )


def _flat(
    id: str, episodes: list[_StoredEpisode], keys: list[str], notes: dict[str, Any]
) -> dict[str, NDArray[Any]]:
    """Episodes one after another, each checked for its shape and closed at its end."""
    if not episodes:
        raise ValueError(f"{id}: expected at least one episode, got an empty dataset")
    observations, following, truncations = [], [], []
    stale = open_ends = 0
    for index, episode in enumerate(episodes):
        _check_lengths(id, index, episode, keys)
        parts = episode.observations
        if index and "desired_goal" in keys:
            position = keys.index("desired_goal")
            goal = parts[position]
            if len(goal) > 2 and (goal[1:] == goal[1]).all() and (goal[0] != goal[1]).any():
                parts[position] = np.concatenate([goal[1:2], goal[1:]])
                stale += 1
        vectors = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
        observations.append(vectors[:-1])
        following.append(vectors[1:])
        ends = episode.truncations.astype(np.bool_)
        if not (ends[-1] or episode.terminations[-1]):
            ends[-1] = True
            open_ends += 1
        truncations.append(ends)
    if stale:
        notes["stale_goals_replaced"] = stale
    if open_ends:
        notes["unfinished_episodes"] = open_ends
        warnings.warn(
            f"{id}: {open_ends} of {len(episodes)} episodes end with neither a termination nor a "
            "truncation: kept as truncated",
            stacklevel=4,
        )
    return {
        "observations": np.concatenate(observations),
        "next_observations": np.concatenate(following),
        "actions": np.concatenate([episode.actions for episode in episodes]),
        "rewards": np.concatenate([episode.rewards for episode in episodes]),
        "terminations": np.concatenate([episode.terminations for episode in episodes]),
        "truncations": np.concatenate(truncations),
    }


def _check_lengths(id: str, index: int, episode: _StoredEpisode, keys: list[str]) -> None:
    steps = len(episode.rewards) if episode.rewards.ndim == 1 else -1
    if steps < 1:
        raise ValueError(
            f"{id}: episode {index}: rewards: expected [T] with T >= 1, got {episode.rewards.shape}"
        )
    fields = [
        *((name, array, 2) for name, array in zip(keys or [""], episode.observations, strict=True)),
        ("actions", episode.actions, 2),
        ("terminations", episode.terminations, 1),
        ("truncations", episode.truncations, 1),
    ]
    for position, (name, array, dimensions) in enumerate(fields):
        rows = steps + (position < len(episode.observations))
        if array.ndim != dimensions or len(array) != rows:
            shape = f"[{rows}, *]" if dimensions == 2 else f"[{rows}]"
            raise ValueError(
                f"{id}: episode {index}: {name or 'observations'}: expected {shape} for {steps} "
                f"rewards, got {array.shape}"
            )


def evaluation_spec(metadata: Mapping[str, Any]) -> dict[str, Any] | None:
    """The evaluation environment's spec, without what gymnasium 1 no longer knows."""
    raw = metadata.get("eval_env_spec") or metadata.get("env_spec")
    if raw is None:
        return None
    spec = dict(json.loads(raw))
    for outdated in ("apply_api_compatibility", "autoreset"):
        spec.pop(outdated, None)
    return spec


def _provenance(metadata: dict[str, Any]) -> dict[str, Any]:
    """The parts of the metadata that tell where the data came from."""
    names = (
        "author",
        "algorithm_name",
        "description",
        "code_permalink",
        "minari_version",
        "requirements",
        "combined_datasets",
    )
    found = {name: metadata[name] for name in names if metadata.get(name)}
    return {**found, **metadata.get("provenance", {})}
