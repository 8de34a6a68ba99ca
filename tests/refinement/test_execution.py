"""Algorithm, precision, threads and DTAG_ISA: how the cpu backend computes."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import dtag_fast
from dtag_fast import Critic, Refiner, build_info, refine
from dtag_fast.refinement import cpu, reference
from dtag_fast.refinement.execution import Precision
from dtag_fast.refinement.parity import measure_parity, random_batch, random_critic

pytestmark = pytest.mark.skipif(
    cpu.unavailable_reason() is not None, reason=str(cpu.unavailable_reason())
)

WALKABLE: dict[str, Any] = {"hidden": (64, 64), "activation": "relu"}


def walks() -> bool:
    return cpu._load().why_no_walk("relu", 2, False) is None


# Algorithm


@pytest.mark.skipif(not walks(), reason="this build has no walk")
def test_a_long_walk_rounds_hardly_more_than_torch() -> None:
    critic = random_critic(observation_dim=17, action_dim=6, hidden=(256, 256))
    batch = random_batch(critic, 64)
    options: dict[str, Any] = {"step_size": 0.3, "steps": 200, "select": "last"}
    checked = Refiner(critic, **options).options
    double = batch[0].double(), batch[1].double().unsqueeze(1)
    truth, _ = reference.run(copy.deepcopy(critic).double(), *double, checked)

    def error(result: Tensor) -> float:
        return float((result.double() - truth).abs().amax(dim=1).median())

    walked, info = refine(critic, *batch, algorithm="walk", return_info=True, **options)
    assert (info.flips > 256).any()
    assert error(walked) < 2 * error(reference.refine(critic, *batch, **options))


def test_the_algorithm_asked_for_is_the_one_that_runs() -> None:
    critic = random_critic(**WALKABLE)
    batch = random_batch(critic, 8, 3)
    for algorithm in ("dense", "walk") if walks() else ("dense",):
        _, info = refine(critic, *batch, algorithm=algorithm, steps=4, return_info=True)
        assert info.algorithm == algorithm
    _, info = refine(critic, *batch, algorithm="dense", steps=4, return_info=True)
    assert info.flips.tolist() == [0] * 8
    assert info.dense_steps.tolist() == [12] * 8


@pytest.mark.parametrize(
    ("critic", "reason"),
    [
        ({"hidden": (8, 8, 8, 8)}, "hidden layers"),
        ({"hidden": ()}, "hidden layers"),
        ({"activation": "tanh"}, "its activation is not piecewise linear"),
        ({"layer_norm": True}, "it has LayerNorm"),
    ],
)
@pytest.mark.parametrize("backend", ["cpu", "auto"])
def test_a_walk_that_cannot_be_had_is_refused(
    critic: dict[str, Any], reason: str, backend: Any
) -> None:
    if not walks():
        reason = "no walk"
    critic_arguments: dict[str, Any] = WALKABLE | critic
    with pytest.raises(RuntimeError, match=f"algorithm='walk' cannot take this critic: .*{reason}"):
        Refiner(random_critic(**critic_arguments), algorithm="walk", backend=backend)


@pytest.mark.skipif(not walks(), reason="the instruction set in use has no walk")
def test_a_walk_of_weights_that_turn_infinite_is_an_error() -> None:
    critic = random_critic(**WALKABLE)
    batch = random_batch(critic, 4)
    walking, automatic = Refiner(critic, algorithm="walk"), Refiner(critic, return_info=True)
    walking(*batch)
    with torch.no_grad():
        critic.weights[1][0, 0, 0] = float("inf")
    with pytest.raises(
        ValueError, match=r"algorithm: .*'walk', and its weights are not all finite"
    ):
        walking(*batch)
    assert automatic(*batch)[1].algorithm == "dense"


# Precision


def rounded(critic: Critic) -> Critic:
    """With the weights between hidden layers rounded to bfloat16."""
    critic = copy.deepcopy(critic)
    with torch.no_grad():
        for weight in list(critic.weights)[1:-1]:
            weight.copy_(weight.bfloat16())
    return critic


@pytest.mark.parametrize("hidden", [(), (40,), (40, 33), (40, 33, 17)])
@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_bf16_is_the_critic_with_rounded_inner_weights(
    hidden: tuple[int, ...], activation: str
) -> None:
    critic = random_critic(hidden=hidden, activation=activation)
    batch = random_batch(critic, 30)
    arguments: dict[str, Any] = {"backend": "cpu", "precision": "bf16", "step_size": 0.2}
    parity = measure_parity(rounded(critic), *batch, **arguments)
    assert parity.holds, parity
    given = refine(critic, *batch, **arguments)
    assert torch.equal(given, refine(rounded(critic), *batch, **arguments))
    plain = refine(critic, *batch, backend="cpu", step_size=0.2)
    assert torch.equal(given, plain) == (len(hidden) < 2)


def test_bf16_chooses_actions_worth_as_much() -> None:
    critic = random_critic(observation_dim=17, action_dim=6, hidden=(256, 256))
    batch = random_batch(critic, 200)

    def value(critic: Critic, actions: Tensor) -> Tensor:
        exact = copy.deepcopy(critic).double()
        with torch.no_grad():
            lowest: Tensor = exact(batch[0].double(), actions.double()).amin(dim=0)
        return lowest

    initial = value(critic, batch[1])
    fp32 = value(critic, refine(critic, *batch, backend="cpu"))
    bf16 = value(critic, refine(critic, *batch, backend="cpu", precision="bf16"))
    # What rounding does to a Q bounds what it does to a choice between two.
    error = (value(rounded(critic), batch[1]) - initial).abs().max()
    assert (fp32 - bf16).max() <= 2 * error
    assert (bf16 - initial).mean() >= 0.99 * (fp32 - initial).mean()


@pytest.mark.parametrize("precision", ["tf32", "tf32x3"])
def test_the_precision_of_tensor_cores_is_refused(precision: Precision) -> None:
    refused = rf"'cpu' cannot be used here: .* precision='{precision}'"
    with pytest.raises(RuntimeError, match=refused):
        Refiner(random_critic(), backend="cpu", precision=precision)


def test_precisions_are_packed_apart() -> None:
    critic = random_critic(**WALKABLE)
    batch = random_batch(critic, 20)
    fp32, bf16 = (Refiner(critic, precision=p, step_size=0.5) for p in ("fp32", "bf16"))
    first, second = fp32(*batch), bf16(*batch)
    assert not torch.equal(first, second)
    assert torch.equal(fp32(*batch), first)
    assert torch.equal(bf16(*batch), second)
    with torch.no_grad():
        critic.weights[1].mul_(0.5)
    assert not torch.equal(bf16(*batch), second)


# Threads


def test_threads_change_no_bit() -> None:
    critic = random_critic(**WALKABLE)
    batch = random_batch(critic, 777)
    expected = refine(critic, *batch, threads=1, backend="cpu")
    for threads in (2, 3, 64, None):
        assert torch.equal(refine(critic, *batch, threads=threads, backend="cpu"), expected)


def test_threads_are_torchs_unless_given(monkeypatch: pytest.MonkeyPatch) -> None:
    native = cpu._load()
    asked: list[int] = []

    class Recorded:
        Options, PackedCritic = native.Options, native.PackedCritic

        @staticmethod
        def refine(critic: Any, options: Any, algorithm: str, threads: int, *arrays: int) -> Any:
            asked.append(threads)
            return native.refine(critic, options, algorithm, threads, *arrays)

    monkeypatch.setattr(cpu, "_load", lambda: Recorded)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
    critic = random_critic()
    for threads in (None, 2):
        refine(critic, *random_batch(critic, 3), threads=threads, backend="cpu", return_info=True)
    assert asked == [5, 2]


# torch's defaults, which the kernels' memory must not follow


def test_the_defaults_of_torch_do_not_matter() -> None:
    critic = random_critic()
    batch = random_batch(critic, 5)
    expected, expected_info = refine(critic, *batch, backend="cpu", return_info=True)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            result, info = refine(critic, *batch, backend="cpu", return_info=True)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(result, expected)
    assert torch.equal(info.q, expected_info.q)
    assert torch.equal(info.best_step, expected_info.best_step)


# Instruction sets

REFINE = """
import torch
from dtag_fast import Critic, Refiner, build_info
import sys
critic = Critic(3, 2, hidden=(16, 16))
refiner = Refiner(critic, backend=sys.argv[1])
refiner(torch.zeros(2, 3), torch.zeros(2, 2))
print(refiner.backend, build_info.describe()["isa"])
"""


def run_python(code: str, *arguments: str, isa: str) -> subprocess.CompletedProcess[str]:
    # The package that this process imported, which need not be the one of the working directory.
    package = str(Path(dtag_fast.__file__).parents[1])
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=os.environ | {"DTAG_ISA": isa, "PYTHONPATH": package},
        cwd=package,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_environment_forces_an_instruction_set() -> None:
    slowest = build_info.describe()["isas"].split(", ")[-1]
    result = run_python(REFINE, "auto", isa=slowest)
    assert result.stdout.split() == ["cpu", slowest], result.stderr


@pytest.mark.parametrize("backend", ["auto", "cpu"])
def test_an_instruction_set_that_is_not_there_is_an_error(backend: str) -> None:
    result = run_python(REFINE, backend, isa="mmx")
    assert result.returncode == 1
    error = result.stderr.splitlines()[-1]
    assert error.startswith("RuntimeError: ")
    assert "DTAG_ISA: expected one of " + build_info.describe()["isas"] in error
    assert error.endswith("got 'mmx'")


def test_the_reference_needs_no_instruction_set() -> None:
    result = run_python(REFINE, "reference", isa="mmx")
    assert result.returncode == 0, result.stderr
