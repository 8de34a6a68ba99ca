"""Run a policy in a batch of environments and count every episode it was to play."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from dtag_fast.data.references import ReferenceScores
from dtag_fast.evaluation.environments import EnvSource
from dtag_fast.evaluation.result import EpisodeResult, Evaluation
from dtag_fast.evaluation.scores import SOURCE_LABELS
from dtag_fast.evaluation.vector import AnyVectorEnv, Batch, Vectorization, describe, open_batch

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]


class Actor(Protocol):
    """What can be evaluated; `Policy` is one.

    If there, these are used too: `keep_rows(mask)` to drop environments that have no episode left,
    `observation_dim`, `action_low` and `action_high` to check the environment, `last_info` and
    `last_timing` to report on refinement.
    """

    def reset(self, num_envs: int) -> None:
        """Begin an episode in every environment."""

    def reset_rows(self, rows: Bools) -> None:
        """Begin an episode where the mask [B] is True."""

    def act(self, observations: Floats, rewards: Floats) -> NDArray[Any]:
        """Actions [B, A] for observations [B, S]; rewards [B] are those of the step before."""
        ...


def evaluate(
    policy: Actor,
    env: EnvSource | AnyVectorEnv,
    episodes: int = 10,
    seed: int = 0,
    *,
    num_envs: int | None = None,
    vectorization: Vectorization = "sync",
    observation_keys: Sequence[str] | None = None,
    references: Sequence[ReferenceScores] = (),
    rows: str | Path | None = None,
    notes: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> Evaluation:
    """Play a number of episodes, fixed in advance for every environment, and report each.

    Episode j belongs to environment j mod N and, in environments made here, starts from
    `env.reset(seed=seed + j)`: two policies meet the same starts, and the result does not depend
    on N but for rounding. All episodes are played to their end, so short ones, which end first,
    do not crowd out long ones.

    Args:
        policy: a `Policy`, or any `Actor`. The episodes it has under way are lost. A model that
            was in training mode is put back into it.
        env: anything `make_env` takes; one that is already made runs alone and is left open. Or a
            gymnasium `VectorEnv` of any autoreset mode, also left open; one that resets itself
            gives only the first episode of each environment a known seed.
        episodes: how many, over all environments.
        seed: of episode 0.
        num_envs: N, at most `episodes`; 16 if None. One action then costs far less than one at a
            time, see benchmarks/bench_evaluation.py.
        vectorization: "sync" steps the environments one after another in this process, "async"
            each in a process of its own, which pays for slow environments.
        observation_keys: see `make_env`.
        references: scales on which to give scores.
        rows: a file to which one JSON line per episode is appended as it ends.
        notes: JSON values put in front of every line.
        progress: show a bar.

    Raises:
        ValueError: a policy and an environment that do not fit, actions of a wrong shape or not
            finite, a reward that is not finite.
    """
    for name, value, least in (("episodes", episodes, 1), ("seed", seed, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name}: expected an integer of at least {least}, got {value!r}")
    results: list[EpisodeResult] = []
    with (
        open_batch(env, episodes, num_envs, vectorization, observation_keys) as batch,
        _training_mode_kept(policy),
        _RowFile(rows, notes, references) as file,
        _Bar(episodes, describe(env), progress) as bar,
    ):
        _check_fit(policy, batch)
        start = time.perf_counter()
        with contextlib.closing(_play(policy, batch, episodes, seed)) as played:
            for result in played:
                results.append(result)
                file.write(result)
                bar.update(result)
        wall = time.perf_counter() - start
    results.sort(key=lambda result: result.episode)
    return Evaluation(tuple(results), seed, batch.num_envs, tuple(references), wall)


def _play(
    policy: Actor, batch: Batch, episodes: int, seed: int
) -> Generator[EpisodeResult, None, None]:
    """The results of the episodes as they end."""
    envs, mode = batch.envs, batch.autoreset
    count = batch.num_envs
    quota = np.array([len(range(i, episodes, count)) for i in range(count)])
    played = np.zeros(count, dtype=np.int64)
    acting = np.flatnonzero(quota)  # the environments of the policy's rows
    tally = _Tally(count)
    actions = np.tile(np.clip(0.0, batch.action_low, batch.action_high), (count, 1))
    actions = actions.astype(np.float32)
    rewards = np.zeros(count, dtype=np.float32)
    resetting = np.zeros(count, dtype=np.bool_)  # NEXT_STEP: the coming step is a reset

    observed, _ = envs.reset(seed=seed)
    policy.reset(len(acting))
    while True:
        before = time.perf_counter()
        chosen = policy.act(batch.read(observed)[acting], rewards[acting])
        acted = time.perf_counter()
        actions[acting] = _check_actions(chosen, acting, batch)
        observed, received, terminated, truncated, _ = envs.step(actions)
        stepped = time.perf_counter()

        over = np.asarray(terminated | truncated, dtype=np.bool_)
        live = (played < quota) & ~resetting
        _check_rewards(received, live)
        tally.add_step(live, received)
        tally.add_action(policy, acting, live, 1000 * (acted - before), 1000 * (stepped - acted))
        for i in np.flatnonzero(live & over):
            episode = int(i + played[i] * count)
            known = mode == AutoresetMode.DISABLED or played[i] == 0
            yield tally.result(
                episode=episode,
                env=int(i),
                seed=seed + episode if known else None,
                terminated=bool(terminated[i]),
                truncated=bool(truncated[i]),
            )
            played[i] += 1
        if (played == quota).all():
            return

        begins = over.copy()
        if mode == AutoresetMode.DISABLED:
            if over.any():
                following = [
                    int(seed + i + played[i] * count) if played[i] < quota[i] else None
                    for i in range(count)
                ]
                options = {"reset_mask": over}
                # Gymnasium's own vector environments take a list; their base class says int.
                observed, _ = envs.reset(seed=following, options=options)  # type: ignore[arg-type]
        elif mode == AutoresetMode.NEXT_STEP:
            # At `over` the policy forgets, too: it still acts once on the last observation.
            begins |= resetting
            resetting = over & ~resetting
        rewards = np.where(begins, 0.0, received).astype(np.float32)
        acting = _drop_finished(policy, acting, played < quota)
        if begins[acting].any():
            policy.reset_rows(begins[acting])


def _drop_finished(policy: Actor, acting: NDArray[np.int64], open_: Bools) -> NDArray[np.int64]:
    keep = open_[acting]
    if keep.all() or not hasattr(policy, "keep_rows"):
        return acting
    policy.keep_rows(keep)
    return acting[keep]


class _Tally:
    """Sums over the episode each environment is in."""

    _NAMES = ("policy_ms", "refinement_ms", "env_ms", "q_gain", "distance", "best_step")

    def __init__(self, count: int) -> None:
        self._returns = np.zeros(count, dtype=np.float64)
        self._lengths = np.zeros(count, dtype=np.int64)
        self._sums = {name: np.zeros(count, dtype=np.float64) for name in self._NAMES}
        self._refined = False

    def add_step(self, live: Bools, rewards: NDArray[Any]) -> None:
        self._returns[live] += rewards[live]
        self._lengths[live] += 1

    def add_action(
        self, policy: Actor, acting: NDArray[np.int64], live: Bools, act_ms: float, env_ms: float
    ) -> None:
        """Share what a batched step took among its rows, and note what refinement did."""
        share = 1.0 / len(acting)
        timing = getattr(policy, "last_timing", None)
        refinement_ms = 0.0 if timing is None else float(timing.refinement_ms)
        self._sums["policy_ms"][live] += (act_ms - refinement_ms) * share
        self._sums["refinement_ms"][live] += refinement_ms * share
        self._sums["env_ms"][live] += env_ms * share
        info = getattr(policy, "last_info", None)
        self._refined = info is not None
        if info is None:
            return
        counted = live[acting]
        for name, tensor in (
            # Where no Q is finite nothing was refined, and nothing gained.
            ("q_gain", (info.q - info.q_initial).nan_to_num(0.0, 0.0, 0.0)),
            ("distance", info.distance),
            ("best_step", info.best_step),
        ):
            self._sums[name][acting[counted]] += tensor.cpu().numpy()[counted]

    def result(
        self, *, episode: int, env: int, seed: int | None, terminated: bool, truncated: bool
    ) -> EpisodeResult:
        """The episode of an environment, whose sums start again from zero."""
        length = int(self._lengths[env])
        means = {name: float(sums[env] / length) for name, sums in self._sums.items()}
        if not self._refined:
            means = {name: means[name] for name in ("policy_ms", "refinement_ms", "env_ms")}
        result = EpisodeResult(
            episode=episode,
            env=env,
            seed=seed,
            total_return=float(self._returns[env]),
            length=length,
            terminated=terminated,
            truncated=truncated,
            **means,
        )
        for sums in (self._returns, self._lengths, *self._sums.values()):
            sums[env] = 0
        return result


def _check_fit(policy: Actor, batch: Batch) -> None:
    """The policy against the environment, as far as the policy tells."""
    expected = getattr(policy, "observation_dim", None)
    if expected is not None and expected != batch.read.dim:
        raise ValueError(
            f"env: expected observations of {expected} numbers, the policy's, got {batch.read.dim}"
        )
    low, high = (getattr(policy, name, None) for name in ("action_low", "action_high"))
    if low is None or high is None:
        return
    if low.shape != batch.action_low.shape:
        raise ValueError(
            f"env: expected actions of {len(low)} numbers, the policy's, "
            f"got {len(batch.action_low)}"
        )
    slack = 1e-5 * (batch.action_high - batch.action_low)
    if (low < batch.action_low - slack).any() or (high > batch.action_high + slack).any():
        raise ValueError(
            f"env: takes actions in {batch.action_low.tolist()} to {batch.action_high.tolist()}, "
            f"but the policy's are in {low.tolist()} to {high.tolist()}"
        )


def _check_actions(actions: Any, acting: NDArray[np.int64], batch: Batch) -> NDArray[Any]:
    expected = (len(acting), len(batch.action_low))
    if np.shape(actions) != expected:
        raise ValueError(
            f"policy: expected actions {list(expected)}, got {list(np.shape(actions))}"
        )
    finite = np.isfinite(actions).all(axis=1)
    if not finite.all():
        row = int(np.flatnonzero(~finite)[0])
        raise ValueError(
            f"policy: the action for environment {acting[row]} is not finite: {list(actions[row])}"
        )
    return np.asarray(actions)


def _check_rewards(rewards: NDArray[Any], live: Bools) -> None:
    bad = live & ~np.isfinite(rewards)
    if bad.any():
        index = int(np.flatnonzero(bad)[0])
        raise ValueError(f"env: environment {index} gave the reward {rewards[index]}")


@contextlib.contextmanager
def _training_mode_kept(policy: Actor) -> Iterator[None]:
    model = getattr(policy, "model", None)
    training = bool(getattr(model, "training", False))
    try:
        yield
    finally:
        if model is not None and training:
            model.train()


class _RowFile:
    """Appends a JSON line per episode; does nothing without a path."""

    def __init__(
        self,
        path: str | Path | None,
        notes: Mapping[str, Any] | None,
        references: Sequence[ReferenceScores],
    ) -> None:
        self._path = None if path is None else Path(path)
        self._notes = dict(notes or {})
        self._references = references

    def __enter__(self) -> _RowFile:
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("a", encoding="utf-8")
        return self

    def __exit__(self, *_: object) -> None:
        if self._path is not None:
            self._file.close()

    def write(self, result: EpisodeResult) -> None:
        if self._path is None:
            return
        scores = {
            SOURCE_LABELS[reference.source]: float(reference.normalized(result.total_return))
            for reference in self._references
        }
        row = {**self._notes, **result.to_dict(), "score": scores}
        self._file.write(json.dumps(row, allow_nan=False) + "\n")
        self._file.flush()


class _Bar:
    """A tqdm bar over episodes with their mean return; nothing unless shown."""

    def __init__(self, episodes: int, name: str, shown: bool) -> None:
        self._total = 0.0
        self._bar: Any = None
        if shown:
            from tqdm import tqdm

            self._bar = tqdm(total=episodes, desc=name, unit="episode", dynamic_ncols=True)

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, result: EpisodeResult) -> None:
        if self._bar is None:
            return
        self._total += result.total_return
        self._bar.set_postfix_str(f"return {self._total / (self._bar.n + 1):.1f}", refresh=False)
        self._bar.update()
