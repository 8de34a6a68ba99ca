"""The native IQL update against the one in torch, on every instruction set this machine runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dtag_fast import build_info, checkpoint
from dtag_fast.data.trajectories import Trajectories
from dtag_fast.refinement import Refiner, reference
from dtag_fast.training.config import CriticConfig
from dtag_fast.training.critic import train_critic
from dtag_fast.training.iql import CriticLearner

pytestmark = pytest.mark.skipif(
    build_info.native_missing_reason() is not None, reason="the native module is not built"
)

CPU = torch.device("cpu")


def isas() -> list[str]:
    if build_info.native_missing_reason() is not None:
        return []
    from dtag_fast import _native

    return [isa for isa in _native.isas() if isa != "scalar"]


@pytest.fixture(params=isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """One of the instruction sets, in use while the test runs."""
    from dtag_fast import _native

    before = _native.isa()
    _native.select_isa(request.param)
    yield request.param
    _native.select_isa(before)


def critic_config(**changes: Any) -> CriticConfig:
    settings: dict[str, Any] = {
        "hidden": (16, 16),
        "batch_size": 32,
        "reward_scaling": "none",
        "learning_rate": 1e-2,
        "polyak": 0.1,
        "device": "cpu",
        "progress": False,
        "normalize_observations": True,
        "log_every": 5,
        "checkpoint_every": 10,
    }
    return CriticConfig(**{**settings, **changes})


def make_learner(data: Trajectories, config: CriticConfig, backend: str) -> CriticLearner:
    torch.manual_seed(0)
    return CriticLearner(data, dataclasses.replace(config, backend=backend), CPU)  # type: ignore[arg-type]


def with_large_epsilon(learner: CriticLearner) -> CriticLearner:
    for optimizer in (learner.q_optimizer, learner.value_optimizer):
        optimizer.param_groups[0]["eps"] = 1e-2
    return learner


def all_tensors(learner: CriticLearner) -> dict[str, Tensor]:
    return {**learner.model.state_dict(), **learner.training_tensors()}


def updates_in_double(learner: CriticLearner, steps: int) -> dict[str, Tensor]:
    """All tensors after so many of the learner's updates, computed in float64."""
    for module in (learner.model, learner.target, learner.value):
        module.double()
    learner.rows = learner.rows.double()
    for step in range(1, steps + 1):
        learner.update(step)
    return all_tensors(learner)


# Odd sizes: no width, batch or input is a multiple of what a register or a panel holds.
CASES: dict[str, dict[str, Any]] = {
    "usual": {},
    "joint": {"update_order": "joint", "q_reduction": "mean"},
    "one layer": {"hidden": (33,), "batch_size": 1},
    "three layers": {"hidden": (40, 7, 65), "heads": 3, "batch_size": 33},
    "leaky": {"activation": "leaky_relu", "hidden": (1, 31), "heads": 1, "batch_size": 100},
    "ensemble": {"heads": 10, "hidden": (32, 64), "batch_size": 64, "expectile": 0.9},
}


@pytest.mark.parametrize("case", list(CASES))
def test_it_loses_no_more_than_torch_does(toy_data: Trajectories, isa: str, case: str) -> None:
    """Against float64; Adam with a large epsilon, or it makes a step out of mere rounding."""
    config = critic_config(**CASES[case])
    steps = 5
    exact = updates_in_double(with_large_epsilon(make_learner(toy_data, config, "torch")), steps)
    errors: dict[str, dict[str, float]] = {}
    for backend in ("torch", "native"):
        learner = with_large_epsilon(make_learner(toy_data, config, backend))
        assert (learner.native is not None) == (backend == "native")
        for step in range(1, steps + 1):
            learner.update(step)
        found = all_tensors(learner)
        assert found.keys() == exact.keys()
        errors[backend] = {
            name: float((found[name].double() - exact[name].double()).abs().max()) for name in exact
        }
    for name, error in errors["native"].items():
        assert error <= 2 * errors["torch"][name] + 1e-6, (name, error, errors["torch"][name])


def test_losses_are_those_of_torch(toy_data: Trajectories, isa: str) -> None:
    config = critic_config(heads=3, learning_rate=1e-3)
    curves = []
    for backend in ("torch", "native"):
        learner = make_learner(toy_data, config, backend)
        curves.append(torch.stack([learner.update(step) for step in range(1, 101)]))
    torch.testing.assert_close(curves[1], curves[0], rtol=1e-3, atol=1e-4)
    assert curves[0][-1, 0] < 0.7 * curves[0][0, 0]


def test_threads_change_no_bit(toy_data: Trajectories) -> None:
    config = critic_config(hidden=(64, 64), batch_size=150, initialization="default")
    found = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            learner = make_learner(toy_data, config, "native")
            losses = torch.stack([learner.update(step) for step in range(1, 21)])
            found.append({**all_tensors(learner), "losses": losses})
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert [name for name in other if not torch.equal(other[name], found[0][name])] == []


@pytest.mark.parametrize(("first", "second"), [("torch", "native"), ("native", "torch")])
def test_a_run_may_go_on_with_the_other_backend(
    toy_data: Trajectories, tmp_path: Path, first: Any, second: Any
) -> None:
    config = critic_config(steps=40, learning_rate=1e-3)
    train_critic(toy_data, dataclasses.replace(config, backend=first), tmp_path / "whole")
    begin = dataclasses.replace(config, backend=first, steps=20)
    train_critic(toy_data, begin, tmp_path / "parts")
    go_on = dataclasses.replace(config, backend=second)
    train_critic(toy_data, go_on, tmp_path / "parts", resume=True)
    tensors = [
        {
            **checkpoint.load_tensors(tmp_path / name),
            **checkpoint.load_tensors(tmp_path / name, file=checkpoint.TRAINING_FILE),
        }
        for name in ("whole", "parts")
    ]
    assert tensors[0].keys() == tensors[1].keys()
    for name, tensor in tensors[0].items():
        torch.testing.assert_close(tensors[1][name], tensor, rtol=1e-3, atol=1e-4)
    assert float(tensors[1]["q_optimizer.0.step"]) == 40


def test_a_loss_that_is_not_a_number_shows(toy_data: Trajectories, isa: str) -> None:
    learner = make_learner(toy_data, critic_config(), "native")
    with torch.no_grad():
        learner.target.biases[2][1] = torch.nan
    assert learner.update(1)[1].isnan()


def test_refinement_notices_the_step(toy_data: Trajectories) -> None:
    learner = make_learner(toy_data, critic_config(learning_rate=0.1), "native")
    refiner = Refiner(learner.model, backend="cpu", steps=3)
    observations, actions = torch.randn(6, 4), torch.zeros(6, 2)
    before = refiner(observations, actions)
    for step in range(1, 11):
        learner.update(step)
    after = refiner(observations, actions)
    assert not torch.equal(before, after)
    expected = reference.refine(learner.model, observations, actions, steps=3)
    torch.testing.assert_close(after, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation": "mish"}, "its activations are relu, leaky_relu, not mish"),
        ({"layer_norm": True}, "it has no layer_norm"),
        ({"autocast": True}, "it has no autocast"),
        ({"compile": True}, "it has no compile"),
        ({"hidden": ()}, "one hidden layer or more"),
    ],
)
def test_what_it_cannot_train(
    toy_data: Trajectories, changes: dict[str, Any], message: str
) -> None:
    config = critic_config(**changes)
    with pytest.raises(
        ValueError, match=f"backend: 'native' cannot train this critic: .*{message}"
    ):
        make_learner(toy_data, config, "native")
    if not config.compile:  # which takes its time
        learner = make_learner(toy_data, config, "auto")
        assert learner.native is None
        assert learner.update(1).isfinite().all()


def test_the_scalar_kernels_leave_it_to_torch(toy_data: Trajectories) -> None:
    from dtag_fast import _native

    before = _native.isa()
    _native.select_isa("scalar")
    try:
        assert make_learner(toy_data, critic_config(), "auto").native is None
        with pytest.raises(ValueError, match="the kernels of scalar do not train"):
            make_learner(toy_data, critic_config(), "native")
    finally:
        _native.select_isa(before)


def test_rows_of_other_kinds(toy_data: Trajectories) -> None:
    """Their copy has to live as long as the kernel reads it."""
    rows = np.arange(64)[::2]
    losses = []
    kinds: list[Any] = [rows, rows.astype(np.int32), np.ascontiguousarray(rows)]
    for own in kinds:
        learner = make_learner(toy_data, critic_config(), "native")
        assert learner.native is not None
        losses.append(learner.native.step(own))
    assert torch.equal(losses[0], losses[2])
    assert torch.equal(losses[1], losses[2])
