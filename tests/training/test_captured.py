"""The captured update. Only what needs no GPU runs without one."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from dtag_fast.data.trajectories import Trajectories
from dtag_fast.training.captured import prepare_adam, unchanged
from dtag_fast.training.config import CriticConfig
from dtag_fast.training.critic import load_critic, train_critic
from dtag_fast.training.iql import CriticLearner

gpu = pytest.mark.gpu
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def test_a_warm_up_changes_nothing() -> None:
    weights = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.Adam([weights], 0.1)
    prepare_adam(optimizer)
    assert optimizer.param_groups[0]["capturable"]
    state = [weights, *optimizer.state[weights].values()]
    before = [tensor.detach().clone() for tensor in state]
    with unchanged(state), torch.no_grad():
        for tensor in state:
            tensor.add_(1.0)
        assert not torch.equal(state[0], before[0])
    assert all(torch.equal(x, y) for x, y in zip(state, before, strict=True))
    with pytest.raises(RuntimeError, match="in between"), unchanged(state):  # noqa: PT012
        weights.data.zero_()
        raise RuntimeError("in between")
    assert torch.equal(weights, torch.ones(3))


def test_a_critic_on_the_cpu_is_not_captured(toy_data: Trajectories) -> None:
    config = CriticConfig(hidden=(8,), batch_size=4, device="cpu", backend="torch")
    assert CriticLearner(toy_data, config, torch.device("cpu")).captured is None


@gpu
@needs_gpu
@pytest.mark.parametrize("order", ["value_first", "joint"])
def test_a_captured_critic_trains_as_an_eager_one(toy_data: Trajectories, order: str) -> None:
    config = CriticConfig(
        hidden=(64, 64),
        batch_size=32,
        reward_scaling="none",
        update_order=order,  # type: ignore[arg-type]
    )
    device = torch.device("cuda", 0)
    curves = []
    for captured in (False, True):
        torch.manual_seed(0)
        learner = CriticLearner(toy_data, config, device)
        assert learner.captured is not None
        if not captured:
            learner.captured = None
        curves.append(torch.stack([learner.update(step) for step in range(1, 51)]).cpu())
    torch.testing.assert_close(curves[1], curves[0], rtol=1e-3, atol=1e-4)


@gpu
@needs_gpu
def test_a_captured_run_resumes(toy_data: Trajectories, tmp_path: Path) -> None:
    config = CriticConfig(
        hidden=(64, 64), batch_size=32, steps=40, device="cuda", progress=False, log_every=5
    )
    train_critic(toy_data, config, tmp_path / "whole")
    train_critic(toy_data, dataclasses.replace(config, steps=17), tmp_path / "parts")
    train_critic(toy_data, config, tmp_path / "parts", resume=True)
    whole, parts = (load_critic(tmp_path / name)[0] for name in ("whole", "parts"))
    for p, q in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)
