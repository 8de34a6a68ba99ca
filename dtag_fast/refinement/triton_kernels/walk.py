"""From linear region to linear region of a critic with one or two hidden layers of ReLU or
LeakyReLU; docs/linear-region-walk.md has the idea.

With x = (a, 1) and, of each head, T_1 = (W_1a, share)^T, share = W_1s s + b_1:

    z_1 = T_1^T x    z_2 = T_2^T x    grad = T_2 (w * f'(z_2))    T_2 = T_1 D W_2^T, plus b_2 in
                                                                  the row of x's 1

D holds the slopes of the first layer, by the signs of z_1; T_2 is one product [A', H] x [H, H].
Where unit k changes its sign T_2 gains +-(1 - negative_slope) T_1[:, k] W_2[:, k]^T. z_1 is taken
anew at every candidate, as the full network does: only corrections of T_2 round one after another.

A program takes a row and all its steps. T_2 of all heads stays in registers, [E, A', H]; of W_2^T a
product's tile, or the rows of units that changed their sign, one of each head at a time, are read
from the second-level cache. T_2 is built anew where a step changes more than `most` signs, and when
it has been corrected often enough for rounding to tell. `scratch` passes D and the share from the
layout of steps to that of products: [2, E, H] floats a program.
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
    product,
    select,
)

VARYING = ["rows", "starts", "steps", "observation_dim", "action_dim", "heads", "most"]


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
    PRECISION: tl.constexpr,
    A: tl.constexpr,  # A', a power of two of at least 1 + A
    STRIDE: tl.constexpr,
    H: tl.constexpr,
    HEADS: tl.constexpr,  # E padded to a power of two
    TILE: tl.constexpr,
) -> None:
    """Refine `rows` rows; see the module for the mathematics and `step.py` for the loop."""
    axis = tl.arange(0, A)
    head = tl.arange(0, HEADS)
    unit = tl.arange(0, H)
    tile = tl.arange(0, TILE)
    at_unit = head[:, None] * H + unit[None, :]  # [E, H]
    in_heads = (head < heads)[:, None]
    below = in_heads & (unit[None, :] < tl.load(widths))
    above = in_heads & (unit[None, :] < tl.load(widths + LAYERS - 1))
    at_column = (head[:, None] * STRIDE + axis[None, :])[:, :, None] * H  # of T_1, at unit 0
    in_columns = in_heads & (axis < action_dim)[None, :]
    is_one = (axis == action_dim)[None, :, None]
    scratch += tl.program_id(0).to(tl.int64) * 2 * heads * H
    shares = scratch + heads * H
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
        share = tl.load(biases + at_unit, mask=in_heads, other=0.0)
        for s in range(0, observation_dim, 8):
            feature = s + tl.arange(0, 8)
            known = feature < observation_dim
            at = (row // starts) * observation_dim + feature
            x = tl.load(observations + at, mask=known, other=0.0)
            x -= tl.load(normalizer + feature, mask=known, other=0.0)
            x = tl.div_rn(x, tl.load(normalizer + observation_dim + feature, mask=known, other=1.0))
            at_row = (head[:, None] * observation_dim + feature[None, :])[:, :, None] * H
            mask = (in_heads & known[None, :])[:, :, None]
            part = tl.load(observed + at_row + unit[None, None, :], mask=mask, other=0.0)
            share += tl.sum(x[None, :, None] * part, axis=1)
        if LAYERS == 2:
            tl.debug_barrier()
            tl.store(shares + at_unit, share, mask=in_heads)

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
        active = tl.zeros([HEADS, H], tl.int32)  # the signs that T_2 belongs to
        top = tl.zeros([HEADS, A, H], tl.float32)  # T_2; with one layer, T_1
        corrections = 0
        flips = tl.zeros([1], tl.int64)
        rebuilt = tl.zeros([1], tl.int64)

        for step in range(steps + 1):
            point = tl.sum(action, axis=0)[None, :, None]
            columns = tl.load(
                to_action + at_column + unit[None, None, :],
                mask=in_columns[:, :, None],
                other=0.0,
            )
            z = share + tl.sum(point * columns, axis=1)  # [E, H]
            if LAYERS == 1:
                top = tl.where(is_one, share[:, None, :], columns)
            else:
                signs = tl.where(below & ((z > 0) | (z != z)), 1, 0)
                changed = tl.where(signs != active, 1, 0)
                active = signs
                per_head = tl.sum(changed, axis=1)
                count = tl.sum(per_head, axis=0)
                rounds = tl.max(per_head, axis=0)
                corrections += count
                if step > 0:
                    flips += count
                if (step == 0) | (count > most) | (corrections > heads * H):
                    slopes = tl.where(signs != 0, 1.0, negative_slope)
                    slopes = tl.where(below, slopes, 0.0)
                    tl.debug_barrier()
                    tl.store(scratch + at_unit, slopes, mask=in_heads)
                    tl.debug_barrier()
                    top = tl.load(biases + heads * H + at_unit, mask=in_heads, other=0.0)[
                        :, None, :
                    ]
                    top = tl.where(is_one, top, tl.zeros([HEADS, A, H], tl.float32))
                    for e in range(heads):
                        built = tl.zeros([A, H], tl.float32)
                        for k in range(0, H, TILE):
                            at = (e * STRIDE + axis)[:, None] * H + (k + tile)[None, :]
                            x = tl.load(
                                to_action + at, mask=(axis < action_dim)[:, None], other=0.0
                            )
                            known = tl.load(shares + e * H + k + tile)[None, :]
                            x = tl.where((axis == action_dim)[:, None], known, x)
                            slope = tl.load(scratch + e * H + k + tile)[None, :]
                            x = tl.where(slope == 0, 0.0, x * slope)
                            at = (e * H + k + tile)[:, None] * H + unit[None, :]
                            built = product(x, tl.load(forward + at), built, PRECISION)
                        top += tl.where((head == e)[:, None, None], built[None, :, :], 0.0)
                    rounds = 0
                    corrections = 0
                    if step > 0:
                        rebuilt += 1
                for _ in range(rounds):
                    k = tl.min(tl.where(changed != 0, unit[None, :], H), axis=1)  # of each head
                    at_k = unit[None, :] == k[:, None]
                    changed = tl.where(at_k, 0, changed)
                    lost = tl.sum(tl.where(at_k, signs, 0), axis=1) == 0
                    change = tl.where(lost, negative_slope - 1.0, 1.0 - negative_slope)
                    known = tl.sum(tl.where(at_k, share, 0.0), axis=1)
                    found = (k < H)[:, None]
                    x = tl.load(
                        to_action + (head[:, None] * STRIDE + axis[None, :]) * H + k[:, None],
                        mask=in_columns & found,
                        other=0.0,
                    )
                    x = tl.where((axis == action_dim)[None, :], known[:, None], x)
                    at = (head * H + k)[:, None] * H + unit[None, :]
                    part = tl.load(forward + at, mask=in_heads & found, other=0.0).to(tl.float32)
                    top += (change[:, None] * x)[:, :, None] * part[:, None, :]
                z = tl.sum(tl.where(is_one, 1.0, point) * top, axis=1)
            z = tl.where(above, z, 0.0)
            values = tl.sum(activate(z, negative_slope, ACTIVATION) * w, axis=1) + bias
            q, cotangents = combine(values[None, :], heads, lcb_k, ENSEMBLE, HEADS)

            q_initial = tl.where(step == 0, q, q_initial)
            best_action, best_q, best_step = keep_better(
                action, q, last_step, best_action, best_q, best_step
            )

            cotangent = tl.sum(cotangents, axis=0)  # [E]
            d = through(cotangent[:, None] * w, z, negative_slope, ACTIVATION)
            pulled = tl.where((cotangent == 0)[:, None, None], 0.0, d[:, None, :] * top)
            gradient = tl.sum(tl.sum(pulled, axis=2), axis=0)[None, :]
            gradient = tl.where(in_action, gradient, 0.0)
            if step < steps:
                rate = tl.load(numbers + 2 * action_dim + 2 * step)
                correction = tl.load(numbers + 2 * action_dim + 2 * step + 1)
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
