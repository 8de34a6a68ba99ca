"""The control loop on a clock of its own: no test waits, none measures this machine."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dtag_fast.acting.policy import Policy
from dtag_fast.acting.token_predictors import ReturnHead
from dtag_fast.evaluation.latency import Latency, measure_latency
from dtag_fast.models.config import ModelConfig
from dtag_fast.models.decision_transformer import build_model

HZ, PERIOD = 1000.0, 1e-3


class Clock:
    """Time passes where someone says so, and a microsecond at every look."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        self.now += 1e-6
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds


def measure(counting_env: Any, act_s: Any, env_s: float, steps: int, **options: Any) -> Latency:
    """Acting takes `act_s(call)` seconds, the environment `env_s`."""
    torch.manual_seed(0)
    config = ModelConfig(context_length=2, blocks=1, embedding_dim=8, attention_heads=1)
    policy = Policy(build_model(config, 2, 1), ReturnHead())
    clock, calls = Clock(), []

    class SlowPolicy(Policy):
        def act(self, observations: Any, rewards: Any = None) -> NDArray[np.float32]:
            calls.append(float(observations[0]))
            clock.now += act_s(len(calls) - 1)
            return super().act(observations, rewards)

    class SlowEnv(counting_env):  # type: ignore[misc]
        def step(self, action: Any) -> Any:
            clock.now += env_s
            return super().step(action)

    slow = SlowPolicy(policy.model, policy.token_predictor)
    found = measure_latency(slow, SlowEnv, HZ, steps, clock=clock, sleep=clock.sleep, **options)
    assert len(calls) == steps + options.get("warm_up", 100)
    return found


def test_what_is_counted(counting_env: Any) -> None:
    """Every fifth action is late; the environment's 0.3 ms fit into what the others leave."""
    late = 2.5 * PERIOD
    found = measure(
        counting_env, lambda i: late if i % 5 == 4 else 0.2 * PERIOD, 0.3 * PERIOD, 40, warm_up=10
    )
    assert len(found.act) == 40
    assert found.missed == 8
    np.testing.assert_allclose(np.sort(found.act)[:32], 200, atol=5)
    np.testing.assert_allclose(np.sort(found.act)[32:], 2500, atol=5)
    np.testing.assert_allclose(found.response, found.act, atol=10)
    np.testing.assert_allclose(found.env, 300, atol=5)
    assert found.period == pytest.approx(1000)
    assert (found.model > 0).all()
    assert not found.refinement.any()
    # Episodes of 2, 7, 12, 17, 2 and 7 steps, then 3 of the next.
    assert found.episodes == 7


def test_a_slow_environment_is_not_the_policys_fault(counting_env: Any) -> None:
    found = measure(counting_env, lambda i: 0.5 * PERIOD, 30 * PERIOD, 20, warm_up=0)
    assert found.missed == 0
    np.testing.assert_allclose(found.env, 30_000, rtol=1e-3)


def test_the_summary_is_that_of_the_times(counting_env: Any, tmp_path: Any) -> None:
    found = measure(counting_env, lambda i: (0.5 + i) * 1e-4, 0.0, 30, warm_up=0)
    document = found.to_dict()
    assert document["steps"] == 30
    assert document["hz"] == pytest.approx(HZ)
    assert document["missed"] == found.missed == 20
    assert document["act_us"]["p50"] == pytest.approx(1500, abs=10)
    assert document["act_us"]["max"] == max(found.act)
    assert document["times_us"]["act"] == pytest.approx(found.act.tolist(), abs=0.01)
    lines = found.histogram()
    assert len(lines) <= 32
    assert sum(int(line.split()[4]) for line in lines) == 30
    assert "late" in lines[-1]
    assert "late" not in lines[0]
    found.plot(tmp_path / "latency.png")
    assert (tmp_path / "latency.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hz": 0.0}, "hz: expected a positive number, got 0"),
        ({"hz": float("nan")}, "hz: expected a positive number, got nan"),
        ({"steps": 0}, "steps: expected an integer of at least 1, got 0"),
        ({"warm_up": -1}, "warm_up: expected an integer of at least 0, got -1"),
    ],
)
def test_numbers_out_of_range(counting_env: Any, options: Any, message: str) -> None:
    config = ModelConfig(context_length=2, blocks=1, embedding_dim=8, attention_heads=1)
    policy = Policy(build_model(config, 2, 1), ReturnHead())
    with pytest.raises(ValueError, match=message):
        measure_latency(policy, counting_env, **{"hz": 10.0, "steps": 1, **options})
