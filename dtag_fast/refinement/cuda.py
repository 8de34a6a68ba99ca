"""Backend "cuda": packs a `Critic` for the CUDA kernel of csrc/cuda/ and launches it, docs/gpu.md.

Takes a `dtag_fast.models.critic.Critic` in float32 with one or two hidden layers of ReLU or
LeakyReLU, and every option of the contract. A refinement is one launch on PyTorch's current stream;
nothing in it allocates, waits, or comes back to the host, so that a CUDA graph can hold it together
with a policy's forward pass. With a critic on the CPU the weights are copied to the current device
when they are packed, and each call's arrays go there and back, on a stream of this module's own.
"""

from __future__ import annotations

import functools
import importlib
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from dtag_fast.models.critic import Critic
from dtag_fast.models.normalizer import Normalizer
from dtag_fast.refinement.backends import EVERY_BATCH, FastCall
from dtag_fast.refinement.cuda_layouts import TILE_UNITS, for_dense_tiles, for_maps, padded
from dtag_fast.refinement.execution import DEFAULT, Execution, Precision
from dtag_fast.refinement.options import RefineInfo, RefineOptions
from dtag_fast.refinement.plain_call import plain_call
from dtag_fast.refinement.weights_version import WeightsVersion

if TYPE_CHECKING:
    from dtag_fast import _cuda

DEVICE = "cuda"  # where the kernel runs
WARP = 32  # threads

Kernel = Literal["auto", "row", "lean", "cluster"]


def unavailable_reason() -> str | None:
    """Why the kernel cannot run on this machine, or None."""
    try:
        module = _load()
    except ModuleNotFoundError:
        return (
            "the CUDA extension was not built; with nvcc, `pip install -Ccmake.define.DTAG_CUDA=ON "
            ".` builds it"
        )
    except ImportError as error:
        return f"the CUDA extension does not load: {error}"
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    reason: str | None = module.why_not(torch.cuda.current_device())
    return reason


def unsupported_reason(
    critic: nn.Module, options: RefineOptions | None = None, execution: Execution = DEFAULT
) -> str | None:
    """Why it cannot refine with this critic in this way, or None. It takes all options."""
    del options
    if not isinstance(critic, Critic):
        return f"it takes a dtag_fast.Critic, got {type(critic).__name__}"
    if type(critic).forward is not Critic.forward:
        return f"it takes a dtag_fast.Critic, and {type(critic).__name__} has a forward of its own"
    if type(critic.normalizer) is not Normalizer:
        return f"it takes a critic with a Normalizer, got {type(critic.normalizer).__name__}"
    if critic.activation not in ("relu", "leaky_relu"):
        return f"it takes ReLU and LeakyReLU, got {critic.activation}"
    if critic.layer_norm:
        return "it takes critics without LayerNorm"
    if len(critic.hidden) not in (1, 2):
        return f"it takes one or two hidden layers, got {len(critic.hidden)}"
    tensors = {**dict(critic.named_parameters()), **dict(critic.named_buffers())}
    for name, tensor in tensors.items():
        if tensor.device.type not in (DEVICE, "cpu") or tensor.dtype != torch.float32:
            return (
                f"it takes float32 weights on a CUDA device or the CPU, and the critic's {name} is "
                f"{tensor.dtype} on {tensor.device}"
            )
    devices = {str(tensor.device) for tensor in tensors.values()}
    if len(devices) > 1:
        return f"it takes a critic on one device, got {', '.join(sorted(devices))}"
    if execution.precision == "tf32":
        return "its precisions are fp32, tf32x3 and bf16, got precision='tf32'"
    if execution.threads is not None:
        return f"threads are the cpu backend's, got threads={execution.threads}"
    device = _runs_on(next(iter(tensors.values())).device)
    if device.type == "cuda":
        reason: str | None = _load().why_not(device.index, execution.precision)
        if reason is not None:
            return reason
    try:
        _load().layout(critic.action_dim, critic.heads, critic.hidden, execution.precision)
    except ValueError as error:
        return (
            f"{error}; the critic has {critic.heads} heads, {critic.action_dim} action dimensions "
            f"and hidden layers of {', '.join(map(str, critic.hidden))}"
        )
    return None


@dataclass(frozen=True)
class Packed:
    """A critic in the kernel's layouts.

    Attributes:
        native: the sizes and addresses.
        tensors: what lies at the addresses.
        observation_dim: S.
        action_dim: A.
        device: of the tensors.
        arrays_on: where observations and actions are, like the critic: there too, or on the CPU.
    """

    native: _cuda.PackedCritic
    tensors: dict[str, Tensor]
    observation_dim: int
    action_dim: int
    device: torch.device
    arrays_on: torch.device


@torch.no_grad()
def pack(critic: nn.Module, precision: Precision = "fp32") -> Packed:
    """A copy of the weights in the kernel's layouts, made where it runs without waiting for it.

    With "bf16" the weights between hidden layers are rounded to bfloat16, and `algorithm="dense"`
    takes dense tiles where there are, which round what is multiplied by them; with "tf32x3" tensor
    cores build the first map of a row, from three products of half floats for one of float32. What
    lies beyond the units of a layer is zero: P, the padded width, is made of whole warps and groups
    of units. The normaliser stays apart from the first layer, whose digits it would cost.
    """
    assert isinstance(critic, Critic)
    given = critic.weights[0].device
    device = _runs_on(given)
    with _stream_for(given, device), _current(device):
        native, tensors = _pack(critic, precision, device)
    return Packed(native, tensors, critic.observation_dim, critic.action_dim, device, given)


def _pack(
    critic: Critic, precision: Precision, device: torch.device
) -> tuple[_cuda.PackedCritic, dict[str, Tensor]]:
    """What `pack` makes on the device, which is the current one."""
    module = _load()
    actions, width, group = module.layout(critic.action_dim, critic.heads, critic.hidden, precision)
    weights = [weight.detach().to(device) for weight in critic.weights]
    biases = [bias.detach().to(device) for bias in critic.biases]
    size = critic.observation_dim
    of_observation = weights[0][:, :, :size]  # [E, H_1, S]
    of_action = weights[0][:, :, size:]  # [E, H_1, A]

    def by_groups(rows: Tensor, group: int) -> Tensor:  # [E, n, P] -> [E, P / group, n, group]
        heads, count, _ = rows.shape
        return rows.reshape(heads, count, width // group, group).transpose(1, 2).contiguous()

    tensors = {
        "mean": critic.normalizer.mean.detach().to(device, copy=True),
        "std": critic.normalizer.std.detach().to(device, copy=True),
        "observation_weights": by_groups(
            padded(of_observation.mT, -(-size // 4) * 4, width), group
        ),
        "action_weights": by_groups(padded(of_action.mT, actions, width), group),
        "first_bias": padded(biases[0], width),
        "output": padded(weights[-1].squeeze(1), width),
        "output_bias": biases[-1].squeeze(1).clone(),
    }
    if len(critic.hidden) == 2:
        between = weights[1].to(torch.bfloat16) if precision == "bf16" else weights[1]
        weights[1] = between
        tensors["weight"] = padded(between, critic.hidden[1], width)
        tensors["transposed"] = padded(between.mT, width, width)
        tensors["sliced"] = by_groups(tensors["transposed"], WARP)  # for clusters
        tensors["second_bias"] = padded(biases[1], width)
    if len(critic.hidden) == 2 and precision == "tf32x3":
        block = module.columns_of_maps(width)
        tensors |= for_maps(of_action, weights[1], actions, width, block)
    slope = critic.negative_slope if critic.activation == "leaky_relu" else 0.0
    if (
        len(critic.hidden) == 2
        and precision == "bf16"
        and slope == 0.0
        and critic.heads <= 2
        and critic.action_dim <= 8
        and width <= TILE_UNITS
    ):
        tensors |= for_dense_tiles(of_observation, of_action, weights[1], biases[1], weights[2])
    finite = torch.stack([tensor.isfinite().all() for tensor in (*weights, *biases)]).all()
    tensors["finite"] = finite.to(torch.int32).reshape(1)
    native = module.PackedCritic(
        observation_dim=size,
        action_dim=critic.action_dim,
        heads=critic.heads,
        hidden=critic.hidden,
        negative_slope=slope,
        precision=precision,
        addresses={name: tensor.data_ptr() for name, tensor in tensors.items()},
    )
    if device.type == "cuda":
        module.prepare(native, device.index)
    return native, tensors


def kernels(critic: Packed) -> tuple[Kernel, ...]:
    """What `run` may be asked for.

    "row" takes all. The others take up to 1024 hidden units of a layer of all heads, or 512 with
    more than eight action dimensions; "lean" hidden layers that, padded, are multiples of 256 (128)
    units, "cluster" none with tf32x3, and it needs compute capability 9.0 or above.
    """
    why_none, device = _load().why_none, critic.device.index or 0
    every: tuple[Kernel, ...] = ("row", "lean", "cluster")
    with _current(critic.device):
        return tuple(each for each in every if why_none(each, critic.native, device) is None)


def run(
    critic: Packed,
    observations: Tensor,
    actions: Tensor,
    options: RefineOptions,
    execution: Execution = DEFAULT,
    *,
    kernel: Kernel = "auto",
) -> tuple[Tensor, RefineInfo]:
    """Refine observations [B, S] and actions [B, N, A], float32 and contiguous, to [B, A].

    `kernel` says who takes a row: a block ("row"), a block of half as many threads, of which a
    multiprocessor holds twice as many ("lean"), or a cluster of blocks, which build its map
    together ("cluster"); RuntimeError where `kernels` has none. "auto" leaves it to the batch's
    size, or takes dense tiles if the execution is "dense" in "bf16", the critic has two hidden
    layers of at most 256 units of ReLU, at most two heads and eight action dimensions, and the
    device compute capability 9.0. But for these the result is the same, bit for bit.
    """
    batch, starts, action_dim = actions.shape
    dense = execution.algorithm == "dense"
    shapes = (batch, critic.observation_dim), (batch, max(starts, 1), critic.action_dim)
    _check("observations", observations, shapes[0], critic.arrays_on)
    _check("actions", actions, shapes[1], critic.arrays_on)
    with _stream_for(critic.arrays_on, critic.device):
        rows, points = _sent(observations, critic), _sent(actions, critic)
        floats = torch.empty((3, batch), dtype=torch.float32, device=critic.device)
        indices = torch.empty((4, batch), dtype=torch.int64, device=critic.device)
        refined = _launch(
            critic,
            native_options(options, action_dim),
            dense,
            (batch, starts),
            (rows.data_ptr(), points.data_ptr()),
            (floats.data_ptr(), indices.data_ptr()),
            kernel,
        )
        result, floats, indices = (x.to(critic.arrays_on) for x in (refined, floats, indices))
    return result, RefineInfo(
        q=floats[0],
        q_initial=floats[1],
        best_step=indices[0],
        start=indices[1],
        distance=floats[2],
        algorithm="dense" if dense else "walk",
        flips=indices[2],
        dense_steps=indices[3],
    )


def fast_call(
    critic: Packed,
    version: WeightsVersion,
    options: RefineOptions,
    execution: Execution,
    rows: range = EVERY_BATCH,
) -> FastCall:
    """`Refiner.__call__` for tensors as the kernel takes them."""
    options.check_action_dim(critic.action_dim)
    native = native_options(options, critic.action_dim)
    dense = execution.algorithm == "dense"

    def refine(observations: Tensor, actions: Tensor, starts: int) -> Any:
        given = observations.data_ptr(), actions.data_ptr()
        batch = len(actions)
        if batch and 0 in given:  # tensors that only stand for memory
            return NotImplemented
        # RefineInfo's numbers, which no one asked for: [4, B] of int64, then [3, B] of float32.
        memory = torch.empty(6 * batch, dtype=torch.int64, device=critic.device)
        indices = memory.data_ptr()
        floats = indices + 32 * batch
        return _launch(critic, native, dense, (batch, starts), given, (floats, indices))

    def there_and_back(observations: Tensor, actions: Tensor, starts: int) -> Any:
        with _stream_for(critic.arrays_on, critic.device):
            refined = refine(_sent(observations, critic), _sent(actions, critic), starts)
            return refined if refined is NotImplemented else refined.to(critic.arrays_on)

    way = refine if critic.arrays_on == critic.device else there_and_back
    sizes = critic.observation_dim, critic.action_dim
    return plain_call(way, critic.arrays_on, sizes, version, rows)


def _launch(
    critic: Packed,
    options: _cuda.Options,
    dense: bool,
    sizes: tuple[int, int],
    given: tuple[int, int],
    info: tuple[int, int],
    kernel: Kernel = "auto",
) -> Tensor:
    """Enqueue the refinement of B rows of N starting points on the current stream: [B, A].

    `given` are the addresses of observations and actions, `info` those of floats [3, B] and indices
    [4, B]; `_cuda.refine` says what they get.
    """
    index = critic.device.index or 0
    on_device = critic.device.type == "cuda"
    if on_device and torch._C._cuda_getDevice() != index:
        with _current(critic.device):
            return _launch(critic, options, dense, sizes, given, info, kernel)
    shape = sizes[0], critic.action_dim
    result = torch.empty(shape, dtype=torch.float32, device=critic.device)
    module = _load()
    count = module.floats_for_maps(critic.native, dense, sizes[0])
    # On the stream that uses it, so that it may be given back before it was used.
    maps = torch.empty(count, dtype=torch.float32, device=critic.device) if count else None
    # Past torch.cuda.current_stream, which makes an object for it.
    stream = torch._C._cuda_getCurrentRawStream(index) if on_device else 0
    module.refine(
        critic.native,
        options,
        dense,
        *sizes,
        *given,
        result.data_ptr(),
        *info,
        0 if maps is None else maps.data_ptr(),
        index,
        stream,
        kernel,
    )
    return result


def _runs_on(given: torch.device) -> torch.device:
    """The device for a critic that is on the given one."""
    return given if given.type == DEVICE else torch.device(DEVICE, torch.cuda.current_device())


def _sent(array: Tensor, critic: Packed) -> Tensor:
    """The array on the critic's device; whoever sends it waits for the result."""
    return array.to(critic.device, non_blocking=True)


def _current(device: torch.device) -> AbstractContextManager[Any]:
    """Makes it the current device: the native module does, and leaves it so."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _stream_for(given: torch.device, device: torch.device) -> AbstractContextManager[Any]:
    """Makes current the stream for arrays that are on the given device.

    Those of the CPU take one of their own, since whoever gives them waits for the result: not for
    all else that the process has had the device do.
    """
    return nullcontext() if given == device else torch.cuda.stream(_own_stream(device))


@functools.cache
def _own_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


@functools.lru_cache(maxsize=256)
def native_options(options: RefineOptions, action_dim: int) -> _cuda.Options:
    """The options as the module takes them."""
    native: _cuda.Options = _load().Options(**options.native_arguments(action_dim))
    return native


@functools.cache
def _load() -> ModuleType:
    """The CUDA extension; only now, because most installations do without it."""
    return importlib.import_module("dtag_fast._cuda")


def _check(name: str, array: Tensor, shape: tuple[int, ...], device: torch.device) -> None:
    """ValueError unless the array is as the kernel assumes, on this device or sent from it."""
    if (
        array.shape != shape
        or array.dtype != torch.float32
        or array.device != device
        or not array.is_contiguous()
        or array.is_neg()
    ):
        raise ValueError(
            f"{name}: expected a contiguous float32 tensor {list(shape)} on {device}, got "
            f"{list(array.shape)} of {array.dtype} on {array.device}"
        )
    if array.data_ptr() == 0 and array.numel() > 0:
        raise ValueError(f"{name}: expected a tensor with memory, got one that only stands for it")
