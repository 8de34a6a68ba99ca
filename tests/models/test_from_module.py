"""Critics laid out as CORL's and CleanRL's, and the other forms that are read."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dtag_fast.models.critic import Critic
from dtag_fast.models.from_module import critic_from_module
from dtag_fast.models.normalizer import Normalizer

S, A, H = 5, 3, 17  # no multiples of anything


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def batch(rows: int = 37, action_dim: int = A) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    return (
        3 * torch.randn(rows, S, generator=generator),
        torch.rand(rows, action_dim, generator=generator) * 2 - 1,
    )


def assert_same(critic: Critic, expected: Tensor) -> None:
    """critic(batch) equals [E, B] to float32's rounding."""
    with torch.no_grad():
        got = critic(*batch())
    assert got.shape == expected.shape
    torch.testing.assert_close(got, expected.detach(), rtol=1e-5, atol=1e-5)


# --- CORL -------------------------------------------------------------------------------------


class CorlSqueeze(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor) -> Any:
        return x.squeeze(self.dim)


class CorlMLP(nn.Module):
    """algorithms/offline/iql.py: Linear, activation, ..., Linear, Squeeze in `net`."""

    def __init__(self, dims: list[int], activation: type[nn.Module] = nn.ReLU) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for fan_in, fan_out in itertools.pairwise(dims[:-1]):
            layers += [nn.Linear(fan_in, fan_out), activation()]
        layers += [nn.Linear(dims[-2], dims[-1]), CorlSqueeze(-1)]
        self.net = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Any:
        return self.net(x)


class CorlTwinQ(nn.Module):
    """algorithms/offline/iql.py: forward is the minimum of q1 and q2."""

    def __init__(self, activation: type[nn.Module] = nn.ReLU) -> None:
        super().__init__()
        self.q1 = CorlMLP([S + A, H, H, 1], activation)
        self.q2 = CorlMLP([S + A, H, H, 1], activation)

    def both(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        sa = torch.cat([state, action], 1)
        return self.q1(sa), self.q2(sa)

    def forward(self, state: Tensor, action: Tensor) -> Any:
        return torch.min(*self.both(state, action))


class CorlTd3BcCritic(nn.Module):
    """algorithms/offline/td3_bc.py: one head, [B, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(S + A, H), nn.ReLU(), nn.Linear(H, H), nn.ReLU(), nn.Linear(H, 1)
        )

    def forward(self, state: Tensor, action: Tensor) -> Any:
        return self.net(torch.cat([state, action], 1))


class CorlCqlQFunction(nn.Module):
    """algorithms/offline/cql.py: keeps its sizes, takes [B, N, A] as well, gives [B]."""

    def __init__(self) -> None:
        super().__init__()
        self.observation_dim, self.action_dim = S, A
        self.network = nn.Sequential(
            nn.Linear(S + A, H), nn.ReLU(), nn.Linear(H, H), nn.ReLU(), nn.Linear(H, 1)
        )

    def forward(self, observations: Tensor, actions: Tensor) -> Any:
        several = actions.ndim == 3 and observations.ndim == 2
        if several:
            observations = observations.unsqueeze(1).expand(-1, actions.shape[1], -1)
        return self.network(torch.cat([observations, actions], dim=-1)).squeeze(-1)


class CorlVectorizedLinear(nn.Module):
    """algorithms/offline/sac_n.py: weight [E, in, out], bias [E, 1, out]."""

    def __init__(self, in_features: int, out_features: int, ensemble_size: int) -> None:
        super().__init__()
        self.in_features = in_features
        bound = in_features**-0.5
        self.weight = nn.Parameter(
            torch.empty(ensemble_size, in_features, out_features).uniform_(-bound, bound)
        )
        self.bias = nn.Parameter(torch.empty(ensemble_size, 1, out_features).uniform_(-1, 1))

    def forward(self, x: Tensor) -> Any:
        return x @ self.weight + self.bias


class CorlVectorizedCritic(nn.Module):
    """algorithms/offline/sac_n.py: E heads as one, [E, B]."""

    def __init__(self, ensemble: int = 5) -> None:
        super().__init__()
        self.num_critics = ensemble
        self.critic = nn.Sequential(
            CorlVectorizedLinear(S + A, H, ensemble),
            nn.ReLU(),
            CorlVectorizedLinear(H, H, ensemble),  # square: which side is `in`, only values tell
            nn.ReLU(),
            CorlVectorizedLinear(H, 1, ensemble),
        )

    def forward(self, state: Tensor, action: Tensor) -> Any:
        pair = torch.cat([state, action], dim=-1)
        pair = pair.unsqueeze(0).repeat_interleave(self.num_critics, dim=0)
        return self.critic(pair).squeeze(-1)


def test_corl_iql_twin() -> None:
    twin = CorlTwinQ()
    critic = critic_from_module(twin, action_dim=A)
    assert (critic.observation_dim, critic.action_dim) == (S, A)
    assert (critic.hidden, critic.heads, critic.activation) == ((H, H), 2, "relu")
    assert_same(critic, torch.stack(twin.both(*batch())))


def test_corl_td3_bc_pair() -> None:
    critic_1, critic_2 = CorlTd3BcCritic(), CorlTd3BcCritic()
    critic = critic_from_module([critic_1, critic_2], action_dim=A)
    assert_same(critic, torch.stack([q(*batch()).squeeze(1) for q in (critic_1, critic_2)]))


def test_corl_cql_tells_its_action_dim() -> None:
    q = CorlCqlQFunction()
    assert_same(critic_from_module(q), q(*batch()).unsqueeze(0))


def test_corl_sac_n_ensemble() -> None:
    ensemble = CorlVectorizedCritic()
    critic = critic_from_module(ensemble, action_dim=A)
    assert critic.heads == 5
    assert_same(critic, ensemble(*batch()))


def test_ensemble_of_transposed_weights_without_bias() -> None:
    class Transposed(nn.Module):
        def __init__(self, in_features: int, out_features: int) -> None:
            super().__init__()
            self.in_features = in_features
            self.weight = nn.Parameter(torch.randn(4, out_features, in_features) / 3)

        def forward(self, x: Tensor) -> Any:  # [B, in] or [E, B, in]
            return x @ self.weight.transpose(1, 2)

    q = nn.Sequential(
        Transposed(S + A, H), nn.Tanh(), Transposed(H, H), nn.Tanh(), Transposed(H, 1)
    )
    assert_same(critic_from_module(q, action_dim=A), q(torch.cat(batch(), dim=1)).squeeze(-1))


def test_bare_sequentials_take_observation_then_action() -> None:
    twin = CorlTwinQ()
    critic = critic_from_module((twin.q1.net, twin.q2.net), action_dim=A)
    assert_same(critic, torch.stack(twin.both(*batch())))


def test_normalizer_of_the_training_data() -> None:
    twin = CorlTwinQ()
    normalizer = Normalizer(torch.linspace(-1, 1, S), torch.linspace(0.5, 2, S))
    critic = critic_from_module(twin, normalizer=normalizer)  # which tells S, and so A
    observations, actions = batch()
    assert critic.action_dim == A
    assert_same(critic, torch.stack(twin.both(normalizer(observations), actions)))
    assert critic.normalizer is not normalizer


# --- CleanRL ----------------------------------------------------------------------------------


class CleanRLQNetwork(nn.Module):
    """cleanrl/td3_continuous_action.py, sac_continuous_action.py: relu is called, not kept."""

    def __init__(
        self, activation: Callable[[Tensor], Tensor] = F.relu, action_first: bool = False
    ) -> None:
        super().__init__()
        self.fc1 = nn.Linear(S + A, H)
        self.fc2 = nn.Linear(H, H)
        self.fc3 = nn.Linear(H, 1)
        self.activation = activation
        self.action_first = action_first

    def forward(self, x: Tensor, a: Tensor) -> Any:
        x = torch.cat([a, x] if self.action_first else [x, a], 1)
        x = self.activation(self.fc1(x))
        x = self.activation(self.fc2(x))
        return self.fc3(x)


def test_cleanrl_pair() -> None:
    qf1, qf2 = CleanRLQNetwork(), CleanRLQNetwork()
    critic = critic_from_module([qf1, qf2], action_dim=A)
    assert critic.activation == "relu"
    assert_same(critic, torch.stack([q(*batch()).squeeze(1) for q in (qf1, qf2)]))


FUNCTIONS: dict[str, tuple[str, float, Callable[[Tensor], Tensor]]] = {
    "relu_inplace": ("relu", 0.01, F.relu_),
    "leaky_relu": ("leaky_relu", 0.01, F.leaky_relu),
    "leaky_relu_steep": ("leaky_relu", 0.2, lambda x: F.leaky_relu(x, 0.2)),
    "tanh": ("tanh", 0.01, torch.tanh),
    "gelu": ("gelu", 0.01, F.gelu),
    "silu_by_hand": ("silu", 0.01, lambda x: x * torch.sigmoid(x)),
    "mish_by_hand": ("mish", 0.01, lambda x: x * torch.tanh(F.softplus(x))),
    "elu": ("elu", 0.01, F.elu),
}


@pytest.mark.parametrize("case", FUNCTIONS)
def test_activation_called_in_forward(case: str) -> None:
    name, slope, function = FUNCTIONS[case]
    q = CleanRLQNetwork(function)
    critic = critic_from_module(q, action_dim=A)
    assert critic.activation == name
    assert critic.negative_slope == slope
    assert_same(critic, q(*batch()).T)


MODULES: dict[str, Callable[[], nn.Module]] = {
    "relu": lambda: nn.ReLU(inplace=True),
    "leaky_relu": lambda: nn.LeakyReLU(0.2),
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "mish": nn.Mish,
    "elu": nn.ELU,
}


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("layer_norm", [False, True], ids=["plain", "layer_norm"])
def test_activation_modules_and_layer_norm(name: str, layer_norm: bool) -> None:
    def hidden(fan_in: int, fan_out: int) -> list[nn.Module]:
        norm = nn.LayerNorm(fan_out)
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
        return [nn.Linear(fan_in, fan_out), *([norm] if layer_norm else []), MODULES[name]()]

    q = nn.Sequential(*hidden(S + A, 19), *hidden(19, 7), nn.Linear(7, 1))
    critic = critic_from_module(q, action_dim=A)
    assert (critic.activation, critic.layer_norm, critic.hidden) == (name, layer_norm, (19, 7))
    assert_same(critic, q(torch.cat(batch(), dim=1)).T)


# --- how forward may look -----------------------------------------------------------------------


class Heads(nn.Module):
    """Two heads evaluated layer by layer, put together by `join`."""

    def __init__(self, join: Callable[[Tensor, Tensor], Any], shared: bool = False) -> None:
        super().__init__()
        self.first = nn.ModuleList([nn.Linear(S + A, H) for _ in range(2)])
        self.last = nn.ModuleList([nn.Linear(H, 1) for _ in range(2)])
        self.join = join
        self.shared = shared

    def both(self, obs: Tensor, act: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.cat([obs, act], -1)
        if self.shared:
            hidden = [torch.tanh(self.first[0](x))] * 2
        else:
            hidden = [torch.tanh(layer(x)) for layer in self.first]
        q1, q2 = (last(h) for last, h in zip(self.last, hidden, strict=True))
        return q1, q2

    def forward(self, obs: Tensor, act: Tensor, goal: Tensor | None = None) -> Any:
        return self.join(*self.both(obs, act))


JOINS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "tuple": lambda a, b: (a, b),
    "tuple_flat": lambda a, b: (a.squeeze(1), b.squeeze(1)),
    "E_B": lambda a, b: torch.stack([a, b]).squeeze(-1),
    "E_B_1": lambda a, b: torch.stack([a, b]),
    "B_E": lambda a, b: torch.cat([a, b], dim=1),
    "minimum": torch.minimum,
    "nested": lambda a, b: ([a, None], (b,)),
}


@pytest.mark.parametrize("join", JOINS)
@pytest.mark.parametrize("shared", [False, True], ids=["apart", "shared_trunk"])
def test_interleaved_heads_and_results(join: str, shared: bool) -> None:
    q = Heads(JOINS[join], shared)
    assert_same(critic_from_module(q, action_dim=A), torch.stack(q.both(*batch())).squeeze(-1))


def test_action_first_in_the_concatenation_and_in_the_call() -> None:
    class ActionFirst(CleanRLQNetwork):
        def forward(self, action: Tensor, state: Tensor) -> Any:
            return super().forward(state, action)

    q = ActionFirst(action_first=True)
    observations, actions = batch()
    assert_same(critic_from_module(q, action_dim=A), q(actions, observations).T)


def test_no_bias_and_one_layer() -> None:
    q = nn.Linear(S + A, 1, bias=False)
    critic = critic_from_module(q, action_dim=A)
    assert critic.hidden == ()
    assert_same(critic, q(torch.cat(batch(), dim=1)).T)


def test_double_precision_becomes_float32() -> None:
    q = CleanRLQNetwork().double()
    critic = critic_from_module(q, action_dim=A)
    assert critic.weights[0].dtype == torch.float32
    assert q.fc1.weight.dtype == torch.float64
    observations, actions = batch()
    assert_same(critic, q(observations.double(), actions.double()).T.float())


def test_from_module_of_critic_is_the_same_thing() -> None:
    q = CleanRLQNetwork()
    assert_same(Critic.from_module(q, action_dim=A), q(*batch()).T)


# --- the module is left alone -------------------------------------------------------------------


def test_module_and_random_numbers_are_left_alone() -> None:
    class Counting(CorlTwinQ):
        calls = 0

        def forward(self, state: Tensor, action: Tensor) -> Any:
            self.calls += 1
            torch.rand(3)
            return super().forward(state, action)

    twin = Counting().train()
    twin.q2.eval()
    before = copy.deepcopy(twin.state_dict())
    modes = [part.training for part in twin.modules()]
    state = torch.get_rng_state()
    critic = critic_from_module(twin, action_dim=A)

    assert torch.equal(torch.get_rng_state(), state)
    assert [part.training for part in twin.modules()] == modes
    assert twin.calls == 0
    assert not any(part._forward_hooks for part in twin.modules())
    assert all(torch.equal(value, before[key]) for key, value in twin.state_dict().items())

    expected = torch.stack(twin.both(*batch())).detach()
    for parameter in twin.parameters():
        nn.init.zeros_(parameter)
    assert_same(critic, expected)  # a copy: training the module does not change it
    assert all(parameter.requires_grad for parameter in critic.parameters())


def test_dropout_of_zero_is_read() -> None:
    q = nn.Sequential(nn.Linear(S + A, H), nn.ReLU(), nn.Dropout(0.0), nn.Linear(H, 1))
    assert_same(critic_from_module(q, action_dim=A), q(torch.cat(batch(), dim=1)).T)
