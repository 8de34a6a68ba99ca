"""The choice among a row's starting points, each of which was refined as a row of its own."""

from __future__ import annotations

import triton
import triton.language as tl

from dtag_fast.refinement.triton_kernels.step import is_finite


@triton.jit
def highest(q: tl.tensor, used: tl.tensor, STARTS: tl.constexpr) -> tl.tensor:
    """The index of the highest finite of q [STARTS], the first one on a tie; 0 if there is none."""
    start = tl.arange(0, STARTS)
    q = tl.where(used & is_finite(q), q, float("-inf"))
    return tl.min(tl.where(used & (q == tl.max(q, axis=0)), start, STARTS), axis=0)


@triton.jit(do_not_specialize=["batch", "starts", "action_dim"])
def choose(
    results: tl.tensor,  # [B * N, A]
    floats: tl.tensor,  # [3, B * N]: q, q_initial, distance
    indices: tl.tensor,  # [3, B * N] int64: best_step, flips, dense_steps
    chosen: tl.tensor,  # [B, A]
    chosen_floats: tl.tensor,  # [3, B]
    chosen_indices: tl.tensor,  # [4, B] int64: best_step, flips, dense_steps, start
    batch: tl.tensor,
    starts: tl.tensor,
    action_dim: tl.tensor,
    STARTS: tl.constexpr,  # N padded to a power of two
    A: tl.constexpr,
) -> None:
    """A program a row: B of them."""
    row = tl.program_id(0).to(tl.int64)
    points = batch.to(tl.int64) * starts
    at = row * starts + tl.arange(0, STARTS)
    used = tl.arange(0, STARTS) < starts
    q_initial = tl.load(floats + points + at, mask=used, other=0.0)
    best_initial = highest(q_initial, used, STARTS)
    start = highest(tl.load(floats + at, mask=used, other=0.0), used, STARTS)
    best = row * starts + start
    axis = tl.arange(0, A)
    action = tl.load(results + best * action_dim + axis, mask=axis < action_dim)
    tl.store(chosen + row * action_dim + axis, action, mask=axis < action_dim)
    tl.store(chosen_floats + row, tl.load(floats + best))
    q_initial = tl.load(floats + points + row * starts + best_initial)
    tl.store(chosen_floats + batch + row, q_initial)
    tl.store(chosen_floats + 2 * batch + row, tl.load(floats + 2 * points + best))
    tl.store(chosen_indices + row, tl.load(indices + best))
    for count in range(1, 3):  # flips and dense steps: of all starting points
        total = tl.sum(tl.load(indices + count * points + at, mask=used, other=0), axis=0)
        tl.store(chosen_indices + count * batch + row, total)
    tl.store(chosen_indices + 3 * batch + row, start.to(tl.int64))
