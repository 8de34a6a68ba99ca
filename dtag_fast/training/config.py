"""Settings of the two training phases, with the papers' values as defaults.

Frozen dataclasses of plain values: this module imports no torch, so that the command line can show
every field's help at once. A field's text below it is what `--help` shows.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Literal, get_args

from dtag_fast.models.config import (
    ModelConfig as ModelConfig,
)
from dtag_fast.models.config import (
    check_at_least,
    check_finite_or_none,
    check_interval,
    check_positive,
    check_widths,
)
from dtag_fast.training.base_config import TrainingConfig as TrainingConfig
from dtag_fast.training.method_config import (
    CqlConfig,
    CriticMethod,
    EnsembleConfig,
    Td3BcConfig,
    cql_settings,
    td3_bc_settings,
)

ActionLoss = Literal["error", "likelihood"]
PolicyOptimizer = Literal["adamw", "lamb"]
Sampling = Literal["trajectory", "length"]
Padding = Literal["left", "right"]
RewardScaling = Literal["none", "iql-mujoco", "antmaze", "corl"]  # dtag_fast.data.rewards
CriticActivation = Literal["relu", "leaky_relu", "tanh", "gelu", "silu", "mish", "elu"]
Initialization = Literal["orthogonal", "orthogonal-small", "default"]
UpdateOrder = Literal["value_first", "joint"]
QReduction = Literal["sum", "mean"]
Backend = Literal["auto", "native", "torch"]


@dataclass(frozen=True, kw_only=True)
class PolicyConfig(TrainingConfig):
    """Training of the sequence model. The defaults are Reinformer's."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """The architecture."""

    optimizer: PolicyOptimizer = "lamb"
    """lamb as in Reinformer, or adamw as in Decision Transformer."""

    weight_decay: float = 1e-4
    """Of the optimiser, on every parameter."""

    warmup_steps: int = 5_000
    """The learning rate rises linearly over this many steps, then stays; 0 for no warm-up."""

    gradient_clip: float = 0.25
    """Largest norm of the whole gradient; 0 for no limit. LAMB clips in any case, at 1."""

    sampling: Sampling = "trajectory"
    """Windows uniform over trajectories, or over their steps (length)."""

    padding: Padding = "right"
    """Side on which windows shorter than the context are filled up."""

    expectile: float = 0.99
    """Of the return head's loss (reinformer); near 1 it learns the best return in reach."""

    temperature: float = 0.1
    """Initial weight of the action distribution's entropy (reinformer)."""

    temperature_learning_rate: float = 1e-4
    """Of the Adam that tunes the temperature (reinformer)."""

    target_entropy: float | None = None
    """Entropy the temperature is tuned for; None is minus the number of action dimensions."""

    target_return: float | None = None
    """Return asked for when acting, raw units (dt); reinformer predicts its own."""

    best_share: float = 1.0
    """Share of the data's steps that is trained on: the episodes of highest return."""

    action_loss: ActionLoss = "error"
    """Squared error of the action, or its negative log-likelihood under a Normal (mlp)."""

    critic: str | None = None
    """Folder of a critic's run, or one checkpoint; the loss uses it as the next two say."""

    q_weight: float = 0.0
    """Eta of QT: weight of -Q of the model's actions in the loss, Q divided by its mean size. There
    it is 0.001 to 5 by dataset, and the critic is trained meanwhile."""

    advantage_weight: float = 0.0
    """Beta: actions weigh exp(beta (Q - V)), at most 100 (mlp); 0 for all alike."""

    backend: Backend = "auto"
    """native: compiled layers and LAMB, on the CPU; torch: torch's; auto: native where it can, on
    CUDA the captured update. They differ by rounding, and in what dropout drops."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, 0, "warmup_steps")
        check_interval(self, "weight_decay", 0.0, math.inf)
        check_positive(self, "temperature", "temperature_learning_rate")
        for name in ("gradient_clip", "q_weight", "advantage_weight"):
            check_interval(self, name, 0.0, math.inf)
        check_interval(self, "best_share", 0.0, 1.0, left_open=True)
        check_interval(self, "expectile", 0.0, 1.0, left_open=True, right_open=True)
        check_finite_or_none(self, "target_entropy", "target_return")


@dataclass(frozen=True, kw_only=True)
class CriticConfig(TrainingConfig):
    """Training of a critic. The defaults are those of the IQL authors' code for MuJoCo."""

    method: CriticMethod = "iql"
    """How the critic is trained; what is trained is the same."""

    steps: int = 1_000_000
    """Gradient updates in total."""

    batch_size: int = 256
    """Transitions of a batch."""

    learning_rate: float = 3e-4
    """Of Adam, for the Q-heads and for V (iql)."""

    normalize_observations: bool = False
    """Standardise observations by the dataset's mean and standard deviation."""

    observation_epsilon: float = 1e-3
    """Added to the standard deviation."""

    log_every: int = 500
    """Steps between rows of log.jsonl; a non-finite loss is noticed here too."""

    checkpoint_every: int = 20_000
    """Steps between checkpoints; the last step always gets one."""

    evaluation_every: int = 0
    """Steps between evaluations, where there is something to evaluate with; 0 for none."""

    hidden: tuple[int, ...] = (256, 256)
    """Widths of the hidden layers, of the Q-heads and of V (iql)."""

    heads: int = 2
    """E, the number of Q-heads."""

    activation: CriticActivation = "relu"
    """Activation of the hidden layers."""

    layer_norm: bool = False
    """LayerNorm before each activation of the Q-heads and of V (iql)."""

    initialization: Initialization = "orthogonal"
    """orthogonal (gain sqrt 2, zero biases) as the IQL authors; the same but for gain 0.01 in the
    last layer of the Q-heads (orthogonal-small) as CORL's CQL; torch's default as CORL's IQL."""

    discount: float = 0.99
    """Gamma."""

    expectile: float = 0.7
    """Tau of the value loss (iql); 0.5 is the mean, near 1 the best action in the data."""

    polyak: float = 0.005
    """Step of the target Q-heads towards the trained ones, after each update."""

    update_order: UpdateOrder = "value_first"
    """Q's target (iql) from V just updated (value_first, authors) or the old V (joint, CORL)."""

    q_reduction: QReduction = "sum"
    """Q loss: sum over the heads (IQL authors) or their mean (CORL)."""

    reward_scaling: RewardScaling = "iql-mujoco"
    """iql-mujoco: r * 1000 / (best - worst return); antmaze: r - 1; corl: by dataset; none: r."""

    action_margin: float = 1e-5
    """Dataset actions are clipped to the box shrunk by this share of its half-width."""

    td3_bc: Td3BcConfig = field(default_factory=Td3BcConfig)
    """TD3+BC (method td3-bc)."""

    cql: CqlConfig = field(default_factory=CqlConfig)
    """CQL (method cql)."""

    ensemble: EnsembleConfig = field(default_factory=EnsembleConfig)
    """Heads that share no target (method ensemble)."""

    backend: Backend = "auto"
    """native: on the CPU in float32 the compiled update (iql, with relu or leaky_relu and without
    LayerNorm) or compiled layers (other methods); torch: autograd; auto: native where it can, on
    CUDA the captured update. They differ by rounding."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_widths(self, "hidden")
        check_at_least(self, 2 if self.method == "ensemble" else 1, "heads")
        check_interval(self, "discount", 0.0, 1.0)
        check_interval(self, "expectile", 0.0, 1.0, left_open=True, right_open=True)
        check_interval(self, "polyak", 0.0, 1.0, left_open=True)
        check_interval(self, "action_margin", 0.0, 1.0, right_open=True)


# --- presets --------------------------------------------------------------------------------------

MAZES = ("maze2d", "maze2d-umaze", "maze2d-medium", "maze2d-large")
LOCOMOTION = ("hopper", "halfcheetah", "walker2d")
TIERS = ("medium", "medium-replay", "medium-expert")
PRESET_ENVS = (*LOCOMOTION, *(f"{env}-{tier}" for env in LOCOMOTION for tier in TIERS), *MAZES)
PolicyPaper = Literal["dt", "reinformer", "bc", "iql"]
POLICY_PAPERS: tuple[PolicyPaper, ...] = get_args(PolicyPaper)
CriticPaper = Literal["iql", "corl", "td3-bc", "cql", "ensemble"]
CRITIC_PAPERS: tuple[CriticPaper, ...] = get_args(CriticPaper)

# Return to ask for, raw: the larger one of each pair that kzl/decision-transformer evaluates
# (gym/experiment.py); mazes from corl-team/CORL (configs/offline/dt/maze2d).
DT_TARGET_RETURNS = {"hopper": 3600.0, "halfcheetah": 12000.0, "walker2d": 5000.0, "maze2d": 280.0}
DT_RTG_SCALES = {"hopper": 1000.0, "halfcheetah": 1000.0, "walker2d": 1000.0, "maze2d": 1.0}
# Dragon-Zhuang/Reinformer, main.py and data/d4rl_trajectory_dataset.py
REINFORMER_RTG_SCALES = {
    "hopper": 1000.0,
    "halfcheetah": 5000.0,
    "walker2d": 1000.0,
    "maze2d": 100.0,
}


def policy_preset(kind: PolicyPaper, env: str) -> PolicyConfig:
    """The published setting of a policy for an environment.

    dt: kzl/decision-transformer (gym/experiment.py). That paper has no maze: return scale and
    target are CORL's there, the rest is as for locomotion.
    reinformer: Dragon-Zhuang/Reinformer (main.py), with batch 256 on hopper-medium and, as its
    code means but misspells, on hopper-medium-replay.
    bc: behaviour cloning by an MLP (corl-team/CORL, algorithms/offline/any_percent_bc.py), of all
    data: `best_share` makes 10 %BC of it.
    iql: the policy of IQL (corl-team/CORL, configs/offline/iql), extracted from a critic that is
    trained already, which `critic` has to name. There the two are trained side by side and the
    learning rate falls; here the critic and the rate are constant.

    Args:
        kind: one of `POLICY_PAPERS`.
        env: one of `PRESET_ENVS`: an environment, or an environment and a dataset tier.
    """
    family, tier = _family(env)
    if kind == "dt":
        return PolicyConfig(
            model=ModelConfig(
                kind="dt",
                context_length=20,
                blocks=3,
                embedding_dim=128,
                attention_heads=1,
                dropout=0.1,
                block_norm="pre",
                activation="relu",
                max_timestep=1000,
                rtg_scale=DT_RTG_SCALES[family],
            ),
            steps=100_000,
            batch_size=64,
            optimizer="adamw",
            warmup_steps=10_000,
            sampling="length",
            padding="left",
            target_return=DT_TARGET_RETURNS[family],
            checkpoint_every=10_000,
            evaluation_every=10_000,
        )
    if kind == "reinformer":
        larger_batch = family == "hopper" and tier in ("medium", "medium-replay")
        return PolicyConfig(
            model=ModelConfig(rtg_scale=REINFORMER_RTG_SCALES[family]),
            batch_size=256 if larger_batch else 128,
            evaluation_episodes=100 if family == "maze2d" else 10,
        )
    if kind in ("bc", "iql"):
        config = PolicyConfig(
            model=ModelConfig(
                kind="mlp", context_length=1, dropout=0.0, activation="relu", hidden=(256, 256)
            ),
            steps=1_000_000,
            batch_size=256,
            learning_rate=3e-4,
            observation_epsilon=1e-3,
            optimizer="adamw",
            weight_decay=0.0,
            warmup_steps=0,
            gradient_clip=0.0,
            sampling="length",
            checkpoint_every=20_000,
            evaluation_every=20_000,
        )
        if kind == "bc":
            return config
        hopper = family == "hopper"
        return dataclasses.replace(
            config,
            action_loss=(
                "error" if hopper and tier in ("medium", "medium-replay") else "likelihood"
            ),
            advantage_weight=6.0 if hopper and tier == "medium-expert" else 3.0,
        )
    raise ValueError(f"kind: expected one of {', '.join(POLICY_PAPERS)}, got {kind!r}")


def critic_preset(paper: CriticPaper, env: str) -> CriticConfig:
    """The published setting of a critic for an environment.

    iql: ikostrikov/implicit_q_learning, MuJoCo setting. It has no maze; there, rewards are left as
    they are, as in every environment of that code without a rule of its own.
    corl: corl-team/CORL (configs/offline/iql), whose hopper settings differ by dataset tier.
    td3-bc: sfujim/TD3_BC, one setting for all.
    cql: corl-team/CORL (configs/offline/cql), with Lagrange in mazes.
    ensemble: ten heads with targets of their own, otherwise as iql; ours.

    Args:
        paper: one of `CRITIC_PAPERS`.
        env: one of `PRESET_ENVS`: an environment, or an environment and a dataset tier.
    """
    family, tier = _family(env)
    if paper == "iql":
        return CriticConfig(reward_scaling="none" if family == "maze2d" else "iql-mujoco")
    if paper == "corl":
        config = CriticConfig(
            normalize_observations=True,
            initialization="default",
            update_order="joint",
            q_reduction="mean",
            reward_scaling="none",
            action_margin=0.0,
        )
        if family == "hopper" and tier in ("medium", "medium-replay"):
            return dataclasses.replace(config, polyak=0.001, reward_scaling="iql-mujoco")
        if family == "hopper" and tier == "medium-expert":
            return dataclasses.replace(config, expectile=0.5)
        return config
    if paper == "td3-bc":
        return CriticConfig(**td3_bc_settings())
    if paper == "cql":
        return CriticConfig(**cql_settings(family, tier))
    if paper == "ensemble":
        return dataclasses.replace(critic_preset("iql", env), method="ensemble", heads=10)
    raise ValueError(f"paper: expected one of {', '.join(CRITIC_PAPERS)}, got {paper!r}")


def _family(env: str) -> tuple[str, str]:
    if env not in PRESET_ENVS:
        raise ValueError(f"env: expected one of {', '.join(PRESET_ENVS)}, got {env!r}")
    family, _, tier = env.partition("-")
    return family, tier
