"""Whether a module's weights are still those that were read: noticed, not asked of the user.

The native module has the same in C++ (csrc/weights_version.h), fast enough for a call of
microseconds; this one is for installations without it, where backends that need no build run.
"""

from __future__ import annotations

import weakref
from typing import Any, Protocol

from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from dtag_fast import build_info

_DICTIONARIES = ("_parameters", "_buffers", "_modules")
_steps = 0
_counting = False


class WeightsVersion(Protocol):
    """The weights of a module as they were at some moment."""

    def is_current(self) -> bool:
        """Whether they still are; see `PythonWeightsVersion`."""

    def expire(self) -> None:
        """No longer current from now on."""


def weights_version(module: nn.Module) -> WeightsVersion:
    """The module's weights as they are now."""
    optimizer_steps()
    if build_info.native_missing_reason() is not None:
        return PythonWeightsVersion(module)
    from dtag_fast import _native

    return _native.WeightsVersion(module)


def optimizer_steps() -> int:
    """The steps of all optimisers, counted from the first call on; fused ones tell no tensor."""
    global _counting
    native = build_info.native_missing_reason() is None
    if native:
        from dtag_fast import _native
    if not _counting:
        register_optimizer_step_post_hook(_native.count_optimizer_step if native else _count)
        _counting = True
    return _native.optimizer_steps() if native else _steps


def _count(*_: Any) -> None:
    global _steps
    _steps += 1


class PythonWeightsVersion:
    """Ceases to be current whenever torch sees a parameter or buffer written in place, moved or
    replaced, or a submodule replaced, and with every step of any optimiser, as a fused one writes
    without telling the tensor. It keeps neither the module nor its tensors alive, only the memory
    of the tensors, so that no other tensor's numbers can come to lie there.
    """

    def __init__(self, module: nn.Module) -> None:
        self._expired = False
        self._steps = _steps
        self._members = [
            (weakref.ref(each), name, [_Member(value) for value in _values(each, name)])
            for each in module.modules()
            for name in _DICTIONARIES
        ]

    def is_current(self) -> bool:
        """Whether the weights are still those at construction."""
        if self._expired or self._steps != _steps:
            return False
        for reference, name, members in self._members:
            module = reference()
            if module is None:
                return False
            values = _values(module, name)
            if len(values) != len(members):
                return False
            if not all(m.is_still(v) for m, v in zip(members, values, strict=True)):
                return False
        return True

    def expire(self) -> None:
        """No longer current from now on."""
        self._expired = True


class _Member:
    """A parameter, a buffer or a submodule as it was."""

    def __init__(self, value: Tensor | nn.Module) -> None:
        self._value = weakref.ref(value)
        self._memory = value.detach() if isinstance(value, Tensor) else None
        self._state = _state(value)

    def is_still(self, value: Tensor | nn.Module) -> bool:
        return self._value() is value and _state(value) == self._state


def _state(value: Tensor | nn.Module) -> tuple[int, int] | None:
    if isinstance(value, nn.Module):
        return None
    # Tensors of inference mode are not counted.
    return value.data_ptr(), -1 if value.is_inference() else value._version


def _values(module: nn.Module, name: str) -> list[Any]:
    return [value for value in module.__dict__[name].values() if value is not None]
