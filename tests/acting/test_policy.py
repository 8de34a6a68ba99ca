"""Policy.act against a loop that rebuilds everything from the whole history at every step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from dtag_fast.acting.policy import Policy
from dtag_fast.acting.token_predictors import FixedTarget, ReturnHead, TokenPredictor
from dtag_fast.models.critic import Critic
from dtag_fast.models.decision_transformer import SequenceModel
from dtag_fast.refinement import Refiner, reference

pytestmark = pytest.mark.usefixtures("inference")

STATE, ACTION = 5, 3
TARGET = 11.0

ModelFactory = Callable[..., SequenceModel]
Floats = NDArray[np.float32]

# model kind, token predictor
CASES = [
    pytest.param("dt", FixedTarget(TARGET), id="dt"),
    pytest.param("reinformer", ReturnHead(), id="reinformer"),
    pytest.param("reinformer", FixedTarget(TARGET), id="reinformer-fixed"),
]


class WholeHistory:
    """One environment; windows by concatenation, plain forward passes, nothing kept but lists.

    Padding is Reinformer's (eval.py: zeros behind) or kzl's (evaluate_episodes.py: zeros in front,
    masked), after the model's kind.
    """

    def __init__(self, model: SequenceModel, predictor: TokenPredictor) -> None:
        self.model, self.predictor = model, predictor
        self.observations: list[Tensor] = []
        self.actions: list[Tensor] = []
        self.tokens: list[float] = []

    def act(self, observation: Floats, reward: float, given: Floats | None = None) -> Floats:
        """The model's action; `given`, if any, is the one that goes into the history."""
        self.observations.append(torch.from_numpy(observation))
        self.actions.append(torch.zeros(ACTION))
        if isinstance(self.predictor, FixedTarget):
            first = len(self.tokens) == 0
            self.tokens.append(self.predictor.target_return if first else self.tokens[-1] - reward)
        else:
            self.tokens.append(0.0)
            self.tokens[-1] = float(self.forward()[1])
        action, _ = self.forward()
        self.actions[-1] = action if given is None else torch.from_numpy(given)
        return np.asarray(action)

    @torch.no_grad()
    def forward(self) -> tuple[Tensor, Tensor]:
        length = self.model.config.context_length
        time = len(self.observations) - 1
        pad = max(0, length - time - 1)
        left = self.model.config.kind == "dt"

        def window(values: Tensor) -> Tensor:
            recent = values[-length:]
            padding = torch.zeros(pad, *recent.shape[1:], dtype=recent.dtype)
            return torch.cat([padding, recent] if left else [recent, padding])[None]

        output = self.model(
            window(torch.stack(self.observations)),
            window(torch.stack(self.actions)),
            window(torch.tensor(self.tokens)),
            window(torch.arange(time + 1)),
            window(torch.ones(time + 1, dtype=torch.bool)),
        )
        index = -1 if left else min(time, length - 1)
        returns = output.returns_to_go
        return output.actions[0, index], torch.zeros(()) if returns is None else returns[0, index]


def random_steps(count: int, envs: int) -> tuple[Floats, Floats]:
    rng = np.random.default_rng(0)
    observations = rng.normal(size=(count, envs, STATE)).astype(np.float32)
    return observations, rng.normal(size=(count, envs)).astype(np.float32)


@pytest.mark.parametrize(("kind", "predictor"), CASES)
@pytest.mark.parametrize("context_length", [1, 2, 5])
def test_act_equals_the_loop_over_the_whole_history(
    make_model: ModelFactory, kind: str, predictor: TokenPredictor, context_length: int
) -> None:
    """Before the window is full, when it becomes full, and as it slides."""
    model = make_model(kind, context_length=context_length)
    policy, naive = Policy(model, predictor), WholeHistory(model, predictor)
    observations, rewards = random_steps(3 * context_length + 2, 1)
    actions = []
    for t in range(len(observations)):
        action = policy.act(observations[t, 0], rewards[t, 0])
        expected = naive.act(observations[t, 0], float(rewards[t, 0]), given=action)
        np.testing.assert_allclose(action, expected, rtol=2e-5, atol=2e-5)
        actions.append(action)
    assert np.ptp(actions, axis=0).min() > 0.02, "a test in which nothing moves shows nothing"


@pytest.mark.parametrize(("kind", "predictor"), CASES)
def test_environments_at_different_timesteps_do_not_meet(
    make_model: ModelFactory, kind: str, predictor: TokenPredictor
) -> None:
    """Rows begin again at various times; each goes on as if it were alone."""
    model = make_model(kind, context_length=3)
    begins = {0: [0, 1, 2, 3], 2: [1], 3: [1, 2], 7: [3], 9: [0, 3]}
    policy = Policy(model, predictor)
    policy.reset(4)
    naive = [WholeHistory(model, predictor) for _ in range(4)]
    observations, rewards = random_steps(14, 4)
    for t in range(14):
        if t in begins:
            policy.reset_rows(begins[t])
            for row in begins[t]:
                naive[row] = WholeHistory(model, predictor)
                rewards[t, row] = np.nan  # nothing was received before an episode
        actions = policy.act(observations[t], rewards[t])
        expected = [
            naive[row].act(observations[t, row], float(rewards[t, row]), given=actions[row])
            for row in range(4)
        ]
        np.testing.assert_allclose(actions, np.array(expected), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(("kind", "predictor"), CASES)
def test_keep_rows_goes_on_with_the_rest(
    make_model: ModelFactory, kind: str, predictor: TokenPredictor
) -> None:
    model = make_model(kind)
    whole, part = Policy(model, predictor), Policy(model, predictor)
    observations, rewards = random_steps(9, 4)
    whole.reset(4)
    part.reset(4)
    for t in range(3):
        whole.act(observations[t], rewards[t])
        part.act(observations[t], rewards[t])
    part.keep_rows(np.array([True, False, True, True]))
    kept = [0, 2, 3]
    for t in range(3, 6):
        expected = whole.act(observations[t], rewards[t])[kept]
        actual = part.act(observations[t, kept], rewards[t, kept])
        np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=2e-5)
    part.keep_rows([2, 0])
    expected = whole.act(observations[6], rewards[6])[[3, 0]]
    actual = part.act(observations[6, [3, 0]], rewards[6, [3, 0]])
    np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=2e-5)
    assert part.num_envs == 2


def test_actions_are_float32_in_the_box_and_copies(make_model: ModelFactory) -> None:
    model = make_model("reinformer")
    policy = Policy(model, ReturnHead())
    policy.reset(2)
    observations, _ = random_steps(2, 2)
    before = observations.copy()
    first = policy.act(observations[0].astype(np.float64))
    kept = first.copy()
    assert first.dtype == np.float32
    assert first.shape == (2, ACTION)
    assert (first >= policy.action_low).all()
    assert (first <= policy.action_high).all()
    policy.act(observations[1])
    np.testing.assert_array_equal(first, kept)
    np.testing.assert_array_equal(observations, before)
    policy.reset()
    assert policy.act(observations[0, 0]).shape == (ACTION,)


@pytest.mark.parametrize("context_action", ["refined", "raw"])
def test_which_action_enters_the_context(
    make_model: ModelFactory, critic: Critic, context_action: Any
) -> None:
    model = make_model("reinformer", context_length=3)
    policy = Policy(model, ReturnHead()).with_refinement(
        critic, steps=5, step_size=0.3, gradient="raw", context_action=context_action
    )
    policy.reset(2)
    naive = [WholeHistory(model, ReturnHead()) for _ in range(2)]
    bounds = (policy.action_low, policy.action_high)
    observations, _ = random_steps(8, 2)
    moved = 0.0
    for t in range(8):
        actions = policy.act(observations[t])
        given = list(actions) if context_action == "refined" else [None, None]
        raw = np.stack([naive[i].act(observations[t, i], 0.0, given[i]) for i in range(2)])
        expected = reference.refine(
            critic, observations[t], raw, steps=5, step_size=0.3, bounds=bounds
        )
        np.testing.assert_allclose(actions, expected, rtol=1e-4, atol=1e-4)
        moved = max(moved, float(np.abs(actions - raw).max()))
    assert moved > 0.01


def test_refinement_is_reported_and_leaves_the_first_policy_alone(
    make_model: ModelFactory, critic: Critic
) -> None:
    plain = Policy(make_model("reinformer"), ReturnHead())
    plain.reset(3)
    refined = plain.with_refinement(critic, step_size=0.2, gradient="unit", backend="reference")
    assert refined.model is plain.model
    assert refined.num_envs == 3
    observations, _ = random_steps(1, 3)
    raw, actions = plain.act(observations[0]), refined.act(observations[0])
    assert plain.last_info is None
    assert plain.last_timing is not None
    assert plain.last_timing.model_ms > 0
    assert plain.last_timing.refinement_ms == 0
    info = refined.last_info
    assert info is not None
    assert info.q.shape == (3,)
    assert bool((info.q >= info.q_initial).all())
    np.testing.assert_allclose(info.distance, np.linalg.norm(actions - raw, axis=1), atol=1e-5)
    assert refined.last_timing is not None
    assert refined.last_timing.refinement_ms > 0
    described = refined.describe()["refinement"]
    assert (described["steps"], described["gradient"]) == (5, "unit")
    assert refined.without_refinement().describe() == plain.describe()


def test_policies_refine_as_recommended(make_model: ModelFactory, critic: Critic) -> None:
    policy = Policy(make_model("reinformer"), ReturnHead()).with_refinement(critic)
    assert policy.refiner is not None
    options = policy.refiner.options
    assert (options.steps, options.step_size, options.gradient) == (5, 0.01, "unit")
    # The operator itself keeps the paper's raw gradient.
    contract = Refiner(critic).options
    assert (contract.steps, contract.step_size, contract.gradient) == (10, 0.03, "raw")
    assert policy.refiner.options.low == tuple(policy.action_low.tolist())


def test_no_steps_of_refinement_change_nothing(make_model: ModelFactory, critic: Critic) -> None:
    plain = Policy(make_model("dt"), FixedTarget(TARGET))
    refined = plain.with_refinement(critic, steps=0)
    observations, rewards = random_steps(7, 1)
    for t in range(7):
        np.testing.assert_array_equal(
            plain.act(observations[t], rewards[t]), refined.act(observations[t], rewards[t])
        )


def test_without_bounds_the_executed_action_is_still_in_the_box(
    make_model: ModelFactory, critic: Critic
) -> None:
    policy = Policy(make_model("dt"), FixedTarget(TARGET)).with_refinement(
        critic, step_size=100.0, select="last", bounds=None
    )
    action = policy.act(np.ones(STATE))
    assert (action >= policy.action_low).all()
    assert (action <= policy.action_high).all()
    assert ((action == policy.action_low) | (action == policy.action_high)).any()


def test_a_model_in_training_mode_is_put_into_evaluation_mode(make_model: ModelFactory) -> None:
    model = make_model("dt", dropout=0.5)
    policy = Policy(model, FixedTarget(TARGET))
    expected = policy.act(np.ones(STATE))
    model.train()
    policy.reset()
    np.testing.assert_array_equal(policy.act(np.ones(STATE)), expected)
    assert not model.training


def test_rewards_are_needed_after_the_first_step_by_a_fixed_target(
    make_model: ModelFactory,
) -> None:
    policy = Policy(make_model("dt"), FixedTarget(TARGET))
    policy.act(np.zeros(STATE))
    with pytest.raises(ValueError, match="rewards: needed by FixedTarget"):
        policy.act(np.zeros(STATE))
    with pytest.raises(ValueError, match=r"rewards: expected \[1\], got \[2\]"):
        policy.act(np.zeros(STATE), np.zeros(2))
    with pytest.raises(ValueError, match="rewards: not finite in environment 0"):
        policy.act(np.zeros(STATE), np.nan)
    policy.act(np.zeros(STATE), 1.0)
    policy.reset()
    policy.act(np.zeros(STATE))


@pytest.mark.parametrize(
    ("observations", "message"),
    [
        (np.zeros((3, STATE)), r"observations: expected \[2, 5\], got \[3, 5\]"),
        (np.zeros((2, STATE + 1)), r"observations: expected \[2, 5\], got \[2, 6\]"),
        (np.zeros(STATE), r"observations: expected \[2, 5\], got \[5\]"),
        (np.array([[0.0] * STATE, [0.0, np.nan, 0, 0, 0]]), "not finite in environment 1"),
    ],
)
def test_bad_observations(
    make_model: ModelFactory, observations: NDArray[Any], message: str
) -> None:
    policy = Policy(make_model("reinformer"), ReturnHead())
    policy.reset(2)
    with pytest.raises(ValueError, match=message):
        policy.act(observations)


def test_an_action_that_is_not_finite_is_an_error(make_model: ModelFactory) -> None:
    model = make_model("reinformer")
    with torch.no_grad():
        model.embed_timestep.weight[2] = torch.nan
    policy = Policy(model, ReturnHead())
    policy.act(np.zeros(STATE))
    policy.act(np.zeros(STATE))
    with pytest.raises(RuntimeError, match="not finite in environment 0 at timestep 2"):
        policy.act(np.zeros(STATE))


def test_nothing_of_a_broken_episode_is_left(make_model: ModelFactory) -> None:
    """A masked NaN would still get through: zero times NaN."""
    model = make_model("reinformer", context_length=3)
    policy = Policy(model, ReturnHead(), inference="torch")
    expected = policy.act(np.ones(STATE))
    policy._context._action_slots.fill_(torch.nan)
    policy._context._token_slots.fill_(torch.nan)
    policy._context._observation_slots.fill_(torch.nan)
    policy.reset_rows([0])
    np.testing.assert_array_equal(policy.act(np.ones(STATE)), expected)


def test_an_episode_longer_than_the_model_knows(make_model: ModelFactory) -> None:
    policy = Policy(make_model("reinformer", max_timestep=3), ReturnHead())
    for _ in range(3):
        policy.act(np.zeros(STATE))
    with pytest.raises(ValueError, match=r"longer than the 3 timesteps \(max_timestep\)"):
        policy.act(np.zeros(STATE))
    policy.reset_rows(np.array([True]))
    policy.act(np.zeros(STATE))


def test_bad_rows(make_model: ModelFactory) -> None:
    policy = Policy(make_model("reinformer"), ReturnHead())
    policy.reset(3)
    with pytest.raises(ValueError, match="rows: expected 0 to 2"):
        policy.reset_rows([3])
    with pytest.raises(ValueError, match=r"rows: expected a mask \[3\] or a list of indices"):
        policy.reset_rows(np.array([True, False]))
    with pytest.raises(ValueError, match="at least one environment to keep"):
        policy.keep_rows(np.zeros(3, dtype=bool))
    with pytest.raises(ValueError, match="num_envs: expected an integer of at least 1, got 0"):
        policy.reset(0)
    policy.reset_rows([])


def test_bad_construction(make_model: ModelFactory, critic: Critic) -> None:
    model = make_model("dt")
    with pytest.raises(ValueError, match="ReturnHead needs a model that predicts returns"):
        Policy(model, ReturnHead())
    with pytest.raises(ValueError, match="context_action: expected refined or raw, got 'both'"):
        Policy(model, FixedTarget(1.0), context_action="both")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="return_info=True"):
        Policy(model, FixedTarget(1.0), refiner=Refiner(critic))
    with pytest.raises(ValueError, match="target_return: expected a finite number, got nan"):
        FixedTarget(float("nan"))
    policy = Policy(model, FixedTarget(1.0))
    with pytest.raises(ValueError, match="critic: expected observation_dim=5"):
        policy.with_refinement(Critic(STATE + 1, ACTION))
    with pytest.raises(ValueError, match="optimizer: expected one of"):
        policy.with_refinement(critic, optimizer="sophia")


def test_load_restores_a_trained_policy(tmp_path: Path) -> None:
    from dtag_fast.data.trajectories import Trajectories
    from dtag_fast.models.config import ModelConfig
    from dtag_fast.training.config import PolicyConfig
    from dtag_fast.training.sequence import train_policy

    rng = np.random.default_rng(0)
    ends = np.arange(40) % 20 == 19
    data = Trajectories.from_arrays(
        rng.normal(size=(40, STATE)).astype(np.float32),
        rng.uniform(-1, 1, size=(40, ACTION)).astype(np.float32),
        rng.normal(size=40).astype(np.float32),
        ends,
        np.zeros(40, dtype=bool),
    )
    small = {"context_length": 4, "blocks": 1, "embedding_dim": 8, "attention_heads": 2}
    for kind, target in (("dt", None), ("dt", 3.0), ("reinformer", None)):
        directory = tmp_path / f"{kind}-{target}"
        config = PolicyConfig(
            model=ModelConfig(kind=kind, **small),  # type: ignore[arg-type]
            steps=2,
            batch_size=4,
            target_return=target,
            progress=False,
        )
        train_policy(data, config, directory)
        if kind == "dt" and target is None:
            with pytest.raises(ValueError, match="target_return: needed"):
                Policy.load(directory)
            policy = Policy.load(directory, target_return=5.0)
            assert policy.token_predictor == FixedTarget(5.0)
        else:
            policy = Policy.load(directory)
            expected = FixedTarget(3.0) if kind == "dt" else ReturnHead()
            assert policy.token_predictor == expected
        assert np.isfinite(policy.act(np.zeros(STATE))).all()
        assert isinstance(Policy.load(directory, target_return=1.0).token_predictor, FixedTarget)
