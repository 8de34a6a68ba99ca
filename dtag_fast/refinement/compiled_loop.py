"""The refinement of one kind and size, by steps that torch has compiled."""

from __future__ import annotations

import functools
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dtag_fast.refinement.autograd_form import Autograd
from dtag_fast.refinement.closed_form import ClosedForm
from dtag_fast.refinement.compiling import compiled
from dtag_fast.refinement.loop import Numbers, Refined, State, Step, numbers, refine
from dtag_fast.refinement.options import RefineOptions

MOST_STEPS = 64

_lock = threading.RLock()


class Sizes(NamedTuple):
    """Of the arrays that a loop takes: `rows` is B, a bucket's."""

    rows: int
    observation_dim: int
    starts: int
    action_dim: int


class Key(NamedTuple):
    """Equal for loops that do the same."""

    form: ClosedForm | Autograd
    options: RefineOptions
    sizes: Sizes
    device: torch.device
    settings: Hashable  # of torch, that are read while compiling


class Loop:
    """The refinement of one bucket, with compiled steps."""

    def __init__(self, key: Key) -> None:
        self.step = Step.of(key.form, key.options)
        self.options = key.options
        self.sizes = key.sizes
        self.device = key.device
        self._numbers = _numbers_on(key.device, key.options, key.sizes.action_dim)

    def reads(self, weights: list[Tensor]) -> bool:
        """Whether it can take these: any."""
        return True

    def actions(self, weights: list[Tensor], observations: Tensor, actions: Tensor) -> Tensor:
        """The refined actions alone."""
        return self(weights, observations, actions).actions

    def __call__(self, weights: list[Tensor], observations: Tensor, actions: Tensor) -> Refined:
        """Of at most as many rows as it has: pad, refine, drop what was padded."""
        batch = len(actions)
        if batch == self.sizes.rows:
            return self.of_bucket(weights, observations, actions)
        padding = self.sizes.rows - batch  # rows of zeros; any finite numbers would do
        rows = observations.new_zeros(padding, *observations.shape[1:])
        points = actions.new_zeros(padding, *actions.shape[1:])
        refined = self.of_bucket(
            weights, torch.cat([observations, rows]), torch.cat([actions, points])
        )
        return refined.first(batch)

    def of_bucket(self, weights: list[Tensor], observations: Tensor, actions: Tensor) -> Refined:
        """Of exactly as many rows as it has."""
        call: Callable[..., Any] | None = None

        def take(
            weights: list[Tensor], prepared: Tensor, initial: Tensor, state: State, numbers: Numbers
        ) -> tuple[State, Tensor]:
            nonlocal call
            tensors: list[Any] = [*weights, prepared, initial, *state, *numbers]
            if call is None:
                call = _compiled_step(self.step, tensors, len(weights))
            *new, q = call(*tensors)
            return State(*new), q

        dense = [weight.contiguous() for weight in weights]
        with torch.autocast(self.device.type, enabled=False):
            return refine(
                self.step, take, dense, observations, actions, self.options, self._numbers
            )


@functools.lru_cache(maxsize=256)
def _numbers_on(device: torch.device, options: RefineOptions, action_dim: int) -> list[Numbers]:
    """The numbers of each step as tensors, so that one compiled step takes any."""
    steps = numbers(options, action_dim)
    shared = [
        torch.as_tensor(value, dtype=torch.float32).contiguous().to(device)
        for value in steps[0][:4]
    ]
    candidates = torch.tensor([each.candidate for each in steps], dtype=torch.int64).to(device)
    rates = torch.tensor([(each.rate, each.correction) for each in steps], dtype=torch.float32)
    columns = candidates.unbind(), *rates.to(device).unbind(1)
    return [Numbers(*shared, *each) for each in zip(*columns, strict=True)]


def settings() -> Hashable:
    """Settings of torch that are read while compiling."""
    return torch.get_num_threads(), torch.get_float32_matmul_precision()


_steps: OrderedDict[Hashable, Callable[..., Any]] = OrderedDict()


def _compiled_step(step: Step, tensors: list[Tensor], weights: int) -> Callable[..., Any]:
    """The step as a function of tensors, its first so many weights, compiled for these."""
    key = step, tuple((t.shape, t.dtype) for t in tensors), tensors[0].device, settings()
    with _lock:
        if key not in _steps:
            _steps[key] = compiled(functools.partial(_flat, step, weights), tensors)
            while len(_steps) > MOST_STEPS:
                _steps.popitem(last=False)
        _steps.move_to_end(key)
        return _steps[key]


def _flat(step: Step, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
    """The step from tensors to tensors."""
    prepared, initial, *rest = tensors[count:]
    state, of_step = rest[: len(State._fields)], rest[len(State._fields) :]
    new, q = step(list(tensors[:count]), prepared, initial, State(*state), Numbers(*of_step))
    return *new, q
