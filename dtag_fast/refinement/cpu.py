"""Backend "cpu": packs a `Critic` for the native kernels of csrc/ and runs them.

Takes any `dtag_fast.models.critic.Critic` in float32 on the CPU, of any depth, width, number of
heads and activation, with or without LayerNorm, and every option of the contract. The kernels
compute in float32 but add in another order than torch does, so results agree to rounding.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dtag_fast import build_info
from dtag_fast.models.critic import Critic
from dtag_fast.models.normalizer import Normalizer
from dtag_fast.refinement.backends import EVERY_BATCH, FastCall
from dtag_fast.refinement.execution import DEFAULT, TENSOR_CORES, Execution, Precision
from dtag_fast.refinement.options import RefineInfo, RefineOptions

if TYPE_CHECKING:
    from dtag_fast import _native


def unavailable_reason() -> str | None:
    """Why the kernels cannot run on this machine, or None."""
    return build_info.native_missing_reason() or build_info.isa_error()


def unsupported_reason(
    critic: nn.Module, options: RefineOptions | None = None, execution: Execution = DEFAULT
) -> str | None:
    """Why they cannot refine with this critic, or None. They take all options."""
    del options
    if not isinstance(critic, Critic):
        return f"it takes a dtag_fast.Critic, got {type(critic).__name__}"
    if type(critic).forward is not Critic.forward:
        return f"it takes a dtag_fast.Critic, and {type(critic).__name__} has a forward of its own"
    if type(critic.normalizer) is not Normalizer:
        return f"it takes a critic with a Normalizer, got {type(critic.normalizer).__name__}"
    tensors = {**dict(critic.named_parameters()), **dict(critic.named_buffers())}
    for name, tensor in tensors.items():
        if tensor.device.type != "cpu" or tensor.dtype != torch.float32:
            return (
                f"it takes float32 weights on the CPU, and the critic's {name} is {tensor.dtype} "
                f"on {tensor.device}"
            )
    if execution.precision in TENSOR_CORES:
        named = f"precision={execution.precision!r}"
        return f"it computes in float32, got {named}, which tensor cores have"
    if execution.algorithm == "walk":
        reason = _load().why_no_walk(critic.activation, len(critic.hidden), critic.layer_norm)
        if reason is not None:
            return f"algorithm='walk' cannot take this critic: {reason}"
    return None


def pack(critic: nn.Module, precision: Precision = "fp32") -> _native.PackedCritic:
    """A copy of the weights in the kernels' layouts; it does not keep the critic alive.

    With "bf16" the weights between hidden layers are rounded to bfloat16.

    The normaliser stays apart from the first layer: folded into it, an observation far from zero
    with a small spread would lose digits that (s - mean) / std keeps.
    """
    assert isinstance(critic, Critic)
    layers = []
    for i, (weight, bias) in enumerate(zip(critic.weights, critic.biases, strict=True)):
        layer = [weight, bias]
        if critic.layer_norm and i < len(critic.hidden):
            layer += [critic.norm_weights[i], critic.norm_biases[i]]
        layers.append(layer)
    mean, std = critic.normalizer.mean, critic.normalizer.std
    return pack_layers(mean, std, layers, critic.activation, critic.negative_slope, precision)


def pack_layers(
    mean: Tensor,
    std: Tensor,
    layers: Sequence[Sequence[Tensor]],
    activation: str,
    negative_slope: float,
    precision: Precision,
) -> _native.PackedCritic:
    """As `pack`, of bare weights: mean and std [S], and for each layer weight [E, out, in] and bias
    [E, out], with LayerNorm in hidden ones also norm_weight and norm_bias [E, out].
    """
    arrays = [[_as_array(tensor) for tensor in layer] for layer in layers]
    heads, _, inputs = arrays[0][0].shape
    packed: _native.PackedCritic = _load().PackedCritic(
        mean.shape[0],
        inputs - mean.shape[0],
        heads,
        activation,
        negative_slope,
        _as_array(mean),
        _as_array(std),
        arrays,
        precision,
    )
    return packed


def fast_call(
    packed: _native.PackedCritic,
    version: _native.WeightsVersion,
    options: RefineOptions,
    execution: Execution,
    rows: range = EVERY_BATCH,
) -> FastCall:
    """`Refiner.__call__` for plain arrays, in one native call; see csrc/fast_call.h."""
    call: FastCall = _load().fast_call(
        packed,
        native_options(options, packed.action_dim),
        execution.algorithm,
        execution.threads,
        (rows.start, rows.stop),
        version,
    )
    return call


def run(
    critic: _native.PackedCritic,
    observations: Tensor,
    actions: Tensor,
    options: RefineOptions,
    execution: Execution = DEFAULT,
) -> tuple[Tensor, RefineInfo]:
    """Refine observations [B, S] and actions [B, N, A], float32 and contiguous, to [B, A].

    Raises:
        ValueError: a walk was asked for, and the weights are not all finite.
    """
    batch, starts, action_dim = actions.shape
    # The kernels get bare addresses: a wrong size would have them read foreign memory.
    given = (
        _address("observations", observations, (batch, critic.observation_dim)),
        _address("actions", actions, (batch, max(starts, 1), critic.action_dim)),
    )
    # By name, lest torch.set_default_dtype or set_default_device should have a say.
    floats = functools.partial(torch.empty, dtype=torch.float32, device="cpu")
    indices = functools.partial(torch.empty, dtype=torch.int64, device="cpu")
    result = floats(batch, action_dim)
    q, q_initial, distance = floats(3, batch)
    best_step, start, flips, dense_steps = indices(4, batch)
    algorithm = _load().refine(
        critic,
        native_options(options, action_dim),
        execution.algorithm,
        torch.get_num_threads() if execution.threads is None else execution.threads,
        batch,
        starts,
        *given,
        result.data_ptr(),
        q.data_ptr(),
        q_initial.data_ptr(),
        best_step.data_ptr(),
        start.data_ptr(),
        distance.data_ptr(),
        flips.data_ptr(),
        dense_steps.data_ptr(),
    )
    info = RefineInfo(
        q=q,
        q_initial=q_initial,
        best_step=best_step,
        start=start,
        distance=distance,
        algorithm=algorithm,
        flips=flips,
        dense_steps=dense_steps,
    )
    return result, info


@functools.lru_cache(maxsize=256)
def native_options(options: RefineOptions, action_dim: int) -> _native.Options:
    """The options as the module takes them."""
    native: _native.Options = _load().Options(**options.native_arguments(action_dim))
    return native


@functools.cache
def _load() -> ModuleType:
    """The native module; only now, because an installation may do without it."""
    return importlib.import_module("dtag_fast._native")


def _address(name: str, array: Tensor, shape: tuple[int, ...]) -> int:
    """Where the array lies; ValueError unless it is as the kernels assume."""
    if (
        array.shape != shape
        or array.dtype != torch.float32
        or array.device.type != "cpu"
        or not array.is_contiguous()
        or array.is_neg()
    ):
        raise ValueError(
            f"{name}: expected a contiguous float32 tensor {list(shape)} on the CPU, got "
            f"{list(array.shape)} of {array.dtype} on {array.device}"
        )
    address = array.data_ptr()
    if address == 0 and array.numel() > 0:
        raise ValueError(f"{name}: expected a tensor with memory, got one that only stands for it")
    return address


def _as_array(tensor: Tensor) -> NDArray[np.float32]:
    return np.ascontiguousarray(tensor.detach().numpy())
