"""The closed form of a critic: its Q is the critic's, its pullback autograd's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dtag_fast import Critic, Normalizer
from dtag_fast.models.critic import ACTIVATIONS
from dtag_fast.refinement import closed_form
from dtag_fast.refinement.closed_form import ClosedForm
from dtag_fast.refinement.parity import random_batch, random_critic


def both(
    critic: Critic, observations: Tensor, actions: Tensor, cotangent: Tensor
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """(Q, pullback of the cotangent) by closed form and by autograd."""
    form = ClosedForm.of(critic)
    assert form is not None
    weights = [weight.to(actions.dtype) for weight in form.weights(critic)]
    q, pullback = form.value_and_pullback(weights, form.prepare(weights, observations), actions)
    exact = critic if actions.dtype == torch.float32 else critic.double()
    actions = actions.clone().requires_grad_()
    expected = exact(observations, actions)
    (gradient,) = torch.autograd.grad(expected, actions, cotangent)
    return (q, pullback(cotangent)), (expected.detach(), gradient)


@pytest.mark.parametrize("hidden", [(), (1,), (33,), (33, 20), (7, 19, 5)], ids=str)
@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_it_is_autograds(activation: str, layer_norm: bool, hidden: tuple[int, ...]) -> None:
    critic = random_critic(
        hidden=hidden,
        activation=activation,
        layer_norm=layer_norm,
        heads=3,
        normalizer=Normalizer(torch.arange(5.0), torch.arange(5.0) + 0.5),
    )
    with torch.no_grad():
        for weight, bias in zip(critic.norm_weights, critic.norm_biases, strict=True):
            weight.uniform_(-2, 2)
            bias.uniform_(-1, 1)
    observations, actions = random_batch(critic, 13)
    cotangent = torch.randn(3, 13, generator=torch.Generator().manual_seed(4))
    batch = observations.double() * 4, actions.double(), cotangent.double()
    for ours, theirs in zip(*both(critic, *batch), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("hidden", [(), (1,), (33, 20)], ids=str)
def test_a_row_on_a_gpu(monkeypatch: pytest.MonkeyPatch, hidden: tuple[int, ...]) -> None:
    rows: list[int] = []

    def is_a_row(x: Tensor) -> bool:
        rows.append(x.shape[1])
        return x.shape[1] == 1

    monkeypatch.setattr(closed_form, "_is_a_row_on_a_gpu", is_a_row)
    for batch in (1, 2):
        critic = random_critic(hidden=hidden, heads=3)
        observations, actions = (array.double() for array in random_batch(critic, batch))
        for ours, theirs in zip(
            *both(critic, observations, actions, torch.ones(3, batch).double()), strict=True
        ):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    assert set(rows) == {1, 2}


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("at", [0.0, -0.0, 1e30, -1e30, float("inf"), -float("inf"), float("nan")])
def test_it_is_autograds_in_kinks_and_where_it_overflows(activation: str, at: float) -> None:
    identity = [(torch.tensor([[0.0, 1.0]]), torch.zeros(1)), (torch.ones(1, 1), torch.zeros(1))]
    critic = Critic.from_layers([identity], activation, action_dim=1)
    ours, theirs = both(critic, torch.zeros(1, 1), torch.tensor([[at]]), torch.ones(1, 1))
    for mine, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, expected, rtol=0, atol=1e-6, equal_nan=True)


def test_equal_critics_have_one_form() -> None:
    assert ClosedForm.of(random_critic(1)) == ClosedForm.of(random_critic(2))
    assert ClosedForm.of(random_critic()) != ClosedForm.of(random_critic(activation="tanh"))


def test_it_knows_what_it_does_not_know() -> None:
    class Other(Critic):
        def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
            return -super().forward(observations, actions)

    class Clipped(Normalizer):
        def forward(self, observations: Tensor) -> Tensor:
            return super().forward(observations).clamp(-1, 1)

    clipped = random_critic()
    clipped.normalizer = Clipped.identity(5)
    for module in (nn.Linear(2, 3), Other(5, 3), clipped, random_critic().double()):
        assert ClosedForm.of(module) is None
