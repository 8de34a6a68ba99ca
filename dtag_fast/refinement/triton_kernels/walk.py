"""From linear region to linear region of a critic with one or two hidden layers of ReLU or
LeakyReLU; docs/linear-region-walk.md has the idea.

With x = (a, 1) and, of each head, T_1 = (W_1a, share)^T, share = W_1s s + b_1:

    z_1 = T_1^T x    z_2 = T_2^T x    grad = T_2 (w * f'(z_2))    T_2 = T_1 D W_2^T, plus b_2 in
                                                                  the row of x's 1

D holds the slopes of the first layer, by the signs of z_1. T_2 is built by adding T_1[:, k] times
row k of W_2^T for every unit k whose slope is not 0. Where a unit changes its sign T_2 gains
+-(1 - negative_slope) times the same. z_1 is taken anew at every candidate, as the full network
does: only corrections of T_2 round one after another. T_2 is built anew where a step changes more
than `most` signs, and when it has been corrected often enough for rounding to tell.

A program takes a row and all its steps. T_1 and T_2 stay in registers, [A', E H] with the units of
all heads in one dimension: a thread holds all columns of four units (see `walk_options`), and only
sums over units need an exchange between threads. Rows of W_2^T come from the second-level cache,
one of each head at a time.

A unit and its sign are passed on as one number, 2 k + (1 where it is active). `scratch` takes what
threads have to tell each other: E H of those numbers, E H shares and S features, of each program.
"""

from __future__ import annotations

import triton
import triton.language as tl

from dtag_fast.refinement.triton_kernels.activations import activate, through
from dtag_fast.refinement.triton_kernels.step import (
    advance,
    combine,
    into_box,
    keep_better,
    length,
    select,
)

VARYING = ["rows", "starts", "steps", "observation_dim", "action_dim", "heads", "most"]
# Tiles of rows that are on their way at a time while T_2 is built. With a second one, which passes
# through shared memory, an H200 took over a quarter longer, and registers spilled (triton 3.6).
STAGES = tl.constexpr(1)
FEATURES = tl.constexpr(16)  # of an observation, whose weights are loaded at a time


@triton.jit
def spread(x: tl.tensor, H: tl.constexpr) -> tl.tensor:
    """[R, E] to [R, E H]: what holds for a head, to each of its units."""
    x = tl.broadcast_to(x[:, :, None], [x.shape[0], x.shape[1], H])
    return tl.reshape(x, [x.shape[0], x.shape[1] * H])


@triton.jit
def outer(
    units: tl.tensor,  # [U, E], each 2 k + sign
    factors: tl.tensor,  # [U, E]
    critic: tl.tuple,  # first_unit [E], by_unit, shares, forward, action_dim
    A: tl.constexpr,
    STRIDE: tl.constexpr,
    H: tl.constexpr,
    EACH: tl.constexpr,
) -> tl.tensor:
    """[A', E H]: the sum over U units k of each head of factor T_1[:, k] W_2[:, k]^T."""
    first_unit, by_unit, shares, forward, action_dim = critic
    U: tl.constexpr = units.shape[0]
    HEADS: tl.constexpr = units.shape[1]
    at = first_unit[None, :] + (units >> 1)
    # Rows first: they have the longest way.
    unit = tl.arange(0, HEADS * H)[None, None, :] % H
    # As many numbers a thread, as of all that is loaded, be they of 32 bits or 16.
    row = tl.max_constancy(spread(at, H) * H, [1, EACH])
    rows = tl.load(forward + row[None, :, :] + unit).to(tl.float32)
    axis = tl.arange(0, A)[:, None, None]
    x = tl.load(by_unit + at[None, :, :] * STRIDE + axis % STRIDE)  # 0 beyond the actions
    x = tl.where(axis == action_dim, tl.load(shares + at)[None, :, :], x)
    x = tl.where((factors == 0)[None, :, :], 0.0, factors[None, :, :] * x)
    x = tl.broadcast_to(x[:, :, :, None], [A, U, HEADS, H])
    return tl.sum(tl.reshape(x, [A, U, HEADS * H]) * rows, axis=1)


@triton.jit(do_not_specialize=VARYING, do_not_specialize_on_alignment=["observations", "actions"])
def walk(
    observations: tl.tensor,  # [rows / starts, S]
    actions: tl.tensor,  # [rows, A]
    results: tl.tensor,  # [rows, A]
    floats: tl.tensor,  # [3, rows]: q, q_initial, distance
    indices: tl.tensor,  # [3, rows] int64: best_step, flips, dense_steps
    scratch: tl.tensor,
    numbers: tl.tensor,  # low [A], high [A], then (rate, correction) of each step
    normalizer: tl.tensor,  # [2, S]: mean, std
    observed: tl.tensor,  # [E, S, H]: W_1s^T
    to_action: tl.tensor,  # [E, STRIDE, H]: W_1a^T
    by_unit: tl.tensor,  # [E, H, STRIDE]: W_1a
    biases: tl.tensor,  # [L, E, H]
    forward: tl.tensor,  # [E, H, H]: W_2^T
    output: tl.tensor,  # [E, H]: w
    output_bias: tl.tensor,  # [E]
    widths: tl.tensor,  # [L] int32
    rows: tl.tensor,
    starts: tl.tensor,
    steps: tl.tensor,
    observation_dim: tl.tensor,
    action_dim: tl.tensor,
    heads: tl.tensor,
    most: tl.tensor,
    lcb_k: tl.tensor,
    max_distance: tl.tensor,
    negative_slope: tl.tensor,
    LAYERS: tl.constexpr,  # 1 or 2
    ACTIVATION: tl.constexpr,
    OPTIMIZER: tl.constexpr,
    ENSEMBLE: tl.constexpr,
    UNIT: tl.constexpr,
    BOUNDED: tl.constexpr,
    TETHERED: tl.constexpr,
    BEST: tl.constexpr,
    PRECISION: tl.constexpr,  # of W_2^T's numbers; what is done with them is float32
    A: tl.constexpr,  # A', a power of two of at least 1 + A
    STRIDE: tl.constexpr,
    H: tl.constexpr,
    HEADS: tl.constexpr,  # E padded to a power of two
    TILE: tl.constexpr,  # units of a head that are added at a time
    EACH: tl.constexpr,  # units of a thread
) -> None:
    """Refine `rows` rows; see the module for the mathematics and `step.py` for the loop."""
    axis = tl.arange(0, A)
    head = tl.arange(0, HEADS)
    at_unit = tl.arange(0, HEADS * H)[None, :]  # [1, E H]
    in_heads = at_unit < heads * H
    unit = at_unit % H
    below = in_heads & (unit < tl.load(widths))
    above = in_heads & (unit < tl.load(widths + LAYERS - 1))
    first_unit = tl.minimum(head, heads - 1) * H  # padding reads of the last head
    is_one = (axis == action_dim)[:, None]
    scratch += tl.program_id(0).to(tl.int64) * (2 * heads * H + observation_dim)
    shares = scratch + heads * H
    features = shares + heads * H
    critic = (first_unit, by_unit, shares, forward, action_dim)
    in_action = axis[None, :] < action_dim
    low = tl.load(numbers + axis[None, :], mask=in_action, other=0.0)
    high = tl.load(numbers + action_dim + axis[None, :], mask=in_action, other=0.0)
    w = tl.load(output + at_unit, mask=in_heads, other=0.0)
    bias = tl.load(output_bias + head, mask=head < heads, other=0.0)

    for row_index in range(tl.program_id(0), rows, tl.num_programs(0)):
        row = tl.cast(row_index, tl.int64)
        initial = tl.load(actions + row * action_dim + axis[None, :], mask=in_action, other=0.0)
        if BOUNDED:
            initial = into_box(initial, low, high)
        # What is needed behind the barriers, on its way meanwhile.
        share = tl.load(biases + at_unit, mask=in_heads, other=0.0)
        at_column = (at_unit // H * STRIDE + axis[:, None]) * H + unit
        in_columns = in_heads & (axis < action_dim)[:, None]
        bottom = tl.load(to_action + at_column, mask=in_columns, other=0.0)
        # A thread divides once; what it has found all threads read.
        tl.debug_barrier()
        for s in range(0, observation_dim, 32):
            feature = s + tl.arange(0, 32)
            known = feature < observation_dim
            at = (row // starts) * observation_dim + feature
            x = tl.load(observations + at, mask=known, other=0.0)
            x -= tl.load(normalizer + feature, mask=known, other=0.0)
            x = tl.div_rn(x, tl.load(normalizer + observation_dim + feature, mask=known, other=1.0))
            tl.store(features + feature, x, mask=known)
        tl.debug_barrier()
        for s in range(0, observation_dim, FEATURES):
            feature = s + tl.arange(0, FEATURES)[:, None]
            known = feature < observation_dim
            x = tl.load(features + feature, mask=known, other=0.0)
            at = (at_unit // H * observation_dim + feature) * H + unit
            part = tl.load(observed + at, mask=known & in_heads, other=0.0)
            share += tl.sum(x * part, axis=0)[None, :]
        if LAYERS == 2:
            tl.store(shares + at_unit, share, mask=in_heads)
        bottom = tl.where(is_one, share, bottom)  # T_1

        action = initial  # [1, A'], as all that `step.py` takes
        first = tl.zeros([1, A], tl.float32)
        second = tl.zeros([1, A], tl.float32)
        moving = tl.full([1], 1, tl.int32)
        last_step = tl.zeros([1], tl.int32)
        best_action = initial
        best_q = tl.full([1], float("-inf"), tl.float32)
        best_step = tl.zeros([1], tl.int32)
        q_initial = tl.zeros([1], tl.float32)
        q = tl.zeros([1], tl.float32)
        active = tl.zeros([1, HEADS * H], tl.int32)  # the signs that T_2 belongs to
        top = tl.zeros([A, HEADS * H], tl.float32)  # T_2; with one layer, T_1
        corrections = 0
        flips = tl.zeros([1], tl.int64)
        rebuilt = tl.zeros([1], tl.int64)

        for step in range(steps + 1):
            # Long before they are needed.
            of_step = numbers + 2 * action_dim + 2 * step
            rate = tl.load(of_step, mask=step < steps, other=0.0)
            correction = tl.load(of_step + 1, mask=step < steps, other=0.0)
            point = tl.where(is_one, 1.0, tl.sum(action, axis=0)[:, None])
            z = tl.sum(point * bottom, axis=0)[None, :]
            if LAYERS == 1:
                top = bottom
            else:
                signs = tl.where(below & ((z > 0) | (z != z)), 1, 0)
                changed = tl.where(signs != active, 1, 0)
                active = signs
                count = tl.sum(changed)
                corrections += count
                if step > 0:
                    flips += count
                if (step == 0) | (count > most) | (4 * corrections > heads * H):
                    # The units in the order of their signs: those with slope 1 come first.
                    of_head = tl.reshape(signs, [HEADS, H])
                    so_far = tl.cumsum(of_head, axis=1)
                    ones = tl.sum(of_head, axis=1)
                    k = tl.arange(0, H)[None, :]
                    place = tl.where(of_head != 0, so_far - 1, ones[:, None] + k - so_far)
                    listed = (2 * k + of_head).to(tl.float32, bitcast=True)
                    tl.debug_barrier()
                    tl.store(
                        scratch + head[:, None] * H + place, listed, mask=(head < heads)[:, None]
                    )
                    tl.debug_barrier()
                    longest = H
                    if ACTIVATION == "relu":
                        longest = tl.max(ones)
                    top = tl.load(biases + heads * H + at_unit, mask=in_heads, other=0.0)
                    top = tl.where(is_one, top, tl.zeros([A, HEADS * H], tl.float32))
                    for n in tl.range(0, longest, TILE, num_stages=STAGES):
                        listed_at = first_unit[None, :] + n + tl.arange(0, TILE)[:, None]
                        units = tl.load(scratch + listed_at).to(tl.int32, bitcast=True)
                        factors = tl.where((units & 1) != 0, 1.0, negative_slope)
                        top += outer(
                            units,
                            factors,
                            critic,
                            A,
                            STRIDE,
                            H,
                            EACH,
                        )
                    corrections = 0
                    if step > 0:
                        rebuilt += 1
                elif count > 0:
                    for _ in range(tl.max(tl.sum(tl.reshape(changed, [HEADS, H]), axis=1))):
                        units = tl.where(changed != 0, 2 * unit + signs, 2 * H)
                        units = tl.min(tl.reshape(units, [HEADS, H]), axis=1)[None, :]
                        changed = tl.where(unit == spread(units >> 1, H), 0, changed)
                        found = units < 2 * H  # of each head
                        gained = (units & 1) != 0
                        factors = tl.where(gained, 1.0 - negative_slope, negative_slope - 1.0)
                        top += outer(
                            tl.where(found, units, 0),
                            tl.where(found, factors, 0.0),
                            critic,
                            A,
                            STRIDE,
                            H,
                            EACH,
                        )
                z = tl.sum(point * top, axis=0)[None, :]
            z = tl.where(above, z, 0.0)
            # Q and what each head would make of the gradient in one sum: [A', E].
            pulled = through(w, z, negative_slope, ACTIVATION) * top
            sums = tl.where(is_one, activate(z, negative_slope, ACTIVATION) * w, pulled)
            sums = tl.sum(tl.reshape(sums, [A, HEADS, H]), axis=2)
            # Each warp has sums of one head. Now it gets all, and needs no other warp any more.
            sums = tl.gather(sums, tl.zeros([A, 1], tl.int32) + head[None, :], axis=1)
            values = tl.sum(tl.where((axis == action_dim)[:, None], sums, 0.0), axis=0) + bias
            q, cotangents = combine(values[None, :], heads, lcb_k, ENSEMBLE, HEADS)

            q_initial = tl.where(step == 0, q, q_initial)
            best_action, best_q, best_step = keep_better(
                action, q, last_step, best_action, best_q, best_step
            )

            cotangent = tl.sum(cotangents, axis=0)[None, :]  # [1, E]
            gradient = tl.sum(tl.where(cotangent == 0, 0.0, cotangent * sums), axis=1)[None, :]
            gradient = tl.where(in_action, gradient, 0.0)
            if step < steps:
                action, moving, first, second = advance(
                    action,
                    gradient,
                    initial,
                    moving,
                    first,
                    second,
                    rate,
                    correction,
                    low,
                    high,
                    max_distance,
                    OPTIMIZER,
                    UNIT,
                    BOUNDED,
                    TETHERED,
                )
                last_step = tl.where(moving != 0, step + 1, last_step)

        action, q, last_step = select(
            action, q, last_step, best_action, best_q, best_step, initial, q_initial, BEST
        )
        only = row + tl.arange(0, 1)
        tl.store(results + row * action_dim + axis[None, :], action, mask=in_action)
        tl.store(floats + only, q)
        tl.store(floats + rows + only, q_initial)
        tl.store(floats + 2 * rows + only, length(action - initial))
        tl.store(indices + only, last_step.to(tl.int64))
        tl.store(indices + rows + only, flips)
        tl.store(indices + 2 * rows + only, rebuilt)
