"""The weights that backends pack into layouts of their own, kept until the critic changes."""

from __future__ import annotations

import threading
import weakref
from typing import Any, NamedTuple, cast

from torch import nn

from dtag_fast.refinement.backends import BACKENDS, PackingBackend
from dtag_fast.refinement.execution import Precision
from dtag_fast.refinement.weights_version import WeightsVersion, weights_version


class Packing(NamedTuple):
    """What a backend made of a critic's weights, and the version of them that it read."""

    weights: Any
    version: WeightsVersion


# By backend and precision. Neither value keeps the critic alive.
_packings: weakref.WeakKeyDictionary[nn.Module, dict[tuple[str, str], Packing]]
_packings = weakref.WeakKeyDictionary()
_lock = threading.RLock()


def packed(backend: str, critic: nn.Module, precision: Precision) -> Packing:
    """What the backend makes of the critic's weights as they are now."""
    with _lock:
        packings = _packings.setdefault(critic, {})
        key = (backend, precision)
        if key not in packings or not packings[key].version.is_current():
            module = cast(PackingBackend, BACKENDS[backend].load())
            # The version first: a change while the weights are being read is noticed later.
            version = weights_version(critic)
            packings[key] = Packing(module.pack(critic, precision), version)
        return packings[key]


def forget(critic: nn.Module) -> None:
    """Pack its weights anew when they are next needed."""
    with _lock:
        for packing in _packings.pop(critic, {}).values():
            packing.version.expire()
