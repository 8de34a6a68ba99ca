"""How the triton backend launches: the handles of compiled kernels."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch

from dtag_fast import Refiner
from dtag_fast.refinement import triton
from dtag_fast.refinement.parity import random_batch, random_critic
from dtag_fast.refinement.triton_kernels import launch

pytestmark = pytest.mark.skipif(
    triton.unavailable_reason() is not None, reason=str(triton.unavailable_reason())
)
DEVICE = "cpu" if triton.interpreted() else "cuda"


def ready(**options: Any) -> tuple[Refiner, torch.Tensor, torch.Tensor]:
    """A refiner that has been called, and a batch."""
    critic = random_critic(hidden=(8,))
    observations, actions = (x.to(DEVICE) for x in random_batch(critic, 4))
    critic.to(DEVICE)
    plain: dict[str, Any] = {"backend": "triton", "algorithm": "dense"}
    refiner = Refiner(critic, **plain | {"steps": 2, "step_size": 0.5} | options)
    refiner(observations, actions)
    return refiner, observations, actions


class Handle:
    """In place of what Triton compiles: notes what it is launched with."""

    def __init__(self) -> None:
        self.launched: list[tuple[tuple[int, ...], tuple[Any, ...]]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda *arguments: self.launched.append((grid, arguments))


class Kernel:
    """In place of a kernel, with its signature."""

    def __init__(self, names: list[str]) -> None:
        self.names = names
        self.warmed: list[dict[str, Any]] = []
        self.handle = Handle()

    def warmup(self, *arguments: Any, grid: tuple[int, ...], **options: Any) -> Handle:
        self.warmed.append(dict(zip(self.names, arguments, strict=True)) | options)
        return self.handle


@pytest.mark.parametrize("name", ["dense", "walk", "choose"])
def test_a_kernel_is_compiled_once_and_then_launched_by_its_handle(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments: dict[str, Any] = {"algorithm": "walk" if name == "walk" else "dense"}
    refiner, observations, actions = ready(**arguments)
    points = torch.stack([actions, actions], dim=1) if name == "choose" else actions
    real = {each: launch.kernels(each) for each in ("dense", "walk", "choose")}
    fakes = {each: Kernel(getattr(module, each).arg_names) for each, module in real.items()}

    class Module:
        def __init__(self, each: str) -> None:
            setattr(self, each, fakes[each])

    monkeypatch.setattr(launch, "interpreted", lambda: False)
    monkeypatch.setattr(launch, "kernels", Module)
    monkeypatch.setattr(launch, "_compiled", {})
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    for rows in (4, 3, 1):
        refiner(observations[:rows], points[:rows])
    kernel = fakes[name]
    (warmed,) = kernel.warmed
    # Every constant has reached the parameter of its name.
    assert warmed["num_warps"] in (1, 8, 16)
    assert warmed["A"] == (4 if name == "walk" else 16)
    if name != "choose":
        assert (warmed["H"], warmed["HEADS"]) == (16, 2)
        assert warmed["TILE"] == (8 if name == "walk" else 16)
        assert (warmed["ACTIVATION"], warmed["PRECISION"]) == ("relu", "fp32")
        assert (warmed["rows"], warmed["steps"], warmed["action_dim"]) == (4, 2, 3)
    assert len(kernel.handle.launched) == 3
    for (grid, given), rows in zip(kernel.handle.launched, (4, 3, 1), strict=True):
        assert grid[1:] == (1, 1)
        named = dict(zip(kernel.names, given, strict=True))
        assert named["batch" if name == "choose" else "rows"] == rows
