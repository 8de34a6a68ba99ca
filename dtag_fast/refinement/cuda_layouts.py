"""Layouts of weights for the kernels of csrc/cuda; see refinement/cuda.py."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

TILE_UNITS = 256  # of a hidden layer, in dense tiles


def padded(tensor: Tensor, *sizes: int) -> Tensor:
    """A contiguous copy, its last dimensions filled up to these sizes with zeros."""
    padding: list[int] = []
    for size, wanted in zip(reversed(tensor.shape), reversed(sizes), strict=False):
        padding += [0, wanted - size]
    return F.pad(tensor, padding).contiguous().clone()


def power_for(largest: Tensor, most: int) -> Tensor:
    """The power of two by which each number becomes some 2^14, 2^most at most either way."""
    _, exponent = torch.frexp(largest)
    return ((127 + (15 - exponent).clamp(-most, most)) << 23).view(torch.float32)


def in_halves(numbers: Tensor) -> Tensor:
    """Each in two half floats [..., 2], with ten bits of mantissa each as tf32 has."""
    large = numbers.half()
    return torch.stack([large, (numbers - large).half()], -1)


def for_maps(
    of_action: Tensor, between: Tensor, actions: int, width: int, block: int
) -> dict[str, Tensor]:
    """What csrc/cuda/maps.h multiplies of W_1a [E, H_1, A] and W_2 [E, H_2, H_1], the units of
    layer 2 in blocks of `block`.

    Every number is split in two half floats, scaled by a power of two so that the largest is some
    2^14.
    """

    def split(numbers: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        scale = power_for(numbers.abs().amax(dims, keepdim=True), 100)
        return in_halves(numbers * scale), scale

    device, heads, slots = between.device, len(between), -(-(1 + actions) // 8)
    terms, of_terms = split(padded(of_action, width, actions), (1,))
    halves, of_halves = split(padded(between, width, width), (1, 2))
    columns = torch.zeros(heads, width, slots * 8, 2, dtype=torch.half, device=device)
    columns[:, :, 1 : 1 + actions] = terms  # column 0 is z_1, which the kernel knows
    unscale = torch.ones(heads, slots * 8, device=device)
    unscale[:, 1 : 1 + actions] = 1 / of_terms[:, 0]
    # [E, k-steps of 16: half, quad, pair; slot, column, part], to the order in which threads take.
    steps = columns.reshape(heads, width // 16, 2, 4, 2, slots, 8, 2)
    # Units so that the four that a lane gets sums of, of every sixteen, are neighbours: 0, 1, 4, 5,
    # 8, 9, 12, 13, 2, 3, 6, 7, ... Then blocks of them, which copy theirs as they lie here: 64 of a
    # unit's weights together, in pieces of eight, exchanged as swizzled() in wgmma.cuh says.
    order = torch.arange(width, device=device).reshape(-1, 4, 2, 2).transpose(1, 2).flatten()
    of_blocks = halves[:, order].reshape(heads, width // block, block, width // 64, 8, 8, 2)
    units = torch.arange(block, device=device).unsqueeze(1)
    pieces = torch.arange(8, device=device) ^ units % 8
    return {
        "halves": of_blocks.permute(0, 1, 3, 6, 2, 4, 5)[..., units, pieces, :].contiguous(),
        "terms": steps.permute(0, 1, 5, 6, 3, 7, 2, 4).contiguous(),
        "unscale": unscale / of_halves[:, 0],
    }


def for_dense_tiles(
    of_observation: Tensor, of_action: Tensor, between: Tensor, bias: Tensor, output: Tensor
) -> dict[str, Tensor]:
    """What csrc/cuda/dense_input.h copies to shared memory, laid out as dense_kernel.h says."""
    heads, _, size = of_observation.shape
    units = TILE_UNITS
    # 64 of a unit's weights together, in pieces of eight that are exchanged as swizzled() in
    # csrc/cuda/wgmma.cuh says.
    slabs = padded(between, units, units).reshape(heads, units, units // 64, 8, 8).transpose(1, 2)
    rows = torch.arange(units, device=between.device)[:, None]
    pieces = torch.arange(8, device=between.device) ^ rows % 8
    exchanged = slabs[:, :, rows, pieces]
    # By powers of two: W_1a by dimension; z_1 as the largest of these weights, times 16, so that
    # half floats hold actions to 2^-29 and up to 4095; w so that no sum of g_2 W_2 is beyond them.
    first, top = padded(of_action, units, 8), padded(output.squeeze(1), units)
    largest = first.abs().amax(1)  # [E, 8]
    greatest = largest.amax(1, keepdim=True)
    of_first = power_for(torch.where(largest > 0, largest, greatest), 60)
    of_share = 16 * power_for(greatest, 60)
    sums = (
        top.to(between.dtype).float().abs().unsqueeze(1)
        @ padded(between, units, units).float().abs()
    )
    of_top = power_for(sums.amax(2), 60)
    of_action_and_back = of_share / of_first, 1 / (of_first * of_top)
    of_share_and_q = of_share, 1 / (of_share * of_top), torch.zeros_like(of_top).expand(-1, 2)
    # Of two units: -b_2, never a negative zero, and w.
    tops = torch.stack([0.0 - padded(bias, units) * of_share, top * of_top], 1)
    tops = tops.reshape(heads, 2, units // 2, 2).transpose(1, 2).flatten(1)
    halves = in_halves(first * of_first.unsqueeze(1)).movedim(3, 1).contiguous()  # [E, 2, units, 8]
    numbers = tops, *of_action_and_back, *of_share_and_q, halves.view(torch.float32).flatten(1)
    return {
        "tile_weights": exchanged.contiguous(),
        "tile_numbers": torch.cat(numbers, 1).contiguous(),
        "tile_observation": padded(of_observation.mT, -(-size // 4) * 4, units),
    }
