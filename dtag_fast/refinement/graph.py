"""Backend "graph": the loop of loop.py compiled by TorchInductor, torch.compile's compiler; on CUDA
the whole of it captured in a CUDA graph, so that a call is two copies in, a replay, and copies out.

Takes a `dtag_fast.Critic` in closed form and any other module whose operations torch can record, by
autograd inside the graph. Records once: a step's operations for each kind of critic, of options and
bucket of batch sizes (powers of two; rows beyond the batch are padding). Weights are arguments of
what is compiled, and a CUDA graph reads them where they lie, so that weights written in place are
seen; of memory that is replaced the graph is captured anew, and of submodules that are replaced or
change between training and evaluation the step is compiled anew. What a module keeps elsewhere than
in parameters, buffers and submodules is recorded as it was at the first call.

At most `compiled_loop.MOST_STEPS` compiled steps are kept, and of each living critic `MOST_LOOPS`
loops, on CUDA as CUDA graphs, those used last. One holds some ten times E * B * N * width floats.

Products of matrices round by the size of the bucket, so that a row's result can differ by rounding
from one batch to another.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import sys
import sysconfig
import threading
import weakref
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dtag_fast.refinement.autograd_form import Autograd, form_of
from dtag_fast.refinement.backends import EVERY_BATCH, FastCall
from dtag_fast.refinement.closed_form import ClosedForm
from dtag_fast.refinement.compiled_loop import Key, Loop, Sizes, settings
from dtag_fast.refinement.cuda_graph import Captured
from dtag_fast.refinement.execution import DEFAULT, Execution, Precision
from dtag_fast.refinement.inputs import device_of
from dtag_fast.refinement.options import RefineInfo, RefineOptions
from dtag_fast.refinement.plain_call import plain_call
from dtag_fast.refinement.weights_version import WeightsVersion

MOST_LOOPS = 16

_lock = threading.RLock()


@functools.cache
def unavailable_reason() -> str | None:
    """Why torch cannot compile on this machine, or None."""
    compiler = os.environ.get("CXX") or {"win32": "cl", "darwin": "clang++"}.get(
        sys.platform, "g++"
    )
    if shutil.which(compiler) is None:
        return f"torch.compile needs a C++ compiler, and there is no {compiler} (or what CXX names)"
    header = Path(sysconfig.get_path("include"), "Python.h")
    if not header.exists():
        return f"torch.compile needs Python's headers, and there is no {header}"
    return None


def unsupported_reason(
    critic: nn.Module, options: RefineOptions | None = None, execution: Execution = DEFAULT
) -> str | None:
    """Why it cannot refine with this critic in this way, or None. It takes all options."""
    del options
    device = device_of(critic)
    if device is not None and device.type not in ("cpu", "cuda"):
        return f"it takes critics on the CPU or on CUDA, got {device}"
    if device is not None and device.type == "cuda" and importlib.util.find_spec("triton") is None:
        return "torch.compile needs triton for CUDA, and it is not installed"
    for module in critic.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
            return (
                f"it pads batches, and the critic's {type(module).__name__} in training mode mixes "
                f"rows (critic.eval() ends it)"
            )
    algorithm = "autograd" if ClosedForm.of(critic) is None else "dense"
    if execution.algorithm not in ("auto", algorithm):
        return f"its algorithm for this critic is {algorithm}, got {execution.algorithm!r}"
    if execution.precision != "fp32":
        return f"it computes in float32, got precision={execution.precision!r}"
    if execution.threads is not None:
        return f"its threads are torch's (torch.set_num_threads), got threads={execution.threads}"
    return None


class Recorded:
    """A critic as this backend takes it.

    Attributes:
        module: the critic, if it is still there.
        form: how its Q and gradient are computed.
        weights: its parameters and buffers, where they lie: nothing is copied.
    """

    def __init__(self, critic: nn.Module) -> None:
        self.module = weakref.ref(critic)
        self.read(critic)

    def read(self, critic: nn.Module) -> None:
        """The critic as it is now."""
        with torch.inference_mode(False), torch.no_grad():
            self.form = form_of(critic)
            self.weights = self.form.weights(critic)

    def is_current(self) -> bool:
        """Whether the critic is still as it was read, if its weights' version is current."""
        return not isinstance(self.form, Autograd) or self.form.is_in_same_mode()


def pack(critic: nn.Module, precision: Precision = "fp32") -> Recorded:
    """How the critic's Q is computed, and where its weights lie."""
    del precision  # there is one
    return Recorded(critic)


def run(
    critic: Recorded,
    observations: Tensor,
    actions: Tensor,
    options: RefineOptions,
    execution: Execution = DEFAULT,
) -> tuple[Tensor, RefineInfo]:
    """Refine observations [B, S] and actions [B, N, A], float32, to actions [B, A].

    The first call with a new kind of critic, of options or a new bucket compiles, which takes
    seconds, and the first in a process some more.

    Raises:
        RuntimeError: torch cannot record the critic's operations.
    """
    del execution
    starts = actions.shape[1]
    if not critic.is_current():
        critic.read(_there(critic))
    key = _key(critic, options, observations, actions)
    with torch.inference_mode(False), torch.no_grad():
        refined = _loop_of(critic, key)(critic.weights, observations, actions)
    q, q_initial, distance = refined.floats
    best_step, start = refined.indices
    return refined.actions, RefineInfo(
        q=q,
        q_initial=q_initial,
        best_step=best_step,
        start=start,
        distance=distance,
        algorithm=critic.form.algorithm,
        flips=torch.zeros_like(start),
        dense_steps=torch.full_like(start, starts * options.steps),
    )


def fast_call(
    critic: Recorded,
    version: WeightsVersion,
    options: RefineOptions,
    execution: Execution,
    rows: range = EVERY_BATCH,
) -> FastCall:
    """`Refiner.__call__` for plain arrays in sizes of which there is a loop."""
    del execution
    module = _there(critic)
    device = device_of(module) or torch.device("cpu")
    sizes = getattr(module, "observation_dim", None), getattr(module, "action_dim", None)

    def refine(observations: Tensor, actions: Tensor, starts: int) -> Any:
        if _inside_capture(device):
            return NotImplemented
        points = actions if actions.ndim == 3 else actions.unsqueeze(1)
        loop = _known(critic, _key(critic, options, observations, points))
        if loop is None or not critic.is_current():
            return NotImplemented
        with torch.inference_mode(False), torch.no_grad():
            return loop.actions(critic.weights, observations, points)

    return plain_call(refine, device, sizes, version, rows)


def bucket(batch: int) -> int:
    """The rows that a batch is padded to: the next power of two."""
    return 1 << max(batch - 1, 0).bit_length()


def _key(critic: Recorded, options: RefineOptions, observations: Tensor, actions: Tensor) -> Key:
    """Of the loop for observations [B, S] and actions [B, N, A]."""
    batch, starts, action_dim = actions.shape
    rows, device = bucket(batch), actions.device
    if rows * starts == 1 and isinstance(critic.form, Autograd) and device.type == "cuda":
        rows = 2  # torch 2.11 compiles one row of some modules to kernels that fail
    sizes = Sizes(rows, observations.shape[1], starts, action_dim)
    return Key(critic.form, options, sizes, device, settings())


def _captures(device: torch.device) -> bool:
    """Whether loops are captured in CUDA graphs there."""
    return device.type == "cuda"


def _inside_capture(device: torch.device) -> bool:
    """Whether the caller captures a CUDA graph, of which refinement is to be a part."""
    return _captures(device) and torch.cuda.is_current_stream_capturing()


_loops: weakref.WeakKeyDictionary[nn.Module, OrderedDict[Key, Loop | Captured]]
_loops = weakref.WeakKeyDictionary()


def _loop_of(critic: Recorded, key: Key) -> Loop | Captured:
    """The critic's CUDA graph of the loop; the loop itself on the CPU, and where the caller
    captures a graph.
    """
    if _inside_capture(key.device):
        return Loop(key)
    with _lock:
        known = _known(critic, key)
        if known is None:
            loops = _loops.setdefault(_there(critic), OrderedDict())
            loops.pop(key, None)
            loop = Loop(key)
            captures = _captures(key.device)
            known = loops[key] = Captured(loop, critic.weights) if captures else loop
            while len(loops) > MOST_LOOPS:
                loops.popitem(last=False)
        return known


def _known(critic: Recorded, key: Key) -> Loop | Captured | None:
    """The loop, if there is one that takes these weights; it is the last used from now on."""
    with _lock:
        loops = _loops.get(_there(critic))
        if loops is None or key not in loops or not loops[key].reads(critic.weights):
            return None
        loops.move_to_end(key)
        return loops[key]


def _there(critic: Recorded) -> nn.Module:
    module = critic.module()
    assert module is not None, "a critic is alive while it refines"
    return module
