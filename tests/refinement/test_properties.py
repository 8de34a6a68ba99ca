"""Properties of refinement that hold for any critic, batch and options, by every way there is."""

from __future__ import annotations

import copy
from typing import Any

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dtag_fast import Critic, refine
from dtag_fast.refinement.backends import BackendName
from dtag_fast.refinement.parity import random_batch, random_critic

# The fixture prepares a way of refining, not data: examples may share it.
several = settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@st.composite
def critics(draw: st.DrawFn) -> Critic:
    return random_critic(
        draw(st.integers(0, 1000)),
        observation_dim=draw(st.sampled_from([1, 5, 17])),
        action_dim=draw(st.sampled_from([1, 2, 3, 6, 9, 17])),
        hidden=tuple(draw(st.lists(st.sampled_from([1, 7, 16, 33]), min_size=1, max_size=3))),
        heads=draw(st.sampled_from([1, 2, 5])),
        activation=draw(st.sampled_from(["relu", "leaky_relu", "tanh"])),
    )


@st.composite
def options(draw: st.DrawFn) -> dict[str, Any]:
    return {
        "steps": draw(st.integers(0, 12)),
        "step_size": draw(st.sampled_from([0.01, 0.1, 1.0])),
        "optimizer": draw(st.sampled_from(["sgd", "momentum", "rmsprop", "adam"])),
        "ensemble": draw(st.sampled_from(["min", "mean", "lcb"])),
        "max_distance": draw(st.sampled_from([None, 0.3])),
    }


@several
@given(critic=critics(), words=options())
def test_q_never_falls_and_actions_stay_where_they_may(
    backend: BackendName, critic: Critic, words: dict[str, Any]
) -> None:
    observations, actions = random_batch(critic, 6)
    result = refine(critic, observations, actions, backend=backend, **words)
    assert (result.abs() <= 1).all()
    if words["max_distance"] is not None:
        length = torch.linalg.vector_norm(result.double() - actions.double(), dim=1)
        assert (length <= words["max_distance"] * (1 + 1e-5)).all()
    with torch.no_grad():
        _, before = refine(
            critic,
            observations,
            actions,
            steps=0,
            backend="reference",
            ensemble=words["ensemble"],
            return_info=True,
        )
        _, after = refine(
            critic,
            observations,
            result,
            steps=0,
            backend="reference",
            ensemble=words["ensemble"],
            return_info=True,
        )
    assert (after.q >= before.q - 1e-5 * (1 + before.q.abs())).all()


@several
@given(critic=critics(), words=options(), seed=st.integers(0, 100))
def test_a_row_is_the_same_in_any_batch(
    fast: BackendName, critic: Critic, words: dict[str, Any], seed: int
) -> None:
    observations, actions = random_batch(critic, 19, seed=seed)
    whole = refine(critic, observations, actions, backend=fast, **words)
    order = torch.randperm(19, generator=torch.Generator().manual_seed(seed))
    shuffled = refine(critic, observations[order], actions[order], backend=fast, **words)
    assert torch.equal(shuffled, whole[order])
    alone = refine(critic, observations[7:8], actions[7:8], backend=fast, **words)
    assert torch.equal(alone, whole[7:8])


@several
@given(critic=critics(), words=options(), bad=st.sampled_from([float("nan"), float("inf")]))
def test_a_row_that_is_not_finite_harms_no_other(
    fast: BackendName, critic: Critic, words: dict[str, Any], bad: float
) -> None:
    observations, actions = random_batch(critic, 9)
    clean = refine(critic, observations, actions, backend=fast, **words)
    observations[4, 0] = bad
    found = refine(critic, observations, actions, backend=fast, **words)
    others = torch.arange(9) != 4
    assert torch.equal(found[others], clean[others])


@several
@given(critic=critics(), seed=st.integers(0, 100))
def test_the_order_of_heads_and_units_does_not_matter(
    fast: BackendName, critic: Critic, seed: int
) -> None:
    observations, actions = random_batch(critic, 5)
    generator = torch.Generator().manual_seed(seed)
    permuted = copy.deepcopy(critic)
    with torch.no_grad():
        units = torch.randperm(critic.hidden[0], generator=generator)
        heads = torch.randperm(critic.heads, generator=generator)
        permuted.weights[0].copy_(critic.weights[0][:, units])
        permuted.biases[0].copy_(critic.biases[0][:, units])
        permuted.weights[1].copy_(critic.weights[1][:, :, units])
        for parameter in permuted.parameters():
            parameter.copy_(parameter[heads].clone())
    # One short step: over many, a path near a kink may part from itself.
    words: dict[str, Any] = {"steps": 1, "step_size": 0.01, "select": "last", "ensemble": "mean"}
    before = refine(critic, observations, actions, backend=fast, **words)
    after = refine(permuted, observations, actions, backend=fast, **words)
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)
