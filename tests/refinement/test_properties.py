"""What holds for any critic and any options, in every way to refine but the reference."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from dtag_fast import Critic, RefineInfo, refine
from dtag_fast.refinement.parity import random_batch, random_critic

How = Callable[[Critic], dict[str, Any]]

# The fixture `fast` selects a way once for all examples of a test: that is what is wanted.
examples = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@dataclass(frozen=True)
class Case:
    critic: Critic
    observations: Tensor  # [B, S]
    actions: Tensor  # [B, N, A]
    options: dict[str, Any]

    def __repr__(self) -> str:
        critic = self.critic.extra_repr()
        return f"Case({critic}, actions {list(self.actions.shape)}, {self.options})"

    def refine(self, how: How, **changes: Any) -> tuple[Tensor, RefineInfo]:
        """With other observations, actions, critic or options if given."""
        given: Any = vars(self) | {k: v for k, v in changes.items() if k in vars(self)}
        options = self.options | {k: v for k, v in changes.items() if k not in vars(self)}
        keywords: dict[str, Any] = how(given["critic"]) | options | {"return_info": True}
        result: tuple[Tensor, RefineInfo] = refine(
            given["critic"], given["observations"], given["actions"], **keywords
        )
        return result


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Mostly critics that can be walked."""
    action_dim = draw(st.integers(1, 9))
    layer_norm = draw(st.sampled_from((False, False, False, True)))
    # LayerNorm over two or three units is nearly constant: its gradient is rounding in float32.
    width = st.integers(8 if layer_norm else 1, 50)
    depth = draw(st.sampled_from((1, 1, 2, 2, 2, 2, 3, 0)))
    critic = random_critic(
        draw(st.integers(0, 999)),
        observation_dim=draw(st.integers(1, 20)),
        action_dim=action_dim,
        hidden=tuple(draw(width) for _ in range(depth)),
        heads=draw(st.integers(1, 4)),
        activation=draw(st.sampled_from(("relu", "relu", "relu", "leaky_relu", "tanh", "silu"))),
        layer_norm=layer_norm,
        negative_slope=draw(st.sampled_from((0.01, 0.5, -0.2))),
    )
    low = draw(st.lists(st.floats(-1, -0.125, width=32), min_size=action_dim, max_size=action_dim))
    high = draw(st.lists(st.floats(0.125, 1, width=32), min_size=action_dim, max_size=action_dim))
    options = {
        "steps": draw(st.integers(0, 12)),
        "step_size": draw(st.sampled_from((0.01, 0.03, 0.3, 3.0))),
        "optimizer": draw(st.sampled_from(("sgd", "sgd", "momentum", "rmsprop", "adam"))),
        "bounds": draw(st.sampled_from((None, (-1.0, 1.0), (low, high)))),
        "ensemble": draw(st.sampled_from(("min", "mean", "lcb"))),
        "select": draw(st.sampled_from(("best", "last"))),
        "max_distance": draw(st.sampled_from((None, 0.0, 0.05, 1.0))),
        "gradient": draw(st.sampled_from(("raw", "unit"))),
    }
    batch = random_batch(critic, draw(st.integers(1, 20)), draw(st.integers(1, 3)))
    return Case(critic, *batch, options)


def into_box(case: Case, actions: Tensor) -> Tensor:
    bounds = case.options["bounds"]
    if bounds is None:
        return actions
    low, high = (torch.tensor(bound, dtype=torch.float32) for bound in bounds)
    return torch.clamp(actions, low, high)


def value(case: Case, actions: Tensor) -> Tensor:
    """The ensemble's Q [B] in float64."""
    with torch.no_grad():
        exact = copy.deepcopy(case.critic).double()
        q: Tensor = exact(case.observations.double(), actions.double())
    mean = q.mean(dim=0)
    return {
        "min": q.amin(dim=0),
        "mean": mean,
        "lcb": mean - q.std(dim=0, correction=0),
    }[case.options["ensemble"]]


def assert_same(ours: tuple[Tensor, RefineInfo], theirs: tuple[Tensor, RefineInfo]) -> None:
    """Bit for bit, but for the algorithm's name; rows of NaN are the same."""
    torch.testing.assert_close(ours[0], theirs[0], rtol=0, atol=0, equal_nan=True)
    for name, values in vars(ours[1]).items():
        if isinstance(values, Tensor):
            others = getattr(theirs[1], name)
            torch.testing.assert_close(values, others, rtol=0, atol=0, equal_nan=True, msg=name)


def rows(found: tuple[Tensor, RefineInfo], which: Any) -> tuple[Tensor, RefineInfo]:
    info: dict[str, Any] = {
        name: values[which] if isinstance(values, Tensor) else values
        for name, values in vars(found[1]).items()
    }
    return found[0][which], RefineInfo(**info)


@examples
@given(case=cases())
def test_the_best_candidate_is_no_worse_than_any_start(fast: How, case: Case) -> None:
    result, info = case.refine(fast, select="best")
    assert (info.q >= info.q_initial).all()
    starts = into_box(case, case.actions)
    initial = torch.stack([value(case, starts[:, n]) for n in range(starts.shape[1])])
    reached = value(case, result)
    tolerance = 1e-5 * (1 + initial.abs().amax(dim=0) + reached.abs())
    assert (reached >= initial.amax(dim=0) - tolerance).all()
    assert ((info.q - reached).abs() <= tolerance).all()


@examples
@given(case=cases())
def test_the_result_lies_in_the_box_and_in_the_ball(fast: How, case: Case) -> None:
    result, info = case.refine(fast, actions=2 * case.actions)
    assert torch.equal(result, into_box(case, result))
    start = into_box(case, 2 * case.actions)[torch.arange(len(result)), info.start]
    distance = torch.linalg.vector_norm((result - start).double(), dim=1)
    torch.testing.assert_close(info.distance.double(), distance, rtol=1e-5, atol=1e-6)
    radius = case.options["max_distance"]
    if radius is not None:
        assert (distance <= radius * (1 + 1e-5) + 1e-6).all()


@examples
@given(case=cases(), seed=st.integers(0, 99), threads=st.integers(1, 3))
def test_a_row_depends_neither_on_its_batch_nor_on_the_order(
    fast: How, case: Case, seed: int, threads: int
) -> None:
    whole = case.refine(fast)
    order = torch.randperm(len(whole[0]), generator=torch.Generator().manual_seed(seed))
    observations, actions = case.observations[order], case.actions[order]
    assert_same(case.refine(fast, observations=observations, actions=actions), rows(whole, order))
    half = slice(len(order) // 2, None)
    part = {"observations": case.observations[half], "actions": case.actions[half]}
    most = threads if fast(case.critic)["backend"] == "cpu" else None
    assert_same(case.refine(fast, **part, threads=most), rows(whole, half))
    one = slice(seed % len(order), seed % len(order) + 1)
    alone = {"observations": case.observations[one], "actions": case.actions[one]}
    assert_same(case.refine(fast, **alone), rows(whole, one))


@examples
@given(
    case=cases(),
    poison=st.sampled_from((float("nan"), float("inf"), -float("inf"), 3e38)),
    seed=st.integers(0, 99),
)
def test_a_bad_row_changes_no_other(fast: How, case: Case, poison: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    bad = torch.rand(len(case.observations), generator=generator) < 0.3
    observations, actions = case.observations.clone(), case.actions.clone()
    (observations if seed % 2 else actions)[bad, ..., 0] = poison
    found = case.refine(fast, observations=observations, actions=actions)
    assert_same(rows(found, ~bad), rows(case.refine(fast), ~bad))


def shuffled(critic: Critic, seed: int) -> Critic:
    """The same function, with its heads and hidden units in another order."""
    generator = torch.Generator().manual_seed(seed)
    critic = copy.deepcopy(critic)
    heads = torch.randperm(critic.heads, generator=generator)
    for parameter in critic.parameters():
        parameter.data = parameter.data[heads]
    for i, width in enumerate(critic.hidden):
        units = torch.randperm(width, generator=generator)
        vectors = [critic.weights[i], critic.biases[i]]
        if critic.layer_norm:
            vectors += [critic.norm_weights[i], critic.norm_biases[i]]
        for tensor in vectors:
            tensor.data = tensor.data[:, units].contiguous()
        critic.weights[i + 1].data = critic.weights[i + 1].data[:, :, units].contiguous()
    return critic


@examples
@given(case=cases(), seed=st.integers(0, 99))
def test_the_order_of_heads_and_units_does_not_matter(fast: How, case: Case, seed: int) -> None:
    expected, _ = case.refine(fast)
    result, _ = case.refine(fast, critic=shuffled(case.critic, seed))
    # Rows whose path passes close to a kink or a tie end elsewhere for the smallest rounding; they
    # do so too if the start is moved by some units in the last place.
    generator = torch.Generator().manual_seed(seed)
    shift = torch.zeros(len(result))
    for _ in range(8):
        signs = torch.randint(0, 2, case.actions.shape, generator=generator) * 2 - 1
        moved, _ = case.refine(fast, actions=case.actions + 1e-6 * signs)
        shift = torch.maximum(shift, (moved - expected).abs().amax(dim=1))
    error = (result - expected).abs().amax(dim=1)
    calm = shift < 1e-4
    assert (error[calm] <= 10 * shift[calm] + 2e-5).all(), (error, shift)
