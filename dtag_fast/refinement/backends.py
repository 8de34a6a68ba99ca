"""The table of backends, and the choice among them."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast

import torch
from torch import Tensor, nn

from dtag_fast import build_info
from dtag_fast.refinement.execution import DEFAULT, Execution, Precision
from dtag_fast.refinement.inputs import device_of
from dtag_fast.refinement.options import RefineInfo, RefineOptions

BackendName = Literal["auto", "cpu", "cuda", "triton", "graph", "reference"]
FastCall = Callable[[Any, Any], Any]
EVERY_BATCH = range(sys.maxsize)  # numbers of rows


class Backend(Protocol):
    """What a backend's module offers."""

    def unavailable_reason(self) -> str | None:
        """Why it cannot run on this machine, or None."""

    def unsupported_reason(
        self, critic: nn.Module, options: RefineOptions, execution: Execution
    ) -> str | None:
        """Why it cannot refine with this critic, in this way, or None."""

    def run(
        self,
        critic: Any,
        observations: Tensor,
        actions: Tensor,
        options: RefineOptions,
        execution: Execution,
    ) -> tuple[Tensor, RefineInfo]:
        """Refine observations [B, S] and actions [B, N, A] to actions [B, A].

        `critic` is what `pack` made of the critic, for a backend that packs.
        """


class PackingBackend(Backend, Protocol):
    """A backend that first brings the weights into a layout of its own."""

    def pack(self, critic: nn.Module, precision: Precision) -> Any:
        """A copy of the weights; it must not keep the critic alive."""


class FastBackend(PackingBackend, Protocol):
    """A packing backend with a way around everything in Python."""

    def fast_call(
        self,
        packed: Any,
        version: Any,
        options: RefineOptions,
        execution: Execution,
        rows: range = EVERY_BATCH,
    ) -> FastCall:
        """A shortcut past checks and conversions, for as long as the version is current.

        It takes a call's observations and actions as the user gave them, and returns the refined
        actions as the user gets them, or NotImplemented for whatever is out of the ordinary, or of
        another number of rows than `rows` has.
        """


@dataclass(frozen=True)
class BackendEntry:
    """A row of the table.

    Attributes:
        module: loaded when first needed.
        limits: what it does not take, for readers.
        packs: whether it is a `PackingBackend`.
        fast: whether it is a `FastBackend`.
        auto_on: the types of device of the critic with which "auto" thinks of it; () for any.
    """

    module: str
    limits: str
    packs: bool = False
    fast: bool = False
    auto_on: tuple[str, ...] = ()

    def load(self) -> Backend:
        """The backend's module."""
        return cast(Backend, importlib.import_module(self.module))


# In the order in which "auto" prefers them.
BACKENDS: dict[str, BackendEntry] = {
    "cpu": BackendEntry(
        "dtag_fast.refinement.cpu",
        limits="a `dtag_fast.Critic` on the CPU; needs the compiled extension",
        packs=True,
        fast=True,
        auto_on=("cpu",),
    ),
    "cuda": BackendEntry(
        "dtag_fast.refinement.cuda",
        limits="a `dtag_fast.Critic` with one or two hidden layers of ReLU or LeakyReLU, on CUDA, "
        "or on the CPU, whose arrays go there and back; needs the CUDA extension",
        packs=True,
        fast=True,
        auto_on=("cuda",),
    ),
    "triton": BackendEntry(
        "dtag_fast.refinement.triton",
        limits="a `dtag_fast.Critic` on CUDA without LayerNorm, hidden layers of up to 1024 units; "
        "needs triton; compiles at the first call",
        packs=True,
        fast=True,
        auto_on=("cuda",),
    ),
    "graph": BackendEntry(
        "dtag_fast.refinement.graph",
        limits="any module that torch can record, on the CPU or CUDA; needs a C++ compiler; "
        "compiles at the first call",
        packs=True,
        fast=True,
        auto_on=("cuda",),
    ),
    "reference": BackendEntry(
        "dtag_fast.refinement.reference", limits="none: any module, any device"
    ),
}


def reason_against(
    name: str, critic: nn.Module, options: RefineOptions, execution: Execution = DEFAULT
) -> str | None:
    """Why the backend cannot do this refinement here, or None if it can."""
    backend = BACKENDS[name].load()
    return backend.unavailable_reason() or backend.unsupported_reason(critic, options, execution)


def choose_backend(
    name: str, critic: nn.Module, options: RefineOptions, execution: Execution
) -> str:
    """The backend to use: the named one, or the first that can where the name is "auto".

    Raises:
        ValueError: no backend of that name.
        RuntimeError: the named one cannot run, or none can; the message says why. Only "auto"
            ever chooses, and it passes over no instruction set that was asked for.
    """
    if name == "auto":
        unusable = build_info.isa_error()
        if unusable is not None:
            raise RuntimeError(unusable)
        reasons = []
        device = device_of(critic) or torch.device("cpu")
        for candidate, entry in BACKENDS.items():
            if entry.auto_on and device.type not in entry.auto_on:
                continue
            reason = reason_against(candidate, critic, options, execution)
            if reason is None:
                return candidate
            reasons.append(f"{candidate}: {reason}")
        raise RuntimeError(f"no backend can do this: {'; '.join(reasons)}")
    if name not in BACKENDS:
        raise ValueError(f"backend: expected one of auto, {', '.join(BACKENDS)}, got {name!r}")
    reason = reason_against(name, critic, options, execution)
    if reason is not None:
        raise RuntimeError(f"backend {name!r} cannot be used here: {reason}")
    return name
