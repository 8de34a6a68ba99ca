"""The triton backend's walk. Batches are small: the interpreter takes a row at a time."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from dtag_fast import Critic, Refiner, refine
from dtag_fast.refinement import RefineInfo, triton
from dtag_fast.refinement.parity import Parity, Standard, random_batch, random_critic

pytestmark = pytest.mark.skipif(
    triton.unavailable_reason() is not None, reason=str(triton.unavailable_reason())
)
DEVICE = "cpu" if triton.interpreted() else "cuda"
NAN, INF = float("nan"), float("inf")


def walk(critic: Critic, *batch: Tensor, **given: Any) -> tuple[Tensor, RefineInfo]:
    critic = copy.deepcopy(critic).to(DEVICE)
    options: Any = {"backend": "triton", "algorithm": "walk", "return_info": True} | given
    result, info = refine(critic, *(x.to(DEVICE) for x in batch), **options)
    return result.cpu(), info


def measure(
    critic: Critic, batch: tuple[Tensor, Tensor], **options: Any
) -> tuple[Parity, RefineInfo]:
    checked = Refiner(critic, backend="reference", **options).options
    result, info = walk(critic, *batch, **options)
    assert info.algorithm == "walk"
    return Standard(critic, *batch, checked).measure(result), info


# Parity


@pytest.mark.parametrize(
    "arguments",
    [
        {"heads": 1},
        {"heads": 3, "activation": "leaky_relu", "negative_slope": 0.2},
        {"hidden": (40,), "heads": 2},
        {"hidden": (7, 90)},
        {"observation_dim": 40, "action_dim": 28},
        {"observation_dim": 1, "action_dim": 1, "hidden": (1, 1)},
    ],
)
def test_parity_of_critics(arguments: dict[str, Any]) -> None:
    critic = random_critic(**arguments)
    parity, _ = measure(critic, random_batch(critic, 6), step_size=0.3, steps=4)
    assert parity.holds, parity
    assert parity.kinked < 6, parity


@pytest.mark.parametrize(
    "options",
    [
        {"ensemble": "mean", "optimizer": "momentum"},
        {"ensemble": "lcb", "optimizer": "adam", "select": "last"},
        {"optimizer": "rmsprop", "max_distance": 0.2, "gradient": "unit"},
        {"bounds": ([-1, -0.5, 0.0], [1, 0.5, 0.25])},
        {"bounds": None, "steps": 12},
        {"steps": 0},
    ],
)
def test_parity_of_options(options: dict[str, Any]) -> None:
    critic = random_critic(heads=3)
    arguments: dict[str, Any] = {"steps": 4, "step_size": 0.1} | options
    parity, _ = measure(critic, random_batch(critic, 6), **arguments)
    assert parity.holds, parity
    assert parity.kinked < 6, parity


@pytest.mark.parametrize("shape", [(0,), (1,), (0, 2), (3, 2)])
def test_parity_of_batches(shape: tuple[int, ...]) -> None:
    critic = random_critic()
    parity, info = measure(critic, random_batch(critic, *shape), step_size=0.3, steps=3)
    assert parity.rows == shape[0]
    assert parity.holds, parity
    assert info.dense_steps.tolist() == [0] * shape[0]


# Flips


def test_flips_are_the_first_layers_changes_of_sign() -> None:
    critic = random_critic(heads=3)
    observations, actions = random_batch(critic, 4)
    steps = 5
    options: dict[str, Any] = {"step_size": 0.3, "select": "last"}
    _, info = walk(critic, observations, actions, steps=steps, **options)
    signs = []
    with torch.no_grad():
        for n in range(steps + 1):
            at = refine(critic, observations, actions, backend="reference", steps=n, **options)
            x = torch.cat([critic.normalizer(observations), at], dim=1).expand(3, -1, -1)
            z = torch.baddbmm(critic.biases[0].unsqueeze(1), x, critic.weights[0].mT)
            signs.append(z > 0)
    changes = sum((a != b).sum(dim=(0, 2)) for a, b in itertools.pairwise(signs))
    assert isinstance(changes, Tensor)
    assert changes.sum() > 10
    assert info.flips.tolist() == changes.tolist()


def test_many_flips_build_the_maps_anew() -> None:
    critic = random_critic(hidden=(60, 20))
    batch = random_batch(critic, 4)
    options: dict[str, Any] = {"step_size": 1.0, "gradient": "unit", "steps": 5, "bounds": None}
    parity, info = measure(critic, batch, **options)
    assert parity.holds, parity
    assert info.dense_steps.sum() > 0
    assert (info.dense_steps <= 5).all()


def test_corrections_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    # However many a step may do, after a quarter as many as there are units maps are built anew.
    monkeypatch.setattr(triton, "MOST_CORRECTIONS", 1000)
    critic = random_critic(hidden=(16, 10), heads=1, gain=4.0)
    batch = random_batch(critic, 2)
    options: dict[str, Any] = {
        "step_size": 0.5,
        "gradient": "unit",
        "optimizer": "momentum",
        "steps": 20,
    }
    parity, info = measure(critic, batch, **options)
    assert parity.holds, parity
    assert (info.flips > 16 / 4).all()
    assert (info.dense_steps > 0).all()
    assert (info.dense_steps <= info.flips // (1 + 16 // 4)).all()


def test_a_long_and_wild_walk_keeps_its_digits() -> None:
    critic = random_critic(4, hidden=(100, 10), action_dim=12, observation_dim=17)
    batch = random_batch(critic, 8)
    options: dict[str, Any] = {"step_size": 4.0, "steps": 40, "bounds": (-9.0, 9.0)}
    parity, info = measure(critic, batch, optimizer="adam", gradient="unit", **options)
    assert parity.holds, parity
    assert (info.flips > 50).all()


# The contract's points, where the walk goes a way of its own


@pytest.mark.parametrize("poison", [NAN, INF, -INF])
def test_a_bad_row_changes_no_other_and_no_row_depends_on_its_batch(poison: float) -> None:
    critic = random_critic()
    observations, actions = random_batch(critic, 5)
    options: dict[str, Any] = {"step_size": 0.5, "steps": 2}
    clean, _ = walk(critic, observations, actions, **options)
    observations[2, 1] = poison
    result, info = walk(critic, observations, actions, **options)
    good = torch.arange(5) != 2
    assert torch.equal(result[good], clean[good])
    assert torch.equal(result[2], actions[2])
    assert info.best_step[2] == 0
    alone, _ = walk(critic, observations[3:4], actions[3:4], **options)
    assert torch.equal(alone, clean[3:4])
    actions[1, 0] = NAN
    result, _ = walk(critic, observations, actions, **options)
    assert result[1, 0].isnan()
    assert torch.equal(result[1, 1:], actions[1, 1:])


def test_the_earliest_of_equal_candidates_wins_and_heads_are_tried_in_order() -> None:
    flat = [(torch.zeros(3, 2), torch.ones(3)), (torch.ones(1, 3), torch.zeros(1))]
    critic = Critic.from_layers([flat, flat], action_dim=1)
    _, info = walk(critic, torch.zeros(2, 1), torch.zeros(2, 1), steps=3)
    assert info.best_step.tolist() == [0, 0]
    assert info.q.tolist() == [3.0, 3.0]
    # Two heads that agree at a = 0 and climb in opposite directions.
    heads = [
        [(torch.tensor([[0.0, slope]]), torch.ones(1)), (torch.ones(1, 1), torch.zeros(1))]
        for slope in (1.0, -1.0)
    ]
    for order, expected in ((heads, 0.25), (heads[::-1], -0.25)):
        critic = Critic.from_layers(order, action_dim=1)
        at = torch.zeros(1, 1)
        result, _ = walk(critic, at, at, steps=1, step_size=0.25, select="last")
        assert result.item() == expected


def test_the_derivative_of_relu_at_zero_is_zero_in_both_layers() -> None:
    inner = [(torch.tensor([[0.0, 1.0]]), torch.zeros(1)), (torch.ones(1, 1), torch.ones(1))]
    outer = [(torch.tensor([[0.0, 1.0]]), torch.ones(1)), (torch.ones(1, 1), -torch.ones(1))]
    last = (torch.ones(1, 1), torch.zeros(1))
    for layers in ([*inner, last], [*outer, last]):
        critic = Critic.from_layers([layers], action_dim=1)
        result, _ = walk(critic, torch.zeros(1, 1), torch.zeros(1, 1), select="last", steps=1)
        assert result.item() == 0.0


def test_a_row_stops_where_its_gradient_is_not_finite() -> None:
    # Q = 1e30 relu(4e6 a - 1e6) + a at the second layer: beyond the kink the gradient overflows.
    layers = [
        (torch.tensor([[0.0, 4.0], [0.0, 1.0]]), torch.tensor([-1.0, 0.0])),
        (torch.tensor([[3e38, 1.0]]), torch.zeros(1)),
    ]
    critic = Critic.from_layers([layers], action_dim=1)
    with pytest.raises(ValueError, match=r"algorithm: cannot be 'walk' with this critic: .*large"):
        walk(critic, torch.zeros(1, 1), torch.tensor([[0.05]]))
    result, info = walk(
        critic, torch.zeros(1, 1), torch.tensor([[0.05]]), step_size=0.3, algorithm="auto"
    )
    assert info.algorithm == "dense"
    torch.testing.assert_close(result, torch.tensor([[0.35]]))


# Which algorithm


def test_weights_that_turn_infinite_are_not_walked() -> None:
    critic = random_critic().to(DEVICE)
    batch = [x.to(DEVICE) for x in random_batch(critic, 2)]
    walking = Refiner(critic, backend="triton", algorithm="walk", steps=1)
    automatic = Refiner(critic, backend="triton", steps=4, return_info=True)
    walking(*batch)
    assert automatic(*batch)[1].algorithm == "walk"
    with torch.no_grad():
        critic.weights[1][0, 0, 0] = INF
    with pytest.raises(ValueError, match=r"algorithm: cannot be 'walk' .* not all finite"):
        walking(*batch)
    assert automatic(*batch)[1].algorithm == "dense"


def test_auto_walks_where_that_is_less_work() -> None:
    for activation, action_dim, steps, expected in (
        ("relu", 3, 1, "walk"),
        ("relu", 5, 0, "dense"),
        ("relu", 28, 7, "walk"),
        ("relu", 28, 6, "dense"),
        ("leaky_relu", 3, 1, "walk"),
        ("leaky_relu", 3, 0, "dense"),
        ("leaky_relu", 28, 15, "walk"),
        ("leaky_relu", 28, 14, "dense"),
    ):
        critic = random_critic(action_dim=action_dim, activation=activation)
        batch = random_batch(critic, 1)
        _, info = walk(critic, *batch, steps=steps, algorithm="auto")
        assert info.algorithm == expected, (activation, action_dim, steps)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"activation": "tanh"}, "its activation is not piecewise linear"),
        ({"hidden": (8, 8, 8)}, "one or two hidden layers, got 3"),
        ({"hidden": ()}, "one or two hidden layers, got 0"),
        (
            {"heads": 10, "hidden": (256, 256), "action_dim": 12},
            "65536 numbers a row, and 32768 fit",
        ),
    ],
)
def test_a_walk_that_cannot_be_had_is_refused(arguments: dict[str, Any], reason: str) -> None:
    critic = random_critic(**arguments).to(DEVICE)
    with pytest.raises(RuntimeError, match=f"algorithm='walk' cannot take this critic: .*{reason}"):
        Refiner(critic, backend="triton", algorithm="walk")


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_lower_precisions_choose_actions_worth_as_much(precision: str) -> None:
    critic = random_critic()
    observations, actions = random_batch(critic, 8)
    result, _ = walk(critic, observations, actions, steps=3, step_size=0.3, precision=precision)
    plain = refine(critic, observations, actions, backend="reference", steps=3, step_size=0.3)
    with torch.no_grad():
        low, fp32, initial = (critic(observations, x).amin(0) for x in (result, plain, actions))
    gain = (fp32 - initial).mean()
    assert gain > 0.1
    assert (fp32 - low).mean() <= 0.02 * gain
    assert not torch.equal(result, plain)
