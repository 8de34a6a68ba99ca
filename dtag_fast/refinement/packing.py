"""What is made of a critic's weights, kept until they change: weights packed into the layouts of
backends, and the fast calls of `dtag_fast.refine`. Nothing of it keeps the critic alive.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable
from typing import Any, NamedTuple, cast

from torch import nn

from dtag_fast.refinement.backends import BACKENDS, FastCall, PackingBackend
from dtag_fast.refinement.execution import Precision
from dtag_fast.refinement.weights_version import WeightsVersion, weights_version


class Packing(NamedTuple):
    """What a backend made of a critic's weights, and the version of them that it read."""

    weights: Any
    version: WeightsVersion


# By backend and precision.
_packings: weakref.WeakKeyDictionary[nn.Module, dict[tuple[str, str], Packing]]
_packings = weakref.WeakKeyDictionary()
# By the words of a call, those of a backend or two, for other batches each.
_calls: weakref.WeakKeyDictionary[nn.Module, dict[tuple[Any, ...], dict[str, FastCall]]]
_calls = weakref.WeakKeyDictionary()
_most_calls = 16  # of a critic: step sizes, say, may differ from call to call
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
            if key in packings:
                _calls.pop(critic, None)  # they hold what was packed before
            packings[key] = Packing(module.pack(critic, precision), version)
        return packings[key]


def forget(critic: nn.Module) -> None:
    """Pack its weights anew when they are next needed."""
    with _lock:
        _calls.pop(critic, None)
        for packing in _packings.pop(critic, {}).values():
            packing.version.expire()


def known_calls(critic: object, words: tuple[Any, ...] | None) -> Iterable[FastCall]:
    """The fast calls that were remembered for this critic and these words."""
    if words is None or not isinstance(critic, nn.Module):
        return ()
    return tuple(_calls.get(critic, {}).get(words, {}).values())


def remember_call(critic: nn.Module, words: tuple[Any, ...], backend: str, call: FastCall) -> None:
    """Keep a fast call until the critic's weights are packed anew, or many came after it."""
    with _lock:
        calls = _calls.setdefault(critic, {})
        if words not in calls and len(calls) >= _most_calls:
            del calls[next(iter(calls))]
        calls[words] = calls.get(words, {}) | {backend: call}
