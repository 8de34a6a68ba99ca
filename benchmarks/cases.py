"""What refinement is timed on: critics, batches and steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dtag_fast.models.critic import Critic

# Contenders by name; see contenders.py.
FP32 = ("reference", "dense", "walk", "auto")
EVERYTHING = (*FP32, "dense bf16", "walk bf16", "hand VJP", "compiled VJP", "ONNX Runtime")
CALLED = ("reference numpy", "auto numpy", "auto by refine")  # in other ways
NO_WALK = ("reference", "dense", "auto")


@dataclass(frozen=True)
class Case:
    """One critic, one batch and one refinement with plain gradient steps.

    Attributes:
        name: of the case's kind, in tables.
        observation_dim: S.
        action_dim: A.
        batch: B.
        steps: n.
        step_size: eta.
        hidden: widths of the hidden layers.
        heads: E.
        activation: of the hidden layers.
        layer_norm: whether they have LayerNorm.
        denormal: weights such that the numbers between the hidden layers are denormal floats.
        contenders: who takes part.
    """

    name: str
    observation_dim: int
    action_dim: int
    batch: int = 1
    steps: int = 10
    step_size: float = 0.03
    hidden: tuple[int, ...] = (256, 256)
    heads: int = 2
    activation: str = "relu"
    layer_norm: bool = False
    denormal: bool = False
    contenders: tuple[str, ...] = FP32

    def __str__(self) -> str:
        return f"{self.name}-B{self.batch}-n{self.steps}-eta{self.step_size:g}"

    def critic(self) -> Critic:
        """A random critic, initialised as torch does."""
        torch.manual_seed(0)
        critic = Critic(
            self.observation_dim,
            self.action_dim,
            hidden=self.hidden,
            heads=self.heads,
            activation=self.activation,
            layer_norm=self.layer_norm,
        )
        if self.denormal:
            with torch.no_grad():
                critic.weights[1].mul_(DENORMAL)
                critic.biases[1].mul_(DENORMAL)
                critic.weights[2].div_(DENORMAL)
        return critic

    def inputs(self) -> tuple[Tensor, Tensor]:
        """Observations [B, S], standard normal, and actions [B, A], uniform in [-1, 1]."""
        generator = torch.Generator().manual_seed(1)
        observations = torch.randn(self.batch, self.observation_dim, generator=generator)
        actions = torch.rand(self.batch, self.action_dim, generator=generator) * 2 - 1
        return observations, actions


DENORMAL = 1e-37  # times a weight of some 0.06; below 1.2e-38 floats are denormal

STANDING = Case("standing", 17, 6)  # HalfCheetah's and Walker's sizes
HOPPER = Case("hopper", 11, 3)
MAZE = Case("maze", 6, 2)
WIDE = (
    Case("adroit-24", 45, 24),
    Case("adroit-28", 45, 28),
    Case("humanoid", 348, 17),
)


def _with(case: Case, *variants: Mapping[str, Any]) -> list[Case]:
    return [dataclasses.replace(case, **variant) for variant in variants]


def _at(case: Case, *batches: int) -> list[Case]:
    return [dataclasses.replace(case, batch=batch) for batch in batches]


SWEEP_STEPS = (0, 1, 2, 5, 20, 50, 100, 200)
LARGE_STEPS = (1.0, 10.0, 100.0, 1000.0)  # to thousands of times the one that suits the critic

CASES = [
    *_with(
        STANDING,
        {"batch": 1, "contenders": EVERYTHING + CALLED},
        *({"batch": batch, "contenders": EVERYTHING} for batch in (64, 256, 4096)),
    ),
    *_with(HOPPER, {"contenders": EVERYTHING + CALLED}, {"batch": 64}, {"batch": 256}),
    *_at(MAZE, 1, 64, 256),
    *(case for wide in WIDE for case in _at(wide, 1, 64)),
    # The number of steps.
    *_with(
        STANDING,
        *(
            {"steps": steps, "contenders": EVERYTHING if steps == 50 else FP32}
            for steps in SWEEP_STEPS
        ),
    ),
    # The walk at its worst: steps across many regions, and numbers that processors dislike.
    *_with(STANDING, *({"batch": 64, "step_size": step_size} for step_size in LARGE_STEPS)),
    *_with(STANDING, {"step_size": LARGE_STEPS[-1]}),
    *_at(Case("denormal", 17, 6, denormal=True), 1, 64),
    # Other networks.
    *_at(Case("one layer", 17, 6, hidden=(256,)), 1, 64),
    *_at(Case("leaky relu", 17, 6, activation="leaky_relu"), 1, 64),
    *_at(Case("three layers", 17, 6, hidden=(256, 256, 256)), 1, 64),
    *_at(
        Case("mish, LayerNorm", 17, 6, activation="mish", layer_norm=True, contenders=NO_WALK),
        1,
        64,
    ),
    Case("relu, LayerNorm", 17, 6, batch=64, layer_norm=True, contenders=NO_WALK),
    *(
        Case(word, 17, 6, batch=64, activation=word, contenders=NO_WALK)
        for word in ("tanh", "gelu", "silu", "elu")
    ),
]
