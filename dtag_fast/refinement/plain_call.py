"""The fast call of a backend that takes tensors as they come: no check but whether they may."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dtag_fast.refinement.backends import FastCall
from dtag_fast.refinement.weights_version import WeightsVersion


def plain_call(
    refine: Callable[[Tensor, Tensor, int], Any],
    device: torch.device,
    sizes: tuple[int | None, int | None],
    version: WeightsVersion,
    rows: range,
) -> FastCall:
    """See `FastBackend.fast_call`: `refine` gets observations [B, S], actions [B, A] or [B, N, A],
    and N, at least 1; float32, contiguous and on the device. It may give NotImplemented too. S and
    A are `sizes`; None for what is not known, and left to `refine`.
    """
    observation_dim, action_dim = sizes

    def is_plain(array: Tensor) -> bool:
        return (
            array.dtype is torch.float32
            and array.device == device
            and array.is_contiguous()
            and not array.is_neg()
        )

    def starts_of(observed: Sequence[int], shape: Sequence[int]) -> int:
        """N, if arrays of these shapes may come; else 0."""
        if len(observed) == 1 and len(shape) == 1:
            observed, shape = (1, *observed), (1, *shape)
        if (
            len(observed) != 2
            or len(shape) not in (2, 3)
            or observed[0] != shape[0]
            or shape[0] not in rows
            or observation_dim not in (observed[1], None)
            or action_dim not in (shape[-1], None)
            or not version.is_current()
        ):
            return 0
        return shape[1] if len(shape) == 3 else 1

    def call(observations: Any, actions: Any) -> Any:
        tensors = type(observations) is Tensor and type(actions) is Tensor
        may_come = is_plain if tensors else _is_plain_numpy
        if not (may_come(observations) and may_come(actions)):
            return NotImplemented
        starts = starts_of(observations.shape, actions.shape)
        if starts == 0:
            return NotImplemented
        if not tensors:
            observations = torch.from_numpy(observations).to(device)
            actions = torch.from_numpy(actions).to(device)
        single = observations.ndim == 1
        if single:
            observations, actions = observations.unsqueeze(0), actions.unsqueeze(0)
        refined = refine(observations, actions, starts)
        if refined is NotImplemented:
            return refined
        if single:
            refined = refined.squeeze(0)
        return refined if tensors else refined.cpu().numpy()

    return call


def _is_plain_numpy(array: object) -> bool:
    return (
        type(array) is np.ndarray
        and array.dtype == np.float32
        and array.flags.c_contiguous
        and array.flags.writeable  # or torch warns
    )
