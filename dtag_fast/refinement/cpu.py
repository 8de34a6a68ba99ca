"""Backend "cpu": packs a `Critic` for the native kernels of csrc/ and runs them.

Takes any `dtag_fast.models.critic.Critic` in float32 on the CPU, of any depth, width, number of
heads and activation, with or without LayerNorm, and every option of the contract. The kernels
compute in float32 but add in another order than torch does, so results agree to rounding.
"""

from __future__ import annotations

import functools
import importlib
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dtag_fast import build_info
from dtag_fast.models.critic import Critic
from dtag_fast.models.normalizer import Normalizer
from dtag_fast.refinement.options import RefineInfo, RefineOptions

if TYPE_CHECKING:
    from dtag_fast import _native


def unavailable_reason() -> str | None:
    """Why the kernels cannot run on this machine, or None."""
    return build_info.native_missing_reason()


def unsupported_reason(critic: nn.Module, options: RefineOptions) -> str | None:
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
    return None


def pack(critic: nn.Module) -> _native.PackedCritic:
    """A copy of the weights in the kernels' layouts; it does not keep the critic alive.

    The normaliser stays apart from the first layer: folded into it, an observation far from zero
    with a small spread would lose digits that (s - mean) / std keeps.
    """
    assert isinstance(critic, Critic)
    layers = []
    for i, (weight, bias) in enumerate(zip(critic.weights, critic.biases, strict=True)):
        layer = [weight, bias]
        if critic.layer_norm and i < len(critic.hidden):
            layer += [critic.norm_weights[i], critic.norm_biases[i]]
        layers.append([_as_array(tensor) for tensor in layer])
    packed: _native.PackedCritic = _load().PackedCritic(
        critic.observation_dim,
        critic.action_dim,
        critic.heads,
        critic.activation,
        critic.negative_slope,
        _as_array(critic.normalizer.mean),
        _as_array(critic.normalizer.std),
        layers,
    )
    return packed


def run(
    critic: _native.PackedCritic, observations: Tensor, actions: Tensor, options: RefineOptions
) -> tuple[Tensor, RefineInfo]:
    """Refine observations [B, S] and actions [B, N, A], float32 and contiguous, to [B, A]."""
    batch, starts, action_dim = actions.shape
    # The kernels get bare addresses: a wrong size would have them read foreign memory.
    _check_array("observations", observations, (batch, critic.observation_dim))
    _check_array("actions", actions, (batch, max(starts, 1), critic.action_dim))
    result = torch.empty(batch, action_dim)
    info = RefineInfo(
        q=torch.empty(batch),
        q_initial=torch.empty(batch),
        best_step=torch.empty(batch, dtype=torch.int64),
        start=torch.empty(batch, dtype=torch.int64),
        distance=torch.empty(batch),
    )
    flips, dense_steps = torch.empty(2, batch, dtype=torch.int64)
    _load().refine(
        critic,
        _native_options(options, action_dim),
        "auto",
        1,
        batch,
        starts,
        observations.data_ptr(),
        actions.data_ptr(),
        result.data_ptr(),
        info.q.data_ptr(),
        info.q_initial.data_ptr(),
        info.best_step.data_ptr(),
        info.start.data_ptr(),
        info.distance.data_ptr(),
        flips.data_ptr(),
        dense_steps.data_ptr(),
    )
    return result, info


@functools.lru_cache(maxsize=256)
def _native_options(options: RefineOptions, action_dim: int) -> _native.Options:
    def per_dimension(bound: tuple[float, ...]) -> tuple[float, ...]:
        return bound * action_dim if len(bound) == 1 else bound

    native: _native.Options = _load().Options(
        steps=options.steps,
        step_size=options.step_size,
        optimizer=options.optimizer,
        low=per_dimension(options.low),
        high=per_dimension(options.high),
        ensemble=options.ensemble,
        lcb_k=options.lcb_k,
        select=options.select,
        max_distance=options.max_distance,
        gradient=options.gradient,
    )
    return native


@functools.cache
def _load() -> ModuleType:
    """The native module; only now, because an installation may do without it."""
    return importlib.import_module("dtag_fast._native")


def _check_array(name: str, array: Tensor, shape: tuple[int, ...]) -> None:
    if (
        array.shape != shape
        or array.dtype != torch.float32
        or array.device.type != "cpu"
        or not array.is_contiguous()
    ):
        raise ValueError(
            f"{name}: expected a contiguous float32 tensor {list(shape)} on the CPU, got "
            f"{list(array.shape)} of {array.dtype} on {array.device}"
        )


def _as_array(tensor: Tensor) -> NDArray[np.float32]:
    return np.ascontiguousarray(tensor.detach().numpy())
