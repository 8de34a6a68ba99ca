"""Does a backend equal the reference? The measure that tests and benchmarks share.

A backend may lose to rounding what PyTorch's own float32 loses: its error against the reference in
float64 is held to twice that of the reference in float32. Rows differ in how they amplify rounding:
a path that passes close to a kink of the critic, or to a tie between candidates, may end elsewhere
for the smallest of it. So each row is also run in float64 with its start and every Q shaken by one
part in a million, and may err by as much as the worst shake moves its result, but not more.
Whatever its path, a row's Q must not fall short.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from dtag_fast.models.critic import Critic
from dtag_fast.refinement import Refiner, reference
from dtag_fast.refinement.backends import BackendName
from dtag_fast.refinement.inputs import check_inputs
from dtag_fast.refinement.options import RefineOptions

SHAKES = 8
SHAKE = 1e-6  # some sixteen units in the last place of a float32 near 1
KINKED = 100.0  # a row that turns the shake into more than this many is near a kink or tie
ABSOLUTE = 2e-6  # allowed beside twice the reference's error, in action units


@dataclass(frozen=True)
class Parity:
    """A backend beside the reference on one batch.

    Attributes:
        rows: B.
        kinked: rows near a kink or tie.
        error: the largest error in an action of the other rows, against float64.
        reference_error: the same of the reference in float32.
        excess: by how much the worst of all rows errs more than it may; 0 if none does.
        q_loss: how much Q, in float64 and relative to the largest abs(Q), the worst row of all
            falls short of the reference in float64; only with select="best".
        reference_q_loss: the same of the reference in float32.
    """

    rows: int
    kinked: int
    error: float
    reference_error: float
    excess: float
    q_loss: float
    reference_q_loss: float

    @property
    def holds(self) -> bool:
        """Whether the backend loses no more than it may, in the action and in Q."""
        return self.excess == 0 and self.q_loss <= 2 * self.reference_q_loss + ABSOLUTE


def random_critic(seed: int = 0, *, gain: float = 2.0, **arguments: Any) -> Critic:
    """A fresh `Critic(**arguments)`, its weights times `gain`: steep enough for steps to matter."""
    generator = torch.random.get_rng_state()
    torch.manual_seed(seed)
    defaults: dict[str, Any] = {"observation_dim": 5, "action_dim": 3, "hidden": (33, 20)}
    critic = Critic(**defaults | arguments)
    torch.random.set_rng_state(generator)
    with torch.no_grad():
        for weight in critic.weights:
            weight.mul_(gain)
    return critic


def random_batch(
    critic: Critic, batch: int = 17, *starts: int, seed: int = 1
) -> tuple[Tensor, Tensor]:
    """Observations [batch, S], standard normal, and actions [batch, *starts, A] in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    observations = torch.randn(batch, critic.observation_dim, generator=generator)
    actions = torch.rand(batch, *starts, critic.action_dim, generator=generator) * 2 - 1
    return observations, actions


def measure_parity(
    critic: nn.Module,
    observations: Tensor,
    actions: Tensor,
    *,
    backend: BackendName,
    **options: Any,
) -> Parity:
    """Refine one batch with the backend and with the reference in float32 and float64.

    Args:
        critic: see `dtag_fast.refine`.
        observations: [B, S], finite.
        actions: [B, A] or [B, N, A], finite.
        backend: a name in the backend table.
        options: of `dtag_fast.refine`.
    """
    refiner = Refiner(critic, backend=backend, **options)
    standard = Standard(critic, observations, actions, refiner.options)
    return standard.measure(torch.as_tensor(refiner(observations, actions)))


class Standard:
    """What refining one batch should give: holds any number of results against it.

    Args:
        critic: see `dtag_fast.refine`.
        observations: [B, S], finite.
        actions: [B, A] or [B, N, A], finite.
        options: of the refinement.
        shake_observations: too, and twice as often. For observations of hundreds of numbers, whose
            sum rounds by more than a shake of the start moves it.
    """

    def __init__(
        self,
        critic: nn.Module,
        observations: Tensor,
        actions: Tensor,
        options: RefineOptions,
        *,
        shake_observations: bool = False,
    ) -> None:
        inputs = check_inputs(critic, observations, actions)
        self.options = options
        self.critic = copy.deepcopy(critic).double()
        self.rows, points = inputs.observations.double(), inputs.actions.double()
        self.exact, self.exact_info = reference.run(self.critic, self.rows, points, options)
        shaken = _shaken(self.critic, self.rows, points, options, shake_observations)
        self.shift = (shaken - self.exact).abs().amax(dim=(0, 2))
        self.plain, _ = reference.run(critic, inputs.observations, inputs.actions, options)

    def measure(self, result: Tensor) -> Parity:
        """Of the refined actions [B, A]."""
        kinked = self.shift > KINKED * SHAKE
        error = self._error(result)
        reference_error = _largest(self._error(self.plain)[~kinked])
        excess = error - self.shift - 2 * reference_error - ABSOLUTE
        if not torch.equal(result.isfinite(), self.exact.isfinite()):
            excess = torch.full_like(excess, torch.inf)
        return Parity(
            rows=len(self.rows),
            kinked=int(kinked.sum()),
            error=_largest(error[~kinked]),
            reference_error=reference_error,
            excess=max(0.0, _largest(excess)),
            q_loss=self._q_loss(result),
            reference_q_loss=self._q_loss(self.plain),
        )

    def _error(self, result: Tensor) -> Tensor:
        return (result.double() - self.exact).abs().amax(dim=1)

    def _q_loss(self, result: Tensor) -> float:
        if self.options.select != "best" or not len(self.rows):
            return 0.0
        points = result.double().unsqueeze(1)
        _, info = reference.run(self.critic, self.rows, points, replace(self.options, steps=0))
        scale = max(1.0, float(self.exact_info.q.abs().max()))
        return max(0.0, float((self.exact_info.q - info.q).max()) / scale)


class _ShakenCritic(nn.Module):
    """A critic whose every Q is off by up to SHAKE * (1 + abs(Q)); its gradient is not."""

    def __init__(self, critic: nn.Module, generator: torch.Generator) -> None:
        super().__init__()
        self.critic = critic
        self.generator = generator

    def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
        q: Tensor = self.critic(observations, actions)
        noise = torch.rand(q.shape, generator=self.generator).to(q) * 2 - 1
        return q + SHAKE * noise * (1 + q.detach().abs())


def _shaken(
    critic: nn.Module,
    rows: Tensor,
    points: Tensor,
    options: RefineOptions,
    shake_observations: bool,
) -> Tensor:
    """Results [shakes, B, A] with starts and Q shaken, and observations if so."""
    shakes = 2 * SHAKES if shake_observations else SHAKES
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, (shakes, *points.shape), generator=generator) * 2 - 1
    starts = (points + SHAKE * signs.to(points.device)).flatten(0, 1)
    shaken_rows = rows.repeat(shakes, 1)
    if shake_observations:
        signs = torch.randint(0, 2, shaken_rows.shape, generator=generator) * 2 - 1
        shaken_rows *= 1 + SHAKE * signs.to(rows.device)
    shaken_critic = _ShakenCritic(critic, generator)
    result, _ = reference.run(shaken_critic, shaken_rows, starts, options)
    return result.reshape(shakes, len(rows), result.shape[1])


def _largest(values: Tensor) -> float:
    return float(values.max()) if len(values) else 0.0
