"""The triton backend's dense kernel, beyond the contract; what the backend takes and refuses."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import dtag_fast
from dtag_fast import Critic, Refiner, refine
from dtag_fast.refinement import triton
from dtag_fast.refinement.parity import Parity, Standard, random_batch, random_critic
from dtag_fast.refinement.triton_kernels import packed

pytestmark = pytest.mark.skipif(
    triton.unavailable_reason() is not None, reason=str(triton.unavailable_reason())
)
# On a GPU these run compiled, elsewhere by the interpreter.
DEVICE = "cpu" if triton.interpreted() else "cuda"


def on_triton(critic: Critic, *batch: Tensor, **options: Any) -> Any:
    critic = copy.deepcopy(critic).to(DEVICE)
    options = {"backend": "triton", "algorithm": "dense"} | options
    return refine(critic, *(x.to(DEVICE) for x in batch), **options)


def measure(critic: Critic, batch: tuple[Tensor, Tensor], **options: Any) -> Parity:
    checked = Refiner(critic, backend="reference", **options).options
    result = on_triton(critic, *batch, **options)
    return Standard(critic, *batch, checked).measure(result.cpu())


# Parity


@pytest.mark.parametrize(
    "activation", ["relu", "leaky_relu", "tanh", "gelu", "silu", "mish", "elu"]
)
def test_parity_of_activations(activation: str) -> None:
    critic = random_critic(hidden=(40, 31), activation=activation, negative_slope=0.2)
    parity = measure(critic, random_batch(critic, 40), step_size=0.2)
    assert parity.holds, parity
    assert parity.kinked <= 12, parity


@pytest.mark.parametrize("activation", ["tanh", "elu", "gelu", "mish"])
def test_activations_keep_their_digits_near_zero_and_far_from_it(activation: str) -> None:
    # Q = f(a) less f's share at the action: one head a unit, read off without a step.
    layers = [(torch.tensor([[0.0, 1.0]]), torch.zeros(1)), (torch.ones(1, 1), torch.zeros(1))]
    critic = Critic.from_layers([layers], activation, action_dim=1)
    sizes = torch.logspace(-20, 2, 45)
    actions = torch.cat([sizes, -sizes, torch.tensor([0.0])]).unsqueeze(1)
    observations = torch.zeros(len(actions), 1)
    _, info = on_triton(critic, observations, actions, steps=0, bounds=None, return_info=True)
    exact = copy.deepcopy(critic).double()(observations.double(), actions.double())[0]
    torch.testing.assert_close(info.q.cpu().double(), exact.detach(), rtol=1e-6, atol=3e-8)


@pytest.mark.parametrize("hidden", [(), (1,), (70,), (100, 3, 64), (8, 8, 8, 8, 8)])
@pytest.mark.parametrize(("observation_dim", "action_dim"), [(1, 1), (17, 6), (40, 28)])
def test_parity_of_shapes(hidden: tuple[int, ...], observation_dim: int, action_dim: int) -> None:
    critic = random_critic(observation_dim=observation_dim, action_dim=action_dim, hidden=hidden)
    parity = measure(critic, random_batch(critic, 17), step_size=0.1, steps=3)
    assert parity.holds, parity


def test_parity_of_wide_layers() -> None:
    critic = random_critic(observation_dim=17, action_dim=6, hidden=(1024, 300), heads=1)
    parity = measure(critic, random_batch(critic, 3), steps=2)
    assert parity.holds, parity


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "rmsprop", "adam"])
@pytest.mark.parametrize(("heads", "ensemble"), [(1, "min"), (3, "min"), (3, "mean"), (5, "lcb")])
def test_parity_of_options(optimizer: str, heads: int, ensemble: str) -> None:
    critic = random_critic(heads=heads, activation="elu")
    for extra in (
        {"max_distance": 0.2, "gradient": "unit"},
        {"bounds": ([-1, -0.5, 0.0], [1, 0.5, 0.25]), "select": "last"},
    ):
        options: dict[str, Any] = {"ensemble": ensemble, "optimizer": optimizer} | extra
        parity = measure(critic, random_batch(critic, 21), step_size=0.03, steps=5, **options)
        assert parity.holds, (options, parity)
        assert parity.kinked < 21, (options, parity)


@pytest.mark.parametrize("shape", [(0,), (1,), (150,), (0, 3), (5, 3)])
def test_parity_of_batches(shape: tuple[int, ...]) -> None:
    # 150 rows are more than a program takes at a time.
    critic = random_critic()
    parity = measure(critic, random_batch(critic, *shape), step_size=0.1, steps=3)
    assert parity.rows == shape[0]
    assert parity.holds, parity


def test_a_rows_result_does_not_depend_on_its_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    # As many rows as a program takes compiled; numpy multiplies so few without regard to place.
    monkeypatch.setattr(packed, "tile_rows", lambda precision: 4)
    critic = random_critic(heads=1)
    observations, actions = random_batch(critic, 9)
    options: dict[str, Any] = {"step_size": 0.5, "steps": 3}
    whole = on_triton(critic, observations, actions, **options)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(5))
    assert torch.equal(
        on_triton(critic, observations[order], actions[order], **options), whole[order]
    )
    observations[4, 2] = float("nan")
    alone = on_triton(critic, observations[5:6], actions[5:6], **options)
    assert torch.equal(alone, whole[5:6])
    beside = on_triton(critic, observations, actions, **options)
    good = torch.arange(9) != 4
    assert torch.equal(beside[good], whole[good])


def test_what_info_counts_is_that_of_all_starting_points() -> None:
    critic = random_critic(activation="tanh")
    _, info = on_triton(critic, *random_batch(critic, 4, 3), steps=2, return_info=True)
    assert info.algorithm == "dense"
    assert info.flips.tolist() == [0] * 4
    assert info.dense_steps.tolist() == [6] * 4


# Precision


def value(critic: Critic, observations: Tensor, actions: Tensor) -> Tensor:
    exact = copy.deepcopy(critic).double()
    with torch.no_grad():
        lowest: Tensor = exact(observations.double(), actions.cpu().double()).amin(dim=0)
    return lowest


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_lower_precisions_choose_actions_worth_as_much(precision: str) -> None:
    critic = random_critic(hidden=(64, 64))
    observations, actions = random_batch(critic, 100)
    options: dict[str, Any] = {"steps": 5, "step_size": 0.2}
    initial = value(critic, observations, actions)
    fp32 = on_triton(critic, observations, actions, **options)
    low = on_triton(critic, observations, actions, **options, precision=precision)
    gain = value(critic, observations, fp32) - initial
    assert gain.mean() > 0.1
    lost = value(critic, observations, fp32) - value(critic, observations, low)
    assert lost.mean() <= 0.02 * gain.mean()
    if precision == "bf16":
        assert not torch.equal(low, fp32)


# What it does not take


@pytest.mark.parametrize(
    ("arguments", "words", "reason"),
    [
        ({"layer_norm": True}, {}, "it takes no LayerNorm"),
        ({"hidden": (8, 1025)}, {}, "hidden layers of up to 1024 units, got 1025"),
        ({}, {"threads": 2}, "got threads=2"),
        ({"activation": "tanh"}, {"algorithm": "walk"}, "algorithm='walk' cannot take this critic"),
    ],
)
def test_refusals(arguments: dict[str, Any], words: dict[str, Any], reason: str) -> None:
    critic = random_critic(**arguments).to(DEVICE)
    with pytest.raises(RuntimeError, match=f"'triton' cannot be used here: .*{reason}"):
        Refiner(critic, backend="triton", **words)


def test_a_critic_elsewhere_is_refused() -> None:
    with pytest.raises(RuntimeError, match=r"the critic's weights\.0 is torch\.float32 on meta"):
        Refiner(random_critic().to("meta"), backend="triton")
    with pytest.raises(RuntimeError, match=r"the critic's weights\.0 is torch\.float64"):
        Refiner(random_critic().double().to(DEVICE), backend="triton")


def test_without_a_gpu_and_the_interpreter_the_reason_says_so() -> None:
    code = "from dtag_fast.refinement import triton; print(triton.unavailable_reason())"
    package = str(Path(dtag_fast.__file__).parents[1])
    result = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ
        | {"TRITON_INTERPRET": "0", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": package},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.stdout.strip() == (
        "there is no CUDA device, and TRITON_INTERPRET=1 was not set before triton was imported"
    ), result.stderr
