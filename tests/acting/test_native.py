"""Acting in native code against torch: whole episodes, ragged, in every instruction set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dtag_fast import build_info
from dtag_fast.acting.context import Context
from dtag_fast.acting.inference import predict_actions, predict_returns
from dtag_fast.acting.native import (
    Inference,
    NativeContext,
    unavailable_reason,
    unsupported_reason,
)
from dtag_fast.acting.policy import Policy
from dtag_fast.acting.token_predictors import FixedTarget, ReturnHead, TokenPredictor
from dtag_fast.models.critic import Critic
from dtag_fast.models.decision_transformer import DecisionTransformer, Reinformer, SequenceModel

STATE, ACTION = 5, 3
TOLERANCE = 3e-5
REFINED = 3e-4  # a step near a kink of the critic makes more of rounding
ModelFactory = Callable[..., SequenceModel]
Floats = NDArray[np.float32]

pytestmark = pytest.mark.skipif(
    unavailable_reason() is not None, reason=f"no native acting: {unavailable_reason()}"
)

PREDICTORS: dict[str, TokenPredictor] = {"dt": FixedTarget(11.0), "reinformer": ReturnHead()}
ISAS = [isa for isa in build_info.describe()["isas"].split(", ") if isa not in ("", "scalar")]


def both(
    model: SequenceModel, predictor: TokenPredictor, critic: Critic | None = None, envs: int = 3
) -> list[Policy]:
    """A policy of each inference, native first, at the beginning of episodes."""
    made = []
    words: tuple[Inference, ...] = ("native", "torch")
    for inference in words:
        policy = Policy(model, predictor, inference=inference)
        if critic is not None:
            policy = policy.with_refinement(critic, step_size=0.05)
        policy.reset(envs)
        made.append(policy)
    return made


def compare(policies: list[Policy], steps: int, seed: int = 0, resets: bool = True) -> None:
    """Both act on the same observations; environments begin anew now and then."""
    generator = np.random.default_rng(seed)
    tolerance = TOLERANCE if policies[0].refiner is None else REFINED
    actions = []
    for t in range(steps):
        envs = policies[0].num_envs
        observations = generator.standard_normal((envs, STATE)).astype(np.float32)
        rewards = generator.uniform(0, 3, envs).astype(np.float32)
        if resets and t and t % 3 == 0:
            for policy in policies:
                policy.reset_rows([t % envs])
        native, expected = (policy.act(observations, rewards) for policy in policies)
        np.testing.assert_allclose(native, expected, rtol=tolerance, atol=tolerance)
        actions.append(native)
    assert np.ptp([a[0] for a in actions], axis=0).max() > 0.05, "the same action always"


@pytest.mark.parametrize("attention", ["full", "sliding"])
@pytest.mark.parametrize("kind", ["dt", "reinformer"])
@pytest.mark.parametrize("refined", [False, True])
@pytest.mark.parametrize(
    "config",
    [
        {},
        {"block_norm": "pre", "activation": "gelu", "embedding_dim": 40, "attention_heads": 5},
        {"block_norm": "post", "activation": "relu", "embedding_dim": 33, "attention_heads": 1},
        {"blocks": 1, "context_length": 1, "embedding_dim": 64, "attention_heads": 4},
        {"embedding_dim": 25, "attention_heads": 25},
        {"blocks": 3, "context_length": 7, "embedding_dim": 48, "attention_heads": 2},
    ],
    ids=lambda config: "-".join(str(each) for each in config.values()) or "default",
)
def test_equals_torch(
    make_model: ModelFactory,
    critic: Critic,
    attention: str,
    kind: str,
    refined: bool,
    config: dict[str, Any],
) -> None:
    model = make_model(kind, attention=attention, **config)
    policies = both(model, PREDICTORS[kind], critic if refined else None)
    compare(policies, 12)
    for policy in policies:
        policy.keep_rows([2, 0])
    compare(policies, 6, seed=1)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("attention", ["full", "sliding"])
def test_every_instruction_set(make_model: ModelFactory, isa: str, attention: str) -> None:
    """Batches of one row to more than go through the blocks together."""
    from dtag_fast import _native

    before = _native.isa()
    _native.select_isa(isa)
    try:
        for envs in (1, 2, 5, 17):
            model = make_model("reinformer", attention=attention, embedding_dim=72)
            compare(both(model, ReturnHead(), envs=envs), 7)
    finally:
        _native.select_isa(before)


def rounded(model: SequenceModel) -> SequenceModel:
    """The model with the blocks' weights and their inputs in bfloat16, as torch rounds."""
    for block in model.blocks:
        for layer in block.modules():
            if isinstance(layer, nn.Linear):
                layer.weight.data = layer.weight.data.bfloat16().float()
                layer.register_forward_pre_hook(lambda _, inputs: inputs[0].bfloat16().float())
    return model


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("attention", ["full", "sliding"])
@pytest.mark.parametrize("kind", ["dt", "reinformer"])
def test_bfloat16(make_model: ModelFactory, isa: str, kind: str, attention: str) -> None:
    """What torch makes of rounded weights and inputs, but for a number that is rounded otherwise
    once in a while; and so close to the model that it is the same policy. Odd widths, too."""
    from dtag_fast import _native

    before = _native.isa()
    _native.select_isa(isa)
    try:
        for width, heads in ((48, 3), (25, 25)):  # powers of 4 a head: its scale is exact
            sizes = {"attention": attention, "embedding_dim": width, "attention_heads": heads}
            model, twin = make_model(kind, **sizes), rounded(make_model(kind, **sizes))
            policies = [
                Policy(model, PREDICTORS[kind], inference="native", precision="bf16"),
                Policy(twin, PREDICTORS[kind], inference="torch"),
                Policy(model, PREDICTORS[kind], inference="torch"),
            ]
            generator = np.random.default_rng(0)
            close, far = [], []
            for policy in policies:
                policy.reset(9)
            for _ in range(8):
                rows = generator.standard_normal((9, STATE)).astype(np.float32)
                rewards = np.ones(9, dtype=np.float32)
                actions, expected, plain = (policy.act(rows, rewards) for policy in policies)
                close.append(np.abs(actions - expected))
                far.append(np.abs(actions - plain))
            assert np.median(close) < 0.1 * np.median(far)
            assert np.max(close) < 0.1
            assert 1e-4 < np.max(far) < 0.2
    finally:
        _native.select_isa(before)


def test_a_row_does_not_depend_on_those_beside_it(make_model: ModelFactory) -> None:
    model = make_model("reinformer", embedding_dim=64, attention_heads=4)
    observations = np.random.default_rng(0).standard_normal((6, 20, STATE)).astype(np.float32)
    together, alone = (Policy(model, ReturnHead(), inference="native") for _ in range(2))
    together.reset(20)
    for rows in observations:
        actions = together.act(rows)
        np.testing.assert_array_equal(alone.act(rows[7]), actions[7])


@dataclass(frozen=True)
class LooksAtWindows:
    """Tries tokens, some of them the mean of what the windows hold, and takes the last."""

    needs_rewards = False

    def check_model(self, model: SequenceModel) -> None: ...

    def choose(self, model: SequenceModel, context: Context, rewards: Tensor | None) -> Tensor:
        if isinstance(model, Reinformer):
            context.write_token(predict_returns(model, context))
            predict_actions(model, context)
        mean = (context.observations.mean(dim=2) * context.mask).sum(dim=1)
        context.write_token(mean + 0.5 * context.tokens.sum(dim=1))
        predict_actions(model, context)
        return predict_actions(model, context)


@pytest.mark.parametrize("attention", ["full", "sliding"])
@pytest.mark.parametrize("kind", ["dt", "reinformer"])
def test_any_token_predictor(make_model: ModelFactory, kind: str, attention: str) -> None:
    model = make_model(kind, attention=attention)
    policies = both(model, LooksAtWindows())
    compare(policies, 10)
    for policy in policies:
        policy.keep_rows([True, False, True])
    compare(policies, 6, seed=1)


@pytest.mark.parametrize("whole", [True, False])
def test_changed_weights_are_noticed(make_model: ModelFactory, whole: bool) -> None:
    model = make_model("reinformer")
    policies = both(model, ReturnHead() if whole else LooksAtWindows())
    compare(policies, 6, resets=False)
    with torch.no_grad():
        model.blocks[0].attention.query.weight.mul_(1.5)  # type: ignore[union-attr, operator]
        model.embed_observation.weight.add_(0.1)
    compare(policies, 6, seed=1, resets=False)


def test_what_the_critic_learns_is_noticed(make_model: ModelFactory, critic: Critic) -> None:
    policies = both(make_model("dt"), PREDICTORS["dt"], critic)
    compare(policies, 3)
    with torch.no_grad():
        critic.weights[0].mul_(-1.0)
    compare(policies, 3, seed=1)


def test_refinement_is_reported(make_model: ModelFactory, critic: Critic) -> None:
    native, expected = both(make_model("reinformer"), ReturnHead(), critic)
    observations = np.random.default_rng(0).standard_normal((4, 3, STATE)).astype(np.float32)
    for rows in observations:
        for policy in (native, expected):
            policy.act(rows)
        assert native.last_info is not None
        assert expected.last_info is not None
        for name in ("q", "q_initial", "distance"):
            values = (getattr(policy.last_info, name) for policy in (native, expected))
            torch.testing.assert_close(*values, rtol=1e-4, atol=1e-4)
        assert native.last_info.algorithm == expected.last_info.algorithm
        assert native.last_timing is not None
        assert native.last_timing.model_ms > 0
        assert native.last_timing.refinement_ms > 0


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.astype(np.float64),
        lambda x: x.tolist(),
        lambda x: torch.from_numpy(x),
        lambda x: np.repeat(x, 2, axis=0)[::2],
        lambda x: x.astype(">f4"),
    ],
    ids=["float64", "list", "tensor", "strided", "big-endian"],
)
def test_kinds_of_arguments(make_model: ModelFactory, change: Callable[[Floats], Any]) -> None:
    model = make_model("dt")
    plain, other = (Policy(model, PREDICTORS["dt"], inference="native") for _ in range(2))
    for policy in (plain, other):
        policy.reset(2)
    generator = np.random.default_rng(0)
    for _ in range(5):
        rows = generator.standard_normal((2, STATE)).astype(np.float32)
        rewards = generator.standard_normal(2).astype(np.float32)
        expected = plain.act(rows, rewards)
        np.testing.assert_array_equal(other.act(change(rows), change(rewards)), expected)


def test_bad_arguments_after_whole_actions_change_nothing(make_model: ModelFactory) -> None:
    model = make_model("dt")
    policy, other = (Policy(model, PREDICTORS["dt"], inference="native") for _ in range(2))
    rows = np.random.default_rng(0).standard_normal((6, STATE)).astype(np.float32)
    for row in rows:
        expected = other.act(row, 1.0)
        for bad, reward, message in (
            (row[1:], 1.0, "observations: expected"),
            (row * np.nan, 1.0, "observations: not finite"),
            *(((row, np.nan, "rewards: not finite"),) if policy._context.steps[0] >= 0 else ()),
        ):
            with pytest.raises(ValueError, match=message):
                policy.act(bad, reward)
        np.testing.assert_array_equal(policy.act(row, 1.0), expected)


def test_nothing_of_a_broken_episode_is_left(make_model: ModelFactory) -> None:
    """Nor does it reach the environment beside it."""
    for attention in ("full", "sliding"):
        model = make_model("reinformer", attention=attention)
        with torch.no_grad():
            model.embed_timestep.weight[3] = torch.nan
        policy, fresh = (Policy(model, ReturnHead(), inference="native") for _ in range(2))
        policy.reset(2)
        rows = np.random.default_rng(0).standard_normal((8, 2, STATE)).astype(np.float32)
        for t in range(3):
            policy.act(rows[t])
        policy.reset_rows([1])
        with pytest.raises(RuntimeError, match="not finite in environment 0 at timestep 3"):
            policy.act(rows[3])
        policy.reset_rows([0, 1])
        np.testing.assert_array_equal(policy.act(rows[4])[0], fresh.act(rows[4][0]))


def test_an_episode_longer_than_the_model_knows(make_model: ModelFactory) -> None:
    policy = Policy(make_model("reinformer", max_timestep=4), ReturnHead(), inference="native")
    for _ in range(4):
        policy.act(np.zeros(STATE, dtype=np.float32))
    with pytest.raises(ValueError, match="longer than the 4 timesteps"):
        policy.act(np.zeros(STATE, dtype=np.float32))


class OwnForward(DecisionTransformer):
    """A model of its own kind."""


class OwnLinear(nn.Linear):
    """A layer of its own kind."""


@pytest.fixture
def strangers(make_model: ModelFactory) -> list[tuple[str, SequenceModel]]:
    """Models that native code does not know, and what it says of each."""
    model = make_model("dt")
    own = OwnForward(model.config, STATE, ACTION)
    patched = make_model("dt")
    patched.predict_action = OwnLinear(patched.config.embedding_dim, ACTION)
    return [
        ("it knows DecisionTransformer, got OwnForward", own),
        ("does not know the OwnLinear at predict_action", patched),
        ("takes float32 weights on the CPU.*float64", make_model("dt").double()),
    ]


def test_models_it_does_not_know(strangers: list[tuple[str, SequenceModel]]) -> None:
    for message, model in strangers:
        with pytest.raises(RuntimeError, match=f"native cannot be had: .*{message}"):
            Policy(model, PREDICTORS["dt"], inference="native")
        with pytest.raises(RuntimeError, match=message):
            Policy(model, PREDICTORS["dt"], precision="bf16")
        assert Policy(model, PREDICTORS["dt"]).inference == "torch"


def test_the_word(make_model: ModelFactory) -> None:
    model = make_model("dt")
    with pytest.raises(
        ValueError, match="inference: expected one of auto, native, torch, graph, got 'fast'"
    ):
        Policy(model, PREDICTORS["dt"], inference="fast")  # type: ignore[arg-type]
    assert unsupported_reason(model) is None
    policy = Policy(model, PREDICTORS["dt"])
    assert policy.inference == policy.describe()["inference"] == "native"
    assert isinstance(policy._context, NativeContext)
    assert repr(policy) == (
        "Policy(dt, FixedTarget(target_return=11.0), inference='native', precision='fp32', "
        "num_envs=1)"
    )
    chosen = Policy(model, PREDICTORS["dt"], inference="torch")
    with pytest.raises(ValueError, match="precision: expected one of fp32, bf16, got 'int8'"):
        Policy(model, PREDICTORS["dt"], precision="int8")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="precision: bf16 is of native inference"):
        Policy(model, PREDICTORS["dt"], inference="torch", precision="bf16")
    assert chosen.without_refinement().inference == "torch"


def test_a_model_that_is_no_longer_such(make_model: ModelFactory) -> None:
    model = make_model("dt")
    policy = Policy(model, PREDICTORS["dt"], inference="native")
    policy.act(np.zeros(STATE))
    model.predict_action = OwnLinear(model.config.embedding_dim, ACTION)
    with pytest.raises(RuntimeError, match=r"has changed since .*OwnLinear"):
        policy.act(np.zeros(STATE), 0.0)
