"""What a refinement is asked to do, checked once, and what it reports."""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Optimizer = Literal["sgd", "momentum", "rmsprop", "adam"]
Ensemble = Literal["min", "mean", "lcb"]
Select = Literal["best", "last"]
Gradient = Literal["raw", "unit"]
Bound = float | Sequence[float] | NDArray[Any] | Tensor
Bounds = tuple[Bound, Bound]

# torch.optim's defaults, except momentum, which has none there.
MOMENTUM = 0.9
RMSPROP_ALPHA = 0.99
ADAM_BETAS = (0.9, 0.999)
EPSILON = 1e-8


@dataclass(frozen=True)
class RefineOptions:
    """Checked and hashable options; see `dtag_fast.refine` for their meaning.

    `low` and `high` are () without bounds, one number for every dimension, or A numbers.
    """

    steps: int
    step_size: float
    optimizer: Optimizer
    low: tuple[float, ...]
    high: tuple[float, ...]
    ensemble: Ensemble
    lcb_k: float
    select: Select
    max_distance: float | None
    gradient: Gradient

    @classmethod
    def check(
        cls,
        *,
        steps: int,
        step_size: float,
        optimizer: Optimizer,
        bounds: Bounds | None,
        ensemble: Ensemble,
        lcb_k: float,
        select: Select,
        max_distance: float | None,
        gradient: Gradient,
    ) -> RefineOptions:
        """The options as given by a caller, or a ValueError or TypeError that names the bad one."""
        try:
            steps = operator.index(steps)
        except TypeError:
            raise TypeError(f"steps: expected an integer, got {steps!r}") from None
        if steps < 0:
            raise ValueError(f"steps: expected 0 or more, got {steps}")
        low, high = _check_bounds(bounds)
        return cls(
            steps=steps,
            step_size=_non_negative("step_size", step_size),
            optimizer=check_word("optimizer", optimizer, Optimizer),
            low=low,
            high=high,
            ensemble=check_word("ensemble", ensemble, Ensemble),
            lcb_k=_non_negative("lcb_k", lcb_k),
            select=check_word("select", select, Select),
            max_distance=None
            if max_distance is None
            else _non_negative("max_distance", max_distance),
            gradient=check_word("gradient", gradient, Gradient),
        )

    def check_action_dim(self, action_dim: int) -> None:
        """Raise unless the bounds fit actions of `action_dim` numbers."""
        for name, bound in (("low", self.low), ("high", self.high)):
            if len(bound) not in (0, 1, action_dim):
                raise ValueError(
                    f"bounds: expected {name} to be one number or {action_dim}, one an action "
                    f"dimension, got {len(bound)}"
                )

    def box(self, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor] | None:
        """(low, high) as float32 tensors [1] or [A], or None without bounds."""
        if not self.low:
            return None
        low = torch.tensor(self.low, dtype=torch.float32, device=device)
        high = torch.tensor(self.high, dtype=torch.float32, device=device)
        return low, high

    def native_arguments(self, action_dim: int) -> dict[str, Any]:
        """The fields by name, for a compiled module, with A numbers to each bound."""
        fields = {**vars(self)}
        for bound in ("low", "high"):
            if len(fields[bound]) == 1:
                fields[bound] = fields[bound] * action_dim
        return fields


@dataclass(frozen=True)
class RefineInfo:
    """What happened to each row. Every field but one is a tensor [B] on the device of the actions.

    Attributes:
        q: float32, the ensemble's Q of the returned action.
        q_initial: float32, the Q of candidate 0; with several starting points the highest of
            theirs, so that q - q_initial is what the steps added to picking among the points.
        best_step: int64, the index of the candidate that was returned; 0 is the policy's own.
        start: int64, the starting point it came from; 0 where a row has only one.
        distance: float32, the L2 distance from that starting point (projected) to the result.
        algorithm: what computed it: "walk", "dense", or "autograd", the reference's.
        flips: int64, how many times a walk saw a hidden unit of any head change its sign.
        dense_steps: int64, the steps, over all starting points, that the full network took: 0 for a
            pure walk, N * steps where there is no walk.
    """

    q: Tensor
    q_initial: Tensor
    best_step: Tensor
    start: Tensor
    distance: Tensor
    algorithm: str
    flips: Tensor
    dense_steps: Tensor


def check_word(name: str, value: object, words: Any) -> Any:
    """The value, or a ValueError unless it is one of the words of a Literal."""
    if value not in get_args(words):
        raise ValueError(f"{name}: expected one of {', '.join(get_args(words))}, got {value!r}")
    return value


def _non_negative(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}: expected a number, got {value!r}")
    number = float(value)
    if not (math.isfinite(number) and number >= 0):
        raise ValueError(f"{name}: expected a finite number of 0 or more, got {value!r}")
    return number


def _check_bounds(bounds: Bounds | None) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if bounds is None:
        return (), ()
    if not isinstance(bounds, tuple | list) or len(bounds) != 2:
        raise TypeError(f"bounds: expected None or a pair (low, high), got {bounds!r}")
    low, high = (_check_bound(name, b) for name, b in zip(("low", "high"), bounds, strict=True))
    if low.size != high.size and 1 not in (low.size, high.size):
        raise ValueError(f"bounds: low has {low.size} numbers, high has {high.size}")
    if not (low <= high).all():
        raise ValueError(f"bounds: expected low <= high, got {low.tolist()} and {high.tolist()}")
    low, high = np.broadcast_arrays(low, high)
    return tuple(low.tolist()), tuple(high.tolist())


def _check_bound(name: str, bound: object) -> NDArray[np.float32]:
    if isinstance(bound, Tensor):
        bound = bound.detach().cpu().numpy()
    try:
        values = np.atleast_1d(np.asarray(bound, dtype=np.float32))
    except (TypeError, ValueError):
        raise TypeError(
            f"bounds: expected {name} to be a number or numbers, got {bound!r}"
        ) from None
    if values.ndim != 1 or values.size == 0 or np.isnan(values).any():
        raise ValueError(f"bounds: expected {name} to be one number or [A], no NaN, got {bound!r}")
    return values
