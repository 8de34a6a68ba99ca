"""Activations and their derivatives, as torch's float32 has them: in kinks, and of what is not
finite. `libdevice` is not to be had in the interpreter, so tanh and expm1 are written out.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def tanh(z: tl.tensor) -> tl.tensor:
    """Within some units in the last place: near 0, where the quotient would cancel, a series."""
    square = z * z
    series = 62.0 / 2835.0 * square - 17.0 / 315.0
    series = z + z * square * (-1.0 / 3.0 + square * (2.0 / 15.0 + square * series))
    decay = tl.exp(-2.0 * tl.abs(z))  # in (0, 1]
    size = (1.0 - decay) / (1.0 + decay)
    return tl.where(square < 0.0625, series, tl.where(z < 0, -size, size))


@triton.jit
def sigmoid(z: tl.tensor) -> tl.tensor:
    """1 / (1 + exp(-z))"""
    return 1.0 / (1.0 + tl.exp(-z))


@triton.jit
def mish_gate(z: tl.tensor) -> tl.tensor:
    """tanh(log(1 + e)), e = exp(z), without the logarithm: m / (m + 2), m = e (e + 2)."""
    e = tl.exp(tl.where(z > 20.0, 20.0, z))  # beyond, the quotient is 1
    m = e * (e + 2.0)
    return m / (m + 2.0)


@triton.jit
def activate(z: tl.tensor, negative_slope: tl.tensor, ACTIVATION: tl.constexpr) -> tl.tensor:
    """f(z); "identity" is what a linear critic has. f(0) = 0 for all of them."""
    if ACTIVATION == "identity":
        h = z
    elif ACTIVATION == "relu":
        h = tl.where(z <= 0, 0.0, z)
    elif ACTIVATION == "leaky_relu":
        h = tl.where(z > 0, z, negative_slope * z)
    elif ACTIVATION == "tanh":
        h = tanh(z)
    elif ACTIVATION == "gelu":
        h = z * (0.5 + 0.5 * tl.erf(z * 0.7071067811865476))
    elif ACTIVATION == "silu":
        h = z * sigmoid(z)
    elif ACTIVATION == "mish":
        h = z * mish_gate(z)
    else:
        tl.static_assert(ACTIVATION == "elu")
        below = tl.where(z > 0, 0.0, z)
        series = 1.0 / 24.0 + below * (1.0 / 120.0 + below * (1.0 / 720.0))
        series = below + below * below * (0.5 + below * (1.0 / 6.0 + below * series))
        h = tl.where(z > 0, z, tl.where(below > -0.25, series, tl.exp(below) - 1.0))
    return h


@triton.jit
def through(
    d: tl.tensor, z: tl.tensor, negative_slope: tl.tensor, ACTIVATION: tl.constexpr
) -> tl.tensor:
    """d * f'(z)"""
    if ACTIVATION == "identity":
        pulled = d
    elif ACTIVATION == "relu":
        pulled = tl.where(z <= 0, 0.0, d)
    elif ACTIVATION == "leaky_relu":
        pulled = tl.where(z > 0, d, negative_slope * d)
    elif ACTIVATION == "tanh":
        t = tanh(z)
        pulled = d * (1.0 - t * t)
    elif ACTIVATION == "gelu":
        # Phi(z) + z phi(z), with the normal distribution and its density.
        cdf = 0.5 + 0.5 * tl.erf(z * 0.7071067811865476)
        pulled = d * (cdf + z * (tl.exp(-0.5 * z * z) * 0.3989422804014327))
    elif ACTIVATION == "silu":
        gate = sigmoid(z)
        pulled = d * (gate * (1.0 + z * (1.0 - gate)))
    elif ACTIVATION == "mish":
        t = mish_gate(z)
        pulled = d * (t + z * sigmoid(z) * (1.0 - t * t))
    else:
        tl.static_assert(ACTIVATION == "elu")
        pulled = tl.where(z <= 0, d * tl.exp(tl.where(z > 0, 0.0, z)), d)
    return pulled
