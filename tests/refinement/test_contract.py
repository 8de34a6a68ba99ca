"""The contract of refinement, point by point, for every backend."""

from __future__ import annotations

import gc
import threading
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import dtag_fast
from dtag_fast import Critic, Normalizer, Refiner, refine
from dtag_fast.refinement.parity import measure_parity

NAN = float("nan")


def make_critic(seed: int = 0, **arguments: Any) -> Critic:
    """A random critic; steeper than a fresh one, so that a step moves an action."""
    torch.manual_seed(seed)
    arguments = {"observation_dim": 5, "action_dim": 3, "hidden": (33, 20)} | arguments
    critic = Critic(**arguments)
    with torch.no_grad():
        for weight in critic.weights:
            weight.mul_(2.0)
    return critic


def make_batch(
    critic: Critic, batch: int = 17, *starts: int, seed: int = 1
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    observations = torch.randn(batch, critic.observation_dim, generator=generator)
    actions = torch.rand(batch, *starts, critic.action_dim, generator=generator) * 2 - 1
    return observations, actions


def q_min(critic: Critic, observations: Tensor, actions: Tensor) -> Tensor:
    with torch.no_grad():
        return critic(observations, actions).amin(dim=0)


def linear_critic(slope: list[float], bias: float = 0.0) -> Critic:
    """Q = slope . action + bias, whatever the observation [1]."""
    weight = torch.tensor([[0.0, *slope]])
    return Critic.from_layers([[(weight, torch.tensor([bias]))]], action_dim=len(slope))


# 1. Kinds, shapes, dtypes; inputs unmodified


@pytest.mark.parametrize("kind", ["torch", "numpy"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("single", [False, True])
def test_result_has_the_kind_shape_and_dtype_of_the_actions(
    backend: str, kind: str, dtype: str, single: bool
) -> None:
    critic = make_critic()
    observations, actions = make_batch(critic, 4)
    expected = refine(critic, observations, actions, backend="reference", step_size=0.5)
    if single:
        observations, actions, expected = observations[0], actions[0], expected[0]
    given_actions: Any = actions.to(getattr(torch, dtype))
    given_observations: Any = observations
    if kind == "numpy":
        given_actions, given_observations = given_actions.numpy(), observations.numpy()
    result = refine(critic, given_observations, given_actions, backend=backend, step_size=0.5)
    assert type(result) is type(given_actions)
    assert result.dtype == given_actions.dtype
    assert result.shape == given_actions.shape
    tolerance = 2e-2 if dtype == "float16" else 1e-5
    np.testing.assert_allclose(np.asarray(result), expected.numpy(), atol=tolerance)


def test_inputs_are_not_modified_nor_returned(backend: str) -> None:
    critic = make_critic()
    observations, actions = make_batch(critic)
    before = observations.clone(), actions.clone()
    for steps in (0, 3):
        result = refine(critic, observations, actions, backend=backend, steps=steps, step_size=1.0)
        result.fill_(7.0)
        assert torch.equal(observations, before[0])
        assert torch.equal(actions, before[1])
    assert all(parameter.grad is None for parameter in critic.parameters())


def test_non_contiguous_arrays(backend: str) -> None:
    critic = make_critic()
    observations, actions = make_batch(critic, 6)
    expected = refine(critic, observations, actions, backend=backend, step_size=0.5)
    wide = torch.stack([observations, observations], dim=2)[:, :, 0]
    reverse = np.ascontiguousarray(actions.numpy()[::-1])[::-1]
    assert torch.equal(refine(critic, wide, actions, backend=backend, step_size=0.5), expected)
    result = refine(critic, observations.numpy(), reverse, backend=backend, step_size=0.5)
    np.testing.assert_array_equal(result, expected.numpy())


def test_works_inside_inference_mode_and_no_grad(backend: str) -> None:
    critic = make_critic()
    observations, actions = make_batch(critic)
    expected = refine(critic, observations, actions, backend=backend, step_size=0.5)
    with torch.inference_mode():
        inside = refine(critic, observations + 0, actions + 0, backend=backend, step_size=0.5)
    assert torch.equal(inside, expected)
    tracked = refine(critic, observations, actions.clone().requires_grad_(), backend=backend)
    assert not tracked.requires_grad


# 2. Observations are raw, the critic carries its normaliser


def test_the_critic_normalises(backend: str) -> None:
    plain = make_critic()
    generator = torch.Generator().manual_seed(3)
    mean = torch.randn(5, generator=generator) * 10
    std = torch.rand(5, generator=generator) * 4 + 0.5
    scaled = make_critic(normalizer=Normalizer(mean, std))
    observations, actions = make_batch(plain)
    expected = refine(plain, observations, actions, backend="reference", step_size=0.5)
    raw = observations * std + mean
    result = refine(scaled, raw, actions, backend=backend, step_size=0.5)
    torch.testing.assert_close(result, expected, atol=2e-5, rtol=0)


# 3. Bounds and distance


def test_every_candidate_lies_in_the_box(backend: str) -> None:
    critic = make_critic()
    observations, actions = make_batch(critic)
    low, high = [-0.5, -0.1, 0.2], np.array([0.5, 0.1, 0.9])
    for steps in (0, 1, 7):
        for select in ("best", "last"):
            result = refine(
                critic,
                observations,
                actions * 3,
                backend=backend,
                steps=steps,
                step_size=5.0,
                bounds=(low, high),
                select=select,  # type: ignore[arg-type]
            )
            assert (result >= torch.tensor(low)).all()
            assert (result <= torch.tensor(high, dtype=torch.float32)).all()


def test_without_bounds_actions_leave_the_box(backend: str) -> None:
    critic = linear_critic([1.0, -2.0])
    actions = torch.tensor([[0.5, 3.0]])
    result = refine(
        critic, torch.zeros(1, 1), actions, backend=backend, steps=4, step_size=1.0, bounds=None
    )
    torch.testing.assert_close(result, torch.tensor([[4.5, -5.0]]))


def test_max_distance_is_a_ball_around_the_projected_start(backend: str) -> None:
    critic = make_critic()
    observations, actions = make_batch(critic, 50)
    start = (actions * 1.5).clamp(-1, 1)
    for radius in (0.0, 0.05, 0.4):
        result, info = refine(
            critic,
            observations,
            actions * 1.5,
            backend=backend,
            step_size=2.0,
            max_distance=radius,
            return_info=True,
        )
        distance = torch.linalg.vector_norm(result - start, dim=1)
        assert (distance <= radius * (1 + 1e-5) + 1e-7).all()
        torch.testing.assert_close(info.distance, distance, atol=1e-6, rtol=0)
        assert radius == 0.0 or (distance > 0.9 * radius).any()


# 4. Ensembles


def test_min_takes_the_gradient_of_the_first_minimiser(backend: str) -> None:
    # Two heads that agree at a = 0 and climb in opposite directions.
    heads = [[(torch.tensor([[0.0, slope]]), torch.zeros(1))] for slope in (1.0, -1.0)]
    for order, expected in ((heads, 0.25), (heads[::-1], -0.25)):
        critic = Critic.from_layers(order, action_dim=1)
        result = refine(
            critic,
            torch.zeros(1, 1),
            torch.zeros(1, 1),
            backend=backend,
            steps=1,
            step_size=0.25,
            select="last",
        )
        assert result.item() == expected


@pytest.mark.parametrize("heads", [1, 2, 5])
@pytest.mark.parametrize("ensemble", ["min", "mean", "lcb"])
def test_info_q_is_the_ensembles(backend: str, ensemble: str, heads: int) -> None:
    critic = make_critic(heads=heads)
    observations, actions = make_batch(critic)
    result, info = refine(
        critic,
        observations,
        actions,
        backend=backend,
        ensemble=ensemble,  # type: ignore[arg-type]
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


def test_lcb_of_heads_that_agree_has_a_finite_gradient(backend: str) -> None:
    head = [(torch.tensor([[0.0, 1.0]]), torch.zeros(1))]
    critic = Critic.from_layers([head, head], action_dim=1)
    result = refine(
        critic, torch.zeros(1, 1), torch.zeros(1, 1), backend=backend, ensemble="lcb", steps=2
    )
    torch.testing.assert_close(result, torch.tensor([[0.06]]))


# 5. Optimisers


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "rmsprop", "adam"])
def test_optimizers_are_torchs(backend: str, optimizer: str) -> None:
    critic = make_critic(activation="tanh")
    observations, actions = make_batch(critic)
    parameters = actions.clone().requires_grad_()
    step_size, steps = 0.02, 12
    torch_optimizer: torch.optim.Optimizer = {
        "sgd": lambda: torch.optim.SGD([parameters], step_size, maximize=True),
        "momentum": lambda: torch.optim.SGD([parameters], step_size, 0.9, maximize=True),
        "rmsprop": lambda: torch.optim.RMSprop([parameters], step_size, maximize=True),
        "adam": lambda: torch.optim.Adam([parameters], step_size, maximize=True),
    }[optimizer]()
    for _ in range(steps):
        torch_optimizer.zero_grad()
        critic(observations, parameters).amin(dim=0).sum().backward()
        torch_optimizer.step()
    result = refine(
        critic,
        observations,
        actions,
        backend=backend,
        optimizer=optimizer,  # type: ignore[arg-type]
        steps=steps,
        step_size=step_size,
        bounds=None,
        select="last",
    )
    torch.testing.assert_close(result, parameters.detach(), atol=2e-5, rtol=0)


def test_unit_gradient_moves_by_the_step_size(backend: str) -> None:
    critic = linear_critic([3.0, -4.0])
    for scale in (1e-3, 1.0, 1e3):
        with torch.no_grad():
            critic.weights[0].copy_(torch.tensor([[[0.0, 3.0 * scale, -4.0 * scale]]]))
        result = refine(
            critic,
            torch.zeros(1, 1),
            torch.zeros(1, 2),
            backend=backend,
            steps=2,
            step_size=0.1,
            gradient="unit",
        )
        torch.testing.assert_close(result, torch.tensor([[0.12, -0.16]]))
    flat = linear_critic([0.0, 0.0])
    still = refine(flat, torch.zeros(1, 1), torch.ones(1, 2) / 2, backend=backend, gradient="unit")
    assert torch.equal(still, torch.ones(1, 2) / 2)


# 6. Selection


@pytest.mark.parametrize("step_size", [0.01, 0.5, 20.0])
def test_best_is_never_worse_than_the_policys_action(backend: str, step_size: float) -> None:
    critic = make_critic()
    observations, actions = make_batch(critic, 64)
    result, info = refine(
        critic, observations, actions, backend=backend, step_size=step_size, return_info=True
    )
    assert (info.q >= info.q_initial).all()
    gain = q_min(critic, observations, result) - q_min(critic, observations, actions)
    assert (gain >= -1e-5).all()
    assert (gain > 0).any()


def test_the_earliest_of_equal_candidates_wins(backend: str) -> None:
    flat = linear_critic([0.0, 0.0], bias=2.5)
    for select, step in (("best", 0), ("last", 5)):
        _, info = refine(
            flat,
            torch.zeros(2, 1),
            torch.zeros(2, 2),
            backend=backend,
            steps=5,
            select=select,  # type: ignore[arg-type]
            return_info=True,
        )
        assert info.best_step.tolist() == [step, step]
        assert info.q.tolist() == [2.5, 2.5]


def test_a_too_long_step_keeps_the_policys_action(backend: str) -> None:
    # Q = -abs(a): from 0.1 a step of 1 lands at -0.9, another one back at 0.1.
    layers = [
        (torch.tensor([[0.0, 1.0], [0.0, -1.0]]), torch.zeros(2)),
        (torch.tensor([[-1.0, -1.0]]), torch.zeros(1)),
    ]
    critic = Critic.from_layers([layers], action_dim=1)
    arguments: dict[str, Any] = {"backend": backend, "step_size": 1.0, "steps": 1}
    start = torch.tensor([[0.1]])
    best, info = refine(critic, torch.zeros(1, 1), start, return_info=True, **arguments)
    assert torch.equal(best, start)
    assert info.best_step.item() == 0
    last = refine(critic, torch.zeros(1, 1), start, select="last", **arguments)
    torch.testing.assert_close(last, torch.tensor([[-0.9]]))


def test_no_steps_is_the_projected_action(backend: str) -> None:
    critic = make_critic()
    observations, actions = make_batch(critic)
    result, info = refine(
        critic, observations, actions * 2, backend=backend, steps=0, return_info=True
    )
    assert torch.equal(result, (actions * 2).clamp(-1, 1))
    assert torch.equal(info.q, info.q_initial)
    assert not info.distance.any()


# 7. Rows by themselves, and what is not finite


def test_a_rows_result_does_not_depend_on_its_batch(backend: str) -> None:
    critic = make_critic()
    observations, actions = make_batch(critic, 37)
    whole = refine(critic, observations, actions, backend=backend, step_size=0.5)
    order = torch.randperm(37, generator=torch.Generator().manual_seed(5))
    shuffled = refine(critic, observations[order], actions[order], backend=backend, step_size=0.5)
    alone = torch.cat(
        [
            refine(
                critic, observations[i : i + 1], actions[i : i + 1], backend=backend, step_size=0.5
            )
            for i in range(37)
        ]
    )
    if backend == "reference":  # torch's matrix products round by batch size
        torch.testing.assert_close(shuffled, whole[order], atol=1e-5, rtol=0)
        torch.testing.assert_close(alone, whole, atol=1e-5, rtol=0)
    else:
        assert torch.equal(shuffled, whole[order])
        assert torch.equal(alone, whole)


@pytest.mark.parametrize("poison", [NAN, float("inf"), -float("inf")])
@pytest.mark.parametrize("select", ["best", "last"])
def test_a_bad_row_changes_no_other(backend: str, poison: float, select: str) -> None:
    critic = make_critic()
    observations, actions = make_batch(critic, 9)
    arguments: dict[str, Any] = {"backend": backend, "step_size": 0.5, "select": select}
    clean = refine(critic, observations, actions, **arguments)
    observations[4, 2] = poison
    result, info = refine(critic, observations, actions, return_info=True, **arguments)
    good = torch.arange(9) != 4
    torch.testing.assert_close(
        result[good], clean[good], atol=1e-5 if backend == "reference" else 0, rtol=0
    )
    assert torch.equal(result[4], actions[4])
    assert info.best_step[4] == 0
    actions[6, 0] = NAN
    result = refine(critic, observations, actions, **arguments)
    assert result[6, 0].isnan()
    assert torch.equal(result[6, 1:], actions[6, 1:])


def test_a_row_stops_where_its_gradient_is_not_finite(backend: str) -> None:
    # Q = 1e38 * (relu(4a - 1) + a): one float32 step takes a from 0 to 0.5, beyond the kink.
    # There the gradient overflows once it is scaled by the last layer.
    layers = [
        (torch.tensor([[0.0, 4.0], [0.0, 1.0]]), torch.tensor([-1.0, 0.0])),
        (torch.tensor([[3e38, 1.0]]), torch.zeros(1)),
    ]
    critic = Critic.from_layers([layers], action_dim=1)
    arguments: dict[str, Any] = {"backend": backend, "step_size": 0.3, "return_info": True}
    observation, start = torch.zeros(1, 1), torch.tensor([[0.05]])
    best, info = refine(critic, observation, start, steps=6, **arguments)
    # Candidate 1 (0.35) has Q = 3e38 * 0.4, finite; its gradient 4 * 3e38 is not.
    torch.testing.assert_close(best, torch.tensor([[0.35]]))
    assert info.best_step.item() == 1
    last, info = refine(critic, observation, start, steps=6, select="last", **arguments)
    torch.testing.assert_close(last, torch.tensor([[0.35]]))
    assert info.best_step.item() == 1


def test_a_candidate_with_no_finite_q_is_never_selected(backend: str) -> None:
    # Q = 1e37 * a + 3.3e38 overflows beyond a = 1.02; the gradient stays finite.
    critic = linear_critic([1e37], bias=3.3e38)
    arguments: dict[str, Any] = {"backend": backend, "steps": 3, "step_size": 5e-38}
    observation, start = torch.zeros(1, 1), torch.tensor([[0.5]])
    best, info = refine(critic, observation, start, bounds=None, return_info=True, **arguments)
    torch.testing.assert_close(best, torch.tensor([[1.0]]))
    assert info.best_step.item() == 1
    last = refine(critic, observation, start, bounds=None, select="last", **arguments)
    torch.testing.assert_close(last, torch.tensor([[2.0]]))


# 8. Kinks


def test_the_derivative_of_relu_at_zero_is_zero(backend: str) -> None:
    layers = [(torch.tensor([[0.0, 1.0]]), torch.zeros(1)), (torch.ones(1, 1), torch.zeros(1))]
    critic = Critic.from_layers([layers], "relu", action_dim=1)
    result = refine(critic, torch.zeros(1, 1), torch.zeros(1, 1), backend=backend, select="last")
    assert result.item() == 0.0


# 9. Info


def test_info_has_one_value_a_row(backend: str) -> None:
    critic = make_critic()
    observations, actions = make_batch(critic, 8)
    _, info = refine(critic, observations, actions, backend=backend, return_info=True)
    for name, dtype in (
        ("q", torch.float32),
        ("q_initial", torch.float32),
        ("best_step", torch.int64),
        ("start", torch.int64),
        ("distance", torch.float32),
    ):
        value = getattr(info, name)
        assert value.shape == (8,), name
        assert value.dtype == dtype, name
    _, info = refine(critic, observations[0], actions[0], backend=backend, return_info=True)
    assert info.q.shape == (1,)


# 11. Several starting points


@pytest.mark.parametrize("select", ["best", "last"])
def test_starting_points_compete(backend: str, select: str) -> None:
    critic = make_critic()
    observations, actions = make_batch(critic, 6, 4)
    arguments: dict[str, Any] = {
        "backend": backend,
        "step_size": 0.5,
        "select": select,
        "return_info": True,
    }
    result, info = refine(critic, observations, actions, **arguments)
    assert result.shape == (6, 3)
    singles = [refine(critic, observations, actions[:, n], **arguments) for n in range(4)]
    q = torch.stack([single_info.q for _, single_info in singles])
    q_initial = torch.stack([single_info.q_initial for _, single_info in singles])
    assert torch.equal(info.start, q.argmax(dim=0))
    torch.testing.assert_close(info.q, q.amax(dim=0))
    torch.testing.assert_close(info.q_initial, q_initial.amax(dim=0))
    for row in range(6):
        torch.testing.assert_close(result[row], singles[int(info.start[row])][0][row])


def test_best_of_n(backend: str) -> None:
    critic = make_critic()
    observations, actions = make_batch(critic, 12, 5)
    result = refine(critic, observations, actions, backend=backend, steps=0)
    q = torch.stack([q_min(critic, observations, actions[:, n]) for n in range(5)])
    assert torch.equal(result, actions[torch.arange(12), q.argmax(dim=0)])
    actions[0, 2] = NAN
    result = refine(critic, observations, actions, backend=backend, steps=0)
    assert result.isfinite().all()


# 12. Changing weights


def test_changed_weights_are_noticed(backend: str) -> None:
    critic = make_critic()
    observations, actions = make_batch(critic)
    refiner = Refiner(critic, backend=backend, step_size=0.5)  # type: ignore[arg-type]

    def check() -> None:
        expected = dtag_fast.reference.refine(critic, observations, actions, step_size=0.5)
        assert not torch.equal(expected, previous[-1])
        previous.append(expected)
        torch.testing.assert_close(refiner(observations, actions), expected, atol=1e-5, rtol=0)
        result = refine(critic, observations, actions, backend=backend, step_size=0.5)
        torch.testing.assert_close(result, expected, atol=1e-5, rtol=0)

    previous = [actions]
    check()
    with torch.no_grad():
        critic.weights[0].mul_(-1.0)
    check()
    critic.load_state_dict(make_critic(7).state_dict())
    check()
    for fused in (False, True):
        optimizer = torch.optim.Adam(critic.parameters(), 0.1, fused=fused)
        critic(observations, actions).sum().backward()
        optimizer.step()
        check()
    with torch.no_grad():
        torch._foreach_lerp_(list(critic.parameters()), list(make_critic(8).parameters()), 0.5)
    check()
    critic.weights[1] = nn.Parameter(torch.randn_like(critic.weights[1]))
    check()
    critic.normalizer = Normalizer(torch.ones(5), torch.full((5,), 0.5))
    check()
    critic.weights[0].data.mul_(-1.0)
    refiner.refresh()
    check()


def test_packing_does_not_keep_a_critic_alive(backend: str) -> None:
    critic = make_critic()
    refine(critic, *make_batch(critic), backend=backend)
    alive = weakref.ref(critic)
    del critic
    gc.collect()
    assert alive() is None


def test_a_refiner_serves_many_threads(backend: str) -> None:
    critic = make_critic()
    observations, actions = make_batch(critic, 64)
    refiner = Refiner(critic, backend=backend, step_size=0.5)  # type: ignore[arg-type]
    expected = refiner(observations, actions)
    results: dict[int, Tensor] = {}

    def work(i: int) -> None:
        for _ in range(5):
            results[i] = refiner(observations[i::8], actions[i::8])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(8):
        torch.testing.assert_close(results[i], expected[i::8], atol=1e-5, rtol=0)


# Equality with the reference


@pytest.mark.parametrize(
    "activation", ["relu", "leaky_relu", "tanh", "gelu", "silu", "mish", "elu"]
)
@pytest.mark.parametrize("layer_norm", [False, True])
def test_parity_of_activations(backend: str, activation: str, layer_norm: bool) -> None:
    critic = make_critic(
        observation_dim=11,
        hidden=(40, 31, 17),
        activation=activation,
        layer_norm=layer_norm,
        negative_slope=0.2,
    )
    if layer_norm:
        with torch.no_grad():
            for weight, bias in zip(critic.norm_weights, critic.norm_biases, strict=True):
                weight.uniform_(0.5, 1.5)
                bias.uniform_(-0.5, 0.5)
    parity = measure_parity(critic, *make_batch(critic, 50), backend=backend, step_size=0.2)
    assert parity.holds, parity
    assert parity.kinked <= 15, parity


@pytest.mark.parametrize("hidden", [(), (1,), (7,), (256, 256), (100, 3, 64), (8, 8, 8, 8, 8)])
@pytest.mark.parametrize(("observation_dim", "action_dim"), [(1, 1), (17, 6), (376, 28)])
@pytest.mark.parametrize("batch", [0, 1, 17])
def test_parity_of_shapes(
    backend: str, hidden: tuple[int, ...], observation_dim: int, action_dim: int, batch: int
) -> None:
    critic = make_critic(observation_dim=observation_dim, action_dim=action_dim, hidden=hidden)
    parity = measure_parity(critic, *make_batch(critic, batch), backend=backend, step_size=0.1)
    assert parity.rows == batch
    assert parity.holds, parity


@pytest.mark.parametrize("heads", [1, 2, 5, 10])
@pytest.mark.parametrize("ensemble", ["min", "mean", "lcb"])
@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "rmsprop", "adam"])
def test_parity_of_options(backend: str, heads: int, ensemble: str, optimizer: str) -> None:
    critic = make_critic(heads=heads)
    for extra in (
        {},
        {"max_distance": 0.2, "gradient": "unit"},
        {"bounds": ([-1, -0.5, 0.0], [1, 0.5, 0.25]), "select": "last"},
        {"bounds": None, "steps": 25},
    ):
        arguments: dict[str, Any] = {"ensemble": ensemble, "optimizer": optimizer} | extra
        batch = make_batch(critic, 21)
        parity = measure_parity(critic, *batch, backend=backend, step_size=0.03, **arguments)
        assert parity.holds, (arguments, parity)
        assert parity.kinked < 21, (arguments, parity)
    parity = measure_parity(critic, *make_batch(critic, 5, 3), backend=backend, step_size=0.1)
    assert parity.holds, parity
