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


def for_dense_tiles(
    of_observation: Tensor, of_action: Tensor, between: Tensor, bias: Tensor, output: Tensor
) -> dict[str, Tensor]:
    """What csrc/cuda/dense_input.h copies to shared memory, laid out as dense_kernel.h says."""
    heads, _, size = of_observation.shape
    actions = next(n for n in (4, 6, 8) if n >= of_action.shape[2] + of_action.shape[2] % 2)
    units = TILE_UNITS
    # 64 of a unit's weights together, in pieces of eight that are exchanged as swizzled() in
    # csrc/cuda/wgmma.cuh says.
    slabs = padded(between, units, units).reshape(heads, units, units // 64, 8, 8).transpose(1, 2)
    rows = torch.arange(units, device=between.device)[:, None]
    pieces = torch.arange(8, device=between.device) ^ rows % 8
    exchanged = slabs[:, :, rows, pieces]
    # Of two units: -b_2, never a negative zero, and w; W_1a, with room after that of eight actions.
    top = torch.stack([0.0 - padded(bias, units), padded(output.squeeze(1), units)], 1)
    pairs = padded(of_action, units, actions).reshape(heads, units // 2, 2, actions).mT
    first = F.pad(pairs.flatten(2), (0, 4 if actions == 8 else 0))
    top = top.reshape(heads, 2, units // 2, 2).transpose(1, 2)
    return {
        "tile_weights": exchanged.contiguous(),
        "tile_numbers": torch.cat([top.flatten(1), first.flatten(1)], 1).contiguous(),
        "tile_observation": padded(of_observation.mT, -(-size // 4) * 4, units),
    }
