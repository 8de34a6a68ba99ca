"""The cuda backend on a GPU: parity, streams, graphs, weights that change."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dtag_fast import Critic, RefineInfo, Refiner, refine
from dtag_fast.refinement import backends, cuda, reference
from dtag_fast.refinement.execution import Execution, Precision
from dtag_fast.refinement.parity import Standard, random_batch, random_critic
from tests.refinement.rounded import EXACT, Rounded, of_sizes

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        cuda.unavailable_reason() is not None, reason=str(cuda.unavailable_reason())
    ),
]


def on_gpu(critic: Critic, batch: tuple[Tensor, Tensor], **words: Any) -> tuple[Tensor, RefineInfo]:
    """Refined on the GPU, brought back; `words` may hold `kernel`."""
    kernel = words.pop("kernel", "auto")
    words.setdefault("algorithm", "auto")
    execution = Execution(
        algorithm=words.pop("algorithm"), precision=words.pop("precision", "fp32")
    )
    options = Refiner(critic, backend="reference", **words).options
    moved = copy.deepcopy(critic).cuda()
    assert cuda.unsupported_reason(moved, options, execution) is None
    observations, actions = (array.cuda() for array in batch)
    if actions.ndim == 2:
        actions = actions.unsqueeze(1)
    packed = cuda.pack(moved, execution.precision)
    result, info = cuda.run(packed, observations, actions, options, execution, kernel=kernel)
    back: dict[str, Any] = {
        k: v.cpu() if isinstance(v, Tensor) else v for k, v in vars(info).items()
    }
    return result.cpu(), RefineInfo(**back)


def kernels(critic: Critic, precision: Precision = "fp32") -> tuple[cuda.Kernel, ...]:
    """Those this device has for the critic."""
    return cuda.kernels(cuda.pack(copy.deepcopy(critic).cuda(), precision))


SHAPES: list[tuple[tuple[int, ...], int, int]] = [
    ((1, 1), 1, 5),
    ((7, 64), 2, 2),
    ((64,), 3, 1),
    ((100, 256), 6, 2),
    ((256, 100), 8, 1),
    ((256, 256), 6, 2),
    ((256, 256), 17, 2),
    ((300, 300), 3, 2),
    ((40, 30), 32, 2),
    ((256, 256), 6, 10),
]


# Of dense tiles: hidden layers, action and observation dimensions, heads.
TILES: list[tuple[tuple[int, int], int, int, int]] = [
    ((256, 256), 6, 17, 2),
    ((200, 256), 8, 40, 2),
    ((100, 100), 1, 3, 1),
]


@pytest.mark.parametrize(("hidden", "action_dim", "heads"), SHAPES, ids=str)
@pytest.mark.parametrize("rows", [1, 17, 2050])
def test_parity_of_shapes(hidden: tuple[int, ...], action_dim: int, heads: int, rows: int) -> None:
    critic = random_critic(hidden=hidden, action_dim=action_dim, heads=heads, observation_dim=11)
    batch = random_batch(critic, rows)
    for steps in (0, 1, 10):
        words: dict[str, Any] = {"steps": steps, "step_size": 0.1}
        standard = Standard(
            critic,
            batch[0][:64],
            batch[1][:64],
            Refiner(critic, backend="reference", **words).options,
        )
        for algorithm in ("auto", "dense"):
            result, info = on_gpu(critic, batch, algorithm=algorithm, **words)
            parity = standard.measure(result[:64])
            assert parity.holds, (steps, algorithm, parity)
            assert info.q.isfinite().all()
            assert (info.q >= info.q_initial).all()
            for kernel in kernels(critic):
                again, _ = on_gpu(critic, batch, algorithm=algorithm, kernel=kernel, **words)
                assert torch.equal(again, result), (steps, algorithm, kernel)


@pytest.mark.parametrize("ensemble", ["min", "mean", "lcb"])
@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "rmsprop", "adam"])
def test_parity_of_options(optimizer: str, ensemble: str) -> None:
    critic = random_critic(heads=4, hidden=(40, 30), activation="leaky_relu", negative_slope=0.2)
    batch = random_batch(critic, 21, 3)
    extras: list[dict[str, Any]] = [
        {"select": "last", "max_distance": 0.3},
        {"gradient": "unit", "bounds": None, "steps": 25},
        {"bounds": ([-1, -0.5, 0.0], [1, 0.5, 0.25])},
    ]
    for extra in extras:
        words: dict[str, Any] = {"optimizer": optimizer, "ensemble": ensemble, "step_size": 0.03}
        words |= extra
        standard = Standard(critic, *batch, Refiner(critic, backend="reference", **words).options)
        for kernel in kernels(critic):
            parity = standard.measure(on_gpu(critic, batch, kernel=kernel, **words)[0])
            assert parity.holds, (extra, kernel, parity)


def test_long_and_wild_walks() -> None:
    critic = random_critic(hidden=(100, 10), action_dim=32, observation_dim=17)
    batch = random_batch(critic, 64)  # so many that the reference's largest error is typical
    words: dict[str, Any] = {
        "step_size": 4.0,
        "steps": 40,
        "optimizer": "adam",
        "bounds": (-9.0, 9.0),
        "gradient": "unit",
    }
    standard = Standard(critic, *batch, Refiner(critic, backend="reference", **words).options)
    result, info = on_gpu(critic, batch, **words)
    assert standard.measure(result).holds
    assert info.dense_steps.any()
    assert info.flips.any()


def precisions() -> list[Precision]:
    """Those in which the device walks."""
    return ["fp32", "tf32x3"] if torch.cuda.get_device_capability() == (9, 0) else ["fp32"]


@pytest.mark.parametrize("action_dim", [3, 6, 8])
@pytest.mark.parametrize("starts", [1, 2])
def test_a_row_is_the_same_in_any_batch(action_dim: int, starts: int) -> None:
    # With tf32x3 so many rows wait in a queue; and their maps are built in two goes.
    critic = random_critic(hidden=(256, 256), action_dim=action_dim, observation_dim=17)
    observations, actions = random_batch(critic, 4099, starts)
    observations[3, 1], actions[20, :, 2] = float("nan"), float("inf")
    for precision in precisions():
        words: dict[str, Any] = {"precision": precision}
        whole, info = on_gpu(critic, (observations, actions), **words)
        for rows in (slice(0, 4), slice(17, 150), slice(4098, 4099)):
            part, _ = on_gpu(critic, (observations[rows], actions[rows].contiguous()), **words)
            assert torch.equal(part.nan_to_num(), whole[rows].nan_to_num())
        assert torch.equal(whole[3], actions[3, 0])
        for kernel in kernels(critic, precision):
            again, same = on_gpu(critic, (observations, actions), kernel=kernel, **words)
            assert torch.equal(again.nan_to_num(), whole.nan_to_num()), kernel
            assert torch.equal(same.flips, info.flips), kernel


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(bad: float) -> None:
    for layer, index in ((0, (1, 2, 5)), (1, (0, 3, 3)), (2, (1, 0, 1))):
        critic = random_critic(4)
        with torch.no_grad():
            critic.weights[layer][index] = bad
        batch = random_batch(critic, 9)
        expected, info = refine(critic, *batch, backend="reference", return_info=True)
        result, ours = on_gpu(critic, batch)
        torch.testing.assert_close(result, expected, atol=1e-5, rtol=0)
        assert torch.equal(ours.best_step, info.best_step)


def test_bf16_is_the_critic_with_rounded_weights() -> None:
    critic = random_critic(hidden=(64, 50), action_dim=6)
    rounded = copy.deepcopy(critic)
    with torch.no_grad():
        rounded.weights[1].copy_(rounded.weights[1].to(torch.bfloat16))
    batch = random_batch(critic, 6)
    for kernel in kernels(critic, "bf16"):
        ours, _ = on_gpu(critic, batch, precision="bf16", kernel=kernel)
        assert torch.equal(ours, on_gpu(rounded, batch, kernel=kernel)[0])


has_tiles = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0),
    reason="dense tiles are for compute capability 9.0",
)


@has_tiles
@pytest.mark.parametrize("rows", [1, 65, 4099])
@pytest.mark.parametrize(("hidden", "action_dim", "observation_dim", "heads"), TILES, ids=str)
def test_dense_tiles(
    hidden: tuple[int, int], action_dim: int, observation_dim: int, heads: int, rows: int
) -> None:
    critic = random_critic(
        hidden=hidden, action_dim=action_dim, observation_dim=observation_dim, heads=heads
    )
    batch = random_batch(critic, rows)
    words: dict[str, Any] = {"algorithm": "dense", "precision": "bf16", "select": "last"}
    rounded = Rounded(critic)
    q, gradient = rounded.evaluate(*batch)
    of_q, clear = rounded.doubt(*batch)
    assert (of_q == 0).all(dim=0).float().mean() > 0.6 or rows == 1
    step: dict[str, Any] = {"bounds": None, "step_size": 1.0}
    _, info = on_gpu(critic, batch, steps=0, **step, **words)
    rounded.assert_q(info.q, *batch)
    result, info = on_gpu(critic, batch, steps=1, **step, **words)
    lower = gradient[q.argmin(0), torch.arange(rows)]
    torch.testing.assert_close((result - batch[1])[clear], lower[clear], atol=EXACT, rtol=EXACT)
    assert (info.dense_steps == 1).all()
    result, info = on_gpu(critic, batch, **words)
    rounded.assert_q(info.q, batch[0], result)
    # A row is the same in any batch, and one that is not finite changes no other.
    alone, _ = on_gpu(critic, (batch[0][-1:], batch[1][-1:]), **words)
    assert torch.equal(alone, result[-1:])
    bad = batch[0].clone()
    bad[0, 1] = float("nan")
    with_bad, _ = on_gpu(critic, (bad, batch[1]), **words)
    assert torch.equal(with_bad[1:], result[1:])
    walked, _ = on_gpu(critic, (bad, batch[1]), kernel="row", **words)
    assert torch.equal(with_bad[:1].nan_to_num(), walked[:1].nan_to_num())


@has_tiles
@pytest.mark.parametrize("sizes", [(1e-6, 1e-3, 1.0, 30.0, 1e4, 1e8), (2000.0,) * 6])
def test_dense_tiles_with_dimensions_of_any_size(sizes: tuple[float, ...]) -> None:
    critic = random_critic(hidden=(256, 256), action_dim=6, observation_dim=17)
    observations, actions = random_batch(critic, 200)
    words: dict[str, Any] = {"algorithm": "dense", "precision": "bf16", "select": "last"}
    words["bounds"] = None
    for of_first, of_rest in ((1.0, 1.0), (1e-7, 1e6), (1e7, 1e-6)):
        scaled = of_sizes(critic, sizes, of_first, of_rest)
        batch, step_size = (observations, torch.zeros_like(actions)), 1e-12 / of_rest
        result, _ = on_gpu(scaled, batch, steps=1, step_size=step_size, **words)
        q, gradient = Rounded(scaled).evaluate(*batch)
        _, clear = Rounded(scaled).doubt(*batch)
        assert clear.float().mean() > 0.8
        lower = gradient[q.argmin(0), torch.arange(200)][clear] * step_size
        most = lower.abs().amax(dim=0)
        torch.testing.assert_close(result[clear] / most, lower / most, atol=EXACT, rtol=EXACT)


@has_tiles
def test_dense_tiles_leave_actions_that_half_floats_cannot_take() -> None:
    critic = random_critic(hidden=(256, 200), action_dim=6, observation_dim=17)
    observations, actions = random_batch(critic, 70)
    words: dict[str, Any] = {"algorithm": "dense", "precision": "bf16", "bounds": None}
    whole, _ = on_gpu(critic, (observations, actions), **words)
    actions[3, 2], actions[66, 5] = 1e9, -1e9
    result, _ = on_gpu(critic, (observations, actions), **words)
    walked, _ = on_gpu(critic, (observations, actions), kernel="row", **words)
    left = torch.zeros(70, dtype=torch.bool)
    left[[3, 66]] = True
    assert torch.equal(result[left], walked[left])
    assert torch.equal(result[~left], whole[~left])


@has_tiles
@pytest.mark.parametrize("ensemble", ["min", "mean", "lcb"])
@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "rmsprop", "adam"])
def test_options_of_dense_tiles(optimizer: str, ensemble: str) -> None:
    critic = random_critic(hidden=(130, 40), action_dim=5, observation_dim=9)
    batch = random_batch(critic, 67, 3)
    for extra in ({"max_distance": 0.2}, {"gradient": "unit", "bounds": None, "steps": 5}):
        words: dict[str, Any] = {"optimizer": optimizer, "ensemble": ensemble, "select": "last"}
        words |= extra
        result, _ = on_gpu(critic, batch, algorithm="dense", precision="bf16", **words)
        options = Refiner(critic, backend="reference", **words).options
        theirs, _ = reference.run(Rounded(critic), *batch, options)
        # The others pass a kink or a tie.
        near = (result - theirs).abs().amax(dim=1) <= 10 * EXACT
        assert near.float().mean() > 0.8, (extra, near.float().mean())


@has_tiles
def test_a_cuda_graph_holds_dense_tiles() -> None:
    critic = random_critic(hidden=(256, 256), observation_dim=17, action_dim=6).cuda()
    refiner = Refiner(critic, backend="cuda", algorithm="dense", precision="bf16")
    observations, actions = (array.cuda() for array in random_batch(critic, 100))
    expected = refiner(observations, actions)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = refiner(observations, actions)
    for row in (3, 70):
        graph.replay()
        assert torch.equal(result.nan_to_num(), expected.nan_to_num())
        observations[row, 0] = float("nan")
        expected = refiner(observations, actions)
    graph.replay()
    assert torch.equal(result.nan_to_num(), expected.nan_to_num())


@pytest.mark.parametrize("action_dim", [3, 6, 17, 32])
def test_tf32x3_is_as_exact_as_fp32(action_dim: int) -> None:
    hidden = (256, 256) if action_dim <= 17 else (100, 128)
    critic = random_critic(hidden=hidden, action_dim=action_dim, observation_dim=17)
    observations, actions = random_batch(critic, 300)
    options = Refiner(critic, backend="reference", steps=10, step_size=0.1).options
    standard = Standard(critic, observations[:64], actions[:64], options)
    words: dict[str, Any] = {"precision": "tf32x3", "steps": 10, "step_size": 0.1}
    first, _ = on_gpu(critic, (observations, actions), **words)
    parity = standard.measure(first[:64])
    assert parity.holds, parity
    for kernel in kernels(critic, "tf32x3"):
        again, _ = on_gpu(critic, (observations, actions), kernel=kernel, **words)
        assert torch.equal(again, first), kernel


def test_auto_takes_it_and_notices_new_weights() -> None:
    critic = random_critic().cuda()
    observations, actions = (array.cuda() for array in random_batch(critic))
    refiner = Refiner(critic, step_size=0.5)
    assert refiner.backend == "cuda"
    previous = actions
    for change in (1.0, -1.5, 2.0):
        with torch.no_grad():
            critic.weights[1].mul_(change)
        expected = refine(critic, observations, actions, backend="reference", step_size=0.5)
        torch.testing.assert_close(refiner(observations, actions), expected, atol=2e-5, rtol=0)
        assert not torch.equal(expected, previous)
        previous = expected


def test_it_runs_on_the_current_stream() -> None:
    critic = random_critic(hidden=(256, 256)).cuda()
    observations, actions = (array.cuda() for array in random_batch(critic, 512))
    refiner = Refiner(critic, backend="cuda", step_size=0.5)
    expected = refiner(observations, actions)
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # type: ignore[no-untyped-call]
        late = actions + 0  # after the sleep
        result = refiner(observations, late)
    stream.synchronize()
    assert torch.equal(result, expected)


def test_a_cuda_graph_holds_it_with_a_policys_forward_pass() -> None:
    torch.manual_seed(0)
    critic = random_critic(hidden=(256, 256), observation_dim=17, action_dim=6).cuda()
    policy = nn.Sequential(nn.Linear(17, 64), nn.ReLU(), nn.Linear(64, 6), nn.Tanh()).cuda()
    refiner = Refiner(critic, backend="cuda", steps=10)
    observations = torch.randn(5, 17, device="cuda")

    @torch.no_grad()
    def act() -> Tensor:
        result: Tensor = refiner(observations, policy(observations))
        return result

    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        act()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = act()
    for seed in range(3):
        observations.copy_(torch.randn(5, 17, generator=torch.Generator().manual_seed(seed)))
        graph.replay()
        assert torch.equal(result, act())


def test_errors_name_the_device() -> None:
    packed = cuda.pack(random_critic().cuda())
    options = Refiner(random_critic(), backend="reference").options
    with pytest.raises(ValueError, match=r"observations: .* on cuda:0, got .* on cpu"):
        cuda.run(packed, torch.zeros(2, 5), torch.zeros(2, 1, 3), options)
    halves = random_critic().cuda().half()
    reason = backends.reason_against("cuda", halves, options)
    assert "weights.0 is torch.float16 on cuda:0" in str(reason)


def test_what_is_on_the_cpu_goes_there_and_back() -> None:
    critic = random_critic(hidden=(256, 256), observation_dim=17, action_dim=6)
    there = Refiner(copy.deepcopy(critic).cuda(), step_size=0.3, return_info=True)
    observations, actions = random_batch(critic, 300)
    expected, known = there(observations.cuda(), actions.cuda())
    plain = Refiner(critic, backend="cuda", step_size=0.3)
    informed = Refiner(critic, backend="cuda", step_size=0.3, return_info=True)
    for _ in range(2):
        result = plain(observations, actions)
        assert result.device.type == "cpu"
        assert torch.equal(result, expected.cpu())
        assert plain._fast(observations, actions) is not NotImplemented
    pinned = plain(observations.pin_memory(), actions.pin_memory())
    assert torch.equal(pinned, expected.cpu())
    assert np.array_equal(plain(observations.numpy(), actions.numpy()), expected.cpu().numpy())
    result, info = informed(observations, actions)
    assert torch.equal(result, expected.cpu())
    for name in ("q", "q_initial", "best_step", "start", "distance", "flips", "dense_steps"):
        value = getattr(info, name)
        assert value.device.type == "cpu"
        assert torch.equal(value, getattr(known, name).cpu()), name
    with torch.no_grad():
        critic.weights[1].mul_(-1.0)
    changed = Refiner(copy.deepcopy(critic).cuda(), step_size=0.3)
    expected = changed(observations.cuda(), actions.cuda())
    assert torch.equal(plain(observations, actions), expected.cpu())


def test_auto_takes_large_batches_of_the_cpu_there() -> None:
    critic = random_critic(hidden=(256, 256), observation_dim=17, action_dim=6)
    torch.cuda.init()  # type: ignore[no-untyped-call]
    refiner = Refiner(critic, step_size=0.3)
    here, there = (Refiner(critic, step_size=0.3, backend=name) for name in ("cpu", "cuda"))
    assert (refiner.backend, refiner.backend_for(1)) == ("cpu", "cpu")
    assert refiner.backend_for(1000) == "cuda"
    for rows in (1, 1000, 2, 999):
        batch = random_batch(critic, rows)
        chosen = there if rows > 900 else here
        assert torch.equal(refiner(*batch), chosen(*batch))


def test_the_cpus_batches_do_not_wait_for_the_current_stream() -> None:
    critic = random_critic(hidden=(256, 256))
    refiner = Refiner(critic, backend="cuda", step_size=0.3)
    batch = random_batch(critic, 100)
    expected = refiner(*batch)
    torch.cuda.synchronize()
    torch.cuda._sleep(2_000_000_000)  # type: ignore[no-untyped-call]
    busy = torch.cuda.Event()  # type: ignore[no-untyped-call]
    busy.record()
    result = refiner(*batch)
    assert not busy.query()  # type: ignore[no-untyped-call]
    assert torch.equal(result, expected)
