"""Observations and actions as users give them, to what a backend takes, and back."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

# Torch tensors or numpy arrays; a call's result is of the kind of its actions.
Array = TypeVar("Array", Tensor, NDArray[Any])


@dataclass(frozen=True)
class Inputs:
    """One call's arrays as every backend takes them: float32, contiguous, on the critic's device.

    Attributes:
        observations: [B, S].
        actions: [B, N, A]; N = 1 where the caller gave one action a row.
    """

    observations: Tensor
    actions: Tensor
    _given: Any
    _single: bool

    def restore(self, result: Tensor) -> Any:
        """The refined actions [B, A] in the kind, shape, dtype and device of the given ones."""
        if self._single:
            result = result.squeeze(0)
        if isinstance(self._given, Tensor):
            return result.to(self._given.dtype)
        return result.cpu().numpy().astype(self._given.dtype, copy=False)


def check_inputs(critic: nn.Module, observations: object, actions: object) -> Inputs:
    """Check the arrays of one call against each other and against the critic.

    Raises:
        TypeError: not both torch tensors or both numpy arrays, or not of floating point.
        ValueError: shapes, sizes or devices that do not fit; the message says which.
    """
    given = {"observations": observations, "actions": actions}
    for name, array in given.items():
        if not isinstance(array, Tensor | np.ndarray):
            raise TypeError(
                f"{name}: expected a torch tensor or numpy array, got {type(array).__name__}"
            )
        floating = (
            array.dtype.is_floating_point
            if isinstance(array, Tensor)
            else np.issubdtype(array.dtype, np.floating)
        )
        if not floating:
            raise TypeError(f"{name}: expected floating point numbers, got dtype {array.dtype}")
    if isinstance(observations, Tensor) != isinstance(actions, Tensor):
        raise TypeError(
            f"observations, actions: expected both torch tensors or both numpy arrays, got "
            f"{type(observations).__name__} and {type(actions).__name__}"
        )
    assert isinstance(observations, Tensor | np.ndarray)
    assert isinstance(actions, Tensor | np.ndarray)
    device = device_of(critic)
    if isinstance(observations, Tensor) and isinstance(actions, Tensor):
        if observations.device != actions.device:
            raise ValueError(
                f"observations, actions: expected one device, got {observations.device} "
                f"and {actions.device}"
            )
        if device is not None and device != actions.device:
            raise ValueError(
                f"actions: expected the critic's device {device}, got {actions.device}"
            )
    single = observations.ndim == 1
    rows = _to_float32(observations, device)
    points = _to_float32(actions, device)
    if single:
        if points.ndim != 1:
            raise ValueError(
                f"actions: expected [A] with observations [S], got {list(points.shape)} (several "
                f"starting points of one row are observations [1, S] with actions [1, N, A])"
            )
        rows, points = rows.unsqueeze(0), points.unsqueeze(0)
    check_shapes(critic, rows, points)
    if points.ndim == 2:
        points = points.unsqueeze(1)
    return Inputs(rows.contiguous(), points.contiguous(), actions, single)


def check_shapes(critic: nn.Module, observations: Tensor, actions: Tensor) -> None:
    """Raise unless they are [B, S] and [B, A] or [B, N, A], of the critic's sizes."""
    if observations.ndim != 2:
        raise ValueError(f"observations: expected [B, S] or [S], got {list(observations.shape)}")
    if actions.ndim not in (2, 3):
        raise ValueError(f"actions: expected [B, A], [A] or [B, N, A], got {list(actions.shape)}")
    if actions.shape[0] != observations.shape[0]:
        raise ValueError(
            f"actions: expected {observations.shape[0]} rows, as many as observations, "
            f"got {actions.shape[0]}"
        )
    if actions.ndim == 3 and actions.shape[1] == 0:
        raise ValueError("actions: expected at least one starting point a row, got N = 0")
    for name, size, expected in (
        ("observations", observations.shape[-1], getattr(critic, "observation_dim", None)),
        ("actions", actions.shape[-1], getattr(critic, "action_dim", None)),
    ):
        if size == 0 or (isinstance(expected, int) and size != expected):
            wanted = f"{expected} numbers a row" if isinstance(expected, int) else "at least one"
            raise ValueError(f"{name}: expected {wanted}, got {size}")


def _to_float32(array: Tensor | NDArray[Any], device: torch.device | None) -> Tensor:
    if isinstance(array, Tensor):
        return array.detach().to(torch.float32).resolve_neg()
    # Writable, which a copy is: torch warns of others, although nothing is written to.
    plain = np.require(array, np.float32, ("C", "W"))
    return torch.from_numpy(plain).to(device or "cpu")


def by_head(q: Tensor, rows: int) -> Tensor:
    """A critic's Q of so many rows, [E, R] or [R], as [E, R]; ValueError if it is neither."""
    heads = q.unsqueeze(0) if q.ndim == 1 else q
    if heads.ndim != 2 or heads.shape[1] != rows:
        raise ValueError(
            f"critic: expected Q of shape [E, {rows}] or [{rows}] for {rows} rows, got "
            f"{list(heads.shape)}"
        )
    return heads


def device_of(critic: nn.Module) -> torch.device | None:
    """Where the critic computes; None for a module without parameters and buffers."""
    tensors = itertools.chain(critic.parameters(), critic.buffers())
    return next((tensor.device for tensor in tensors), None)
