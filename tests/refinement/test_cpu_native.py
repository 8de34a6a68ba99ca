"""What is particular to the native backend; the contract itself is in test_contract.py."""

from __future__ import annotations

import copy
import threading
import time
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import dtag_fast
from dtag_fast import Critic, Normalizer, RefineInfo, refine
from dtag_fast.refinement import RefineOptions, cpu, reference
from dtag_fast.refinement.parity import measure_parity

pytestmark = pytest.mark.skipif(
    cpu.unavailable_reason() is not None, reason=str(cpu.unavailable_reason())
)

PLAIN = RefineOptions.check(
    steps=4,
    step_size=0.3,
    optimizer="sgd",
    bounds=(-1.0, 1.0),
    ensemble="min",
    lcb_k=1.0,
    select="best",
    max_distance=None,
    gradient="raw",
)


def random_critic(seed: int, **arguments: Any) -> Critic:
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {"observation_dim": 4, "action_dim": 2, "hidden": (9, 5)}
    critic = Critic(**(sizes | arguments))
    with torch.no_grad():
        for weight in critic.weights:
            weight.mul_(2.0)
        for weight, bias in zip(critic.norm_weights, critic.norm_biases, strict=True):
            weight.uniform_(0.5, 1.5)
            bias.uniform_(-0.5, 0.5)
    return critic


def random_batch(critic: Critic, rows: int, starts: int = 1) -> tuple[Tensor, Tensor]:
    """Observations [B, S] and actions [B, N, A]."""
    generator = torch.Generator().manual_seed(3)
    observations = torch.randn(rows, critic.observation_dim, generator=generator)
    actions = torch.rand(rows, starts, critic.action_dim, generator=generator) * 2 - 1
    return observations, actions


def assert_same(ours: tuple[Tensor, RefineInfo], theirs: tuple[Tensor, RefineInfo]) -> None:
    """Bit for bit."""
    assert torch.equal(ours[0], theirs[0])
    for name, value in vars(ours[1]).items():
        other = getattr(theirs[1], name)
        assert value == other if isinstance(value, str) else torch.equal(value, other), name


def rows_of(info: RefineInfo, rows: Tensor | slice) -> RefineInfo:
    taken: dict[str, Any] = {k: v if isinstance(v, str) else v[rows] for k, v in vars(info).items()}
    return RefineInfo(**taken)


# Packing


def test_a_packing_is_a_copy() -> None:
    critic = random_critic(0)
    batch = random_batch(critic, 5)
    packed = cpu.pack(critic)
    before = cpu.run(packed, *batch, PLAIN)
    with torch.no_grad():
        for parameter in critic.parameters():
            parameter.zero_()
        critic.normalizer.mean.fill_(7.0)
    del critic
    assert_same(cpu.run(packed, *batch, PLAIN), before)


def test_weights_in_any_memory_order_are_packed() -> None:
    critic = random_critic(0)
    batch = random_batch(critic, 5)
    expected = cpu.run(cpu.pack(critic), *batch, PLAIN)
    transposed = critic.weights[0].detach().transpose(1, 2).contiguous().transpose(1, 2)
    assert not transposed.is_contiguous()
    critic.weights[0] = nn.Parameter(transposed)
    assert_same(cpu.run(cpu.pack(critic), *batch, PLAIN), expected)


def test_the_module_refuses_layers_that_do_not_fit() -> None:
    def zeros(*shape: int) -> Any:
        return np.zeros(shape, np.float32)

    def pack(
        *layers: list[Any], features: int = 3, heads: int = 2, activation: str = "relu"
    ) -> None:
        cpu._load().PackedCritic(
            3, 2, heads, activation, 0.0, zeros(features), zeros(features), layers
        )

    hidden, last = [zeros(2, 4, 5), zeros(2, 4)], [zeros(2, 1, 4), zeros(2, 1)]
    norm = [zeros(2, 4), zeros(2, 4)]
    pack(hidden, last)
    pack([*hidden, *norm], last)
    for wrong in (
        [],
        [hidden],
        [hidden, hidden],
        [[zeros(2, 4, 6), zeros(2, 4)], last],
        [[zeros(2, 4, 5), zeros(2, 3)], last],
        [[zeros(4, 5), zeros(2, 4)], last],
        [[zeros(2, 0, 5), zeros(2, 0)], [zeros(2, 1, 0), zeros(2, 1)]],
        [[*hidden, norm[0]], last],
        [[*hidden, zeros(2, 4), zeros(2, 5)], last],
        [hidden, [*last, zeros(2, 1), zeros(2, 1)]],
        [hidden, [zeros(2, 2, 4), zeros(2, 2)]],
    ):
        with pytest.raises(ValueError, match="expected"):
            pack(*wrong)
    with pytest.raises(ValueError, match="not of the expected shape"):
        pack(hidden, last, features=2)
    with pytest.raises(ValueError, match="at least 1"):
        pack(hidden, last, heads=0)
    with pytest.raises(ValueError, match="unknown word 'selu'"):
        pack(hidden, last, activation="selu")
    with pytest.raises(TypeError):
        pack([zeros(2, 4, 5).astype(np.float64), zeros(2, 4)], last)


# What it refuses


class Doubled(Critic):
    def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
        return 2 * super().forward(observations, actions)


class Shifted(Normalizer):
    pass


def test_it_says_what_it_does_not_take() -> None:
    def reason(critic: nn.Module) -> str | None:
        return cpu.unsupported_reason(critic, PLAIN)

    assert reason(random_critic(0)) is None
    assert reason(nn.Linear(2, 2)) == "it takes a dtag_fast.Critic, got Linear"
    assert "Doubled has a forward of its own" in str(reason(Doubled(3, 2)))
    shifted = Shifted(torch.zeros(4), torch.ones(4))
    assert "got Shifted" in str(reason(random_critic(0, normalizer=shifted)))
    assert "weights.0 is torch.float64 on cpu" in str(reason(random_critic(0).double()))
    assert "weights.0 is torch.float32 on meta" in str(reason(random_critic(0).to("meta")))


@pytest.mark.parametrize(
    ("observations", "actions", "message"),
    [
        (torch.zeros(3, 5), torch.zeros(3, 1, 2), r"observations: .*\[3, 4\] .* got \[3, 5\]"),
        (torch.zeros(2, 4), torch.zeros(3, 1, 2), r"observations: .*\[3, 4\] .* got \[2, 4\]"),
        (torch.zeros(3, 4), torch.zeros(3, 1, 3), r"actions: .*\[3, 1, 2\] .* got \[3, 1, 3\]"),
        (torch.zeros(3, 4), torch.zeros(3, 0, 2), r"actions: .*\[3, 1, 2\] .* got \[3, 0, 2\]"),
        (torch.zeros(3, 4).double(), torch.zeros(3, 1, 2), "observations: .* torch.float64"),
        (torch.zeros(3, 4), torch.zeros(3, 1, 2, device="meta"), "actions: .* on meta"),
        (torch.zeros(4, 3).T, torch.zeros(3, 1, 2), "observations: expected a contiguous"),
        (torch._neg_view(torch.zeros(3, 4)), torch.zeros(3, 1, 2), "observations: expected a con"),
        (torch.zeros(3, 4), torch._efficientzerotensor((3, 1, 2)), "actions: .* with memory"),
    ],
)
def test_arrays_are_checked_before_their_addresses_are_passed(
    observations: Tensor, actions: Tensor, message: str
) -> None:
    packed = cpu.pack(random_critic(0))
    with pytest.raises(ValueError, match=message):
        cpu.run(packed, observations, actions, PLAIN)


def test_the_module_refuses_a_box_of_another_size() -> None:
    critic = random_critic(0)
    options = RefineOptions.check(**(vars_of(PLAIN) | {"bounds": ([-1.0] * 3, [1.0] * 3)}))
    with pytest.raises(ValueError, match="another size"):
        cpu.run(cpu.pack(critic), *random_batch(critic, 1), options)


def vars_of(options: RefineOptions) -> dict[str, Any]:
    values = dict(vars(options))
    values["bounds"] = (values.pop("low"), values.pop("high"))
    return values


# Numbers


def test_a_normaliser_far_from_zero_keeps_its_digits() -> None:
    # (s - mean) / std = +-1, but W s / std is near 1e5: folding would leave two digits of it.
    normalizer = Normalizer(torch.full((4,), 1000.0), torch.full((4,), 0.01))
    critic = random_critic(0, normalizer=normalizer)
    observations, actions = random_batch(critic, 40)
    observations = 1000.0 + 0.01 * observations
    parity = measure_parity(critic, observations, actions[:, 0], backend="cpu")
    assert parity.holds, parity


def test_a_row_does_not_depend_on_its_batch() -> None:
    for arguments in ({}, {"activation": "mish", "layer_norm": True}, {"hidden": ()}):
        critic = random_critic(1, **arguments)
        packed = cpu.pack(critic)
        observations, actions = random_batch(critic, 33, 2)
        whole, info = cpu.run(packed, observations, actions, PLAIN)
        order = torch.randperm(33, generator=torch.Generator().manual_seed(0))
        other = random_critic(2, hidden=(300, 2))
        cpu.run(cpu.pack(other), *random_batch(other, 1), PLAIN)  # the thread's memory grows
        shuffled = cpu.run(packed, observations[order], actions[order], PLAIN)
        assert_same(shuffled, (whole[order], rows_of(info, order)))
        for row in range(33):
            alone = cpu.run(
                packed, observations[row : row + 1], actions[row : row + 1].contiguous(), PLAIN
            )
            own = slice(row, row + 1)
            assert_same(alone, (whole[own], rows_of(info, own)))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("ensemble", ["min", "mean", "lcb"])
def test_a_critic_with_weights_that_are_not_finite(bad: float, ensemble: str) -> None:
    # Zeros meet those weights: dead units, and a zero in the observation.
    for layer, index in ((0, (1, 2, 0)), (0, (1, 2, 5)), (1, (0, 3, 3)), (2, (1, 0, 1))):
        critic = random_critic(4)
        with torch.no_grad():
            critic.weights[layer][index] = bad
        observations, actions = random_batch(critic, 20)
        observations[::2, 0] = 0.0
        for select in ("best", "last"):
            options: dict[str, Any] = {
                "ensemble": ensemble,
                "select": select,
                "return_info": True,
            }
            ours, info = refine(critic, observations, actions[:, 0], backend="cpu", **options)
            expected, expected_info = dtag_fast.reference.refine(
                critic, observations, actions[:, 0], **options
            )
            torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)
            assert torch.equal(info.best_step, expected_info.best_step)
            assert torch.equal(info.q.isfinite(), expected_info.q.isfinite())


def test_large_and_tiny_arguments_of_the_activations() -> None:
    # Q = act(z) with z = action: value and slope against torch, where exp over- and underflows.
    z = torch.tensor([-200.0, -104, -88, -50, -20, -9, -1e-3, 0, 1e-6, 3, 9, 19, 21, 45, 89, 200])
    layers = [
        (torch.tensor([[0.0, 1.0]]), torch.zeros(1)),
        (torch.ones(1, 1), torch.zeros(1)),
    ]
    for activation in ("relu", "leaky_relu", "tanh", "gelu", "silu", "mish", "elu"):
        critic = Critic.from_layers([layers], activation, action_dim=1)
        exact = z.double().requires_grad_()
        value = Critic.from_layers([layers], activation, action_dim=1).double()(
            torch.zeros(len(z), 1, dtype=torch.float64), exact.unsqueeze(1)
        )
        (slope,) = torch.autograd.grad(value.sum(), exact)
        result, info = refine(
            critic,
            torch.zeros(len(z), 1),
            z.unsqueeze(1),
            steps=1,
            step_size=1.0,
            bounds=None,
            select="last",
            backend="cpu",
            return_info=True,
        )
        torch.testing.assert_close(info.q_initial.double(), value[0], rtol=1e-6, atol=1e-6)
        moved = result.squeeze(1).double() - z
        torch.testing.assert_close(moved, slope, rtol=1e-6, atol=2e-5)


def rounding_errors(
    critic: Critic, batch: tuple[Tensor, Tensor], arguments: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """Errors [B] against float64: of the backend, and the largest of many float32 references.

    The references have the critic's hidden units in other orders, so that they round otherwise.
    """
    options = dtag_fast.Refiner(critic, **arguments).options
    exact_critic = copy.deepcopy(critic).double()
    exact, _ = reference.run(exact_critic, batch[0].double(), batch[1].double(), options)

    def error(result: Tensor) -> Tensor:
        return (result.double() - exact).abs().amax(dim=1)

    reordered = [reference.run(reorder(critic, seed), *batch, options)[0] for seed in range(32)]
    theirs = torch.stack([error(result) for result in reordered]).amax(dim=0)
    return error(cpu.run(cpu.pack(critic), *batch, options)[0]), theirs


def reorder(critic: Critic, seed: int) -> Critic:
    """The same function, with its hidden units in another order."""
    generator = torch.Generator().manual_seed(seed)
    critic = copy.deepcopy(critic)
    for i, width in enumerate(critic.hidden):
        order = torch.randperm(width, generator=generator)
        vectors = [critic.weights[i], critic.biases[i]]
        if critic.layer_norm:
            vectors += [critic.norm_weights[i], critic.norm_biases[i]]
        for tensor in vectors:
            tensor.data = tensor.data[:, order]
        critic.weights[i + 1].data = critic.weights[i + 1].data[:, :, order]
    return critic


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    """A critic, the size of a batch and options, all at random."""
    action_dim = draw(st.integers(1, 9))
    layer_norm = draw(st.booleans())
    # LayerNorm over two or three units is nearly constant: its gradient is rounding in float32.
    width = st.integers(8 if layer_norm else 1, 40)
    low = draw(st.lists(st.floats(-1, -0.1), min_size=action_dim, max_size=action_dim))
    high = draw(st.lists(st.floats(0.1, 1), min_size=action_dim, max_size=action_dim))
    return {
        "critic": {
            "observation_dim": draw(st.integers(1, 20)),
            "action_dim": action_dim,
            "hidden": tuple(draw(st.lists(width, max_size=4))),
            "heads": draw(st.integers(1, 5)),
            "activation": draw(
                st.sampled_from(("relu", "leaky_relu", "tanh", "gelu", "silu", "mish", "elu"))
            ),
            "layer_norm": layer_norm,
            "negative_slope": draw(st.sampled_from((0.01, 0.5, -0.2))),
        },
        "seed": draw(st.integers(0, 999)),
        "rows": draw(st.integers(1, 9)),
        "starts": draw(st.integers(1, 3)),
        "options": {
            "steps": draw(st.integers(0, 12)),
            "step_size": draw(st.sampled_from((0.0, 0.01, 0.1))),
            "optimizer": draw(st.sampled_from(("sgd", "momentum", "rmsprop", "adam"))),
            "bounds": draw(st.sampled_from((None, (-1.0, 1.0), (low, high)))),
            "ensemble": draw(st.sampled_from(("min", "mean", "lcb"))),
            "lcb_k": draw(st.sampled_from((0.0, 0.5, 2.0))),
            "select": draw(st.sampled_from(("best", "last"))),
            "max_distance": draw(st.sampled_from((None, 0.0, 0.05, 1.0))),
            "gradient": draw(st.sampled_from(("raw", "unit"))),
        },
    }


@settings(max_examples=150, deadline=None, derandomize=True)
@given(cases())
def test_parity_with_random_critics_and_options(case: dict[str, Any]) -> None:
    critic = random_critic(case["seed"], **case["critic"])
    batch = random_batch(critic, case["rows"], case["starts"])
    parity = measure_parity(critic, *batch, backend="cpu", **case["options"])
    if not parity.holds:
        # Some of these problems amplify rounding without a kink: a unit gradient that is nearly 0,
        # say. Then no row may err more than twice the worst of PyTorch's own roundings of it.
        ours, theirs = rounding_errors(critic, batch, case["options"])
        assert (ours <= 2 * theirs + 2e-6).all(), (parity, ours, theirs)


# Threads


def test_other_python_threads_run_meanwhile() -> None:
    critic = random_critic(0, observation_dim=17, action_dim=6, hidden=(256, 256))
    packed = cpu.pack(critic)
    batch = random_batch(critic, 4096)
    options = RefineOptions.check(**(vars_of(PLAIN) | {"steps": 200}))
    worker = threading.Thread(target=cpu.run, args=(packed, *batch, options))
    worker.start()
    turns = 0  # would stay at one or two, if the refinement kept the interpreter
    while worker.is_alive():
        time.sleep(0.001)
        turns += 1
    assert turns > 10
