"""What there is: the local datasets, and the figures of one of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dtag_fast.data.minari import evaluation_spec
from dtag_fast.data.storage import STAGING_PREFIX, check_id, datasets_root, read_metadata
from dtag_fast.data.trajectories import Trajectories


def list_datasets() -> list[dict[str, Any]]:
    """One row for each folder in $MINARI_DATASETS_PATH that is, or was to be, a dataset.

    Keys: `id`, `path`, `problem` (None, or why it cannot be loaded) and, where known, `episodes`,
    `steps`, `megabytes`, `env_id`. Sorted by id; needs neither Minari nor an environment.
    """
    root = datasets_root()
    if not root.is_dir():
        return []
    rows = [_row(root, folder) for folder in _candidates(root)]
    unfinished = "being written by another process, or left behind by one that was killed"
    for folder in sorted(root.glob(f"{STAGING_PREFIX}*")):
        rows.append({"id": folder.name, "path": str(folder), "problem": unfinished})
    return sorted(rows, key=lambda row: str(row["id"]))


def describe(trajectories: Trajectories) -> dict[str, Any]:
    """The figures of a dataset, JSON values only.

    Returns, lengths and normalised scores as mean, std, min, median and max over episodes. Scores
    are on the usual scale, 100 at the reference maximum, and stand under their reference's source
    (a dataset may have both). Observation and action ranges are per dimension.
    """
    info = trajectories.info
    returns = trajectories.returns()
    last = trajectories.offsets[1:] - 1
    return {
        "id": info.id,
        "env_id": info.env_id,
        "horizon": info.horizon,
        "episodes": trajectories.episodes,
        "steps": trajectories.steps,
        "observation_dim": trajectories.observation_dim,
        "action_dim": trajectories.action_dim,
        "returns": _summary(returns),
        "scores": {
            reference.source: {
                "reference_minimum": reference.minimum,
                "reference_maximum": reference.maximum,
                **_summary(reference.normalized(returns)),
            }
            for reference in info.references
        },
        "lengths": _summary(trajectories.lengths()),
        "terminated_share": float(trajectories.terminations[last].mean()),
        "observations": _ranges(trajectories.observations),
        "actions": {
            "box_low": list(info.action_low),
            "box_high": list(info.action_high),
            **_ranges(trajectories.actions),
        },
        "fingerprint": trajectories.fingerprint(),
        "provenance": info.provenance,
    }


def _candidates(folder: Path) -> Iterator[Path]:
    for child in sorted(folder.iterdir()):
        if child.name.startswith(".") or not child.is_dir():
            continue
        if (child / "data").exists() or re.search(r"-v\d+$", child.name):
            yield child
        else:
            yield from _candidates(child)


def _row(root: Path, folder: Path) -> dict[str, Any]:
    id = folder.relative_to(root).as_posix()
    row: dict[str, Any] = {"id": id, "path": str(folder), "problem": None}
    try:
        check_id(id)
        metadata = read_metadata(folder)
        if metadata["dataset_id"] != id:
            raise ValueError(f"{folder}: its metadata call it {metadata['dataset_id']!r}")
        spec = evaluation_spec(metadata)
    except (ValueError, OSError) as error:
        return {**row, "problem": str(error)}
    size = sum(path.stat().st_size for path in (folder / "data").rglob("*") if path.is_file())
    return {
        **row,
        "episodes": metadata["total_episodes"],
        "steps": metadata.get("total_steps"),
        "megabytes": round(size / 1e6, 2),
        "env_id": None if spec is None else spec["id"],
    }


def _summary(values: NDArray[Any]) -> dict[str, float]:
    return {
        "mean": float(np.mean(values)),
        "std": float(np.std(values)),
        "min": float(np.min(values)),
        "median": float(np.median(values)),
        "max": float(np.max(values)),
    }


def _ranges(values: NDArray[np.float32]) -> dict[str, list[float]]:
    return {
        "min": values.min(axis=0).tolist(),
        "max": values.max(axis=0).tolist(),
        "mean": values.mean(axis=0, dtype=np.float64).tolist(),
        "std": values.std(axis=0, dtype=np.float64).tolist(),
    }
