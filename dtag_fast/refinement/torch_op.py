"""Refinement as an operator of torch, for programs that are traced: torch.compile, torch.export.

The operator `dtag_fast::refine` is the cpu backend with the critic's weights as arguments, so that
a traced program reads them anew each time it runs. Calls in eager mode do not come this way.
"""

from __future__ import annotations

import inspect
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from dtag_fast.models.critic import Critic
from dtag_fast.refinement import cpu
from dtag_fast.refinement.execution import TENSOR_CORES, Execution, Precision
from dtag_fast.refinement.inputs import check_shapes
from dtag_fast.refinement.options import RefineOptions
from dtag_fast.refinement.weights_version import optimizer_steps

if TYPE_CHECKING:
    from dtag_fast._native import PackedCritic

NAME = "dtag_fast::refine"
# observations [B, S] and actions [B, N, A] to [B, A], float32 on the CPU. weights: mean and std of
# the normaliser, then those of each layer, as cpu.pack_layers takes them.
torch.library.define(
    NAME,
    "(Tensor observations, Tensor actions, Tensor[] weights, *, str activation, "
    "float negative_slope, bool layer_norm, int steps, float step_size, str optimizer, "
    "float[] low, float[] high, str ensemble, float lcb_k, str select, float? max_distance, "
    "str gradient, str algorithm, str precision, int? threads) -> Tensor",
)


def is_traced(*arrays: object) -> bool:
    """Whether torch's operations are being recorded, or these tensors do more than compute."""
    tensors = [array for array in arrays if isinstance(array, Tensor)]
    return len(tensors) == len(arrays) and (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or any(
            type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__ for tensor in tensors
        )
        or any(torch._C._functorch.is_functorch_wrapped_tensor(tensor) for tensor in tensors)
    )


def refine(
    critic: Critic,
    observations: Any,
    actions: Any,
    options: RefineOptions,
    execution: Execution,
) -> Any:
    """The refined actions, by the operator; written such that torch.compile can follow it."""
    if isinstance(observations, np.ndarray) and isinstance(actions, np.ndarray):
        tensors = torch.as_tensor(observations), torch.as_tensor(actions)
        return refine(critic, *tensors, options, execution).numpy()
    for name, array in (("observations", observations), ("actions", actions)):
        if not isinstance(array, Tensor) or not array.dtype.is_floating_point:
            raise TypeError(
                f"{name}: expected a torch tensor of floating point numbers, or both numpy arrays"
            )
    rows, points = observations.detach().float(), actions.detach().float()
    single = rows.ndim == 1 and points.ndim == 1
    if single:
        rows, points = rows.unsqueeze(0), points.unsqueeze(0)
    check_shapes(critic, rows, points)
    if points.ndim == 2:
        points = points.unsqueeze(1)
    weights = [critic.normalizer.mean, critic.normalizer.std]
    for i in range(len(critic.hidden) + 1):
        weights += [critic.weights[i], critic.biases[i]]
        if critic.layer_norm and i < len(critic.hidden):
            weights += [critic.norm_weights[i], critic.norm_biases[i]]
    result: Tensor = torch.ops.dtag_fast.refine(
        rows,
        points,
        [weight.detach() for weight in weights],
        activation=critic.activation,
        negative_slope=critic.negative_slope,
        layer_norm=critic.layer_norm,
        steps=options.steps,
        step_size=options.step_size,
        optimizer=options.optimizer,
        low=options.low,
        high=options.high,
        ensemble=options.ensemble,
        lcb_k=options.lcb_k,
        select=options.select,
        max_distance=options.max_distance,
        gradient=options.gradient,
        algorithm=execution.algorithm,
        precision=execution.precision,
        threads=execution.threads,
    )
    return (result.squeeze(0) if single else result).to(actions.dtype)


def takes(critic: nn.Module, options: dict[str, Any]) -> bool:
    """Whether `dtag_fast.refine` with these keywords can go by the operator."""
    return (
        options.get("backend", "auto") in ("auto", "cpu")
        and not options.get("return_info", False)
        and options.get("precision") not in TENSOR_CORES
        and cpu.unsupported_reason(critic) is None
    )


def settle(
    action_dim: int, keywords: tuple[tuple[str, Any], ...]
) -> tuple[RefineOptions, Execution]:
    """The options among the keywords of `dtag_fast.refine`; while compiling, a constant.

    So the keywords have to be constants themselves: numbers, words and tuples of them.
    """
    from dtag_fast.refinement import Refiner

    given = inspect.signature(Refiner).bind(None, **dict(keywords))
    given.apply_defaults()
    values = given.arguments
    del values["critic"], values["backend"], values["return_info"]
    execution = {name: values.pop(name) for name in ("algorithm", "precision", "threads")}
    options = RefineOptions.check(**values)
    options.check_action_dim(action_dim)
    return options, Execution.check(**execution)


# What torch.compiler.assume_constant_result does, without its import of the compiler.
settle._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _run(
    observations: Tensor,
    actions: Tensor,
    weights: list[Tensor],
    *,
    activation: str,
    negative_slope: float,
    layer_norm: bool,
    algorithm: Any,
    precision: Precision,
    threads: int | None,
    **options: Any,
) -> Tensor:
    """The operator on the CPU."""
    reason = cpu.unavailable_reason()
    if reason is not None:
        raise RuntimeError(f"{NAME} cannot be used here: {reason}")
    packed = _packed(weights, activation, negative_slope, layer_norm, precision)
    options["low"], options["high"] = tuple(options["low"]), tuple(options["high"])
    return cpu.run(
        packed,
        observations.contiguous().resolve_neg(),
        actions.contiguous().resolve_neg(),
        RefineOptions(**options),
        Execution(algorithm, precision, threads),
    )[0]


def _shape(observations: Tensor, actions: Tensor, weights: list[Tensor], **_: Any) -> Tensor:
    """What the operator returns, without its numbers."""
    return actions.new_empty(actions.shape[0], actions.shape[2])


def _batched(
    info: Any,
    in_dims: tuple[Any, ...],
    observations: Tensor,
    actions: Tensor,
    weights: list[Tensor],
    **options: Any,
) -> tuple[Tensor, int]:
    """The operator under torch.func.vmap: rows of all batches are refined as one batch."""
    if any(dim is not None for dim in in_dims[2]):
        raise NotImplementedError("vmap over a critic's weights; over a batch it can be had")

    def merged(tensor: Tensor, dim: int | None) -> Tensor:
        if dim is None:
            return tensor.expand(info.batch_size, *tensor.shape).flatten(0, 1)
        return tensor.movedim(dim, 0).flatten(0, 1)

    rows, points = merged(observations, in_dims[0]), merged(actions, in_dims[1])
    result: Tensor = torch.ops.dtag_fast.refine(rows, points, weights, **options)
    return result.reshape(info.batch_size, -1, result.shape[1]), 0


torch.library.impl(NAME, "cpu", _run)
torch.library.register_fake(NAME, _shape)
torch.library.register_vmap(NAME, _batched)
# It has no gradient: what it returns is a constant to autograd, as in eager mode.
_library = torch.library.Library("dtag_fast", "FRAGMENT")  # type: ignore[no-untyped-call]
_library.impl("refine", torch.library.fallthrough_kernel, "Autograd")  # type: ignore[no-untyped-call]


# What was packed, with tensors that share the memory of what it was packed from: while they live,
# no other tensor can come to lie at the same address.
_packings: OrderedDict[tuple[Any, ...], tuple[list[Tensor], PackedCritic]] = OrderedDict()
_most_packings = 8
_lock = threading.Lock()


def _packed(
    weights: list[Tensor],
    activation: str,
    negative_slope: float,
    layer_norm: bool,
    precision: Precision,
) -> PackedCritic:
    def seen(tensor: Tensor) -> tuple[int, int]:
        # Tensors made in inference mode carry no version, and can't be written outside it.
        version = -1 if tensor.is_inference() else tensor._version
        return tensor.data_ptr(), version

    with _lock:
        key = (
            optimizer_steps(),
            activation,
            negative_slope,
            layer_norm,
            precision,
            *map(seen, weights),
        )
        if key not in _packings:
            mean, std, *rest = weights
            layers = []
            while rest:
                size = 4 if layer_norm and len(rest) > 2 else 2
                layers.append(rest[:size])
                rest = rest[size:]
            packed = cpu.pack_layers(mean, std, layers, activation, negative_slope, precision)
            _packings[key] = ([weight.detach() for weight in weights], packed)
        _packings.move_to_end(key)
        while len(_packings) > _most_packings:
            _packings.popitem(last=False)
        return _packings[key][1]
