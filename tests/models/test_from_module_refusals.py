"""What cannot be read is refused, and the layer is named."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import dtag_fast.models.from_module as from_module_file
from dtag_fast.models.critic import Critic
from dtag_fast.models.from_module import critic_from_module
from dtag_fast.models.normalizer import Normalizer

S, A, H = 5, 3, 17  # no multiples of anything


class Called(nn.Module):
    """Three layers and an activation that forward calls."""

    def __init__(self, activation: Callable[[Tensor], Tensor] = F.relu) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(S + A, H), nn.Linear(H, H), nn.Linear(H, 1)
        self.activation = activation

    def forward(self, obs: Tensor, action: Tensor) -> Any:
        x = self.activation(self.fc1(torch.cat([obs, action], 1)))
        return self.fc3(self.activation(self.fc2(x)))


class Twin(nn.Module):
    def __init__(self, second: type[nn.Module] = nn.ReLU) -> None:
        super().__init__()
        self.q1, self.q2 = mlp(nn.ReLU()), mlp(second())

    def forward(self, obs: Tensor, action: Tensor) -> Any:
        x = torch.cat([obs, action], 1)
        return torch.min(self.q1(x), self.q2(x))


def mlp(*between: nn.Module, out: int = 1) -> nn.Sequential:
    """Linear, `between`, Linear."""
    return nn.Sequential(nn.Linear(S + A, H), *between, nn.Linear(H, out))


class Conv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv1d(1, 2, 3), nn.Flatten())
        self.q = mlp(nn.ReLU())

    def forward(self, obs: Tensor, action: Tensor) -> Any:
        return self.q(torch.cat([self.features(obs), action], 1))


class Wrapped(nn.Module):
    """A head whose forward does something else besides."""

    def __init__(self, change: Callable[[nn.Module, Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.net = mlp(nn.ReLU())
        self.change = change

    def forward(self, obs: Tensor, action: Tensor) -> Any:
        return self.change(self.net, obs, action)


class Skip(Called):
    def forward(self, obs: Tensor, action: Tensor) -> Any:
        x = F.relu(self.fc1(torch.cat([obs, action], 1)))
        return self.fc3(x + F.relu(self.fc2(x)))


class Nameless(Called):
    def forward(self, first: Tensor, second: Tensor) -> Any:
        return super().forward(first, second)


class Three(Called):
    def forward(  # type: ignore[override]
        self, obs: Tensor, action: Tensor, goal: Tensor
    ) -> Any:
        return super().forward(obs, action)


class Scaled(nn.Linear):
    def forward(self, x: Tensor) -> Any:
        return 2 * super().forward(x)


class Bypassing(Called):
    def forward(self, obs: Tensor, action: Tensor) -> Any:
        return F.linear(torch.cat([obs, action], 1), self.fc1.weight)[:, :1]


def zeros() -> nn.Module:
    q = mlp(nn.ReLU())
    for parameter in q.parameters():
        nn.init.zeros_(parameter)
    return q


def not_finite() -> nn.Module:
    q = mlp(nn.ReLU())
    next(q[2].parameters()).data[0, 3] = torch.nan
    return q


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "conv": (Conv, r"'features\.0' \(Conv1d\).*Linear and LayerNorm layers only"),
    "batch_norm": (lambda: mlp(nn.BatchNorm1d(H), nn.ReLU()), r"'1' \(BatchNorm1d\)"),
    "batch_norm_stateless": (
        lambda: mlp(nn.BatchNorm1d(H, affine=False, track_running_stats=False), nn.ReLU()),
        r"between '0' \(Linear\) and '3' \(Linear\).*'1' \(BatchNorm1d\(17",
    ),
    "prelu": (lambda: mlp(nn.PReLU()), r"'1' \(PReLU\)"),
    "dropout": (lambda: mlp(nn.ReLU(), nn.Dropout(0.1)), r"'2' \(Dropout\) drops with p=0\.1"),
    "spectral_norm": (
        lambda: nn.Sequential(
            nn.utils.parametrizations.spectral_norm(nn.Linear(S + A, H)), nn.ReLU(), nn.Linear(H, 1)
        ),
        r"'0' \(ParametrizedLinear\) is reparametrised",
    ),
    "gelu_tanh": (lambda: mlp(nn.GELU("tanh")), r"'1' \(GELU\(approximate='tanh'\)\)"),
    "elu_alpha": (lambda: mlp(nn.ELU(0.5)), r"'1' \(ELU\(alpha=0\.5\)\)"),
    "hardswish": (lambda: mlp(nn.Hardswish()), r"'1' \(Hardswish\(\)\)"),
    "sigmoid_called": (
        lambda: Called(torch.sigmoid),
        r"between 'fc1' \(Linear\) and 'fc2' \(Linear\): expected one of the activations relu",
    ),
    "no_activation": (lambda: mlp(nn.Identity()), r"no activation between '0' \(Linear\) and '2'"),
    "different_activations": (
        lambda: nn.Sequential(
            nn.Linear(S + A, H), nn.ReLU(), nn.Linear(H, H), nn.Tanh(), nn.Linear(H, 1)
        ),
        r"different activations: tanh between '2' \(Linear\) and '4' \(Linear\), relu before",
    ),
    "different_heads": (lambda: Twin(nn.Tanh), r"tanh between 'q2\.0' \(Linear\)"),
    "norm_after_activation": (
        lambda: mlp(nn.ReLU(), nn.LayerNorm(H)),
        r"between '0' \(Linear\) and '2' \(LayerNorm\).*between a Linear and its activation",
    ),
    "norm_epsilon": (lambda: mlp(nn.LayerNorm(H, eps=1e-3)), r"'1' \(LayerNorm\) has eps=0\.001"),
    "norm_in_one_layer_only": (
        lambda: nn.Sequential(
            *(nn.Linear(S + A, H), nn.LayerNorm(H), nn.ReLU()),
            *(nn.Linear(H, H), nn.ReLU(), nn.Linear(H, 1)),
        ),
        r"LayerNorm in every hidden layer or in none",
    ),
    "quantile_head": (lambda: mlp(nn.ReLU(), out=32), r"one output, got '2' \(Linear\) of 32"),
    "skip": (Skip, r"between 'fc2' \(Linear\) and 'fc3' \(Linear\)"),
    "observation_scaled_inside": (
        lambda: Wrapped(lambda net, s, a: net(torch.cat([s / 10, a], 1))),
        r"first layer 'net\.0' \(Linear\) is not given observation and action side by side",
    ),
    "value_scaled": (
        lambda: Wrapped(lambda net, s, a: 1.001 * net(torch.cat([s, a], 1))),
        r"does something else besides",
    ),
    "action_penalty": (
        lambda: Wrapped(lambda net, s, a: net(torch.cat([s, a], 1)) - 0.01 * a[:, :1] ** 2),
        r"does something else besides",
    ),
    "wrong_shape": (
        lambda: Wrapped(lambda net, s, a: net(torch.cat([s, a], 1)).mean()),
        r"expected Q of shape .* got \[\]",
    ),
    "wrong_type": (
        lambda: Wrapped(lambda net, s, a: {"q": net(torch.cat([s, a], 1))}),
        r"a tensor or a tuple of tensors, got dict",
    ),
    "failing_forward": (
        lambda: Wrapped(lambda net, s, a: net(s)),
        r"Wrapped\.forward\(obs, action\) failed on inputs \[96, 5\] and \[96, 3\]",
    ),
    "nameless_arguments": (Nameless, r"Nameless\.forward\(first, second\) is the action"),
    "three_arguments": (Three, r"one or two arguments, got Three\.forward\(obs, action, goal\)"),
    "strange_linear": (
        lambda: nn.Sequential(Scaled(S + A, H), nn.ReLU(), nn.Linear(H, 1)),
        r"'0' \(Scaled\) gives something else than weight @ input",
    ),
    "layers_not_called": (Bypassing, r"Bypassing calls none of its Linear layers"),
    "zeros": (zeros, r"cannot tell the activation"),
    "not_finite": (not_finite, r"'2' \(Linear\) has weights that are not finite"),
    "own_parameters": (lambda: Critic(S, A), r"'normalizer' \(Normalizer\)"),
    "no_linear": (nn.ReLU, r"ReLU has no Linear layer"),
    "empty_list": (list, r"at least one head"),
    "second_head_named": (
        lambda: [mlp(nn.ReLU()), mlp(nn.Hardswish())],
        r"'\[1\]\.0' \(Linear\).*'\[1\]\.1' \(Hardswish\(\)\)",
    ),
    "twin_in_a_list": (
        lambda: [Twin(), Twin()],
        r"module\[0\]: expected one head in each of several modules, got 2",
    ),
    "heads_of_different_width": (
        lambda: [mlp(nn.ReLU()), nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 1))],
        r"heads of one input width, got \[8, 4\]",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses(case: str) -> None:
    build, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        critic_from_module(build(), action_dim=A)


@pytest.mark.parametrize(
    ("action_dim", "normalizer", "message"),
    [
        (None, None, r"action_dim: needed.*first layer takes 8 numbers"),
        (8, None, r"action_dim: expected between 1 and 7 .* got 8"),
        (0, None, r"action_dim: expected between 1 and 7 .* got 0"),
        (2, Normalizer.identity(S), r"contradictory: 2 by action_dim, 3 by .* normalizer's 5"),
    ],
)
def test_action_dim(action_dim: int | None, normalizer: Normalizer | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        critic_from_module(Called(), action_dim, normalizer)


def test_action_dim_against_what_the_module_keeps() -> None:
    q = Called()
    q.fc2.act_dim = A  # type: ignore[assignment]
    assert critic_from_module(q).action_dim == A
    with pytest.raises(ValueError, match=r"2 by action_dim, 3 by module\.fc2\.act_dim"):
        critic_from_module(q, action_dim=2)


def test_not_a_module() -> None:
    with pytest.raises(TypeError, match=r"module: expected an nn\.Module .* got dict"):
        critic_from_module({}, action_dim=A)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=re.escape("module[1]: expected an nn.Module")):
        critic_from_module([Called(), None], action_dim=A)  # type: ignore[list-item]


def test_wrong_guess_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison at the end does not depend on how the reading went."""
    monkeypatch.setattr(from_module_file, "common_activation", lambda heads: ("elu", 0.01))
    with pytest.raises(ValueError, match="does something else besides"):
        critic_from_module(Called(), action_dim=A)
