"""Training settings: published presets, checks, JSON, and no torch."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from typing import Any, cast

import pytest

from dtag_fast.models.config import ModelConfig
from dtag_fast.training.config import (
    CRITIC_PAPERS,
    POLICY_PAPERS,
    PRESET_ENVS,
    CriticConfig,
    PolicyConfig,
    critic_preset,
    policy_preset,
)
from dtag_fast.training.method_config import CqlConfig, EnsembleConfig, Td3BcConfig


def test_decision_transformer_presets() -> None:
    config = policy_preset("dt", "hopper")
    model = config.model
    assert (model.context_length, model.blocks, model.attention_heads) == (20, 3, 1)
    assert (model.embedding_dim, model.activation, model.block_norm) == (128, "relu", "pre")
    assert (config.optimizer, config.batch_size, config.steps) == ("adamw", 64, 100_000)
    assert (config.sampling, config.padding, config.warmup_steps) == ("length", "left", 10_000)
    targets = {env: policy_preset("dt", env).target_return for env in PRESET_ENVS}
    assert targets["hopper-medium"] == 3600
    assert targets["halfcheetah"] == 12000
    assert targets["walker2d"] == 5000
    assert targets["maze2d-large"] == 280


def test_reinformer_presets() -> None:
    config = policy_preset("reinformer", "walker2d")
    assert config == PolicyConfig()
    model = config.model
    assert (model.context_length, model.blocks, model.attention_heads) == (5, 4, 8)
    assert (model.embedding_dim, model.activation, model.block_norm) == (256, "gelu", "post")
    assert (config.optimizer, config.expectile, config.temperature) == ("lamb", 0.99, 0.1)
    assert (config.sampling, config.padding, config.warmup_steps) == ("trajectory", "right", 5_000)
    scales = {env: policy_preset("reinformer", env).model.rtg_scale for env in PRESET_ENVS}
    assert (scales["hopper"], scales["halfcheetah"], scales["maze2d-umaze"]) == (1000, 5000, 100)
    batches = {env: policy_preset("reinformer", env).batch_size for env in PRESET_ENVS}
    assert {env for env, size in batches.items() if size == 256} == {
        "hopper-medium",
        "hopper-medium-replay",
    }
    assert set(batches.values()) == {128, 256}


def test_clone_presets() -> None:
    clone = policy_preset("bc", "hopper")
    assert (clone.model.kind, clone.model.hidden, clone.best_share) == ("mlp", (256, 256), 1.0)
    assert (clone.learning_rate, clone.batch_size, clone.weight_decay) == (3e-4, 256, 0.0)
    assert (clone.action_loss, clone.advantage_weight, clone.critic) == ("error", 0.0, None)
    iql = {env: policy_preset("iql", env) for env in PRESET_ENVS}
    assert iql["walker2d"].model == clone.model
    assert {env for env in iql if iql[env].action_loss == "error"} == {
        "hopper-medium",
        "hopper-medium-replay",
    }
    assert {env: iql[env].advantage_weight for env in iql if iql[env].advantage_weight != 3.0} == {
        "hopper-medium-expert": 6.0
    }


def test_critic_presets() -> None:
    iql = critic_preset("iql", "walker2d-medium")
    assert iql == CriticConfig()
    assert (iql.expectile, iql.polyak, iql.discount, iql.steps) == (0.7, 0.005, 0.99, 1_000_000)
    assert (iql.reward_scaling, iql.normalize_observations) == ("iql-mujoco", False)
    assert (iql.initialization, iql.update_order, iql.q_reduction) == (
        "orthogonal",
        "value_first",
        "sum",
    )
    assert critic_preset("iql", "maze2d").reward_scaling == "none"
    corl = critic_preset("corl", "hopper")
    assert (corl.reward_scaling, corl.normalize_observations) == ("none", True)
    assert (corl.initialization, corl.update_order, corl.q_reduction) == (
        "default",
        "joint",
        "mean",
    )
    for env in ("hopper-medium", "hopper-medium-replay"):
        config = critic_preset("corl", env)
        assert (config.polyak, config.reward_scaling) == (0.001, "iql-mujoco")
    assert critic_preset("corl", "hopper-medium-expert").expectile == 0.5
    td3_bc = critic_preset("td3-bc", "hopper")
    assert (td3_bc.method, td3_bc.normalize_observations) == ("td3-bc", True)
    assert (td3_bc.reward_scaling, td3_bc.q_reduction, td3_bc.polyak) == ("none", "sum", 0.005)
    options = td3_bc.td3_bc
    assert (options.q_weight, options.noise, options.noise_clip) == (2.5, 0.2, 0.5)
    assert (options.actor_hidden, options.actor_every) == ((256, 256), 2)
    cql = critic_preset("cql", "hopper-medium-replay")
    assert (cql.method, cql.hidden, cql.initialization) == ("cql", (256,) * 3, "orthogonal-small")
    assert (cql.cql.weight, cql.cql.samples, cql.cql.lagrange) == (10.0, 10, False)
    assert (cql.cql.actor_hidden, cql.cql.actor_learning_rate) == ((256,) * 3, 3e-5)
    scaled = [env for env in PRESET_ENVS if critic_preset("cql", env).reward_scaling != "none"]
    assert scaled == ["hopper-medium"]
    tuned = {env for env in PRESET_ENVS if critic_preset("cql", env).cql.lagrange}
    assert tuned == {"maze2d", "maze2d-umaze", "maze2d-medium", "maze2d-large"}
    assert critic_preset("cql", "maze2d").cql.target_gap == 5.0
    ensemble = critic_preset("ensemble", "maze2d")
    assert ensemble == dataclasses.replace(
        critic_preset("iql", "maze2d"), method="ensemble", heads=10
    )


def test_presets_survive_json() -> None:
    for env in PRESET_ENVS:
        for kind in POLICY_PAPERS:
            policy = policy_preset(kind, env)
            assert PolicyConfig.from_dict(json.loads(json.dumps(policy.to_dict()))) == policy
        for paper in CRITIC_PAPERS:
            critic = critic_preset(cast(Any, paper), env)
            assert CriticConfig.from_dict(json.loads(json.dumps(critic.to_dict()))) == critic


def test_unknown_presets_are_named() -> None:
    with pytest.raises(ValueError, match=r"env: expected one of hopper, .*got 'hoper'"):
        policy_preset("dt", "hoper")
    with pytest.raises(ValueError, match=r"kind: expected one of dt, reinformer, .*got 'gpt'"):
        policy_preset(cast(Any, "gpt"), "hopper")
    with pytest.raises(ValueError, match=r"paper: expected one of iql, corl, .*got 'dqn'"):
        critic_preset(cast(Any, "dqn"), "hopper")


@pytest.mark.parametrize(
    ("config", "field", "value"),
    [
        (ModelConfig, "kind", "gpt"),
        (ModelConfig, "context_length", 0),
        (ModelConfig, "embedding_dim", 100),
        (ModelConfig, "dropout", 1.0),
        (ModelConfig, "rtg_scale", 0.0),
        (ModelConfig, "rtg_scale", math.nan),
        (PolicyConfig, "steps", 0),
        (PolicyConfig, "steps", 10.0),
        (PolicyConfig, "batch_size", True),
        (PolicyConfig, "threads", 0),
        (PolicyConfig, "learning_rate", math.inf),
        (PolicyConfig, "expectile", 1.0),
        (PolicyConfig, "optimizer", "sgd"),
        (PolicyConfig, "target_return", math.nan),
        (PolicyConfig, "best_share", 0.0),
        (PolicyConfig, "gradient_clip", -1.0),
        (PolicyConfig, "q_weight", -0.1),
        (PolicyConfig, "advantage_weight", math.nan),
        (PolicyConfig, "action_loss", "mse"),
        (CriticConfig, "hidden", (256, 0)),
        (CriticConfig, "discount", 1.5),
        (CriticConfig, "polyak", 0.0),
        (CriticConfig, "reward_scaling", "iql"),
        (CriticConfig, "observation_epsilon", -1.0),
        (CriticConfig, "method", "td3_bc"),
        (Td3BcConfig, "actor_hidden", (256, 0)),
        (Td3BcConfig, "actor_every", 0),
        (Td3BcConfig, "q_weight", -1.0),
        (Td3BcConfig, "noise", math.nan),
        (CqlConfig, "samples", 0),
        (EnsembleConfig, "diversity", -1.0),
        (CqlConfig, "temperature", 0.0),
        (CqlConfig, "target_gap", math.nan),
        (CqlConfig, "actor_hidden", (True,)),
    ],
)
def test_a_bad_value_is_named(config: type[Any], field: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"^{field}: expected .*got"):
        config(**{field: value})


def test_an_ensemble_is_of_two_at_least() -> None:
    with pytest.raises(ValueError, match="heads: expected an integer of at least 2, got 1"):
        CriticConfig(method="ensemble", heads=1)


def test_from_dict_names_unknown_fields() -> None:
    with pytest.raises(ValueError, match=r"^batchsize: PolicyConfig has no such field"):
        PolicyConfig.from_dict({"batchsize": 3})
    with pytest.raises(ValueError, match=r"^model\.layers: ModelConfig has no such field"):
        PolicyConfig.from_dict({"model": {"layers": 3}})
    with pytest.raises(ValueError, match=r"^td3_bc\.sigma: Td3BcConfig has no such field"):
        CriticConfig.from_dict({"td3_bc": {"sigma": 0.1}})
    with pytest.raises(ValueError, match=r"^steps: expected an integer of at least 1, got"):
        CriticConfig.from_dict({"steps": {"a": 1}})


def test_every_field_has_a_help_text_and_no_torch_is_imported() -> None:
    program = (
        "import sys, tyro\n"
        "from tyro.extras import get_parser\n"
        "from dtag_fast.training.config import CriticConfig, PolicyConfig\n"
        "assert 'torch' not in sys.modules\n"
        "print(get_parser(PolicyConfig).format_help(), get_parser(CriticConfig).format_help())\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    words = " ".join(run.stdout.replace("│", " ").split())
    assert "Windows uniform over trajectories, or over their steps (length)." in words
    assert "Returns-to-go are divided by this inside the model." in words
    assert "Step of the target Q-heads towards the trained ones, after each update." in words
    for config in (PolicyConfig, CriticConfig, ModelConfig):
        for field in dataclasses.fields(config):
            assert "--" + field.name.replace("_", "-") in words or f"--model.{field.name}" in (
                words.replace("-", "_").replace("__model", "--model")
            )
