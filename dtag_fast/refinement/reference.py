"""The specification of refinement, in the plainest PyTorch. Every backend is tested against it.

Action Gradient (arXiv 2510.05285): a^{i+1} = a^i + eta * grad_a Q(s, a^i) for n steps, then the
candidate with the highest Q. What the paper leaves open, and how it is settled here:

- Candidate 0, the policy's own action, takes part; so Q(result) >= Q(a^0).
- Every candidate is projected into the box of actions, a^0 included. With `max_distance`, each
  iterate is first projected into the L2 ball of that radius around the projected a^0.
- A row stops where its gradient or its next iterate is not finite; candidates beyond do not exist.
- A Q that is not finite is never selected; a row that has no finite Q returns its a^0.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dtag_fast.refinement.execution import DEFAULT, Execution
from dtag_fast.refinement.inputs import Array, by_head, check_inputs
from dtag_fast.refinement.options import (
    ADAM_BETAS,
    EPSILON,
    MOMENTUM,
    RMSPROP_ALPHA,
    Bounds,
    Ensemble,
    Gradient,
    Optimizer,
    RefineInfo,
    RefineOptions,
    Select,
)


def refine(
    critic: nn.Module,
    observations: Array,
    actions: Array,
    *,
    steps: int = 10,
    step_size: float = 0.03,
    optimizer: Optimizer = "sgd",
    bounds: Bounds | None = (-1.0, 1.0),
    ensemble: Ensemble = "min",
    lcb_k: float = 1.0,
    select: Select = "best",
    max_distance: float | None = None,
    gradient: Gradient = "raw",
    return_info: bool = False,
) -> Any:
    """`dtag_fast.refine` by autograd: the same result, and the same arguments less the last four.

    Those, `backend` and how it executes, are settled here.
    """
    options = RefineOptions.check(
        steps=steps,
        step_size=step_size,
        optimizer=optimizer,
        bounds=bounds,
        ensemble=ensemble,
        lcb_k=lcb_k,
        select=select,
        max_distance=max_distance,
        gradient=gradient,
    )
    inputs = check_inputs(critic, observations, actions)
    options.check_action_dim(inputs.actions.shape[-1])
    result, info = run(critic, inputs.observations, inputs.actions, options)
    return (inputs.restore(result), info) if return_info else inputs.restore(result)


def unavailable_reason() -> str | None:
    """It runs wherever PyTorch does."""
    return None


def unsupported_reason(
    critic: nn.Module, options: RefineOptions, execution: Execution = DEFAULT
) -> str | None:
    """It takes any module and every option, and executes in one way."""
    if execution.algorithm != "auto":
        return f"it has one algorithm, autograd; algorithm={execution.algorithm!r} is the cpu one's"
    if execution.precision != "fp32":
        return f"it computes in float32, got precision={execution.precision!r}"
    if execution.threads is not None:
        return f"its threads are torch's (torch.set_num_threads), got threads={execution.threads}"
    return None


def run(
    critic: nn.Module,
    observations: Tensor,
    actions: Tensor,
    options: RefineOptions,
    execution: Execution = DEFAULT,
) -> tuple[Tensor, RefineInfo]:
    """Refine observations [B, S], actions [B, N, A], float32, to actions [B, A]."""
    batch, starts, action_dim = actions.shape
    # Leave the caller's inference mode: autograd needs ordinary tensors.
    with torch.inference_mode(False), torch.no_grad():
        rows = observations.clone().repeat_interleave(starts, dim=0)  # [B * N, S]
        initial = _into_box(actions.clone().reshape(batch * starts, action_dim), options)
        result, q, q_initial, step = _refine_rows(critic, rows, initial, options)

        # The starting points of a row compete: the highest Q, the first one on a tie.
        by_start = torch.where(q.isfinite(), q, -torch.inf).reshape(batch, starts)
        start = by_start.argmax(dim=1)  # [B]
        chosen = torch.arange(batch, device=start.device) * starts + start
        candidates = torch.where(q_initial.isfinite(), q_initial, -torch.inf)
        best_initial = candidates.reshape(batch, starts).argmax(dim=1) + chosen - start
        return result[chosen], RefineInfo(
            q=q[chosen],
            q_initial=q_initial[best_initial],
            best_step=step[chosen],
            start=start,
            distance=torch.linalg.vector_norm(result[chosen] - initial[chosen], dim=1),
            algorithm="autograd",
            flips=torch.zeros_like(start),
            dense_steps=torch.full_like(start, starts * options.steps),
        )


def _refine_rows(
    critic: nn.Module, observations: Tensor, initial: Tensor, options: RefineOptions
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Each row by itself: the chosen actions [R, A], their Q, the Q of candidate 0, the step."""
    action = initial  # a^i
    update = _Optimizer(options, initial)
    moving = torch.ones(len(initial), dtype=torch.bool, device=initial.device)
    best_action, best_step = initial, torch.zeros_like(moving, dtype=torch.int64)
    best_q = torch.full((len(initial),), -torch.inf, device=initial.device)
    last_step = best_step
    q_initial = q = _value(critic, observations, initial, options)

    for step in range(1, options.steps + 1):
        best_action, best_q, best_step = _keep_better(
            (best_action, best_q, best_step), (action, q, last_step)
        )
        grad = _gradient(critic, observations, action, options)
        proposal = _project(action + update(grad), initial, options)
        moving = moving & grad.isfinite().all(dim=1) & proposal.isfinite().all(dim=1)
        action = torch.where(moving.unsqueeze(1), proposal, action)
        last_step = torch.where(moving, step, last_step)
        q = _value(critic, observations, action, options)
    best = _keep_better((best_action, best_q, best_step), (action, q, last_step))

    never_finite = best[1] == -torch.inf
    if options.select == "best":
        action, q, last_step = best
    return (
        torch.where(never_finite.unsqueeze(1), initial, action),
        torch.where(never_finite, q_initial, q),
        q_initial,
        torch.where(never_finite, 0, last_step),
    )


def _keep_better(
    best: tuple[Tensor, Tensor, Tensor], candidate: tuple[Tensor, Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """(action, q, step) of the higher finite Q, row by row; the earlier one on a tie."""
    better = candidate[1].isfinite() & (candidate[1] > best[1])
    return (
        torch.where(better.unsqueeze(1), candidate[0], best[0]),
        torch.where(better, candidate[1], best[1]),
        torch.where(better, candidate[2], best[2]),
    )


def _value(
    critic: nn.Module, observations: Tensor, actions: Tensor, options: RefineOptions
) -> Tensor:
    """The ensemble's Q [R] of actions [R, A]."""
    q = by_head(critic(observations, actions), len(actions))
    if options.ensemble == "min":
        # argmin and gather give the whole gradient to the first minimiser; min would share it.
        return q.gather(0, q.argmin(dim=0, keepdim=True)).squeeze(0)
    mean = q.mean(dim=0)
    if options.ensemble == "mean":
        return mean
    variance = (q - mean).square().mean(dim=0)
    # The square root has no gradient at 0; where all heads agree the deviation's gradient is 0.
    deviation = torch.where(variance == 0, 0.0, torch.where(variance == 0, 1.0, variance).sqrt())
    return mean - options.lcb_k * deviation


def _gradient(
    critic: nn.Module, observations: Tensor, actions: Tensor, options: RefineOptions
) -> Tensor:
    """grad_a of the ensemble's Q, [R, A]; of length 1 where options.gradient is "unit"."""
    with torch.enable_grad():
        actions = actions.detach().requires_grad_()
        q = _value(critic, observations, actions, options)
        (grad,) = torch.autograd.grad(q.sum(), actions)
    if options.gradient == "unit":
        norm = torch.linalg.vector_norm(grad, dim=1, keepdim=True)
        grad = torch.where(norm == 0, grad, grad / norm)
    return grad.detach()


def _into_box(actions: Tensor, options: RefineOptions) -> Tensor:
    box = options.box(actions.device)
    return actions if box is None else torch.clamp(actions, *box)


def _project(actions: Tensor, initial: Tensor, options: RefineOptions) -> Tensor:
    """Into the ball around the initial actions, then into the box."""
    if options.max_distance is not None:
        move = actions - initial
        length = torch.linalg.vector_norm(move, dim=1, keepdim=True)
        inside = length <= options.max_distance
        actions = torch.where(inside, actions, initial + move * (options.max_distance / length))
    return _into_box(actions, options)


class _Optimizer:
    """The update of torch.optim's optimiser of that name, maximising, with a state per row."""

    def __init__(self, options: RefineOptions, like: Tensor) -> None:
        self.options = options
        self.step = 0
        self.first = torch.zeros_like(like)  # momentum buffer; Adam's first moment
        self.second = torch.zeros_like(like)  # RMSprop's and Adam's mean square

    def __call__(self, grad: Tensor) -> Tensor:
        self.step += 1
        step_size = self.options.step_size
        match self.options.optimizer:
            case "sgd":
                return step_size * grad
            case "momentum":
                self.first = MOMENTUM * self.first + grad
                return step_size * self.first
            case "rmsprop":
                self.second = RMSPROP_ALPHA * self.second + (1 - RMSPROP_ALPHA) * grad.square()
                return step_size * grad / (self.second.sqrt() + EPSILON)
            case "adam":
                beta1, beta2 = ADAM_BETAS
                self.first = beta1 * self.first + (1 - beta1) * grad
                self.second = beta2 * self.second + (1 - beta2) * grad.square()
                scale = (self.second / (1 - beta2**self.step)).sqrt() + EPSILON
                return step_size / (1 - beta1**self.step) * self.first / scale
