"""The weights that backends pack into layouts of their own, kept until the critic changes."""

from __future__ import annotations

import itertools
import threading
import weakref
from typing import Any

from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from dtag_fast.refinement.backends import BACKENDS, PackingBackend
from dtag_fast.refinement.execution import Precision

WeightsVersion = tuple[int, tuple[tuple[int, int], ...]]

# By backend and precision, with the version of the weights they were packed from.
_packings: weakref.WeakKeyDictionary[nn.Module, dict[tuple[str, str], tuple[WeightsVersion, Any]]]
_packings = weakref.WeakKeyDictionary()
_lock = threading.Lock()
_optimizer_steps = 0
_counting = False


def packed(backend: str, critic: nn.Module, precision: Precision) -> Any:
    """What the backend made of the critic's weights as they are now."""
    with _lock:
        _count_optimizer_steps()
        version = _weights_version(critic)
        packings = _packings.setdefault(critic, {})
        key = (backend, precision)
        if key not in packings or packings[key][0] != version:
            module: PackingBackend = BACKENDS[backend].load()  # type: ignore[assignment]
            packings[key] = (version, module.pack(critic, precision))
        return packings[key][1]


def forget(critic: nn.Module) -> None:
    """Pack its weights anew when they are next needed."""
    with _lock:
        _packings.pop(critic, None)


def _weights_version(critic: nn.Module) -> WeightsVersion:
    """Changes whenever PyTorch sees a weight or buffer written in place, moved or replaced."""

    def count(tensor: Tensor) -> int:
        # Tensors made in inference mode carry no counter, and can't be written outside it.
        return -1 if tensor.is_inference() else tensor._version

    tensors = itertools.chain(critic.parameters(), critic.buffers())
    return _optimizer_steps, tuple((tensor.data_ptr(), count(tensor)) for tensor in tensors)


def _count_optimizer_steps() -> None:
    """From now on, count the steps of all optimisers: a fused one bypasses tensors' counters."""
    global _counting
    if _counting:
        return

    def count(*_: object) -> None:
        global _optimizer_steps
        _optimizer_steps += 1

    register_optimizer_step_post_hook(count)
    _counting = True
