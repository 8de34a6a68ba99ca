"""LAMB against the plain per-tensor form it comes from."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dtag_fast.training.lamb import Lamb
from dtag_fast.training.optimizer_state import load_optimizer_tensors, optimizer_tensors


def plain_lamb(
    params: list[Tensor], gradients: list[list[Tensor]], lr: float, decay: float
) -> list[Tensor]:
    """Parameters after one step for each entry of `gradients`, tensor by tensor, in float64."""
    params = [p.double().clone() for p in params]
    mean, square = ([torch.zeros_like(p) for p in params] for _ in range(2))
    for step, grads in enumerate(gradients, start=1):
        norm = math.sqrt(sum(float(g.double().square().sum()) for g in grads))
        for i, gradient in enumerate(grads):
            g = gradient.double() / max(norm, 1.0)
            mean[i] = 0.9 * mean[i] + 0.1 * g
            square[i] = 0.999 * square[i] + 0.001 * g * g
            root = (square[i] / (1 - 0.999**step)).sqrt()
            update = mean[i] / (1 - 0.9**step) / (root + 1e-8) + decay * params[i]
            own, of_update = float(params[i].norm()), float(update.norm())
            trust = own / of_update if decay and own > 0 and of_update > 0 else 1.0
            params[i] = params[i] - lr * trust * update
    return params


@pytest.mark.parametrize("decay", [0.0, 1e-2])
@pytest.mark.parametrize("scale", [0.01, 10.0], ids=["small gradient", "clipped gradient"])
def test_equals_the_plain_form(decay: float, scale: float) -> None:
    torch.manual_seed(0)
    start = [torch.randn(5, 7), torch.zeros(3), torch.randn(4), torch.tensor(0.5)]
    gradients = [[torch.randn_like(p) * scale for p in start] for _ in range(5)]
    gradients[2][2].zero_()
    params = [torch.nn.Parameter(p.clone()) for p in start]
    optimizer = Lamb(params, lr=0.05, weight_decay=decay)
    for grads in gradients:
        for p, gradient in zip(params, grads, strict=True):
            p.grad = gradient.clone()
        optimizer.step()
    for p, expected in zip(params, plain_lamb(start, gradients, 0.05, decay), strict=True):
        torch.testing.assert_close(p.detach().double(), expected, rtol=1e-5, atol=1e-6)


def test_the_gradient_is_left_as_it_is_and_unused_parameters_too() -> None:
    used, unused = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(2))
    optimizer = Lamb([used, unused], lr=0.1)
    optimizer.step()
    used.grad = torch.full((3,), 100.0)
    optimizer.step()
    assert used.grad.tolist() == [100.0] * 3
    assert not torch.equal(used, torch.ones(3))
    assert torch.equal(unused, torch.ones(2))


def test_state_survives_as_tensors() -> None:
    def step(optimizer: Lamb, p: torch.nn.Parameter) -> None:
        p.grad = p.detach() - 1.0
        optimizer.step()

    first = torch.nn.Parameter(torch.arange(4.0))
    optimizer = Lamb([first], lr=0.1)
    step(optimizer, first)
    tensors = {name: t.clone() for name, t in optimizer_tensors("lamb", optimizer).items()}
    assert set(tensors) == {"lamb.0.step", "lamb.0.exp_avg", "lamb.0.exp_avg_sq"}
    second = torch.nn.Parameter(first.detach().clone())
    other = Lamb([second], lr=0.1)
    load_optimizer_tensors("lamb", other, tensors)
    step(optimizer, first)
    step(other, second)
    assert torch.equal(first, second)
