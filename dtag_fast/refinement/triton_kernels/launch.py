"""Launching: by the handle of a compiled kernel, past Triton's own dispatch, or by its interpreter.

Imports no kernel, and so not triton, until one is needed.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import threading
from types import ModuleType
from typing import Any

import numpy as np
import torch

# Handles of compiled kernels. Arguments that can differ from call to call are specialised on by
# none, and those that could be misaligned neither: a handle fits every call with its constants.
_compiled: dict[Any, Any] = {}
_interpreters_turn = threading.Lock()


@functools.cache
def interpreted() -> bool:
    """Whether the kernels run in Python."""
    if importlib.util.find_spec("triton") is None:
        return False
    return bool(kernels("step").INTERPRETED.value)


def kernels(name: str) -> ModuleType:
    """A file of kernels; only now, because triton need not be installed."""
    return importlib.import_module(f"dtag_fast.refinement.triton_kernels.{name}")


def compiler_options(*, warps: int, stages: int) -> dict[str, Any]:
    """Warps of a program, and how many tiles of a loop are under way at a time."""
    # Fused multiply-adds round less, and are half the instructions.
    return {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """Of the GPU; a single one for the interpreter."""
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count


def launch(
    name: str,
    programs: int,
    arguments: tuple[Any, ...],
    constants: dict[str, Any],
    device: torch.device,
    options: dict[str, Any],
) -> None:
    """Run so many programs of the kernel of that name on the device's current stream.

    `options` are the compiler's; the same for the same constants.
    """
    if interpreted():
        # While it runs it replaces parts of triton.language.
        with _interpreters_turn, np.errstate(all="ignore"):
            getattr(kernels(name), name)[(programs,)](*arguments, **constants)
        return
    with torch.cuda.device(device):
        values = tuple(constants.values())
        key = name, values, device
        kernel = _compiled.get(key)
        if kernel is None:
            function = getattr(kernels(name), name)
            kernel = _compiled[key] = function.warmup(*arguments, *values, grid=(1,), **options)
        kernel[(programs, 1, 1)](*arguments, *values)
