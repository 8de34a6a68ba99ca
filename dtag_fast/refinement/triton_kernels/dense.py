"""The full network at every candidate, for any MLP.

    z_1 = share + W_1a a,  z_l = W_l f(z_{l-1}) + b_l,  q = w . f(z_L) + b    share = W_1s s + b_1
    d_L = c w * f'(z_L),   d_{l-1} = (W_l^T d_l) * f'(z_{l-1}),  grad = sum of W_1a^T d_1 over heads

A program takes R rows at a time and all their steps. Weights stream from the second-level cache in
tiles of TILE rows of a matrix; what they are multiplied with, and the z_l that the way back needs,
lie in the program's part of `scratch` and come back tile by tile: [E, 1 + L, R, H] floats, the
share in front, and the action [R, A'] behind. A barrier parts each writing from the readings.

Matrices are padded to H columns and rows, a power of two, with zeros, and A to A'. Every sum of a
row goes over its own numbers alone, in an order that does not depend on the row's place.
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

VARYING = ["rows", "starts", "steps", "observation_dim", "action_dim", "heads", "layers"]


@triton.jit(do_not_specialize=VARYING, do_not_specialize_on_alignment=["observations", "actions"])
def dense(
    observations: tl.tensor,  # [rows / starts, S]
    actions: tl.tensor,  # [rows, A]
    results: tl.tensor,  # [rows, A]
    floats: tl.tensor,  # [3, rows]: q, q_initial, distance
    indices: tl.tensor,  # [3, rows] int64: best_step, flips, dense_steps
    scratch: tl.tensor,
    numbers: tl.tensor,  # low [A], high [A], then (rate, correction) of each step
    normalizer: tl.tensor,  # [2, S]: mean, std
    observed: tl.tensor,  # [E, S, H]: W_1s^T
    to_action: tl.tensor,  # [E, A', H]: W_1a^T
    from_action: tl.tensor,  # [E, H, A']: W_1a
    biases: tl.tensor,  # [L, E, H]
    forward: tl.tensor,  # [L - 1, E, H, H]: W_l^T
    backward: tl.tensor,  # [L - 1, E, H, H]: W_l
    output: tl.tensor,  # [E, H]: w
    output_bias: tl.tensor,  # [E]: b
    widths: tl.tensor,  # [L] int32
    rows: tl.tensor,
    starts: tl.tensor,
    steps: tl.tensor,
    observation_dim: tl.tensor,
    action_dim: tl.tensor,
    heads: tl.tensor,
    layers: tl.tensor,
    lcb_k: tl.tensor,
    max_distance: tl.tensor,
    negative_slope: tl.tensor,
    ACTIVATION: tl.constexpr,
    OPTIMIZER: tl.constexpr,
    ENSEMBLE: tl.constexpr,
    UNIT: tl.constexpr,
    BOUNDED: tl.constexpr,
    TETHERED: tl.constexpr,
    BEST: tl.constexpr,
    PRECISION: tl.constexpr,
    R: tl.constexpr,
    A: tl.constexpr,  # A', at least 16
    H: tl.constexpr,
    HEADS: tl.constexpr,  # E padded to a power of two
    TILE: tl.constexpr,
) -> None:
    """Refine `rows` rows; see the module for the mathematics and `step.py` for the loop."""
    lane = tl.arange(0, R)  # rows of the tile
    # The first layer keeps float32's digits: where tensor cores are wanted, of three products.
    OUTER: tl.constexpr = "fp32" if PRECISION == "fp32" else "tf32x3"
    axis = tl.arange(0, A)  # action dimensions
    unit = tl.arange(0, H)  # hidden units
    tile = tl.arange(0, TILE)
    head = tl.arange(0, HEADS)[None, :]
    state_size = (1 + layers) * R * H
    scratch += tl.program_id(0).to(tl.int64) * (heads * state_size + R * A)
    at_unit = lane[:, None] * H + unit[None, :]  # in one layer's [R, H]
    at_tile = lane[:, None] * H + tile[None, :]
    point = scratch + heads * state_size  # the action
    in_action = axis[None, :] < action_dim
    low = tl.load(numbers + axis[None, :], mask=in_action, other=0.0)
    high = tl.load(numbers + action_dim + axis[None, :], mask=in_action, other=0.0)

    for first_row in range(tl.program_id(0) * R, rows, tl.num_programs(0) * R):
        row = (first_row + lane).to(tl.int64)
        live = row < rows
        at_action = row[:, None] * action_dim + axis[None, :]
        in_actions = live[:, None] & in_action
        initial = tl.load(actions + at_action, mask=in_actions, other=0.0)
        if BOUNDED:
            initial = into_box(initial, low, high)

        tl.debug_barrier()
        for e in range(heads):
            z = tl.load(biases + e * H + unit)[None, :] + tl.zeros([R, H], tl.float32)
            for s in range(0, observation_dim, 16):
                feature = s + tl.arange(0, 16)
                known = feature < observation_dim
                at = (row // starts)[:, None] * observation_dim + feature[None, :]
                x = tl.load(observations + at, mask=live[:, None] & known[None, :], other=0.0)
                mean = tl.load(normalizer + feature, mask=known, other=0.0)
                std = tl.load(normalizer + observation_dim + feature, mask=known, other=1.0)
                x = tl.div_rn(x - mean[None, :], std[None, :] + tl.zeros_like(x))
                at = (e * observation_dim + feature)[:, None] * H + unit[None, :]
                z = product(x, tl.load(observed + at, mask=known[:, None], other=0.0), z, OUTER)
            tl.store(scratch + e * state_size + at_unit, z)

        action = initial
        first = tl.zeros([R, A], tl.float32)
        second = tl.zeros([R, A], tl.float32)
        moving = tl.full([R], 1, tl.int32)
        last_step = tl.zeros([R], tl.int32)
        best_action = initial
        best_q = tl.full([R], float("-inf"), tl.float32)
        best_step = tl.zeros([R], tl.int32)
        q_initial = tl.zeros([R], tl.float32)
        q = tl.zeros([R], tl.float32)

        for step in range(steps + 1):
            tl.debug_barrier()
            tl.store(point + lane[:, None] * A + axis[None, :], action)
            tl.debug_barrier()
            # Forward: the z_l of all heads.
            for e in range(heads):
                state = scratch + e * state_size
                z = tl.load(state + at_unit)
                for a in range(0, A, 16):
                    some = a + tl.arange(0, 16)
                    x = tl.load(point + lane[:, None] * A + some[None, :])
                    w = tl.load(to_action + (e * A + some)[:, None] * H + unit[None, :])
                    z = product(x, w, z, OUTER)
                z = tl.where(unit[None, :] < tl.load(widths), z, 0.0)
                tl.store(state + R * H + at_unit, z)
            for layer in range(1, layers):
                tl.debug_barrier()
                for e in range(heads):
                    below = scratch + e * state_size + layer * R * H
                    matrix = forward + ((layer - 1) * heads + e).to(tl.int64) * H * H
                    z = tl.load(biases + (layer * heads + e) * H + unit)[None, :]
                    z += tl.zeros([R, H], tl.float32)
                    for k in range(0, H, TILE):
                        h = activate(tl.load(below + at_tile + k), negative_slope, ACTIVATION)
                        w = tl.load(matrix + (k + tile)[:, None] * H + unit[None, :])
                        z = product(h, w, z, PRECISION)
                    z = tl.where(unit[None, :] < tl.load(widths + layer), z, 0.0)
                    tl.store(below + R * H + at_unit, z)
            tl.debug_barrier()
            values = tl.zeros([R, HEADS], tl.float32)
            for e in range(heads):
                z = tl.load(scratch + e * state_size + layers * R * H + at_unit)
                w = tl.load(output + e * H + unit)[None, :]
                value = tl.sum(activate(z, negative_slope, ACTIVATION) * w, axis=1)
                value += tl.load(output_bias + e)
                values = tl.where(head == e, value[:, None], values)
            q, cotangents = combine(values, heads, lcb_k, ENSEMBLE, HEADS)

            q_initial = tl.where(step == 0, q, q_initial)
            best_action, best_q, best_step = keep_better(
                action, q, last_step, best_action, best_q, best_step
            )

            if step < steps:
                # Backward, through the heads that any row needs; d_l takes the place of z_l.
                gradient = tl.zeros([R, A], tl.float32)
                for e in range(heads):
                    cotangent = tl.sum(tl.where(head == e, cotangents, 0.0), axis=1)
                    needed = cotangent != 0
                    if tl.max(tl.where(needed & live, 1, 0), axis=0) != 0:
                        top = scratch + e * state_size + layers * R * H
                        w = tl.load(output + e * H + unit)[None, :]
                        d = cotangent[:, None] * w
                        d = through(d, tl.load(top + at_unit), negative_slope, ACTIVATION)
                        tl.debug_barrier()
                        tl.store(top + at_unit, d)
                        tl.debug_barrier()
                        for behind in range(1, layers):
                            above = top - (behind - 1) * R * H
                            matrix = backward + ((layers - 1 - behind) * heads + e).to(tl.int64) * (
                                H * H
                            )
                            d = tl.zeros([R, H], tl.float32)
                            for k in range(0, H, TILE):
                                part = tl.load(matrix + (k + tile)[:, None] * H + unit[None, :])
                                d = product(tl.load(above + at_tile + k), part, d, PRECISION)
                            z = tl.load(above - R * H + at_unit)
                            tl.debug_barrier()
                            tl.store(
                                above - R * H + at_unit,
                                through(d, z, negative_slope, ACTIVATION),
                            )
                            tl.debug_barrier()
                        pulled = tl.zeros([R, A], tl.float32)
                        for k in range(0, H, TILE):
                            at = (e * H + k + tile)[:, None] * A + axis[None, :]
                            part = tl.load(scratch + e * state_size + R * H + at_tile + k)
                            pulled = product(part, tl.load(from_action + at), pulled, OUTER)
                        gradient += tl.where(needed[:, None], pulled, 0.0)
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
        tl.store(results + at_action, action, mask=in_actions)
        tl.store(floats + row, q, mask=live)
        tl.store(floats + rows + row, q_initial, mask=live)
        tl.store(floats + 2 * rows + row, length(action - initial), mask=live)
        tl.store(indices + row, last_step.to(tl.int64), mask=live)
        tl.store(indices + rows + row, tl.zeros([R], tl.int64), mask=live)
        tl.store(indices + 2 * rows + row, steps + tl.zeros([R], tl.int64), mask=live)
