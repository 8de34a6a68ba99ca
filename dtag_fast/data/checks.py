"""What must hold for a dataset's arrays, and how flat arrays are brought into that form."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from dtag_fast.data.trajectories import DatasetInfo, Trajectories

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

# An action this far outside its box, in units of the box's width, is rounding, not a fault.
ROUNDING = 1e-5

_DIMENSIONS = {"observations": 2, "actions": 2, "next_observations": 2}


def clip_actions(actions: Floats, info: DatasetInfo, offsets: Ints) -> tuple[Floats, DatasetInfo]:
    """`actions` inside their box; a warning and a provenance note if more than rounding moved."""
    low, high = np.asarray(info.action_low), np.asarray(info.action_high)
    excess = np.maximum(low - actions, actions - high) / (high - low)
    worst = float(excess.max(initial=0.0))
    if worst <= 0.0 or not np.isfinite(actions).all():
        return actions, info
    clipped = np.clip(actions, low, high).astype(np.float32)
    rows = np.flatnonzero((excess > ROUNDING).any(axis=1))
    if rows.size == 0:
        return clipped, info
    amount = float(np.maximum(low - actions, actions - high).max())
    first = int(np.searchsorted(offsets, rows[0], side="right")) - 1
    message = (
        f"{info.id}: clipped the actions of {rows.size} of {len(actions)} steps into their box "
        f"{list(info.action_low)}..{list(info.action_high)} (largest excess {amount:.6g}, "
        f"first in episode {first})"
    )
    warnings.warn(message, stacklevel=3)
    return clipped, info.with_provenance(clipped_steps=int(rows.size), largest_excess=amount)


def bound(name: str, value: float | ArrayLike, action_dim: int) -> tuple[float, ...]:
    array = np.asarray(value, dtype=np.float64)
    if array.ndim > 1 or (array.ndim == 1 and array.shape != (action_dim,)):
        raise ValueError(f"{name}: expected a number or [{action_dim}], got shape {array.shape}")
    return tuple(float(x) for x in np.broadcast_to(array, (action_dim,)))


def converted(given: dict[str, NDArray[Any]], id: str) -> dict[str, NDArray[Any]]:
    """The arrays in the package's dtypes, with their shapes checked."""
    steps = len(given["rewards"]) if given["rewards"].ndim else 0
    arrays: dict[str, NDArray[Any]] = {}
    for name, array in given.items():
        dimensions = _DIMENSIONS.get(name, 1)
        if array.ndim != dimensions or len(array) != steps:
            shape = f"[{steps}, *]" if dimensions == 2 else f"[{steps}]"
            hint = " (image observations are not supported)" if array.ndim > 2 else ""
            raise ValueError(f"{id}: {name}: expected shape {shape}, got {array.shape}{hint}")
        if array.dtype.kind not in "biuf":
            raise TypeError(f"{id}: {name}: expected numbers, got dtype {array.dtype}")
        if name in ("terminations", "truncations"):
            if array.dtype != np.bool_ and not np.isin(array, (0, 1)).all():
                raise ValueError(f"{id}: {name}: expected booleans or 0 and 1, got other numbers")
            arrays[name] = np.ascontiguousarray(array, dtype=np.bool_)
        else:
            with np.errstate(over="ignore"):  # becomes infinite, which is reported as such
                arrays[name] = np.ascontiguousarray(array, dtype=np.float32)
    if steps == 0:
        raise ValueError(f"{id}: rewards: expected at least one step, got an empty set")
    return arrays


def finish_last_episode(
    arrays: dict[str, NDArray[Any]], unfinished: str, id: str, notes: dict[str, Any]
) -> None:
    """Close or cut off the steps after the last episode end, in place, and tell."""
    ends = np.flatnonzero(arrays["terminations"] | arrays["truncations"])
    whole = int(ends[-1]) + 1 if ends.size else 0
    left = len(arrays["rewards"]) - whole
    if left == 0:
        return
    if unfinished == "drop":
        if whole == 0:
            raise ValueError(f"{id}: no episode ends: nothing is left with unfinished='drop'")
        for name in arrays:
            arrays[name] = arrays[name][:whole]
    else:
        arrays["truncations"] = arrays["truncations"].copy()
        arrays["truncations"][-1] = True
    fate = "dropped" if unfinished == "drop" else "kept as a truncated episode"
    warnings.warn(f"{id}: the last episode is unfinished: {left} steps {fate}", stacklevel=4)
    notes["unfinished_last_episode"] = {"steps": left, "fate": fate}


def offsets_from_ends(ends: Bools, id: str) -> Ints:
    return np.concatenate([[0], np.flatnonzero(ends) + 1]).astype(np.int64)


def infer_next_observations(
    arrays: dict[str, NDArray[Any]], offsets: Ints, id: str, notes: dict[str, Any]
) -> Ints:
    """Add next_observations from the following rows, in place; return the new offsets."""
    observations = arrays["observations"]
    following = np.concatenate([observations[1:], observations[-1:]])
    last = offsets[1:] - 1
    terminated = arrays["terminations"][last]
    following[last[terminated]] = observations[last[terminated]]
    unknown = last[~terminated]
    arrays["next_observations"] = following
    if unknown.size == 0:
        return offsets
    alone = int((np.diff(offsets)[~terminated] == 1).sum())
    keep = np.ones(len(observations), dtype=np.bool_)
    keep[unknown] = False
    if not keep.any():
        raise ValueError(
            f"{id}: next_observations: needed, since every episode is one truncated step long"
        )
    # Where the episode had only this step, the flag must not move into the episode before.
    arrays["truncations"] = arrays["truncations"].copy()
    arrays["truncations"][unknown[np.diff(offsets)[~terminated] > 1] - 1] = True
    for name in arrays:
        arrays[name] = arrays[name][keep]
    warnings.warn(
        f"{id}: no next_observations: took the last step off {unknown.size} truncated episodes, "
        f"whose successor is unknown ({alone} episodes of one step are gone)",
        stacklevel=4,
    )
    notes["steps_without_successor"] = {"dropped": int(unknown.size), "episodes_gone": alone}
    return offsets_from_ends(arrays["terminations"] | arrays["truncations"], id)


def check_trajectories(data: Trajectories) -> None:
    """Every invariant of `Trajectories`.

    Raises:
        TypeError: for an array of another dtype.
        ValueError: naming the episode and the field.
    """
    _check_types_and_shapes(data)
    _check_episodes(data)
    for name in ("observations", "actions", "rewards", "next_observations"):
        _check_finite(name, getattr(data, name), data)
    _check_box(data)


def _check_types_and_shapes(data: Trajectories) -> None:
    steps = len(data.rewards) if np.ndim(data.rewards) else 0
    wanted = {
        "observations": (np.float32, 2),
        "actions": (np.float32, 2),
        "rewards": (np.float32, 1),
        "next_observations": (np.float32, 2),
        "terminations": (np.bool_, 1),
        "truncations": (np.bool_, 1),
    }
    for name, (dtype, dimensions) in wanted.items():
        array = getattr(data, name)
        if not isinstance(array, np.ndarray) or array.dtype != dtype:
            got = f"dtype {array.dtype}" if isinstance(array, np.ndarray) else type(array).__name__
            raise TypeError(f"{name}: expected a numpy array of {np.dtype(dtype)}, got {got}")
        if array.ndim != dimensions or len(array) != steps:
            shape = f"[{steps}, *]" if dimensions == 2 else f"[{steps}]"
            raise ValueError(f"{data.info.id}: {name}: expected {shape}, got {array.shape}")
    if steps == 0:
        raise ValueError(f"{data.info.id}: rewards: expected at least one step, got an empty set")
    if data.observations.shape != data.next_observations.shape or data.observation_dim == 0:
        raise ValueError(
            f"{data.info.id}: next_observations: expected {data.observations.shape} with at least "
            f"one feature, got {data.next_observations.shape}"
        )
    if data.action_dim != len(data.info.action_low):
        raise ValueError(
            f"{data.info.id}: actions: expected {len(data.info.action_low)} dimensions, as the "
            f"action box has, got {data.action_dim}"
        )


def _check_episodes(data: Trajectories) -> None:
    offsets = data.offsets
    if not isinstance(offsets, np.ndarray) or offsets.dtype != np.int64 or offsets.ndim != 1:
        raise TypeError("offsets: expected a numpy vector of int64")
    if len(offsets) < 2 or offsets[0] != 0 or offsets[-1] != data.steps:
        raise ValueError(f"offsets: expected 0, ..., {data.steps}, got {offsets[:3]}...")
    empty = np.flatnonzero(np.diff(offsets) < 1)
    if empty.size:
        raise ValueError(f"{data.info.id}: episode {empty[0]}: rewards: expected at least one step")
    ends = data.terminations | data.truncations
    expected = np.zeros(data.steps, dtype=np.bool_)
    expected[offsets[1:] - 1] = True
    wrong = np.flatnonzero(ends != expected)
    if wrong.size:
        episode = int(np.searchsorted(offsets, wrong[0], side="right")) - 1
        step = int(wrong[0] - offsets[episode])
        what = "an end inside the episode" if ends[wrong[0]] else "the last step does not end it"
        raise ValueError(
            f"{data.info.id}: episode {episode}: terminations/truncations: {what} (step {step} of "
            f"{int(offsets[episode + 1] - offsets[episode])})"
        )


def _check_finite(name: str, array: Floats, data: Trajectories) -> None:
    with np.errstate(invalid="ignore"):  # inf - inf, which the next lines report
        # One pass without a temporary: in float64 a sum of float32 is finite if every term is.
        if np.isfinite(array.sum(dtype=np.float64)):
            return
    place = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
    episode = int(np.searchsorted(data.offsets, place[0], side="right")) - 1
    step = place[0] - int(data.offsets[episode])
    raise ValueError(
        f"{data.info.id}: episode {episode}: {name}: expected finite numbers, got {array[place]} "
        f"at step {step}" + (f", index {place[1]}" if len(place) == 2 else "")
    )


def _check_box(data: Trajectories) -> None:
    low = np.asarray(data.info.action_low, dtype=np.float32)
    high = np.asarray(data.info.action_high, dtype=np.float32)
    outside = ((data.actions < low) | (data.actions > high)).any(axis=1)
    if outside.any():
        row = int(np.flatnonzero(outside)[0])
        episode = int(np.searchsorted(data.offsets, row, side="right")) - 1
        raise ValueError(
            f"{data.info.id}: episode {episode}: actions: expected values in the box "
            f"{list(data.info.action_low)}..{list(data.info.action_high)}, got {data.actions[row]} "
            f"({int(outside.sum())} steps; `clip_actions` puts them back)"
        )
