"""Whether the native module was built, how, and if not why: what `dtag doctor` shows."""

from __future__ import annotations

import functools
import importlib
from types import ModuleType
from typing import TypedDict

# Written into an installation by tools/build_backend.py where the native build failed.
FAILURE_RECORD = "dtag_fast._build_failure"


class BuildInfo(TypedDict):
    """What is known of the native build.

    Attributes:
        native: whether the module can be used.
        reason: why not; None where it can.
        log: the end of the failed build's output; "" where there is none.
        path: of the module; None where there is none.
        compiler, flags, build_type, processor, pybind11, version: how it was built; "" where
            there is no module. `version` is that of the package, "" for a build in the tree.
        isa: the instruction set whose kernels are in use; "" where there is no module.
        isas: those that this processor can run, the fastest first, separated by ", ".
    """

    native: bool
    reason: str | None
    log: str
    path: str | None
    compiler: str
    flags: str
    build_type: str
    processor: str
    pybind11: str
    version: str
    isa: str
    isas: str


def describe() -> BuildInfo:
    """Everything about the native build, as plain values."""
    module = _native_module()
    failure = None if module else _build_failure()
    built: dict[str, str] = module.build_info() if module else {}
    return BuildInfo(
        native=module is not None and module.isa_error is None,
        reason=native_missing_reason() or isa_error(),
        log=failure.LOG if failure else "",
        path=str(module.__file__) if module else None,
        compiler=built.get("compiler", ""),
        flags=built.get("flags", ""),
        build_type=built.get("build_type", ""),
        processor=built.get("processor", ""),
        pybind11=built.get("pybind11", ""),
        version=built.get("version", ""),
        isa=module.isa() if module else "",
        isas=", ".join(module.isas()) if module else "",
    )


def isa_error() -> str | None:
    """Why the kernels of the instruction set that DTAG_ISA names cannot run here, or None."""
    module = _native_module()
    return module.isa_error if module else None


@functools.cache
def native_missing_reason() -> str | None:
    """Why the native module cannot be used, in one sentence; None if it can."""
    try:
        importlib.import_module("dtag_fast._native")
    except ModuleNotFoundError as error:
        if error.name != "dtag_fast._native":
            return f"the native module does not load: {error}"
        failure = _build_failure()
        if failure is not None:
            return str(failure.REASON)
        return (
            "the native module was not built, and the installation has no record of why (a source "
            "tree that was not installed, or a build with CMake turned off)"
        )
    except ImportError as error:
        return f"the native module does not load: {error}"
    return None


def _native_module() -> ModuleType | None:
    if native_missing_reason() is not None:
        return None
    return importlib.import_module("dtag_fast._native")


def _build_failure() -> ModuleType | None:
    try:
        return importlib.import_module(FAILURE_RECORD)
    except ModuleNotFoundError:
        return None
