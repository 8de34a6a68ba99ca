"""The cuda backend without a GPU: parity of its kernel's emulation, packing, and what it refuses.

The contract's own tests have it too, conftest.py; test_cuda_gpu.py has it on a GPU.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dtag_fast import Critic, Refiner, refine
from dtag_fast.refinement import RefineInfo, RefineOptions, cuda
from dtag_fast.refinement.execution import Execution, Precision
from dtag_fast.refinement.parity import Standard, random_batch, random_critic
from tests.refinement.emulation import emulated, emulation

PLAIN = Refiner(random_critic(), backend="reference", step_size=0.3).options


@pytest.fixture
def emulator() -> Iterator[None]:
    """The backend runs on the emulation."""
    with emulated():
        yield


def run(
    critic: Critic, batch: tuple[Tensor, Tensor], options: RefineOptions, **how: Any
) -> tuple[Tensor, RefineInfo]:
    """By `cuda.run`; `how` may hold `kernel`, `precision` and `algorithm`."""
    execution = Execution(algorithm=how.pop("algorithm", "auto"))
    packed = cuda.pack(critic, how.pop("precision", "fp32"))
    observations, actions = batch
    if actions.ndim == 2:
        actions = actions.unsqueeze(1)
    return cuda.run(packed, observations, actions, options, execution, **how)


def kernels(critic: Critic, precision: Precision = "fp32") -> tuple[cuda.Kernel, ...]:
    """Those there are for the critic."""
    return cuda.kernels(cuda.pack(critic, precision))


def same(ours: tuple[Tensor, RefineInfo], theirs: tuple[Tensor, RefineInfo]) -> bool:
    """Bit for bit."""
    return torch.equal(ours[0], theirs[0]) and all(
        value == other if isinstance(value, str) else torch.equal(value, other)
        for value, other in zip(vars(ours[1]).values(), vars(theirs[1]).values(), strict=True)
    )


def same_but_nan(ours: tuple[Tensor, RefineInfo], theirs: tuple[Tensor, RefineInfo]) -> bool:
    """The same with NaN in the same places."""
    return torch.allclose(ours[0], theirs[0], rtol=0, atol=0, equal_nan=True) and all(
        value == other
        if isinstance(value, str)
        else torch.equal(value.nan_to_num(), other.nan_to_num())
        for value, other in zip(vars(ours[1]).values(), vars(theirs[1]).values(), strict=True)
    )


# Parity


@pytest.mark.usefixtures("emulator")
@pytest.mark.parametrize("hidden", [(1, 1), (7, 64), (64,), (100, 256), (256, 100), (256, 256)])
@pytest.mark.parametrize(("action_dim", "heads"), [(1, 5), (2, 2), (3, 1), (6, 2), (17, 2)])
def test_parity_of_shapes(hidden: tuple[int, ...], action_dim: int, heads: int) -> None:
    critic = random_critic(hidden=hidden, action_dim=action_dim, heads=heads, observation_dim=11)
    if cuda.unsupported_reason(critic) is not None:
        pytest.fail(str(cuda.unsupported_reason(critic)))
    batch = random_batch(critic, 6)
    for steps in (0, 1, 10):
        options = Refiner(critic, backend="reference", steps=steps, step_size=0.1).options
        standard = Standard(critic, *batch, options)
        for algorithm, name in (("auto", "walk"), ("dense", "dense")):
            first = run(critic, batch, options, algorithm=algorithm)
            parity = standard.measure(first[0])
            assert parity.holds, (steps, algorithm, parity)
            assert first[1].algorithm == name
            for kernel in kernels(critic):
                other = run(critic, batch, options, algorithm=algorithm, kernel=kernel)
                assert same(first, other), (steps, algorithm, kernel)


@pytest.mark.usefixtures("emulator")
@pytest.mark.parametrize("action_dim", [3, 6, 8])
def test_parity_of_ten_heads(action_dim: int) -> None:
    # All units pass, and with 8 action dimensions a list does not hold all of them.
    critic = random_critic(
        hidden=(256, 256),
        action_dim=action_dim,
        heads=10,
        observation_dim=11,
        activation="leaky_relu",
        negative_slope=0.1,
    )
    assert cuda.unsupported_reason(critic) is None
    batch = random_batch(critic, 3)
    options = Refiner(critic, backend="reference", ensemble="lcb", step_size=0.1).options
    alone = run(critic, batch, options, kernel="row")
    parity = Standard(critic, *batch, options).measure(alone[0])
    assert parity.holds, parity
    assert kernels(critic) == ("row",)
    for kernel in ("lean", "cluster"):
        with pytest.raises(RuntimeError, match="too many for any kernel but row"):
            run(critic, batch, options, kernel=kernel)


@pytest.mark.usefixtures("emulator")
@pytest.mark.parametrize("ensemble", ["min", "mean", "lcb"])
@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "rmsprop", "adam"])
@pytest.mark.parametrize(("heads", "units"), [(3, 130), (4, 40)])
def test_parity_of_long_walks(optimizer: str, ensemble: str, heads: int, units: int) -> None:
    critic = random_critic(
        heads=heads, hidden=(units, 30), activation="leaky_relu", negative_slope=0.2, action_dim=4
    )
    assert ("lean" in kernels(critic)) == (units > 128)
    batch = random_batch(critic, 24, 3)  # so many that the reference's largest error is typical
    for extra in (
        {"select": "last", "max_distance": 0.3},
        {"gradient": "unit", "bounds": None},
        {"bounds": ([-1, -0.5, 0.0, -1], [1, 0.5, 0.25, 1])},
    ):
        arguments: dict[str, Any] = {"optimizer": optimizer, "ensemble": ensemble, "steps": 25}
        options = Refiner(critic, backend="reference", step_size=0.03, **arguments | extra).options
        standard = Standard(critic, *batch, options)
        first = run(critic, batch, options, kernel="row")
        parity = standard.measure(first[0])
        assert parity.holds, (extra, parity)
        for kernel in kernels(critic):
            assert same(first, run(critic, batch, options, kernel=kernel)), (extra, kernel)


def wild(
    action_dim: int, hidden: tuple[int, int], *, exact: bool = True, **words: Any
) -> tuple[Tensor, RefineInfo]:
    """A walk in steps across many regions, alike by all kernels; if exact, as the reference's."""
    critic = random_critic(hidden=hidden, action_dim=action_dim, observation_dim=17)
    batch = random_batch(critic, 6)
    options = Refiner(critic, backend="reference", gradient="unit", **words).options
    result, info = run(critic, batch, options, kernel="row")
    if exact:
        parity = Standard(critic, *batch, options).measure(result)
        assert parity.holds, parity
    for kernel in kernels(critic):
        assert same((result, info), run(critic, batch, options, kernel=kernel)), kernel
    return result, info


@pytest.mark.usefixtures("emulator")
def test_wild_paths_give_way_to_the_full_network() -> None:
    # Of 32 action dimensions: a correction costs four times what a row of the full network does.
    # Few steps against the reference: rounding grows from step to step, and after forty of them
    # what most critics give is further from it than it is from float64.
    for steps, step_size, exact in ((10, 2.0, True), (40, 4.0, False)):
        words = {"steps": steps, "step_size": step_size, "optimizer": "adam", "bounds": (-9.0, 9.0)}
        _, info = wild(32, (100, 10), exact=exact, **words)
        assert (info.dense_steps > 0).any()
        assert (info.dense_steps < steps).all()


@pytest.mark.usefixtures("emulator")
def test_many_corrections_are_followed_by_a_rebuild() -> None:
    _, info = wild(2, (32, 32), step_size=0.5, steps=200, select="last")
    assert (info.flips > 2 * 64).any()
    # More at once than the region has active units.
    wild(6, (64, 64), step_size=30.0, steps=20, bounds=None)


@pytest.mark.usefixtures("emulator")
def test_bf16_is_the_critic_with_rounded_weights() -> None:
    critic = random_critic(hidden=(64, 50), action_dim=6)
    rounded = random_critic(hidden=(64, 50), action_dim=6)
    with torch.no_grad():
        rounded.weights[1].copy_(rounded.weights[1].to(torch.bfloat16))
    batch = random_batch(critic, 6)
    for algorithm in ("auto", "dense"):
        for kernel in kernels(critic, "bf16"):
            how: dict[str, Any] = {"kernel": kernel, "algorithm": algorithm}
            ours = run(critic, batch, PLAIN, precision="bf16", **how)
            assert same(ours, run(rounded, batch, PLAIN, **how))
            assert not torch.equal(ours[0], run(critic, batch, PLAIN, **how)[0])


@pytest.mark.usefixtures("emulator")
@pytest.mark.parametrize(
    ("hidden", "action_dim", "heads", "slope"),
    [
        ((7, 64), 1, 5, 0.0),
        ((100, 256), 2, 2, 0.0),
        ((256, 100), 3, 1, 0.1),
        ((256, 256), 6, 2, 0.0),
        ((130, 40), 8, 2, 0.2),
        ((256, 256), 17, 2, 0.0),
        ((40, 30), 32, 4, 0.0),
    ],
)
def test_tf32x3_is_as_exact_as_fp32(
    hidden: tuple[int, ...], action_dim: int, heads: int, slope: float
) -> None:
    critic = random_critic(
        hidden=hidden,
        action_dim=action_dim,
        heads=heads,
        observation_dim=11,
        activation="leaky_relu",
        negative_slope=slope,
    )
    assert cuda.unsupported_reason(critic, execution=Execution(precision="tf32x3")) is None
    batch = random_batch(critic, 6)
    for steps, step_size in ((0, 0.1), (1, 0.1), (10, 0.1), (20, 0.03)):
        options = Refiner(critic, backend="reference", steps=steps, step_size=step_size).options
        first = run(critic, batch, options, precision="tf32x3")
        parity = Standard(critic, *batch, options).measure(first[0])
        assert parity.holds, (steps, parity)
        for kernel in kernels(critic, "tf32x3"):
            other = run(critic, batch, options, precision="tf32x3", kernel=kernel)
            assert same(first, other), (steps, kernel)
    assert not torch.equal(first[0], run(critic, batch, options)[0])


@pytest.mark.usefixtures("emulator")
@pytest.mark.parametrize(("hidden", "action_dim"), [((300, 260), 3), ((40, 64), 9), ((20, 30), 17)])
def test_maps_by_tensor_cores_of_wide_layers_long_observations_and_many_rows(
    hidden: tuple[int, ...], action_dim: int
) -> None:
    critic = random_critic(hidden=hidden, action_dim=action_dim, observation_dim=70)
    batch = random_batch(critic, 37, 2)  # in several parts
    for words in (PLAIN, dataclasses.replace(PLAIN, steps=0)):
        result = run(critic, batch, words, precision="tf32x3")
        assert Standard(critic, *batch, words).measure(result[0]).holds
        one = batch[0][30:31].contiguous(), batch[1][30:31].contiguous()
        alone = run(critic, one, words, precision="tf32x3")
        assert torch.equal(alone[0], result[0][30:31])


# The emulation has three blocks, and looks whether each row of a part is drawn once.
@pytest.mark.usefixtures("emulator")
@pytest.mark.parametrize("rows", [4, 11, 13, 14, 27])
def test_rows_from_a_queue(rows: int) -> None:
    critic = random_critic(hidden=(256, 40), action_dim=3)
    maps = emulation().floats_for_maps(cuda.pack(critic, "tf32x3").native, False, 10**6) - 1
    assert maps == 13 * 6 * 2 * 256  # so many rows a part; the last one's may be fewer than blocks
    batch = random_batch(critic, rows, 2)
    batch[0][1] = float("nan")
    batch[1][2, 0] = 1e30
    for words in (
        {},
        {"steps": 0},
        {"optimizer": "adam", "ensemble": "lcb"},
        {"select": "last", "max_distance": 0.2},
    ):
        options = dataclasses.replace(PLAIN, **words)
        ours = run(critic, batch, options, precision="tf32x3")
        for kernel in ("row", "lean"):
            theirs = run(critic, batch, options, precision="tf32x3", kernel=kernel)
            assert same_but_nan(ours, theirs), (words, kernel)


@pytest.mark.usefixtures("emulator")
@pytest.mark.parametrize("by", [1e-18, 1e-6, 1e6, 1e18])
def test_maps_by_tensor_cores_of_numbers_far_from_one(by: float) -> None:
    critic = random_critic(hidden=(40, 50), action_dim=3)
    batch = random_batch(critic, 9)
    with torch.no_grad():
        critic.weights[0].mul_(by)
        critic.biases[0].mul_(by)
        critic.weights[1].mul_(1 / by)
        critic.weights[1][0].mul_(1e-4)
    result = run(critic, batch, PLAIN, precision="tf32x3")
    assert Standard(critic, *batch, PLAIN).measure(result[0]).holds
    assert result[1].dense_steps.sum() < 9 * PLAIN.steps  # it was not the full network


@pytest.mark.usefixtures("emulator")
def test_memory_for_maps_is_bounded() -> None:
    packed = cuda.pack(random_critic(hidden=(40, 50), action_dim=3), "tf32x3")
    floats = emulation().floats_for_maps
    assert floats(packed.native, True, 9) == 0  # the full network has no maps
    queue = 1
    assert floats(packed.native, False, 9) - queue == 9 * (floats(packed.native, False, 1) - queue)
    assert floats(packed.native, False, 10**6) - queue <= 40000
    one_layer = cuda.pack(random_critic(hidden=(40,)), "tf32x3")
    assert floats(one_layer.native, False, 9) == 0


@pytest.mark.usefixtures("emulator")
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("ensemble", ["min", "mean", "lcb"])
def test_a_critic_with_weights_that_are_not_finite(bad: float, ensemble: str) -> None:
    # Zeros meet those weights: dead units, and a zero in the observation.
    for layer, index in ((0, (1, 2, 0)), (0, (1, 2, 5)), (1, (0, 3, 3)), (2, (1, 0, 1))):
        critic = random_critic(4)
        with torch.no_grad():
            critic.weights[layer][index] = bad
        observations, actions = random_batch(critic, 9)
        observations[::2, 0] = 0.0
        for select in ("best", "last"):
            words: dict[str, Any] = {"ensemble": ensemble, "select": select, "return_info": True}
            expected, info = refine(critic, observations, actions, backend="reference", **words)
            result, ours = refine(critic, observations, actions, backend="cuda", **words)
            torch.testing.assert_close(result, expected, atol=1e-5, rtol=0)
            assert torch.equal(ours.best_step, info.best_step)
            assert torch.equal(ours.q.isfinite(), info.q.isfinite())


@pytest.mark.usefixtures("emulator")
def test_a_row_does_not_depend_on_its_batch() -> None:
    for hidden in ((40, 20), (30,)):
        critic = random_critic(hidden=hidden)
        observations, actions = random_batch(critic, 19, 2)
        observations[3, 1] = float("nan")
        for kernel in kernels(critic):
            whole, info = run(critic, (observations, actions), PLAIN, kernel=kernel)
            for row in range(19):
                own = slice(row, row + 1)
                alone, its = run(critic, (observations[own], actions[own].contiguous()), PLAIN)
                assert torch.equal(alone, whole[own])
                assert its.flips == info.flips[own]
        assert hidden == (30,) or info.flips.any()


# What it refuses


@pytest.mark.usefixtures("emulator")
def test_what_there_is_for_a_critic() -> None:
    critic = random_critic(heads=3, hidden=(129, 70))
    assert kernels(critic) == kernels(critic, "bf16") == ("row", "lean", "cluster")
    assert kernels(critic, "tf32x3") == ("row", "lean")
    with pytest.raises(RuntimeError, match="maps are built before the kernel, and not by a clust"):
        run(critic, random_batch(critic, 2), PLAIN, kernel="cluster", precision="tf32x3")
    narrow = random_critic(heads=3, hidden=(128, 70))
    assert kernels(narrow) == ("row", "cluster")
    with pytest.raises(RuntimeError, match="do not fill warps of the lean kernel"):
        run(narrow, random_batch(narrow, 2), PLAIN, kernel="lean")
    with pytest.raises(ValueError, match="kernel: unknown word 'fast'"):
        run(critic, random_batch(critic, 2), PLAIN, kernel="fast")


def test_it_says_how_to_build_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise ModuleNotFoundError("No module named 'dtag_fast._cuda'", name="dtag_fast._cuda")

    monkeypatch.setattr(cuda, "_load", missing)
    assert cuda.unavailable_reason() == (
        "the CUDA extension was not built; with nvcc, `pip install -Ccmake.define.DTAG_CUDA=ON .` "
        "builds it"
    )
    monkeypatch.setattr(cuda, "_load", emulation)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cuda.unavailable_reason() == "torch sees no CUDA device"


@pytest.mark.usefixtures("emulator")
def test_it_says_what_it_does_not_take() -> None:
    def reason(**arguments: Any) -> str:
        return str(cuda.unsupported_reason(random_critic(**arguments)))

    assert reason() == "None"
    assert "got Linear" in str(cuda.unsupported_reason(nn.Linear(2, 2)))
    assert reason(activation="tanh") == "it takes ReLU and LeakyReLU, got tanh"
    assert reason(layer_norm=True) == "it takes critics without LayerNorm"
    assert reason(hidden=()) == "it takes one or two hidden layers, got 0"
    assert reason(hidden=(4, 4, 4)) == "it takes one or two hidden layers, got 3"
    assert reason(action_dim=33).startswith("it takes up to 32 action dimensions; the critic has 2")
    assert "128, may be 3072; the critic has 2 heads" in reason(hidden=(2048, 2048))
    assert "64, may be 1536; the critic has 2 heads" in reason(hidden=(800, 8), action_dim=9)
    assert "torch.float64 on cpu" in str(cuda.unsupported_reason(random_critic().double()))
    threads = Execution(threads=2)
    assert "got threads=2" in str(cuda.unsupported_reason(random_critic(), execution=threads))
    tf32 = Execution(precision="tf32")
    assert "got precision='tf32'" in str(cuda.unsupported_reason(random_critic(), execution=tf32))
    large = random_critic(hidden=(20, 513))
    assert cuda.unsupported_reason(large) is None
    tf32x3 = Execution(precision="tf32x3")
    assert "may have 512 units" in str(cuda.unsupported_reason(large, execution=tf32x3))


def test_it_takes_critics_in_float32_on_a_gpu_or_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for critic, what in (
        (random_critic().half(), "torch.float16 on cpu"),
        (random_critic().to("meta"), "torch.float32 on meta"),
    ):
        reason = str(cuda.unsupported_reason(critic))
        assert f"a CUDA device or the CPU, and the critic's weights.0 is {what}" in reason
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert cuda._runs_on(torch.device("cpu")) == torch.device("cuda", 1)
    assert cuda._runs_on(torch.device("cuda", 0)) == torch.device("cuda", 0)


@pytest.mark.usefixtures("emulator")
@pytest.mark.parametrize(
    ("observations", "actions", "message"),
    [
        (torch.zeros(3, 4), torch.zeros(3, 1, 3), r"observations: .*\[3, 5\] .* got \[3, 4\]"),
        (torch.zeros(3, 5), torch.zeros(3, 1, 2), r"actions: .*\[3, 1, 3\] .* got \[3, 1, 2\]"),
        (torch.zeros(3, 5), torch.zeros(3, 0, 3), r"actions: .*\[3, 1, 3\] .* got \[3, 0, 3\]"),
        (torch.zeros(3, 5).double(), torch.zeros(3, 1, 3), "observations: .* torch.float64"),
        (torch.zeros(3, 5), torch.zeros(3, 1, 3, device="meta"), "actions: .* on meta"),
        (torch.zeros(5, 3).T, torch.zeros(3, 1, 3), "observations: expected a contiguous"),
        (torch.zeros(3, 5), torch._efficientzerotensor((3, 1, 3)), "actions: .* with memory"),
    ],
)
def test_arrays_are_checked_before_their_addresses_are_passed(
    observations: Tensor, actions: Tensor, message: str
) -> None:
    packed = cuda.pack(random_critic())
    with pytest.raises(ValueError, match=message):
        cuda.run(packed, observations, actions, PLAIN)
