"""Backend "graph": the loop of loop.py compiled by TorchInductor, torch.compile's compiler; on CUDA
the whole of it captured in a CUDA graph, so that a call is two copies in, a replay, and copies out.

Takes a `dtag_fast.Critic` in closed form and any other module whose operations torch can record, by
autograd inside the graph. Records once: a step's operations for each kind of critic, of options and
bucket of batch sizes (powers of two; rows beyond the batch are padding). Weights are arguments of
what is compiled, and a CUDA graph reads them where they lie, so that weights written in place are
seen; of memory that is replaced the graph is captured anew, and of submodules that are replaced or
change between training and evaluation the step is compiled anew. What a module keeps elsewhere than
in parameters, buffers and submodules is recorded as it was at the first call.

At most `MOST_STEPS` compiled steps are kept, and of each living critic `MOST_CAPTURED` CUDA graphs,
those used last. A CUDA graph holds some ten times E * B * N * width floats.

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
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from dtag_fast.refinement.closed_form import ClosedForm, Pullback
from dtag_fast.refinement.compiling import compiled
from dtag_fast.refinement.execution import DEFAULT, Execution
from dtag_fast.refinement.inputs import device_of
from dtag_fast.refinement.loop import Numbers, Refined, State, Step, numbers, refine
from dtag_fast.refinement.options import RefineInfo, RefineOptions

MOST_STEPS = 64
MOST_CAPTURED = 16

Outputs = TypeVar("Outputs")

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


def run(
    critic: nn.Module,
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
    batch, starts, action_dim = actions.shape
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        torch.autocast(actions.device.type, enabled=False),
    ):
        form = form_of(critic)
        weights = form.weights(critic)
        rows = bucket(batch)
        if rows * starts == 1 and isinstance(form, Autograd) and actions.device.type == "cuda":
            rows = 2  # torch 2.11 compiles one row of some modules to kernels that fail
        sizes = Sizes(rows, observations.shape[1], starts, action_dim)
        loop = Loop(form, options, sizes, actions.device)
        refined = _loop_of(critic, loop, weights)(weights, observations, actions)
    q, q_initial, distance = refined.floats
    best_step, start = refined.indices
    return refined.actions, RefineInfo(
        q=q,
        q_initial=q_initial,
        best_step=best_step,
        start=start,
        distance=distance,
        algorithm=form.algorithm,
        flips=torch.zeros_like(start),
        dense_steps=torch.full_like(start, starts * options.steps),
    )


def bucket(batch: int) -> int:
    """The rows that a batch is padded to: the next power of two."""
    return 1 << max(batch - 1, 0).bit_length()


class Autograd:
    """The form of any module: its operations and those of autograd, recorded with the rest.

    Holds of the module what tells whether it is the same one, but does not keep it alive.
    """

    algorithm = "autograd"

    def __init__(self, module: nn.Module) -> None:
        self._module = weakref.ref(module)
        self._parts = [(weakref.ref(part), part.training) for part in module.modules()]
        self._names = [name for name, _ in _tensors(module)]

    def is_current(self) -> bool:
        """Whether the module's submodules, and the names of its tensors, are still the same."""
        module = self._module()
        if module is None:
            return False
        parts = list(module.modules())
        return (
            len(parts) == len(self._parts)
            and all(
                known() is part and training == part.training
                for (known, training), part in zip(self._parts, parts, strict=True)
            )
            and [name for name, _ in _tensors(module)] == self._names
        )

    def weights(self, critic: nn.Module) -> list[Tensor]:
        """The module's parameters and buffers."""
        return [tensor.detach() for _, tensor in _tensors(critic)]

    def prepare(self, weights: list[Tensor], observations: Tensor) -> Tensor:
        """The observations [R, S] as they are."""
        return observations

    def value_and_pullback(
        self, weights: list[Tensor], prepared: Tensor, actions: Tensor
    ) -> tuple[Tensor, Pullback]:
        """Q [E, R] of actions [R, A], and autograd's pullback."""
        module = self._module()
        assert module is not None
        with torch.enable_grad():
            points = actions.detach().requires_grad_()
            named = dict(zip(self._names, weights, strict=True))
            q: Tensor = torch.func.functional_call(module, named, (prepared, points))
            if q.ndim == 1:
                q = q.unsqueeze(0)
        if q.ndim != 2 or q.shape[1] != len(actions):
            raise ValueError(
                f"critic: expected Q of shape [E, {len(actions)}] or [{len(actions)}] "
                f"for {len(actions)} rows, got {list(q.shape)}"
            )

        def pullback(cotangent: Tensor) -> Tensor:
            (gradient,) = torch.autograd.grad(q, points, cotangent.to(q.dtype))
            return gradient

        return q.detach().to(actions.dtype), pullback


def _tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [*module.named_parameters(), *module.named_buffers()]


_forms: weakref.WeakKeyDictionary[nn.Module, Autograd] = weakref.WeakKeyDictionary()


def form_of(critic: nn.Module) -> ClosedForm | Autograd:
    """How the critic's Q and gradient are computed: in closed form where it is known."""
    closed = ClosedForm.of(critic)
    if closed is not None:
        return closed
    with _lock:
        form = _forms.get(critic)
        if form is None or not form.is_current():
            form = _forms[critic] = Autograd(critic)
        return form


class Sizes(NamedTuple):
    """Of the arrays that a loop takes: `rows` is B, a bucket's."""

    rows: int
    observation_dim: int
    starts: int
    action_dim: int


class Loop:
    """The refinement of one bucket, with compiled steps."""

    def __init__(
        self,
        form: ClosedForm | Autograd,
        options: RefineOptions,
        sizes: Sizes,
        device: torch.device,
    ) -> None:
        self.step = Step.of(form, options)
        self.options = options
        self.sizes = sizes
        self.device = device
        self._numbers = _numbers_on(device, options, sizes.action_dim)

    def key(self) -> Hashable:
        """Equal for loops that do the same."""
        return self.step, self.options, self.sizes, self.device, _settings()

    def __call__(self, weights: list[Tensor], observations: Tensor, actions: Tensor) -> Refined:
        """Of at most as many rows as it has: pad, refine, drop what was padded."""
        batch = len(actions)
        if batch == self.sizes.rows:
            return self.of_bucket(weights, observations, actions)
        padding = self.sizes.rows - batch  # rows of zeros; any finite numbers would do
        rows = observations.new_zeros(padding, *observations.shape[1:])
        points = actions.new_zeros(padding, *actions.shape[1:])
        refined = self.of_bucket(
            weights, torch.cat([observations, rows]), torch.cat([actions, points])
        )
        return refined.first(batch)

    def of_bucket(self, weights: list[Tensor], observations: Tensor, actions: Tensor) -> Refined:
        """Of exactly as many rows as it has."""
        call: Callable[..., Any] | None = None

        def take(
            weights: list[Tensor], prepared: Tensor, initial: Tensor, state: State, numbers: Numbers
        ) -> tuple[State, Tensor]:
            nonlocal call
            tensors: list[Any] = [*weights, prepared, initial, *state, *numbers]
            if call is None:
                call = _compiled_step(self.step, tensors, len(weights))
            *new, q = call(*tensors)
            return State(*new), q

        dense = [weight.contiguous() for weight in weights]
        return refine(self.step, take, dense, observations, actions, self.options, self._numbers)


@functools.lru_cache(maxsize=256)
def _numbers_on(device: torch.device, options: RefineOptions, action_dim: int) -> list[Numbers]:
    """The numbers of each step as tensors, so that one compiled step takes any."""
    steps = numbers(options, action_dim)
    shared = [
        torch.as_tensor(value, dtype=torch.float32).contiguous().to(device)
        for value in steps[0][:4]
    ]
    candidates = torch.tensor([each.candidate for each in steps], dtype=torch.int64).to(device)
    rates = torch.tensor([(each.rate, each.correction) for each in steps], dtype=torch.float32)
    columns = candidates.unbind(), *rates.to(device).unbind(1)
    return [Numbers(*shared, *each) for each in zip(*columns, strict=True)]


def _settings() -> Hashable:
    """Settings of torch that are read while compiling."""
    return torch.get_num_threads(), torch.get_float32_matmul_precision()


_steps: OrderedDict[Hashable, Callable[..., Any]] = OrderedDict()


def _compiled_step(step: Step, tensors: list[Tensor], weights: int) -> Callable[..., Any]:
    """The step as a function of tensors, its first so many weights, compiled for these."""
    key = step, tuple((t.shape, t.dtype) for t in tensors), tensors[0].device, _settings()
    with _lock:
        if key not in _steps:
            _steps[key] = compiled(functools.partial(_flat, step, weights), tensors)
            while len(_steps) > MOST_STEPS:
                _steps.popitem(last=False)
        _steps.move_to_end(key)
        return _steps[key]


def _flat(step: Step, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
    """The step from tensors to tensors."""
    prepared, initial, *rest = tensors[count:]
    state, of_step = rest[: len(State._fields)], rest[len(State._fields) :]
    new, q = step(list(tensors[:count]), prepared, initial, State(*state), Numbers(*of_step))
    return *new, q


# CUDA graphs


class Captured:
    """A loop captured in a CUDA graph, with its inputs and outputs at fixed places.

    Calls from several threads and streams take turns on the device: no one waits here.
    """

    def __init__(self, loop: Loop, weights: list[Tensor]) -> None:
        sizes, device = loop.sizes, loop.device
        zeros = functools.partial(torch.zeros, dtype=torch.float32, device=device)
        self.observations = zeros(sizes.rows, sizes.observation_dim)
        self.actions = zeros(sizes.rows, sizes.starts, sizes.action_dim)
        self._loop = loop  # its numbers are read too
        self._weights = weights  # while their memory is held, nothing else comes to lie there
        self._turn = threading.Lock()
        self._done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._replay, self._refined = capture(
            lambda: loop.of_bucket(weights, self.observations, self.actions), device
        )

    def reads(self, weights: list[Tensor]) -> bool:
        """Whether the graph reads these, where they lie now."""
        return all(
            mine.data_ptr() == given.data_ptr() and mine.stride() == given.stride()
            for mine, given in zip(self._weights, weights, strict=True)
        )

    def __call__(self, weights: list[Tensor], observations: Tensor, actions: Tensor) -> Refined:
        """Refine at most as many rows as the loop has; `weights` are those it `reads`."""
        batch = len(actions)
        with self._turn:
            stream = torch.cuda.current_stream(self._loop.device)
            stream.wait_event(self._done)
            self.observations[:batch].copy_(observations)
            self.actions[:batch].copy_(actions)
            self._replay()
            refined = Refined(*(tensor.clone() for tensor in self._refined.first(batch)))
            self._done.record(stream)
        return refined


def _loop_of(
    critic: nn.Module, loop: Loop, weights: list[Tensor]
) -> Callable[[list[Tensor], Tensor, Tensor], Refined]:
    """What runs the loop on its device."""
    return _captured(critic, loop, weights) if loop.device.type == "cuda" else loop


_graphs: weakref.WeakKeyDictionary[nn.Module, OrderedDict[Hashable, Captured]]
_graphs = weakref.WeakKeyDictionary()


def _captured(
    critic: nn.Module, loop: Loop, weights: list[Tensor]
) -> Callable[[list[Tensor], Tensor, Tensor], Refined]:
    """The critic's CUDA graph of the loop; the loop itself where the caller captures a graph."""
    if torch.cuda.is_current_stream_capturing():
        return loop
    with _lock:
        graphs = _graphs.setdefault(critic, OrderedDict())
        key = loop.key()
        if key not in graphs or not graphs[key].reads(weights):
            graphs.pop(key, None)
            graphs[key] = Captured(loop, weights)
            while len(graphs) > MOST_CAPTURED:
                graphs.popitem(last=False)
        graphs.move_to_end(key)
        return graphs[key]


def capture(
    function: Callable[[], Outputs], device: torch.device
) -> tuple[Callable[[], None], Outputs]:
    """A CUDA graph of the function: how to replay it, and where its outputs then lie."""
    with torch.cuda.device(device):
        # Compilers and libraries settle on a stream apart, before anything is captured.
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(3):
                function()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        # What other threads do meanwhile is theirs.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            outputs = function()
    return graph.replay, outputs
