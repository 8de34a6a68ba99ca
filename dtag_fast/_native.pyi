"""The compiled kernels, csrc/bindings.cpp. Addresses are checked by refinement/cpu.py, not here."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

class PackedCritic:
    """A copy of a critic's weights in the layouts the kernels read.

    mean and std are [S]. A layer is (weight [E, out, in], bias [E, out]), or with LayerNorm
    (weight, bias, norm_weight [E, out], norm_bias [E, out]); the last one has out = 1. Arrays are
    float32 and C-contiguous.
    """

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        heads: int,
        activation: str,
        negative_slope: float,
        mean: NDArray[np.float32],
        std: NDArray[np.float32],
        layers: Sequence[Sequence[NDArray[np.float32]]],
    ) -> None: ...
    @property
    def observation_dim(self) -> int: ...
    @property
    def action_dim(self) -> int: ...

class Options:
    """The options of a refinement; low and high hold A numbers, or none without bounds."""

    def __init__(
        self,
        *,
        steps: int,
        step_size: float,
        optimizer: str,
        low: Sequence[float],
        high: Sequence[float],
        ensemble: str,
        lcb_k: float,
        select: str,
        max_distance: float | None,
        gradient: str,
    ) -> None: ...

def refine(
    critic: PackedCritic,
    options: Options,
    rows: int,
    starts: int,
    observations: int,
    actions: int,
    result: int,
    q: int,
    q_initial: int,
    best_step: int,
    start: int,
    distance: int,
) -> None:
    """Refine actions [rows, starts, A] to result [rows, A]; arrays come as addresses."""

def build_info() -> dict[str, str]:
    """compiler, flags, build_type, processor, pybind11, version."""
