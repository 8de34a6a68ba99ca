"""Evaluation: many environments at once against one at a time, native code against torch.

Reinformer at its default size acts in PointMaze (dense rewards, so that every step shows in the
return). All ways play the same seeds, and their returns have to agree before a time is printed.
Torch runs with one thread or two, whichever makes its actions faster, native code with one; the
ways are interleaved and the best time of each counts. With torch, 16 environments at once must be
at least 5 times as fast as one at a time; native code at least twice as fast as torch. The floor
is the multiplications that an action can't do without, at the rate of a matrix product of torch's
measured in the same run.

    python -m pytest benchmarks/bench_evaluation.py -s
"""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Iterator

import gymnasium as gym
import numpy as np
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from dtag_fast.acting.native import Inference, unavailable_reason
from dtag_fast.acting.policy import Policy
from dtag_fast.acting.token_predictors import ReturnHead
from dtag_fast.evaluation.environments import make_env
from dtag_fast.evaluation.result import Evaluation
from dtag_fast.evaluation.rollout import evaluate
from dtag_fast.models.config import ModelConfig
from dtag_fast.models.critic import Critic
from dtag_fast.models.decision_transformer import build_model

ENVS, STEPS, ROUNDS = 16, 40, 3
BATCHED, NATIVE = 5.0, 2.0  # least ratios

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("gymnasium_robotics") is None, reason="the extra envs is not installed"
)


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def env_spec() -> str:
    env = make_env("PointMaze_UMazeDense-v3")
    assert env.spec is not None
    env.close()
    spec = gym.spec(env.spec.id)
    spec.max_episode_steps = STEPS
    return spec.to_json()


Policies = dict[Inference, Policy]


@pytest.fixture(scope="module", params=["unrefined", "refined"])
def policies(request: pytest.FixtureRequest) -> Policies:
    reason = unavailable_reason()
    if reason is not None:
        pytest.skip(f"no native acting: {reason}")
    torch.manual_seed(0)
    model, critic = build_model(ModelConfig(), 4, 2), Critic(4, 2)
    words: tuple[Inference, ...] = ("torch", "native")
    plain = {word: Policy(model, ReturnHead(), inference=word) for word in words}
    if request.param == "unrefined":
        return plain
    return {word: policy.with_refinement(critic) for word, policy in plain.items()}


def seconds_per_action(evaluation: Evaluation) -> float:
    return evaluation.wall_s / evaluation.actions


def faster_threads(policy: Policy, num_envs: int) -> int:
    """1 or 2, by the best of a few actions: two help large batches, on cores that are free."""
    times = {}
    for threads in (1, 2):
        torch.set_num_threads(threads)
        policy.reset(num_envs)
        taken = []
        for _ in range(12):
            start = time.perf_counter()
            policy.act(np.zeros((num_envs, 4), dtype=np.float32))
            taken.append(time.perf_counter() - start)
        times[threads] = float(np.median(taken))
    return min(times, key=times.__getitem__)


def floor_seconds(threads: int) -> float:
    """Time of an action's multiplications at the rate of a [208, 256] x [256, 1024] product."""
    torch.set_num_threads(threads)
    config = ModelConfig()
    width, prefix = config.embedding_dim, 3 * config.context_length - 2
    block = 12 * width**2  # query, key, value, projection and an MLP four times as wide
    multiplications = (
        prefix * ((config.blocks - 1) * block + 2 * width**2)  # in the last block keys and values
        + block
        - 2 * width**2  # the observation's token there
        + config.blocks * block  # the return's token
    )
    x, weight = torch.randn(ENVS * prefix, width), torch.randn(width, 4 * width)
    best = np.inf
    for _ in range(50):
        start = time.perf_counter()
        torch.mm(x, weight)
        best = min(best, time.perf_counter() - start)
    return float(best * multiplications / (x.numel() * 4 * width))


def test_evaluation(benchmark: BenchmarkFixture, policies: Policies, env_spec: str) -> None:
    ways: list[tuple[Inference, int]] = [(word, n) for word in policies for n in (1, ENVS)]

    def play(word: Inference, num_envs: int, episodes: int, threads: int) -> Evaluation:
        torch.set_num_threads(threads)
        return evaluate(policies[word], env_spec, episodes, num_envs=num_envs)

    threads = {
        (word, num_envs): faster_threads(policies[word], num_envs) if word == "torch" else 1
        for word, num_envs in ways
    }
    best: dict[tuple[Inference, int], tuple[float, Evaluation]] = {}
    for _ in range(ROUNDS):
        for way in ways:
            evaluation = play(*way, 2 if way[1] == 1 else ENVS, threads[way])
            seconds = seconds_per_action(evaluation)
            if way not in best or seconds < best[way][0]:
                best[way] = seconds, evaluation
        expected = best["torch", ENVS][1].returns
        for _, evaluation in best.values():
            returns = evaluation.returns
            np.testing.assert_allclose(returns, expected[: len(returns)], rtol=1e-4)
    assert np.ptp(expected) > 0.1, "returns that do not differ show no parity"

    benchmark.pedantic(  # type: ignore[no-untyped-call]
        play, args=("native", ENVS, ENVS, 1), rounds=3
    )
    floor = floor_seconds(1)
    batched = best["torch", 1][0] / best["torch", ENVS][0]
    native = best["torch", ENVS][0] / best["native", ENVS][0]
    benchmark.extra_info.update(batched=batched, native=native, floor_us=1e6 * floor)
    print(f"\n{benchmark.name}: {os.cpu_count()} cores, torch {torch.__version__}, fp32")
    for (word, num_envs), (seconds, evaluation) in best.items():
        print(
            f"  {word}, {num_envs:2d} at once, threads {threads[word, num_envs]}: "
            f"{1e3 * seconds:.3f} ms/action, {1 / (STEPS * seconds):.2f} episodes/s "
            f"(policy {evaluation.policy_ms:.3f}, refinement {evaluation.refinement_ms:.3f}, "
            f"env {evaluation.env_ms:.3f})"
        )
    print(
        f"  torch {batched:.1f} times as fast batched; native {native:.1f} times as fast as torch, "
        f"and {best['native', ENVS][0] / floor:.1f} times the floor of {1e3 * floor:.3f} ms; "
        f"returns agree"
    )
    assert batched >= BATCHED
    assert native >= NATIVE
