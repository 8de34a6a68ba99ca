"""The weights that backends pack into layouts of their own, kept until the critic changes."""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from dtag_fast.refinement.backends import BACKENDS, PackingBackend
from dtag_fast.refinement.execution import Precision

if TYPE_CHECKING:
    from dtag_fast._native import WeightsVersion


class Packing(NamedTuple):
    """What a backend made of a critic's weights, and the version of them that it read."""

    weights: Any
    version: WeightsVersion


# By backend and precision. Neither value keeps the critic alive.
_packings: weakref.WeakKeyDictionary[nn.Module, dict[tuple[str, str], Packing]]
_packings = weakref.WeakKeyDictionary()
_lock = threading.RLock()
_counting = False


def packed(backend: str, critic: nn.Module, precision: Precision) -> Packing:
    """What the backend makes of the critic's weights as they are now."""
    from dtag_fast import _native

    with _lock:
        optimizer_steps()
        packings = _packings.setdefault(critic, {})
        key = (backend, precision)
        if key not in packings or not packings[key].version.is_current():
            module: PackingBackend = BACKENDS[backend].load()  # type: ignore[assignment]
            # The version first: a change while the weights are being read is noticed later.
            version = _native.WeightsVersion(critic)
            packings[key] = Packing(module.pack(critic, precision), version)
        return packings[key]


def forget(critic: nn.Module) -> None:
    """Pack its weights anew when they are next needed."""
    with _lock:
        for packing in _packings.pop(critic, {}).values():
            packing.version.expire()


def optimizer_steps() -> int:
    """The steps of all optimisers, counted from the first call on; fused ones tell no tensor."""
    global _counting
    from dtag_fast import _native

    if not _counting:
        register_optimizer_step_post_hook(_native.count_optimizer_step)
        _counting = True
    return _native.optimizer_steps()
