"""Does a backend equal the reference? The measure that tests and benchmarks share.

A backend may lose to rounding what PyTorch's own float32 loses: its error against the reference in
float64 is held to twice that of the reference in float32. A refinement path that passes close to
a kink of the critic, or to a tie between candidates, may end elsewhere for the smallest rounding;
such rows are found by shaking the start in float64, and are judged by the Q they reach.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from dtag_fast.refinement import Refiner, reference
from dtag_fast.refinement.inputs import check_inputs

SHAKE = 1e-6  # of each action, some sixteen units in the last place of float32 near 1
AMPLIFIED = 100.0  # a path that turns a shake into more than this many is near a kink
ABSOLUTE = 2e-6  # allowed beside twice the reference's error, in action units


@dataclass(frozen=True)
class Parity:
    """A backend beside the reference on one batch.

    Attributes:
        rows: B.
        kinked: rows near a kink or tie.
        error: the largest error in an action of the other rows, against float64.
        reference_error: the same of the reference in float32.
        q_loss: how much Q, in float64 and relative to the largest abs(Q), the worst row of all
            falls short of the reference in float64; only with select="best".
        reference_q_loss: the same of the reference in float32.
    """

    rows: int
    kinked: int
    error: float
    reference_error: float
    q_loss: float
    reference_q_loss: float

    @property
    def holds(self) -> bool:
        """Whether the backend loses no more than twice what the reference's float32 does."""
        return (
            self.error <= 2 * self.reference_error + ABSOLUTE
            and self.q_loss <= 2 * self.reference_q_loss + ABSOLUTE
        )


def measure_parity(
    critic: nn.Module, observations: Tensor, actions: Tensor, *, backend: str, **options: Any
) -> Parity:
    """Refine one batch with the backend and with the reference in float32 and float64.

    Args:
        critic: see `dtag_fast.refine`.
        observations: [B, S], finite.
        actions: [B, A] or [B, N, A], finite.
        backend: a name in the backend table.
        options: of `dtag_fast.refine`.
    """
    refiner = Refiner(critic, backend=backend, **options)  # type: ignore[arg-type]
    checked = refiner.options
    inputs = check_inputs(critic, observations, actions)
    exact_critic = copy.deepcopy(critic).double()
    rows, points = inputs.observations.double(), inputs.actions.double()
    signs = torch.rand(points.shape, generator=torch.Generator().manual_seed(0)).round() * 2 - 1
    exact, exact_info = reference.run(exact_critic, rows, points, checked)
    shaken, _ = reference.run(exact_critic, rows, points + SHAKE * signs.to(points.device), checked)
    plain, _ = reference.run(critic, inputs.observations, inputs.actions, checked)
    ours = torch.as_tensor(refiner(observations, actions))

    def error(result: Tensor) -> Tensor:
        return (result.double() - exact).abs().amax(dim=1)

    smooth = error(shaken) <= AMPLIFIED * SHAKE
    # A backend's NaN must not hide in a maximum over rows that leaves it out.
    if not torch.equal(ours.isfinite(), plain.isfinite()):
        smooth = torch.ones_like(smooth)

    def worst(result: Tensor) -> float:
        return float(error(result)[smooth].max()) if smooth.any() else 0.0

    def q_loss(result: Tensor) -> float:
        if checked.select != "best" or not len(rows):
            return 0.0
        _, info = reference.run(
            exact_critic, rows, result.double().unsqueeze(1), replace(checked, steps=0)
        )
        scale = max(1.0, float(exact_info.q.abs().max()))
        return max(0.0, float((exact_info.q - info.q).max()) / scale)

    return Parity(
        rows=len(rows),
        kinked=int((~smooth).sum()),
        error=worst(ours),
        reference_error=worst(plain),
        q_loss=q_loss(ours),
        reference_q_loss=q_loss(plain),
    )
