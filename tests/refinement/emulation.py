"""The cuda backend without a GPU: its kernel's source compiled for the host, tests/native/cuda."""

from __future__ import annotations

import functools
import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import pytest

from dtag_fast.refinement import cuda
from tests.native.conftest import build

NAME = "dtag_cuda_emulation"


@contextmanager
def emulated() -> Iterator[None]:
    """Meanwhile the backend takes critics on the CPU and runs on the emulation."""
    module = emulation()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda, "DEVICE", "cpu")
        patch.setattr(cuda, "_load", lambda: module)
        patch.setattr(cuda, "unavailable_reason", lambda: None)
        patch.setattr(cuda, "native_options", cuda.native_options.__wrapped__)
        yield


@functools.cache
def emulation() -> ModuleType:
    """The module with the interface of dtag_fast._cuda; skips where it cannot be built."""
    pybind11 = pytest.importorskip("pybind11")
    directory = build(
        "cuda-emulation",
        os.environ.get("CXX", "c++"),
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        f"-DPython_EXECUTABLE={sys.executable}",
        source="tests/native/cuda",
    )
    (path,) = directory.glob(f"{NAME}.*.so")
    spec = importlib.util.spec_from_file_location(NAME, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
