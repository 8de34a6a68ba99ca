"""The dense kernel, the full network for blocks of points, on every instruction set."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import dtag_fast
from dtag_fast import Critic
from dtag_fast.refinement import cpu
from dtag_fast.refinement.parity import Standard, random_batch, random_critic

pytestmark = pytest.mark.skipif(
    cpu.unavailable_reason() is not None, reason=str(cpu.unavailable_reason())
)
ISAS = [] if cpu.unavailable_reason() else cpu._load().isas()
ACTIVATIONS = ("relu", "leaky_relu", "tanh", "gelu", "silu", "mish", "elu")
OPTIONS: dict[str, Any] = {"steps": 6, "step_size": 0.1}  # where a test does not say otherwise
BLOCK = 32  # csrc/simd/dense_layers.h: block_points

Results = dict[str, Tensor]


def select(isa: str) -> None:
    cpu._load().select_isa(isa)


@pytest.fixture(autouse=True)
def keep_isa() -> Iterator[None]:
    """Leave the selected instruction set as it was."""
    before = cpu._load().isa()
    yield
    select(before)


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> str:
    """Each instruction set of this machine, selected."""
    select(request.param)
    return str(request.param)


def refine(critic: Critic, observations: Tensor, actions: Tensor, **options: Any) -> Results:
    """All that the dense kernel writes, by name."""
    refined, info = dtag_fast.refine(
        critic,
        observations,
        actions,
        backend="cpu",
        algorithm="dense",
        threads=1,
        return_info=True,
        **OPTIONS | options,
    )
    fields = vars(info)
    assert fields.pop("algorithm") == "dense"
    return {"actions": refined, **fields}


def assert_same(ours: Results, theirs: Results) -> None:
    """Bit for bit; NaNs are the same."""
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=0, atol=0, equal_nan=True, msg=name)


def of_rows(results: Results, rows: Any) -> Results:
    return {name: value[rows] for name, value in results.items()}


def check_parity(
    critic: Critic, observations: Tensor, actions: Tensor, *, kinked: int, **options: Any
) -> None:
    """On every instruction set; at most `kinked` rows are near a kink or a tie."""
    checked = dtag_fast.Refiner(critic, backend="reference", **OPTIONS | options).options
    standard = Standard(critic, observations, actions, checked)
    for isa in ISAS:
        select(isa)
        parity = standard.measure(refine(critic, observations, actions, **options)["actions"])
        assert parity.holds, (isa, options, parity)
        assert parity.kinked <= kinked, (isa, options, parity)
        assert parity.rows == len(observations)


# Numbers


def test_activations_are_accurate(isa: str) -> None:
    # Q = act(s + a) at a = 0, and a step of size 1 from there leads to act'(s).
    ends = torch.tensor([0.0, 1e-30, 1e-6, 87.5, 88.5, 104.0, 200.0, 1e4, 1e19, 1e38])
    z = torch.cat([torch.linspace(-30, 30, 60001), torch.linspace(-1, 1, 4001), ends, -ends])
    layers = [(torch.ones(1, 2), torch.zeros(1)), (torch.ones(1, 1), torch.zeros(1))]
    for activation in ACTIVATIONS:
        critic = Critic.from_layers([layers], activation, action_dim=1)
        found = refine(
            critic,
            z.unsqueeze(1),
            torch.zeros(len(z), 1),
            steps=1,
            step_size=1.0,
            bounds=None,
            select="last",
        )
        exact = z.double().unsqueeze(1).requires_grad_()
        value = critic.double()(exact, torch.zeros_like(exact))[0]
        (slope,) = torch.autograd.grad(value.sum(), exact)
        # Of gelu the factor of z is this accurate, which goes from 0 to 1.
        scale = exact.squeeze(1).abs() if activation == "gelu" else value.abs()
        error = (found["q_initial"] - value).abs()
        assert (error <= 3e-7 * scale + 1e-35).all(), activation
        error = (found["actions"] - slope).abs()
        assert (error <= 1e-6).all(), activation


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_parity_of_activations(activation: str, layer_norm: bool) -> None:
    critic = random_critic(
        observation_dim=11,
        hidden=(40, 31, 17),
        activation=activation,
        layer_norm=layer_norm,
        negative_slope=0.2,
    )
    if layer_norm:
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for weight, bias in zip(critic.norm_weights, critic.norm_biases, strict=True):
                weight.uniform_(0.5, 1.5, generator=generator)
                bias.uniform_(-0.5, 0.5, generator=generator)
    check_parity(critic, *random_batch(critic, 37), step_size=0.2, kinked=15)


@pytest.mark.parametrize(
    ("observation_dim", "action_dim", "hidden", "heads", "rows", "steps"),
    [
        (11, 3, (), 2, 300, 10),
        (1, 1, (1,), 1, 17, 50),
        (17, 6, (1, 7), 2, 2, 10),
        (17, 6, (7, 64, 1), 5, 17, 10),
        (11, 3, (64,), 10, 300, 1),
        (376, 17, (100, 100), 2, 17, 10),
        (17, 6, (256, 256), 2, 0, 10),
        (17, 6, (256, 256), 2, 1, 50),
        (17, 6, (256, 256), 2, BLOCK + 1, 10),
        (11, 2, (300, 64, 100), 5, 2, 10),
        (17, 28, (512, 300), 1, 17, 1),
        (1, 6, (64, 64), 10, 2 * BLOCK + 1, 0),
        (3, 2, (16, 16), 2, 600, 10),
    ],
)
def test_parity_of_sizes(
    observation_dim: int,
    action_dim: int,
    hidden: tuple[int, ...],
    heads: int,
    rows: int,
    steps: int,
) -> None:
    critic = random_critic(
        observation_dim=observation_dim,
        action_dim=action_dim,
        hidden=hidden,
        heads=heads,
        gain=1.5,
    )
    batch = random_batch(critic, rows)
    check_parity(critic, *batch, steps=steps, step_size=0.05, kinked=rows // 2)


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "rmsprop", "adam"])
@pytest.mark.parametrize("ensemble", ["min", "mean", "lcb"])
def test_parity_of_options(ensemble: str, optimizer: str) -> None:
    critic = random_critic(heads=3, activation="silu")
    for extra in (
        {"max_distance": 0.2, "gradient": "unit"},
        {"bounds": ([-1, -0.5, 0.0], [1, 0.5, 0.25]), "select": "last"},
        {"bounds": None, "steps": 25},
    ):
        arguments: dict[str, Any] = {"ensemble": ensemble, "optimizer": optimizer} | extra
        check_parity(critic, *random_batch(critic, 5, 4), step_size=0.03, kinked=2, **arguments)


def test_weights_in_bfloat16_give_the_numbers_of_the_same_weights_in_float32(isa: str) -> None:
    critic = random_critic(hidden=(40, 33, 20), layer_norm=True, activation="mish")
    batch = random_batch(critic, 21, 2)
    low = refine(critic, *batch, precision="bf16")
    full = refine(critic, *batch)
    with torch.no_grad():
        for weight in critic.weights[1:-1]:  # between hidden layers
            weight.copy_(weight.bfloat16())
    assert_same(refine(critic, *batch), low)
    assert not torch.equal(full["q"], low["q"])


# Rows


def test_every_number_of_the_result_is_written(isa: str) -> None:
    critic = random_critic()
    results = refine(critic, *random_batch(critic, 17, 3), steps=4)
    assert (results["flips"] == 0).all()
    assert (results["dense_steps"] == 3 * 4).all()
    assert all(value.isfinite().all() for value in results.values())
    assert (results["q"] > results["q_initial"]).any()


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"hidden": ()},
        {"heads": 5},
        {"layer_norm": True},
        {"layer_norm": True, "activation": "tanh", "hidden": (70, 300, 20)},
    ],
)
def test_a_row_does_not_depend_on_its_batch(isa: str, arguments: dict[str, Any]) -> None:
    critic = random_critic(1, observation_dim=9, **arguments)
    for starts, ensemble in ((1, "min"), (3, "lcb"), (BLOCK + 3, "mean")):
        options: dict[str, Any] = {"ensemble": ensemble, "optimizer": "adam", "steps": 3}
        observations, actions = random_batch(critic, 2 * BLOCK + 5, starts)
        whole = refine(critic, observations, actions, **options)
        order = torch.randperm(len(observations), generator=torch.Generator().manual_seed(0))
        shuffled = refine(critic, observations[order], actions[order], **options)
        assert_same(shuffled, of_rows(whole, order))
        for rows in (*range(1, 16), BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 1):
            some = slice(2, 2 + rows)
            part = refine(critic, observations[some], actions[some], **options)
            assert_same(part, of_rows(whole, some))


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("starts", [1, 3, BLOCK + 3])
def test_numbers_that_are_not_finite_stay_in_their_row(
    isa: str, starts: int, activation: str
) -> None:
    critic = random_critic(activation=activation)
    rows = BLOCK + 8
    observations, actions = random_batch(critic, rows, starts)
    clean = refine(critic, observations, actions)
    nan, inf = float("nan"), float("inf")
    observations[3, 1], observations[7, 0], observations[8] = nan, inf, -inf
    actions[11, 0, 2], actions[12, -1, 0], actions[13] = nan, inf, nan
    actions[rows - 1, starts // 2, 1] = nan
    bad = torch.zeros(rows, dtype=torch.bool)
    bad[[3, 7, 8, 11, 12, 13, rows - 1]] = True
    found = refine(critic, observations, actions)
    assert_same(of_rows(found, ~bad), of_rows(clean, ~bad))
    bad[12] = False  # clamped into the box, it is an ordinary action
    select("scalar")
    assert_same(of_rows(found, bad), of_rows(refine(critic, observations, actions), bad))


@pytest.mark.parametrize(("optimizer", "step_size"), [("sgd", 2e38), ("momentum", 3e37)])
def test_paths_that_overflow_on_their_way(isa: str, optimizer: str, step_size: float) -> None:
    # Without a box, by steps so long that the action or Q leaves float32 sooner or later.
    critic = random_critic(hidden=(20, 20))
    observations, actions = random_batch(critic, BLOCK + 8, 2)
    options: dict[str, Any] = {"bounds": None, "optimizer": optimizer, "steps": 12}
    options["step_size"] = step_size
    for choice in ("best", "last"):
        select(isa)
        found = refine(critic, observations, actions, select=choice, **options)
        select("scalar")
        expected = refine(critic, observations, actions, select=choice, **options)
        assert torch.equal(found["best_step"], expected["best_step"])
        assert torch.equal(found["start"], expected["start"])
        for name in ("actions", "q"):
            torch.testing.assert_close(
                found[name], expected[name], rtol=1e-4, atol=0.0, equal_nan=True
            )
    assert 0 < (expected["best_step"] < 12).sum() < len(observations)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_critic_with_weights_that_are_not_finite(isa: str, bad: float) -> None:
    critic = random_critic()
    with torch.no_grad():
        critic.weights[1][0, 3, 3] = bad
    batch = random_batch(critic, 9, 2)
    found = refine(critic, *batch)
    select("scalar")
    assert_same(found, refine(critic, *batch))
