"""The loop of `reference.py` as steps on tensors, for what records operations rather than Python.

A `Step` maps tensors to tensors: no branch on a number, nothing modified. So it can be compiled
once and called n + 1 times, captured in a CUDA graph, or exported. Candidate n takes a whole step
too, whose update is dropped: the same operations give equal candidates equal Q, bit for bit, and
so the earliest of them wins.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from dtag_fast.refinement.closed_form import Pullback
from dtag_fast.refinement.options import (
    ADAM_BETAS,
    EPSILON,
    MOMENTUM,
    RMSPROP_ALPHA,
    Ensemble,
    Gradient,
    Optimizer,
    RefineOptions,
)

Number = Tensor | float


class Form(Protocol):
    """How a critic's Q and gradient are computed, its weights given; see `ClosedForm`."""

    def prepare(self, weights: list[Tensor], observations: Tensor) -> Tensor:
        """What depends on observations [R, S] alone."""

    def value_and_pullback(
        self, weights: list[Tensor], prepared: Tensor, actions: Tensor
    ) -> tuple[Tensor, Pullback]:
        """Q [E, R] of actions [R, A], and c [E, R] -> sum over heads of c * grad_a Q [R, A]."""


class State(NamedTuple):
    """Of R rows before a step. `step` is the index of the row's candidate; a row that is not
    `moving` has stopped. `first` and `second` are the optimiser's moments.
    """

    action: Tensor  # [R, A], the candidate
    step: Tensor  # [R] int64
    moving: Tensor  # [R] bool
    best_action: Tensor  # [R, A]
    best_q: Tensor  # [R], -inf until there is a finite Q
    best_step: Tensor  # [R] int64
    first: Tensor  # [R, A]
    second: Tensor  # [R, A]

    @classmethod
    def start(cls, initial: Tensor) -> State:
        """At candidate 0, `initial` [R, A]."""
        rows, device = initial.shape[0], initial.device
        zeros = torch.zeros(rows, dtype=torch.int64, device=device)
        moments = torch.zeros_like(initial)
        return cls(
            action=initial,
            step=zeros,
            moving=torch.ones(rows, dtype=torch.bool, device=device),
            best_action=initial,
            best_q=torch.full((rows,), -torch.inf, dtype=torch.float32, device=device),
            best_step=zeros,
            first=moments,
            second=moments,
        )


class Numbers(NamedTuple):
    """The numbers of one step: tensors [] for a step that is compiled for any, or plain floats."""

    low: Tensor  # [A]; of no meaning without bounds
    high: Tensor  # [A]
    max_distance: Number
    lcb_k: Number
    candidate: Number  # that the step leads to, of 1 ... n + 1
    rate: Number  # step_size; Adam's divided by 1 - beta1^candidate
    correction: Number  # Adam's 1 - beta2^candidate


def numbers(options: RefineOptions, action_dim: int) -> list[Numbers]:
    """Those of n + 1 steps, as floats."""
    box = options.box()
    low, high = (
        (torch.zeros(action_dim),) * 2 if box is None else (b.expand(action_dim) for b in box)
    )
    found = []
    for candidate in range(1, options.steps + 2):
        rate, correction = options.step_size, 1.0
        if options.optimizer == "adam":
            rate /= 1 - ADAM_BETAS[0] ** candidate
            correction = 1 - ADAM_BETAS[1] ** candidate
        distance = options.max_distance or 0.0
        found.append(Numbers(low, high, distance, options.lcb_k, candidate, rate, correction))
    return found


@dataclass(frozen=True)
class Step:
    """What operations a step takes; what changes only numbers is not in it.

    Attributes:
        form: of the critic.
        optimizer, ensemble, gradient: as in `RefineOptions`.
        bounded: whether there is a box.
        tethered: whether there is a ball around the start.
    """

    form: Form
    optimizer: Optimizer
    ensemble: Ensemble
    gradient: Gradient
    bounded: bool
    tethered: bool

    @classmethod
    def of(cls, form: Form, options: RefineOptions) -> Step:
        """The step of a refinement."""
        return cls(
            form=form,
            optimizer=options.optimizer,
            ensemble=options.ensemble,
            gradient=options.gradient,
            bounded=bool(options.low),
            tethered=options.max_distance is not None,
        )

    def __call__(
        self,
        weights: list[Tensor],
        prepared: Tensor,
        initial: Tensor,
        state: State,
        numbers: Numbers,
    ) -> tuple[State, Tensor]:
        """The state after the step, and the Q [R] of the candidate before it."""
        heads, pullback = self.form.value_and_pullback(weights, prepared, state.action)
        q, cotangent = _combine(heads, self.ensemble, numbers.lcb_k)
        better = q.isfinite() & (q > state.best_q)
        gradient = pullback(cotangent)
        if self.gradient == "unit":
            norm = torch.linalg.vector_norm(gradient, dim=1, keepdim=True)
            gradient = torch.where(norm == 0, gradient, gradient / norm)
        update, first, second = self._update(gradient, state, numbers)
        proposal = self._project(state.action + update, initial, numbers)
        moving = (
            state.moving & gradient.isfinite().all(dim=1) & proposal.isfinite().all(dim=1)
        )  # [R]
        return State(
            action=torch.where(moving.unsqueeze(1), proposal, state.action),
            step=torch.where(moving, numbers.candidate, state.step),
            moving=moving,
            best_action=torch.where(better.unsqueeze(1), state.action, state.best_action),
            best_q=torch.where(better, q, state.best_q),
            best_step=torch.where(better, state.step, state.best_step),
            first=first,
            second=second,
        ), q

    def _update(
        self, gradient: Tensor, state: State, numbers: Numbers
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The step's update, and the moments after it."""
        first, second, rate = state.first, state.second, numbers.rate
        match self.optimizer:
            case "sgd":
                update = rate * gradient
            case "momentum":
                first = MOMENTUM * first + gradient
                update = rate * first
            case "rmsprop":
                second = RMSPROP_ALPHA * second + (1 - RMSPROP_ALPHA) * gradient.square()
                update = rate * gradient / (second.sqrt() + EPSILON)
            case "adam":
                beta1, beta2 = ADAM_BETAS
                first = beta1 * first + (1 - beta1) * gradient
                second = beta2 * second + (1 - beta2) * gradient.square()
                update = rate * first / ((second / numbers.correction).sqrt() + EPSILON)
        return update, first, second

    def _project(self, actions: Tensor, initial: Tensor, numbers: Numbers) -> Tensor:
        """Into the ball around the initial actions, then into the box."""
        if self.tethered:
            move = actions - initial
            length = torch.linalg.vector_norm(move, dim=1, keepdim=True)
            onto = initial + move * (numbers.max_distance / length)
            actions = torch.where(length <= numbers.max_distance, actions, onto)
        return self.into_box(actions, numbers)

    def into_box(self, actions: Tensor, numbers: Numbers) -> Tensor:
        """Actions [R, A] clamped, where there is a box."""
        return torch.clamp(actions, numbers.low, numbers.high) if self.bounded else actions


def _combine(heads: Tensor, ensemble: Ensemble, lcb_k: Number) -> tuple[Tensor, Tensor]:
    """The ensemble's Q [R] of Q [E, R], and the derivative of the one by the other, [E, R]."""
    count = heads.shape[0]
    if ensemble == "min":
        lowest = heads.argmin(dim=0, keepdim=True)  # the first one
        index = torch.arange(count, device=heads.device).unsqueeze(1)
        return heads.gather(0, lowest).squeeze(0), (index == lowest).to(heads.dtype)
    mean = heads.mean(dim=0)
    if ensemble == "mean":
        return mean, torch.full_like(heads, 1 / count)
    from_mean = heads - mean
    variance = from_mean.square().mean(dim=0)
    deviation = torch.where(variance == 0, 1.0, variance).sqrt()
    slope = torch.where(variance == 0, 0.0, from_mean / (count * deviation))
    q = mean - lcb_k * torch.where(variance == 0, 0.0, deviation)
    return q, 1 / count - lcb_k * slope


class Refined(NamedTuple):
    """Of B rows: the refined actions, and what `RefineInfo` says of them."""

    actions: Tensor  # [B, A]
    floats: Tensor  # [3, B]: q, q_initial, distance
    indices: Tensor  # [2, B] int64: best_step, start

    def first(self, count: int) -> Refined:
        """Of the first so many rows."""
        return Refined(self.actions[:count], self.floats[:, :count], self.indices[:, :count])

    def clone(self) -> Refined:
        """A copy."""
        return Refined(self.actions.clone(), self.floats.clone(), self.indices.clone())


StepCall = Callable[[list[Tensor], Tensor, Tensor, State, Numbers], tuple[State, Tensor]]


def refine(
    step: Step,
    take: StepCall,
    weights: list[Tensor],
    observations: Tensor,
    actions: Tensor,
    options: RefineOptions,
    numbers: list[Numbers],
) -> Refined:
    """n + 1 steps, then the choice among candidates and starting points.

    Args:
        step: of the options.
        take: takes it: `step` itself, or what was compiled of it.
        weights: of the critic, as its form has them.
        observations: [B, S].
        actions: [B, N, A].
        options: of the refinement.
        numbers: of each step.
    """
    batch, starts, action_dim = actions.shape
    rows = observations.unsqueeze(1).expand(-1, starts, -1).flatten(0, 1)  # [B * N, S]
    prepared = step.form.prepare(weights, rows)
    initial = step.into_box(actions.reshape(batch * starts, action_dim), numbers[0])
    state = State.start(initial)
    values, before = [], state
    for each in numbers:
        before = state
        state, value = take(weights, prepared, initial, state, each)
        values.append(value)
    q_initial, q = values[0], values[-1]

    never_finite = state.best_q == -torch.inf
    chosen, chosen_step = before.action, before.step
    if options.select == "best":
        chosen, q, chosen_step = state.best_action, state.best_q, state.best_step
    chosen = torch.where(never_finite.unsqueeze(1), initial, chosen)
    q = torch.where(never_finite, q_initial, q)
    chosen_step = torch.where(never_finite, 0, chosen_step)

    # The starting points of a row compete: the highest Q, the first one on a tie.
    start = _highest(q.reshape(batch, starts))  # [B, 1]
    best_initial = _highest(q_initial.reshape(batch, starts))
    pick = start.unsqueeze(2).expand(-1, -1, action_dim)
    result = chosen.reshape(batch, starts, action_dim).gather(1, pick).squeeze(1)
    origin = initial.reshape(batch, starts, action_dim).gather(1, pick).squeeze(1)
    return Refined(
        result,
        torch.stack(
            [
                q.reshape(batch, starts).gather(1, start).squeeze(1),
                q_initial.reshape(batch, starts).gather(1, best_initial).squeeze(1),
                torch.linalg.vector_norm(result - origin, dim=1),
            ]
        ),
        torch.stack(
            [chosen_step.reshape(batch, starts).gather(1, start).squeeze(1), start.squeeze(1)]
        ),
    )


def _highest(q: Tensor) -> Tensor:
    """The index [B, 1] of the highest finite Q of [B, N], the first one on a tie."""
    return torch.where(q.isfinite(), q, -torch.inf).argmax(dim=1, keepdim=True)
