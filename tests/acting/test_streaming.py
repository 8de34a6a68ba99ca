"""Acting from kept keys and values against the forward pass over the whole episode so far."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from dtag_fast.acting.context import Context
from dtag_fast.acting.inference import predict_actions, predict_returns
from dtag_fast.acting.policy import Policy
from dtag_fast.acting.streaming import StreamingContext
from dtag_fast.acting.token_predictors import FixedTarget, ReturnHead, TokenPredictor
from dtag_fast.models.critic import Critic
from dtag_fast.models.decision_transformer import Reinformer, SequenceModel

pytestmark = pytest.mark.usefixtures("inference")

STATE, ACTION = 5, 3
TARGET = 11.0

ModelFactory = Callable[..., SequenceModel]
Floats = NDArray[np.float32]

CASES = pytest.mark.parametrize(
    ("kind", "predictor"),
    [
        pytest.param("dt", FixedTarget(TARGET), id="dt"),
        pytest.param("reinformer", ReturnHead(), id="reinformer"),
        pytest.param("reinformer", FixedTarget(TARGET), id="reinformer-fixed"),
    ],
)


class WholeEpisode:
    """One environment; at every step the model's forward pass over all of the episode so far."""

    def __init__(self, model: SequenceModel, predictor: TokenPredictor) -> None:
        self.model, self.predictor = model, predictor
        self.observations: list[Tensor] = []
        self.actions: list[Tensor] = []
        self.tokens: list[float] = []

    def act(self, observation: Floats, reward: float, given: Floats | None = None) -> Floats:
        """The model's action; `given`, if any, is the one that goes into the history."""
        first = len(self.tokens) == 0
        self.observations.append(torch.from_numpy(observation))
        self.actions.append(torch.zeros(ACTION))
        if isinstance(self.predictor, FixedTarget):
            self.tokens.append(self.predictor.target_return if first else self.tokens[-1] - reward)
        else:
            self.tokens.append(0.0)
            self.tokens[-1] = float(self.forward().returns_to_go[0, -1])
        action = self.forward().actions[0, -1]
        self.actions[-1] = action if given is None else torch.from_numpy(given)
        return np.asarray(action)

    @torch.no_grad()
    def forward(self) -> Any:
        return self.model(
            torch.stack(self.observations)[None],
            torch.stack(self.actions)[None],
            torch.tensor(self.tokens)[None],
            torch.arange(len(self.tokens))[None],
        )


def random_steps(count: int, envs: int) -> tuple[Floats, Floats]:
    rng = np.random.default_rng(0)
    observations = rng.normal(size=(count, envs, STATE)).astype(np.float32)
    return observations, rng.normal(size=(count, envs)).astype(np.float32)


@CASES
@pytest.mark.parametrize("context_length", [1, 2, 5])
@pytest.mark.parametrize(("blocks", "block_norm"), [(1, "pre"), (3, "post")])
def test_act_equals_the_forward_pass_over_the_whole_episode(
    make_model: ModelFactory,
    kind: str,
    predictor: TokenPredictor,
    context_length: int,
    blocks: int,
    block_norm: Any,
) -> None:
    """At every timestep, far beyond what the first steps have an influence on."""
    model = make_model(
        kind,
        attention="sliding",
        context_length=context_length,
        blocks=blocks,
        block_norm=block_norm,
    )
    policy, naive = Policy(model, predictor), WholeEpisode(model, predictor)
    count = 3 * (context_length + 1) + model.config.history
    observations, rewards = random_steps(count, 1)
    actions = []
    for t in range(count):
        action = policy.act(observations[t, 0], rewards[t, 0])
        expected = naive.act(observations[t, 0], float(rewards[t, 0]), given=action)
        np.testing.assert_allclose(action, expected, rtol=2e-5, atol=2e-5)
        actions.append(action)
    assert np.ptp(actions, axis=0).min() > 0.02, "a test in which nothing moves shows nothing"


@CASES
def test_environments_at_different_timesteps_do_not_meet(
    make_model: ModelFactory, kind: str, predictor: TokenPredictor
) -> None:
    """Rows begin again at various times, and some leave; each goes on as if it were alone."""
    model = make_model(kind, attention="sliding", context_length=3)
    begins = {0: [0, 1, 2, 3], 2: [1], 3: [1, 2], 7: [3], 9: [0, 3]}
    policy = Policy(model, predictor)
    policy.reset(4)
    naive = [WholeEpisode(model, predictor) for _ in range(4)]
    observations, rewards = random_steps(18, 4)
    rows = [0, 1, 2, 3]
    for t in range(18):
        if t in begins:
            policy.reset_rows(begins[t])
            for row in begins[t]:
                naive[row] = WholeEpisode(model, predictor)
                rewards[t, row] = np.nan  # nothing was received before an episode
        if t == 12:
            rows = [3, 0, 2]
            policy.keep_rows(rows)
        actions = policy.act(observations[t, rows], rewards[t, rows])
        expected = [
            naive[row].act(observations[t, row], float(rewards[t, row]), given=action)
            for row, action in zip(rows, actions, strict=True)
        ]
        np.testing.assert_allclose(actions, np.array(expected), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("context_action", ["refined", "raw"])
def test_the_action_that_enters_the_context(
    make_model: ModelFactory, critic: Critic, context_action: Any
) -> None:
    model = make_model("reinformer", attention="sliding", context_length=3)
    policy = Policy(model, ReturnHead()).with_refinement(
        critic, steps=5, step_size=0.3, context_action=context_action
    )
    assert policy.refiner is not None
    naive = WholeEpisode(model, ReturnHead())
    observations, _ = random_steps(8, 1)
    for t in range(8):
        action = policy.act(observations[t, 0])
        raw = naive.act(observations[t, 0], 0.0, action if context_action == "refined" else None)
        expected, _ = policy.refiner(observations[t, 0], raw)
        np.testing.assert_allclose(action, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["dt", "reinformer"])
@torch.inference_mode()
def test_a_token_predictor_may_try_several_tokens(make_model: ModelFactory, kind: str) -> None:
    """What later steps see is the token that was written last, whether or not it was asked about.

    Every third step asks for nothing at all.
    """
    model = make_model(kind, attention="sliding", context_length=3)
    trying, straight = StreamingContext(model, 2), StreamingContext(model, 2)
    generator = torch.Generator().manual_seed(0)
    for t in range(10):
        observation = torch.randn(2, STATE, generator=generator)
        token, action = (torch.randn(2, *shape, generator=generator) for shape in ((), (ACTION,)))
        trying.begin_step(observation)
        straight.begin_step(observation)
        if isinstance(model, Reinformer) and t % 2:
            predict_returns(model, trying)
        for tried in (token + 3, token - 3, token):
            trying.write_token(tried)
            if t % 3:
                tries = predict_actions(model, trying)
        trying.write_token(token + 1)
        trying.write_token(token)
        straight.write_token(token)
        expected = predict_actions(model, straight)
        if t % 3:
            torch.testing.assert_close(tries, expected, rtol=2e-5, atol=2e-5)
        trying.write_actions(action)
        straight.write_actions(action)
    assert (trying.steps == 9).all()


def test_nothing_of_a_broken_episode_is_left(make_model: ModelFactory) -> None:
    """A NaN would come through a weight of zero."""
    model = make_model("reinformer", attention="sliding", context_length=3)
    policy = Policy(model, ReturnHead(), inference="torch")
    expected = policy.act(np.ones(STATE))
    context = policy._context
    assert isinstance(context, StreamingContext)
    for kept in (*context._keys, *context._values, context.actions, context.token):
        kept.fill_(torch.nan)
    policy.reset_rows([0])
    np.testing.assert_array_equal(policy.act(np.ones(STATE)), expected)


def test_what_does_not_fit_is_told(make_model: ModelFactory) -> None:
    full, sliding = (make_model("reinformer", attention=each) for each in ("full", "sliding"))
    with pytest.raises(ValueError, match="sliding attention, got attention='full'"):
        StreamingContext(full, 1)
    with pytest.raises(TypeError, match="expected a StreamingContext"):
        predict_actions(sliding, Context(1, 4, STATE, ACTION))
    assert isinstance(sliding, Reinformer)
    context = StreamingContext(sliding, 1)
    with torch.inference_mode():
        context.begin_step(torch.zeros(1, STATE))
        predict_returns(sliding, context)
        with pytest.raises(RuntimeError, match="predict_returns: once a step"):
            predict_returns(sliding, context)
