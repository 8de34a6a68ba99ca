"""Layers on the native kernels while a model trains on the CPU.

Torch's matrix products on the CPU are MKL's, which on other makers' processors leaves half of a
core's arithmetic unused; its dropout draws one number after the other. Inside `native_layers()`
the same modules compute with csrc/simd/multiply.h, pointwise.h and attention.h: linear layers, also
those of a critic's heads, GELU, dropout and attention, in float32, forward and backward. What they
return agrees with torch to rounding, dropout apart, which drops other elements: they follow from
one number of torch's generator per call, so that resuming stays exact.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from dtag_fast import build_info
from dtag_fast.training.config import TrainingConfig

LEAST_WORK = 1 << 20  # multiply-adds of a product; below it a call costs more than is gained
LEAST_ELEMENTS = 1 << 14
LONGEST = 128  # sequence of the attention kernel


def missing_reason() -> str | None:
    """Why this machine has not the kernels, or None."""
    reason = build_info.native_missing_reason() or build_info.isa_error()
    if reason is None and not _load().can_train():
        return f"the kernels of {_load().isa()} do not train"
    return reason


def available() -> bool:
    """Whether this machine has the kernels."""
    return missing_reason() is None


def unsupported_reason(config: TrainingConfig, device: torch.device) -> str | None:
    """Why a model of these settings cannot train by the kernels on this device, or None."""
    if device.type != "cpu":
        return f"it computes on the CPU, not on {device}"
    if config.compile:
        return "it has no compile"
    return missing_reason()


@contextmanager
def native_layers(enabled: bool) -> Iterator[None]:
    """Within this, calls that the kernels take go to them; with `enabled` False none do."""
    if not enabled:
        yield
        return
    with _NativeLayers():
        yield


class _NativeLayers(TorchFunctionMode):
    """Replaces functions of torch.nn.functional where their inputs are float32 on the CPU."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[Any],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        replacement = REPLACEMENTS.get(func)
        if replacement is not None:
            result = replacement(*args, **kwargs)
            if result is not None:
                return result
        return func(*args, **kwargs)


# Replacements have the parameters of what they replace; None leaves the call to torch.


def _linear(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, **others: Any
) -> Tensor | None:
    tensors = [input, weight] if bias is None else [input, weight, bias]
    if others or not _takes(tensors) or input.numel() * weight.shape[0] < LEAST_WORK:
        return None
    if input.numel() < LEAST_ELEMENTS or input.shape[-1] != weight.shape[-1]:
        return None
    out: Tensor = _Linear.apply(input, weight, bias)  # type: ignore[no-untyped-call]
    return out


def _linear_of_heads(input: Tensor, batch1: Tensor, batch2: Tensor, **others: Any) -> Tensor | None:
    """Of `Critic.forward`: bias [E, 1, out] + x [E, B, in] weight [E, in, out]."""
    if others or not _takes([input, batch1, batch2]):
        return None
    (heads, batch, inputs), outputs = batch1.shape, batch2.shape[-1]
    if input.shape != (heads, 1, outputs) or batch2.shape != (heads, inputs, outputs):
        return None
    if batch * inputs * outputs < LEAST_WORK:
        return None
    out: Tensor = _LinearOfHeads.apply(input, batch1, batch2)  # type: ignore[no-untyped-call]
    return out


def _gelu(input: Tensor, approximate: str = "none") -> Tensor | None:
    if approximate != "none" or not _plain(input) or not input.is_contiguous():
        return None
    out: Tensor = _Gelu.apply(input)  # type: ignore[no-untyped-call]
    return out


def _dropout(
    input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Tensor | None:
    if not training or p == 0.0 or inplace or not _plain(input.float()):
        return None
    out: Tensor = _Dropout.apply(input.float(), p)  # type: ignore[no-untyped-call]
    return out.to(input.dtype)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **others: Any,
) -> Tensor | None:
    if others or query.device.type != "cpu" or query.dtype not in (torch.float32, torch.bfloat16):
        return None
    wide = [x.float() for x in (query, key, value)]
    length, width = query.shape[-2:]
    short = length <= LONGEST and width % 16 == 0 and query.ndim == 4 and length > 0
    visible = is_causal if attn_mask is None else attn_mask.dtype == torch.bool and not is_causal
    if visible and short and query.shape == key.shape == value.shape and 0.0 <= dropout_p < 1.0:
        attended: Tensor = _Attention.apply(*wide, attn_mask, dropout_p)  # type: ignore[no-untyped-call]
    elif query.dtype == torch.bfloat16:  # in float32: torch's own takes ten times as long backward
        with torch.autocast("cpu", enabled=False):
            attended = F.scaled_dot_product_attention(
                wide[0], wide[1], wide[2], attn_mask, dropout_p, is_causal
            )
    else:
        return None
    return attended.to(query.dtype)


def _takes(tensors: list[Tensor]) -> bool:
    """Whether a product of these is one that torch would compute in float32 on the CPU."""
    if torch.is_autocast_enabled("cpu"):
        return False
    return all(x.device.type == "cpu" and x.dtype == torch.float32 for x in tensors)


def _plain(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype == torch.float32 and x.numel() >= LEAST_ELEMENTS


REPLACEMENTS: dict[Any, Callable[..., Tensor | None]] = {
    F.linear: _linear,
    torch.baddbmm: _linear_of_heads,
    F.gelu: _gelu,
    F.dropout: _dropout,
    F.scaled_dot_product_attention: _attention,
}


def multiply(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """a [M, K] b [K, N] + bias [N], float32 on the CPU, of any strides."""
    out = torch.empty(len(a), b.shape[1])
    biases = None if bias is None else bias.unsqueeze(0)
    _multiply(a.unsqueeze(0), b.unsqueeze(0), biases, out.unsqueeze(0))
    return out


def multiply_each(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """The same E times by one call: a [E, M, K], b [E, K, N], bias [E, N]."""
    out = torch.empty(*a.shape[:2], b.shape[2])
    _multiply(a, b, bias, out)
    return out


def _multiply(a: Tensor, b: Tensor, bias: Tensor | None, out: Tensor) -> None:
    count, rows, inner = a.shape
    columns = b.shape[2]
    if bias is not None:
        bias = bias.contiguous()
    _load().multiply(
        count,
        rows,
        columns,
        inner,
        (a.data_ptr(), *a.stride()),
        (b.data_ptr(), *b.stride()),
        (0, 0) if bias is None else (bias.data_ptr(), columns),
        (out.data_ptr(), rows * columns, columns),
        torch.get_num_threads(),
    )


class _Linear(torch.autograd.Function):
    """x [..., in] W^T + b."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        ctx.save_for_backward(flat, weight)
        ctx.shape = x.shape
        # Of its final shape: a view could not be changed in place afterwards.
        out = torch.empty(*x.shape[:-1], len(weight))
        biases = None if bias is None else bias.unsqueeze(0)
        _multiply(flat.unsqueeze(0), weight.t().unsqueeze(0), biases, out.view(1, len(flat), -1))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_out: Tensor) -> tuple[Tensor | None, ...]:
        flat, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        by_out = by_out.reshape(-1, by_out.shape[-1])
        by_x = multiply(by_out, weight).view(ctx.shape) if of_x else None
        by_weight = multiply(by_out.t(), flat) if of_weight else None
        return by_x, by_weight, by_out.sum(dim=0) if of_bias else None


class _LinearOfHeads(torch.autograd.Function):
    """Of bias [E, 1, out], x [E, B, in] and weight [E, in, out]."""

    @staticmethod
    def forward(ctx: Any, bias: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return multiply_each(x, weight, bias.squeeze(1))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_out: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_bias, of_x, of_weight = ctx.needs_input_grad
        by_bias = by_out.sum(dim=1, keepdim=True) if of_bias else None
        by_x = multiply_each(by_out, weight.transpose(1, 2)) if of_x else None
        by_weight = None
        if of_weight:  # in the order of the parameter, [E, out, in]
            by_weight = multiply_each(by_out.transpose(1, 2), x).transpose(1, 2)
        return by_bias, by_x, by_weight


class _Gelu(torch.autograd.Function):
    """The exact GELU; its slope is computed with it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        value, slope = torch.empty_like(x), torch.empty_like(x)
        threads = torch.get_num_threads()
        addresses = x.data_ptr(), value.data_ptr(), slope.data_ptr()
        _load().gelu(*addresses, x.numel(), threads)
        ctx.save_for_backward(slope)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_value: Tensor) -> Tensor:
        (slope,) = ctx.saved_tensors
        by_x: Tensor = by_value * slope
        return by_x


class _Attention(torch.autograd.Function):
    """Of queries, keys and values [B, H, T, D]; mask like [B, H, T, T], None the causal one.

    Dropout takes probabilities, and backward draws the same again, as in `_Dropout`.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, p: float
    ) -> Tensor:
        tensors = [_without_gaps(x) for x in (query, key, value)]
        batch, heads, length, _ = query.shape
        if mask is not None:
            mask = _without_gaps(mask.expand(batch, heads, length, length))
        out = _of_steps(query)
        probabilities = torch.empty(batch, heads, length, length)
        ctx.p = p
        ctx.seed = int(torch.randint(2**63 - 1, ())) if p > 0.0 else 0
        _attend(query.shape, [*tensors, out], probabilities, mask, ctx)
        ctx.save_for_backward(*tensors, probabilities, mask)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_out: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, probabilities, mask = ctx.saved_tensors
        found = tuple(_of_steps(query) for _ in range(3))
        by_out = _without_gaps(by_out)
        _attend(query.shape, [query, key, value, by_out, by_out, *found], probabilities, mask, ctx)
        return *found, None, None


def _of_steps(x: Tensor) -> Tensor:
    """Memory for [B, H, T, D] in the order [B, T, H, D], as the layers around attention have it."""
    batch, heads, length, width = x.shape
    return torch.empty(batch, length, heads, width).transpose(1, 2)


def _without_gaps(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _attend(
    shape: torch.Size, tensors: list[Tensor], probabilities: Tensor, mask: Tensor | None, ctx: Any
) -> None:
    _load().attend(
        tuple(shape),
        [_place(x) for x in tensors],
        probabilities.data_ptr(),
        (0, 0, 0, 0) if mask is None else _place(mask),
        ctx.seed,
        ctx.p,
        torch.get_num_threads(),
    )


def _place(x: Tensor) -> tuple[int, ...]:
    return x.data_ptr(), *x.stride()[:3]


class _Dropout(torch.autograd.Function):
    """Zero with probability p, otherwise x / (1 - p); backward draws the same again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        ctx.p = p
        ctx.seed = int(torch.randint(2**63 - 1, ()))
        # Elements are numbered as they lie in memory: for what attention returns, by steps first.
        ctx.swap = not x.is_contiguous() and x.ndim == 4
        return _drop(x, ctx)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_out: Tensor) -> tuple[Tensor, None]:
        return _drop(by_out, ctx), None


def _drop(x: Tensor, ctx: Any) -> Tensor:
    x = (x.transpose(1, 2) if ctx.swap else x).contiguous()
    out = torch.empty_like(x)
    addresses = x.data_ptr(), out.data_ptr()
    _load().dropout(*addresses, x.numel(), ctx.seed, ctx.p, torch.get_num_threads())
    return out.transpose(1, 2) if ctx.swap else out


def _load() -> ModuleType:
    return importlib.import_module("dtag_fast._native")
