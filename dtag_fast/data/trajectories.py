"""The offline dataset as flat float32 arrays. Everything after loading works on this."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dtag_fast.data.checks import (
    Bools,
    Floats,
    Ints,
    bound,
    check_trajectories,
    clip_actions,
    converted,
    finish_last_episode,
    infer_next_observations,
    offsets_from_ends,
)
from dtag_fast.data.references import ReferenceScores

_ARRAYS = (
    "observations",
    "actions",
    "rewards",
    "next_observations",
    "terminations",
    "truncations",
    "offsets",
)


@dataclass(frozen=True)
class DatasetInfo:
    """What the arrays of a dataset do not say.

    Attributes:
        id: Minari id, or a name given to arrays.
        env_spec: the evaluation environment as gymnasium `EnvSpec.to_json()`, before any wrapper of
            this package; None where none is known.
        action_low, action_high: the action box, one finite number per dimension.
        references: what counts as score 0 and 100, one entry per source.
        horizon: steps of an evaluation episode, None where there is no limit or none is known.
        provenance: where the data came from and what was done to it since; JSON values only.
    """

    id: str
    env_spec: str | None
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    references: tuple[ReferenceScores, ...] = ()
    horizon: int | None = None
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        low, high = np.asarray(self.action_low), np.asarray(self.action_high)
        if low.ndim != 1 or low.shape != high.shape or low.size == 0:
            raise ValueError(
                "action_low and action_high: expected two sequences of one length >= 1, "
                f"got {self.action_low} and {self.action_high}"
            )
        if not (np.isfinite(low).all() and np.isfinite(high).all() and (low < high).all()):
            raise ValueError(
                "action_low and action_high: expected finite bounds with low < high, "
                f"got {self.action_low} and {self.action_high}"
            )
        if self.horizon is not None and self.horizon < 1:
            raise ValueError(f"horizon: expected a positive number of steps, got {self.horizon}")

    @property
    def env_id(self) -> str | None:
        """The gymnasium id inside `env_spec`."""
        return None if self.env_spec is None else str(json.loads(self.env_spec)["id"])

    def with_provenance(self, **notes: Any) -> DatasetInfo:
        """The same with `notes` added to the provenance."""
        return replace(self, provenance={**self.provenance, **notes})

    def to_dict(self) -> dict[str, Any]:
        """JSON values only; `from_dict` reverses it."""
        return {
            "id": self.id,
            "env_spec": self.env_spec,
            "action_low": list(self.action_low),
            "action_high": list(self.action_high),
            "references": [reference.to_dict() for reference in self.references],
            "horizon": self.horizon,
            "provenance": self.provenance,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DatasetInfo:
        return cls(
            id=values["id"],
            env_spec=values["env_spec"],
            action_low=tuple(float(x) for x in values["action_low"]),
            action_high=tuple(float(x) for x in values["action_high"]),
            references=tuple(ReferenceScores.from_dict(x) for x in values["references"]),
            horizon=values["horizon"],
            provenance=dict(values["provenance"]),
        )


class Episode(NamedTuple):
    """One episode of T steps; views into the dataset's arrays, not copies."""

    observations: Floats  # [T, S]
    actions: Floats  # [T, A]
    rewards: Floats  # [T]
    next_observations: Floats  # [T, S]
    terminated: bool
    truncated: bool


@dataclass(frozen=True, eq=False, repr=False)
class Trajectories:
    """M episodes of N steps in all, one after another; episode i is `offsets[i]:offsets[i + 1]`.

    A termination is the end of the task (no value after it); a truncation is the end of the
    recording (the value of `next_observations` still counts). Each is set only in the last step of
    an episode, and the last step has at least one of them.

    Raises:
        ValueError: naming the episode and the field, for wrong shapes, an empty set, NaN or
            infinity, an episode that does not end, or an action outside its box.
    """

    observations: Floats  # [N, S]
    actions: Floats  # [N, A], inside the box
    rewards: Floats  # [N]
    next_observations: Floats  # [N, S]
    terminations: Bools  # [N]
    truncations: Bools  # [N]
    offsets: Ints  # [M + 1], from 0 to N
    info: DatasetInfo

    def __post_init__(self) -> None:
        check_trajectories(self)

    @property
    def observation_dim(self) -> int:
        return int(self.observations.shape[1])

    @property
    def action_dim(self) -> int:
        return int(self.actions.shape[1])

    @property
    def episodes(self) -> int:
        """M."""
        return len(self.offsets) - 1

    @property
    def steps(self) -> int:
        """N."""
        return len(self.rewards)

    def __len__(self) -> int:
        return self.episodes

    def __repr__(self) -> str:
        return (
            f"Trajectories({self.info.id!r}: {self.episodes} episodes, {self.steps} steps, "
            f"observations [{self.observation_dim}], actions [{self.action_dim}])"
        )

    def episode(self, index: int) -> Episode:
        """Episode `index`, counted from the end if negative."""
        if not -self.episodes <= index < self.episodes:
            raise IndexError(f"episode {index}: there are {self.episodes}")
        start, stop = self.offsets[index % self.episodes : index % self.episodes + 2]
        return Episode(
            self.observations[start:stop],
            self.actions[start:stop],
            self.rewards[start:stop],
            self.next_observations[start:stop],
            bool(self.terminations[stop - 1]),
            bool(self.truncations[stop - 1]),
        )

    def lengths(self) -> Ints:
        """Steps of each episode, [M]."""
        return np.diff(self.offsets)

    def returns(self) -> NDArray[np.float64]:
        """Undiscounted sum of the rewards of each episode, [M]."""
        return np.add.reduceat(self.rewards, self.offsets[:-1], dtype=np.float64)

    def timesteps(self) -> Ints:
        """The position of each step in its episode, from 0, [N]."""
        starts = np.repeat(self.offsets[:-1], self.lengths())
        return np.arange(self.steps, dtype=np.int64) - starts

    def returns_to_go(self, discount: float = 1.0) -> Floats:
        """Sum of this and all later rewards of the episode, discounted, [N]; raw reward units."""
        if not 0.0 <= discount <= 1.0:
            raise ValueError(f"discount: expected a number in [0, 1], got {discount}")
        result = self.rewards.astype(np.float64)
        lengths = self.lengths()
        # Backwards through all episodes at once: in round k the k-th step from every end.
        order = np.argsort(-lengths, kind="stable")
        last = self.offsets[1:][order] - 1
        alive = np.searchsorted(-lengths[order], -np.arange(lengths.max()), side="left")
        for k in range(1, int(lengths.max())):
            step = last[: alive[k]] - k
            result[step] += discount * result[step + 1]
        return result.astype(np.float32)

    def fingerprint(self) -> str:
        """sha256 over the arrays, in hexadecimal; says nothing about `info`."""
        digest = hashlib.sha256()
        for name in _ARRAYS:
            array = np.ascontiguousarray(getattr(self, name))
            digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
            digest.update(array.data)
        return digest.hexdigest()

    def select(self, episodes: ArrayLike) -> Trajectories:
        """The given episodes, in the given order: indices, or a mask [M]."""
        chosen = np.asarray(episodes)
        if chosen.dtype == np.bool_:
            if chosen.shape != (self.episodes,):
                raise ValueError(f"episodes: expected a mask [{self.episodes}], got {chosen.shape}")
            chosen = np.flatnonzero(chosen)
        if chosen.ndim != 1 or chosen.size == 0 or not np.issubdtype(chosen.dtype, np.integer):
            raise ValueError(f"episodes: expected at least one index, got {episodes!r}")
        if chosen.min() < -self.episodes or chosen.max() >= self.episodes:
            raise IndexError(f"episodes: expected indices below {self.episodes}, got {episodes!r}")
        lengths = self.lengths()[chosen]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        rows = np.arange(offsets[-1]) + np.repeat(self.offsets[:-1][chosen] - offsets[:-1], lengths)
        arrays = {name: getattr(self, name)[rows] for name in _ARRAYS[:-1]}
        info = self.info.with_provenance(selected_episodes=f"{chosen.size} of {self.episodes}")
        return Trajectories(**arrays, offsets=offsets, info=info)

    @classmethod
    def concatenate(cls, parts: Sequence[Trajectories], *, id: str) -> Trajectories:
        """The episodes of several datasets of one environment, one dataset after the other.

        Args:
            parts: at least two, alike in dimensions, environment, action box and horizon.
                References are the first's.
            id: of the whole.
        """
        if len(parts) < 2:
            raise ValueError(f"parts: expected at least two datasets, got {len(parts)}")
        first = parts[0]
        for part in parts[1:]:
            for name in ("observation_dim", "action_dim"):
                _check_alike(name, getattr(part, name), getattr(first, name), part, first)
            for name in ("env_spec", "action_low", "action_high", "horizon"):
                _check_alike(name, getattr(part.info, name), getattr(first.info, name), part, first)
        arrays = {
            name: np.concatenate([getattr(part, name) for part in parts]) for name in _ARRAYS[:-1]
        }
        lengths = np.concatenate([part.lengths() for part in parts])
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        mixed = [{"id": part.info.id, **part.info.provenance} for part in parts]
        info = replace(first.info, id=id, provenance={"source": "mix", "parts": mixed})
        return cls(**arrays, offsets=offsets, info=info)

    @classmethod
    def from_arrays(
        cls,
        observations: ArrayLike,
        actions: ArrayLike,
        rewards: ArrayLike,
        terminations: ArrayLike,
        truncations: ArrayLike,
        *,
        next_observations: ArrayLike | None = None,
        action_low: float | ArrayLike = -1.0,
        action_high: float | ArrayLike = 1.0,
        id: str = "arrays",
        env_spec: str | None = None,
        references: tuple[ReferenceScores, ...] = (),
        horizon: int | None = None,
        provenance: Mapping[str, Any] | None = None,
        unfinished: Literal["keep", "drop"] = "keep",
    ) -> Trajectories:
        """Episodes from flat arrays; an episode ends where a termination or truncation is set.

        Args:
            observations: [N, S], any real dtype, kept as float32.
            actions: [N, A]. One outside the box is clipped into it, with a warning that says how
                many and by how much: an environment with this box would have done the same.
            rewards: [N].
            terminations, truncations: [N].
            next_observations: [N, S]. Without it the next row stands in. The last step of a
                truncated episode then has no known successor: it is taken off (its observation
                becomes the successor of the step before) and a warning says how many were. After a
                termination the successor does not matter, and the observation itself stands in.
            action_low, action_high: bounds of the action box, numbers or [A].
            id, env_spec, references, horizon, provenance: see `DatasetInfo`.
            unfinished: what becomes of steps after the last end: "keep" calls them a truncated
                episode, "drop" leaves them out. A warning says which and how many.
        """
        given = {
            "observations": np.asarray(observations),
            "actions": np.asarray(actions),
            "rewards": np.asarray(rewards),
            "terminations": np.asarray(terminations),
            "truncations": np.asarray(truncations),
        }
        if next_observations is not None:
            given["next_observations"] = np.asarray(next_observations)
        arrays = converted(given, id)
        notes: dict[str, Any] = dict(provenance or {})
        if unfinished not in ("keep", "drop"):
            raise ValueError(f"unfinished: expected 'keep' or 'drop', got {unfinished!r}")
        finish_last_episode(arrays, unfinished, id, notes)
        offsets = offsets_from_ends(arrays["terminations"] | arrays["truncations"], id)
        if "next_observations" not in arrays:
            offsets = infer_next_observations(arrays, offsets, id, notes)
        action_dim = arrays["actions"].shape[1]
        info = DatasetInfo(
            id=id,
            env_spec=env_spec,
            action_low=bound("action_low", action_low, action_dim),
            action_high=bound("action_high", action_high, action_dim),
            references=references,
            horizon=horizon,
            provenance=notes,
        )
        arrays["actions"], info = clip_actions(arrays["actions"], info, offsets)
        return cls(**arrays, offsets=offsets, info=info)

    @classmethod
    def from_minari(
        cls,
        dataset: str | Path,
        *,
        download: bool = False,
        observation_keys: Sequence[str] | None = None,
    ) -> Trajectories:
        """A Minari dataset by id or folder; see `dtag_fast.data.minari.from_minari`."""
        from dtag_fast.data.minari import from_minari

        return from_minari(dataset, download=download, observation_keys=observation_keys)

    @classmethod
    def from_d4rl(cls, path: str | Path, **options: Any) -> Trajectories:
        """A D4RL HDF5 file; see `dtag_fast.data.d4rl.from_d4rl`."""
        from dtag_fast.data.d4rl import from_d4rl

        return from_d4rl(path, **options)


def best_episodes(data: Trajectories, share: float) -> Trajectories:
    """The episodes of highest return that together hold at most this share of the steps.

    At least the best one. As %BC of kzl/decision-transformer (gym/experiment.py).
    """
    if share == 1.0:
        return data
    order = np.argsort(-data.returns(), kind="stable")
    held = np.cumsum(data.lengths()[order])
    count = max(int(np.searchsorted(held, share * data.steps, side="right")), 1)
    return data.select(np.sort(order[:count]))


def _check_alike(
    name: str, got: object, expected: object, part: Trajectories, first: Trajectories
) -> None:
    if got != expected:
        raise ValueError(
            f"parts: {name} of {part.info.id}: expected that of {first.info.id}, {expected}, "
            f"got {got}"
        )
