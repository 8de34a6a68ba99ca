"""The loop of `reference.py` less the critic: what a candidate's Q and gradient lead to.

Rows stand in the first dimension, R of them; the second is padded to a power of two: of actions
with zeros, of heads with whatever is there. Sums, quotients and roots of it are few and precise.
"""

from __future__ import annotations

import triton
import triton.language as tl

from dtag_fast.refinement import options

INTERPRETED = tl.constexpr(not isinstance(tl.sum, triton.runtime.jit.JITFunction))
MOMENTUM = tl.constexpr(options.MOMENTUM)
RMSPROP_ALPHA = tl.constexpr(options.RMSPROP_ALPHA)
RMSPROP_REST = tl.constexpr(1 - options.RMSPROP_ALPHA)
BETA1 = tl.constexpr(options.ADAM_BETAS[0])
BETA1_REST = tl.constexpr(1 - options.ADAM_BETAS[0])
BETA2 = tl.constexpr(options.ADAM_BETAS[1])
BETA2_REST = tl.constexpr(1 - options.ADAM_BETAS[1])
EPSILON = tl.constexpr(options.EPSILON)


@triton.jit
def is_finite(x: tl.tensor) -> tl.tensor:
    """Neither infinite nor NaN."""
    return tl.abs(x) < float("inf")


@triton.jit
def length(x: tl.tensor) -> tl.tensor:
    """The L2 norm [R] of x [R, A]."""
    return tl.sqrt_rn(tl.sum(x * x, axis=1))


@triton.jit
def product(
    x: tl.tensor, weights: tl.tensor, start: tl.tensor, PRECISION: tl.constexpr
) -> tl.tensor:
    """start + x weights; with "bf16" the weights have that type, and x is rounded to it."""
    if PRECISION == "fp32":
        result = tl.dot(x, weights, start, input_precision="ieee")
    elif PRECISION == "tf32":
        result = tl.dot(x, weights, start, input_precision="tf32")
    elif PRECISION == "tf32x3":
        result = tl.dot(x, weights, start, input_precision="tf32x3")
    elif INTERPRETED:
        # numpy has no bfloat16 to multiply; products of two are exact in float32.
        rounded = x.to(tl.bfloat16).to(tl.float32)
        result = tl.dot(rounded, weights.to(tl.float32), start, input_precision="ieee")
    else:
        result = tl.dot(x.to(tl.bfloat16), weights, start)
    return result


@triton.jit
def combine(
    q: tl.tensor, heads: tl.tensor, lcb_k: tl.tensor, ENSEMBLE: tl.constexpr, HEADS: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """The ensemble's Q [R] of q [R, HEADS], and the derivative of the one by the other."""
    head = tl.arange(0, HEADS)[None, :]
    used = head < heads
    if ENSEMBLE == "min":
        # The first minimiser, and NaN before any number, as torch.argmin has it.
        lowest = tl.min(tl.where(used & (q == q), q, float("inf")), axis=1)
        at_nan = tl.min(tl.where(used & (q != q), head, HEADS), axis=1)
        at_lowest = tl.min(tl.where(used & (q == lowest[:, None]), head, HEADS), axis=1)
        chosen = head == tl.where(at_nan < HEADS, at_nan, at_lowest)[:, None]
        combined = tl.sum(tl.where(chosen, q, 0.0), axis=1)
        cotangent = tl.where(chosen, 1.0, 0.0)
    else:
        share = 1.0 / heads.to(tl.float32)
        mean = tl.sum(tl.where(used, q, 0.0), axis=1) * share
        if ENSEMBLE == "mean":
            combined = mean
            cotangent = tl.where(used, share, tl.zeros_like(q))
        else:
            tl.static_assert(ENSEMBLE == "lcb")
            from_mean = tl.where(used, q - mean[:, None], 0.0)
            variance = tl.sum(from_mean * from_mean, axis=1) * share
            # The square root has no gradient at 0; there the deviation's is 0.
            agree = variance == 0
            deviation = tl.sqrt_rn(tl.where(agree, 1.0, variance))
            slope = tl.where(agree[:, None], 0.0, from_mean * share / deviation[:, None])
            combined = mean - lcb_k * tl.where(agree, 0.0, deviation)
            cotangent = tl.where(used, share - lcb_k * slope, 0.0)
    return combined, cotangent


@triton.jit
def advance(
    action: tl.tensor,  # [R, A]
    gradient: tl.tensor,  # [R, A]
    initial: tl.tensor,  # [R, A]
    moving: tl.tensor,  # [R], 1 or 0
    first: tl.tensor,  # [R, A]
    second: tl.tensor,  # [R, A]
    rate: tl.tensor,
    correction: tl.tensor,
    low: tl.tensor,  # [1, A]
    high: tl.tensor,  # [1, A]
    max_distance: tl.tensor,
    OPTIMIZER: tl.constexpr,
    UNIT: tl.constexpr,
    BOUNDED: tl.constexpr,
    TETHERED: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """The next candidate, whether its row goes on moving, and the optimiser's moments."""
    if UNIT:
        norm = length(gradient)[:, None]
        gradient = tl.where(
            norm == 0, gradient, tl.div_rn(gradient, norm + tl.zeros_like(gradient))
        )
    if OPTIMIZER == "sgd":
        update = rate * gradient
    elif OPTIMIZER == "momentum":
        first = MOMENTUM * first + gradient
        update = rate * first
    elif OPTIMIZER == "rmsprop":
        second = RMSPROP_ALPHA * second + RMSPROP_REST * (gradient * gradient)
        update = tl.div_rn(rate * gradient, tl.sqrt_rn(second) + EPSILON)
    else:
        tl.static_assert(OPTIMIZER == "adam")
        first = BETA1 * first + BETA1_REST * gradient
        second = BETA2 * second + BETA2_REST * (gradient * gradient)
        root = tl.sqrt_rn(tl.div_rn(second, correction + tl.zeros_like(second)))
        update = tl.div_rn(rate * first, root + EPSILON)
    proposal = action + update
    if TETHERED:
        move = proposal - initial
        distance = length(move)[:, None]
        onto = initial + move * (max_distance / distance)
        proposal = tl.where(distance <= max_distance, proposal, onto)
    if BOUNDED:
        proposal = into_box(proposal, low, high)
    finite = is_finite(gradient) & is_finite(proposal)
    goes_on = (moving != 0) & (tl.max(tl.where(finite, 0, 1), axis=1) == 0)
    action = tl.where(goes_on[:, None], proposal, action)
    return action, tl.where(goes_on, 1, 0), first, second


@triton.jit
def keep_better(
    action: tl.tensor,  # [R, A], the candidate
    q: tl.tensor,  # [R]
    step: tl.tensor,  # [R]
    best_action: tl.tensor,  # [R, A], of those before
    best_q: tl.tensor,  # [R], -inf until there is a finite Q
    best_step: tl.tensor,  # [R]
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """The best candidate so far, the earlier one on a tie."""
    better = is_finite(q) & (q > best_q)
    return (
        tl.where(better[:, None], action, best_action),
        tl.where(better, q, best_q),
        tl.where(better, step, best_step),
    )


@triton.jit
def select(
    action: tl.tensor,  # [R, A], the last candidate
    q: tl.tensor,  # [R]
    step: tl.tensor,  # [R]
    best_action: tl.tensor,  # [R, A]
    best_q: tl.tensor,  # [R]
    best_step: tl.tensor,  # [R]
    initial: tl.tensor,  # [R, A]
    q_initial: tl.tensor,  # [R]
    BEST: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """The candidate to return; the initial one where no candidate has a finite Q."""
    if BEST:
        action, q, step = best_action, best_q, best_step
    none = best_q == float("-inf")
    return (
        tl.where(none[:, None], initial, action),
        tl.where(none, q_initial, q),
        tl.where(none, 0, step),
    )


@triton.jit
def into_box(actions: tl.tensor, low: tl.tensor, high: tl.tensor) -> tl.tensor:
    """Clamped; NaN stays."""
    return tl.where(actions < low, low, tl.where(actions > high, high, actions))
