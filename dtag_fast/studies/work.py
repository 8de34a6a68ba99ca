"""The work of a study: train what has to be trained, measure one run. Engines call it anywhere.

`TRAINERS` and `PROBES` say what can be named in a declaration; token predictors are those of
`acting/predictor_options.py`.
"""

from __future__ import annotations

import importlib
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dtag_fast import checkpoint
from dtag_fast.acting.policy import Policy
from dtag_fast.acting.predictor_options import PredictorOptions, make_predictor
from dtag_fast.acting.token_predictors import TokenPredictor
from dtag_fast.data.trajectories import Trajectories
from dtag_fast.evaluation.periodic import policy_evaluation
from dtag_fast.evaluation.rollout import evaluate
from dtag_fast.models.critic import Critic
from dtag_fast.refinement import Refiner
from dtag_fast.studies import judge
from dtag_fast.studies.declare import Run, Training, policy_config
from dtag_fast.threads import torch_threads
from dtag_fast.training.config import PolicyConfig
from dtag_fast.training.loop import TrainingDiverged

DIVERGED_FILE = "diverged.json"
TIMED_CALLS = 100
TIMED_SECONDS = 1.0


@dataclass(frozen=True)
class Trainer:
    """How one kind of policy or critic is trained and loaded, as "module:name"s.

    `train` is called as `train_policy` and `train_critic` are; `load` with the run's folder and,
    for a policy, the checkpoint.
    """

    train: str
    load: str


TRAINERS = {
    "policy": Trainer(
        "dtag_fast.training.sequence:train_policy", "dtag_fast.acting.policy:Policy.load"
    ),
    "critic": Trainer(
        "dtag_fast.training.critic:train_critic", "dtag_fast.models.critic:Critic.load"
    ),
}

# name: (critic, its configuration, the run's data) -> figures.
PROBES: dict[str, Callable[[Critic, Any, Trajectories], dict[str, float]]] = {
    "critic-quality": judge.critic_quality,
}


def named(path: str) -> Any:
    """The object that "module:name.name" means."""
    module, _, names = path.partition(":")
    value: Any = importlib.import_module(module)
    for name in names.split("."):
        value = getattr(value, name)
    return value


# --- training -------------------------------------------------------------------------------------


def is_trained(training: Training, folder: Path) -> bool:
    """Whether a folder holds this training's end: all its steps, or where it diverged."""
    if (folder / DIVERGED_FILE).is_file():
        return True
    if checkpoint.pointed(folder, "last") is None:
        return False
    return int(checkpoint.read_state(folder)["step"]) >= training.config.steps


def trained_on(folder: Path) -> str | None:
    """The fingerprint of the data that a training came to its end with; None if it is not said.

    A folder that is said to be trained; one that diverged before fingerprints were kept says none.
    """
    diverged = folder / DIVERGED_FILE
    if diverged.is_file():
        found = checkpoint.read_json(diverged).get("fingerprint")
        return None if found is None else str(found)
    return str(checkpoint.read_state(folder)["dataset"]["fingerprint"])


def train(training: Training, data: Trajectories, folders: Mapping[str, Path]) -> None:
    """Train, or go on where an earlier call was cut short.

    A training that diverges is a result, too: it leaves `DIVERGED_FILE`. A Decision Transformer
    without a target return is given the best return in its data.

    Args:
        training: the training.
        data: its dataset.
        folders: its own, to train into, and its guide's, by key.
    """
    folder = folders[training.key]
    config = replace(training.config, progress=False, tensorboard=False)
    if training.guide is not None:
        guide = folders[training.guide.key]
        if (guide / DIVERGED_FILE).is_file():
            what = checkpoint.read_json(guide / DIVERGED_FILE)["what"]
            _write_diverged(folder, f"its critic: {what}", data)
            return
        config = replace(policy_config(training), progress=False, critic=str(guide))
    evaluation = None
    if isinstance(config, PolicyConfig):
        if config.model.kind == "dt" and config.target_return is None:
            config = replace(config, target_return=float(data.returns().max()))
        if config.evaluation_every > 0:
            evaluation = policy_evaluation(data, config)
    try:
        named(TRAINERS[training.trainer].train)(
            data, config, folder, resume=True, evaluate=evaluation
        )
    except TrainingDiverged as error:
        _write_diverged(folder, str(error), data)


def _write_diverged(folder: Path, what: str, data: Trajectories) -> None:
    found = {"what": what, "fingerprint": data.fingerprint()}
    checkpoint.write_json(folder / DIVERGED_FILE, found)


# --- measuring ------------------------------------------------------------------------------------


class SampledRefiner(Refiner):
    """Refinement from several starting points: the action given and others around it.

    Args:
        critic: of the refinement.
        samples: N, the action itself included.
        noise: standard deviation of the others, in units of half the box.
        seed: of the noise.
        options: of `Refiner`; with steps=0 this is best-of-N.
    """

    def __init__(
        self, critic: Critic, *, samples: int, noise: float, seed: int, **options: Any
    ) -> None:
        super().__init__(critic, **options)
        low, high = self.options.low, self.options.high
        half = (torch.as_tensor(high) - torch.as_tensor(low)) / 2
        self._scale = (noise * half).float()
        self._samples = samples
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, observations: Any, actions: Any) -> Any:
        """As `Refiner`, for actions [B, A]."""
        points: Tensor = actions.unsqueeze(1).repeat(1, self._samples, 1)
        noise = torch.randn(points[:, 1:].shape, generator=self._generator)
        points[:, 1:] += noise * self._scale
        refined, info = super().__call__(observations, points)
        # From the policy's own action, as without samples, not from the point it grew from.
        distance = torch.linalg.vector_norm(refined - actions, dim=-1)
        return refined, replace(info, distance=distance)


def actor(run: Run, data: Trajectories, folders: Mapping[str, Path]) -> Policy:
    """The policy that a run acts with."""
    load_policy = named(TRAINERS[run.policy.trainer].load)
    policy: Policy = load_policy(folders[run.policy.key], run.checkpoint)
    critic = load_critic(run.critic, folders)
    predictor = policy.token_predictor
    if run.predictor != "own":
        predictor = _predictor(run, policy, data, folders)
        policy = Policy(policy.model, predictor)
    if run.refinement is None:
        return policy
    assert critic is not None
    keywords = dict(run.refinement)
    refined = policy.with_refinement(critic, **keywords)
    if run.samples == 1:
        return refined
    assert refined.refiner is not None
    context_action = keywords.pop("context_action", "refined")
    keywords.setdefault("bounds", (refined.action_low, refined.action_high))
    sampled = SampledRefiner(
        critic,
        samples=run.samples,
        noise=run.noise,
        seed=run.env_seed,
        return_info=True,
        **keywords,
    )
    return Policy(policy.model, predictor, refiner=sampled, context_action=context_action)


def _predictor(
    run: Run, policy: Policy, data: Trajectories, folders: Mapping[str, Path]
) -> TokenPredictor:
    """The predictor that a run names; a target is a multiple of the best return in the data."""
    chosen = dict(run.predictor_options)
    of_best = chosen.pop("of_best", None)
    return make_predictor(
        PredictorOptions(name=run.predictor, **chosen),  # type: ignore[arg-type]
        policy.model,
        target_return=None if of_best is None else of_best * float(data.returns().max()),
        horizon=data.info.horizon,
        critic=None if run.critic is None else folders[run.critic.key],
    )


def load_critic(training: Training | None, folders: Mapping[str, Path]) -> Critic | None:
    """The critic of a training, or None of none."""
    if training is None:
        return None
    critic: Critic = named(TRAINERS[training.trainer].load)(folders[training.key])
    return critic


def measure(run: Run, data: Trajectories, folders: Mapping[str, Path]) -> dict[str, Any]:
    """Act, and take the figures that the run asks for.

    Args:
        run: the run.
        data: its dataset.
        folders: of each of its trainings, by key.

    Returns:
        JSON values: "status" ("done", or "diverged" if a training did), "result", what is the same
        wherever it runs, and "timing", what is not.
    """
    for training in run.trainings:
        file = folders[training.key] / DIVERGED_FILE
        if file.is_file():
            what = checkpoint.read_json(file)["what"]
            return {"status": "diverged", "result": {"what": what}, "timing": {}}
    if data.info.env_spec is None:
        raise ValueError(f"{data.info.id}: names no environment to act in")
    with torch_threads(1):
        policy = actor(run, data, folders)
        evaluation = evaluate(
            policy,
            data.info.env_spec,
            run.episodes,
            run.env_seed,
            num_envs=min(16, run.episodes),
            references=data.info.references,
        )
        result: dict[str, Any] = {
            "returns": evaluation.returns.tolist(),
            "lengths": evaluation.lengths.tolist(),
            "references": [asdict(reference) for reference in data.info.references],
        }
        if run.refinement is not None:
            weights = evaluation.lengths / evaluation.lengths.sum()
            for name in ("q_gain", "distance", "best_step"):
                values = [getattr(episode, name) for episode in evaluation.episodes]
                result[name] = float(weights @ np.array(values, dtype=np.float64))
        critic, second = load_critic(run.critic, folders), load_critic(run.judge, folders)
        for name in run.probes:
            assert critic is not None
            assert run.critic is not None
            result |= PROBES[name](critic, run.critic.config, data)
        if second is not None:
            assert policy.refiner is not None
            assert critic is not None
            result |= judge.confirmed_gain(policy, policy.refiner, critic, second, data)
        timing = {
            "policy_ms": evaluation.policy_ms,
            "refinement_ms": evaluation.refinement_ms,
            "env_ms": evaluation.env_ms,
            "wall_s": evaluation.wall_s,
            **_latency(policy, data),
        }
    return {"status": "done", "result": result, "timing": timing}


def _latency(policy: Policy, data: Trajectories) -> dict[str, float]:
    """Median time in µs of acting in one environment, and of the refinement in it."""
    model: list[float] = []
    refinement: list[float] = []
    limit = policy.model.config.max_timestep
    rng = np.random.default_rng(0)
    began = time.perf_counter()
    for index in rng.integers(data.steps, size=TIMED_CALLS):
        if len(model) % limit == 0:  # the model has no timestep for a longer episode
            policy.reset()
        policy.act(data.observations[index], 0.0)
        assert policy.last_timing is not None
        model.append(1000 * policy.last_timing.model_ms)
        refinement.append(1000 * policy.last_timing.refinement_ms)
        if len(model) >= 10 and time.perf_counter() - began > TIMED_SECONDS:
            break  # slow ones need no more
    half = len(model) // 2  # the first calls compile, allocate and warm up
    return {
        "model_us": statistics.median(model[half:]),
        "refinement_us": statistics.median(refinement[half:]),
    }
