"""The contract of refinement, points 1 to 10, for every way to refine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dtag_fast import Critic, Normalizer, refine
from dtag_fast.refinement.options import Ensemble, Optimizer, Select
from dtag_fast.refinement.parity import random_batch, random_critic

NAN = float("nan")
How = Callable[[Critic], dict[str, Any]]
# By matrix products of torch, which round by the batch's size, or of Triton's interpreter, which
# round by the row's place.
TORCHS = ("reference", "graph", "triton")


def q_min(critic: Critic, observations: Tensor, actions: Tensor) -> Tensor:
    with torch.no_grad():
        lowest: Tensor = critic(observations, actions).amin(dim=0)
    return lowest


def linear_critic(slope: list[float], bias: float = 0.0) -> Critic:
    """Q = slope . action + bias, whatever the observation [1]."""
    weight = torch.tensor([[0.0, *slope]])
    return Critic.from_layers([[(weight, torch.tensor([bias]))]], action_dim=len(slope))


# 1. Kinds, shapes, dtypes; inputs unmodified


@pytest.mark.parametrize("kind", ["torch", "numpy"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("single", [False, True])
def test_result_has_the_kind_shape_and_dtype_of_the_actions(
    how: How, kind: str, dtype: str, single: bool
) -> None:
    critic = random_critic()
    observations, actions = random_batch(critic, 4)
    expected = refine(critic, observations, actions, backend="reference", step_size=0.5)
    if single:
        observations, actions, expected = observations[0], actions[0], expected[0]
    given_actions: Any = actions.to(getattr(torch, dtype))
    given_observations: Any = observations
    if kind == "numpy":
        given_actions, given_observations = given_actions.numpy(), observations.numpy()
    result = refine(critic, given_observations, given_actions, **how(critic), step_size=0.5)
    assert type(result) is type(given_actions)
    assert result.dtype == given_actions.dtype
    assert result.shape == given_actions.shape
    tolerance = 2e-2 if dtype == "float16" else 1e-5
    np.testing.assert_allclose(np.asarray(result), expected.numpy(), atol=tolerance)


def test_inputs_are_not_modified_nor_returned(how: How) -> None:
    critic = random_critic()
    observations, actions = random_batch(critic)
    before = observations.clone(), actions.clone()
    for steps in (0, 3):
        result = refine(critic, observations, actions, **how(critic), steps=steps, step_size=1.0)
        result.fill_(7.0)
        assert torch.equal(observations, before[0])
        assert torch.equal(actions, before[1])
    assert all(parameter.grad is None for parameter in critic.parameters())


def test_non_contiguous_arrays(how: How) -> None:
    critic = random_critic()
    observations, actions = random_batch(critic, 6)
    expected = refine(critic, observations, actions, **how(critic), step_size=0.5)
    wide = torch.stack([observations, observations], dim=2)[:, :, 0]
    reverse = np.ascontiguousarray(actions.numpy()[::-1])[::-1]
    assert torch.equal(refine(critic, wide, actions, **how(critic), step_size=0.5), expected)
    result = refine(critic, observations.numpy(), reverse, **how(critic), step_size=0.5)
    np.testing.assert_array_equal(result, expected.numpy())


def test_works_inside_inference_mode_and_no_grad(how: How) -> None:
    critic = random_critic()
    observations, actions = random_batch(critic)
    expected = refine(critic, observations, actions, **how(critic), step_size=0.5)
    with torch.inference_mode():
        inside = refine(critic, observations + 0, actions + 0, **how(critic), step_size=0.5)
    assert torch.equal(inside, expected)
    tracked = refine(critic, observations, actions.clone().requires_grad_(), **how(critic))
    assert not tracked.requires_grad


# 2. Observations are raw, the critic carries its normaliser


def test_the_critic_normalises(how: How) -> None:
    plain = random_critic()
    generator = torch.Generator().manual_seed(3)
    mean = torch.randn(5, generator=generator) * 10
    std = torch.rand(5, generator=generator) * 4 + 0.5
    scaled = random_critic(normalizer=Normalizer(mean, std))
    observations, actions = random_batch(plain)
    expected = refine(plain, observations, actions, backend="reference", step_size=0.5)
    raw = observations * std + mean
    result = refine(scaled, raw, actions, **how(scaled), step_size=0.5)
    torch.testing.assert_close(result, expected, atol=2e-5, rtol=0)


# 3. Bounds and distance


def test_every_candidate_lies_in_the_box(how: How) -> None:
    critic = random_critic()
    observations, actions = random_batch(critic)
    low, high = [-0.5, -0.1, 0.2], np.array([0.5, 0.1, 0.9])
    for steps in (0, 1, 7):
        for select in ("best", "last"):
            result = refine(
                critic,
                observations,
                actions * 3,
                **how(critic),
                steps=steps,
                step_size=5.0,
                bounds=(low, high),
                select=select,
            )
            assert (result >= torch.tensor(low)).all()
            assert (result <= torch.tensor(high, dtype=torch.float32)).all()


def test_without_bounds_actions_leave_the_box(how: How) -> None:
    critic = linear_critic([1.0, -2.0])
    actions = torch.tensor([[0.5, 3.0]])
    result = refine(
        critic, torch.zeros(1, 1), actions, **how(critic), steps=4, step_size=1.0, bounds=None
    )
    torch.testing.assert_close(result, torch.tensor([[4.5, -5.0]]))


def test_max_distance_is_a_ball_around_the_projected_start(how: How) -> None:
    critic = random_critic()
    observations, actions = random_batch(critic, 50)
    start = (actions * 1.5).clamp(-1, 1)
    for radius in (0.0, 0.05, 0.4):
        result, info = refine(
            critic,
            observations,
            actions * 1.5,
            **how(critic),
            step_size=2.0,
            max_distance=radius,
            return_info=True,
        )
        distance = torch.linalg.vector_norm(result - start, dim=1)
        assert (distance <= radius * (1 + 1e-5) + 1e-7).all()
        torch.testing.assert_close(info.distance, distance, atol=1e-6, rtol=0)
        assert radius == 0.0 or (distance > 0.9 * radius).any()


# 4. Ensembles


def test_min_takes_the_gradient_of_the_first_minimiser(how: How) -> None:
    # Two heads that agree at a = 0 and climb in opposite directions.
    heads = [[(torch.tensor([[0.0, slope]]), torch.zeros(1))] for slope in (1.0, -1.0)]
    for order, expected in ((heads, 0.25), (heads[::-1], -0.25)):
        critic = Critic.from_layers(order, action_dim=1)
        result = refine(
            critic,
            torch.zeros(1, 1),
            torch.zeros(1, 1),
            **how(critic),
            steps=1,
            step_size=0.25,
            select="last",
        )
        assert result.item() == expected


@pytest.mark.parametrize("heads", [1, 2, 5])
@pytest.mark.parametrize("ensemble", ["min", "mean", "lcb"])
def test_info_q_is_the_ensembles(how: How, ensemble: Ensemble, heads: int) -> None:
    critic = random_critic(heads=heads)
    observations, actions = random_batch(critic)
    result, info = refine(
        critic,
        observations,
        actions,
        **how(critic),
        ensemble=ensemble,
        lcb_k=0.7,
        step_size=0.5,
        return_info=True,
    )
    for point, q in ((result, info.q), (actions, info.q_initial)):
        values = critic(observations, point).detach()
        expected = {
            "min": values.amin(dim=0),
            "mean": values.mean(dim=0),
            "lcb": values.mean(dim=0) - 0.7 * values.std(dim=0, correction=0),
        }[ensemble]
        torch.testing.assert_close(q, expected, atol=1e-5, rtol=1e-5)


def test_lcb_of_heads_that_agree_has_a_finite_gradient(how: How) -> None:
    head = [(torch.tensor([[0.0, 1.0]]), torch.zeros(1))]
    critic = Critic.from_layers([head, head], action_dim=1)
    result = refine(
        critic, torch.zeros(1, 1), torch.zeros(1, 1), **how(critic), ensemble="lcb", steps=2
    )
    torch.testing.assert_close(result, torch.tensor([[0.06]]))


# 5. Optimisers


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "rmsprop", "adam"])
def test_optimizers_are_torchs(how: How, optimizer: Optimizer) -> None:
    critic = random_critic(activation="tanh")
    observations, actions = random_batch(critic)
    parameters = actions.clone().requires_grad_()
    step_size, steps = 0.02, 12
    torch_optimizers: dict[str, torch.optim.Optimizer] = {
        "sgd": torch.optim.SGD([parameters], step_size, maximize=True),
        "momentum": torch.optim.SGD([parameters], step_size, 0.9, maximize=True),
        "rmsprop": torch.optim.RMSprop([parameters], step_size, maximize=True),
        "adam": torch.optim.Adam([parameters], step_size, maximize=True),
    }
    torch_optimizer = torch_optimizers[optimizer]
    for _ in range(steps):
        torch_optimizer.zero_grad()
        critic(observations, parameters).amin(dim=0).sum().backward()
        torch_optimizer.step()
    result = refine(
        critic,
        observations,
        actions,
        **how(critic),
        optimizer=optimizer,
        steps=steps,
        step_size=step_size,
        bounds=None,
        select="last",
    )
    torch.testing.assert_close(result, parameters.detach(), atol=2e-5, rtol=0)


def test_unit_gradient_moves_by_the_step_size(how: How) -> None:
    critic = linear_critic([3.0, -4.0])
    for scale in (1e-3, 1.0, 1e3):
        with torch.no_grad():
            critic.weights[0].copy_(torch.tensor([[[0.0, 3.0 * scale, -4.0 * scale]]]))
        result = refine(
            critic,
            torch.zeros(1, 1),
            torch.zeros(1, 2),
            **how(critic),
            steps=2,
            step_size=0.1,
            gradient="unit",
        )
        torch.testing.assert_close(result, torch.tensor([[0.12, -0.16]]))
    flat = linear_critic([0.0, 0.0])
    still = refine(flat, torch.zeros(1, 1), torch.ones(1, 2) / 2, **how(flat), gradient="unit")
    assert torch.equal(still, torch.ones(1, 2) / 2)


# 6. Selection


@pytest.mark.parametrize("step_size", [0.01, 0.5, 20.0])
def test_best_is_never_worse_than_the_policys_action(how: How, step_size: float) -> None:
    critic = random_critic()
    observations, actions = random_batch(critic, 64)
    result, info = refine(
        critic, observations, actions, **how(critic), step_size=step_size, return_info=True
    )
    assert (info.q >= info.q_initial).all()
    gain = q_min(critic, observations, result) - q_min(critic, observations, actions)
    assert (gain >= -1e-5).all()
    assert (gain > 0).any()


def test_the_earliest_of_equal_candidates_wins(how: How) -> None:
    flat = linear_critic([0.0, 0.0], bias=2.5)
    selections: tuple[tuple[Select, int], ...] = (("best", 0), ("last", 5))
    for select, step in selections:
        _, info = refine(
            flat,
            torch.zeros(2, 1),
            torch.zeros(2, 2),
            **how(flat),
            steps=5,
            select=select,
            return_info=True,
        )
        assert info.best_step.tolist() == [step, step]
        assert info.q.tolist() == [2.5, 2.5]


def test_a_too_long_step_keeps_the_policys_action(how: How) -> None:
    # Q = -abs(a): from 0.1 a step of 1 lands at -0.9, another one back at 0.1.
    layers = [
        (torch.tensor([[0.0, 1.0], [0.0, -1.0]]), torch.zeros(2)),
        (torch.tensor([[-1.0, -1.0]]), torch.zeros(1)),
    ]
    critic = Critic.from_layers([layers], action_dim=1)
    arguments: dict[str, Any] = {**how(critic), "step_size": 1.0, "steps": 1}
    start = torch.tensor([[0.1]])
    best, info = refine(critic, torch.zeros(1, 1), start, return_info=True, **arguments)
    assert torch.equal(best, start)
    assert info.best_step.item() == 0
    last = refine(critic, torch.zeros(1, 1), start, select="last", **arguments)
    torch.testing.assert_close(last, torch.tensor([[-0.9]]))


def test_no_steps_is_the_projected_action(how: How) -> None:
    critic = random_critic()
    observations, actions = random_batch(critic)
    result, info = refine(
        critic, observations, actions * 2, **how(critic), steps=0, return_info=True
    )
    assert torch.equal(result, (actions * 2).clamp(-1, 1))
    assert torch.equal(info.q, info.q_initial)
    assert not info.distance.any()


# 7. Rows by themselves, and what is not finite


def test_a_rows_result_does_not_depend_on_its_batch(how: How) -> None:
    critic = random_critic()
    observations, actions = random_batch(critic, 37)
    whole = refine(critic, observations, actions, **how(critic), step_size=0.5)
    order = torch.randperm(37, generator=torch.Generator().manual_seed(5))
    shuffled = refine(critic, observations[order], actions[order], **how(critic), step_size=0.5)
    alone = torch.cat(
        [
            refine(
                critic, observations[i : i + 1], actions[i : i + 1], **how(critic), step_size=0.5
            )
            for i in range(37)
        ]
    )
    if how(critic)["backend"] in TORCHS:
        torch.testing.assert_close(shuffled, whole[order], atol=1e-5, rtol=0)
        torch.testing.assert_close(alone, whole, atol=1e-5, rtol=0)
    else:
        assert torch.equal(shuffled, whole[order])
        assert torch.equal(alone, whole)


@pytest.mark.parametrize("poison", [NAN, float("inf"), -float("inf")])
@pytest.mark.parametrize("select", ["best", "last"])
def test_a_bad_row_changes_no_other(how: How, poison: float, select: Select) -> None:
    critic = random_critic()
    observations, actions = random_batch(critic, 9)
    arguments: dict[str, Any] = {**how(critic), "step_size": 0.5, "select": select}
    clean = refine(critic, observations, actions, **arguments)
    observations[4, 2] = poison
    result, info = refine(critic, observations, actions, return_info=True, **arguments)
    good = torch.arange(9) != 4
    torch.testing.assert_close(
        result[good], clean[good], atol=1e-5 if how(critic)["backend"] in TORCHS else 0, rtol=0
    )
    assert torch.equal(result[4], actions[4])
    assert info.best_step[4] == 0
    actions[6, 0] = NAN
    result = refine(critic, observations, actions, **arguments)
    assert result[6, 0].isnan()
    assert torch.equal(result[6, 1:], actions[6, 1:])


def test_a_row_stops_where_its_gradient_is_not_finite(how: How) -> None:
    # Q = 1e38 * (relu(4a - 1) + a): one float32 step takes a from 0 to 0.5, beyond the kink.
    # There the gradient overflows once it is scaled by the last layer.
    layers = [
        (torch.tensor([[0.0, 4.0], [0.0, 1.0]]), torch.tensor([-1.0, 0.0])),
        (torch.tensor([[3e38, 1.0]]), torch.zeros(1)),
    ]
    critic = Critic.from_layers([layers], action_dim=1)
    arguments: dict[str, Any] = {**how(critic), "step_size": 0.3, "return_info": True}
    observation, start = torch.zeros(1, 1), torch.tensor([[0.05]])
    best, info = refine(critic, observation, start, steps=6, **arguments)
    # Candidate 1 (0.35) has Q = 3e38 * 0.4, finite; its gradient 4 * 3e38 is not.
    torch.testing.assert_close(best, torch.tensor([[0.35]]))
    assert info.best_step.item() == 1
    last, info = refine(critic, observation, start, steps=6, select="last", **arguments)
    torch.testing.assert_close(last, torch.tensor([[0.35]]))
    assert info.best_step.item() == 1


def test_a_candidate_with_no_finite_q_is_never_selected(how: How) -> None:
    # Q = 1e37 * a + 3.3e38 overflows beyond a = 1.02; the gradient stays finite.
    critic = linear_critic([1e37], bias=3.3e38)
    arguments: dict[str, Any] = {**how(critic), "steps": 3, "step_size": 5e-38}
    observation, start = torch.zeros(1, 1), torch.tensor([[0.5]])
    best, info = refine(critic, observation, start, bounds=None, return_info=True, **arguments)
    torch.testing.assert_close(best, torch.tensor([[1.0]]))
    assert info.best_step.item() == 1
    last = refine(critic, observation, start, bounds=None, select="last", **arguments)
    torch.testing.assert_close(last, torch.tensor([[2.0]]))


# 8. Kinks


def test_the_derivative_of_relu_at_zero_is_zero(how: How) -> None:
    layers = [(torch.tensor([[0.0, 1.0]]), torch.zeros(1)), (torch.ones(1, 1), torch.zeros(1))]
    critic = Critic.from_layers([layers], "relu", action_dim=1)
    result = refine(critic, torch.zeros(1, 1), torch.zeros(1, 1), **how(critic), select="last")
    assert result.item() == 0.0


# 9. Info


def test_info_has_one_value_a_row(how: How) -> None:
    critic = random_critic()
    observations, actions = random_batch(critic, 8)
    _, info = refine(critic, observations, actions, **how(critic), return_info=True)
    for name, dtype in (
        ("q", torch.float32),
        ("q_initial", torch.float32),
        ("best_step", torch.int64),
        ("start", torch.int64),
        ("distance", torch.float32),
        ("flips", torch.int64),
        ("dense_steps", torch.int64),
    ):
        value = getattr(info, name)
        assert value.shape == (8,), name
        assert value.dtype == dtype, name
    backend = how(critic)["backend"]
    automatic = {"reference": ["autograd"], "graph": ["dense"]}.get(backend, ["walk", "dense"])
    asked = how(critic).get("algorithm")
    assert info.algorithm in ([asked] if asked else automatic)
    if info.algorithm != "walk":
        assert info.flips.tolist() == [0] * 8
        assert info.dense_steps.tolist() == [10] * 8
    _, info = refine(critic, observations[0], actions[0], **how(critic), return_info=True)
    assert info.q.shape == (1,)
