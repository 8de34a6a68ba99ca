"""Token predictors against plain ones that know an episode's whole history, one environment."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dtag_fast.acting.context import Context
from dtag_fast.acting.history_search import HistorySearch
from dtag_fast.acting.policy import Policy
from dtag_fast.acting.predictor_options import PredictorOptions, make_predictor
from dtag_fast.acting.token_predictors import (
    DiscountedCountdown,
    FixedTarget,
    NoToken,
    ReturnHead,
    TokenPredictor,
)
from dtag_fast.acting.value_predictors import ReturnGrid, ValuePrompt
from dtag_fast.checkpoint import CheckpointError
from dtag_fast.data.trajectories import Trajectories
from dtag_fast.models.config import ModelConfig
from dtag_fast.models.critic import Critic
from dtag_fast.models.decision_transformer import SequenceModel, build_model
from dtag_fast.training.config import CriticConfig
from dtag_fast.training.critic import train_critic

STATE, ACTION = 5, 3
ModelFactory = Callable[..., SequenceModel]


class Value(nn.Module):
    """Some function of the observation."""

    def forward(self, observations: Tensor) -> Tensor:
        return 3.0 * torch.tanh(observations.sum(dim=1))


def make_critic() -> Critic:
    torch.manual_seed(1)
    critic = Critic(STATE, ACTION, hidden=(16, 16))
    with torch.no_grad():
        critic.weights[0].mul_(3.0)
    return critic


TARGETS = (2.0, 5.0, 9.0)
PREDICTORS: dict[str, TokenPredictor] = {
    "discounted": DiscountedCountdown(6.0, 0.9),
    "value": ValuePrompt(Value(), scale=2.0),
    "grid": ReturnGrid(make_critic(), TARGETS),
    "linear": ReturnGrid(make_critic(), TARGETS, countdown="linear", horizon=9),
    "search": HistorySearch(2),
}
CASES = [
    pytest.param(kind, attention, name, id=f"{name}-{kind}-{attention}")
    for name in PREDICTORS
    for kind in ("dt", "reinformer")
    for attention in ("full", "sliding")
    if name != "search" or (kind, attention) == ("reinformer", "full")
]


class Plain:
    """Lists of all that was, and forward passes over the last K steps or the whole episode."""

    def __init__(self, model: SequenceModel, name: str) -> None:
        self.model, self.name = model, name
        self.observations: list[Tensor] = []
        self.actions: list[Tensor] = []
        self.tokens: list[float] = []
        self.received = 0.0

    @torch.no_grad()
    def forward(self, token: float, length: int | None = None) -> tuple[Tensor, float]:
        """Action and return that are predicted with this token, from so many steps."""
        sliding = self.model.config.attention == "sliding"
        if length is None:
            length = len(self.observations) if sliding else self.model.config.context_length
        times = torch.arange(len(self.observations))[-length:]
        output = self.model(
            torch.stack(self.observations)[None, -length:],
            torch.stack([*self.actions, torch.zeros(ACTION)])[None, -length:],
            torch.tensor([*self.tokens, token])[None, -length:],
            times[None],
        )
        returns = output.returns_to_go
        return output.actions[0, -1], math.nan if returns is None else float(returns[0, -1])

    def choose(self, reward: float) -> tuple[Tensor, float]:
        """Action and token."""
        step = len(self.tokens)
        self.received = self.received + reward if step else 0.0
        if self.name == "discounted":
            token = (self.tokens[-1] - reward) / 0.9 if step else 6.0
            return self.forward(token)[0], token
        if self.name == "value":
            token = 6.0 * math.tanh(float(self.observations[-1].sum()))
            return self.forward(token)[0], token
        if self.name == "search":
            returns = {n: self.forward(0.0, n)[1] for n in (4, 2)}
            best = max(returns, key=lambda n: returns[n])
            return self.forward(returns[best], best)[0], returns[best]
        tokens = [target - self.received for target in TARGETS]
        if self.name == "linear":
            tokens = [target * max(1 - step / 9, 0) for target in TARGETS]
        actions = [self.forward(token)[0] for token in tokens]
        critic = make_critic()
        with torch.no_grad():
            q = [float(critic(self.observations[-1][None], a[None]).min()) for a in actions]
        best = int(np.argmax(q))
        return actions[best], tokens[best]

    def act(self, observation: Any, reward: float, given: Any) -> tuple[Tensor, float]:
        """As `choose`; `given` goes into the history."""
        self.observations.append(torch.from_numpy(observation))
        action, token = self.choose(reward)
        self.tokens.append(token)
        self.actions.append(torch.from_numpy(given))
        return action, token


@pytest.mark.parametrize(("kind", "attention", "name"), CASES)
def test_rows_act_as_plain_ones(
    make_model: ModelFactory, kind: str, attention: Any, name: str
) -> None:
    """Rows begin at different times, the window slides, rows leave."""
    model = make_model(kind, attention=attention, context_length=4)
    policy = Policy(model, PREDICTORS[name])
    policy.reset(3)
    naive = [Plain(model, name) for _ in range(3)]
    rng = np.random.default_rng(0)
    begins = {4: [1], 6: [0, 2]}
    rows, seen = [0, 1, 2], []
    for t in range(13):
        if t == 9:
            policy.keep_rows([0, 2])
            rows = [0, 2]
        observations = rng.normal(size=(len(rows), STATE)).astype(np.float32)
        rewards = rng.normal(size=len(rows)).astype(np.float32)
        for row in begins.get(t, []):
            policy.reset_rows([row])
            naive[row] = Plain(model, name)
            rewards[row] = np.nan
        actions = policy.act(observations, rewards)
        for index, row in enumerate(rows):
            expected, token = naive[row].act(
                observations[index], float(rewards[index]), actions[index]
            )
            np.testing.assert_allclose(actions[index], expected, rtol=5e-5, atol=5e-5)
            assert float(policy._context.token[index]) == pytest.approx(token, rel=1e-4, abs=1e-4)
            seen.append(token)
    assert np.ptp(seen) > 1.0, "a test in which nothing moves shows nothing"


def test_the_grids_choice_depends_on_the_critic(make_model: ModelFactory) -> None:
    """Upside down, it picks another target; and all targets are picked somewhere."""
    model = make_model("dt", context_length=2)
    critic = make_critic()
    upside_down = make_critic()
    with torch.no_grad():
        upside_down.weights[-1].neg_()
    rng = np.random.default_rng(0)
    observations = rng.normal(size=(64, STATE)).astype(np.float32)
    chosen = []
    for q in (critic, upside_down):
        policy = Policy(model, ReturnGrid(q, TARGETS))
        policy.reset(64)
        policy.act(observations)
        chosen.append(policy._context.token.clone())
    assert set(chosen[0].tolist()) == set(TARGETS)
    assert bool((chosen[0] != chosen[1]).any())


def test_softmax_draws_by_q(make_model: ModelFactory) -> None:
    """As often as softmax(Q / t) says; at a low temperature the best one; the same every time."""
    model = make_model("reinformer", context_length=2)
    critic = make_critic()
    observation = np.random.default_rng(3).normal(size=STATE).astype(np.float32)

    def draws(temperature: float, count: int) -> list[float]:
        found = []
        for seed in range(count):
            grid = ReturnGrid(critic, TARGETS, "softmax", temperature=temperature, seed=seed)
            policy = Policy(model, grid)
            policy.act(observation)
            found.append(float(policy._context.token))
        return found

    plain = Plain(model, "grid")
    plain.observations.append(torch.from_numpy(observation))
    actions = torch.stack([plain.forward(target)[0] for target in TARGETS])
    with torch.no_grad():
        q = critic(torch.from_numpy(observation).expand(3, -1), actions).amin(dim=0)
    found = draws(0.1, 400)
    expected = torch.softmax(q / 0.1, dim=0).tolist()
    assert max(expected) < 0.95, "a test of one outcome shows nothing"
    for target, probability in zip(TARGETS, expected, strict=True):
        spread = math.sqrt(probability * (1 - probability) / 400)
        assert found.count(target) / 400 == pytest.approx(probability, abs=4 * spread + 1e-3)
    assert found == draws(0.1, 400)
    assert draws(1e-6, 5) == [TARGETS[int(q.argmax())]] * 5


def test_a_draw_does_not_depend_on_the_batch(make_model: ModelFactory) -> None:
    model = make_model("reinformer", context_length=2)
    grid = ReturnGrid(make_critic(), TARGETS, "softmax", temperature=5.0)
    together, alone = Policy(model, grid), Policy(model, grid)
    together.reset(4)
    rng = np.random.default_rng(0)
    tokens = []
    for _ in range(5):
        observations = rng.normal(size=(4, STATE)).astype(np.float32)
        rewards = np.ones(4, dtype=np.float32)
        actions = together.act(observations, rewards)
        np.testing.assert_allclose(alone.act(observations[2], 1.0), actions[2], atol=1e-5)
        tokens += together._context.token.tolist()
    assert len(set(tokens)) > 5


def test_search_without_shorter_histories_is_the_return_head(make_model: ModelFactory) -> None:
    model = make_model("reinformer", context_length=4)
    searching, plain = Policy(model, HistorySearch(9)), Policy(model, ReturnHead())
    rng = np.random.default_rng(0)
    for _ in range(7):
        observation = rng.normal(size=STATE).astype(np.float32)
        np.testing.assert_allclose(searching.act(observation), plain.act(observation), atol=2e-5)


@pytest.mark.parametrize("name", PREDICTORS)
def test_refinement_works_after_any(make_model: ModelFactory, name: str) -> None:
    model = make_model("reinformer")
    policy = Policy(model, PREDICTORS[name])
    refined = policy.with_refinement(make_critic(), steps=4, step_size=0.1)
    assert refined.token_predictor is PREDICTORS[name]
    rng = np.random.default_rng(0)
    for t in range(6):
        observation = rng.normal(size=STATE).astype(np.float32)
        raw, executed = policy.act(observation, 0.5), refined.act(observation, 0.5)
        assert refined.last_info is not None
        assert bool(refined.last_info.q >= refined.last_info.q_initial)
        if t == 0:
            assert not np.array_equal(raw, executed)


@pytest.mark.parametrize("name", PREDICTORS)
def test_a_policys_description_is_json(make_model: ModelFactory, name: str) -> None:
    described = Policy(make_model("reinformer"), PREDICTORS[name]).describe()
    assert json.loads(json.dumps(described))["token_predictor"] == type(PREDICTORS[name]).__name__


# --- what does not fit ---


def mlp() -> SequenceModel:
    return build_model(ModelConfig(kind="mlp", context_length=1), STATE, ACTION)


@pytest.mark.parametrize("name", [name for name in PREDICTORS if name != "search"])
def test_a_model_without_tokens_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"needs a model with return tokens .*'mlp'; use NoToken"):
        Policy(mlp(), PREDICTORS[name])


def test_search_needs_a_return_head_and_windows(make_model: ModelFactory) -> None:
    for model in (make_model("dt"), make_model("reinformer", attention="sliding"), mlp()):
        with pytest.raises(ValueError, match="HistorySearch needs a model that predicts returns"):
            Policy(model, HistorySearch())


def test_critics_of_other_sizes_are_refused(make_model: ModelFactory) -> None:
    model = make_model("dt")
    with pytest.raises(ValueError, match="critic: expected action_dim=3, the policy's, got 2"):
        Policy(model, ReturnGrid(Critic(STATE, 2), TARGETS))
    value = Value()
    value.observation_dim = 4  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"value: expected observation_dim=5, .* got 4"):
        Policy(model, ValuePrompt(value))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"targets": ()}, "targets: expected at least one"),
        ({"targets": (1.0, math.nan)}, "targets: expected a finite number, got nan"),
        ({"rule": "mean"}, "rule: expected max or softmax, got 'mean'"),
        ({"countdown": "none"}, "countdown: expected rewards or linear, got 'none'"),
        ({"countdown": "linear"}, "horizon: expected the number of .* got None"),
        ({"countdown": "linear", "horizon": 0}, "horizon: expected the number of .* got 0"),
        ({"temperature": 0.0}, r"temperature: expected a positive number, got 0\.0"),
        ({"seed": -1}, "seed: expected an integer of at least 0, got -1"),
    ],
)
def test_bad_options_of_the_grid(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ReturnGrid(make_critic(), **{"targets": TARGETS, **options})


def test_bad_options_of_the_others() -> None:
    with pytest.raises(ValueError, match=r"discount: expected a number in \(0, 1\], got 0"):
        DiscountedCountdown(1.0, 0.0)
    with pytest.raises(ValueError, match="target_return: expected a finite number, got inf"):
        DiscountedCountdown(math.inf)
    with pytest.raises(ValueError, match="scale: expected a finite number, got nan"):
        ValuePrompt(Value(), math.nan)
    with pytest.raises(ValueError, match="stride: expected an integer of at least 1, got 0"):
        HistorySearch(0)


@pytest.mark.parametrize("attention", ["full", "sliding"])
def test_a_grid_is_not_exported(make_model: ModelFactory, tmp_path: Path, attention: Any) -> None:
    policy = Policy(make_model("dt", attention=attention), PREDICTORS["grid"])
    with pytest.raises(ValueError, match=r"token_predictor: .* exported"):
        policy.export(tmp_path / "policy.pt2", format="torch")


# --- by name ---


@pytest.fixture(scope="module")
def data() -> Trajectories:
    rng = np.random.default_rng(0)
    ends = np.zeros(60, dtype=bool)
    ends[[19, 39, 59]] = True
    return Trajectories.from_arrays(
        observations=rng.normal(size=(60, STATE)),
        actions=rng.uniform(-1, 1, size=(60, ACTION)),
        rewards=rng.random(60),
        next_observations=rng.normal(size=(60, STATE)),
        terminations=ends,
        truncations=np.zeros(60, dtype=bool),
    )


def critic_run(data: Trajectories, folder: Path, **changes: Any) -> Path:
    config = CriticConfig(hidden=(8,), steps=3, device="cpu", progress=False)
    train_critic(data, dataclasses.replace(config, **changes), folder)
    return folder


@pytest.mark.parametrize("method", ["iql", "ensemble"])
def test_v_comes_in_raw_units(data: Trajectories, tmp_path: Path, method: Any) -> None:
    """Of a critic that was trained on scaled rewards."""
    from dtag_fast.training.guide import load_raw_value

    folder = critic_run(data, tmp_path / "critic", method=method, reward_scaling="iql-mujoco")
    value = load_raw_value(folder)
    returns = data.returns()
    factor = 1000 / float(returns.max() - returns.min())
    observations = torch.randn(6, STATE)
    with torch.no_grad():
        inner: Any = value.value
        if method == "iql":
            scaled = inner(observations)
        else:
            scaled = inner(observations, torch.zeros(6, 1)).mean(dim=0)
    torch.testing.assert_close(value(observations), scaled / factor)
    assert not any(parameter.requires_grad for parameter in value.parameters())


def test_v_cannot_be_had_from_every_critic(data: Trajectories, tmp_path: Path) -> None:
    folder = critic_run(data, tmp_path / "td3-bc", method="td3-bc", reward_scaling="none")
    with pytest.raises(ValueError, match=r"value: needs a critic with V, .*method td3-bc"):
        ValuePrompt.load(folder)
    folder = critic_run(data, tmp_path / "shifted", reward_scaling="antmaze")
    with pytest.raises(ValueError, match=r"value: expected a critic of rewards .*not shifted"):
        ValuePrompt.load(folder)
    with pytest.raises(CheckpointError, match="no such folder"):
        ValuePrompt.load(tmp_path / "nowhere")


def test_predictors_by_name(make_model: ModelFactory, data: Trajectories, tmp_path: Path) -> None:
    folder = critic_run(data, tmp_path / "critic", reward_scaling="none")
    dt, reinformer = make_model("dt"), make_model("reinformer")

    def make(name: Any, model: SequenceModel = reinformer, **options: Any) -> Any:
        return make_predictor(
            PredictorOptions(name=name, **options),
            model,
            target_return=8.0,
            horizon=20,
            critic=folder,
        )

    assert make("own", dt) == FixedTarget(8.0)
    assert make_predictor(PredictorOptions(), reinformer) == ReturnHead()
    assert make_predictor(PredictorOptions(), mlp()) == NoToken()
    assert make("fixed") == FixedTarget(8.0)
    assert make("discounted", discount=0.5) == DiscountedCountdown(8.0, 0.5)
    assert make("return-head") == ReturnHead()
    assert make("history-search", stride=3) == HistorySearch(3)
    assert make("value", scale=0.5).scale == 0.5
    grid = make("grid", rule="softmax", countdown="linear", temperature=2.0, seed=4)
    assert grid.targets == (4.0, 6.0, 8.0, 12.0, 16.0)
    assert (grid.rule, grid.countdown, grid.horizon) == ("softmax", "linear", 20)
    assert (grid.temperature, grid.seed) == (2.0, 4)
    assert make("grid", targets=(1.0, 2.0), horizon=7).horizon == 7
    expected = Critic.load(folder)(torch.zeros(1, STATE), torch.zeros(1, ACTION))
    assert torch.equal(grid.critic(torch.zeros(1, STATE), torch.zeros(1, ACTION)), expected)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("own", "target_return: needed"),
        ("fixed", "target_return: needed, a return to aim for, by the token predictor 'fixed'"),
        ("discounted", "target_return: needed"),
        ("return-head", "ReturnHead needs a model that predicts returns"),
        ("history-search", "HistorySearch needs a model"),
        ("value", "critic: needed, the folder of a critic's run, by the token predictor 'value'"),
        ("grid", "critic: needed"),
    ],
)
def test_what_a_name_needs(make_model: ModelFactory, name: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make_predictor(PredictorOptions(name=name), make_model("dt"))


def test_a_grid_needs_targets(make_model: ModelFactory, data: Trajectories, tmp_path: Path) -> None:
    folder = critic_run(data, tmp_path / "critic", reward_scaling="none")
    with pytest.raises(ValueError, match="targets: needed, returns to aim for"):
        make_predictor(PredictorOptions(name="grid", critic=folder), make_model("dt"))


def test_what_was_received_stays_with_its_row() -> None:
    context = Context(3, 2, STATE, ACTION)
    context.received.copy_(torch.tensor([1.0, 2.0, 3.0]))
    assert context.select(np.array([2, 0])).received.tolist() == [3.0, 1.0]
