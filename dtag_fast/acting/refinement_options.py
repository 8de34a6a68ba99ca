"""How a policy refines unless told otherwise, and what the command line can tell it.

Imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class RefinementOptions:
    """How actions are refined. Needs --critic.

    The defaults are what docs/results.md recommends: five steps of 0.01, each of that length
    whatever the scale of the critic's rewards, which move an action by 0.05 at most. The paper
    names neither n nor eta.
    """

    steps: int = 5
    """n."""

    step_size: float = 0.01
    """eta: a length in action units; with --refinement.gradient raw, a factor of the gradient."""

    optimizer: Literal["sgd", "momentum", "rmsprop", "adam"] = "sgd"
    """Of the action."""

    gradient: Literal["raw", "unit"] = "unit"
    """As it is, or divided by its length."""

    ensemble: Literal["min", "mean", "lcb"] = "min"
    """How the critic's heads make one Q."""

    lcb_k: float = 1.0
    """lcb is mean - lcb_k * std."""

    select: Literal["best", "last"] = "best"
    """The candidate of highest Q, or the last."""

    max_distance: float | None = None
    """Largest L2 distance from the policy's action."""

    context_action: Literal["refined", "raw"] = "refined"
    """Which action the model sees later."""

    backend: Literal["auto", "cpu", "cuda", "triton", "graph", "reference"] = "auto"
    """Implementation of refinement."""

    algorithm: Literal["auto", "walk", "dense"] = "auto"
    """Of the cpu backend: from linear region to linear region, or the full network."""

    precision: Literal["fp32", "tf32", "tf32x3", "bf16"] = "fp32"
    """Of the weights between hidden layers: bf16 in the backends cpu, cuda and triton, tf32 in
    triton, tf32x3 in cuda."""

    threads: int | None = None
    """The most that the cpu backend uses for a large batch; torch's number unless given."""
