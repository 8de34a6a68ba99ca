"""Tests that take `how` run in every way this machine can refine; `fast` leaves out those that
compute matrix products with torch, whose rounding depends on the size of the batch.

The graph backend takes part without its compiler: what it compiles runs as it is. test_graph.py
has it compiled. The cuda backend runs on its kernel's emulation, emulation.py. The triton backend
takes part where its interpreter runs it, in `how` alone and without its walk, as that is slow;
test_triton.py and test_triton_walk.py have the rest.

A way is a function: of a critic, the keywords that choose backend and algorithm. While the test
runs its instruction set is in use.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dtag_fast import build_info
from dtag_fast.refinement import BACKENDS, compiled_loop, compiling, cpu, cuda, triton
from dtag_fast.refinement.backends import BackendName
from dtag_fast.refinement.execution import Algorithm, Execution
from tests.refinement.emulation import emulated


@dataclass(frozen=True)
class Way:
    """A backend as it comes, or by an algorithm; the cpu backend also by an instruction set."""

    backend: BackendName
    isa: str = ""
    algorithm: Algorithm = "auto"

    def __str__(self) -> str:
        return "-".join(filter(None, (self.backend, self.isa, self.algorithm.replace("auto", ""))))

    def __call__(self, critic: nn.Module) -> dict[str, Any]:
        """Keywords for `refine`. A critic that cannot be walked takes the full network instead, one
        that the cuda backend does not take the cpu backend.
        """
        if self.backend == "cuda" and cuda.unsupported_reason(critic) is not None:
            return {"backend": "cpu"}
        if self.algorithm == "auto":
            return {"backend": self.backend}
        walk = Execution(algorithm="walk")
        walks = self.backend == "cpu" and cpu.unsupported_reason(critic, execution=walk) is None
        return {"backend": self.backend, "algorithm": self.algorithm if walks else "dense"}

    @contextmanager
    def selected(self) -> Iterator[Way]:
        """Skips, with the reason, where this machine cannot run it."""
        if self.backend == "cuda":
            with emulated():
                yield self
            return
        reason = BACKENDS[self.backend].load().unavailable_reason()
        if reason is not None:
            if self.backend == "cpu" and os.environ.get("DTAG_REQUIRE_NATIVE") == "1":
                pytest.fail(f"DTAG_REQUIRE_NATIVE is set, but the cpu backend cannot run: {reason}")
            pytest.skip(f"backend {self.backend} cannot run here: {reason}")
        if self.backend == "graph":
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(compiled_loop, "compiled", lambda step, like: step)
                patch.setattr(compiled_loop, "_steps", OrderedDict())
                yield self
            return
        if self.backend == "triton" and not triton.interpreted():
            pytest.skip("the triton backend takes critics on CUDA here; see test_triton.py")
        if not self.isa:
            yield self
            return
        native = cpu._load()
        before = native.isa()
        native.select_isa(self.isa)
        try:
            yield self
        finally:
            native.select_isa(before)


def _ways(backend: BackendName) -> list[Way]:
    isas = [isa for isa in build_info.describe()["isas"].split(", ") if isa]
    if backend != "cpu" or not isas:
        return [Way(backend)]
    both: tuple[Algorithm, ...] = ("walk", "dense")
    forced = [Way("cpu", i, a) for i in isas for a in both if (i, a) != ("scalar", "walk")]
    return [Way("cpu"), *forced]


SLOW = [Way("triton", algorithm="dense"), Way("reference")]
FAST = [
    way
    for backend in BACKENDS
    if backend not in {slow.backend for slow in SLOW}
    for way in _ways(backend)  # type: ignore[arg-type]
]


@pytest.fixture(params=[*FAST, *SLOW], ids=str)
def how(request: pytest.FixtureRequest) -> Iterator[Way]:
    """A way to refine."""
    with request.param.selected() as way:
        yield way


@pytest.fixture(params=[way for way in FAST if way.backend != "graph"], ids=str)
def fast(request: pytest.FixtureRequest) -> Iterator[Way]:
    """A way in which a row's result is the same in any batch, bit for bit."""
    with request.param.selected() as way:
        yield way


@pytest.fixture
def each_fast() -> Callable[[], Iterator[Way]]:
    """A function to go through the ways that are not slow, each in use in its turn."""

    def each() -> Iterator[Way]:
        for way in FAST:
            with way.selected():
                yield way

    return each


@pytest.fixture
def record(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Steps are recorded, but what was recorded runs as it is; how many rows each time."""
    calls: list[int] = []

    def recorded(step: Callable[..., Any], like: list[Tensor]) -> Any:
        calls.append(len(like[-8]))
        return compiling.recorded(step, like)

    monkeypatch.setattr(compiled_loop, "compiled", recorded)
    monkeypatch.setattr(compiled_loop, "_steps", OrderedDict())
    return calls


@pytest.fixture(autouse=True)
def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill fresh memory with NaN, so that an output element left unwritten is seen."""

    def poisoned(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def fill(*args: Any, **kwargs: Any) -> Tensor:
            tensor = make(*args, **kwargs)
            with torch.no_grad():
                if tensor.is_floating_point():
                    tensor.fill_(float("nan"))
                elif tensor.dtype != torch.bool:
                    tensor.fill_(torch.iinfo(tensor.dtype).max)
            return tensor

        return fill

    monkeypatch.setattr(torch, "empty", poisoned(torch.empty))
    monkeypatch.setattr(torch, "empty_like", poisoned(torch.empty_like))
