"""Behaviour policies for `collect`: one PPO run per environment, kept as small numpy policies.

PPO of Stable-Baselines3 with 64x64 tanh networks, 8 environments, observations and rewards
normalised. Some twenty checkpoints are scored; "expert" is the one with the highest return of its
slightly noisy mean action, "medium" an earlier one whose sampled return is nearest to 5/12 of the
expert's.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from gymnasium import Env, Wrapper
from numpy.typing import NDArray

from dtag_fast.data.storage import datasets_root
from dtag_fast.threads import torch_threads

ActionMode = Literal["sampled", "noisy mean"]

ENVIRONMENTS = 8
ROLLOUT = 256
CHECKPOINTS = 20
CLIP_OBSERVATION = 10.0
NOISE_SHARE = 0.05  # std of the noise on the mean action, as a share of the action box's width
MEDIUM_SHARE, MEDIUM_RANGE = 5 / 12, (1 / 3, 1 / 2)
EVALUATION_SEED = 1_000_000
_STEPS = {"Hopper-v5": 1_500_000, "HalfCheetah-v5": 2_300_000, "Walker2d-v5": 1_500_000}
_WEIGHTS = ("weight_0", "bias_0", "weight_1", "bias_1", "weight_2", "bias_2")
_FORMAT = 1


def default_training_steps(env_id: str) -> int:
    """Enough for PPO to pass its steepest part: 1.5 M, HalfCheetah 2.3 M, others 1 M."""
    return _STEPS.get(env_id, 1_000_000)


@dataclass(frozen=True)
class NumpyPolicy:
    """The policy half of an SB3 PPO agent with two hidden layers; about six thousand numbers."""

    arrays: dict[str, NDArray[Any]]  # _WEIGHTS, log_std, mean, std, low, high
    step: int  # training steps it had seen

    def act(
        self, observation: NDArray[Any], mode: ActionMode, generator: np.random.Generator
    ) -> NDArray[np.float32]:
        """One action [A] for one raw observation [S], inside the box."""
        a = self.arrays
        x = np.clip((observation - a["mean"]) / a["std"], -CLIP_OBSERVATION, CLIP_OBSERVATION)
        x = np.tanh(a["weight_0"] @ x + a["bias_0"])
        x = np.tanh(a["weight_1"] @ x + a["bias_1"])
        mean = a["weight_2"] @ x + a["bias_2"]
        # The noise comes before the clipping: a mean far beyond the box stays at its edge.
        noise = NOISE_SHARE * (a["high"] - a["low"])
        std = np.exp(a["log_std"]) if mode == "sampled" else noise
        action = mean + std * generator.standard_normal(len(mean))
        executed: NDArray[np.float32] = np.clip(action, a["low"], a["high"]).astype(np.float32)
        return executed


@dataclass(frozen=True)
class RecordedEpisode:
    """One finished episode of the training run, raw, as executed."""

    observations: NDArray[np.float32]  # [T + 1, S]
    actions: NDArray[np.float32]  # [T, A]
    rewards: NDArray[np.float32]  # [T]
    terminated: bool


@dataclass(frozen=True)
class BehaviourRun:
    """What is kept of a training run."""

    medium: NumpyPolicy
    expert: NumpyPolicy
    replay: list[RecordedEpisode]  # those that ended before the medium checkpoint, in order
    summary: dict[str, Any]  # parameters, versions, and the score of every checkpoint


def behaviour_run(
    env_id: str, *, seed: int, training_steps: int, evaluation_episodes: int, progress: bool
) -> BehaviourRun:
    """Train, score and select; or read it from $MINARI_DATASETS_PATH/.dtag-behaviour.

    Stable-Baselines3 seeds the global generators of random, numpy and torch.
    """
    parameters = {
        "env_id": env_id,
        "seed": seed,
        "training_steps": training_steps,
        "evaluation_episodes": evaluation_episodes,
        "format": _FORMAT,
    }
    digest = hashlib.sha256(json.dumps(parameters).encode()).hexdigest()[:12]
    path = datasets_root() / ".dtag-behaviour" / f"{env_id.replace('/', '-')}-{digest}.npz"
    if path.exists():
        return _load(path)
    policies, episodes = _train(env_id, seed, training_steps, progress)
    run = _select(env_id, policies, episodes, parameters, progress)
    _save(run, path)
    return run


def evaluate(
    env: Env[Any, Any], policy: NumpyPolicy, mode: ActionMode, episodes: int, seed: int
) -> NDArray[np.float64]:
    """Raw returns [episodes], episode i reset with seed + i."""
    returns = np.zeros(episodes)
    generator = np.random.default_rng(seed)
    for episode in range(episodes):
        observation, _ = env.reset(seed=seed + episode)
        ended = False
        while not ended:
            observation, reward, terminated, truncated, _ = env.step(
                policy.act(observation, mode, generator)
            )
            returns[episode] += float(reward)
            ended = terminated or truncated
    return returns


@dataclass
class _Recorder:
    """The finished episodes of all training environments, with the step they ended at."""

    episodes: list[tuple[int, RecordedEpisode]] = field(default_factory=list)


class _Recording(Wrapper[Any, Any, Any, Any]):
    """Keeps raw observations, executed actions and raw rewards, episode by episode."""

    def __init__(self, env: Env[Any, Any], recorder: _Recorder) -> None:
        super().__init__(env)
        self._recorder = recorder
        self._steps = 0
        self._observations: list[Any] = []
        self._actions: list[Any] = []
        self._rewards: list[float] = []

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(**options)
        self._observations, self._actions, self._rewards = [observation], [], []
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._steps += 1
        self._observations.append(observation)
        self._actions.append(np.array(action, np.float32))
        self._rewards.append(float(reward))
        if terminated or truncated:
            episode = RecordedEpisode(
                np.asarray(self._observations, np.float32),
                np.asarray(self._actions, np.float32),
                np.asarray(self._rewards, np.float32),
                bool(terminated),
            )
            self._recorder.episodes.append((self._steps * ENVIRONMENTS, episode))
        return observation, reward, terminated, truncated, info


def _train(
    env_id: str, seed: int, training_steps: int, progress: bool
) -> tuple[list[NumpyPolicy], list[tuple[int, RecordedEpisode]]]:
    """All checkpoints and all finished episodes, both in training order."""
    import gymnasium
    from tqdm import tqdm

    try:
        from stable_baselines3 import PPO
        from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
    except ImportError as error:
        raise ImportError(f"collecting needs: pip install 'dtag-fast[collect]' ({error})") from None

    batch = ENVIRONMENTS * ROLLOUT
    rollouts = math.ceil(training_steps / batch)
    wanted = {round(rollouts * i / CHECKPOINTS) * batch for i in range(1, CHECKPOINTS + 1)} - {0}
    policies: list[NumpyPolicy] = []
    recorder = _Recorder()

    with torch_threads(1):
        environments = VecNormalize(
            DummyVecEnv([lambda: _Recording(gymnasium.make(env_id), recorder)] * ENVIRONMENTS),
            clip_obs=CLIP_OBSERVATION,
            gamma=0.99,
        )
        agent = PPO(
            "MlpPolicy",
            environments,
            n_steps=ROLLOUT,
            batch_size=256,
            n_epochs=8,
            learning_rate=3e-4,
            gamma=0.99,
            gae_lambda=0.95,
            clip_range=0.2,
            ent_coef=0.0,
            policy_kwargs={"log_std_init": -0.7},
            seed=seed,
            device="cpu",
        )
        total = rollouts * batch
        with tqdm(total=total, unit=" steps", desc=f"PPO {env_id}", disable=not progress) as bar:
            for _ in range(rollouts):  # one rollout and its update at a time, going on where it was
                agent.learn(total_timesteps=batch, reset_num_timesteps=False)
                bar.update(batch)
                if agent.num_timesteps in wanted:
                    policies.append(_extract(agent, environments))
        environments.close()
    recorder.episodes.sort(key=lambda item: item[0])
    return policies, recorder.episodes


def _extract(agent: Any, environments: Any) -> NumpyPolicy:
    layers = [*agent.policy.mlp_extractor.policy_net[::2], agent.policy.action_net]
    arrays: dict[str, NDArray[Any]] = {}
    for index, layer in enumerate(layers):
        arrays[f"weight_{index}"] = layer.weight.detach().numpy().astype(np.float64)
        arrays[f"bias_{index}"] = layer.bias.detach().numpy().astype(np.float64)
    arrays["log_std"] = agent.policy.log_std.detach().numpy().astype(np.float64)
    arrays["mean"] = environments.obs_rms.mean.copy()
    arrays["std"] = np.sqrt(environments.obs_rms.var + environments.epsilon)
    arrays["low"] = environments.action_space.low.copy()
    arrays["high"] = environments.action_space.high.copy()
    return NumpyPolicy(arrays, int(agent.num_timesteps))


def _select(
    env_id: str,
    policies: list[NumpyPolicy],
    episodes: list[tuple[int, RecordedEpisode]],
    parameters: dict[str, Any],
    progress: bool,
) -> BehaviourRun:
    import gymnasium
    from tqdm import tqdm

    count = parameters["evaluation_episodes"]
    env = gymnasium.make(env_id)
    rows = []
    for policy in tqdm(policies, desc="scoring checkpoints", disable=not progress):
        seed = EVALUATION_SEED + parameters["seed"]
        row: dict[str, float] = {"step": policy.step}
        row["sampled_return"] = float(evaluate(env, policy, "sampled", count, seed).mean())
        row["noisy_mean_return"] = float(evaluate(env, policy, "noisy mean", count, seed).mean())
        rows.append(row)
    env.close()
    expert = int(np.argmax([row["noisy_mean_return"] for row in rows]))
    best = rows[expert]["sampled_return"]
    earlier = range(max(expert, 1))
    medium = min(earlier, key=lambda i: abs(rows[i]["sampled_return"] - MEDIUM_SHARE * best))
    share = rows[medium]["sampled_return"] / best if best > 0 else math.nan
    if not MEDIUM_RANGE[0] <= share <= MEDIUM_RANGE[1]:
        warnings.warn(
            f"{env_id}: the medium policy has {share:.0%} of the expert's sampled return "
            f"({rows[medium]['sampled_return']:.0f} of {best:.0f}), not a third to a half: "
            "no earlier checkpoint fits better; train longer or with another seed",
            stacklevel=4,
        )
    step = policies[medium].step
    return BehaviourRun(
        medium=policies[medium],
        expert=policies[expert],
        replay=[episode for end, episode in episodes if end <= step],
        summary={
            "parameters": parameters,
            "algorithm": "PPO, stable-baselines3",
            "checkpoints": rows,
            "medium_step": step,
            "expert_step": policies[expert].step,
            "training_episodes_before_medium": sum(end <= step for end, _ in episodes),
        },
    )


def _save(run: BehaviourRun, path: Path) -> None:
    arrays: dict[str, Any] = {"summary": np.array(json.dumps(run.summary))}
    for name, policy in (("medium", run.medium), ("expert", run.expert)):
        arrays.update({f"{name}/{key}": value for key, value in policy.arrays.items()})
        arrays[f"{name}/step"] = np.array(policy.step)
    arrays["replay/lengths"] = np.array([len(episode.rewards) for episode in run.replay], np.int64)
    arrays["replay/terminated"] = np.array([episode.terminated for episode in run.replay], np.bool_)
    for key in ("observations", "actions", "rewards"):
        parts = [getattr(episode, key) for episode in run.replay]
        arrays[f"replay/{key}"] = np.concatenate(parts) if parts else np.zeros(0, np.float32)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.npz")
    try:
        np.savez(temporary, **arrays)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _load(path: Path) -> BehaviourRun:
    with np.load(path, allow_pickle=False) as file:
        arrays = {key: file[key] for key in file.files}
    policies = {}
    for name in ("medium", "expert"):
        keys = (*_WEIGHTS, "log_std", "mean", "std", "low", "high")
        policies[name] = NumpyPolicy(
            {key: arrays[f"{name}/{key}"] for key in keys}, int(arrays[f"{name}/step"])
        )
    ends = np.cumsum(arrays["replay/lengths"])
    replay = []
    for index, (stop, length) in enumerate(zip(ends, arrays["replay/lengths"], strict=True)):
        start = stop - length
        replay.append(
            RecordedEpisode(
                arrays["replay/observations"][start + index : stop + index + 1],
                arrays["replay/actions"][start:stop],
                arrays["replay/rewards"][start:stop],
                bool(arrays["replay/terminated"][index]),
            )
        )
    summary = json.loads(str(arrays["summary"]))
    return BehaviourRun(policies["medium"], policies["expert"], replay, summary)
