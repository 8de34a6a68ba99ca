"""Settings that one method of training a critic has and the others do not. Imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from dtag_fast.models.config import check_at_least, check_interval, check_positive, check_widths

CriticMethod = Literal["iql", "td3-bc", "cql", "ensemble"]


@dataclass(frozen=True, kw_only=True)
class Td3BcConfig:
    """TD3+BC alone. The defaults are those of its authors' code."""

    actor_hidden: tuple[int, ...] = (256, 256)
    """Widths of the actor's hidden layers."""

    actor_learning_rate: float = 3e-4
    """Of the actor's Adam."""

    q_weight: float = 2.5
    """Alpha: weight of Q, divided by its mean size, against the distance to the data's action."""

    noise: float = 0.2
    """Standard deviation of the target action's noise, in half-widths of the action box."""

    noise_clip: float = 0.5
    """Largest noise."""

    actor_every: int = 2
    """Updates of the Q-heads to one of the actor and of the target networks."""

    def __post_init__(self) -> None:
        check_widths(self, "actor_hidden")
        check_at_least(self, 1, "actor_every")
        check_positive(self, "actor_learning_rate")
        for name in ("q_weight", "noise", "noise_clip"):
            check_interval(self, name, 0.0, math.inf)


@dataclass(frozen=True, kw_only=True)
class CqlConfig:
    """CQL alone. The defaults are CORL's."""

    weight: float = 10.0
    """Alpha: weight of the gap between the soft maximum over actions and Q of the data."""

    lagrange: bool = False
    """Multiply the weight by a number that is tuned for the gap to be target_gap."""

    target_gap: float = 5.0
    """Tau, the gap that lagrange aims for, in units of Q."""

    samples: int = 10
    """Actions of each of three kinds that the soft maximum is estimated from: uniform ones, and the
    actor's at this observation and at the next."""

    temperature: float = 1.0
    """Of the soft maximum; towards 0 it is the maximum."""

    actor_hidden: tuple[int, ...] = (256, 256, 256)
    """Widths of the actor's hidden layers."""

    actor_learning_rate: float = 3e-5
    """Of the Adams of the actor and of its entropy's temperature."""

    def __post_init__(self) -> None:
        check_widths(self, "actor_hidden")
        check_at_least(self, 1, "samples")
        check_positive(self, "temperature", "actor_learning_rate")
        check_interval(self, "weight", 0.0, math.inf)
        check_interval(self, "target_gap", -math.inf, math.inf, left_open=True)


@dataclass(frozen=True, kw_only=True)
class EnsembleConfig:
    """An ensemble alone; otherwise its settings are IQL's."""

    diversity: float = 0.0
    """Eta of EDAC: weight of the alignment of the heads' gradients in the action; 1 there."""

    def __post_init__(self) -> None:
        check_interval(self, "diversity", 0.0, math.inf)


# --- presets: what differs from `CriticConfig`'s defaults, which are IQL's ------------------------


def td3_bc_settings() -> dict[str, Any]:
    """sfujim/TD3_BC (TD3_BC.py, main.py), one setting for all; CORL's has the same values."""
    return {
        "method": "td3-bc",
        "normalize_observations": True,
        "initialization": "default",
        "reward_scaling": "none",
        "action_margin": 0.0,
    }


def cql_settings(family: str, tier: str) -> dict[str, Any]:
    """corl-team/CORL (configs/offline/cql).

    That of hopper-medium normalises rewards and, by AntMaze's defaults that it does not override,
    then also multiplies them by 5 and subtracts 1; here they are normalised alone.
    """
    normalized = (family, tier) == ("hopper", "medium")
    return {
        "method": "cql",
        "normalize_observations": True,
        "hidden": (256, 256, 256),
        "initialization": "orthogonal-small",
        "reward_scaling": "iql-mujoco" if normalized else "none",
        "action_margin": 0.0,
        "cql": CqlConfig(lagrange=family == "maze2d"),
    }
