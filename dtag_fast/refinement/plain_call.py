"""The fast call of a backend that takes tensors as they come: no check but whether they may."""

from __future__ import annotations

from collections.abc import Callable
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

    def of_tensors(observations: Tensor, actions: Tensor) -> Any:
        if not (is_plain(observations) and is_plain(actions)):
            return NotImplemented
        observed, shape = observations.shape, actions.shape
        if len(observed) == 1 and len(shape) == 1:
            refined = of_tensors(observations.unsqueeze(0), actions.unsqueeze(0))
            return refined if refined is NotImplemented else refined.squeeze(0)
        starts = shape[1] if len(shape) == 3 else 1
        if (
            len(observed) != 2
            or len(shape) not in (2, 3)
            or observed[0] != shape[0]
            or shape[0] not in rows
            or starts == 0
            or observation_dim not in (observed[1], None)
            or action_dim not in (shape[-1], None)
            or not version.is_current()
        ):
            return NotImplemented
        return refine(observations, actions, starts)

    def call(observations: Any, actions: Any) -> Any:
        if type(observations) is Tensor and type(actions) is Tensor:
            return of_tensors(observations, actions)
        if not (_is_plain_numpy(observations) and _is_plain_numpy(actions)):
            return NotImplemented
        tensors = (torch.from_numpy(array).to(device) for array in (observations, actions))
        refined = of_tensors(*tensors)
        return refined if refined is NotImplemented else refined.cpu().numpy()

    return call


def _is_plain_numpy(array: object) -> bool:
    return (
        type(array) is np.ndarray
        and array.dtype == np.float32
        and array.flags.c_contiguous
        and array.flags.writeable  # or torch warns
    )
