"""`collect`: medium, medium-replay and expert data of a locally trained policy, in Minari form."""

from __future__ import annotations

import time
import warnings
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from dtag_fast.data import references
from dtag_fast.data.references import ReferenceScores
from dtag_fast.data.storage import MadeDataset, find_same, versions, write_dataset

Tier = Literal["medium", "medium-replay", "expert"]
COLLECTION_SEED = 100_000


def collect(
    env_id: str,
    tier: Tier,
    *,
    steps: int = 200_000,
    seed: int = 0,
    training_steps: int | None = None,
    evaluation_episodes: int = 20,
    id: str | None = None,
    force: bool = False,
    progress: bool = True,
) -> MadeDataset:
    """Train a behaviour policy (once per environment) and write one dataset of it.

    Needs the extras `collect` and `envs`. A Hopper run takes some ten minutes on one core, most of
    it training; the trained policies are kept in $MINARI_DATASETS_PATH/.dtag-behaviour, so that a
    second tier takes seconds.

    Args:
        env_id: a gymnasium id with vector observations and a bounded action box: Hopper-v5.
        tier: "medium": sampled actions of an earlier checkpoint with a third to a half of the
            expert's return. "medium-replay": whole training episodes, drawn without replacement
            from those that ended before that checkpoint, in training order. "expert": mean action
            plus noise (std 5 % of the box) of the best checkpoint.
        steps: steps to collect. The last episode of medium and expert is cut there and kept as
            truncated; one that would have a single step is left out. medium-replay keeps whole
            episodes, so it may be shorter.
        seed: of the training and of the collection.
        training_steps: of PPO; by default 1.5 M, HalfCheetah 2.3 M, unknown environments 1 M.
        evaluation_episodes: per checkpoint and kind of action, for choosing the two policies.
        id: by default dtag/hopper/medium-v0 and so on.
        force: replace what has this id. The trained policies are kept all the same.
        progress: show bars.

    The reference scores are D4RL's constants for hopper, halfcheetah, walker2d and ant; otherwise
    the mean returns of uniform random actions and of the expert policy.

    Raises:
        ValueError: for an unknown environment or tier, or spaces that are not vectors.
        ImportError: naming the missing extra.
        FileExistsError: if the id exists with other parameters and `force` is not set.
    """
    if tier not in get_args(Tier):
        raise ValueError(f"tier: expected one of {get_args(Tier)}, got {tier!r}")
    for name, value in (("steps", steps), ("evaluation_episodes", evaluation_episodes)):
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
    env = _environment(env_id)
    from dtag_fast.data import behaviour

    started = time.perf_counter()
    if training_steps is None:
        training_steps = behaviour.default_training_steps(env_id)
    if training_steps < 1:
        raise ValueError(f"training_steps: expected at least 1, got {training_steps}")
    id = id or f"dtag/{env_id.rsplit('-v', 1)[0].split('/')[-1].lower()}/{tier}-v0"
    parameters = {
        "env_id": env_id,
        "tier": tier,
        "steps": steps,
        "seed": seed,
        "training_steps": training_steps,
        "evaluation_episodes": evaluation_episodes,
    }
    same = find_same(id, parameters, force=force)
    if same is not None:
        return MadeDataset(id, same, True, time.perf_counter() - started)
    run = behaviour.behaviour_run(
        env_id,
        seed=seed,
        training_steps=training_steps,
        evaluation_episodes=evaluation_episodes,
        progress=progress,
    )
    if tier == "medium-replay":
        episodes = _drawn_episodes(run, steps, seed)
        how = f"whole training episodes from before step {run.medium.step}"
    else:
        policy = run.medium if tier == "medium" else run.expert
        mode: behaviour.ActionMode = "sampled" if tier == "medium" else "noisy mean"
        episodes = _roll_out(env, policy, mode, steps, seed, progress)
        how = f"{mode} actions of the checkpoint after {policy.step} training steps"
    reference = references.d4rl_reference(env_id) or _measured_reference(env, run, seed)
    folder = _write(id, env, episodes, reference, run, parameters, how)
    env.close()
    return MadeDataset(id, folder, False, time.perf_counter() - started)


def _environment(env_id: str) -> Any:
    """The environment, or an error that says which argument or which extra is wrong."""
    import gymnasium
    from gymnasium.spaces import Box

    try:
        env = gymnasium.make(env_id)
    except gymnasium.error.DependencyNotInstalled as error:
        raise ImportError(f"{env_id} needs: pip install 'dtag-fast[envs]' ({error})") from error
    except gymnasium.error.Error as error:
        raise ValueError(f"env_id: {error}") from error
    for name, space in (
        ("observations", env.observation_space),
        ("actions", env.action_space),
    ):
        if not isinstance(space, Box) or len(space.shape) != 1:
            raise ValueError(f"env_id: {env_id}: {name}: expected a Box of one dimension: {space}")
    if not isinstance(env.action_space, Box) or not env.action_space.is_bounded():
        raise ValueError(f"env_id: {env_id}: actions: expected a bounded Box: {env.action_space}")
    return env


def _roll_out(
    env: Any, policy: Any, mode: Any, steps: int, seed: int, progress: bool
) -> list[dict[str, Any]]:
    from tqdm import tqdm

    generator = np.random.default_rng([seed, COLLECTION_SEED])
    episodes: list[dict[str, Any]] = []
    left = steps
    with tqdm(total=steps, unit=" steps", desc="collecting", disable=not progress) as bar:
        while left >= 2 or not episodes:
            episode_seed = COLLECTION_SEED + len(episodes)
            observation, _ = env.reset(seed=episode_seed)
            observations, actions = [observation], []
            rewards: list[float] = []
            terminated = truncated = False
            while not (terminated or truncated or len(rewards) == left):
                action = policy.act(observation, mode, generator)
                observation, reward, terminated, truncated, _ = env.step(action)
                observations.append(observation)
                actions.append(action)
                rewards.append(float(reward))
            left -= len(rewards)
            bar.update(len(rewards))
            episodes.append(_episode(observations, actions, rewards, terminated, episode_seed))
    return episodes


def _episode(
    observations: Any, actions: Any, rewards: Any, terminated: bool, seed: int | None
) -> dict[str, Any]:
    ends = np.zeros((2, len(rewards)), np.bool_)
    ends[0 if terminated else 1, -1] = True
    return {
        "observations": np.asarray(observations, np.float32),
        "actions": np.asarray(actions, np.float32),
        "rewards": np.asarray(rewards, np.float32),
        "terminations": ends[0],
        "truncations": ends[1],
        "seed": seed,
    }


def _drawn_episodes(run: Any, steps: int, seed: int) -> list[dict[str, Any]]:
    """Whole training episodes up to `steps` steps, drawn uniformly, in training order."""
    lengths = np.array([len(episode.rewards) for episode in run.replay])
    if not lengths.size:
        raise ValueError("training_steps: no training episode ended before the medium checkpoint")
    order = np.random.default_rng([seed, COLLECTION_SEED]).permutation(len(lengths))
    chosen = np.sort(order[: max(1, int((np.cumsum(lengths[order]) <= steps).sum()))])
    if lengths.sum() < steps:
        warnings.warn(
            f"medium-replay: all {len(lengths)} training episodes before the medium checkpoint "
            f"have {lengths.sum()} steps, fewer than the {steps} asked for",
            stacklevel=3,
        )
    return [
        _episode(
            run.replay[i].observations,
            run.replay[i].actions,
            run.replay[i].rewards,
            run.replay[i].terminated,
            None,
        )
        for i in chosen
    ]


def _measured_reference(env: Any, run: Any, seed: int) -> ReferenceScores:
    """Mean returns of random actions and of the expert policy, 20 episodes each."""
    from dtag_fast.data.behaviour import evaluate

    low, high = env.action_space.low, env.action_space.high
    generator = np.random.default_rng(seed)
    random = []
    for episode in range(20):
        env.reset(seed=COLLECTION_SEED + episode)
        total, ended = 0.0, False
        while not ended:
            _, reward, terminated, truncated, _ = env.step(
                generator.uniform(low, high).astype(np.float32)
            )
            total += float(reward)
            ended = terminated or truncated
        random.append(total)
    expert = evaluate(env, run.expert, "noisy mean", 20, COLLECTION_SEED)
    return ReferenceScores("minari", float(np.mean(random)), float(expert.mean()))


def _write(
    id: str,
    env: Any,
    episodes: list[dict[str, Any]],
    reference: ReferenceScores,
    run: Any,
    parameters: dict[str, Any],
    how: str,
) -> Path:
    found = versions("gymnasium", "mujoco", "stable-baselines3", "torch", "numpy", "minari")
    needed = [f"{name}=={found[name]}" for name in ("mujoco", "gymnasium") if name in found]
    returns = [float(episode["rewards"].sum(dtype=np.float64)) for episode in episodes]
    return write_dataset(
        id,
        episodes,
        env_spec=env.spec,
        eval_env_spec=env.spec,
        observation_space=env.observation_space,
        action_space=env.action_space,
        reference=reference,
        algorithm="PPO",
        description=(
            f"{parameters['env_id']}, {parameters['tier']}: {how}. {len(episodes)} episodes, "
            f"return {np.mean(returns):.1f} +- {np.std(returns):.1f}. Raw observations and "
            "rewards, actions as executed, float32. Not the D4RL data, nor the published mujoco/*."
        ),
        provenance={
            "parameters": parameters,
            "behaviour": run.summary,
            "actions": how,
            "versions": found,
        },
        requirements=needed,
    )
