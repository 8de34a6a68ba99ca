"""Which batches on the CPU "auto" takes to a GPU: the rule against what was measured, and what goes
there; on a machine with one in test_cuda_gpu.py, here on the emulation of the cuda kernels.
"""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks import gpu_latency
from benchmarks.cases import HOPPER, STANDING
from benchmarks.gpu_latency import WIDEST
from dtag_fast import Critic, Refiner, refine
from dtag_fast.refinement import RefineInfo, cpu, crossover, cuda
from dtag_fast.refinement.crossover import multiply_adds, rows_for_gpu
from dtag_fast.refinement.execution import DEFAULT, Execution
from dtag_fast.refinement.parity import random_batch, random_critic
from dtag_fast.refinement.weights_version import weights_version
from tests.refinement.emulation import emulated

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
LEAST = 5  # rows, for the critic of these tests

pytestmark = pytest.mark.skipif(
    cpu.unavailable_reason() is not None, reason=str(cpu.unavailable_reason())
)


@pytest.fixture
def in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process uses a GPU, or so it looks."""
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)


@pytest.fixture
def gpu(in_use: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The cuda backend runs, and is worth it from LEAST rows of `small()` on."""
    monkeypatch.setattr(crossover, "WORTH_THE_WAY", (LEAST - 1) * multiply_adds(small()) + 1)
    with emulated():
        yield


def small() -> Critic:
    return random_critic(hidden=(40, 30), observation_dim=5, action_dim=3)


def by(backend: Any, critic: Critic, batch: tuple[Tensor, Tensor]) -> Tensor:
    result: Tensor = refine(critic, *batch, backend=backend, step_size=0.3)
    return result


# The rule


@pytest.mark.usefixtures("in_use")
def test_it_tells_the_quicker_of_all_that_was_measured() -> None:
    critics = {case.name: case.critic() for case in (HOPPER, STANDING, WIDEST)}
    found = 0
    for path in RESULTS.glob("*-gpu*.json"):
        for row in json.loads(path.read_text())["crossovers"]:
            if "auto" not in row:  # of another way: by a caller who sends what is on the CPU
                continue
            least = rows_for_gpu(critics[row["case"]], DEFAULT)
            assert least is not None
            assert (row["B"] >= least) == (row["cpu us"] > row["gpu us"]), (path.name, row)
            found += 1
    assert found >= 21


@pytest.mark.usefixtures("in_use")
def test_the_benchmark_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_latency, "CROSSOVER_BATCHES", (1, 4))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    with emulated():
        rows = gpu_latency.crossovers()
    chosen = [(row["case"], row["B"], row["auto"]) for row in rows]
    small_ones = [(case.name, B, "cpu") for case in (HOPPER, STANDING) for B in (1, 4)]
    assert chosen == [*small_ones, (WIDEST.name, 1, "cpu"), (WIDEST.name, 4, "cuda")]
    for row in rows:
        assert row["cpu / gpu"] == row["cpu us"] / row["gpu us"]


@pytest.mark.usefixtures("in_use")
def test_it_goes_by_what_the_first_maps_take() -> None:
    critic = random_critic(hidden=(7, 4), observation_dim=3, action_dim=2, heads=5)
    assert multiply_adds(critic) == 5 * (7 * 3 + 7 * 4 * 3 // 2)
    assert multiply_adds(random_critic(hidden=(8,), observation_dim=5)) == 2 * 8 * 5
    for width in (64, 256, 512, 2000):
        critic = random_critic(hidden=(width, width))
        least = rows_for_gpu(critic, DEFAULT)
        assert least is not None
        assert least * multiply_adds(critic) >= crossover.WORTH_THE_WAY
        assert least == 1 or (least - 1) * multiply_adds(critic) < crossover.WORTH_THE_WAY


@pytest.mark.usefixtures("in_use")
def test_it_is_for_critics_on_the_cpu_in_ways_that_were_measured() -> None:
    critic = small()
    assert rows_for_gpu(critic, DEFAULT) is not None
    assert rows_for_gpu(critic.to("meta"), DEFAULT) is None
    assert rows_for_gpu(torch.nn.Linear(3, 1), DEFAULT) is None
    for words in ({"algorithm": "dense"}, {"precision": "bf16"}, {"threads": 2}):
        assert rows_for_gpu(small(), Execution(**words)) is None


def test_a_process_that_uses_no_gpu_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setattr(crossover, "WORTH_THE_WAY", 1)
    assert rows_for_gpu(small(), DEFAULT) is None
    with emulated():
        assert Refiner(small()).backend_for(10_000) == "cpu"


# What goes there


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("kind", ["torch", "numpy", "double", "starts"])
def test_large_batches_go_there_and_small_ones_stay(kind: str) -> None:
    critic = small()
    refiner = Refiner(critic, step_size=0.3)
    assert refiner.backend == "cpu"
    observations, actions = random_batch(critic, 3 * LEAST, 2)
    actions = actions if kind == "starts" else actions[:, 0].contiguous()
    if kind == "double":
        observations, actions = observations.double(), actions.double()
    for rows in (1, LEAST - 1, LEAST, 3 * LEAST, LEAST, 2):
        batch = observations[:rows], actions[:rows]
        backend = "cuda" if rows >= LEAST else "cpu"
        assert refiner.backend_for(rows) == backend
        expected = by(backend, critic, batch)
        for _ in range(2):
            result = refiner(*(x.numpy() for x in batch) if kind == "numpy" else batch)
            assert isinstance(result, np.ndarray) == (kind == "numpy")
            assert torch.equal(torch.as_tensor(result), expected), rows
            assert torch.equal(by("auto", critic, batch), expected)
    # Otherwise this would show nothing.
    assert not torch.equal(by("cpu", critic, batch), by("cuda", critic, batch))


@pytest.mark.usefixtures("gpu")
def test_the_fast_call_leaves_large_batches() -> None:
    critic = small()
    refiner = Refiner(critic)
    observations, actions = random_batch(critic, LEAST)
    refiner(observations[1:], actions[1:])
    assert refiner._fast(observations[1:], actions[1:]) is not NotImplemented
    assert refiner._fast(observations, actions) is NotImplemented
    named = Refiner(critic, backend="cpu")
    named(observations, actions)
    assert named._fast(observations, actions) is not NotImplemented
    assert named.backend_for(10**9) == "cpu"


@pytest.mark.usefixtures("gpu")
def test_refine_remembers_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    critic = small()
    few, many = random_batch(critic, LEAST - 1), random_batch(critic, LEAST)
    expected = by("cpu", critic, few), by("cuda", critic, many)

    def again(*_: Any, **words: Any) -> None:
        pytest.fail("what is remembered does not do")

    for _ in range(2):
        assert torch.equal(by("auto", critic, many), expected[1])
        assert torch.equal(by("auto", critic, few), expected[0])
        monkeypatch.setattr(Refiner, "__init__", again)
    assert not torch.equal(by("auto", critic, many)[:-1], by("auto", critic, few))


@pytest.mark.usefixtures("gpu")
def test_one_row_is_one_row() -> None:
    critic = random_critic(hidden=(40, 30), observation_dim=LEAST + 1, action_dim=LEAST + 1)
    observations, actions = random_batch(critic, 1, 2 * LEAST)
    refiner = Refiner(critic)
    result = refiner(observations[0], actions[0, 0])
    assert torch.equal(result, refine(critic, observations[0], actions[0, 0], backend="cpu"))
    assert torch.equal(
        refiner(observations, actions), refine(critic, observations, actions, backend="cpu")
    )


@pytest.mark.usefixtures("gpu")
def test_information_comes_back_too() -> None:
    critic = small()
    batch = random_batch(critic, LEAST)
    result, info = Refiner(critic, return_info=True)(*batch)
    expected, known = refine(critic, *batch, backend="cuda", return_info=True)
    assert torch.equal(result, expected)
    assert isinstance(info, RefineInfo)
    for name, value in vars(known).items():
        np.testing.assert_array_equal(getattr(info, name), value, name)


@pytest.mark.usefixtures("gpu")
def test_the_way_is_on_a_stream_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    critic = small()
    observations, actions = random_batch(critic, LEAST)
    packed = replace(cuda.pack(critic), device=torch.device("cpu", 0))  # elsewhere, by its name
    options = Refiner(critic).options
    steps: list[str] = []
    launch, sent = cuda._launch, cuda._sent

    @contextmanager
    def stream(of: object) -> Iterator[None]:
        steps.append(str(of))
        yield
        steps.append("left")

    def launched(*arguments: Any) -> Tensor:
        steps.append("launched")
        return launch(*arguments)

    def on_its_way(*arguments: Any) -> Tensor:
        steps.append("sent")
        return sent(*arguments)

    monkeypatch.setattr(cuda, "_own_stream", lambda device: f"stream of {device}")
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(cuda, "_launch", launched)
    monkeypatch.setattr(cuda, "_sent", on_its_way)
    result, _ = cuda.run(packed, observations, actions.unsqueeze(1), options)
    assert steps == ["stream of cpu:0", "sent", "sent", "launched", "left"]
    call = cuda.fast_call(packed, weights_version(critic), options, DEFAULT)
    assert torch.equal(call(observations, actions), result)
    assert steps[5:] == steps[:5]


@pytest.mark.usefixtures("gpu")
def test_new_weights_are_noticed_there_too() -> None:
    critic = small()
    batch = random_batch(critic, LEAST)
    refiner = Refiner(critic, step_size=0.3)
    for change in (1.0, -1.5, 0.5):
        with torch.no_grad():
            critic.weights[1].mul_(change)
        assert torch.equal(refiner(*batch), by("cuda", critic, batch))
    critic.weights[1].data.mul_(-1.0)
    refiner.refresh()
    assert torch.equal(refiner(*batch), by("cuda", critic, batch))


@pytest.mark.usefixtures("gpu")
def test_where_cuda_cannot_the_cpu_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    critic = random_critic(hidden=(40, 30), activation="tanh")
    batch = random_batch(critic, 3 * LEAST)
    refiner = Refiner(critic, step_size=0.3)
    refiner(batch[0][:1], batch[1][:1])
    expected = by("cpu", critic, batch)
    assert torch.equal(refiner(*batch), expected)
    assert refiner.backend_for(3 * LEAST) == "cpu"
    assert torch.equal(refiner._fast(*batch), expected)
    with monkeypatch.context() as patch:
        patch.setattr(cuda, "unavailable_reason", lambda: "broken")
        assert Refiner(small()).backend_for(10_000) == "cpu"
    assert Refiner(small()).backend_for(10_000) == "cuda"


@pytest.mark.usefixtures("gpu")
def test_nothing_goes_there_while_a_graph_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    critic = small()
    batch = random_batch(critic, LEAST)
    refiner = Refiner(critic, step_size=0.3)
    there = refiner(*batch)
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        assert torch.equal(refiner(*batch), by("cpu", critic, batch))
        assert refiner.backend_for(LEAST) == "cpu"
    assert torch.equal(refiner(*batch), there)


@pytest.mark.usefixtures("gpu")
def test_errors_are_those_of_any_batch() -> None:
    critic = small()
    observations, actions = random_batch(critic, 2 * LEAST)
    refiner = Refiner(critic)
    with pytest.raises(ValueError, match="actions: expected 9 rows, as many as observations"):
        refiner(observations[1:], actions)
    with pytest.raises(ValueError, match="observations: expected 5 numbers a row, got 4"):
        refiner(observations[:, 1:], actions)
    with pytest.raises(TypeError, match="actions: expected floating point"):
        refiner(observations, actions.int())


@pytest.mark.usefixtures("gpu")
def test_a_copy_finds_out_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    critic = small()
    batch = random_batch(critic, LEAST)
    refiner = Refiner(critic, step_size=0.3)
    there = refiner(*batch)
    again = copy.deepcopy(refiner)
    assert again.backend_for(LEAST) == "cuda"
    assert again._on_gpu is not None
    assert again._on_gpu.critic is again.critic
    assert torch.equal(again(*batch), there)
    kept = pickle.dumps(refiner)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    elsewhere = pickle.loads(kept)
    assert elsewhere.backend_for(LEAST) == "cpu"
    assert torch.equal(elsewhere(*batch), by("cpu", critic, batch))
