"""The fast call of the backends that take tensors as they come, cuda's (on its kernel's emulation)
and triton's: what takes it, that it changes nothing, and what it notices.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dtag_fast import Refiner
from dtag_fast.refinement import cuda, triton
from dtag_fast.refinement.backends import BackendName
from dtag_fast.refinement.parity import random_batch, random_critic
from tests.refinement.emulation import emulated


@dataclass(frozen=True)
class Where:
    """A backend, and the type of device that it takes here."""

    backend: BackendName
    device: str

    def ready(self, **options: Any) -> tuple[Refiner, Tensor, Tensor]:
        """A refiner that has been called, and a batch."""
        critic = random_critic(hidden=(8,))
        observations, actions = (x.to(self.device) for x in random_batch(critic, 4))
        critic.to(self.device)
        plain: dict[str, Any] = {"backend": self.backend, "algorithm": "dense"}
        refiner = Refiner(critic, **plain | {"steps": 2, "step_size": 0.5} | options)
        refiner(observations, actions)
        return refiner, observations, actions


@pytest.fixture(params=["cuda", "triton"])
def where(request: pytest.FixtureRequest) -> Iterator[Where]:
    if request.param == "cuda":
        with emulated():
            yield Where("cuda", "cpu")
        return
    reason = triton.unavailable_reason()
    if reason is not None:
        pytest.skip(reason)
    yield Where("triton", "cpu" if triton.interpreted() else "cuda")


@pytest.mark.parametrize(
    "options",
    [{}, {"algorithm": "walk"}, {"select": "last", "optimizer": "adam", "bounds": None}],
    ids=str,
)
def test_plain_tensors_take_it(where: Where, options: dict[str, Any]) -> None:
    refiner, observations, actions = where.ready(**options)
    several = torch.stack([actions, -actions], dim=1)
    for given in (
        (observations, actions),
        (observations, actions.unsqueeze(1)),
        (observations, several),
        (observations[1:2], actions[1:2]),
        (observations[:0], actions[:0]),
        (observations[:0], several[:0]),
        (observations, actions.clone().requires_grad_()),
        (observations[0], actions[0]),
    ):
        before = given[1].detach().clone()
        result, expected = refiner._fast(*given), refiner._call(*given)
        assert torch.equal(result, expected)
        assert result.is_contiguous()
        assert not result.requires_grad
        result += 1.0
        assert torch.equal(given[1], before)
        if given[1].requires_grad:
            continue
        arrays = tuple(tensor.cpu().numpy() for tensor in given)
        array = refiner._fast(*arrays)
        assert type(array) is np.ndarray
        np.testing.assert_array_equal(array, expected.cpu())
        array += 1.0
        np.testing.assert_array_equal(arrays[1], before.cpu())
    with torch.inference_mode(), torch.device("meta"):
        inside = refiner._fast(observations, actions)
        assert torch.equal(inside, refiner._call(observations, actions))


UNUSUAL = [
    "double numpy",
    "numpy in columns",
    "read-only numpy",
    "double",
    "not contiguous",
    "negative",
    "subclass",
]
WRONG = [
    "one kind each",
    "one row, several points",
    "one row of several",
    "sizes",
    "action sizes",
    "rows",
    "no starts",
    "dimensions",
    "device",
]


@pytest.mark.parametrize("case", UNUSUAL + WRONG)
def test_what_is_out_of_the_ordinary_takes_the_normal_way(where: Where, case: str) -> None:
    refiner, observations, actions = where.ready()
    rows, points = observations.cpu().numpy(), actions.cpu().numpy()
    fixed, several = points.copy(), torch.stack([actions, -actions], dim=1)
    fixed.flags.writeable = False
    given: dict[str, tuple[Any, Any]] = {
        "double numpy": (rows.astype(np.float64), points),
        "numpy in columns": (rows, np.asfortranarray(points)),
        "read-only numpy": (rows, fixed),
        "one kind each": (rows, actions),
        "double": (observations.double(), actions.double()),
        "one row, several points": (observations[0], several[0]),
        "one row of several": (observations, actions[0]),
        "not contiguous": (observations.T.contiguous().T, actions),
        "negative": (observations, torch._neg_view(actions)),
        "subclass": (observations, torch.nn.Parameter(actions)),
        "sizes": (observations[:, :-1].contiguous(), actions),
        "action sizes": (observations, actions[:, :-1].contiguous()),
        "rows": (observations[:-1], actions),
        "no starts": (observations, actions.unsqueeze(1)[:, :0]),
        "dimensions": (observations.unsqueeze(0), actions),
        "device": (observations, torch.empty_like(actions, device="meta")),
    }
    assert refiner._fast(*given[case]) is NotImplemented
    if case in WRONG:
        with pytest.raises((TypeError, ValueError), match=r"observations|actions"):
            refiner(*given[case])
    else:
        result = refiner(*given[case])
        if case != "subclass":
            assert type(result) is type(given[case][1])
        first = np.asarray(result[0].cpu() if isinstance(result, Tensor) else result[0])
        plain = refiner(observations, -actions if case == "negative" else actions)
        np.testing.assert_allclose(first, plain[0].cpu(), atol=1e-5)


def test_changed_weights_end_it(where: Where) -> None:
    refiner, observations, actions = where.ready()
    before = refiner(observations, actions)
    with torch.no_grad():
        refiner.critic.get_parameter("weights.0").mul_(-1.0)
    assert refiner._fast(observations, actions) is NotImplemented
    assert not torch.equal(refiner(observations, actions), before)
    assert refiner._fast(observations, actions) is not NotImplemented
    refiner.critic.get_parameter("weights.0").data.mul_(-1.0)
    refiner.refresh()
    assert refiner._fast(observations, actions) is NotImplemented
    assert torch.equal(refiner(observations, actions), before)


def test_numpy_arrays_are_sent_once(where: Where, monkeypatch: pytest.MonkeyPatch) -> None:
    refiner, observations, actions = where.ready()
    rows, points = observations.cpu().numpy(), actions.cpu().numpy()
    fast = refiner._fast
    with monkeypatch.context() as patch:
        patch.setattr(torch, "from_numpy", lambda _: pytest.fail("sent before it was looked at"))
        assert fast(rows[:, :-1].copy(), points) is NotImplemented
        assert fast(rows, points[:-1]) is NotImplemented
        with torch.no_grad():
            refiner.critic.get_parameter("weights.0").mul_(-1.0)
        assert fast(rows, points) is NotImplemented


# The cuda backend's


@pytest.fixture
def emulator() -> Iterator[None]:
    """The cuda backend runs on the emulation."""
    with emulated():
        yield


@pytest.mark.usefixtures("emulator")
def test_tensors_without_memory_are_refused() -> None:
    refiner, observations, actions = Where("cuda", "cpu").ready()
    zeros = torch._efficientzerotensor(actions.shape)
    assert refiner._fast(observations, zeros) is NotImplemented
    with pytest.raises(ValueError, match="actions: expected a tensor with memory"):
        refiner(observations, zeros)


@pytest.mark.usefixtures("emulator")
def test_it_is_a_launch_and_two_allocations(monkeypatch: pytest.MonkeyPatch) -> None:
    refiner, observations, actions = Where("cuda", "cpu").ready()
    expected = refiner(observations, actions)
    made: list[Tensor] = []
    empty = torch.empty

    def counted(*arguments: Any, **words: Any) -> Tensor:
        made.append(empty(*arguments, **words))
        return made[-1]

    with monkeypatch.context() as patch:
        patch.setattr(torch, "empty", counted)
        for name in ("run", "pack", "native_options"):
            patch.delattr(cuda, name)
        assert torch.equal(refiner(observations, actions), expected)
    assert len(made) == 2


@pytest.mark.usefixtures("emulator")
@pytest.mark.parametrize("floats", [0, 24])
@pytest.mark.parametrize("current", [0, 1])
def test_it_is_launched_on_the_devices_current_stream(
    monkeypatch: pytest.MonkeyPatch, floats: int, current: int
) -> None:
    at, entered = [current], []
    packed = cuda.pack(random_critic())
    options = Refiner(random_critic(), backend="reference").options
    native, empty = cuda.native_options(options, 3), torch.empty
    launched: list[tuple[Any, ...]] = []

    class Module:
        @staticmethod
        def floats_for_maps(critic: object, dense: bool, rows: int) -> int:
            assert (critic, dense, rows) == (packed.native, True, 2)
            return floats

        @staticmethod
        def refine(*arguments: Any) -> None:
            assert at == [1], "the native module would make it the current one, and leave it so"
            launched.append(arguments)

    @contextmanager
    def device(wanted: torch.device) -> Iterator[None]:
        before, at[0] = at[0], wanted.index
        entered.append(wanted)
        yield
        at[0] = before

    elsewhere = replace(packed, device=torch.device("cuda", 1))
    with monkeypatch.context() as patch:
        patch.setattr(cuda, "_load", lambda: Module)
        patch.setattr(torch, "empty", lambda *sizes, device, **words: empty(*sizes, **words))
        name = "_cuda_getCurrentRawStream"
        patch.setattr(torch._C, name, lambda device: 70 + device, raising=False)
        patch.setattr(torch._C, "_cuda_getDevice", lambda: at[0], raising=False)
        patch.setattr(torch.cuda, "device", device)
        result = cuda._launch(elsewhere, native, True, (2, 5), (10, 20), (30, 40))
    assert result.shape == (2, 3)
    (arguments,) = launched
    *before, maps, index, stream, kernel = arguments
    assert before == [packed.native, native, True, 2, 5, 10, 20, result.data_ptr(), 30, 40]
    assert (maps != 0) == (floats > 0)
    assert (index, stream, kernel) == (1, 71, "auto")
    assert at == [current]
    assert len(entered) == (current != 1)  # it costs
