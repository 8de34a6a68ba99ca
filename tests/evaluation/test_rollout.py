"""Every episode asked for is played to its end, counted once, and from the right start."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from dtag_fast.acting.policy import Policy
from dtag_fast.acting.token_predictors import FixedTarget, ReturnHead
from dtag_fast.data.references import ReferenceScores
from dtag_fast.evaluation.result import Evaluation
from dtag_fast.evaluation.rollout import evaluate
from dtag_fast.models.config import ModelConfig
from dtag_fast.models.critic import Critic
from dtag_fast.models.decision_transformer import build_model


def lengths_of(env: Any, seeds: range) -> list[int]:
    return [env.length(seed) for seed in seeds]


@pytest.mark.parametrize("num_envs", [1, 2, 3, 7, 10, None])
@pytest.mark.parametrize("shrinks", [False, True])
def test_all_episodes_are_played_once_whatever_the_batch(
    counting_env: Any,
    recording_actor: Any,
    shrinking_actor: Any,
    num_envs: int | None,
    shrinks: bool,
) -> None:
    actor = (shrinking_actor if shrinks else recording_actor)()
    evaluation = evaluate(actor, counting_env, episodes=10, seed=3, num_envs=num_envs)
    expected = lengths_of(counting_env, range(3, 13))
    assert evaluation.lengths.tolist() == expected
    assert evaluation.returns.tolist() == expected
    assert [e.episode for e in evaluation.episodes] == list(range(10))
    assert [e.seed for e in evaluation.episodes] == list(range(3, 13))
    assert [e.terminated for e in evaluation.episodes] == [s % 2 == 0 for s in range(3, 13)]
    assert [e.truncated for e in evaluation.episodes] == [s % 2 == 1 for s in range(3, 13)]
    assert evaluation.actions == sum(expected)
    assert evaluation.num_envs == (num_envs or 10)


@pytest.mark.parametrize("num_envs", [1, 3])
def test_the_policy_sees_each_episode_from_its_start_with_its_own_rewards(
    counting_env: Any, shrinking_actor: Any, num_envs: int
) -> None:
    actor = shrinking_actor(action=0.5)
    evaluate(actor, counting_env, episodes=6, num_envs=num_envs)
    played = {episode[0][0]: episode for episode in actor.episodes + actor.current if episode}
    assert sorted(played) == list(range(6))
    for seed, episode in played.items():
        steps = counting_env.length(int(seed))
        rewards = [0.0] + [1.5] * (steps - 1)
        assert episode == [(seed, float(t), rewards[t]) for t in range(steps)]


def test_finished_environments_leave_the_batch(counting_env: Any, shrinking_actor: Any) -> None:
    actor = shrinking_actor()
    evaluate(actor, counting_env, episodes=4, num_envs=4)  # lengths 2, 7, 12, 17
    assert actor.batches == [4] * 2 + [3] * 5 + [2] * 5 + [1] * 5


def test_in_processes_as_in_this_one(counting_env: Any, recording_actor: Any) -> None:
    evaluation = evaluate(
        recording_actor(), counting_env, episodes=7, num_envs=3, vectorization="async"
    )
    assert evaluation.returns.tolist() == lengths_of(counting_env, range(7))


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("shrinks", [False, True])
def test_vector_environments_of_the_caller(
    counting_env: Any, recording_actor: Any, shrinking_actor: Any, mode: Any, shrinks: bool
) -> None:
    """A fixed quota for each: 8 episodes in 3 environments are 3, 3 and 2."""
    envs = SyncVectorEnv([counting_env] * 3, autoreset_mode=mode)
    actor = (shrinking_actor if shrinks else recording_actor)(action=0.5)
    evaluation = evaluate(actor, envs, episodes=8, seed=20)
    assert [e.env for e in evaluation.episodes] == [0, 1, 2, 0, 1, 2, 0, 1]
    if mode == AutoresetMode.DISABLED:
        started = list(range(20, 28))
        assert [e.seed for e in evaluation.episodes] == started
    else:
        # On its own, an environment goes on with the seed after its last.
        started = [20, 21, 22, 21, 22, 23, 22, 23]
        assert [e.seed for e in evaluation.episodes] == [20, 21, 22] + [None] * 5
    lengths = [counting_env.length(seed) for seed in started]
    assert evaluation.lengths.tolist() == lengths
    assert evaluation.returns.tolist() == [1.5 * length for length in lengths]
    assert not envs.closed
    whole = [e for e in actor.episodes if e and e[0][1] == 0.0 and len(e) > 1]
    for episode in whole:
        steps = [step for _, step, _ in episode]
        assert steps == [float(t) for t in range(len(steps))]
        assert [reward for *_, reward in episode] == [0.0] + [1.5] * (len(steps) - 1)


def test_an_asynchronous_vector_environment_of_the_caller(
    counting_env: Any, recording_actor: Any
) -> None:
    envs = AsyncVectorEnv([counting_env] * 2)  # NEXT_STEP
    try:
        evaluation = evaluate(recording_actor(), envs, episodes=4)
        assert evaluation.lengths.tolist() == lengths_of(counting_env, range(2)) + lengths_of(
            counting_env, range(1, 3)
        )
    finally:
        envs.close()


def test_more_environments_than_episodes(counting_env: Any, recording_actor: Any) -> None:
    envs = SyncVectorEnv([counting_env] * 5)
    assert evaluate(recording_actor(), envs, episodes=2).lengths.tolist() == [2, 7]
    assert evaluate(recording_actor(), counting_env, episodes=2, num_envs=5).num_envs == 2


def test_an_environment_that_is_made_runs_alone_and_stays_open(
    counting_env: Any, recording_actor: Any
) -> None:
    env = counting_env()
    assert evaluate(recording_actor(), env, episodes=3).lengths.tolist() == [2, 7, 12]
    assert not env.closed
    with pytest.raises(ValueError, match="already made can't run several at once"):
        evaluate(recording_actor(), env, episodes=3, num_envs=2)


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_environments_made_here_are_closed(
    counting_env: Any, recording_actor: Any, tmp_path: Path, vectorization: Any
) -> None:
    class Traced(counting_env):  # type: ignore[misc]
        def close(self) -> None:
            with (tmp_path / "closed").open("a") as file:
                file.write("x")

    class Failing(recording_actor):  # type: ignore[misc]
        def act(self, observations: Any, rewards: Any) -> Any:
            if len(self.batches) == 3:
                raise ZeroDivisionError("in the policy")
            return super().act(observations, rewards)

    # Gymnasium makes one more environment in front of asynchronous ones, to see its spaces.
    extra = "x" if vectorization == "async" else ""
    evaluate(recording_actor(), Traced, episodes=2, vectorization=vectorization)
    assert (tmp_path / "closed").read_text() == "xx" + extra
    with pytest.raises(ZeroDivisionError):
        evaluate(Failing(), Traced, episodes=2, num_envs=2, vectorization=vectorization)
    if vectorization == "sync":
        assert (tmp_path / "closed").read_text() == "xxxx"


@pytest.mark.filterwarnings("ignore:.*ERROR:UserWarning")  # how gymnasium logs the worker's trace
def test_an_error_in_a_worker_comes_through(counting_env: Any, recording_actor: Any) -> None:
    class Broken(counting_env):  # type: ignore[misc]
        def step(self, action: Any) -> Any:
            if self.seed == 1 and self.steps == 2:
                raise ArithmeticError("physics exploded")
            return super().step(action)

    with pytest.raises(ArithmeticError, match="physics exploded"):
        evaluate(recording_actor(), Broken, episodes=4, num_envs=2, vectorization="async")


def test_one_row_per_episode(counting_env: Any, recording_actor: Any, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "rows.jsonl"
    references = (ReferenceScores("d4rl", 0.0, 10.0), ReferenceScores("minari", 0.0, 20.0))
    for method in ("plain", "again"):
        evaluate(
            recording_actor(),
            counting_env,
            episodes=4,
            num_envs=2,
            rows=path,
            notes={"method": method},
            references=references,
        )
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["method"] for row in rows] == ["plain"] * 4 + ["again"] * 4
    assert sorted(row["episode"] for row in rows[:4]) == [0, 1, 2, 3]
    row = next(row for row in rows if row["episode"] == 1)
    assert (row["seed"], row["return"], row["length"]) == (1, 7.0, 7)
    assert row["score"] == {"D4RL": 70.0, "Minari": 35.0}
    assert row["q_gain"] is None
    assert row["policy_ms"] >= 0
    assert row["env_ms"] > 0


def test_rows_survive_a_failure(counting_env: Any, recording_actor: Any, tmp_path: Path) -> None:
    class Failing(recording_actor):  # type: ignore[misc]
        def act(self, observations: Any, rewards: Any) -> Any:
            if len(self.batches) == 5:
                raise ZeroDivisionError
            return super().act(observations, rewards)

    with pytest.raises(ZeroDivisionError):
        evaluate(Failing(), counting_env, episodes=2, num_envs=1, rows=tmp_path / "rows.jsonl")
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 1


def test_the_bar_reaches_the_end(counting_env: Any, recording_actor: Any, capsys: Any) -> None:
    evaluate(recording_actor(), counting_env, episodes=3, progress=True)
    assert "3/3" in capsys.readouterr().err
    evaluate(recording_actor(), counting_env, episodes=3)
    assert capsys.readouterr().err == ""


class TestWithPolicy:
    """The package's own policy in the counting environment."""

    def policy(self, kind: Any, action_low: float = -1.0) -> Policy:
        torch.manual_seed(0)
        config = ModelConfig(
            kind=kind,
            context_length=3,
            blocks=1,
            embedding_dim=8,
            attention_heads=2,
            max_timestep=20,
        )
        model = build_model(config, 2, 1, action_low, 1.0)
        return Policy(model, FixedTarget(10.0) if kind == "dt" else ReturnHead())

    @pytest.mark.parametrize("kind", ["dt", "reinformer"])
    @pytest.mark.parametrize("refined", [False, True])
    def test_the_result_does_not_depend_on_the_batch(
        self, counting_env: Any, kind: str, refined: bool
    ) -> None:
        policy = self.policy(kind)
        if refined:
            policy = policy.with_refinement(Critic(2, 1, hidden=(8,)), step_size=0.1)
        alone, batched = (
            evaluate(policy, counting_env, episodes=9, seed=5, num_envs=count) for count in (1, 4)
        )
        np.testing.assert_allclose(alone.returns, batched.returns, rtol=1e-5)
        assert np.ptp(alone.returns / alone.lengths) > 1e-4
        if refined:
            assert alone.q_gain is not None
            assert batched.q_gain is not None
            assert alone.q_gain > 0
            assert batched.q_gain == pytest.approx(alone.q_gain, rel=1e-3)
            assert all(e.distance is not None and e.distance > 0 for e in alone.episodes)
            assert batched.refinement_ms > 0
        else:
            assert alone.q_gain is None
            assert batched.refinement_ms == 0
        assert batched.policy_ms > 0

    def test_the_models_mode_is_kept(self, counting_env: Any) -> None:
        policy = self.policy("dt")
        policy.model.train()
        evaluate(policy, counting_env, episodes=1)
        assert policy.model.training
        policy.model.eval()
        evaluate(policy, counting_env, episodes=1)
        assert not policy.model.training

    @pytest.mark.parametrize("mode", list(AutoresetMode))
    def test_an_episode_as_long_as_the_model_knows(self, counting_env: Any, mode: Any) -> None:
        """The step after the end, which NEXT_STEP ignores, is not one too many."""
        policy = self.policy("dt")
        policy.model.config = ModelConfig(
            kind="dt",
            context_length=3,
            blocks=1,
            embedding_dim=8,
            attention_heads=2,
            max_timestep=17,
        )
        envs = SyncVectorEnv([counting_env] * 2, autoreset_mode=mode)
        evaluate(policy, envs, episodes=6, seed=2)  # lengths up to 17

    def test_an_environment_that_does_not_fit(self, counting_env: Any) -> None:
        class Wide(counting_env):  # type: ignore[misc]
            observation_space = Box(-np.inf, np.inf, (3,), np.float64)

        class Strong(counting_env):  # type: ignore[misc]
            action_space = Box(-1.0, 1.0, (2,), np.float32)

        with pytest.raises(ValueError, match=r"expected observations of 2 numbers.*got 3"):
            evaluate(self.policy("dt"), Wide)
        with pytest.raises(ValueError, match=r"expected actions of 1 numbers.*got 2"):
            evaluate(self.policy("dt"), Strong)
        with pytest.raises(ValueError, match=r"takes actions in \[-1.0\] to \[1.0\]"):
            evaluate(self.policy("dt", action_low=-2.0), counting_env)


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        (np.zeros((2, 2)), r"policy: expected actions \[2, 1\], got \[2, 2\]"),
        (np.zeros(2), r"policy: expected actions \[2, 1\], got \[2\]"),
        (np.array([[0.0], [np.nan]]), "action for environment 1 is not finite"),
    ],
)
def test_bad_actions(counting_env: Any, recording_actor: Any, actions: Any, message: str) -> None:
    actor = recording_actor()
    actor.act = lambda observations, rewards: actions
    with pytest.raises(ValueError, match=message):
        evaluate(actor, counting_env, episodes=2, num_envs=2)


def test_a_reward_that_is_not_finite(counting_env: Any, recording_actor: Any) -> None:
    class Broken(counting_env):  # type: ignore[misc]
        def step(self, action: Any) -> Any:
            observation, _, *rest = super().step(action)
            return observation, np.inf, *rest

    with pytest.raises(ValueError, match="environment 0 gave the reward inf"):
        evaluate(recording_actor(), Broken, episodes=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"episodes": 0}, "episodes: expected an integer of at least 1, got 0"),
        ({"seed": -1}, "seed: expected an integer of at least 0, got -1"),
        ({"num_envs": 0}, "num_envs: expected an integer of at least 1, got 0"),
        ({"vectorization": "both"}, "vectorization: expected sync or async, got 'both'"),
    ],
)
def test_bad_arguments(
    counting_env: Any, recording_actor: Any, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(recording_actor(), counting_env, **arguments)


def test_bad_vector_environments(counting_env: Any, recording_actor: Any) -> None:
    envs = SyncVectorEnv([counting_env] * 2)
    with pytest.raises(ValueError, match="the vector environment has 2"):
        evaluate(recording_actor(), envs, num_envs=3)
    del envs.metadata["autoreset_mode"]
    with pytest.raises(ValueError, match="metadata\\['autoreset_mode'\\]"):
        evaluate(recording_actor(), envs)


@pytest.mark.parametrize(("env_id", "horizon"), [("Hopper-v5", 1000), ("PointMaze_UMaze-v3", 300)])
def test_real_environments(env_id: str, horizon: int) -> None:
    pytest.importorskip("mujoco", reason="the extra envs is not installed")
    pytest.importorskip("gymnasium_robotics", reason="the extra envs is not installed")
    torch.manual_seed(0)
    states, actions = (11, 3) if env_id == "Hopper-v5" else (4, 2)
    config = ModelConfig(context_length=2, blocks=1, embedding_dim=8, attention_heads=1)
    policy = Policy(build_model(config, states, actions), ReturnHead())
    seen: list[Evaluation] = [
        evaluate(policy, env_id, episodes=3, num_envs=count) for count in (1, 3)
    ]
    # The same starts; what rounding does to a path later is the physics' business.
    assert seen[0].lengths.tolist() == seen[1].lengths.tolist()
    np.testing.assert_allclose(seen[0].returns, seen[1].returns, rtol=1e-3, atol=1.0)
    assert seen[0].lengths.max() <= horizon
    if env_id != "Hopper-v5":
        assert seen[0].lengths.tolist() == [horizon] * 3
    assert isinstance(gym.spec(env_id).max_episode_steps, int)
