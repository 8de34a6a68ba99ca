"""The graph backend: compiled, and of modules that are no `Critic`.

test_contract.py and its like have its mathematics, uncompiled; test_graph_captured.py its CUDA
graphs.
"""

from __future__ import annotations

import gc
import threading
import warnings
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dtag_fast
from dtag_fast import Normalizer, Refiner, refine
from dtag_fast.refinement import closed_form, compiled_loop, compiling, graph
from dtag_fast.refinement.parity import measure_parity, random_batch, random_critic
from tests.refinement.comparison import (
    assert_equals_reference,
    attention,
    needs_compiler,
)

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch's own

# Compiled. Few kinds of steps, because each takes seconds.


@needs_compiler
def test_compiled_it_equals_the_reference() -> None:
    critic = random_critic(normalizer=Normalizer(torch.ones(5), torch.full((5,), 0.5)))
    for batch in (17, 32):
        parity = measure_parity(critic, *random_batch(critic, batch), backend="graph")
        assert parity.holds, parity
    compiled = len(compiled_loop._steps)

    # The same compiled step serves other numbers, other weights and another critic.
    other = random_critic(5)
    options: dict[str, Any] = {"steps": 3, "step_size": 0.2, "bounds": ([-0.5] * 3, [0.9] * 3)}
    assert_equals_reference(other, random_batch(other, 30), **options)
    assert_equals_reference(other, random_batch(other, 30), **options, select="last")
    with torch.no_grad():
        other.weights[1].mul_(-1.5)
    assert_equals_reference(other, random_batch(other, 30), **options)
    other.biases[0] = nn.Parameter(other.biases[0].detach() + 0.5)
    other.weights[0].data = other.weights[0].detach().transpose(1, 2).contiguous().transpose(1, 2)
    assert_equals_reference(other, random_batch(other, 30), **options)
    # Weights made in inference mode, which autograd would not take.
    rows = random_batch(other, 20)
    with torch.inference_mode():
        result = refine(random_critic(6), *rows, backend="graph", **options)
    expected = dtag_fast.reference.refine(random_critic(6), *rows, **options)
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=0)
    assert len(compiled_loop._steps) == compiled

    # Rows do not see their padding, nor each other.
    observations, actions = random_batch(critic, 32)
    refiner = Refiner(critic, backend="graph", step_size=0.5)
    whole = refiner(observations, actions)
    assert torch.equal(refiner(observations[:19], actions[:19]), whole[:19])
    observations[3, 1], actions[20, 2] = float("nan"), float("inf")
    good = torch.ones(32, dtype=torch.bool)
    good[[3, 20]] = False
    assert torch.equal(refiner(observations, actions)[good], whole[good])

    # Candidates that are equal have equal Q: the earliest wins.
    with torch.no_grad():
        critic.weights[-1].zero_()
    _, info = refine(critic, *random_batch(critic, 32), backend="graph", return_info=True)
    assert not info.best_step.any()


@needs_compiler
def test_compiled_for_a_row_as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(closed_form, "_is_a_row_on_a_gpu", lambda x: x.shape[1] == 1)
    critic = random_critic()
    parity = measure_parity(critic, *random_batch(critic, 1), backend="graph")
    assert parity.holds, parity


@needs_compiler
def test_compiled_with_everything() -> None:
    critic = random_critic(heads=3, activation="mish", layer_norm=True)
    parity = measure_parity(
        critic,
        *random_batch(critic, 3, 2),
        backend="graph",
        optimizer="adam",
        ensemble="lcb",
        gradient="unit",
        max_distance=0.2,
        bounds=None,
    )
    assert parity.holds, parity


@needs_compiler
def test_compiled_with_autograd_in_the_graph() -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.SiLU())
            self.last = nn.Linear(16, 2)

        def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
            q: Tensor = self.last(self.layers(torch.cat([observations, actions], dim=1)))
            return q.T

    critic = Normed()
    batch = random_batch(random_critic(), 4)
    parity = measure_parity(critic, *batch, backend="graph")
    assert parity.holds, parity
    with torch.no_grad():
        critic.last.weight.mul_(-2)
    assert_equals_reference(critic, batch, step_size=0.2)


def test_torchs_advice_to_take_tf32_is_not_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import compile_fx

    def warn(operations: Any, *_: Any, **__: Any) -> Any:
        compile_fx._warn_tf32_disabled.__wrapped__()  # as on a GPU that has TF32
        warnings.warn("another", stacklevel=1)
        return operations

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(torch._inductor, "compile", warn)
    rows = [torch.ones(2)]
    with pytest.warns(UserWarning, match="another") as caught:
        call = compiling.compiled(lambda x: (x + 1,), rows)
    assert len(caught) == 1
    assert torch.equal(call(*rows)[0], torch.full((2,), 2.0))
    with pytest.warns(UserWarning, match="TensorFloat32"):  # elsewhere it is
        compile_fx._warn_tf32_disabled.__wrapped__()


# Modules whose operations are recorded


@pytest.mark.parametrize("ensemble", ["min", "mean", "lcb"])
@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "rmsprop", "adam"])
def test_autograd_equals_the_reference(record: list[int], optimizer: str, ensemble: str) -> None:
    batch = random_batch(random_critic(), 6, 2)
    assert_equals_reference(
        attention(), batch, optimizer=optimizer, ensemble=ensemble, max_distance=0.5
    )
    assert record == [16]  # 8 rows of 2 starting points


def test_a_module_without_parameters_and_with_one_head(record: list[int]) -> None:
    class Bilinear(nn.Module):
        def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
            return observations.sum(dim=1) * (1 - actions.square().sum(dim=1))

    assert_equals_reference(Bilinear(), random_batch(random_critic(), 3))
    _, info = refine(
        Bilinear(), *random_batch(random_critic(), 3), backend="graph", return_info=True
    )
    assert info.algorithm == "autograd"


def test_changes_of_a_module_are_noticed(record: list[int]) -> None:
    critic = attention()
    batch = random_batch(random_critic(), 4)
    refiner = Refiner(critic, backend="graph", step_size=0.3)

    def check(records: int) -> None:
        expected = dtag_fast.reference.refine(critic, *batch, step_size=0.3)
        torch.testing.assert_close(refiner(*batch), expected, atol=1e-5, rtol=0)
        assert not torch.equal(expected, previous[-1])
        previous.append(expected)
        assert len(record) == records

    previous = [batch[1]]
    check(1)
    with torch.no_grad():
        critic.heads.weight.mul_(-1)
    check(1)
    critic.scale = torch.tensor(3.0)
    critic.heads.bias = nn.Parameter(critic.heads.bias.detach() + 1)
    critic.norm.weight = nn.Parameter(torch.full((16,), 2.0))
    check(1)
    critic.norm = nn.LayerNorm(16, eps=0.5)
    check(2)
    critic.embeddings[1] = nn.Linear(3, 16, bias=False)
    check(3)
    critic.train()
    refiner(*batch)  # with dropout
    assert len(record) == 4
    critic.eval()
    refiner(*batch)
    assert len(record) == 5


def test_what_is_recorded_does_not_keep_the_module_alive(record: list[int]) -> None:
    critic = attention()
    refine(critic, *random_batch(random_critic(), 2), backend="graph")
    alive = weakref.ref(critic)
    del critic
    gc.collect()
    assert alive() is None


def test_steps_are_shared_by_bucket_and_bounded(
    record: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled_loop, "MOST_STEPS", 2)
    critic = random_critic()
    for batch in (0, 1, 3, 4, 5, 8, 4, 0):
        assert_equals_reference(critic, random_batch(critic, batch))
        assert len(compiled_loop._steps) <= 2
    assert record == [1, 4, 8, 1]


def test_threads_record_once(record: list[int]) -> None:
    critic = random_critic()
    batch = random_batch(critic, 4)
    refiner = Refiner(critic, backend="graph")
    results: list[Tensor] = []
    threads = [threading.Thread(target=lambda: results.append(refiner(*batch))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert record == [4]
    assert len(results) == 4
    assert all(torch.equal(result, refiner(*batch)) for result in results)


# What it does not take


def test_it_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    reason = graph.unavailable_reason.__wrapped__()
    assert reason == (
        "torch.compile needs a C++ compiler, and there is no no-such-compiler (or what CXX names)"
    )
    monkeypatch.setattr(graph, "unavailable_reason", lambda: reason)
    with pytest.raises(RuntimeError, match=r"'graph' cannot be used here: .* no-such-compiler"):
        Refiner(random_critic(), backend="graph")


@pytest.mark.parametrize(
    ("critic", "words", "reason"),
    [
        (random_critic(), {"algorithm": "walk"}, "its algorithm for this critic is dense, got 'wa"),
        (attention(), {"algorithm": "dense"}, "its algorithm for this critic is autograd, got 'de"),
        (random_critic(), {"precision": "bf16"}, "it computes in float32, got precision='bf16'"),
        (random_critic(), {"threads": 2}, r"torch.set_num_threads\), got threads=2"),
        (random_critic().to("meta"), {}, "it takes critics on the CPU or on CUDA, got meta"),
        (nn.BatchNorm1d(3), {}, "BatchNorm1d in training mode mixes rows"),
    ],
)
def test_it_refuses_what_it_cannot_do(
    critic: nn.Module, words: dict[str, Any], reason: str
) -> None:
    if graph.unavailable_reason() is None:
        with pytest.raises(RuntimeError, match=f"'graph' cannot be used here: .*{reason}"):
            Refiner(critic, backend="graph", **words)
    assert Refiner(random_critic(), backend="graph", algorithm="dense").backend == "graph"


def test_a_critic_that_cannot_be_recorded(record: list[int]) -> None:
    class Branches(nn.Module):
        def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
            return actions.sum(dim=1) if actions.sum() > 0 else observations.sum(dim=1)

    class Wrong(nn.Module):
        def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
            return actions

    batch = random_batch(random_critic(), 4)
    with pytest.raises(RuntimeError, match="torch cannot record the critic's operations: Guard"):
        refine(Branches(), *batch, backend="graph")
    with pytest.raises(ValueError, match=r"critic: expected Q of shape \[E, 4\] or \[4\] for 4"):
        refine(Wrong(), *batch, backend="graph")


def test_on_the_cpu_auto_does_not_compile() -> None:
    assert Refiner(attention()).backend == "reference"
