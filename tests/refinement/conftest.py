"""Tests that take `backend` or `fast` run on each row of the backend table."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from dtag_fast.refinement import BACKENDS
from dtag_fast.refinement.backends import BackendName


@pytest.fixture(params=list(BACKENDS))
def backend(request: pytest.FixtureRequest) -> BackendName:
    """A backend of the table; skipped, with the reason, where this machine cannot run it."""
    return _able(request.param)


@pytest.fixture(params=[name for name in BACKENDS if name != "reference"])
def fast(request: pytest.FixtureRequest) -> BackendName:
    """A backend other than the reference, to be compared with it."""
    return _able(request.param)


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
