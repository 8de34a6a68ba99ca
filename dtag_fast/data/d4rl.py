"""D4RL's HDF5 files (the layout of hopper_medium-v2.hdf5), read with h5py alone.

One flat array per field: `observations`, `actions`, `rewards`, `terminals`, `timeouts`, in newer
files `next_observations`; `infos/*` and `metadata/*` are not read. (Farama-Foundation/D4RL:
d4rl/offline_env.py.)
"""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dtag_fast.data import references
from dtag_fast.data.minari import to_minari
from dtag_fast.data.storage import MadeDataset, check_id, find_same
from dtag_fast.data.trajectories import Trajectories

# The nearest environment that still runs. Its physics are not those the data was recorded with.
_EVALUATION_ENVS = {
    "hopper": "Hopper-v5",
    "halfcheetah": "HalfCheetah-v5",
    "walker2d": "Walker2d-v5",
    "ant": "Ant-v5",
}


def from_d4rl(
    path: str | Path,
    *,
    id: str | None = None,
    env_id: str | None = None,
    horizon: int | None = None,
    continuing: bool | None = None,
    unfinished: Literal["keep", "drop"] = "keep",
    action_low: float | ArrayLike = -1.0,
    action_high: float | ArrayLike = 1.0,
) -> Trajectories:
    """Read a D4RL file; episodes end at `terminals` and at `timeouts`.

    Args:
        path: the HDF5 file.
        id: name of the dataset; by default the file's, hopper_medium-v2.hdf5 is hopper-medium-v2.
        env_id: gymnasium id of the environment to score in. By default Hopper-v5, HalfCheetah-v5,
            Walker2d-v5 or Ant-v5 if the name says so, else none: D4RL's own environments need
            packages that no longer run. The provenance says which was taken.
        horizon: where the file has no `timeouts`: end an episode after so many steps. Refused if
            the file has them.
        continuing: whether the agent goes on from where it was after a timeout, as in Maze2d, where
            a timeout marks a reached goal. Then the row after an episode is its last successor. By
            default true for maze2d only. Only read where the file lacks `next_observations`.
        unfinished: see `Trajectories.from_arrays`.
        action_low, action_high: the action box; D4RL normalises to -1..1.

    Raises:
        FileNotFoundError, OSError: if there is no such file or it is no HDF5.
        ValueError: naming the file and the missing or wrong field.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"path: no file {path}")
    fields = _read_fields(path)
    name = id or re.sub(r"_(?=[a-z])", "-", path.stem)
    notes: dict[str, Any] = {"source": "d4rl", "file": path.name}
    steps = len(fields["rewards"])
    terminals = fields["terminals"].astype(np.bool_)

    if "timeouts" in fields:
        if horizon is not None:
            raise ValueError(f"horizon: {path.name} has its own timeouts, got horizon={horizon}")
        timeouts = fields["timeouts"].astype(np.bool_)
    elif horizon is None:
        raise ValueError(
            f"{path.name}: timeouts: missing, and without them two episodes may run into one; pass "
            "horizon=STEPS to end episodes after so many steps"
        )
    else:
        timeouts = _timeouts(terminals, horizon)
        notes["timeouts"] = f"missing in the file; every {horizon} steps"

    if continuing is None:
        continuing = (references.task_name(name) or "").startswith("maze2d")
    following = fields.get("next_observations")
    if following is None and continuing:
        # The successor of the very last row is nowhere; the row itself can only serve as one.
        observations = fields["observations"]
        fields = {key: array[:-1] for key, array in fields.items()}
        terminals, timeouts = terminals[:-1], timeouts[:-1]
        following = observations[1:]
        notes["steps_without_successor"] = {"dropped": 1, "of": steps}

    task = references.task_name(name)
    env_id = env_id or _EVALUATION_ENVS.get(task or "")
    env_spec = None
    if env_id is not None:
        import gymnasium

        env_spec = gymnasium.spec(env_id).to_json()
        notes["evaluation_env"] = f"{env_id}, not the environment of the recording"
    return Trajectories.from_arrays(
        fields["observations"],
        fields["actions"],
        fields["rewards"],
        terminals,
        timeouts,
        next_observations=following,
        action_low=action_low,
        action_high=action_high,
        id=name,
        env_spec=env_spec,
        references=references.references_for(name),
        horizon=references.horizon(name) or horizon,
        provenance=notes,
        unfinished=unfinished,
    )


def import_d4rl(
    path: str | Path, *, id: str | None = None, force: bool = False, **options: Any
) -> MadeDataset:
    """Read a D4RL file and write it as a local Minari dataset.

    Args:
        path: the HDF5 file.
        id: of the new dataset; by default dtag/d4rl/NAME-vN from a file called NAME-vN.hdf5.
        force: replace what has this id.
        options: those of `from_d4rl`, except `id`.
    """
    started = time.perf_counter()
    path = Path(path)
    name = re.sub(r"[^A-Za-z0-9-]+", "-", path.stem)
    id = id or "dtag/d4rl/" + (name if re.search(r"-v\d+$", name) else f"{name}-v0")
    check_id(id, writing=True)
    if not path.is_file():
        raise FileNotFoundError(f"path: no file {path}")
    parameters = {
        "file": path.name,
        "bytes": path.stat().st_size,
        "options": {key: value for key, value in options.items() if value is not None},
    }
    same = find_same(id, parameters, force=force)
    if same is not None:
        return MadeDataset(id, same, True, time.perf_counter() - started)
    data = from_d4rl(path, **options)
    folder = to_minari(data, id, parameters=parameters)
    return MadeDataset(id, folder, False, time.perf_counter() - started)


def _read_fields(path: Path) -> dict[str, NDArray[Any]]:
    import h5py

    required = ("observations", "actions", "rewards", "terminals")
    with h5py.File(path, "r") as file:
        missing = [name for name in required if name not in file]
        if missing:
            raise ValueError(
                f"{path.name}: {', '.join(missing)}: missing; not a D4RL file, it has {list(file)}"
            )
        present = [name for name in (*required, "timeouts", "next_observations") if name in file]
        fields = {name: np.asarray(file[name][()]) for name in present}
    steps = fields["observations"].shape[0] if fields["observations"].ndim else 0
    for name, array in fields.items():
        if name in ("rewards", "terminals", "timeouts") and array.shape == (steps, 1):
            fields[name] = array = array[:, 0]
        if array.ndim == 0 or len(array) != steps:
            raise ValueError(
                f"{path.name}: {name}: expected {steps} rows as in observations, got {array.shape}"
            )
    if steps == 0:
        raise ValueError(f"{path.name}: observations: expected at least one step, got an empty set")
    return fields


def _timeouts(terminals: NDArray[np.bool_], horizon: int) -> NDArray[np.bool_]:
    """A timeout at every `horizon`-th step since the last terminal."""
    if horizon < 1:
        raise ValueError(f"horizon: expected a positive number of steps, got {horizon}")
    index = np.arange(len(terminals))
    after_terminal = np.concatenate([[True], terminals[:-1]])
    start = np.maximum.accumulate(np.where(after_terminal, index, 0))
    ends: NDArray[np.bool_] = ((index - start + 1) % horizon == 0) & ~terminals
    return ends
