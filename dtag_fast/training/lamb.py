"""LAMB (You et al. 2020, arXiv 1904.00962) in the variant that Reinformer and online DT use.

Adam with bias correction and weight decay in the step, u = m / (sqrt(v) + eps) + decay * p, where
each tensor's step is scaled to that tensor's norm: p -= lr * |p| / |u| * u. Before that the whole
gradient is clipped to norm 1.

Since a step is proportional to |p|, a tensor that starts at zero takes one unscaled step and then
hardly moves: Reinformer's log_std stays near 0 in the published setting, so that its
log-likelihood is half the squared error plus a constant.

Source: Dragon-Zhuang/Reinformer, lamb.py, which is that of facebookresearch/online-dt.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from dtag_fast.training.native_layers import available


class Lamb(torch.optim.Optimizer):
    """LAMB over all tensors at once, by torch's multi-tensor operations.

    Args:
        params: parameters, or groups of them.
        lr: learning rate.
        betas: decay of the averages of the gradient and of its square.
        eps: added to the square root.
        weight_decay: added to the step before it is scaled. With 0 the step is not scaled, as in
            the code this follows: then it is Adam with a clipped gradient.
        max_grad_norm: largest norm of the gradient over all groups.
        native: by compiled code where it can be had.

    A group with `capturable` set counts its steps on the parameters' device and reads no number
    back, and its `lr` may be a tensor there: then a step can be part of a CUDA graph.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-4,
        max_grad_norm: float = 1.0,
        native: bool = True,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "capturable": False,
        }
        super().__init__(params, defaults)
        self.max_grad_norm = max_grad_norm
        self.native = native

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update from the parameters' `grad`, which stays as it is."""
        if closure is not None:
            raise TypeError("closure: not supported")
        used = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        if not used:
            return
        norms = torch._foreach_norm([p.grad for p in used])
        clip = (torch.stack(norms).norm() / self.max_grad_norm).clamp_min(1.0)
        for group in self.param_groups:
            self._step_group(group, clip)

    def _step_group(self, group: dict[str, Any], clip: Tensor) -> None:
        params = [p for p in group["params"] if p.grad is not None]
        if not params:
            return
        for p in params:
            if not self.state[p]:
                self.state[p] = {
                    "step": torch.zeros((), device=p.device if group["capturable"] else "cpu"),
                    "exp_avg": torch.zeros_like(p),
                    "exp_avg_sq": torch.zeros_like(p),
                }
        states = [self.state[p] for p in params]
        torch._foreach_add_([state["step"] for state in states], 1.0)
        beta1, beta2 = group["betas"]
        mean = [state["exp_avg"] for state in states]
        square = [state["exp_avg_sq"] for state in states]
        if group["capturable"]:
            step = states[0]["step"].double()
            correction = (1.0 - beta1**step).float()
            root_correction = (1.0 - beta2**step).sqrt().float()
        else:
            step = float(states[0]["step"])  # kept on the CPU: no synchronisation
            tensors = [*params, *mean, *square, *(p.grad for p in params)]
            if self.native and _takes_native(tensors):
                trios = list(zip(params, mean, square, strict=True))
                self._native_step(group, trios, step, 1.0 / float(clip))
                return
            correction = 1.0 - beta1**step
            root_correction = (1.0 - beta2**step) ** 0.5
        gradients = torch._foreach_div([p.grad for p in params], clip)
        torch._foreach_lerp_(mean, gradients, 1.0 - beta1)
        torch._foreach_mul_(square, beta2)
        torch._foreach_addcmul_(square, gradients, gradients, 1.0 - beta2)

        denominator = torch._foreach_sqrt(square)
        torch._foreach_div_(denominator, root_correction)
        torch._foreach_add_(denominator, group["eps"])
        update = torch._foreach_div(mean, correction)
        torch._foreach_div_(update, denominator)
        if group["weight_decay"] != 0:
            torch._foreach_add_(update, params, alpha=group["weight_decay"])
            own = torch.stack(torch._foreach_norm(params))
            of_update = torch.stack(torch._foreach_norm(update))
            ratio = torch.where((own > 0) & (of_update > 0), own / of_update, 1.0)
            torch._foreach_mul_(update, list(ratio.unbind()))
        if isinstance(group["lr"], Tensor):
            torch._foreach_mul_(update, group["lr"])
            torch._foreach_sub_(params, update)
        else:
            torch._foreach_add_(params, update, alpha=-group["lr"])

    def _native_step(
        self,
        group: dict[str, Any],
        tensors: list[tuple[Tensor, Tensor, Tensor]],
        step: float,
        gradient_factor: float,
    ) -> None:
        """What follows in `_step_group`, two passes over the memory (csrc/simd/pointwise.h)."""
        beta1, beta2 = group["betas"]
        numbers = (
            group["lr"],
            1.0 / (1.0 - beta1**step),
            (1.0 - beta2**step) ** -0.5,
            beta1,
            beta2,
            group["eps"],
            group["weight_decay"],
            gradient_factor,
        )
        addresses = [
            (p.data_ptr(), p.grad.data_ptr(), mean.data_ptr(), square.data_ptr(), p.numel())
            for p, mean, square in tensors
            if p.grad is not None
        ]
        native = importlib.import_module("dtag_fast._native")
        native.lamb_step(addresses, numbers, torch.get_num_threads())
        torch.autograd.graph.increment_version([p for p, _, _ in tensors])


def _takes_native(tensors: list[Any]) -> bool:
    plain = all(
        x.device.type == "cpu" and x.dtype == torch.float32 and x.is_contiguous() for x in tensors
    )
    return plain and available()
