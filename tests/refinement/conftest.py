"""Tests that take `backend` or `fast` run on each row of the backend table."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from dtag_fast.refinement import BACKENDS, cpu
from dtag_fast.refinement.backends import BackendName


def _ways() -> list[str]:
    """The backends of the table; and the cpu backend by each instruction set and algorithm."""
    ways = list(BACKENDS)
    if cpu.unavailable_reason() is None:
        for isa in _native().isas():
            algorithms = ("dense",) if isa == "scalar" else ("dense", "walk")
            ways += [f"cpu-{isa}-{algorithm}" for algorithm in algorithms]
    return ways


def _native() -> Any:
    return importlib.import_module("dtag_fast._native")


@pytest.fixture(params=_ways())
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A backend of the table; skipped, with the reason, where this machine cannot run it."""
    yield from _prepared(request.param, monkeypatch)


@pytest.fixture(params=[way for way in _ways() if way != "reference"])
def fast(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A backend other than the reference, to be compared with it."""
    yield from _prepared(request.param, monkeypatch)


def _prepared(way: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[BackendName]:
    """The backend's name; with a way of the cpu backend, calls of it go that way meanwhile."""
    if way in BACKENDS:
        yield _able(cast(BackendName, way))
        return
    _, isa, algorithm = way.split("-")
    native = _native()
    run: Any = cpu.run

    def forced(critic: Any, *arguments: Any) -> Any:
        *batch, execution = arguments
        if execution.algorithm == "auto":
            wanted = replace(execution, algorithm=algorithm)
            try:
                return run(critic, *batch, wanted)
            except ValueError as error:  # a critic that cannot be walked goes the dense way
                if "algorithm" not in str(error):
                    raise
                return run(critic, *batch, replace(execution, algorithm="dense"))
        return run(critic, *batch, execution)

    monkeypatch.setattr(cpu, "run", forced)
    monkeypatch.setattr(cpu, "fast_call", lambda *_: lambda *_: NotImplemented)
    before = native.isa()
    native.select_isa(isa)
    yield "cpu"
    native.select_isa(before)


def _able(name: BackendName) -> BackendName:
    reason = BACKENDS[name].load().unavailable_reason()
    if reason is not None:
        if name == "cpu" and os.environ.get("DTAG_REQUIRE_NATIVE") == "1":
            pytest.fail(f"DTAG_REQUIRE_NATIVE is set, but the cpu backend cannot run: {reason}")
        pytest.skip(f"backend {name} cannot run here: {reason}")
    return name


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
