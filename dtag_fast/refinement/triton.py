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

import torch
from torch import Tensor, nn

from dtag_fast.models.critic import Critic
from dtag_fast.models.normalizer import Normalizer
from dtag_fast.refinement.backends import EVERY_BATCH, FastCall
from dtag_fast.refinement.execution import DEFAULT, Execution
from dtag_fast.refinement.loop import numbers
from dtag_fast.refinement.options import RefineInfo, RefineOptions
from dtag_fast.refinement.plain_call import plain_call
from dtag_fast.refinement.triton_kernels.launch import (
    compiler_options,
    interpreted,
    launch,
    multiprocessors,
)
from dtag_fast.refinement.triton_kernels.packed import (
    Packed,
    columns,
    dense_constants,
    dense_options,
    pack,
    power_of_two,
    walk_constants,
    walk_options,
    why_no_walk,
)
from dtag_fast.refinement.weights_version import WeightsVersion

__all__ = ["fast_call", "interpreted", "pack", "run", "unavailable_reason", "unsupported_reason"]

WIDEST = 1024  # of hidden layers: a row of weights has to fit what a program has at hand
PROGRAMS = 4  # that a multiprocessor may hold; each takes rows in turn, with its own scratch
MOST_CORRECTIONS = 8  # of a head in one step; with more the maps are built anew


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
    reason = why_no_walk(critic)
    if execution.algorithm == "walk" and reason is not None:
        return f"algorithm='walk' cannot take this critic: {reason}"
    if execution.precision == "tf32x3":
        return "its precisions are fp32, tf32 and bf16, got precision='tf32x3'"
    if execution.threads is not None:
        return f"a GPU's threads are not counted, got threads={execution.threads}"
    return None


def run(
    critic: Packed,
    observations: Tensor,
    actions: Tensor,
    options: RefineOptions,
    execution: Execution = DEFAULT,
) -> tuple[Tensor, RefineInfo]:
    """Refine observations [B, S] and actions [B, N, A], float32 and contiguous, to [B, A].

    Raises:
        ValueError: a walk was asked for, and the weights are not all finite.
    """
    walks = _walks(critic, options, execution)
    result, floats, counts = _refine(critic, observations, actions, options, walks)
    q, q_initial, distance = floats
    several = actions.shape[1] > 1
    return result, RefineInfo(
        q=q,
        q_initial=q_initial,
        best_step=counts[0],
        start=counts[3] if several else torch.zeros_like(counts[0]),
        distance=distance,
        algorithm="walk" if walks else "dense",
        flips=counts[1],
        dense_steps=counts[2],
    )


def fast_call(
    critic: Packed,
    version: WeightsVersion,
    options: RefineOptions,
    execution: Execution,
    rows: range = EVERY_BATCH,
) -> FastCall:
    """`Refiner.__call__` for tensors as the kernels take them."""
    walks = _walks(critic, options, execution)
    options.check_action_dim(critic.action_dim)

    def refine(observations: Tensor, actions: Tensor, starts: int) -> Tensor:
        points = actions.unsqueeze(1) if actions.ndim == 2 else actions
        return _refine(critic, observations, points, options, walks)[0]

    sizes = critic.observation_dim, critic.action_dim
    return plain_call(refine, critic.device, sizes, version, rows)


def _refine(
    critic: Packed, observations: Tensor, actions: Tensor, options: RefineOptions, walks: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The refined actions [B, A]; q, q_initial and distance [3, B]; the best step, flips, dense
    steps and, of several starting points, the one chosen, [3 or 4, B].
    """
    batch, starts, action_dim = actions.shape
    rows = batch * starts
    device = critic.device
    floats = functools.partial(torch.empty, dtype=torch.float32, device=device)
    indices = functools.partial(torch.empty, dtype=torch.int64, device=device)
    refined = floats(rows, action_dim), floats(3, rows), indices(3, rows)
    if rows:
        kernel = _walk if walks else _dense
        kernel(critic, observations, actions, options, refined)
    if starts == 1:
        return refined
    chosen = floats(batch, action_dim), floats(3, batch), indices(4, batch)
    if batch:
        constants = {"STARTS": power_of_two(starts), "A": critic.actions}
        arguments = *refined, *chosen, batch, starts, action_dim
        how = compiler_options(warps=1, stages=1)
        launch("choose", batch, arguments, constants, device, how)
    return chosen


def _walks(critic: Packed, options: RefineOptions, execution: Execution) -> bool:
    """Whether to walk: where building the maps takes no more multiply-adds than the full network.

    With ReLU half of the units, or so, are active, and the others cost nothing. The batch has no
    say: the two round differently.
    """
    if execution.algorithm == "walk" and critic.why_no_walk is not None:
        raise ValueError(f"algorithm: cannot be 'walk' with this critic: {critic.why_no_walk}")
    if execution.algorithm != "auto" or critic.why_no_walk is not None:
        return execution.algorithm == "walk"
    built = columns(critic.action_dim) / (2 if critic.activation == "relu" else 1)
    return built <= 2 * (options.steps + 1)


def _dense(
    critic: Packed,
    observations: Tensor,
    actions: Tensor,
    options: RefineOptions,
    results: tuple[Tensor, ...],
) -> None:
    """The full network at every candidate, each starting point a row."""
    rows = actions.shape[0] * actions.shape[1]
    constants = dense_constants(critic, options)
    tile = constants["R"]
    programs = min(-(-rows // tile), PROGRAMS * multiprocessors(critic.device))
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
    launch("dense", programs, arguments, constants, critic.device, dense_options(constants))


def _walk(
    critic: Packed,
    observations: Tensor,
    actions: Tensor,
    options: RefineOptions,
    results: tuple[Tensor, ...],
) -> None:
    """From linear region to linear region, each starting point a row."""
    rows = actions.shape[0] * actions.shape[1]
    constants = walk_constants(critic, options)
    programs = min(rows, PROGRAMS * multiprocessors(critic.device))
    # Units, their shares, and features.
    scratch = 2 * critic.heads * critic.width + critic.observation_dim
    normalizer, observed, to_action, by_unit, biases, forward, _, output, bias, widths = (
        critic.weights
    )
    arguments = (
        observations,
        actions,
        *results,
        torch.empty(programs * scratch, dtype=torch.float32, device=critic.device),
        _numbers(options, critic.action_dim, critic.device),
        normalizer,
        observed,
        to_action,
        by_unit,
        biases,
        forward,
        output,
        bias,
        widths,
        rows,
        actions.shape[1],
        options.steps,
        critic.observation_dim,
        critic.action_dim,
        critic.heads,
        critic.heads * MOST_CORRECTIONS,
        options.lcb_k,
        options.max_distance or 0.0,
        critic.negative_slope,
    )
    launch("walk", programs, arguments, constants, critic.device, walk_options(constants))


@functools.lru_cache(maxsize=256)
def _numbers(options: RefineOptions, action_dim: int, device: torch.device) -> Tensor:
    """Low [A] and high [A], then the rate and the correction of each step."""
    steps = numbers(options, action_dim)
    rates = torch.tensor([(each.rate, each.correction) for each in steps], dtype=torch.float32)
    return torch.cat([steps[0].low, steps[0].high, rates.flatten()]).to(device)
