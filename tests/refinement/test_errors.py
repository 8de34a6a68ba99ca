"""Bad input to refinement: the error names the argument, what came and what was expected."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import dtag_fast
from dtag_fast import Critic, Refiner, refine
from dtag_fast.refinement import BACKENDS

CRITIC = Critic(4, 2, hidden=(8,))
OBSERVATIONS, ACTIONS = torch.zeros(3, 4), torch.zeros(3, 2)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"steps": -1}, ValueError, "steps: expected 0 or more, got -1"),
        ({"steps": 1.5}, TypeError, "steps: expected an integer, got 1.5"),
        ({"step_size": -0.1}, ValueError, "step_size: expected a finite number of 0 or more"),
        ({"step_size": float("nan")}, ValueError, "step_size"),
        ({"step_size": "big"}, TypeError, "step_size: expected a number, got 'big'"),
        ({"optimizer": "lion"}, ValueError, "optimizer: expected one of sgd, momentum"),
        ({"ensemble": "max"}, ValueError, "ensemble: expected one of min, mean, lcb, got 'max'"),
        ({"select": "first"}, ValueError, "select: expected one of best, last, got 'first'"),
        ({"gradient": "sign"}, ValueError, "gradient: expected one of raw, unit, got 'sign'"),
        ({"lcb_k": -1.0}, ValueError, "lcb_k"),
        ({"max_distance": -1.0}, ValueError, "max_distance"),
        ({"bounds": 1.0}, TypeError, "bounds: expected None or a pair (low, high), got 1.0"),
        ({"bounds": (1.0, -1.0)}, ValueError, "bounds: expected low <= high"),
        ({"bounds": (float("nan"), 1.0)}, ValueError, "bounds: expected low"),
        (
            {"bounds": ([0.0] * 3, [1.0] * 3)},
            ValueError,
            "one number or 2, one an action dimension",
        ),
        ({"bounds": ([0.0] * 3, [1.0] * 2)}, ValueError, "bounds: low has 3 numbers, high has 2"),
        ({"bounds": ("a", "b")}, TypeError, "bounds: expected low to be a number"),
        (
            {"backend": "tpu"},
            ValueError,
            f"backend: expected one of auto, {', '.join(BACKENDS)}, got 'tpu'",
        ),
    ],
)
def test_options(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        refine(CRITIC, OBSERVATIONS, ACTIONS, **options)
    with pytest.raises(error, match=re.escape(message)):
        Refiner(CRITIC, **options)
    if "backend" not in options:
        with pytest.raises(error, match=re.escape(message)):
            dtag_fast.reference.refine(CRITIC, OBSERVATIONS, ACTIONS, **options)


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        (
            {"algorithm": "fly"},
            ValueError,
            "algorithm: expected one of auto, walk, dense, got 'fly'",
        ),
        (
            {"precision": "fp16"},
            ValueError,
            "precision: expected one of fp32, tf32, tf32x3, bf16, got 'fp16'",
        ),
        (
            {"precision": 16},
            ValueError,
            "precision: expected one of fp32, tf32, tf32x3, bf16, got 16",
        ),
        ({"threads": 0}, ValueError, "threads: expected None or 1 or more, got 0"),
        ({"threads": 1.5}, TypeError, "threads: expected None or an integer, got 1.5"),
    ],
)
def test_execution(words: dict[str, Any], error: type[Exception], message: str) -> None:
    for call in (
        lambda: refine(CRITIC, OBSERVATIONS, ACTIONS, **words),
        lambda: Refiner(CRITIC, **words),
    ):
        with pytest.raises(error, match=re.escape(message)):
            call()
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        dtag_fast.reference.refine(CRITIC, OBSERVATIONS, ACTIONS, **words)


@pytest.mark.parametrize(
    ("observations", "actions", "error", "message"),
    [
        ([[0.0] * 4], ACTIONS, TypeError, "observations: expected a torch tensor or numpy array"),
        (OBSERVATIONS, ACTIONS.numpy(), TypeError, "both torch tensors or both numpy arrays"),
        (OBSERVATIONS.long(), ACTIONS, TypeError, "observations: expected floating point"),
        (
            OBSERVATIONS.numpy(),
            np.zeros((3, 2), int),
            TypeError,
            "actions: expected floating point",
        ),
        (torch.zeros(3, 5), ACTIONS, ValueError, "observations: expected 4 numbers a row, got 5"),
        (OBSERVATIONS, torch.zeros(3, 3), ValueError, "actions: expected 2 numbers a row, got 3"),
        (OBSERVATIONS, torch.zeros(2, 2), ValueError, "actions: expected 3 rows"),
        (OBSERVATIONS, torch.zeros(3, 0, 2), ValueError, "at least one starting point"),
        (torch.zeros(4), ACTIONS, ValueError, "actions: expected [A] with observations [S]"),
        (torch.zeros(1, 3, 4), ACTIONS, ValueError, "observations: expected [B, S] or [S]"),
        (OBSERVATIONS, torch.zeros(2), ValueError, "actions: expected [B, A], [A] or [B, N, A]"),
        (OBSERVATIONS.to("meta"), ACTIONS, ValueError, "expected one device, got meta and cpu"),
        (OBSERVATIONS.to("meta"), ACTIONS.to("meta"), ValueError, "the critic's device cpu"),
    ],
)
def test_arrays(observations: Any, actions: Any, error: type[Exception], message: str) -> None:
    for call in (refine, dtag_fast.reference.refine):
        with pytest.raises(error, match=re.escape(message)):
            call(CRITIC, observations, actions)


class Bilinear(nn.Module):
    """Q = sum over the observation times (1 - squared length of the action), in shape [B]."""

    def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
        return observations.sum(dim=1) * (1 - actions.square().sum(dim=1))


def test_any_module_runs_on_the_reference() -> None:
    observations, actions = torch.rand(3, 4) + 0.1, torch.rand(3, 2)
    refiner = Refiner(Bilinear(), steps=200)
    assert refiner.backend == "reference"
    torch.testing.assert_close(refiner(observations, actions), torch.zeros(3, 2), atol=1e-3, rtol=0)


def test_a_named_backend_that_cannot_run_raises() -> None:
    with pytest.raises(RuntimeError, match=r"backend 'cpu' cannot be used here: .*"):
        Refiner(Bilinear(), backend="cpu")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ({"algorithm": "dense"}, "it has one algorithm, autograd; algorithm='dense' is"),
        ({"precision": "bf16"}, "it computes in float32, got precision='bf16'"),
        ({"precision": "tf32"}, "it computes in float32, got precision='tf32'"),
        ({"precision": "tf32x3"}, "it computes in float32, got precision='tf32x3'"),
        ({"threads": 2}, "its threads are torch's (torch.set_num_threads), got threads=2"),
    ],
)
def test_words_of_the_cpu_backend_are_never_dropped(words: dict[str, Any], reason: str) -> None:
    with pytest.raises(RuntimeError, match=f"'reference' cannot be .*{re.escape(reason)}"):
        Refiner(CRITIC, backend="reference", **words)
    with pytest.raises(RuntimeError) as caught:
        Refiner(Bilinear(), **words)
    assert str(caught.value).startswith("no backend can do this: cpu: ")
    assert f"; reference: {reason}" in str(caught.value)


def test_critics_that_are_no_critics() -> None:
    function: Any = lambda s, a: a.sum()  # noqa: E731
    with pytest.raises(TypeError, match=r"critic: expected a torch.nn.Module, got function"):
        refine(function, OBSERVATIONS, ACTIONS)

    class Wrong(nn.Module):
        def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
            return actions

    with pytest.raises(ValueError, match=r"critic: expected Q of shape \[E, 3\] or \[3\]"):
        refine(Wrong(), OBSERVATIONS, ACTIONS)
