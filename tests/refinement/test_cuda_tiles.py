"""Dense tiles without a GPU: csrc/cuda/dense_tiles.h emulated, with the layouts of tensor cores.

They are held to `Rounded`, which rounds where they do, and more loosely to the critic as it is.
test_cuda_gpu.py has the same on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dtag_fast import Critic, Refiner, refine
from dtag_fast.refinement import RefineInfo, cuda, reference
from dtag_fast.refinement.execution import Execution
from dtag_fast.refinement.parity import random_batch, random_critic
from tests.refinement.emulation import emulated
from tests.refinement.rounded import EXACT, Rounded, of_sizes

DENSE = Execution(algorithm="dense", precision="bf16")
# Beside the critic as it is: bfloat16 has eight bits.
OF_BF16 = 0.02

SHAPES: list[tuple[tuple[int, int], int, int, int]] = [
    ((256, 256), 6, 17, 2),
    ((256, 256), 8, 40, 2),
    ((100, 100), 1, 3, 1),
    ((100, 256), 6, 17, 1),
    ((200, 256), 3, 3, 2),
    ((256, 130), 8, 40, 1),
    ((7, 40), 2, 65, 2),
]


@pytest.fixture(autouse=True)
def emulator() -> Iterator[None]:
    """The backend runs on the emulation."""
    with emulated():
        yield


def run(
    critic: Critic, batch: tuple[Tensor, Tensor], kernel: cuda.Kernel = "auto", **words: Any
) -> tuple[Tensor, RefineInfo]:
    """By dense tiles, or by another kernel that is named."""
    options = Refiner(critic, backend="reference", **words).options
    observations, actions = batch
    if actions.ndim == 2:
        actions = actions.unsqueeze(1)
    packed = cuda.pack(critic, DENSE.precision)
    return cuda.run(packed, observations, actions, options, DENSE, kernel=kernel)


def expected(
    critic: nn.Module, batch: tuple[Tensor, Tensor], **words: Any
) -> tuple[Tensor, RefineInfo]:
    """By the reference."""
    options = Refiner(critic, backend="reference", **words).options
    observations, actions = batch
    if actions.ndim == 2:
        actions = actions.unsqueeze(1)
    return reference.run(critic, observations, actions, options)


def critic_of(shape: tuple[tuple[int, int], int, int, int]) -> Critic:
    hidden, action_dim, observation_dim, heads = shape
    return random_critic(
        hidden=hidden, action_dim=action_dim, observation_dim=observation_dim, heads=heads
    )


def sure_starts(critic: Critic, batch: tuple[Tensor, Tensor], **words: Any) -> Tensor:
    """The rows of which q is beyond doubt at every starting point."""
    options = Refiner(critic, backend="reference", **words).options
    observations, actions = batch
    if options.low:
        actions = actions.clamp(torch.tensor(options.low), torch.tensor(options.high))
    rounded, sure = Rounded(critic), torch.ones(len(actions), dtype=torch.bool)
    for start in actions.unbind(1):
        sure &= (rounded.doubt(observations, start)[0] == 0).all(dim=0)
    return sure


def assert_most_are_near(ours: Tensor, theirs: Tensor) -> None:
    """Nine rows in ten are equal but for rounding.

    Others pass a kink or a tie, and go on differently for the last digit of a sum.
    """
    error = (ours - theirs).abs().amax(dim=1)
    assert error.quantile(0.9) <= EXACT, error.sort().values
    assert error.max() <= OF_BF16, error.sort().values


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("rows", [1, 63, 65, 130])
def test_q_and_gradient(shape: tuple[tuple[int, int], int, int, int], rows: int) -> None:
    critic = critic_of(shape)
    batch = random_batch(critic, rows)
    rounded = Rounded(critic)
    words: dict[str, Any] = {"bounds": None, "select": "last", "step_size": 1.0}
    result, info = run(critic, batch, steps=0, **words)
    assert torch.equal(result, batch[1])
    q, gradient = rounded.evaluate(*batch)
    rounded.assert_q(info.q, *batch)
    assert (info.q - critic(*batch).amin(0)).abs().max() <= OF_BF16
    assert (info.flips == 0).all()
    # One step, of rows of which no unit is at a kink: it is the gradient of the lower head.
    result, info = run(critic, batch, steps=1, **words)
    of_q, clear = rounded.doubt(*batch)
    assert clear.float().mean() > 0.8
    assert (of_q == 0).all(dim=0).float().mean() > 0.6
    lower = gradient[q.argmin(0), torch.arange(rows)]
    moved = (result - batch[1])[clear]
    torch.testing.assert_close(moved, lower[clear], atol=EXACT, rtol=EXACT)
    torch.testing.assert_close(info.distance, (result - batch[1]).norm(dim=1))
    assert (info.dense_steps == 1).all()


@pytest.mark.parametrize("shape", SHAPES[:5], ids=str)
def test_ten_steps(shape: tuple[tuple[int, int], int, int, int]) -> None:
    critic = critic_of(shape)
    batch = random_batch(critic, 70)
    for select in ("best", "last"):
        result, info = run(critic, batch, select=select)
        theirs, _ = expected(Rounded(critic), batch, select=select)
        if select == "last":
            assert_most_are_near(result, theirs)
        # What it says of its result is so.
        Rounded(critic).assert_q(info.q, batch[0], result)
        assert select == "last" or (info.q >= info.q_initial).all()
        exact, exact_info = expected(critic, batch, select=select)
        assert (result - exact).abs().mean() <= OF_BF16 / 5
        assert (info.q - exact_info.q).abs().max() <= OF_BF16
        assert info.algorithm == "dense"


@pytest.mark.parametrize("select", ["best", "last"])
def test_plain_steps_are_those_of_any_options(select: str) -> None:
    critic = critic_of(SHAPES[0])
    observations, actions = random_batch(critic, 70, 2)
    observations[66, 1], actions[3, 0, 2] = float("nan"), 1e30
    # A ball that holds all changes nothing, but is not what plain steps have code of their own for.
    plain, info = run(critic, (observations, actions), select=select)
    within, same = run(critic, (observations, actions), select=select, max_distance=1e9)
    assert torch.equal(plain.nan_to_num(), within.nan_to_num())
    for name in ("q", "q_initial", "best_step", "start", "dense_steps"):
        ours, theirs = getattr(info, name), getattr(same, name)
        assert torch.equal(ours.nan_to_num(), theirs.nan_to_num()), name


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("ensemble", ["min", "mean", "lcb"])
@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "rmsprop", "adam"])
def test_options(optimizer: str, ensemble: str, heads: int) -> None:
    critic = random_critic(heads=heads, hidden=(130, 40), action_dim=5, observation_dim=9)
    batch = random_batch(critic, 67, 3)
    extras: list[dict[str, Any]] = [
        {"max_distance": 0.2},
        {"gradient": "unit", "bounds": None, "steps": 5},
        {"bounds": ([-1, -0.5, 0.0, -1, -1], [1, 0.5, 0.25, 1, 0.5]), "max_distance": 0.0},
        {"select": "best", "steps": 9},
    ]
    for extra in extras:
        words: dict[str, Any] = {"optimizer": optimizer, "ensemble": ensemble, "select": "last"}
        words |= extra
        result, info = run(critic, batch, **words)
        theirs, their_info = expected(Rounded(critic), batch, **words)
        near = (result - theirs).abs().amax(dim=1) <= 10 * EXACT
        assert near.float().mean() > 0.8, (extra, near.float().mean())
        same = near & (info.start == their_info.start)
        assert same.float().mean() > 0.8
        for name in ("q", "distance"):
            ours, its = getattr(info, name)[same], getattr(their_info, name)[same]
            torch.testing.assert_close(ours, its, atol=1e-3, rtol=1e-3)
        # With a starting point of three, whichever is the best.
        certain = sure_starts(critic, batch, **words)
        assert certain.float().mean() > 0.5
        ours, its = info.q_initial[certain], their_info.q_initial[certain]
        torch.testing.assert_close(ours, its, atol=EXACT, rtol=EXACT)


@pytest.mark.parametrize(
    "sizes", [(1e-6, 1e-3, 1.0, 30.0, 1e4, 1e8), (0.01, 0.3, 1.0, 30.0, 1e4, 1e8), (2000.0,) * 6]
)
def test_dimensions_of_any_size(sizes: tuple[float, ...]) -> None:
    """Half floats hold four digits from 1e-4 on: what they take has to be scaled to them."""
    critic = random_critic(hidden=(256, 256), action_dim=6, observation_dim=17)
    observations, actions = random_batch(critic, 40)
    for of_first, of_rest in ((1.0, 1.0), (1e-7, 1e6), (1e7, 1e-6)):
        scaled = of_sizes(critic, sizes, of_first, of_rest)
        rounded = Rounded(scaled)
        words: dict[str, Any] = {"bounds": None, "select": "last"}
        # A step from 0, so small that it arrives where half floats hold it, is the gradient.
        batch, step_size = (observations, torch.zeros_like(actions)), 1e-12 / of_rest
        result, _ = run(scaled, batch, steps=1, step_size=step_size, **words)
        q, gradient = rounded.evaluate(*batch)
        _, clear = rounded.doubt(*batch)
        assert clear.float().mean() > 0.8
        lower = gradient[q.argmin(0), torch.arange(40)][clear] * step_size
        most = lower.abs().amax(dim=0)
        assert (most > 0).all()
        torch.testing.assert_close(result[clear] / most, lower / most, atol=EXACT, rtol=EXACT)
        if min(sizes) < 0.01:
            continue
        # And z_1 has all dimensions, where actions that matter most are not too small.
        batch = observations, actions.clamp(-1, 1) * torch.tensor(sizes)
        _, info = run(scaled, batch, steps=0, **words)
        off = (info.q - rounded(*batch).amin(0)).abs() / of_rest
        sure = (rounded.doubt(*batch)[0] == 0).all(dim=0)
        assert sure.float().mean() > 0.6
        assert off[sure].max() <= EXACT


def test_actions_that_half_floats_cannot_take() -> None:
    critic = random_critic(hidden=(256, 200), action_dim=6, observation_dim=17)
    observations, actions = random_batch(critic, 70, 2)
    whole = run(critic, (observations, actions), bounds=None)
    actions[3, 1, 2], actions[66, 0, 5] = 1e9, -1e9
    result, info = run(critic, (observations, actions), bounds=None)
    other, other_info = run(critic, (observations, actions), bounds=None, kernel="row")
    rest = torch.ones(70, dtype=torch.bool)
    rest[[3, 66]] = False
    assert torch.equal(result[~rest], other[~rest])
    assert torch.equal(info.q[~rest], other_info.q[~rest])
    assert info.q.isfinite().all()
    assert torch.equal(result[rest], whole[0][rest])
    # In a box nothing is so large.
    run_in_box = run(critic, (observations, actions))[0]
    clamped = run(critic, (observations, actions.clamp(-1, 1)))[0]
    assert torch.equal(run_in_box, clamped)


def test_zeros_have_no_slope() -> None:
    # ReLU'(0) = 0: no bias, no observation and no action, so that every z is zero, of either sign.
    critic = random_critic(hidden=(256, 256), action_dim=6, observation_dim=17)
    with torch.no_grad():
        for bias in critic.biases[:2]:
            bias.copy_(torch.zeros_like(bias) * torch.tensor([1.0, -1.0]).repeat(128))
    zeros = torch.zeros(3, 17), torch.zeros(3, 6)
    result, info = run(critic, zeros, step_size=1.0, select="last")
    assert torch.equal(result, zeros[1])
    torch.testing.assert_close(info.q, critic.biases[2].detach().amin().expand(3))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_rows_that_are_not_finite(bad: float) -> None:
    critic = random_critic(hidden=(256, 200), action_dim=6, observation_dim=17)
    observations, actions = random_batch(critic, 130, 2)
    whole = run(critic, (observations, actions), bounds=None)
    observations[3, 1] = bad
    actions[70, 1, 2] = bad
    actions[128, :, 5] = bad
    batch = observations, actions
    result, info = run(critic, batch, bounds=None)
    # As the walk's kernel does them, bit for bit, which obeys the contract.
    other, other_info = run(critic, batch, bounds=None, kernel="row")
    marked = torch.tensor([3, 70, 128])
    assert torch.equal(result[marked].nan_to_num(), other[marked].nan_to_num())
    for name in ("q", "q_initial", "best_step", "start", "distance"):
        ours, its = getattr(info, name)[marked], getattr(other_info, name)[marked]
        assert torch.equal(ours.nan_to_num(), its.nan_to_num()), name
    assert (info.dense_steps == 20).all()
    # And no other row is touched.
    rest = torch.ones(130, dtype=torch.bool)
    rest[marked] = False
    assert torch.equal(result[rest], whole[0][rest])
    assert torch.equal(info.q[rest], whole[1].q[rest])


@pytest.mark.parametrize("ensemble", ["min", "mean", "lcb"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(bad: float, ensemble: str) -> None:
    for layer, index in ((0, (1, 2, 0)), (0, (1, 2, 5)), (1, (0, 3, 3)), (2, (1, 0, 1))):
        critic = random_critic(4)
        with torch.no_grad():
            critic.weights[layer][index] = bad
        batch = random_batch(critic, 9)
        words: dict[str, Any] = {"ensemble": ensemble, "return_info": True}
        expected, info = refine(
            critic, *batch, backend="cuda", algorithm="dense", precision="fp32", **words
        )
        result, ours = refine(
            critic, *batch, backend="cuda", algorithm="dense", precision="bf16", **words
        )
        torch.testing.assert_close(result, expected, atol=OF_BF16, rtol=0)
        assert torch.equal(ours.q.isfinite(), info.q.isfinite())


def test_a_gradient_that_overflows_is_taken_by_the_contract() -> None:
    critic = random_critic(hidden=(40, 30), action_dim=3, heads=1)
    with torch.no_grad():
        critic.weights[0].mul_(1e30)
        critic.weights[1].mul_(1e30)
    batch = random_batch(critic, 5)
    ours, other = run(critic, batch), run(critic, batch, kernel="row")
    assert torch.equal(ours[0], other[0])
    assert torch.equal(ours[1].best_step, other[1].best_step)


def test_a_row_does_not_depend_on_its_batch() -> None:
    critic = random_critic(hidden=(256, 256), action_dim=6, observation_dim=17)
    observations, actions = random_batch(critic, 150, 2)
    observations[3, 1] = float("nan")
    whole, info = run(critic, (observations, actions))
    for rows in (slice(0, 1), slice(2, 5), slice(60, 70), slice(64, 128), slice(149, 150)):
        part, its = run(critic, (observations[rows], actions[rows].contiguous()))
        assert torch.equal(part, whole[rows])
        assert torch.equal(its.q.nan_to_num(), info.q[rows].nan_to_num())


def test_results_are_written_completely() -> None:
    critic = random_critic(hidden=(30, 30))
    batch = random_batch(critic, 66)
    first = run(critic, batch)
    with pytest.MonkeyPatch.context() as patch:
        empty = torch.empty

        def poisoned(*sizes: Any, **how: Any) -> Tensor:
            made = empty(*sizes, **how)
            return made.fill_(-1 if made.dtype == torch.int64 else float("nan"))

        patch.setattr(torch, "empty", poisoned)
        second = run(critic, batch)
    assert torch.equal(first[0], second[0])
    for value, other in zip(vars(first[1]).values(), vars(second[1]).values(), strict=True):
        assert isinstance(value, str) or torch.equal(value, other)


def test_what_they_do_not_take_goes_on_by_the_walks_kernels() -> None:
    shapes: list[dict[str, Any]] = [
        {"heads": 3},
        {"hidden": (30,)},
        {"hidden": (257, 30)},
        {"action_dim": 9},
        {"activation": "leaky_relu", "negative_slope": 0.1},
    ]
    for shape in shapes:
        critic = random_critic(**shape)
        batch = random_batch(critic, 5)
        assert torch.equal(run(critic, batch)[0], run(critic, batch, kernel="row")[0]), shape
    critic = random_critic(hidden=(256, 256))
    batch = random_batch(critic, 5)
    assert not torch.equal(run(critic, batch)[0], run(critic, batch, kernel="row")[0])


def test_no_rows() -> None:
    critic = random_critic()
    result, info = run(critic, (torch.zeros(0, 5), torch.zeros(0, 3)))
    assert result.shape == (0, 3)
    assert info.q.shape == (0,)
