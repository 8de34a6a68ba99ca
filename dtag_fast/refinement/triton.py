"""Backend "triton": packs a `Critic` for the kernels of triton_kernels/ and launches them.

The loop of a whole batch is one launch, and the choice among several starting points another.
Takes a `dtag_fast.Critic` in float32 on CUDA of any depth and number of heads, without LayerNorm,
and every option of the contract. Compiles at the first call with a critic's shape and kind of
options; numbers, batch sizes and depths need no new compilation. A launch goes through the handle
of the compiled kernel, past Triton's own dispatch, allocates by torch alone and never waits for the
device: it can be captured in a CUDA graph.

With TRITON_INTERPRET=1 set before triton is imported the kernels run in Python, on tensors of the
CPU, for tests.
"""

from __future__ import annotations

import functools
import importlib.util
import threading
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dtag_fast.models.critic import Critic
from dtag_fast.models.normalizer import Normalizer
from dtag_fast.refinement.execution import DEFAULT, Execution, Precision
from dtag_fast.refinement.loop import numbers
from dtag_fast.refinement.options import RefineInfo, RefineOptions

WIDEST = 1024  # of hidden layers: a row of weights has to fit what a program has at hand
PROGRAMS = 4  # that a multiprocessor may hold; each takes rows in turn, with its own scratch
WEIGHT_TILE = 8192  # numbers of a weight matrix that a program loads at a time


@functools.cache
def unavailable_reason() -> str | None:
    """Why the kernels cannot run on this machine, or None."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed (the extra `triton`)"
    if not torch.cuda.is_available() and not interpreted():
        return (
            "there is no CUDA device, and TRITON_INTERPRET=1 was not set before triton was imported"
        )
    return None


def unsupported_reason(
    critic: nn.Module, options: RefineOptions | None = None, execution: Execution = DEFAULT
) -> str | None:
    """Why they cannot refine with this critic in this way, or None. They take all options."""
    del options
    if not isinstance(critic, Critic) or type(critic).forward is not Critic.forward:
        return f"it takes a dtag_fast.Critic, got {type(critic).__name__}"
    if type(critic.normalizer) is not Normalizer:
        return f"it takes a critic with a Normalizer, got {type(critic.normalizer).__name__}"
    if critic.layer_norm:
        return "it takes no LayerNorm, and the critic has it"
    if max(critic.hidden, default=0) > WIDEST:
        return f"it takes hidden layers of up to {WIDEST} units, got {max(critic.hidden)}"
    device = "cpu" if interpreted() else "cuda"
    for name, tensor in {
        **dict(critic.named_parameters()),
        **dict(critic.named_buffers()),
    }.items():
        if tensor.device.type != device or tensor.dtype != torch.float32:
            return (
                f"it takes float32 weights on {device.upper()}, and the critic's {name} is "
                f"{tensor.dtype} on {tensor.device}"
            )
    if execution.algorithm == "walk":
        return "algorithm='walk' cannot take this critic: there is no walk yet"
    if execution.threads is not None:
        return f"a GPU's threads are not counted, got threads={execution.threads}"
    return None


@functools.cache
def interpreted() -> bool:
    """Whether the kernels run in Python."""
    if importlib.util.find_spec("triton") is None:
        return False
    return bool(_kernels("step").INTERPRETED.value)


def _kernels(name: str) -> ModuleType:
    """A file of kernels; only now, because triton need not be installed."""
    return importlib.import_module(f"dtag_fast.refinement.triton_kernels.{name}")


@dataclass(frozen=True)
class Packed:
    """A critic's weights as the kernels take them, and what they are compiled for.

    Attributes:
        observation_dim, action_dim, heads, layers: S, A, E and L; a linear critic has one hidden
            layer of one unit, the identity.
        activation, negative_slope: between layers.
        precision: of the matrices between hidden layers and of the products with them.
        width: H, that of the widest hidden layer, padded.
        actions: A', the padded A.
        weights: in the order of the kernel's arguments.
    """

    observation_dim: int
    action_dim: int
    heads: int
    layers: int
    activation: str
    negative_slope: float
    precision: Precision
    width: int
    actions: int
    weights: tuple[Tensor, ...]

    @property
    def device(self) -> torch.device:
        """Where it lies."""
        return self.weights[0].device


def pack(critic: nn.Module, precision: Precision = "fp32") -> Packed:
    """A copy of the weights in the kernels' layouts; it does not keep the critic alive.

    With "bf16" the weights between hidden layers are rounded to bfloat16.
    """
    assert isinstance(critic, Critic)
    with torch.inference_mode(False), torch.no_grad():
        weights = [weight.detach() for weight in critic.weights]
        biases = [bias.detach() for bias in critic.biases]
        activation = critic.activation
        if not critic.hidden:
            activation = "identity"
            weights.append(torch.ones_like(weights[0][:, :, :1]))
            biases.append(torch.zeros_like(biases[0]))
        layers = len(weights) - 1
        heads, observation_dim = critic.heads, critic.observation_dim
        width = _padded(max(weight.shape[1] for weight in weights[:-1]))
        actions = _padded(critic.action_dim)
        first = weights[0]
        to_action = first.new_zeros(heads, actions, width)
        to_action[:, : critic.action_dim, : first.shape[1]] = first[:, :, observation_dim:].mT
        observed = first.new_zeros(heads, observation_dim, width)
        observed[:, :, : first.shape[1]] = first[:, :, :observation_dim].mT
        inner = first.new_zeros(max(layers - 1, 1), heads, width, width)
        bias = first.new_zeros(layers, heads, width)
        for layer in range(layers):
            out, inputs = weights[layer].shape[1:]
            bias[layer, :, :out] = biases[layer]
            if layer > 0:
                inner[layer - 1, :, :out, :inputs] = weights[layer]
        output = first.new_zeros(heads, width)
        output[:, : weights[-1].shape[2]] = weights[-1][:, 0]
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        mean, std = critic.normalizer.mean, critic.normalizer.std
        widths = [weight.shape[1] for weight in weights[:-1]]
        return Packed(
            observation_dim=observation_dim,
            action_dim=critic.action_dim,
            heads=heads,
            layers=layers,
            activation=activation,
            negative_slope=critic.negative_slope,
            precision=precision,
            width=width,
            actions=actions,
            weights=(
                torch.stack([mean, std]),
                observed,
                to_action,
                to_action.mT.contiguous(),
                bias,
                inner.mT.to(dtype).contiguous(),
                inner.to(dtype),
                output,
                biases[-1][:, 0].clone(),
                torch.tensor(widths, dtype=torch.int32, device=first.device),
            ),
        )


def _padded(size: int) -> int:
    """A power of two that a product's side may have."""
    return max(16, _power_of_two(size))


def _power_of_two(size: int) -> int:
    """The least that is not less."""
    return 1 << (size - 1).bit_length()


def run(
    critic: Packed,
    observations: Tensor,
    actions: Tensor,
    options: RefineOptions,
    execution: Execution = DEFAULT,
) -> tuple[Tensor, RefineInfo]:
    """Refine observations [B, S] and actions [B, N, A], float32 and contiguous, to [B, A]."""
    del execution
    batch, starts, action_dim = actions.shape
    rows = batch * starts
    device = critic.device
    floats = functools.partial(torch.empty, dtype=torch.float32, device=device)
    indices = functools.partial(torch.empty, dtype=torch.int64, device=device)
    result, of_rows, counts = floats(rows, action_dim), floats(3, rows), indices(3, rows)
    if rows:
        _refine(critic, observations, actions, options, (result, of_rows, counts))
    start = torch.zeros(batch, dtype=torch.int64, device=device)
    if starts > 1:
        given = (result, of_rows, counts)
        result, of_rows, counts = floats(batch, action_dim), floats(3, batch), indices(4, batch)
        constants = {"STARTS": _power_of_two(starts), "A": critic.actions}
        arguments = *given, result, of_rows, counts, batch, starts, action_dim
        if batch:
            launch("choose", batch, arguments, constants, device, warps=1)
        start = counts[3]
    q, q_initial, distance = of_rows
    return result, RefineInfo(
        q=q,
        q_initial=q_initial,
        best_step=counts[0],
        start=start,
        distance=distance,
        algorithm="dense",
        flips=counts[1],
        dense_steps=counts[2],
    )


def _refine(
    critic: Packed,
    observations: Tensor,
    actions: Tensor,
    options: RefineOptions,
    results: tuple[Tensor, ...],
) -> None:
    """Launch the kernel that takes each starting point as a row."""
    rows = actions.shape[0] * actions.shape[1]
    constants = dense_constants(critic, options)
    tile = constants["R"]
    programs = min(-(-rows // tile), PROGRAMS * _multiprocessors(critic.device))
    # Of each head a share and z_l for all layers, then the action.
    scratch = critic.heads * (1 + critic.layers) * tile * critic.width + tile * critic.actions
    arguments = (
        observations,
        actions,
        *results,
        torch.empty(programs * scratch, dtype=torch.float32, device=critic.device),
        _numbers(options, critic.action_dim, critic.device),
        *critic.weights,
        rows,
        actions.shape[1],
        options.steps,
        critic.observation_dim,
        critic.action_dim,
        critic.heads,
        critic.layers,
        options.lcb_k,
        options.max_distance or 0.0,
        critic.negative_slope,
    )
    launch("dense", programs, arguments, constants, critic.device, warps=8)


def dense_constants(critic: Packed, options: RefineOptions) -> dict[str, Any]:
    """What the dense kernel is compiled for."""
    return {
        "ACTIVATION": critic.activation,
        "OPTIMIZER": options.optimizer,
        "ENSEMBLE": options.ensemble,
        "UNIT": options.gradient == "unit",
        "BOUNDED": bool(options.low),
        "TETHERED": options.max_distance is not None,
        "BEST": options.select == "best",
        "PRECISION": critic.precision,
        "R": _tile_rows(critic.precision),
        "A": critic.actions,
        "H": critic.width,
        "HEADS": _power_of_two(critic.heads),
        "TILE": max(16, min(32, critic.width, WEIGHT_TILE // critic.width)),
    }


def _tile_rows(precision: Precision) -> int:
    """R: the same for every batch, lest a row should round by the batch it comes in.

    Tensor cores take 16 rows at least; float32 does without them, and there padding costs.
    """
    if interpreted():
        return 64  # an operation of the interpreter costs the same for any of these
    return 4 if precision == "fp32" else 16


@functools.lru_cache(maxsize=256)
def _numbers(options: RefineOptions, action_dim: int, device: torch.device) -> Tensor:
    """Low [A] and high [A], then the rate and the correction of each step."""
    steps = numbers(options, action_dim)
    rates = torch.tensor([(each.rate, each.correction) for each in steps], dtype=torch.float32)
    return torch.cat([steps[0].low, steps[0].high, rates.flatten()]).to(device)


# Launching


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count


def launch(
    name: str,
    programs: int,
    arguments: tuple[Any, ...],
    constants: dict[str, Any],
    device: torch.device,
    *,
    warps: int,
) -> None:
    """Run so many programs of the kernel of that name on the device's current stream."""
    if interpreted():
        # While it runs it replaces parts of triton.language.
        with _interpreters_turn, np.errstate(all="ignore"):
            getattr(_kernels(name), name)[(programs,)](*arguments, **constants)
        return
    with torch.cuda.device(device):
        values = tuple(constants.values())
        key = name, values, warps, device
        kernel = _compiled.get(key)
        if kernel is None:
            function = getattr(_kernels(name), name)
            kernel = _compiled[key] = function.warmup(
                *arguments, *values, grid=(1,), num_warps=warps
            )
        kernel[(programs, 1, 1)](*arguments, *values)


# Handles of compiled kernels. Arguments that can differ from call to call are specialised on by
# none, and those that could be misaligned neither: a handle fits every call with its constants.
_compiled: dict[Any, Any] = {}
_interpreters_turn = threading.Lock()
