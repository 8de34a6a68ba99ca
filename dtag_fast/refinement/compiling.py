"""Functions of tensors, recorded and compiled by TorchInductor, for the graph backend."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

OPTIONS = {
    "compile_threads": 1,  # in this process: for one small step, starting others would take longest
}


def compiled(function: Callable[..., tuple[Tensor, ...]], like: list[Tensor]) -> Callable[..., Any]:
    """The function compiled for tensors such as these.

    Raises:
        RuntimeError: torch cannot record its operations.
    """
    from torch._inductor import compile as inductor

    inputs: list[Any] = [*_apart(like)]
    operations = recorded(function, like)
    with warnings.catch_warnings():
        # Torch advises to give up float32's digits, which this backend promises.
        warnings.filterwarnings("ignore", message="TensorFloat32 tensor cores .* not enabled")
        call: Callable[..., Any] = inductor(operations, inputs, options=OPTIONS)
    return call


def recorded(
    function: Callable[..., tuple[Tensor, ...]], like: list[Tensor]
) -> torch.fx.GraphModule:
    """The function's operations, autograd's included."""
    from torch.fx.experimental.proxy_tensor import make_fx

    try:
        return make_fx(function, tracing_mode="fake", _allow_non_fake_inputs=True)(*_apart(like))
    except (ValueError, TypeError):
        raise  # the critic's own, of what it was given
    except Exception as error:
        raise RuntimeError(
            f"backend 'graph' cannot be used here: torch cannot record the critic's operations: "
            f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        ) from error


def _apart(tensors: list[Tensor]) -> list[Tensor]:
    """Tensors such as these; one that is there twice would be taken for one argument."""
    return [
        torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=t.device) for t in tensors
    ]
