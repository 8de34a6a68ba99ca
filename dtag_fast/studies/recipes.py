"""Settings of the trainings that studies are made of, by dataset and size.

`METHODS` and `CRITICS` are the tables of what can be named; an entry is all that a new one needs.
The published settings are taken where there are any (`training/config.py`); "tiny" and "small" are
ours, made to be done in seconds and in minutes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from dtag_fast.acting.refinement_options import RefinementOptions
from dtag_fast.data.references import task_name
from dtag_fast.data.storage import dataset_path, environment_id
from dtag_fast.studies.declare import Data, Options, Size, Training, options
from dtag_fast.training.config import (
    LOCOMOTION,
    CriticConfig,
    ModelConfig,
    PolicyConfig,
    critic_preset,
    policy_preset,
)

# As policies refine unless told otherwise.
REFINEMENT: dict[str, Any] = {
    name: getattr(RefinementOptions, name) for name in ("steps", "step_size", "gradient")
}
# Evaluations during training choose the best checkpoint, on starts of their own.
CHOOSING_SEED = 10_000
# Families that `training/config.py` has no presets for.
ANTMAZE, GENERIC = "antmaze", "generic"


@dataclass(frozen=True)
class Method:
    """A kind of policy.

    Attributes:
        label: for people.
        trainer: an entry of `work.TRAINERS`.
        config: (data, size) -> its settings, but for those that all policies share.
    """

    label: str
    trainer: str
    config: Callable[[Data, Size], PolicyConfig]
    guided: bool = False  # by the critic of the same seed
    baseline: bool = False  # shown unrefined alone
    tabled: bool = True  # among the policies of the main tables


@dataclass(frozen=True)
class CriticMethod:
    """A kind of critic; see `Method`."""

    label: str
    trainer: str
    config: Callable[[Data, Size], CriticConfig]


def policy(
    method: str, data: Data, size: Size, seed: int, *, best: bool = False, **changes: Any
) -> Training:
    """A policy's training.

    Args:
        method: an entry of `METHODS`.
        data: what it is trained on.
        size: of the work.
        seed: of the training.
        best: evaluate on the way, so that there is a best checkpoint besides the last one.
        changes: fields of its configuration.
    """
    kind = METHODS[method]
    config = kind.config(data, size)
    steps = size.policy_steps or config.steps
    config = replace(
        config,
        steps=steps,
        seed=seed,
        device=size.device,
        threads=1,
        log_every=max(1, min(100, steps // 20)),
        checkpoint_every=max(1, steps // 10),
        evaluation_every=max(1, steps // 5) if best else 0,
        evaluation_seed=CHOOSING_SEED,
        progress=False,
        **changes,
    )
    guide = critic(data, size, seed) if kind.guided else None
    return Training(trainer=kind.trainer, data=data, config=config, guide=guide)


def methods(size: Size, *names: str) -> tuple[str, ...]:
    """The policies that the size names, else these; ValueError if one is unknown."""
    return _known("methods", size.methods or names, METHODS)


def critics(size: Size) -> tuple[str, ...]:
    """The kinds of critics that the size names, else all."""
    return _known("critics", size.critics or tuple(CRITICS), CRITICS)


def _known(what: str, names: tuple[str, ...], table: Mapping[str, object]) -> tuple[str, ...]:
    for name in names:
        if name not in table:
            raise ValueError(f"size.{what}: expected some of {', '.join(table)}, got {name!r}")
    return names


def critic(data: Data, size: Size, seed: int, method: str = "iql", **changes: Any) -> Training:
    """A critic's training; `changes` are fields of its configuration."""
    kind = CRITICS[method]
    config = kind.config(data, size)
    steps = size.critic_steps or config.steps
    config = replace(
        config,
        steps=steps,
        seed=seed,
        device=size.device,
        threads=1,
        log_every=max(1, min(500, steps // 20)),
        checkpoint_every=max(1, steps // 4),
        progress=False,
        **changes,
    )
    return Training(trainer=kind.trainer, data=data, config=config)


def refinement(data: Data, **changes: Any) -> Options:
    """The refinement that a study takes where it does not vary it."""
    base = REFINEMENT
    if is_bandit(data):
        # The way to the optimum is as long as the square root of its dimension.
        base = {**REFINEMENT, "steps": 10, "step_size": 0.1 * data.action_dim**0.5}
    return options(**{**base, **changes})


def is_bandit(data: Data) -> bool:
    """Whether episodes are one step long."""
    return data.made_by in ("toy", "bandit") or data.id.startswith("dtag/toy/")


def family(data: Data) -> str:
    """The environment, and the tier where there is one, as `training/config.py` names them.

    By the id; where that says nothing, by the environment in the dataset's metadata. `ANTMAZE` and
    `GENERIC` are what has no presets there.
    """
    found = _family_of(data.id) or _family_of(environment_id(dataset_path(data.id)) or "")
    if found in LOCOMOTION:
        for tier in ("medium-replay", "medium-expert", "medium"):
            if tier in data.id.replace("_", "-"):
                return f"{found}-{tier}"
    return found or GENERIC


def _family_of(name: str) -> str | None:
    """The family that the id of a dataset or of an environment tells; None if it tells none."""
    task = task_name(name) or ""
    if task == ANTMAZE or task in LOCOMOTION:
        return task
    if "maze" in task:
        return task.removesuffix("-dense").replace("pointmaze", "maze2d").replace("-open", "-umaze")
    # Those that no reference score is known for.
    return "maze2d" if re.search("maze2d|point-?maze", name.lower()) else None


def _policy_preset(kind: Any, data: Data) -> PolicyConfig:
    """The published settings, or what of them is not made for one environment."""
    name = family(data)
    if name not in (ANTMAZE, GENERIC):
        return policy_preset(kind, name)
    config = policy_preset(kind, "halfcheetah")  # the family without exceptions
    if config.model.kind == "mlp":
        # ikostrikov/implicit_q_learning, configs/antmaze_config.py: its temperature.
        strong = kind == "iql" and name == ANTMAZE
        return replace(config, advantage_weight=10.0) if strong else config
    # A DT without a target is trained to ask for the best return in its data (`work.train`).
    scale = 1.0 if name == ANTMAZE else ModelConfig.rtg_scale
    model = replace(config.model, rtg_scale=scale, max_timestep=ModelConfig.max_timestep)
    return replace(config, model=model, target_return=None)


def _sequence(kind: Any) -> Callable[[Data, Size], PolicyConfig]:
    return lambda data, size: _sequence_config(kind, data, size)


def _sequence_config(kind: Any, data: Data, size: Size) -> PolicyConfig:
    if is_bandit(data):
        model = ModelConfig(
            kind=kind,
            context_length=2,
            blocks=1,
            embedding_dim=64,
            attention_heads=4,
            max_timestep=8,
            rtg_scale=1.0,
        )
        # A DT is asked for the return of the best action.
        return PolicyConfig(
            model=model,
            learning_rate=1e-3,
            warmup_steps=0,
            optimizer="adamw" if kind == "dt" else "lamb",
            target_return=1.0 if kind == "dt" else None,
        )
    preset = _policy_preset(kind, data)
    if size.scale == "published":
        return preset
    tiny = size.scale == "tiny"
    width, blocks = (32, 1) if tiny else (128, 3)
    context = min(preset.model.context_length, 5 if tiny else 20)
    model = replace(
        preset.model,
        embedding_dim=width,
        blocks=blocks,
        attention_heads=2 if tiny else 4,
        context_length=context,
    )
    return replace(
        preset,
        model=model,
        batch_size=64,
        learning_rate=1e-3,
        warmup_steps=(size.policy_steps or preset.steps) // 10,
        evaluation_episodes=4 if tiny else 10,
        evaluation_envs=4 if tiny else 10,
    )


def _gradient(kind: Any) -> Callable[[Data, Size], PolicyConfig]:
    """A sequence model with the policy gradient in its loss, unless varied with this weight."""
    return lambda data, size: replace(_sequence_config(kind, data, size), q_weight=0.5)


def _cloning(kind: Any) -> Callable[[Data, Size], PolicyConfig]:
    return lambda data, size: _cloning_config(kind, data, size)


def _cloning_config(kind: Any, data: Data, size: Size) -> PolicyConfig:
    """An MLP of the published settings; smaller and for fewer updates where that is asked for."""
    config = policy_preset(kind, "hopper") if is_bandit(data) else _policy_preset(kind, data)
    if size.scale == "published":
        return config
    tiny = size.scale == "tiny"
    config = replace(
        config,
        evaluation_episodes=4 if tiny else 10,
        evaluation_envs=4 if tiny else 10,
    )
    return replace(config, model=replace(config.model, hidden=(64, 64))) if tiny else config


def _critic(kind: Any) -> Callable[[Data, Size], CriticConfig]:
    return lambda data, size: _critic_config(kind, data, size)


def _critic_config(kind: Any, data: Data, size: Size) -> CriticConfig:
    if is_bandit(data):
        small = CriticConfig(hidden=(64, 64), learning_rate=3e-3, reward_scaling="none")
        return replace(critic_preset(kind, "hopper"), **_IN_BANDITS) if kind != "iql" else small
    name = family(data)
    # Normalised observations, and AntMaze's expectile in mazes, for which IQL has no setting.
    preset = critic_preset(kind, "halfcheetah" if name in (ANTMAZE, GENERIC) else name)
    config = replace(preset, normalize_observations=True)
    if "maze" in name and config.method in ("iql", "ensemble"):
        config = replace(config, expectile=0.9)
        if name == ANTMAZE:
            config = replace(config, reward_scaling="antmaze")
    return config if size.scale != "tiny" else replace(config, hidden=(64, 64))


def _cql_lagrange_config(data: Data, size: Size) -> CriticConfig:
    config = _critic_config("cql", data, size)
    return replace(config, cql=replace(config.cql, lagrange=True))


_IN_BANDITS: dict[str, Any] = {"reward_scaling": "none", "hidden": (64, 64)}
METHODS = {
    "bc": Method("BC", "policy", _cloning("bc"), baseline=True),
    "dt": Method("Decision Transformer", "policy", _sequence("dt")),
    "dt-pg": Method(
        "Decision Transformer + PG", "policy", _gradient("dt"), guided=True, tabled=False
    ),
    "iql": Method("IQL policy", "policy", _cloning("iql"), guided=True, baseline=True),
    "reinformer": Method("Reinformer", "policy", _sequence("reinformer")),
    "reinformer-pg": Method(
        "Reinformer + PG", "policy", _gradient("reinformer"), guided=True, tabled=False
    ),
}
CRITICS = {
    "iql": CriticMethod("IQL", "critic", _critic("iql")),
    "td3-bc": CriticMethod("TD3+BC", "critic", _critic("td3-bc")),
    "cql": CriticMethod("CQL", "critic", _critic("cql")),
    "cql-lagrange": CriticMethod("CQL, Lagrange", "critic", _cql_lagrange_config),
    "ensemble": CriticMethod("ensemble of 10", "critic", _critic("ensemble")),
}
